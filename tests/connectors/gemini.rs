//! The API of Google's Gemini, and its errors where they come.

use machinist::queue::FailureClass;
use serde_json::{Value, json};

use crate::support::backend::{Backend, End, answer, pieces};
use crate::{KEY, KEY_NAME, attempt, cancelled, check, refuses};

const GENERATE: &str = "POST /v1beta/models/gemini-2.5-flash:generateContent";
const STREAM: &str = "POST /v1beta/models/gemini-2.5-flash:streamGenerateContent";

fn vars(backend: &Backend) -> Value {
    json!({ "base_url": backend.url(), "api_key_env": KEY_NAME, "model": "gemini-2.5-flash" })
}

fn chat(stream: bool) -> Value {
    json!({ "payload": { "stream": stream, "request": { "messages": [{ "role": "user", "content": "Say hello." }] } } })
}

fn chunk(parts: &Value, finish: Option<&str>) -> Value {
    let mut candidate = json!({ "content": { "role": "model", "parts": parts }, "index": 0 });
    if let Some(reason) = finish {
        candidate["finishReason"] = reason.into();
    }
    let usage = json!({ "promptTokenCount": 1000, "candidatesTokenCount": 400, "thoughtsTokenCount": 100, "totalTokenCount": 1500 });
    json!({ "candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "r1" })
}

fn text(text: &str, finish: Option<&str>) -> Value {
    chunk(&json!([{ "text": text }]), finish)
}

fn event(data: &Value) -> String {
    format!("data: {data}\r\n\r\n")
}

fn error(code: u16, status: &str, message: &str, details: &Value) -> Value {
    json!({ "error": { "code": code, "status": status, "message": message, "details": details } })
}

fn limit(quota: &str, delay: &str) -> Value {
    error(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota.",
        &json!([
            { "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{ "quotaId": quota }] },
            { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay },
        ]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_streams_its_parts() {
    let backend = Backend::start(|_, _| {
        let thought = chunk(&json!([{ "text": "hm", "thought": true }]), None);
        pieces(&[&event(&thought), &event(&text("Hel", None)), &event(&text("lo", Some("STOP")))], End::Whole)
    })
    .await;
    let mut vars = vars(&backend);
    vars["prices"] = json!({ "gemini-2.5-flash": [2, 8.0] });
    let attempt = attempt("gemini", &vars, &chat(true)).await;
    let usage = json!({ "input_tokens": 1000, "output_tokens": 500, "cached_tokens": 0, "thought_tokens": 100 });
    let expected = json!({
        "text": "Hello", "thoughts": "hm", "finish_reason": "stop", "native_finish_reason": "STOP", "id": "r1",
        "model": "gemini-2.5-flash", "usage": usage, "cost_usd": 0.006,
    });
    assert_eq!(*attempt.result(), expected);
    assert_eq!(attempt.partials(), [json!({ "text": "Hel" }), json!({ "text": "lo" })]);
    let asked = &backend.asked(STREAM)[0];
    assert_eq!((asked.header("x-goog-api-key"), asked.query["alt"].as_str()), (KEY, "sse"));
    assert_eq!(asked.json(), json!({ "contents": [{ "role": "user", "parts": [{ "text": "Say hello." }] }] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_whole_however_large() {
    // In base64 more than a script's texts may have.
    let image = vec![7_u8; 7 * 1024 * 1024];
    let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &image);
    let backend = Backend::start(move |_, _| {
        let part = json!({ "inlineData": { "mimeType": "image/png", "data": data } });
        answer(200, &chunk(&json!([{ "text": "Here." }, part, { "text": "!" }]), Some("STOP")))
    })
    .await;
    let store = tempfile::tempdir().unwrap();
    let mut vars = vars(&backend);
    vars["store"] = json!(store.path());
    let request = json!({ "model": "models/gemini-2.5-flash", "contents": [{ "parts": [{ "text": "Draw." }] }], "generationConfig": { "responseModalities": ["IMAGE"] } });
    let attempt = attempt("gemini", &vars, &json!({ "payload": { "request": request } })).await;
    let result = attempt.result();
    assert_eq!(result["text"], "Here.!");
    let file = &result["files"][0];
    assert_eq!(
        (&file["name"], &file["bytes"], &file["type"]),
        (&json!("0.png"), &json!(image.len()), &json!("image/png"))
    );
    assert_eq!(std::fs::read(store.path().join(file["key"].as_str().unwrap())).unwrap(), image);
    assert_eq!(backend.asked(GENERATE).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_has_its_class() {
    let none = json!([]);
    let key = json!([{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID" }]);
    for (body, class, wait) in [
        (error(400, "INVALID_ARGUMENT", "API key not valid.", &key), FailureClass::Account, None),
        (error(400, "INVALID_ARGUMENT", "Unable to process input image.", &none), FailureClass::Fatal, None),
        (error(403, "PERMISSION_DENIED", "no", &none), FailureClass::Account, None),
        (error(401, "UNAUTHENTICATED", "no", &none), FailureClass::Account, None),
        (error(404, "NOT_FOUND", "models/x is not found", &none), FailureClass::Fatal, None),
        (error(500, "INTERNAL", "no", &none), FailureClass::Retryable, None),
        (error(503, "UNAVAILABLE", "The model is overloaded.", &none), FailureClass::Retryable, None),
        (error(504, "DEADLINE_EXCEEDED", "no", &none), FailureClass::Retryable, None),
        (limit("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "39043s"), FailureClass::Account, None),
        (
            limit("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "200.5s"),
            FailureClass::RateLimited,
            Some(200.5),
        ),
        (json!({ "promptFeedback": { "blockReason": "SAFETY" } }), FailureClass::Fatal, None),
        (chunk(&none, Some("IMAGE_SAFETY")), FailureClass::Fatal, None),
        (chunk(&none, Some("MALFORMED_FUNCTION_CALL")), FailureClass::Retryable, None),
        (json!({}), FailureClass::Retryable, None),
        (json!([error(503, "UNAVAILABLE", "in an array", &none)]), FailureClass::Retryable, None),
    ] {
        let said = body.clone();
        let first = if body.is_array() { &body[0] } else { &body };
        let status =
            first.pointer("/error/code").and_then(Value::as_u64).map_or(200, |code| u16::try_from(code).unwrap());
        let backend = Backend::start(move |asked, _| match asked.what.as_str() {
            "GET /v1beta/models" => answer(200, &json!({ "models": [] })),
            _ => answer(status, &body),
        })
        .await;
        let attempt = attempt("gemini", &vars(&backend), &chat(false)).await;
        assert_eq!(attempt.fate(), (class, wait), "{said}: {}", attempt.failure());
        assert!(!attempt.failure().message.contains(KEY));
        assert_eq!(backend.asked(GENERATE).len(), 1, "what may cost money is asked for once: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_limit_is_waited_for() {
    let backend = Backend::start(|_, before| match before {
        0 => answer(429, &limit("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "0.2s")),
        _ => answer(200, &text("Hello", Some("MAX_TOKENS"))),
    })
    .await;
    let attempt = attempt("gemini", &vars(&backend), &chat(false)).await;
    assert_eq!((&attempt.result()["text"], &attempt.result()["finish_reason"]), (&json!("Hello"), &json!("length")));
    assert_eq!(backend.asked(GENERATE).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_falls_silent_or_says_no_has_its_class() {
    let part = event(&text("Hel", None));
    let no = |code: u16, status: &str| event(&error(code, status, "no", &json!([])));
    for (last, end, class) in [
        (String::new(), End::Broken, FailureClass::Retryable),
        (String::new(), End::Whole, FailureClass::Retryable),
        (String::new(), End::Never, FailureClass::Retryable),
        (no(503, "UNAVAILABLE"), End::Never, FailureClass::Retryable),
        (no(400, "INVALID_ARGUMENT"), End::Never, FailureClass::Fatal),
        (event(&json!({ "promptFeedback": { "blockReason": "OTHER" } })), End::Whole, FailureClass::Fatal),
    ] {
        let (part, said) = (part.clone(), last.clone());
        let backend = Backend::start(move |_, _| pieces(&[&part, &last], end)).await;
        let mut vars = vars(&backend);
        vars["idle"] = "300ms".into();
        assert_eq!(attempt("gemini", &vars, &chat(true)).await.fate(), (class, None), "{said}");
    }
    let gone = json!({ "base_url": "http://127.0.0.1:1", "api_key_env": KEY_NAME, "model": "gemini-2.5-flash" });
    assert_eq!(attempt("gemini", &gone, &chat(true)).await.fate(), (FailureClass::Retryable, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_cancel_and_payloads() {
    let backend = Backend::start(|asked, before| match asked.what.as_str() {
        "GET /v1beta/models" if before == 0 => answer(200, &json!({ "models": [] })),
        "GET /v1beta/models" => answer(403, &error(403, "PERMISSION_DENIED", "no", &json!([]))),
        _ => pieces(&[&event(&text("Hel", None))], End::Never),
    })
    .await;
    check("gemini", &vars(&backend)).await.unwrap();
    assert_eq!(check("gemini", &vars(&backend)).await.unwrap_err().class, FailureClass::Account);
    cancelled("gemini", &vars(&backend), &chat(true), || !backend.asked(STREAM).is_empty()).await;
    let mut vars = vars(&backend);
    vars["models"] = json!(["gemini-2.5-flash"]);
    for (payload, why) in [
        (json!({ "request": { "model": "gemini-2.5-pro", "messages": [] } }), "not allowed here"),
        (json!({ "request": { "model": "../../v1/files", "messages": [] } }), "no name of a model"),
        (json!({ "request": {} }), "neither"),
        (json!({ "request": { "messages": [], "logit_bias": {} } }), "logit_bias"),
        (json!({ "request": { "messages": [{ "role": "robot" }] } }), "robot"),
        (json!({ "requests": {} }), "unknown key"),
    ] {
        refuses("gemini", &vars, payload, why).await;
    }
}
