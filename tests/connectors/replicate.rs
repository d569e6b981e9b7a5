//! Replicate's predictions.

use axum::response::IntoResponse;
use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, answer};
use crate::{KEY, KEY_NAME, attempt, cancelled, check, refuses};

fn vars(backend: &Backend) -> Value {
    let output = format!("{}/out/", backend.url());
    json!({ "base_url": backend.url(), "api_key_env": KEY_NAME, "poll": "20ms", "output_urls": [output], "price_per_second": 0.5 })
}

fn keys() -> Value {
    json!({ "payload": { "model": "acme/flux", "input": { "prompt": "cat" } } })
}

fn prediction(status: &str, more: &Value) -> Value {
    let mut body = json!({ "id": "p1", "status": status, "output": null, "error": null, "logs": "" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Starts, works with these outputs so far, and ends so.
async fn replicate(last: Value) -> Backend {
    Backend::start(move |asked, before| match (asked.what.as_str(), before) {
        ("GET /out/cat.png", _) => ([("content-type", "image/png")], "a cat").into_response(),
        ("GET /account", _) => answer(200, &json!({ "username": "acme" })),
        ("GET /predictions/p1", 0) => {
            answer(200, &prediction("processing", &json!({ "output": ["a "], "logs": " 10%|#\n 25%|##" })))
        }
        ("GET /predictions/p1", 1) => answer(200, &prediction("processing", &json!({ "output": ["a ", "cat"] }))),
        ("GET /predictions/p1", _) => {
            let text = last.to_string().replace("HOST", &format!("http://{}", asked.header("host")));
            answer(200, &serde_json::from_str(&text).unwrap())
        }
        ("GET /predictions/gone", _) => answer(404, &json!({ "detail": "not found" })),
        ("POST /predictions/p1/cancel", _) => answer(200, &prediction("canceled", &json!({}))),
        _ => answer(201, &prediction("starting", &json!({}))),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prediction_ends_with_its_files() {
    let done =
        json!({ "output": { "images": ["HOST/out/cat.png?sig=1"], "seed": 7 }, "metrics": { "predict_time": 4.0 } });
    let backend = replicate(prediction("succeeded", &done)).await;
    let attempt = attempt("replicate", &vars(&backend), &keys()).await;
    let result = attempt.result();
    assert_eq!((&result["files"][0]["name"], &result["files"][0]["base64"]), (&json!("0-cat.png"), &json!("YSBjYXQ=")));
    assert_eq!((&result["cost_usd"], &result["output"]["seed"]), (&json!(2.0), &json!(7)));
    assert_eq!(attempt.partials(), [json!({ "text": "a " }), json!({ "text": "cat" })]);
    assert!(attempt.progress().contains(&(0.25, "processing".to_owned())), "{:?}", attempt.progress());
    let asked = &backend.asked("POST /models/acme/flux/predictions")[0];
    assert_eq!(
        (asked.header("authorization"), asked.json()),
        (&*format!("Bearer {KEY}"), json!({ "input": { "prompt": "cat" } }))
    );
    assert_eq!(backend.asked("GET /out/cat.png")[0].header("authorization"), "", "the key is Replicate's alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_class() {
    for (status, error, class) in [
        ("failed", "prompt is NSFW", FailureClass::Fatal),
        ("failed", "CUDA out of memory", FailureClass::Retryable),
        ("canceled", "", FailureClass::Retryable),
        ("aborted", "", FailureClass::Retryable),
        ("something_new", "", FailureClass::Retryable),
    ] {
        let backend = replicate(prediction(status, &json!({ "error": error }))).await;
        let attempt = attempt("replicate", &vars(&backend), &keys()).await;
        assert_eq!(attempt.fate(), (class, None), "{status} {error}: {}", attempt.failure());
    }
    for (status, class) in [
        (401, FailureClass::Account),
        (402, FailureClass::Account),
        (422, FailureClass::Fatal),
        (500, FailureClass::Retryable),
    ] {
        let backend = Backend::start(move |_, _| answer(status, &json!({ "detail": "no" }))).await;
        assert_eq!(attempt("replicate", &vars(&backend), &keys()).await.failure().class, class, "{status}");
        assert_eq!(backend.all().len(), 1, "a prediction that may run is not made twice");
    }
    let limited = Backend::start(|_, _| {
        let mut response = answer(429, &json!({ "detail": "Request was throttled." }));
        response.headers_mut().insert("retry-after", "130".parse().unwrap());
        response
    })
    .await;
    assert_eq!(attempt("replicate", &vars(&limited), &keys()).await.fate(), (FailureClass::RateLimited, Some(130.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_where_the_last_one_ended() {
    let backend = replicate(prediction("succeeded", &json!({ "output": "text" }))).await;
    let mut again = keys();
    again["saved"] = json!({ "prediction": "p1", "base_url": backend.url() });
    assert_eq!(attempt("replicate", &vars(&backend), &again).await.result()["output"], "text");
    assert!(backend.asked("POST /models/acme/flux/predictions").is_empty());
    again["saved"]["prediction"] = json!("gone");
    let anew = attempt("replicate", &vars(&backend), &again).await;
    assert_eq!(anew.result()["output"], "text");
    assert_eq!(anew.saved(), [json!({ "prediction": "p1", "base_url": backend.url() })]);
    assert_eq!(backend.asked("POST /models/acme/flux/predictions").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_cancels_its_prediction() {
    let backend = replicate(prediction("processing", &json!({}))).await;
    cancelled("replicate", &vars(&backend), &keys(), || backend.all().len() > 3).await;
    assert_eq!(backend.asked("POST /predictions/p1/cancel").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_readiness() {
    let backend = replicate(prediction("succeeded", &json!({}))).await;
    for (payload, path) in [
        (json!({ "version": "abc", "input": {} }), "POST /predictions"),
        (json!({ "deployment": "acme/own", "input": {} }), "POST /deployments/acme/own/predictions"),
    ] {
        attempt("replicate", &vars(&backend), &json!({ "payload": payload })).await.result();
        assert_eq!(backend.asked(path).len(), 1);
    }
    assert_eq!(backend.asked("POST /predictions")[0].json()["version"], "abc");
    for (payload, why) in [
        (json!({ "input": {} }), "one of model, version, deployment"),
        (json!({ "model": "acme/../x", "input": {} }), "must be owner/name"),
        (json!({ "model": "acme/flux" }), "needs \"input\""),
    ] {
        refuses("replicate", &vars(&backend), payload, why).await;
    }
    let mut few = vars(&backend);
    few["models"] = json!(["acme/own"]);
    refuses("replicate", &few, keys()["payload"].clone(), "not allowed here").await;
    check("replicate", &vars(&backend)).await.unwrap();
    few["api_key_env"] = json!("NO_SUCH_KEY_AT_ALL");
    assert_eq!(check("replicate", &few).await.unwrap_err().class, FailureClass::Account);
}
