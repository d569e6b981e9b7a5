use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, watch};

use super::{
    AccountStatus, Backlog, ClassStatus, Explanation, Failure, Job, JobEvent, JobId, JobSchedule, JobState,
    KnownMachine, Limit, Progress, QueueStats, Scope, Submission, Token, Usage, WebhookSender, Word, WorkerExplanation,
};
use crate::base::{Name, Timestamp};
use crate::host::{BlobError, BlobStore};
use crate::spec::Capabilities;

/// What all processes on one queue should agree on.
#[derive(Clone)]
pub struct QueueConfig {
    /// How long a silent worker keeps its jobs.
    pub lease: Duration,
    /// A job that more workers died of is set aside.
    pub max_losses: u32,
    /// How long completed and cancelled jobs are kept.
    pub keep_finished: Duration,
    /// How long failed jobs are kept.
    pub keep_failed: Duration,
    /// At most so many jobs of each final state are kept, the newest.
    pub max_finished: u32,
    /// Sends webhooks; a process without leaves them to others.
    pub webhooks: Option<Arc<WebhookSender>>,
    /// Keeps payloads and results over [`Submission::MAX_INLINE_BYTES`]; without it such are refused.
    pub blobs: Option<BlobStore>,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(18),
            max_losses: 5,
            keep_finished: Duration::from_hours(7 * 24),
            keep_failed: Duration::from_hours(30 * 24),
            max_finished: 100_000,
            webhooks: None,
            blobs: None,
        }
    }
}

/// What a round of [`Broker::reap`] found.
#[derive(Clone, Debug)]
pub struct Round {
    /// When the next is due.
    pub next: Duration,
    pub stats: QueueStats,
}

/// One life of one worker. The lease belongs to the incarnation: a worker that starts again is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registration {
    /// Stable over restarts: `<machine>/<worker>`.
    pub worker: String,
    /// Unique per life of the process.
    pub incarnation: String,
    /// While it is idle, a job may be assigned to it at its submission, rather than it be told to claim: for whoever claims as soon
    /// as [`Broker::wait`] returns, and says so with [`Broker::rest`] when it does not.
    pub assignable: bool,
}

#[derive(Clone, Debug)]
pub struct ClaimRequest {
    pub registration: Registration,
    /// At most so many jobs.
    pub limit: u32,
    /// Models that are loaded now: their jobs are preferred, within bounds.
    pub loaded: BTreeSet<String>,
}

/// A claimed job and the proof of holding it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub token: Token,
    pub job: Job,
    /// Its account is held, and how this job ends decides for how long.
    pub trial: bool,
}

/// What a job with an account ran into, so that others need not.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    pub account: Name,
    /// The job, which must not have been handed over yet: one on trial makes the hold longer.
    pub token: Token,
    pub pause: Duration,
    /// Whether one job is tried for all when the pause is over. If that fails, too, the pause is twice as long, up to this;
    /// without, the account opens by itself.
    pub longest: Option<Duration>,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    pub id: JobId,
    pub state: JobState,
    /// The idempotency key or the id was known: nothing new was queued.
    pub duplicate: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// Held jobs that somebody cancelled: stop them, then `fail` them with class `Cancelled`.
    pub cancelled: Vec<JobId>,
    /// Jobs the caller said it holds and that are no longer its own: stop them, their outcome will be refused.
    pub lost: Vec<JobId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub state: Option<JobState>,
    /// Only jobs of this service.
    pub service: Option<Name>,
    /// How many to leave out: for the next page.
    pub offset: Option<u32>,
    /// 1 to 1,000; default 100.
    pub limit: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// The token is not (or no longer) the one that holds the job. The outcome was not taken.
    #[error("the claim {} on job {} is not held any more", .0.claim, .0.job)]
    StaleToken(Token),
    #[error("job {job} is {state}: {why}")]
    WrongState { job: JobId, state: JobState, why: &'static str },
    /// The submission at `index` of the call is refused; none of the call was taken.
    #[error("submission {index} is refused: {why}")]
    Refused { index: usize, why: String },
    /// The result was not taken, and will not be.
    #[error("{0}")]
    TooLarge(String),
    /// The account of whoever claims is held, or at its limit (then `why` is empty): it is woken when that may be over.
    #[error("account {account} is {}", held(.until.as_ref(), .why))]
    Held { account: Name, until: Option<Timestamp>, why: String },
    #[error("worker {0} is not registered, or its lease has run out")]
    NotRegistered(String),
    /// The backend cannot be reached or is failing; the same call may succeed later.
    #[error("the queue is unavailable: {why}")]
    Unavailable { why: String },
    /// What is stored cannot be what the queue's functions wrote, or they failed. The same call will fail again.
    #[error("the queue's data are damaged: {why}; `machinist queue verify` looks closer")]
    Damaged { why: String },
}

