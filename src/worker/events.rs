use schemars::JsonSchema;
use serde::Serialize;

use crate::base::{Name, Timestamp};
use crate::queue::{Failure, JobId};
use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    vec![
        EventKind::of::<WorkerChanged>(),
        EventKind::of::<AccountHeld>(),
        EventKind::of::<AccountLifted>(),
        EventKind::of::<JobFailed>(),
        EventKind::of::<JobLost>(),
        EventKind::of::<JobOverdue>(),
    ]
}

/// A worker begins or ceases to claim.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct WorkerChanged {
    pub worker: Name,
    pub state: super::WorkerState,
    pub reason: Option<String>,
}

impl Observed for WorkerChanged {
    const KIND: &'static str = "worker.changed";
    fn level(&self) -> Level {
        match self.state {
            super::WorkerState::NotReady | super::WorkerState::Disconnected => Level::Warn,
            _ => Level::Info,
        }
    }
    fn subject(&self) -> Option<String> {
        Some(self.worker.to_string())
    }
    fn message(&self) -> String {
        let state = serde_json::to_value(self.state).ok();
        let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or("changed").replace('_', " ");
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("worker {} is {state}{reason}", self.worker)
    }
}

/// A job ran into something here that holds for all workers that share the account: on no machine is more claimed with it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AccountHeld {
    pub account: Name,
    pub worker: Name,
    pub job: JobId,
    pub until: Timestamp,
    /// Whether one job is then tried before all others.
    pub trial: bool,
    pub cause: &'static str,
    pub why: String,
}

impl Observed for AccountHeld {
    const KIND: &'static str = "account.held";
    fn level(&self) -> Level {
        if self.trial { Level::Warn } else { Level::Info }
    }
    fn subject(&self) -> Option<String> {
        Some(self.account.to_string())
    }
    fn message(&self) -> String {
        let then = if self.trial { ", then one job is tried" } else { "" };
        format!("account {} is held until {}{then}: {}", self.account, self.until, self.why)
    }
    fn record(&self) {
        let (account, cause) = (self.account.to_string(), self.cause);
        metrics::counter!("machinist_account_holds_total", "account" => account, "cause" => cause).increment(1);
    }
}

/// The job that was tried for all with a held account is done: all workers that share it claim again.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AccountLifted {
    pub account: Name,
    pub worker: Name,
    pub job: JobId,
}

impl Observed for AccountLifted {
    const KIND: &'static str = "account.lifted";
    fn subject(&self) -> Option<String> {
        Some(self.account.to_string())
    }
    fn message(&self) -> String {
        format!("account {} works again: job {}, which was tried, is done", self.account, self.job)
    }
}

/// A job became a dead letter here.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobFailed {
    pub worker: Name,
    pub job: JobId,
    pub failure: Failure,
}

impl Observed for JobFailed {
    const KIND: &'static str = "job.failed";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.job.to_string())
    }
    fn message(&self) -> String {
        format!("job {} failed for good on {}: {}", self.job, self.worker, self.failure)
    }
}

/// The outcome of a job was not taken: somebody else holds it by now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobLost {
    pub worker: Name,
    pub job: JobId,
}

impl Observed for JobLost {
    const KIND: &'static str = "job.lost";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.job.to_string())
    }
    fn message(&self) -> String {
        format!("{} no longer holds job {}: its outcome here does not count", self.worker, self.job)
    }
}

/// A connector did not stop when its job's time was over.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobOverdue {
    pub worker: Name,
    pub job: JobId,
}

impl Observed for JobOverdue {
    const KIND: &'static str = "job.overdue";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(self.job.to_string())
    }
    fn message(&self) -> String {
        format!("job {} does not stop on {}; its slot stays taken until it does", self.job, self.worker)
    }
}
