use std::time::Duration;

use serde_json::{Value, json};

use super::{Attempt, Failure, FailureClass, Job};
use crate::base::Timestamp;

const MAX_HISTORY: usize = 20;
/// So often a job goes back uncharged for a limited rate, of its latest attempts; after that each is charged, so that none goes
/// round for ever.
const MAX_UNCHARGED: usize = 10;

/// Where a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Its old place among those that wait.
    Pending,
    Delayed(Timestamp),
    Failed,
    Cancelled,
}

/// What the end of an attempt makes of a job. Pure: the backend carries it out in one step, and only if the job is still
/// where it was when this was decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transition {
    pub target: Target,
    /// The event's kind and data.
    pub kind: &'static str,
    pub data: Value,
    /// How the attempt is remembered.
    pub outcome: &'static str,
    pub failure: Option<Failure>,
    pub charged: bool,
    pub lost: bool,
    pub avoid: Avoid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Avoid {
    Nobody,
    /// The worker that had it never gets it again.
    ForGood,
    /// Others first, until then.
    Until(Timestamp),
}

fn rate_limited(job: &Job) -> usize {
    let is =
        |attempt: &&Attempt| attempt.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::RateLimited);
    job.history.iter().filter(is).count()
}

impl Transition {
    fn back(kind: &'static str, why: &str) -> Self {
        Self {
            target: Target::Pending,
            kind,
            data: json!({ "why": why }),
            outcome: kind,
            failure: None,
            charged: false,
            lost: false,
            avoid: Avoid::Nobody,
        }
    }

    fn dead(failure: &Failure) -> Self {
        Self {
            target: Target::Failed,
            kind: "failed",
            data: json!({ "failure": failure }),
            outcome: "failed",
            failure: Some(failure.clone()),
            charged: true,
            lost: false,
            avoid: Avoid::Nobody,
        }
    }

    /// `cancelled`: the job's cancellation was asked for. `chance` lies in 0..1; `patience` is how long others have the
    /// first claim on a job that is tried again.
    pub fn failed(
        job: &Job,
        failure: &Failure,
        cancelled: bool,
        patience: Duration,
        chance: f64,
        now: Timestamp,
    ) -> Self {
        match failure.class {
            FailureClass::Cancelled if cancelled => Self {
                target: Target::Cancelled,
                kind: "cancelled",
                outcome: "cancelled",
                charged: false,
                ..Self::dead(failure)
            },
            // Nobody cancelled the job itself: its worker was told to stop.
            FailureClass::Cancelled => Self::back("released", &failure.message),
            FailureClass::Fatal => Self::dead(failure),
            FailureClass::WrongMachine | FailureClass::Account => {
                let avoid = if failure.class == FailureClass::WrongMachine { Avoid::ForGood } else { Avoid::Nobody };
                let failure = Some(failure.clone());
                Self { data: json!({ "failure": failure }), failure, avoid, ..Self::back("released", "") }
            }
            FailureClass::RateLimited if rate_limited(job) < MAX_UNCHARGED => {
                let due = now.plus(failure.rate_pause());
                Self {
                    target: Target::Delayed(due),
                    data: json!({ "failure": failure, "due": due }),
                    failure: Some(failure.clone()),
                    ..Self::back("released", "")
                }
            }
            FailureClass::Retryable | FailureClass::Timeout | FailureClass::RateLimited => {
                let attempts = job.attempts + 1;
                let retry = &job.submission.retry;
                if attempts >= retry.max_attempts {
                    return Self::dead(failure);
                }
                let backoff = retry.backoff.delay(attempts, chance);
                let due = now.plus(failure.retry_after.map_or(backoff, |least| backoff.max(least.get())));
                Self {
                    target: Target::Delayed(due),
                    kind: "retried",
                    data: json!({ "failure": failure, "attempt": attempts, "due": due }),
                    avoid: Avoid::Until(due.plus(patience)),
                    ..Self::dead(failure)
                }
            }
        }
    }

    pub fn released(why: &str) -> Self {
        Self::back("released", why)
    }

    /// Its worker died.
    pub fn lost(job: &Job, max_losses: u32) -> Self {
        let losses = job.losses + 1;
        if losses > max_losses {
            let message =
                format!("quarantined: {losses} workers died while they ran it; look at it, then retry it by hand");
            let failure = Failure::new(FailureClass::Fatal, message);
            return Self { charged: false, lost: true, outcome: "lost", ..Self::dead(&failure) };
        }
        Self { lost: true, ..Self::back("lost", "its worker died") }
    }

    /// The job's history with this attempt at its end.
    pub fn history(&self, job: &Job, now: Timestamp) -> Vec<Attempt> {
        let mut history = job.history.clone();
        history.push(Attempt {
            worker: job.worker.clone().unwrap_or_default(),
            started: job.claimed.unwrap_or(job.submitted),
            ended: now,
            outcome: self.outcome.to_owned(),
            failure: self.failure.clone(),
        });
        let excess = history.len().saturating_sub(MAX_HISTORY);
        history.drain(..excess);
        history
    }
}
