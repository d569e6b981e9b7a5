//! The API of `OpenAI`, and its errors where they come.

use axum::response::{IntoResponse, Response};
use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, End, answer, pieces};
use crate::{KEY, KEY_NAME, attempt, cancelled, check, refuses};

fn vars(backend: &Backend) -> Value {
    json!({ "base_url": format!("{}/v1", backend.url()), "api_key_env": KEY_NAME, "poll": "20ms" })
}

fn chat() -> Value {
    json!({ "payload": { "request": { "model": "m1", "messages": [{ "role": "user", "content": "hi" }] } } })
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn delta(text: &str, finish: Option<&str>) -> String {
    event(
        &json!({ "id": "c1", "model": "m1", "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": finish }] }),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_streams_its_parts() {
    let backend = Backend::start(|_, _| {
        let call = |part: Value| event(&json!({ "choices": [{ "delta": { "tool_calls": [part] } }] }));
        let usage = event(&json!({ "choices": [], "usage": { "prompt_tokens": 1000, "completion_tokens": 500 } }));
        pieces(
            &[
                &delta("Hel", None),
                &delta("lo", None),
                &call(json!({ "index": 0, "id": "t1", "function": { "name": "f", "arguments": "{\"a\"" } })),
                &call(json!({ "index": 0, "function": { "arguments": ":1}" } })),
                &delta("", Some("stop")),
                &usage,
                "data: [DONE]\n\n",
            ],
            End::Never,
        )
    })
    .await;
    let mut vars = vars(&backend);
    vars["prices"] = json!({ "m1": [2.0, 8] });
    let attempt = attempt("openai", &vars, &chat()).await;
    let result = attempt.result();
    assert_eq!(
        (&result["text"], &result["finish_reason"], &result["model"]),
        (&json!("Hello"), &json!("stop"), &json!("m1"))
    );
    assert_eq!(
        result["tool_calls"][0],
        json!({ "id": "t1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } })
    );
    assert_eq!((&result["usage"]["completion_tokens"], &result["cost_usd"]), (&json!(500), &json!(0.006)));
    assert_eq!(attempt.usage(), json!({ "input_tokens": 1000.0, "output_tokens": 500.0, "cost_usd": 0.006 }));
    assert_eq!(attempt.partials(), [json!({ "text": "Hel" }), json!({ "text": "lo" })]);
    let asked = &backend.asked("POST /v1/chat/completions")[0];
    assert_eq!(asked.header("authorization"), format!("Bearer {KEY}"));
    assert_eq!(asked.header("idempotency-key"), "j-1");
    assert_eq!(
        (&asked.json()["stream"], &asked.json()["stream_options"]["include_usage"]),
        (&json!(true), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_without_a_stream_and_without_a_key() {
    let backend = Backend::start(|_, _| {
        answer(
            200,
            &json!({ "id": "c", "model": "local", "usage": { "prompt_tokens": 1 },
            "choices": [{ "message": { "content": "yes" }, "finish_reason": "length" }] }),
        )
    })
    .await;
    let vars = json!({ "base_url": backend.url(), "model": "local" });
    let keys = json!({ "payload": { "request": { "messages": [] }, "stream": false } });
    let attempt = attempt("openai", &vars, &keys).await;
    assert_eq!((&attempt.result()["text"], &attempt.result()["finish_reason"]), (&json!("yes"), &json!("length")));
    let asked = &backend.asked("POST /chat/completions")[0];
    assert_eq!((asked.json()["model"].clone(), asked.header("authorization")), (json!("local"), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_or_says_no_has_its_class() {
    let error = |code: &str| event(&json!({ "error": { "message": "no", "code": code, "type": "x" } }));
    for (last, end, class) in [
        (String::new(), End::Broken, FailureClass::Retryable),
        (String::new(), End::Whole, FailureClass::Retryable),
        (error("server_error"), End::Never, FailureClass::Retryable),
        (error("insufficient_quota"), End::Never, FailureClass::Account),
        (error("invalid_prompt"), End::Never, FailureClass::Fatal),
    ] {
        let text = last.clone();
        let backend = Backend::start(move |_, _| pieces(&[&delta("Hel", None), &text], end)).await;
        let attempt = attempt("openai", &vars(&backend), &chat()).await;
        assert_eq!(attempt.failure().class, class, "{last}: {}", attempt.failure());
        assert_eq!(attempt.partials(), [json!({ "text": "Hel" })]);
    }
    let backend = Backend::start(|_, _| pieces(&[&delta("Hel", None)], End::Never)).await;
    let mut vars = vars(&backend);
    vars["idle"] = json!("200ms");
    assert_eq!(attempt("openai", &vars, &chat()).await.fate(), (FailureClass::Retryable, None), "silence");
}

fn refusal(status: u16, code: &str, headers: &[(&'static str, &'static str)]) -> Response {
    let mut response = answer(status, &json!({ "error": { "message": "no", "code": code, "type": "t" } }));
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_class() {
    type Case = (u16, &'static str, &'static [(&'static str, &'static str)], FailureClass, Option<f64>);
    let cases: &[Case] = &[
        (400, "invalid_request", &[], FailureClass::Fatal, None),
        (400, "x", &[("x-should-retry", "true")], FailureClass::Retryable, None),
        (401, "invalid_api_key", &[], FailureClass::Account, None),
        (403, "unsupported_country", &[], FailureClass::Account, None),
        (404, "model_not_found", &[], FailureClass::Fatal, None),
        (409, "conflict", &[], FailureClass::Retryable, None),
        (429, "insufficient_quota", &[("x-should-retry", "false")], FailureClass::Account, None),
        (429, "rate_limit_exceeded", &[("retry-after", "300")], FailureClass::RateLimited, Some(300.0)),
        (429, "rate_limit_exceeded", &[("retry-after-ms", "150000")], FailureClass::RateLimited, Some(150.0)),
        (500, "server_error", &[], FailureClass::Retryable, None),
        (503, "overloaded", &[("retry-after", "7")], FailureClass::Retryable, Some(7.0)),
        (500, "x", &[("x-should-retry", "false")], FailureClass::Fatal, None),
    ];
    for (status, code, headers, class, wait) in cases {
        let backend = Backend::start(|_, _| refusal(*status, code, headers)).await;
        let attempt = attempt("openai", &vars(&backend), &chat()).await;
        assert_eq!(attempt.fate(), (*class, *wait), "{status} {code} {headers:?}: {}", attempt.failure());
        assert!(!attempt.failure().message.contains(KEY));
    }
    let backend = Backend::start(|_, _| refusal(404, "model_not_found", &[])).await;
    let mut vars = vars(&backend);
    vars["missing_model"] = json!("wrong_machine");
    assert_eq!(attempt("openai", &vars, &chat()).await.failure().class, FailureClass::WrongMachine);
    let gone = json!({ "base_url": "http://127.0.0.1:9" });
    assert_eq!(attempt("openai", &gone, &chat()).await.failure().class, FailureClass::Retryable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_limit_is_waited_for() {
    let backend = Backend::start(|_, before| match before {
        0 => refusal(429, "rate_limit_exceeded", &[("retry-after-ms", "20")]),
        _ => pieces(&[&delta("yes", Some("stop")), "data: [DONE]\n\n"], End::Whole),
    })
    .await;
    assert_eq!(attempt("openai", &vars(&backend), &chat()).await.result()["text"], "yes");
}

fn response(status: &str) -> Value {
    json!({ "id": "r1", "status": status, "model": "m1", "usage": { "input_tokens": 3, "output_tokens": 4 },
        "error": if status == "failed" { json!({ "code": "server_error", "message": "oops" }) } else { Value::Null },
        "output": [{ "type": "message", "content": [{ "type": "output_text", "text": "done" }] }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_stream_their_parts() {
    let keys = json!({ "payload": { "api": "responses", "request": { "model": "m1", "input": "hi" } } });
    let part = |text: &str| event(&json!({ "type": "response.output_text.delta", "delta": text }));
    for (last, class) in [
        (json!({ "type": "response.completed", "response": response("completed") }), None),
        (json!({ "type": "response.failed", "response": response("failed") }), Some(FailureClass::Retryable)),
        (json!({ "type": "error", "code": "invalid_prompt", "message": "no" }), Some(FailureClass::Fatal)),
        (json!({ "type": "response.in_progress" }), Some(FailureClass::Retryable)),
    ] {
        let text = event(&last);
        let backend = Backend::start(move |_, _| pieces(&[&part("do"), &part("ne"), &text], End::Whole)).await;
        let attempt = attempt("openai", &vars(&backend), &keys).await;
        assert_eq!(attempt.partials(), [json!({ "text": "do" }), json!({ "text": "ne" })]);
        match class {
            None => assert_eq!(
                (&attempt.result()["text"], &attempt.result()["usage"]["output_tokens"]),
                (&json!("done"), &json!(4))
            ),
            Some(class) => assert_eq!(attempt.failure().class, class, "{last}: {}", attempt.failure()),
        }
    }
}

fn in_background() -> Value {
    json!({ "payload": { "api": "responses", "request": { "model": "m1", "input": "hi", "background": true } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_in_the_background_is_resumed() {
    let backend = Backend::start(|asked, before| match asked.what.as_str() {
        "POST /v1/responses" => answer(200, &response("queued")),
        "GET /v1/responses/r1" if before < 2 => answer(200, &response("in_progress")),
        "GET /v1/responses/r1" => answer(200, &response("completed")),
        _ => answer(404, &json!({})),
    })
    .await;
    let first = attempt("openai", &vars(&backend), &in_background()).await;
    assert_eq!(first.result()["text"], "done");
    assert_eq!(first.progress()[1].1, "in_progress for 0 s");
    let mut keys = in_background();
    keys["saved"] = first.saved()[0].clone();
    assert_eq!(attempt("openai", &vars(&backend), &keys).await.result()["text"], "done");
    assert_eq!(backend.asked("POST /v1/responses").len(), 1);
    // One that the server has forgotten is begun anew.
    keys["saved"]["response"] = json!("r0");
    assert_eq!(attempt("openai", &vars(&backend), &keys).await.result()["text"], "done");
    assert_eq!(backend.asked("POST /v1/responses").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_response_is_cancelled_there() {
    let backend = Backend::start(|_, _| answer(200, &response("in_progress"))).await;
    cancelled("openai", &vars(&backend), &in_background(), || backend.all().len() > 3).await;
    assert_eq!(backend.asked("POST /v1/responses/r1/cancel").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_as_files() {
    let backend = Backend::start(|asked, _| match asked.what.as_str() {
        "GET /made.png" => ([("content-type", "image/png")], "second").into_response(),
        _ => {
            let url = format!("http://{}/made.png", asked.header("host"));
            answer(200, &json!({ "data": [{ "b64_json": "Zmlyc3Q=" }, { "url": url, "revised_prompt": "a cat" }], "usage": { "output_tokens": 9 } }))
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let keys = json!({ "payload": { "api": "images", "request": { "model": "gpt-image", "prompt": "cat" } } });
    let mut vars = vars(&backend);
    assert_eq!(attempt("openai", &vars, &keys).await.result()["files"][0]["base64"], "Zmlyc3Q=");
    vars["store"] = json!(dir.path().display().to_string());
    let attempt = attempt("openai", &vars, &keys).await;
    assert_eq!(
        (&attempt.result()["files"][1]["revised_prompt"], &attempt.result()["usage"]["output_tokens"]),
        (&json!("a cat"), &json!(9))
    );
    assert_eq!(std::fs::read_to_string(dir.path().join("j/0.png")).unwrap(), "first");
    assert_eq!(std::fs::read_to_string(dir.path().join("j/1.png")).unwrap(), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_and_payloads() {
    let backend = Backend::start(|_, _| answer(200, &json!({ "data": [] }))).await;
    check("openai", &vars(&backend)).await.unwrap();
    let mut keyless = vars(&backend);
    keyless["api_key_env"] = json!("NO_SUCH_KEY_AT_ALL");
    assert_eq!(check("openai", &keyless).await.unwrap_err().class, FailureClass::Account);
    let refusing = Backend::start(|_, _| refusal(401, "invalid_api_key", &[])).await;
    assert_eq!(check("openai", &vars(&refusing)).await.unwrap_err().class, FailureClass::Account);
    let mut few = vars(&backend);
    few["models"] = json!(["m2"]);
    refuses("openai", &few, json!({ "request": { "model": "m1" } }), "allowed are").await;
    refuses("openai", &few, json!({}), "needs \"request\"").await;
    refuses("openai", &vars(&backend), json!({ "api": "video", "request": {} }), "known are chat").await;
}
