use schemars::JsonSchema;
use serde::Serialize;

use crate::base::Name;
use crate::queue::{Failure, JobId};
use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    vec![
        EventKind::of::<WorkerChanged>(),
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
