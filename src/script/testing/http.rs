//! Requests, as a test answers them. Everything but the network is real: options, bodies, retries, what a status means.

use std::time::{Duration, SystemTime};

use reqwest::{Client, Response, ResponseBuilderExt};
use rhai::{Array, Dynamic, Map};

use super::told::map;
use super::world::{answer, delay_of, error_kind, no_answer, record, sleep, timestamp, unmocked};
use crate::host::http::{HttpError, HttpErrorKind, HttpRequest, Outcome, shown};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::data::{Secrets, kind_of, to_json};
use crate::script::options::Options;
use crate::script::types::Blob;

/// Larger bodies are shown to no mock.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// As `host::http::send`.
pub(in crate::script) fn send(
    call: &Call,
    client: &Client,
    request: &HttpRequest,
) -> ScriptResult<Result<Response, HttpError>> {
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = once(call, client, request)?;
        let outcome = match &answer {
            Ok(response) => Outcome::Answer(response.status(), response.headers()),
            Err(cause) => match cause.kind {
                HttpErrorKind::Connect => Outcome::NotSent,
                HttpErrorKind::Timeout => Outcome::NoAnswer,
                _ => Outcome::Hopeless,
            },
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(timestamp().as_millis());
        match request.retry.wait(&request.method, &outcome, tries, time, 0.0) {
            Some(wait) if wait < call.left() => sleep(wait)?,
            _ => return Ok(answer),
        }
    }
}

fn once(call: &Call, client: &Client, request: &HttpRequest) -> ScriptResult<Result<Response, HttpError>> {
    let (method, url) = (request.method.as_str(), request.url.as_str());
    let what = format!("{method} {}", shown(&request.url));
    let asked = describe(call, client, request)?;
    record("http", asked.clone());
    let plain = url.split(['?', '#']).next().unwrap_or(url);
    let Some(given) = answer("http", Some(method), &[url, plain], asked, false)? else {
        let how = format!("mock::http({method:?}, {plain:?}, #{{ status: 200, json: #{{}} }})");
        return Err(unmocked(&what, &how));
    };
    if let Some(kind) = error_kind(&given) {
        return match kind.as_str() {
            "connect" => Ok(Err(HttpError::new(HttpErrorKind::Connect, format!("{what}: there is no connection")))),
            "timeout" => {
                sleep(request.timeout)?;
                let timeout = humantime::format_duration(request.timeout);
                Ok(Err(HttpError::new(HttpErrorKind::Timeout, format!("{what}: no answer within {timeout}"))))
            }
            other => {
                Err(no_answer(&what, &format!("has an unknown error {other:?}; write \"connect\" or \"timeout\"")))
            }
        };
    }
    let kind = kind_of(&given);
    let mut given = given
        .try_cast::<Map>()
        .ok_or_else(|| no_answer(&what, &format!("gives a {kind}; write #{{ status: 200, json: .. }}")))?;
    let delay = delay_of(&mut given)?;
    if delay >= request.timeout {
        sleep(request.timeout)?;
        let timeout = humantime::format_duration(request.timeout);
        return Ok(Err(HttpError::new(HttpErrorKind::Timeout, format!("{what}: no answer within {timeout}"))));
    }
    sleep(delay)?;
    let built = respond(request, given).map_err(|cause| no_answer(&what, &format!("gives no answer: {cause}")))?;
    Ok(Ok(built))
}

/// The request as mocks and `mock::calls` see it. Secrets show: those of a test are made up.
fn describe(call: &Call, client: &Client, request: &HttpRequest) -> ScriptResult<Map> {
    let builder = client.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
    let builder = match &request.fill {
        Some(fill) => fill(builder),
        None => builder,
    };
    let mut built = builder.build().map_err(|cause| error(cause.to_string()))?;
    let mut bytes = Vec::new();
    if let Some(body) = built.body_mut().take() {
        let mut body = Response::from(http::Response::new(body));
        while let Some(chunk) = call.wait(body.chunk())?.map_err(|cause| error(cause.to_string()))? {
            if bytes.len() + chunk.len() <= MAX_BODY {
                bytes.extend_from_slice(&chunk);
            }
        }
    }
    let headers = built.headers().iter();
    let headers: Map = headers
        .map(|(name, value)| (name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into_owned().into()))
        .collect();
    let query: Map =
        request.url.query_pairs().map(|(name, value)| (name.as_ref().into(), value.into_owned().into())).collect();
    let json = serde_json::from_slice::<Dynamic>(&bytes).unwrap_or(Dynamic::UNIT);
    Ok(map([
        ("method", request.method.as_str().into()),
        ("url", request.url.as_str().into()),
        ("path", request.url.path().into()),
        ("query", query.into()),
        ("headers", headers.into()),
        ("json", json),
        ("text", String::from_utf8_lossy(&bytes).into_owned().into()),
        ("body", Dynamic::from(Blob::new(bytes, None))),
    ]))
}

/// The answer that a test describes.
fn respond(request: &HttpRequest, given: Map) -> Result<Response, String> {
    let mut given = Options::new("mock::http", given);
    let wrong = |cause: Box<rhai::EvalAltResult>| cause.to_string();
    let status = given.count("status").map_err(wrong)?.unwrap_or(200);
    let status = u16::try_from(status).map_err(|_| format!("there is no status {status}"))?;
    let headers = given.map("headers").map_err(wrong)?.unwrap_or_default();
    let (json, text) = (given.take("json"), given.text("text").map_err(wrong)?);
    let (blob, events) = (given.take("body"), given.array("events").map_err(wrong)?);
    given.finish().map_err(wrong)?;
    let (body, kind) = match (json, text, blob, events) {
        (None, None, None, None) => (Vec::new(), None),
        (Some(json), None, None, None) => {
            (to_json(&json, Secrets::Refuse)?.to_string().into_bytes(), Some("application/json"))
        }
        (None, Some(text), None, None) => (text.into_bytes(), Some("text/plain; charset=utf-8")),
        (None, None, Some(blob), None) => {
            let blob = blob.try_cast::<Blob>().ok_or("body must be a blob; write text for a text")?;
            (blob.bytes(u64::MAX).map_err(|cause| cause.to_string())?.to_vec(), None)
        }
        (None, None, None, Some(events)) => (stream(&events)?.into_bytes(), Some("text/event-stream")),
        _ => return Err("it has more than one of json, text, body and events".to_owned()),
    };
    let mut builder = http::Response::builder().status(status).url(request.url.clone());
    if let Some(kind) = kind.filter(|_| !headers.keys().any(|name| name.eq_ignore_ascii_case("content-type"))) {
        builder = builder.header("content-type", kind);
    }
    for (name, value) in headers {
        builder = builder.header(name.as_str(), value.to_string());
    }
    Ok(builder.body(body).map_err(|cause| cause.to_string())?.into())
}

fn stream(events: &Array) -> Result<String, String> {
    let mut text = String::new();
    for event in events {
        let event = event.read_lock::<Map>().ok_or("events are maps of event, data and id")?;
        for field in ["id", "event", "data"] {
            let Some(value) = event.get(field) else { continue };
            let value = match value.read_lock::<rhai::ImmutableString>() {
                Some(text) => text.to_string(),
                None => to_json(value, Secrets::Refuse)?.to_string(),
            };
            for line in value.lines() {
                text.extend([field, ": ", line, "\n"]);
            }
        }
        text.push('\n');
    }
    Ok(text)
}
