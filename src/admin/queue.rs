use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::ApiError;
use super::extract::{Body, Path, Query, object};
use super::server::AdminDeps;
use crate::base::{Name, Seconds, Timestamp};
use crate::queue::{
    AccountStatus, Backlog, BrokerError, ClassStatus, JobFilter, JobSchedule, JobState, Limit, Load, QueueStats, Scope,
    WorkerExplanation,
};
use crate::spec::Capabilities;

/// Classes that one answer lists.
const MAX_CLASSES: usize = 1_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// How many to leave out: for the next page.
    #[serde(default)]
    offset: usize,
    /// At most 1,000, default 100.
    count: Option<usize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScopeQuery {
    /// `service:NAME`, `pool:NAME`, `customer:NAME` or `account:NAME`.
    #[schemars(regex(pattern = "^((service|pool|account):[A-Za-z0-9][A-Za-z0-9._-]{0,62}|customer:.+)$"))]
    scope: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    /// Mend what is wrong.
    #[serde(default)]
    repair: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PurgeQuery {
    /// A final state, or one that waits: those jobs are cancelled first.
    state: JobState,
    /// Only jobs of this service.
    service: Option<Name>,
    /// Only jobs that ended (or were submitted) longer ago.
    older_than: Option<Seconds>,
}

/// The queue's numbers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct QueueReport {
    #[serde(flatten)]
    totals: QueueStats,
    /// Jobs that wait although no worker matches them.
    unmatched: u64,
    /// By service, where jobs wait or run.
    services: BTreeMap<Name, Load>,
    /// By the pool that jobs ask for.
    pools: BTreeMap<Name, Load>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Classes {
    classes: Vec<ClassStatus>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Workers {
    workers: BTreeMap<String, Capabilities>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Limits {
    limits: Vec<LimitNow>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LimitNow {
    /// `service:NAME`, `pool:NAME`, `customer:NAME` or `account:NAME`.
    scope: String,
    limit: Limit,
    /// How many of its jobs run.
    running: u64,
    /// This lifted what held the account.
    #[serde(skip_serializing_if = "crate::base::is_default", default)]
    lifted: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Accounts {
    accounts: Vec<AccountStatus>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Schedules {
    schedules: Vec<JobSchedule>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ScheduleNext {
    name: Name,
    next: Timestamp,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Removed {
    name: Name,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Verified {
    problems: Vec<String>,
    repaired: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Purged {
    dropped: u64,
}

pub(super) async fn stats(State(deps): State<AdminDeps>) -> Result<Json<QueueReport>, ApiError> {
    let (totals, backlog) = (deps.broker.stats().await?, deps.broker.backlog().await?);
    let Backlog { services, pools, .. } = backlog.as_ref().clone();
    Ok(Json(QueueReport { totals, unmatched: backlog.unmatched_jobs(), services, pools }))
}

pub(super) async fn classes(
    State(deps): State<AdminDeps>,
    Query(page): Query<Page>,
) -> Result<Json<Classes>, ApiError> {
    let count = page.count.unwrap_or(100).min(MAX_CLASSES);
    Ok(Json(Classes { classes: deps.broker.classes(page.offset, count).await? }))
}

pub(super) async fn workers(State(deps): State<AdminDeps>) -> Result<Json<Workers>, ApiError> {
    Ok(Json(Workers { workers: deps.broker.workers().await? }))
}

/// What a worker could run, what waits for it, and why it may not run the rest.
pub(super) async fn explain_worker(
    State(deps): State<AdminDeps>,
    Path((machine, worker)): Path<(String, String)>,
) -> Result<Json<WorkerExplanation>, ApiError> {
    let name = format!("{machine}/{worker}");
    let unknown =
        || ApiError::not_found(format!("no worker {name} is registered")).help("GET /queue/workers lists them");
    Ok(Json(deps.broker.explain_worker(&name).await?.ok_or_else(unknown)?))
}

/// What all machines share that use one key.
pub(super) async fn accounts(State(deps): State<AdminDeps>) -> Result<Json<Accounts>, ApiError> {
    Ok(Json(Accounts { accounts: deps.broker.accounts().await? }))
}

pub(super) async fn limits(State(deps): State<AdminDeps>) -> Result<Json<Limits>, ApiError> {
    let limits = deps.broker.limits().await?.into_iter();
    let limits =
        limits.map(|(scope, limit, running)| LimitNow { scope: scope.to_string(), limit, running, lifted: false });
    Ok(Json(Limits { limits: limits.collect() }))
}

pub(super) async fn set_limit(
    State(deps): State<AdminDeps>,
    Query(query): Query<ScopeQuery>,
    Body(body): Body,
) -> Result<Json<LimitNow>, ApiError> {
    let limit: Limit = object(&body).map_err(|cause| {
        ApiError::bad_request(format!("not a limit: {cause}"))
            .help("send {\"max_running\": 4, \"per_second\": 2.5, \"burst\": 5, \"paused\": false}, or {} to lift it")
    })?;
    // Pausing is a thing of its own: numbers leave it as it is.
    let says_paused = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.get("paused").is_some());
    change(&deps, &query.scope, |current| Limit {
        paused: if says_paused { limit.paused } else { current.paused },
        ..limit
    })
    .await
}

pub(super) async fn pause(
    State(deps): State<AdminDeps>,
    Query(query): Query<ScopeQuery>,
) -> Result<Json<LimitNow>, ApiError> {
    change(&deps, &query.scope, |limit| Limit { paused: true, ..limit }).await
}

/// Of an account also what holds it.
pub(super) async fn resume(
    State(deps): State<AdminDeps>,
    Query(query): Query<ScopeQuery>,
) -> Result<Json<LimitNow>, ApiError> {
    let lifted = match query.scope.parse() {
        Ok(Scope::Account(account)) => deps.broker.lift(&account).await?,
        _ => false,
    };
    let Json(now) = change(&deps, &query.scope, |limit| Limit { paused: false, ..limit }).await?;
    Ok(Json(LimitNow { lifted, ..now }))
}

async fn change(
    deps: &AdminDeps,
    scope: &str,
    change: impl FnOnce(Limit) -> Limit,
) -> Result<Json<LimitNow>, ApiError> {
    let scope: Scope = scope.parse().map_err(ApiError::bad_request)?;
    deps.broker.set_limit(&scope, change(limit_now(deps, &scope).await?.limit)).await?;
    // As the queue keeps it: a rate has a burst, whether one was given or not.
    Ok(Json(limit_now(deps, &scope).await?))
}

async fn limit_now(deps: &AdminDeps, scope: &Scope) -> Result<LimitNow, ApiError> {
    let now = deps.broker.limits().await?.into_iter().find(|(known, ..)| known == scope);
    let (limit, running) = now.map_or_else(Default::default, |(_, limit, running)| (limit, running));
    Ok(LimitNow { scope: scope.to_string(), limit, running, lifted: false })
}

pub(super) async fn schedules(State(deps): State<AdminDeps>) -> Result<Json<Schedules>, ApiError> {
    Ok(Json(Schedules { schedules: deps.broker.schedules().await? }))
}

pub(super) async fn put_schedule(
    State(deps): State<AdminDeps>,
    Body(body): Body,
) -> Result<Json<ScheduleNext>, ApiError> {
    let schedule: JobSchedule = object(&body).map_err(|cause| {
        ApiError::bad_request(format!("not a schedule: {cause}"))
            .help("send {\"name\": \"nightly\", \"cron\": \"30 4 * * *\", \"job\": {\"service\": ...}}")
    })?;
    let name = schedule.name.clone();
    let next = deps.broker.put_schedule(schedule).await?;
    Ok(Json(ScheduleNext { name, next }))
}

pub(super) async fn drop_schedule(
    State(deps): State<AdminDeps>,
    Path(name): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no schedule {name}"));
    let parsed = Name::new(&name).map_err(|_| unknown())?;
    if deps.broker.drop_schedule(&parsed).await? { Ok(Json(Removed { name: parsed })) } else { Err(unknown()) }
}

pub(super) async fn verify(
    State(deps): State<AdminDeps>,
    Query(query): Query<VerifyQuery>,
) -> Result<Json<Verified>, ApiError> {
    Ok(Json(Verified { problems: deps.broker.verify(query.repair).await?, repaired: query.repair }))
}

pub(super) async fn purge(
    State(deps): State<AdminDeps>,
    Query(query): Query<PurgeQuery>,
) -> Result<Json<Purged>, ApiError> {
    let mut dropped = 0u64;
    let mut kept = 0;
    loop {
        let filter = JobFilter {
            state: Some(query.state),
            service: query.service.clone(),
            offset: Some(kept),
            limit: Some(500),
        };
        let jobs = deps.broker.list(&filter).await?;
        if jobs.is_empty() {
            return Ok(Json(Purged { dropped }));
        }
        for job in jobs {
            let at = job.finished.unwrap_or(job.submitted);
            // A running job is told to stop, and can be purged when it has.
            let gone = query.older_than.is_none_or(|age| Timestamp::now().since(at) > age.get())
                && deps.broker.cancel(&job.id).await.map_or(true, JobState::is_final)
                && deps.broker.drop_job(&job.id).await.is_ok();
            dropped += u64::from(gone);
            kept += u32::from(!gone);
        }
    }
}

/// Every job on a line of its own. An answer that breaks off is not the whole queue.
pub(super) async fn export(State(deps): State<AdminDeps>) -> Result<Response, ApiError> {
    let first = export_page(&deps, None).await?;
    let pages = stream::try_unfold((Some(first), deps), |(page, deps)| async move {
        let Some((lines, next)) = page else { return Ok(None) };
        let following = match next {
            Some(cursor) => Some(export_page(&deps, Some(cursor)).await?),
            None => None,
        };
        Ok::<_, BrokerError>(Some((lines, (following, deps))))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], axum::body::Body::from_stream(pages)).into_response())
}

async fn export_page(deps: &AdminDeps, cursor: Option<String>) -> Result<(Bytes, Option<String>), BrokerError> {
    let (jobs, next) = deps.broker.scan(cursor).await?;
    let mut lines = Vec::new();
    for job in jobs {
        let job = deps.broker.load(job).await?;
        serde_json::to_writer(&mut lines, &job).map_err(|cause| BrokerError::Damaged { why: cause.to_string() })?;
        lines.push(b'\n');
    }
    Ok((Bytes::from(lines), next))
}

/// Pauses a scope and answers when none of its jobs runs any more.
pub(super) async fn drain(
    State(deps): State<AdminDeps>,
    Query(query): Query<ScopeQuery>,
) -> Result<Json<LimitNow>, ApiError> {
    let answer = change(&deps, &query.scope, |limit| Limit { paused: true, ..limit }).await?;
    let scope: Scope = query.scope.parse().map_err(ApiError::bad_request)?;
    loop {
        let limits = deps.broker.limits().await?;
        let running = limits.iter().find(|(known, ..)| *known == scope).map_or(0, |(_, _, running)| *running);
        if running == 0 {
            return Ok(answer);
        }
        tokio::select! {
            () = deps.shutdown.cancelled() => return Err(ApiError::unavailable("the machine stops; the scope stays paused")),
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}
