//! The API of AUTOMATIC1111's web UI: one request until all is done, and progress beside it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::response::Response;
use axum::routing::post;
use machinist::queue::FailureClass;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::support::backend::{Backend, End, answer, pieces};
use crate::{KEY_NAME, attempt, attempt_until, cancelled, check, refuses};

const PROGRESS: &str = "GET /sdapi/v1/progress";
const INTERRUPT: &str = "POST /sdapi/v1/interrupt";
const PNG: &str = "iVBORw0KGgo=";

fn vars(backend: &Backend) -> Value {
    json!({ "url": backend.url(), "poll": "20ms" })
}

fn job() -> Value {
    json!({ "payload": { "request": { "prompt": "a cat" } } })
}

fn progress(part: f64, more: &Value) -> Response {
    let mut state =
        json!({ "job_count": 1, "sampling_step": 10, "sampling_steps": 20, "interrupted": false, "skipped": false });
    for (key, value) in more.as_object().unwrap() {
        state[key] = value.clone();
    }
    answer(200, &json!({ "progress": part, "eta_relative": 1.0, "state": state, "current_image": PNG }))
}

fn images(images: &[&str]) -> Value {
    json!({ "images": images, "parameters": {}, "info": "{\"seed\": 42}" })
}

/// Answers `txt2img` when it is told to; everything else as `other` says.
async fn working(
    done: Arc<Notify>,
    other: impl Fn(&crate::support::backend::Asked, usize) -> Response + Send + Sync + 'static,
) -> Backend {
    let work = move |_: Bytes| {
        let done = Arc::clone(&done);
        async move {
            done.notified().await;
            axum::Json(images(&[PNG]))
        }
    };
    Backend::start_with(Router::new().route("/sdapi/v1/txt2img", post(work)), other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_comes_beside_the_work() {
    let done = Arc::new(Notify::new());
    let end = Arc::clone(&done);
    let backend = working(done, move |_, before| {
        if before == 2 {
            end.notify_one();
        }
        progress(0.5, &json!({}))
    })
    .await;
    let mut keys = job();
    keys["payload"]["previews"] = true.into();
    let attempt = attempt("a1111", &vars(&backend), &keys).await;
    let result = attempt.result();
    assert_eq!((&result["seed"], &result["files"][0]["base64"]), (&json!(42), &json!(PNG)));
    assert_eq!(attempt.progress()[0], (0.5, "step 10 of 20".to_owned()));
    assert_eq!(attempt.partials()[0], json!({ "preview": { "base64": PNG } }));
    assert_eq!(backend.asked(PROGRESS)[0].query["skip_current_image"], "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_is_done_where_progress_says_nothing() {
    let backend = Backend::start(|asked, _| match asked.what.as_str() {
        "POST /sdapi/v1/txt2img" => answer(200, &images(&[PNG, "/9j/4AAQ"])),
        _ => answer(500, &json!({})),
    })
    .await;
    let attempt = attempt("a1111", &vars(&backend), &job()).await;
    let kinds: Vec<_> = attempt.result()["files"].as_array().unwrap().iter().map(|file| file["type"].clone()).collect();
    assert_eq!(kinds, ["image/png", "image/jpeg"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_has_its_class() {
    let detail = json!({ "detail": [{ "loc": ["body", "steps"], "msg": "not an integer", "type": "x" }] });
    let exception = |kind: &str, why: &str| json!({ "error": kind, "detail": "", "body": "", "errors": why });
    for (status, body, class) in [
        (422, detail, FailureClass::Fatal),
        (401, json!({ "detail": "Incorrect username or password" }), FailureClass::Account),
        (404, json!({ "detail": "Sampler not found" }), FailureClass::Fatal),
        (404, json!({ "detail": "Model not found" }), FailureClass::WrongMachine),
        (500, exception("OutOfMemoryError", "CUDA out of memory."), FailureClass::Retryable),
        (500, exception("TypeError", "'NoneType' object is not iterable"), FailureClass::Retryable),
        (500, exception("RuntimeError", "Unknown checkpoint: x"), FailureClass::WrongMachine),
        (503, json!({}), FailureClass::Retryable),
        (200, images(&[]), FailureClass::Retryable),
    ] {
        let said = body.clone();
        let backend = Backend::start(move |asked, _| match asked.what.as_str() {
            "POST /sdapi/v1/txt2img" => answer(status, &body),
            _ => progress(0.5, &json!({})),
        })
        .await;
        let attempt = attempt("a1111", &vars(&backend), &job()).await;
        assert_eq!(attempt.fate(), (class, None), "{said}: {}", attempt.failure());
        assert_eq!(backend.asked("POST /sdapi/v1/txt2img").len(), 1, "{said}");
        let freed = backend.asked("POST /sdapi/v1/unload-checkpoint").len();
        assert_eq!(freed, usize::from(said["error"] == "OutOfMemoryError"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_or_is_interrupted_is_tried_again() {
    let broken = Backend::start(|asked, _| match asked.what.as_str() {
        "POST /sdapi/v1/txt2img" => pieces(&["{\"images\": ["], End::Broken),
        _ => progress(0.5, &json!({})),
    })
    .await;
    assert_eq!(attempt("a1111", &vars(&broken), &job()).await.fate(), (FailureClass::Retryable, None));
    let stopped = Backend::start(|asked, _| match asked.what.as_str() {
        "POST /sdapi/v1/txt2img" => answer(200, &images(&[PNG])),
        _ => progress(0.0, &json!({ "interrupted": true, "job_count": 0 })),
    })
    .await;
    let attempt = attempt("a1111", &vars(&stopped), &job()).await;
    assert_eq!(attempt.fate(), (FailureClass::Retryable, None));
    assert!(attempt.failure().message.contains("interrupted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_late_job_interrupts_its_own_work() {
    let task =
        |active: bool, queued: bool| answer(200, &json!({ "active": active, "queued": queued, "completed": false }));
    // It waits behind another one first.
    let backend = working(Arc::default(), move |asked, before| match asked.what.as_str() {
        "POST /internal/progress" => task(before > 0, before == 0),
        "POST /sdapi/v1/interrupt" => answer(200, &json!({})),
        _ => progress(0.1, &json!({})),
    })
    .await;
    cancelled("a1111", &vars(&backend), &job(), || !backend.asked(PROGRESS).is_empty()).await;
    assert_eq!(backend.asked(INTERRUPT).len(), 1);
    let asked = backend.asked("POST /internal/progress");
    assert_eq!((asked.len(), &asked[0].json()["id_task"]), (2, &json!("machinist(j-1)")));

    // One that does not know the task, and works.
    let older = working(Arc::default(), |asked, _| match asked.what.as_str() {
        "POST /internal/progress" => answer(404, &json!({ "detail": "Not Found" })),
        "POST /sdapi/v1/interrupt" => answer(200, &json!({})),
        _ => progress(0.1, &json!({})),
    })
    .await;
    let late = attempt_until("a1111", &vars(&older), &job(), CancellationToken::new(), Duration::from_secs(1)).await;
    assert_eq!(late.failure().class, FailureClass::Timeout);
    assert_eq!(older.asked(INTERRUPT).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_login_models_and_payloads() {
    let backend = Backend::start(|asked, _| match asked.what.as_str() {
        _ if asked.header("authorization") != "Basic bWU6TUlUIE9SIEFwYWNoZS0yLjA=" => {
            answer(401, &json!({ "detail": "no" }))
        }
        "GET /sdapi/v1/sd-models" => {
            answer(200, &json!([{ "title": "sdxl.safetensors [31e35c80fc]", "model_name": "sdxl" }]))
        }
        "POST /sdapi/v1/txt2img" => answer(200, &images(&[PNG])),
        _ => progress(0.5, &json!({})),
    })
    .await;
    let mut vars = vars(&backend);
    assert_eq!(check("a1111", &vars).await.unwrap_err().class, FailureClass::Account);
    vars["user"] = "me".into();
    vars["password_env"] = KEY_NAME.into();
    check("a1111", &vars).await.unwrap();
    let with_model = |model: &str| json!({ "payload": { "model": model, "request": { "prompt": "x" } } });
    attempt("a1111", &vars, &with_model("sdxl")).await.result();
    let sent = backend.asked("POST /sdapi/v1/txt2img")[0].json();
    assert_eq!(sent["override_settings"]["sd_model_checkpoint"], "sdxl.safetensors [31e35c80fc]");
    assert_eq!(attempt("a1111", &vars, &with_model("other")).await.fate(), (FailureClass::WrongMachine, None));
    for (payload, why) in [
        (json!({ "api": "upscale", "request": {} }), "known are txt2img, img2img"),
        (json!({ "api": "img2img", "request": {} }), "init_images"),
        (json!({ "api": "img2img", "request": { "init_images": ["http://169.254.169.254/"] } }), "not allowed here"),
    ] {
        refuses("a1111", &vars, payload, why).await;
    }
}
