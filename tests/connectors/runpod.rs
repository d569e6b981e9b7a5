//! Serverless endpoints of `RunPod`.

use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, answer};
use crate::{KEY, KEY_NAME, attempt, cancelled, check, refuses};

fn vars(backend: &Backend) -> Value {
    json!({ "base_url": backend.url(), "api_key_env": KEY_NAME, "endpoint": "e1", "poll": "20ms", "price_per_second": 0.5, "execution_timeout": "5m" })
}

fn keys() -> Value {
    json!({ "payload": { "input": { "prompt": "cat" } } })
}

async fn runpod(last: Value) -> Backend {
    Backend::start(move |asked, before| match (asked.what.as_str(), before) {
        ("POST /e1/run", _) => answer(200, &json!({ "id": "r1", "status": "IN_QUEUE" })),
        ("POST /e1/runsync", _) => answer(200, &json!({ "id": "r1", "status": "IN_PROGRESS" })),
        ("GET /e1/status/r1", 0) => {
            answer(200, &json!({ "id": "r1", "status": "IN_PROGRESS", "output": { "progress": 50 } }))
        }
        ("GET /e1/status/r1", _) => answer(200, &last),
        ("POST /e1/cancel/r1", _) => answer(200, &json!({ "id": "r1", "status": "CANCELLED" })),
        ("GET /e1/health", _) => {
            answer(200, &json!({ "workers": { "idle": 0, "ready": 0, "running": 0, "unhealthy": 0 } }))
        }
        _ => answer(404, &json!({})),
    })
    .await
}

fn done() -> Value {
    json!({ "id": "r1", "status": "COMPLETED", "output": { "text": "a cat" }, "delayTime": 100, "executionTime": 3000, "workerId": "w" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_to_its_output() {
    for (sync, path) in [(false, "POST /e1/run"), (true, "POST /e1/runsync")] {
        let backend = runpod(done()).await;
        let mut vars = vars(&backend);
        vars["runsync"] = json!(sync);
        let attempt = attempt("runpod", &vars, &keys()).await;
        assert_eq!(
            *attempt.result(),
            json!({ "output": { "text": "a cat" }, "id": "r1", "delay_ms": 100, "execution_ms": 3000, "worker": "w", "cost_usd": 1.5 })
        );
        assert!(attempt.progress().contains(&(0.5, "IN_PROGRESS".to_owned())), "{:?}", attempt.progress());
        assert_eq!(attempt.partials(), [json!({ "progress": 50 })]);
        let asked = &backend.asked(path)[0];
        assert_eq!(asked.header("authorization"), format!("Bearer {KEY}"));
        assert_eq!(asked.json(), json!({ "input": { "prompt": "cat" }, "policy": { "executionTimeout": 300_000 } }));
        assert_eq!(attempt.saved(), [json!({ "id": "r1", "endpoint": "e1" })]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_class() {
    for (status, error, class) in [
        ("FAILED", "bad prompt", FailureClass::Fatal),
        ("FAILED", "CUDA out of memory", FailureClass::Retryable),
        ("CANCELLED", "", FailureClass::Retryable),
        ("TIMED_OUT", "", FailureClass::Retryable),
        ("SOMETHING_NEW", "", FailureClass::Retryable),
    ] {
        let backend = runpod(json!({ "id": "r1", "status": status, "error": error })).await;
        let attempt = attempt("runpod", &vars(&backend), &keys()).await;
        assert_eq!(attempt.fate(), (class, None), "{status} {error}: {}", attempt.failure());
    }
    for (status, class) in [
        (401, FailureClass::Account),
        (400, FailureClass::Fatal),
        (404, FailureClass::Fatal),
        (502, FailureClass::Retryable),
    ] {
        let backend = Backend::start(move |_, _| answer(status, &json!({}))).await;
        assert_eq!(attempt("runpod", &vars(&backend), &keys()).await.failure().class, class, "{status}");
        assert_eq!(backend.all().len(), 1, "RunPod has no key against running twice");
    }
    let limited = Backend::start(|_, _| {
        let mut response = answer(429, &json!({}));
        response.headers_mut().insert("retry-after", "130".parse().unwrap());
        response
    })
    .await;
    assert_eq!(attempt("runpod", &vars(&limited), &keys()).await.fate(), (FailureClass::RateLimited, Some(130.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_and_a_cancelled_one_ends_there() {
    let backend = runpod(done()).await;
    let mut again = keys();
    again["saved"] = json!({ "id": "r1", "endpoint": "e1" });
    attempt("runpod", &vars(&backend), &again).await.result();
    assert!(backend.asked("POST /e1/run").is_empty());
    again["saved"]["id"] = json!("expired");
    attempt("runpod", &vars(&backend), &again).await.result();
    assert_eq!(backend.asked("POST /e1/run").len(), 1);

    let backend = runpod(json!({ "id": "r1", "status": "IN_QUEUE" })).await;
    cancelled("runpod", &vars(&backend), &keys(), || backend.all().len() > 3).await;
    assert_eq!(backend.asked("POST /e1/cancel/r1").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_and_payloads() {
    let backend = runpod(done()).await;
    check("runpod", &vars(&backend)).await.unwrap();
    let sick =
        Backend::start(|_, _| answer(200, &json!({ "workers": { "unhealthy": 2 }, "jobs": { "inQueue": 3 } }))).await;
    assert!(check("runpod", &vars(&sick)).await.unwrap_err().message.contains("3 jobs wait"));
    refuses("runpod", &vars(&backend), json!({}), "needs \"input\"").await;
    refuses("runpod", &vars(&backend), json!({ "input": {}, "webhook": "x" }), "unknown key").await;
}