fn held(until: Option<&Timestamp>, why: &str) -> String {
    match until {
        _ if why.is_empty() => "paused or at its limit".to_owned(),
        Some(until) => format!("held until {until}: {why}"),
        None => format!("held while one job is tried: {why}"),
    }
}

impl From<BlobError> for BrokerError {
    fn from(cause: BlobError) -> Self {
        match cause {
            BlobError::Unavailable { .. } => Self::Unavailable { why: cause.to_string() },
            BlobError::Address { .. } | BlobError::Missing { .. } | BlobError::Damaged { .. } => Self::damaged(&cause),
        }
    }
}

impl BrokerError {
    pub(super) fn damaged(why: &dyn std::fmt::Display) -> Self {
        Self::Damaged { why: why.to_string() }
    }
}

/// A queue of jobs. All state changes are atomic and durable when the call returns. Every backend passes the same
/// conformance suite (`tests/queue.rs`).
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Queues all of them or, when one is refused for what it is, none. Answers in the order given. Known ids and keys
    /// are no error. At most 200 jobs of 30 kinds of requirement are queued in one step: where a longer call fails half way,
    /// the first are queued.
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError>;

    /// Announces one life of a worker and what it can do. Jobs that an earlier incarnation of the same worker held go
    /// back at once, at their old place. Called again with the same incarnation it changes the capabilities.
    async fn register(&self, registration: &Registration, capabilities: &Capabilities) -> Result<(), BrokerError>;

    /// Takes leave: whatever the incarnation still holds is released.
    async fn deregister(&self, registration: &Registration) -> Result<(), BrokerError>;

    /// The best jobs that the worker may run: highest priority first, then in the order of submission. Empty when there
    /// is none now. [`BrokerError::Held`] where its account lets it claim none.
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claim>, BrokerError>;

    /// The worker will not claim for now, though it may be idle: it is told of no job until it claims again, and assigned none; one
    /// that it was is released.
    async fn rest(&self, registration: &Registration) -> Result<(), BrokerError>;

    /// Whether the worker's last claim left nothing for it: it need not claim before [`Self::wait`] returns, or what it can
    /// do changes.
    fn is_idle(&self, registration: &Registration) -> bool;

    /// Returns when there may be a job for the worker, at the latest after `timeout`. Cancel-safe.
    async fn wait(&self, registration: &Registration, timeout: Duration);

    /// Renews the lease and reports the jobs the caller holds and the models it has loaded. Heartbeats of one process
    /// that come together are one call.
    async fn heartbeat(
        &self,
        registration: &Registration,
        held: &[Token],
        loaded: &BTreeSet<String>,
    ) -> Result<HeartbeatReply, BrokerError>;

    /// Running jobs whose cancellation was asked for, as soon as that is known here; heartbeats tell them too.
    fn cancellations(&self) -> broadcast::Receiver<JobId>;

    /// Changes when the connection to the queue is new: it may have forgotten what the last heartbeat told it.
    fn reconnections(&self) -> watch::Receiver<u64>;

    async fn progress(&self, token: &Token, progress: Progress) -> Result<(), BrokerError>;

    /// Adds a line to the job's event stream.
    async fn log(&self, token: &Token, line: String) -> Result<(), BrokerError>;

    /// Adds a part of the result to the job's event stream, for whoever watches.
    async fn partial(&self, token: &Token, value: Value) -> Result<(), BrokerError>;

    /// Adds `used` to the job's events. `total` is what all its attempts used so far, that included.
    async fn usage(&self, token: &Token, used: Usage, total: Usage) -> Result<(), BrokerError>;

    /// Keeps a value for a later attempt to resume from.
    async fn save(&self, token: &Token, value: Value) -> Result<(), BrokerError>;

    async fn complete(&self, token: &Token, result: Value) -> Result<(), BrokerError>;

    /// Ends the attempt; the failure's class decides what becomes of the job. Answers with its new state.
    async fn fail(&self, token: &Token, failure: Failure) -> Result<JobState, BrokerError>;

    /// Gives the job back at its old place, no attempt charged.
    async fn release(&self, token: &Token, why: &str) -> Result<(), BrokerError>;

    /// A job that waits is cancelled at once; a running one is marked, and its worker told by the next heartbeat.
    /// Cancelling a cancelled job is no error.
    async fn cancel(&self, id: &JobId) -> Result<JobState, BrokerError>;

    /// Queues a failed or cancelled job again with fresh attempts.
    async fn retry(&self, id: &JobId) -> Result<JobState, BrokerError>;

    /// A payload or result that lies in the blob store stays there: see [`Self::load`].
    async fn get(&self, id: &JobId) -> Result<Job, BrokerError>;

    /// The job with its payload and result in their places, wherever they lie.
    async fn load(&self, job: Job) -> Result<Job, BrokerError>;

    /// What comes first, first: running, pending, delayed and blocked jobs in their order, then ended ones, the newest
    /// first. Without payloads and results.
    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, BrokerError>;

    /// The job's events after cursor `after` (0 for all), oldest first, at most 1,000.
    async fn events(&self, id: &JobId, after: u64) -> Result<Vec<JobEvent>, BrokerError>;

    /// Returns when the job may have events after `after`, at the latest after `timeout`.
    async fn wait_events(&self, id: &JobId, after: u64, timeout: Duration);

    /// All jobs, a page at a time, in no order; `None` begins, and ends.
    async fn scan(&self, cursor: Option<String>) -> Result<(Vec<Job>, Option<String>), BrokerError>;

    async fn stats(&self) -> Result<QueueStats, BrokerError>;

    /// What waits and runs, by service and pool. A process spends a fiftieth of its time on this at most: where it takes
    /// long, the answer may be some seconds old.
    async fn backlog(&self) -> Result<Arc<Backlog>, BrokerError>;

    /// Why the job does not run now, worker by worker.
    async fn explain(&self, id: &JobId) -> Result<Explanation, BrokerError>;

    /// What a worker waits for, and why it may not run the rest; `None` when it is not registered.
    async fn explain_worker(&self, worker: &str) -> Result<Option<WorkerExplanation>, BrokerError>;

    async fn classes(&self, offset: usize, count: usize) -> Result<Vec<ClassStatus>, BrokerError>;

    /// Those whose lease holds, as they were some seconds ago at most.
    async fn workers(&self) -> Result<BTreeMap<String, Capabilities>, BrokerError>;

    /// A machine says how it is: to whoever listens on `machine:status:<id>`, and for [`Self::machines`].
    async fn announce(&self, word: &Word) -> Result<(), BrokerError>;

    /// The machines that are present, and those that were within a day, by id.
    async fn machines(&self) -> Result<Vec<KnownMachine>, BrokerError>;

    /// The default [`Limit`] lifts what there was.
    async fn set_limit(&self, scope: &Scope, limit: Limit) -> Result<(), BrokerError>;

    /// With how many jobs run in each.
    async fn limits(&self) -> Result<Vec<(Scope, Limit, u64)>, BrokerError>;

    /// Lets nobody claim with an account. Answers with the end of that, and whether it is news: not where the account was
    /// held already and the job is not the one that is tried.
    async fn hold(&self, request: &HoldRequest) -> Result<(Timestamp, bool), BrokerError>;

    /// Ends whatever holds the account; whether anything did.
    async fn lift(&self, account: &Name) -> Result<bool, BrokerError>;

    /// All that were ever used or limited.
    async fn accounts(&self) -> Result<Vec<AccountStatus>, BrokerError>;

    /// Answers with its first time.
    async fn put_schedule(&self, schedule: JobSchedule) -> Result<Timestamp, BrokerError>;

    /// Whether there was one.
    async fn drop_schedule(&self, name: &Name) -> Result<bool, BrokerError>;

    async fn schedules(&self) -> Result<Vec<JobSchedule>, BrokerError>;

    /// Removes a job that is over.
    async fn drop_job(&self, id: &JobId) -> Result<(), BrokerError>;

    /// Checks every invariant of what is stored; says what is wrong, and mends it when asked to.
    async fn verify(&self, repair: bool) -> Result<Vec<String>, BrokerError>;

    /// Gives back what expired leases hold, ends attempts past their time, tells jobs that waited for others, takes in
    /// the inbox, submits what is scheduled, sends webhooks, drops what retention no longer keeps. Any process may call
    /// it at any time.
    async fn reap(&self) -> Result<Round, BrokerError>;

    /// Returns when there may be something to reap, at the latest after `timeout`.
    async fn reap_wanted(&self, timeout: Duration);
}
