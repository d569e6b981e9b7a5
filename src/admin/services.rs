use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
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
use crate::base::{Name, Timestamp, did_you_mean, parse_duration};
use crate::supervisor::{LogFilter, LogStream, ServiceStatus};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    tail: Option<usize>,
    after: Option<u64>,
    /// `stdout` or `stderr`.
    stream: Option<LogStream>,
    /// A regular expression.
    grep: Option<String>,
    /// A time, or a duration back from now.
    since: Option<String>,
}

impl LogQuery {
    fn filter(&self) -> Result<LogFilter, ApiError> {
        let grep = self.grep.as_ref().map(|pattern| {
            regex::bytes::Regex::new(pattern)
                .map_err(|cause| ApiError::bad_request(format!("grep: {pattern:?} is no regular expression: {cause}")))
        });
        let since = self.since.as_ref().map(|text| match (text.parse::<Timestamp>(), parse_duration(text)) {
            (Ok(time), _) => Ok(time),
            (_, Ok(ago)) => {
                let back = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                Ok(Timestamp::from_millis(Timestamp::now().as_millis().saturating_sub(back)))
            }
            _ => Err(ApiError::bad_request(format!("since: {text:?} is neither a time nor a duration"))
                .help("write 2026-01-31T12:00:00Z or 10m")),
        });
        Ok(LogFilter { stream: self.stream, grep: grep.transpose()?, since: since.transpose()? })
    }
}

const MAX_TAIL: usize = 10_000;
/// The time one look may spend on finding out shares of memory.
const USAGE_BUDGET: Duration = Duration::from_millis(100);

/// All services; with `?usage` what their processes use now as well.
pub(super) async fn list(State(deps): State<AdminDeps>, Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let status = deps.supervisor.status();
    if !query.contains_key("usage") {
        return Json(json!({ "services": status.services.values().collect::<Vec<_>>() }));
    }
    let supervisor = deps.supervisor.clone();
    let usage = tokio::task::spawn_blocking(move || supervisor.usage(USAGE_BUDGET)).await.unwrap_or_default();
    let with_usage = |service: &Arc<ServiceStatus>| {
        let mut value = serde_json::to_value(service).unwrap_or_default();
        if let (Some(map), Some(usage)) = (value.as_object_mut(), usage.get(&service.name)) {
            map.insert("usage".to_owned(), json!(usage));
        }
        value
    };
    Json(json!({ "services": status.services.values().map(with_usage).collect::<Vec<_>>() }))
}

pub(super) async fn one(
    State(deps): State<AdminDeps>,
    Path(name): Path<String>,
) -> Result<Json<ServiceStatus>, ApiError> {
    let name = known(&deps, &name)?;
    deps.supervisor
        .status()
        .services
        .get(&name)
        .map(|status| Json(status.as_ref().clone()))
        .ok_or_else(|| unknown(&deps, name.as_str()))
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
    let filter = query.filter()?;
    let tail = query.tail.unwrap_or(100).min(MAX_TAIL);
    let last_seen = last_event_id(&headers).or(query.after);
    let lines = deps.supervisor.logs(Some(&name), last_seen.unwrap_or(0), tail, &filter)?;
    if !wants_stream(&headers) {
        return Ok(Json(json!({ "lines": lines })).into_response());
    }
    let cursor = lines.last().map(|line| line.seq).or(last_seen).unwrap_or(0);
    let state = (deps, name, cursor, lines, filter);
    let events = stream::unfold(state, async |(deps, name, mut cursor, mut lines, filter)| {
        while lines.is_empty() {
            tokio::select! {
                () = deps.shutdown.cancelled() => return None,
                () = deps.supervisor.wait_logs(&name, cursor, Duration::from_secs(30)) => {}
            }
            // What the filter leaves out is passed over as well.
            let latest = deps.supervisor.latest_log(&name).ok()?;
            lines = deps.supervisor.logs(Some(&name), cursor, MAX_TAIL, &filter).ok()?;
            if lines.is_empty() {
                cursor = cursor.max(latest);
            }
        }
        let line = lines.remove(0);
        cursor = cursor.max(line.seq);
        let event = Event::default().id(line.seq.to_string()).data(serde_json::to_string(&line).unwrap_or_default());
        Some((Ok::<_, Infallible>(event), (deps, name, cursor, lines, filter)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

pub(super) async fn all_logs(
    State(deps): State<AdminDeps>,
    Query(query): Query<LogQuery>,
) -> Result<Json<Value>, ApiError> {
    let tail = query.tail.unwrap_or(100).min(MAX_TAIL);
    Ok(Json(json!({ "lines": deps.supervisor.logs(None, 0, tail, &query.filter()?)? })))
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
