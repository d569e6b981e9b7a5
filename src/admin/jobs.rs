use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::server::AdminDeps;
use super::services::{last_event_id, wants_stream};
use crate::queue::{Job, JobEvent, JobFilter, JobId, QueueStats, Submission};

/// Jobs that are queued in one transaction.
const BATCH: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    after: Option<u64>,
}

/// One job, an array of jobs, or a job per line (`application/x-ndjson`).
pub(super) async fn submit(
    State(deps): State<AdminDeps>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut submissions =
        if content_type.starts_with("application/x-ndjson") { read_lines(&body)? } else { read_json(&body)? };
    let mut jobs = Vec::with_capacity(submissions.len());
    // Validated as one: the first refusal refuses all of a batch, and what went before it is named in the answer.
    while !submissions.is_empty() {
        let rest = submissions.split_off(submissions.len().min(BATCH));
        let batch = std::mem::replace(&mut submissions, rest);
        match deps.broker.submit(batch).await {
            Ok(submitted) => jobs.extend(submitted),
            Err(cause) if jobs.is_empty() => return Err(cause.into()),
            Err(cause) => {
                let taken = jobs.len();
                return Err(ApiError::from(cause).help(format!("the first {taken} jobs of this call are queued")));
            }
        }
    }
    Ok((StatusCode::CREATED, Json(json!({ "jobs": jobs }))))
}

fn read_json(body: &[u8]) -> Result<Vec<Submission>, ApiError> {
    let array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let read = if array {
        serde_json::from_slice::<Vec<Submission>>(body)
    } else {
        serde_json::from_slice::<Submission>(body).map(|one| vec![one])
    };
    read.map_err(|cause| {
        ApiError::bad_request(format!("not a job: {cause}"))
            .help("send {\"service\": \"command\", \"payload\": {...}}, or an array of such")
    })
}

fn read_lines(body: &[u8]) -> Result<Vec<Submission>, ApiError> {
    let lines = body.split(|byte| *byte == b'\n').enumerate();
    let filled = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    filled
        .map(|(number, line)| {
            serde_json::from_slice(line)
                .map_err(|cause| ApiError::bad_request(format!("line {}: not a job: {cause}", number + 1)))
        })
        .collect()
}

pub(super) async fn list(
    State(deps): State<AdminDeps>,
    Query(filter): Query<JobFilter>,
) -> Result<Json<Value>, ApiError> {
    let jobs = deps.broker.list(&filter).await?;
    Ok(Json(json!({ "jobs": jobs })))
}

pub(super) async fn get(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Job>, ApiError> {
    Ok(Json(deps.broker.get(&job_id(&id)?).await?))
}

pub(super) async fn cancel(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let id = job_id(&id)?;
    let state = deps.broker.cancel(&id).await?;
    Ok(Json(json!({ "id": id, "state": state })))
}

pub(super) async fn retry(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let id = job_id(&id)?;
    let state = deps.broker.retry(&id).await?;
    Ok(Json(json!({ "id": id, "state": state })))
}

pub(super) async fn stats(State(deps): State<AdminDeps>) -> Result<Json<QueueStats>, ApiError> {
    Ok(Json(deps.broker.stats().await?))
}

/// The job's events after a cursor; with `Accept: text/event-stream` all that follow, until `end` after the last.
pub(super) async fn events(
    State(deps): State<AdminDeps>,
    Path(id): Path<String>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = job_id(&id)?;
    let after = last_event_id(&headers).or(query.after).unwrap_or(0);
    let first = deps.broker.events(&id, after).await?;
    if !wants_stream(&headers) {
        return Ok(Json(json!({ "events": first })).into_response());
    }
    let follow = Follow { deps, id, cursor: after, pending: first, ended: false };
    let events = stream::unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok::<_, Infallible>(event), follow))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

struct Follow {
    deps: AdminDeps,
    id: JobId,
    cursor: u64,
    pending: Vec<JobEvent>,
    ended: bool,
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        while !self.ended {
            if !self.pending.is_empty() {
                let event = self.pending.remove(0);
                self.cursor = event.seq;
                let data = serde_json::to_string(&event).unwrap_or_default();
                return Some(Event::default().id(event.seq.to_string()).event(event.kind).data(data));
            }
            let job = self.deps.broker.get(&self.id).await.ok()?;
            self.pending = self.deps.broker.events(&self.id, self.cursor).await.ok()?;
            if self.pending.is_empty() && job.state.is_final() {
                self.ended = true;
                let data = json!({ "state": job.state, "result": job.result, "failure": job.failure });
                return Some(Event::default().event("end").data(data.to_string()));
            }
            if self.pending.is_empty() {
                tokio::select! {
                    () = self.deps.shutdown.cancelled() => return None,
                    () = self.deps.broker.wait_events(&self.id, self.cursor, Duration::from_secs(15)) => {}
                }
            }
        }
        None
    }
}

fn job_id(text: &str) -> Result<JobId, ApiError> {
    JobId::new(text).map_err(|cause| ApiError::not_found(cause.to_string()))
}
