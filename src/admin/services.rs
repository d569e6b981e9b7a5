use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Done};
use super::extract::{Path, Query};
use super::server::AdminDeps;
use crate::base::{Name, Timestamp, did_you_mean, parse_duration};
use crate::host::Usage;
use crate::supervisor::{LogFilter, LogLine, LogStream, ServiceStatus};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// How many of the newest lines; at most 10,000, default 100.
    tail: Option<usize>,
    /// Only lines after this one.
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AllLogsQuery {
    /// How many of the newest lines; at most 10,000, default 100.
    tail: Option<usize>,
    /// `stdout` or `stderr`.
    stream: Option<LogStream>,
    /// A regular expression.
    grep: Option<String>,
    /// A time, or a duration back from now.
    since: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct UsageQuery {
    /// Given, whatever its value: with what each process tree uses now.
    usage: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Services {
    services: Vec<Service>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Service {
    #[serde(flatten)]
    status: ServiceStatus,
    /// What its processes use now, when it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LogLines {
    lines: Vec<LogLine>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Verb {
    Start,
    Stop,
    Restart,
}

const MAX_TAIL: usize = 10_000;
/// The time one look may spend on finding out shares of memory.
const USAGE_BUDGET: Duration = Duration::from_millis(100);

/// All services; with `?usage` what their processes use now as well.
pub(super) async fn list(State(deps): State<AdminDeps>, Query(query): Query<UsageQuery>) -> Json<Services> {
    let status = deps.supervisor.status();
    let usages = if query.usage.is_some() {
        let supervisor = deps.supervisor.clone();
        tokio::task::spawn_blocking(move || supervisor.usage(USAGE_BUDGET)).await.unwrap_or_default()
    } else {
        BTreeMap::default()
    };
    let service = |status: &Arc<ServiceStatus>| Service {
        usage: usages.get(&status.name).copied(),
        status: status.as_ref().clone(),
    };
    Json(Services { services: status.services.values().map(service).collect() })
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
) -> Result<(StatusCode, Json<Done>), ApiError> {
    let name = known(&deps, &name)?;
    let unknown = || ApiError::not_found(format!("{verb:?} is none of start, stop, restart"));
    match serde_json::from_value(verb.clone().into()).map_err(|_| unknown())? {
        Verb::Start => deps.supervisor.start(&name)?,
        Verb::Stop => deps.supervisor.stop(&name)?,
        Verb::Restart => deps.supervisor.restart(&name)?,
    }
    Ok((StatusCode::ACCEPTED, Json(Done { message: format!("{name} is told to {verb}") })))
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
        return Ok(Json(LogLines { lines }).into_response());
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
    Query(query): Query<AllLogsQuery>,
) -> Result<Json<LogLines>, ApiError> {
    let tail = query.tail.unwrap_or(100).min(MAX_TAIL);
    let AllLogsQuery { stream, grep, since, .. } = query;
    let filter = LogQuery { stream, grep, since, ..LogQuery::default() }.filter()?;
    Ok(Json(LogLines { lines: deps.supervisor.logs(None, 0, tail, &filter)? }))
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
