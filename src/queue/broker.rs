use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Failure, Job, JobEvent, JobId, JobState, Progress, QueueStats, Submission, Token};
use crate::base::{Name, Timestamp};
use crate::spec::Capabilities;

/// One life of one worker. The lease belongs to the incarnation: a worker that starts again is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registration {
    /// Stable over restarts: `<machine>/<worker>`.
    pub worker: String,
    /// Unique per life of the process.
    pub incarnation: String,
}

#[derive(Clone, Debug)]
pub struct ClaimRequest {
    pub registration: Registration,
    /// At most so many jobs.
    pub limit: u32,
}

/// A claimed job and the proof of holding it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub token: Token,
    pub job: Job,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobFilter {
    pub state: Option<JobState>,
    pub service: Option<Name>,
    /// Only jobs submitted before this one: the cursor for the next page.
    pub before: Option<JobId>,
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
    #[error("worker {0} is not registered, or its lease has run out")]
    NotRegistered(String),
    /// The backend cannot be reached or is failing; the same call may succeed later.
    #[error("the queue is unavailable: {why}")]
    Unavailable { why: String },
}

/// A queue of jobs. All state changes are atomic and durable when the call returns. Every backend passes the same
/// conformance suite (`tests/queue.rs`).
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Queues all of them or, when one is refused, none. Answers in the order given. Known ids and idempotency keys are
    /// no error.
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError>;

    /// Announces one life of a worker and what it can do. Jobs that an earlier incarnation of the same worker held go
    /// back at once, at their old place. Called again with the same incarnation it changes the capabilities.
    async fn register(&self, registration: &Registration, capabilities: &Capabilities) -> Result<(), BrokerError>;

    /// Takes leave: whatever the incarnation still holds is released.
    async fn deregister(&self, registration: &Registration) -> Result<(), BrokerError>;

    /// The best jobs that the worker may run: highest priority first, then in the order of submission. Empty when there
    /// is none now.
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claim>, BrokerError>;

    /// Returns when there may be a job for the worker, at the latest after `timeout`. Cancel-safe.
    async fn wait(&self, registration: &Registration, timeout: Duration);

    /// Renews the lease and reports the jobs the caller holds.
    async fn heartbeat(&self, registration: &Registration, held: &[Token]) -> Result<HeartbeatReply, BrokerError>;

    async fn progress(&self, token: &Token, progress: Progress) -> Result<(), BrokerError>;

    /// Adds a line to the job's event stream.
    async fn log(&self, token: &Token, line: String) -> Result<(), BrokerError>;

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

    async fn get(&self, id: &JobId) -> Result<Job, BrokerError>;

    /// Newest first; without payloads and results.
    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, BrokerError>;

    /// The job's events after cursor `after` (0 for all), oldest first, at most 1,000.
    async fn events(&self, id: &JobId, after: u64) -> Result<Vec<JobEvent>, BrokerError>;

    /// Returns when the job may have events after `after`, at the latest after `timeout`.
    async fn wait_events(&self, id: &JobId, after: u64, timeout: Duration);

    async fn stats(&self) -> Result<QueueStats, BrokerError>;

    /// Gives back what expired leases hold, ends attempts past their time, drops what retention no longer keeps. Any
    /// process may call it at any time; returns when the next call is due.
    async fn reap(&self, now: Timestamp) -> Result<Duration, BrokerError>;
}
