//! Whether a generation that went live keeps what it promises: pure, with the time as an argument.
//!
//! ```text
//!  went live --> on probation --- what it touched fails, crashes in a loop or is late; a check fails --> rolled back
//!                  |  ^   |
//!        next edit +--+   +------ the window is over and what it touched is up --> passed
//! ```
//! The way back leads to the last generation that passed, however many edits came since. What such an edit does not touch
//! keeps its count of failures, so that no crash loop hides behind a row of edits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use crate::admin::ProbationStatus;
use crate::base::{Name, Timestamp};
use crate::spec::{Affected, Kind};
use crate::supervisor::{Desired, ServiceState, ServiceStatus, ServicesStatus};
use crate::worker::{WorkerState, WorkerStatus};

/// So many restarts that nobody asked for are a loop, however far apart.
const LOOP: u64 = 3;
/// A connector's check that held before may fail so long: a backend may be starting.
const CHECK_PATIENCE: Duration = Duration::from_secs(10);

/// What a generation that went live is watched for.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    pub generation: u64,
    /// The generation that it would be rolled back to.
    pub back_to: u64,
    /// Statuses of services know of it from this revision on.
    pub revision: u64,
    pub window: Duration,
    /// The end of the window, by the calendar.
    pub ends: Option<Timestamp>,
    pub services: BTreeMap<Name, Before>,
    /// Workers with another connector, whose check held before.
    pub workers: BTreeSet<Name>,
    /// Services whose earlier record, if there is one, ends with this edit.
    pub renewed: BTreeSet<Name>,
}

/// How a service was when the edit went live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// A new process is due, and has to get up.
    pub fresh: bool,
    pub up: bool,
    pub restarts: u64,
    pub late: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub subject: Subject,
    /// What is wrong with it, as the end of a sentence that it begins.
    pub what: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Service(Name),
    Worker(Name),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    Passed,
    Failed(Vec<Fault>),
}

/// A generation that is being watched.
#[derive(Debug)]
pub struct Probation {
    trial: Trial,
    until: Instant,
    /// The window is over, and something is still on its way up.
    overdue: bool,
    /// Since when checks fail.
    failing: BTreeMap<Name, Instant>,
}

enum Judgement {
    Fine,
    Undecided,
    Fault(String),
}

impl Trial {
    /// Takes down how everything was just before the edit went live. `affected` counts from the generation that the way
    /// back leads to, `renewed` from the one that ran until now.
    pub fn services(affected: &Affected, before: &ServicesStatus) -> BTreeMap<Name, Before> {
        let record = |name: &Name, fresh: bool| {
            let status = before.services.get(name);
            let up = status.is_some_and(|s| s.state.is_ready());
            let (restarts, late) = status.map_or((0, 0), |status| (status.restarts, status.late));
            (name.clone(), Before { fresh, up, restarts, late })
        };
        let fresh = affected.fresh.iter().map(|name| record(name, true));
        fresh.chain(affected.others.iter().map(|name| record(name, false))).collect()
    }

    /// Nothing of it could fail.
    pub fn is_empty(&self) -> bool {
        self.window.is_zero() || (self.services.is_empty() && self.workers.is_empty())
    }
}

impl Probation {
    /// `earlier` is the probation that the new edit interrupts.
    pub fn begin(mut trial: Trial, earlier: Option<Self>, now: Instant) -> Self {
        let (mut failing, until) = (BTreeMap::new(), now + trial.window);
        if let Some(earlier) = earlier {
            for (name, before) in &mut trial.services {
                if let Some(record) = earlier.trial.services.get(name).filter(|_| !trial.renewed.contains(name)) {
                    *before = *record;
                }
            }
            failing = earlier.failing;
            failing.retain(|name, _| trial.workers.contains(name));
        }
        Self { trial, until, overdue: false, failing }
    }

    pub fn generation(&self) -> u64 {
        self.trial.generation
    }

    pub fn judge(
        &mut self,
        services: &ServicesStatus,
        workers: &BTreeMap<Name, WorkerStatus>,
        now: Instant,
    ) -> Verdict {
        let over = now >= self.until;
        let (mut faults, mut undecided) = (Vec::new(), false);
        for (name, before) in &self.trial.services {
            let Some(status) = services.services.get(name) else { continue };
            match judge_service(status, *before, over) {
                Judgement::Fine => {}
                Judgement::Undecided => undecided = true,
                Judgement::Fault(what) => faults.push(Fault { subject: Subject::Service(name.clone()), what }),
            }
        }
        for name in &self.trial.workers {
            let Some(status) = workers.get(name).filter(|status| status.state == WorkerState::NotReady) else {
                self.failing.remove(name);
                continue;
            };
            let since = *self.failing.entry(name.clone()).or_insert(now);
            if over || now.saturating_duration_since(since) >= CHECK_PATIENCE {
                let why = status.reason.as_deref().unwrap_or("no reason is known");
                let what = format!("does not pass its connector's check any more: {why}");
                faults.push(Fault { subject: Subject::Worker(name.clone()), what });
            }
        }
        self.overdue = over;
        match (faults.is_empty(), over && !undecided) {
            (false, _) => Verdict::Failed(faults),
            (true, true) => Verdict::Passed,
            (true, false) => Verdict::Wait,
        }
    }

    /// When a verdict may come without anything happening.
    pub fn next_deadline(&self) -> Option<Instant> {
        let window = (!self.overdue).then_some(self.until);
        window.into_iter().chain(self.failing.values().map(|since| *since + CHECK_PATIENCE)).min()
    }

    pub fn status(&self) -> ProbationStatus {
        ProbationStatus {
            until: self.trial.ends.unwrap_or(Timestamp::from_millis(0)),
            back_to: self.trial.back_to,
            services: self.trial.services.keys().cloned().collect(),
            workers: self.trial.workers.iter().cloned().collect(),
        }
    }
}

fn judge_service(status: &ServiceStatus, before: Before, over: bool) -> Judgement {
    // Somebody stopped it, or it was not well before and has got nothing new: that is not the edit's doing.
    if status.desired == Desired::Down || (!before.fresh && !before.up) {
        return Judgement::Fine;
    }
    let because = status.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    // One that was forgotten in between counts from nothing again.
    let since = |count: u64, before: u64| count.checked_sub(before).unwrap_or(count);
    if status.state == ServiceState::Failed {
        return Judgement::Fault(format!("failed{because}"));
    }
    if since(status.late, before.late) > 0 {
        return Judgement::Fault(format!("was not ready in time{because}"));
    }
    if status.state == ServiceState::CrashLoop || since(status.restarts, before.restarts) >= LOOP {
        return Judgement::Fault(format!("crashes in a loop{because}"));
    }
    match status.state {
        ServiceState::Unready | ServiceState::Backoff if over => {
            Judgement::Fault(format!("is {} at the end of its probation{because}", status.state))
        }
        // The spec may give it more time than the window has; the supervisor tells when that is over.
        ServiceState::Starting if status.kind == Kind::Service => Judgement::Undecided,
        ServiceState::Stopping => Judgement::Undecided,
        // Whoever waits, waits for something that is judged itself, or that was not up before either.
        _ => Judgement::Fine,
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Worker(name) => write!(f, "worker {name}"),
        }
    }
}

#[cfg(test)]
#[path = "probation_tests.rs"]
mod tests;
