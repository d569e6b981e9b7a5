//! Whether a worker may claim whose jobs fail one after the other, though its connector's check holds.
//!
//! ```text
//!   closed -- 5 jobs in a row fail --> open -- pause --> one job on trial -- done --> closed
//!                                       ^                       |
//!                                       +---- fails: longer ----+
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::base::{Backoff, Seconds};
use crate::queue::{Failure, JobId};

/// So many different jobs in a row are no accident of one of them.
const IN_A_ROW: usize = 5;
pub(super) const PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const PAUSES: Backoff =
    Backoff { initial: Seconds::new(PAUSE), max: Seconds::new(LONGEST_PAUSE), factor: 2.0, jitter: 0.0 };

#[derive(Debug, Default)]
pub(super) struct Circuit {
    failed: BTreeSet<JobId>,
    open: Option<Open>,
    /// The backend said when to come again, and what else.
    rest: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    pauses: u32,
    last: String,
    /// A job was claimed after the pause and has not ended.
    trial: bool,
}

/// Why nothing may be claimed, and for how long; without a time, until the job on trial has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shut {
    pub why: String,
    pub wait: Option<Duration>,
}

impl Circuit {
    /// How many of `free` slots may get a job now.
    pub fn may_claim(&self, free: u32, now: Instant) -> Result<u32, Shut> {
        if let Some((until, why)) = self.rest.as_ref().filter(|(until, _)| *until > now) {
            return Err(Shut { why: why.clone(), wait: Some(until.duration_since(now)) });
        }
        let Some(open) = &self.open else { return Ok(free) };
        let wait = open.until.saturating_duration_since(now);
        if wait.is_zero() && !open.trial {
            return Ok(free.min(1));
        }
        let why =
            format!("{} jobs in a row failed, so one is tried at a time; the last: {}", self.failed.len(), open.last);
        Err(Shut { why, wait: (!open.trial).then_some(wait) })
    }

    /// Jobs were claimed.
    pub fn claimed(&mut self) {
        if let Some(open) = &mut self.open {
            open.trial = true;
        }
    }

    /// A job was done: the backend works.
    pub fn succeeded(&mut self) {
        // What it said of its rate holds all the same.
        *self = Self { rest: self.rest.take(), ..Self::default() };
    }

    /// The backend takes no more until then.
    pub fn rest(&mut self, until: Instant, why: &str) {
        self.ended();
        if self.rest.as_ref().is_none_or(|(known, _)| *known < until) {
            self.rest = Some((until, why.to_owned()));
        }
    }

    /// Why it is open, when it is.
    pub fn opened(&self) -> Option<String> {
        let open = self.open.as_ref()?;
        Some(format!("{} jobs in a row failed; the last: {}", self.failed.len(), open.last))
    }

    /// An attempt failed that another one may not fail.
    pub fn failed(&mut self, job: &JobId, failure: &Failure, now: Instant) {
        // Past that the number says nothing new.
        if self.failed.len() < 1000 {
            self.failed.insert(job.clone());
        }
        let pauses = match &self.open {
            None if self.failed.len() < IN_A_ROW => return,
            None => 1,
            Some(open) if open.trial => open.pauses.saturating_add(1),
            // It ran before.
            Some(_) => return,
        };
        let until = now + PAUSES.delay(pauses, 0.0);
        self.open = Some(Open { until, pauses, last: failure.message.clone(), trial: false });
    }

    /// It ended in a way that says nothing of the backend.
    pub fn ended(&mut self) {
        if let Some(open) = &mut self.open {
            open.trial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Circuit, IN_A_ROW};
    use crate::queue::{Failure, FailureClass, JobId};
    use std::time::{Duration, Instant};

    fn fail(circuit: &mut Circuit, jobs: impl IntoIterator<Item = usize>, now: Instant) {
        for job in jobs {
            let failure = Failure::new(FailureClass::Retryable, format!("no {job}"));
            circuit.failed(&JobId::new(&format!("j{job}")).unwrap(), &failure, now);
        }
    }

    #[test]
    fn one_job_that_fails_again_and_again_opens_nothing() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, [1; 100], now);
        assert_eq!(circuit.may_claim(8, now), Ok(8));
    }

    #[test]
    fn a_success_between_failures_closes_it() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW - 1, now);
        circuit.succeeded();
        fail(&mut circuit, 10..10 + IN_A_ROW - 1, now);
        assert_eq!(circuit.may_claim(8, now), Ok(8));
    }

    #[test]
    fn open_it_tries_one_job_after_pauses_that_grow() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW, now);
        let mut pauses = Vec::new();
        for job in 100..107 {
            let shut = circuit.may_claim(8, now).unwrap_err();
            assert!(shut.why.contains("jobs in a row failed"), "{}", shut.why);
            pauses.push(shut.wait.unwrap().as_secs());
            now += shut.wait.unwrap();
            assert_eq!(circuit.may_claim(8, now), Ok(1));
            circuit.claimed();
            assert_eq!(circuit.may_claim(7, now).unwrap_err().wait, None);
            fail(&mut circuit, [job], now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        circuit.succeeded();
        assert_eq!(circuit.may_claim(8, now), Ok(8));
    }

    #[test]
    fn what_ran_before_it_opened_changes_no_pause() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..40, now);
        assert_eq!(circuit.may_claim(8, now).unwrap_err().wait, Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_backend_that_says_when_is_left_alone_until_then_whatever_else_is_done() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        circuit.rest(now + Duration::from_secs(30), "slow down");
        circuit.rest(now + Duration::from_secs(10), "sooner");
        circuit.succeeded();
        let shut = circuit.may_claim(8, now).unwrap_err();
        assert_eq!((shut.why.as_str(), shut.wait), ("slow down", Some(Duration::from_secs(30))));
        assert_eq!(circuit.may_claim(8, now + Duration::from_secs(30)), Ok(8));
    }

    #[test]
    fn a_trial_that_says_nothing_is_followed_by_another() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW, now);
        let later = now + Duration::from_secs(1);
        circuit.claimed();
        circuit.ended();
        assert_eq!(circuit.may_claim(8, later), Ok(1));
    }
}
