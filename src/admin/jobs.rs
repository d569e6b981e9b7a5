use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::auth;
use super::error::ApiError;
use super::extract::{Body, Path, Query, object};
use super::server::AdminDeps;
use super::services::{last_event_id, wants_stream};
use crate::queue::{DependencyPolicy, Explanation, Job, JobEvent, JobFilter, JobId, JobState, Submission, Submitted};
use crate::telemetry::{Span, SpanKind, Trace, Traces};

/// How often a silent WebSocket is tried, so that a client that has vanished is noticed.
const ALIVE: Duration = Duration::from_secs(15);

/// Jobs that are queued in one transaction.
const BATCH: usize = 200;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Only what happened after the event of this number.
    after: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobsSubmitted {
    jobs: Vec<Submitted>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobEvents {
    events: Vec<JobEvent>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobNow {
    id: JobId,
    state: JobState,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchSubmitted {
    jobs: Vec<Submitted>,
    callback: Option<Submitted>,
}

/// What `POST /jobs` takes, in the document; it is read with care for what the reader is told of a mistake.
pub(super) struct OneOrMany;

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Submissions".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Submission>();
        json_schema!({ "description": "A job, or several.", "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// One job, an array of jobs, or a job per line (`application/x-ndjson`).
pub(super) async fn submit(
    State(deps): State<AdminDeps>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<(StatusCode, Json<JobsSubmitted>), ApiError> {
    let (span, jobs) = begin(&deps.traces, "/jobs", &headers, read(&headers, &body)?);
    let jobs = end(span, submit_all(&deps, jobs).await)?;
    Ok((StatusCode::CREATED, Json(JobsSubmitted { jobs })))
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<Vec<Submission>, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if content_type.starts_with("application/x-ndjson") { read_lines(body) } else { read_json(body) }
}

/// The span of a submission, below that of whoever asks: the header's, else the first job's. Jobs that belong there belong to
/// the span then.
fn begin(traces: &Traces, route: &'static str, headers: &HeaderMap, jobs: Vec<Submission>) -> (Span, Vec<Submission>) {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut asking = Trace::read(header("traceparent"), header("tracestate"));
    if asking.is_none() {
        asking = jobs.first().map(Submission::trace).unwrap_or_default();
    }
    let mut span = traces.begin(format!("POST {route}"), SpanKind::Server, &asking);
    span.set("http.request.method", "POST");
    span.set("http.route", route);
    span.set("machinist.jobs", i64::try_from(jobs.len()).unwrap_or(i64::MAX));
    let stays = |job: &Submission| span.trace().is_none() || (job.trace.is_some() && job.trace() != asking);
    let jobs = jobs.into_iter().map(|job| if stays(&job) { job } else { job.in_trace(span.trace()) }).collect();
    (span, jobs)
}

fn end<T>(mut span: Span, outcome: Result<T, ApiError>) -> Result<T, ApiError> {
    let status = outcome.as_ref().map_or_else(ApiError::status, |_| StatusCode::CREATED);
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.failed(status.as_str());
    }
    outcome
}

async fn submit_all(deps: &AdminDeps, mut submissions: Vec<Submission>) -> Result<Vec<Submitted>, ApiError> {
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
    Ok(jobs)
}

fn read_json(body: &[u8]) -> Result<Vec<Submission>, ApiError> {
    let array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let read = if array {
        serde_json::from_slice::<Vec<Submission>>(body)
    } else {
        object::<Submission>(body).map(|one| vec![one])
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
            object(line).map_err(|cause| ApiError::bad_request(format!("line {}: not a job: {cause}", number + 1)))
        })
        .collect()
}

pub(super) async fn list(
    State(deps): State<AdminDeps>,
    Query(filter): Query<JobFilter>,
) -> Result<Json<Jobs>, ApiError> {
    Ok(Json(Jobs { jobs: deps.broker.list(&filter).await? }))
}

pub(super) async fn get(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Job>, ApiError> {
    let job = deps.broker.get(&job_id(&id)?).await?;
    Ok(Json(deps.broker.load(job).await?))
}

pub(super) async fn cancel(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<JobNow>, ApiError> {
    let id = job_id(&id)?;
    let state = deps.broker.cancel(&id).await?;
    Ok(Json(JobNow { id, state }))
}

pub(super) async fn retry(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<JobNow>, ApiError> {
    let id = job_id(&id)?;
    let state = deps.broker.retry(&id).await?;
    Ok(Json(JobNow { id, state }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    jobs: Vec<Submission>,
    /// Queued with the others; claimable when all of them have ended, whatever became of them.
    callback: Option<Submission>,
}

/// Jobs that belong together, and one that runs when they have ended.
pub(super) async fn submit_batch(
    State(deps): State<AdminDeps>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<(StatusCode, Json<BatchSubmitted>), ApiError> {
    let batch: Batch = object(&body).map_err(|cause| {
        ApiError::bad_request(format!("not a batch: {cause}")).help("send {\"jobs\": [...], \"callback\": {...}}")
    })?;
    let mut jobs = batch.jobs;
    for job in &mut jobs {
        job.id.get_or_insert_with(JobId::random);
    }
    let ids: Vec<JobId> = jobs.iter().filter_map(|job| job.id.clone()).collect();
    let with_callback = batch.callback.is_some();
    jobs.extend(batch.callback.map(|callback| Submission {
        depends_on: callback.depends_on.iter().cloned().chain(ids).collect(),
        on_dependency_failure: DependencyPolicy::Run,
        ..callback
    }));
    let (span, jobs) = begin(&deps.traces, "/batches", &headers, jobs);
    let mut submitted = end(span, deps.broker.submit(jobs).await.map_err(ApiError::from))?;
    let callback = if with_callback { submitted.pop() } else { None };
    Ok((StatusCode::CREATED, Json(BatchSubmitted { jobs: submitted, callback })))
}

pub(super) async fn explain(
    State(deps): State<AdminDeps>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, ApiError> {
    Ok(Json(deps.broker.explain(&job_id(&id)?).await?))
}

/// The job's events as messages of a WebSocket, then `{"end": ...}`.
pub(super) async fn socket(
    State(deps): State<AdminDeps>,
    Path(id): Path<String>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    auth::same_origin(&headers)?;
    let id = job_id(&id)?;
    let cursor = query.after.unwrap_or(0);
    let pending = deps.broker.events(&id, cursor).await?;
    let upgrade = upgrade.map_err(|cause| {
        ApiError::upgrade_required(cause.body_text()).help("connect with a WebSocket client, or GET /jobs/{id}/events")
    })?;
    let sockets = deps.sockets.clone();
    let mut follow = Follow { deps, id, cursor, pending, ended: false };
    Ok(upgrade.on_upgrade(move |mut socket| {
        sockets.track_future(async move {
        let mut alive = tokio::time::interval(ALIVE);
        loop {
            let message = tokio::select! {
                step = follow.step() => match step {
                    Some(Step::Event(event)) => Message::Text(serde_json::to_string(&event).unwrap_or_default().into()),
                    Some(Step::End(end)) => Message::Text(json!({ "end": end }).to_string().into()),
                    None => break,
                },
                // A client that goes away is noticed; what it says is not asked for.
                message = socket.recv() => match message {
                    Some(Ok(_)) => continue,
                    _ => return,
                },
                _ = alive.tick() => Message::Ping(Vec::new().into()),
            };
            if socket.send(message).await.is_err() {
                return;
            }
        }
        // Whoever was not told the end comes back for the rest.
        let (code, reason) =
            if follow.ended { (close_code::NORMAL, "") } else { (close_code::RESTART, "the machine stops") };
        let _ = socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    })
    }))
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
        return Ok(Json(JobEvents { events: first }).into_response());
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

enum Step {
    Event(JobEvent),
    /// The job is over and all was told.
    End(Value),
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        Some(match self.step().await? {
            Step::Event(event) => {
                let data = serde_json::to_string(&event).unwrap_or_default();
                Event::default().id(event.seq.to_string()).event(event.kind).data(data)
            }
            Step::End(end) => Event::default().event("end").data(end.to_string()),
        })
    }

    /// Loses nothing when it is dropped while it waits.
    async fn step(&mut self) -> Option<Step> {
        while !self.ended {
            if !self.pending.is_empty() {
                let event = self.pending.remove(0);
                self.cursor = event.seq;
                return Some(Step::Event(event));
            }
            let job = self.deps.broker.get(&self.id).await.ok()?;
            self.pending = self.deps.broker.events(&self.id, self.cursor).await.ok()?;
            if self.pending.is_empty() && job.state.is_final() {
                self.ended = true;
                let job = self.deps.broker.load(Job { payload_blob: None, ..job }).await.ok()?;
                return Some(Step::End(json!({ "state": job.state, "result": job.result, "failure": job.failure })));
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
