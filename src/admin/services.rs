use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::server::AdminDeps;
use crate::base::{Name, did_you_mean};
use crate::supervisor::ServiceStatus;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    tail: Option<usize>,
    after: Option<u64>,
}

const MAX_TAIL: usize = 10_000;

pub(super) async fn list(State(deps): State<AdminDeps>) -> Json<Value> {
    let status = deps.supervisor.status();
    Json(json!({ "services": status.services.values().collect::<Vec<_>>() }))
}

pub(super) async fn one(
    State(deps): State<AdminDeps>,
    Path(name): Path<String>,
) -> Result<Json<ServiceStatus>, ApiError> {
    let name = known(&deps, &name)?;
    deps.supervisor.status().services.get(&name).cloned().map(Json).ok_or_else(|| unknown(&deps, name.as_str()))
}

pub(super) async fn act(
    State(deps): State<AdminDeps>,
    Path((name, verb)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let name = known(&deps, &name)?;
    match verb.as_str() {
        "start" => deps.supervisor.start(&name)?,
        "stop" => deps.supervisor.stop(&name)?,
        "restart" => deps.supervisor.restart(&name)?,
        _ => return Err(ApiError::not_found(format!("{verb:?} is none of start, stop, restart"))),
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "message": format!("{name} is told to {verb}") }))))
}

/// The newest lines; with `Accept: text/event-stream` whatever follows too.
pub(super) async fn logs(
    State(deps): State<AdminDeps>,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let name = known(&deps, &name)?;
    let tail = query.tail.unwrap_or(100).min(MAX_TAIL);
    let last_seen = last_event_id(&headers).or(query.after);
    let lines = deps.supervisor.logs(Some(&name), last_seen.unwrap_or(0), tail)?;
    if !wants_stream(&headers) {
        return Ok(Json(json!({ "lines": lines })).into_response());
    }
    let cursor = lines.last().map(|line| line.seq).or(last_seen).unwrap_or(0);
    let events = stream::unfold((deps, name, cursor, lines), async |(deps, name, mut cursor, lines)| {
        let mut lines = lines;
        while lines.is_empty() {
            tokio::select! {
                () = deps.shutdown.cancelled() => return None,
                () = deps.supervisor.wait_logs(&name, cursor, Duration::from_secs(30)) => {}
            }
            lines = deps.supervisor.logs(Some(&name), cursor, MAX_TAIL).ok()?;
        }
        let line = lines.remove(0);
        cursor = cursor.max(line.seq);
        let event = Event::default().id(line.seq.to_string()).data(serde_json::to_string(&line).unwrap_or_default());
        Some((Ok::<_, Infallible>(event), (deps, name, cursor, lines)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

pub(super) async fn all_logs(
    State(deps): State<AdminDeps>,
    Query(query): Query<LogQuery>,
) -> Result<Json<Value>, ApiError> {
    let tail = query.tail.unwrap_or(100).min(MAX_TAIL);
    Ok(Json(json!({ "lines": deps.supervisor.logs(None, 0, tail)? })))
}

pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

pub(super) fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

fn known(deps: &AdminDeps, name: &str) -> Result<Name, ApiError> {
    let status = deps.supervisor.status();
    status.services.get_key_value(name).map(|(name, _)| name.clone()).ok_or_else(|| unknown(deps, name))
}

fn unknown(deps: &AdminDeps, name: &str) -> ApiError {
    let status = deps.supervisor.status();
    let shown: String = name.chars().take(80).collect();
    let error = ApiError::not_found(format!("there is no service {shown:?}"));
    match did_you_mean(name, status.services.keys().map(Name::as_str)) {
        Some(meant) => error.help(format!("did you mean {meant:?}?")),
        None => error.help("GET /services lists all"),
    }
}
