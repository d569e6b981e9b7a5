//! The API of `Ollama`: lines of JSON.

use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, End, answer, pieces};
use crate::{attempt, cancelled, check, refuses};

fn vars(backend: &Backend) -> Value {
    json!({ "url": backend.url(), "model": "llama" })
}

fn keys() -> Value {
    json!({ "payload": { "request": { "messages": [{ "role": "user", "content": "hi" }] } } })
}

const PART: &str = "{\"message\":{\"content\":\"Hel\"},\"done\":false}\n";
const LAST: &str = "{\"model\":\"llama\",\"message\":{\"content\":\"lo\"},\"done\":true,\"done_reason\":\"stop\",\
    \"total_duration\":3000000,\"load_duration\":1000000,\"prompt_eval_count\":5,\"eval_count\":7}\n";

#[tokio::test(flavor = "multi_thread")]
async fn chat_streams_its_parts() {
    let backend = Backend::start(|_, _| pieces(&[PART, LAST], End::Never)).await;
    let attempt = attempt("ollama", &vars(&backend), &keys()).await;
    let usage = json!({ "input_tokens": 5, "output_tokens": 7 });
    let expected = json!({ "text": "Hello", "model": "llama", "finish_reason": "stop", "usage": usage, "duration_ms": 3, "load_ms": 1 });
    assert_eq!(*attempt.result(), expected);
    assert_eq!(attempt.partials(), [json!({ "text": "Hel" }), json!({ "text": "lo" })]);
    assert_eq!(backend.asked("POST /api/chat")[0].json()["model"], "llama");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_class() {
    for (status, class) in
        [(404, FailureClass::WrongMachine), (400, FailureClass::Fatal), (503, FailureClass::Retryable)]
    {
        let backend = Backend::start(move |_, _| answer(status, &json!({ "error": "no" }))).await;
        assert_eq!(attempt("ollama", &vars(&backend), &keys()).await.fate(), (class, None), "{status}");
    }
    for (last, end) in [("", End::Broken), ("", End::Whole), ("{\"error\":\"out of memory\"}\n", End::Never)] {
        let backend = Backend::start(move |_, _| pieces(&[PART, last], end)).await;
        assert_eq!(attempt("ollama", &vars(&backend), &keys()).await.fate(), (FailureClass::Retryable, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_cancel_and_payloads() {
    let backend = Backend::start(|asked, _| match asked.what.as_str() {
        "GET /api/tags" => answer(200, &json!({ "models": [{ "name": "llama:latest" }] })),
        _ => pieces(&[PART], End::Never),
    })
    .await;
    check("ollama", &vars(&backend)).await.unwrap();
    let other = json!({ "url": backend.url(), "model": "qwen" });
    assert!(check("ollama", &other).await.unwrap_err().message.contains("ollama pull qwen"));
    cancelled("ollama", &vars(&backend), &keys(), || !backend.asked("POST /api/chat").is_empty()).await;
    refuses("ollama", &vars(&backend), json!({ "api": "embed", "request": {} }), "known are chat, generate").await;
}
