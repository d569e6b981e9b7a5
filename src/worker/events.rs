use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Serialize;

use super::abilities::without;
use crate::base::{Name, Timestamp};
use crate::queue::{Failure, JobId};
use crate::spec::Capabilities;
use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    vec![
        EventKind::of::<WorkerChanged>(),
        EventKind::of::<CapabilitiesChanged>(),
        EventKind::of::<InventoryFailed>(),
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

/// A worker's backend has other models, or other labels, than before: jobs are matched against what it has now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CapabilitiesChanged {
    pub worker: Name,
    /// How many models jobs may ask for now, whoever named them.
    pub models: usize,
    pub added: usize,
    pub removed: usize,
    /// The first ten of those that were added.
    pub some_added: Vec<String>,
    /// The first ten of those that were removed.
    pub some_removed: Vec<String>,
    /// Labels with another value, new ones and those that are gone.
    pub labels: Vec<String>,
}

impl CapabilitiesChanged {
    const SHOWN: usize = 10;

    pub fn new(worker: Name, before: &Capabilities, now: &Capabilities) -> Self {
        let (added, removed) = (without(&now.models, &before.models), without(&before.models, &now.models));
        let some = |names: &[&str]| names.iter().take(Self::SHOWN).map(|name| (*name).to_owned()).collect();
        let names: BTreeSet<&String> = before.labels.keys().chain(now.labels.keys()).collect();
        let other = names.into_iter().filter(|name| before.labels.get(*name) != now.labels.get(*name));
        Self {
            worker,
            models: now.models.len(),
            added: added.len(),
            removed: removed.len(),
            some_added: some(&added),
            some_removed: some(&removed),
            labels: other.cloned().collect(),
        }
    }
}

impl Observed for CapabilitiesChanged {
    const KIND: &'static str = "worker.capabilities_changed";
    fn subject(&self) -> Option<String> {
        Some(self.worker.to_string())
    }
    fn message(&self) -> String {
        let part = |count: usize, what: &str, some: &[String]| {
            let more = if count > some.len() { " ..." } else { "" };
            (count > 0).then(|| format!("{count} models {what} ({}{more})", some.join(", ")))
        };
        let labels = (!self.labels.is_empty()).then(|| format!("other labels ({})", self.labels.join(", ")));
        let parts =
            [part(self.added, "more", &self.some_added), part(self.removed, "less", &self.some_removed), labels];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        format!("worker {} has {}; {} models in all", self.worker, parts.join(", "), self.models)
    }
}

/// A worker's connector could not tell what its backend has. What was known before holds, or, where nothing was, what the machine's
/// script says. It is asked again every minute; this is said once until it answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct InventoryFailed {
    pub worker: Name,
    pub reason: String,
}

impl Observed for InventoryFailed {
    const KIND: &'static str = "worker.inventory_failed";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.worker.to_string())
    }
    fn message(&self) -> String {
        format!(
            "worker {} goes on with what was known of its backend, which does not tell what it has: {}",
            self.worker, self.reason
        )
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
