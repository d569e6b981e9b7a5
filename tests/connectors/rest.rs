//! Any API, by settings alone.

use axum::response::IntoResponse;
use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, answer};
use crate::{KEY, KEY_NAME, attempt, cancelled, check, refuses};

fn with(mut vars: Value, more: &Value) -> Value {
    vars.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vars
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_make_the_request() {
    let backend = Backend::start(|_, _| answer(200, &json!({ "data": [{ "text": "hello" }] }))).await;
    let vars = json!({
        "url": format!("{}/v1/{{{{payload.model}}}}/run", backend.url()),
        "query": { "size": "{{payload.size}}" },
        "headers": { "x-app": "machinist" },
        "token_env": KEY_NAME, "token_header": "x-key",
        "body": { "prompt": "say: {{payload.prompt}}", "n": "{{payload.size}}", "tags": ["{{payload.none?}}"], "job": "{{job.id}}" },
        "result": "data.0.text",
        "idempotent": true,
    });
    let keys = json!({ "payload": { "model": "../a b/ä", "size": 7, "prompt": "hi" } });
    assert_eq!(*attempt("rest-sync", &vars, &keys).await.result(), json!("hello"));
    let asked = &backend.asked("POST /v1/..%2Fa%20b%2F%C3%A4/run")[0];
    assert_eq!(asked.json(), json!({ "prompt": "say: hi", "n": 7, "tags": [null], "job": "j" }));
    assert_eq!((asked.header("x-key"), asked.header("x-app"), asked.query["size"].as_str()), (KEY, "machinist", "7"));
    assert_eq!(asked.header("idempotency-key"), "j-1");

    refuses("rest-sync", &vars, json!({ "model": "m" }), "needs payload.size").await;
    let broken = with(vars.clone(), &json!({ "result": "data.1.text" }));
    refuses("rest-sync", &broken, keys["payload"].clone(), "nothing at \"data.1.text\"").await;
    let up = json!({ "model": "..", "size": 7, "prompt": "hi" });
    refuses("rest-sync", &vars, up, "\"..\" cannot be a part of an address").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_template_the_payload_is_the_body() {
    let backend = Backend::start(|_, _| "plain text".into_response()).await;
    let vars = json!({ "url": backend.url(), "token_env": KEY_NAME });
    assert_eq!(*attempt("rest-sync", &vars, &json!({ "payload": [1, 2] })).await.result(), json!("plain text"));
    let asked = &backend.asked("POST /")[0];
    assert_eq!((asked.json(), asked.header("authorization")), (json!([1, 2]), &*format!("Bearer {KEY}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_status_has_its_class() {
    let own = json!({ "wrong_machine_on": [418], "account_on": [451], "retry_on": [404], "fatal_on": [500] });
    for (status, vars, class, wait) in [
        (400, json!({}), FailureClass::Fatal, None),
        (401, json!({}), FailureClass::Account, None),
        (409, json!({}), FailureClass::Retryable, Some(150.0)),
        (429, json!({}), FailureClass::RateLimited, Some(150.0)),
        (500, json!({}), FailureClass::Retryable, Some(150.0)),
        (418, own.clone(), FailureClass::WrongMachine, None),
        (451, own.clone(), FailureClass::Account, None),
        (404, own.clone(), FailureClass::Retryable, Some(150.0)),
        (500, own, FailureClass::Fatal, None),
    ] {
        let backend = Backend::start(move |_, _| {
            let mut response = answer(status, &json!({ "error": "no" }));
            response.headers_mut().insert("retry-after", "150".parse().unwrap());
            response
        })
        .await;
        for (name, more) in [("rest-sync", json!({})), ("rest-async", json!({ "status_url": backend.url() }))] {
            let vars = with(with(json!({ "url": backend.url() }), &vars), &more);
            let attempt = attempt(name, &vars, &json!({ "payload": {} })).await;
            assert_eq!(attempt.fate(), (class, wait), "{name} {status}: {}", attempt.failure());
        }
        assert_eq!(backend.all().len(), 2, "what may do something twice is asked once");
    }
    let gone = json!({ "url": "http://127.0.0.1:9" });
    assert_eq!(attempt("rest-sync", &gone, &json!({ "payload": {} })).await.failure().class, FailureClass::Retryable);
}

fn vars(backend: &Backend) -> Value {
    json!({
        "url": format!("{}/jobs", backend.url()),
        "id": "job.id",
        "status_url": format!("{}/jobs/{{{{id}}}}", backend.url()),
        "status": "job.state",
        "progress": "job.percent",
        "error": "job.why",
        "result": "job.out",
        "cancel_url": format!("{}/jobs/{{{{id}}}}", backend.url()),
        "cancel_method": "DELETE",
        "poll": "20ms",
    })
}

async fn work(last: Value) -> Backend {
    Backend::start(move |asked, before| match (asked.what.as_str(), before) {
        ("POST /jobs", _) => answer(202, &json!({ "job": { "id": 42 } })),
        ("GET /jobs/42", 0) => answer(200, &json!({ "job": { "state": "busy", "percent": 30 } })),
        ("GET /jobs/42", _) => answer(200, &last),
        ("GET /jobs/42/out", _) => answer(200, &json!({ "job": { "out": "elsewhere" } })),
        ("DELETE /jobs/42", _) => answer(200, &json!({})),
        _ => answer(404, &json!({})),
    })
    .await
}

fn keys() -> Value {
    json!({ "payload": { "a": 1 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_followed_to_its_end() {
    let done = json!({ "job": { "state": "done", "out": [1, 2] } });
    let backend = work(done).await;
    let first = attempt("rest-async", &vars(&backend), &keys()).await;
    assert_eq!(*first.result(), json!([1, 2]));
    assert_eq!(first.progress(), [(0.3, "busy".to_owned())]);
    assert_eq!(first.saved()[0]["id"], 42);
    let elsewhere = with(vars(&backend), &json!({ "result_url": format!("{}/jobs/{{{{id}}}}/out", backend.url()) }));
    assert_eq!(*attempt("rest-async", &elsewhere, &keys()).await.result(), json!("elsewhere"));
    // An attempt goes on where the last one ended, and anew where the backend has forgotten it.
    let mut again = keys();
    again["saved"] = first.saved()[0].clone();
    assert_eq!(*attempt("rest-async", &vars(&backend), &again).await.result(), json!([1, 2]));
    assert_eq!(backend.asked("POST /jobs").len(), 2);
    again["saved"]["id"] = json!(41);
    assert_eq!(*attempt("rest-async", &vars(&backend), &again).await.result(), json!([1, 2]));
    assert_eq!(backend.asked("POST /jobs").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_of_work_has_its_class() {
    for (state, class, why) in
        [("failed", FailureClass::Fatal, "bad luck"), ("expired", FailureClass::Retryable, "bad luck")]
    {
        let backend = work(json!({ "job": { "state": state, "why": { "code": "bad luck" } } })).await;
        let attempt = attempt("rest-async", &vars(&backend), &keys()).await;
        assert_eq!(attempt.fate(), (class, None));
        assert!(attempt.failure().message.contains(why), "{}", attempt.failure());
    }
    let backend = work(json!({})).await;
    refuses("rest-async", &vars(&backend), json!({}), "no state at \"job.state\"").await;
    refuses("rest-async", &with(vars(&backend), &json!({ "id": "uuid" })), json!({}), "no id at \"uuid\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_work_is_cancelled_there_and_readiness_is_asked_for() {
    let backend = work(json!({ "job": { "state": "busy" } })).await;
    cancelled("rest-async", &vars(&backend), &keys(), || backend.all().len() > 3).await;
    assert_eq!(backend.asked("DELETE /jobs/42").len(), 1);
    let ready = json!({ "check_url": format!("{}/jobs/42", backend.url()) });
    check("rest-async", &with(vars(&backend), &ready)).await.unwrap();
    let unready = json!({ "check_url": format!("{}/nothing", backend.url()) });
    assert!(check("rest-async", &with(vars(&backend), &unready)).await.is_err());
    let keyless = json!({ "url": backend.url(), "token_env": "NO_SUCH_KEY_AT_ALL" });
    assert_eq!(check("rest-sync", &keyless).await.unwrap_err().class, FailureClass::Account);
}
