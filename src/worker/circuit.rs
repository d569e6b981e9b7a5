//! Whether a worker may claim whose jobs fail one after the other, or are refused, though its connector's check holds.
//!
//! ```text
//!   closed -- 5 jobs in a row fail, --> open -- pause --> one job on trial -- done --> closed
//!             or one is refused          ^                       |
//!                                        +---- fails: longer ----+
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::base::{Backoff, Seconds};
use crate::queue::{Failure, JobId};

/// So many different jobs in a row are no accident of one of them.
const IN_A_ROW: usize = 5;
pub(super) const PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause of an account that is at fault: somebody has to pay, or to put in another key.
pub(super) const LONGEST_ACCOUNT: Duration = Duration::from_mins(5);

#[derive(Debug, Default)]
pub(super) struct Circuit {
    failed: BTreeSet<JobId>,
    open: Option<Open>,
    /// The backend said when to come again, and what else.
    rest: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Open {
    cause: Cause,
    until: Instant,
    pauses: u32,
    last: String,
    /// The job that was claimed after the pause and has not ended.
    trial: Option<JobId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Failures,
    /// The account is at fault, though the check holds. One is enough: nothing is wrong with the job.
    Account,
}

impl Cause {
    fn pause(self, pauses: u32) -> Duration {
        let max = match self {
            Self::Failures => LONGEST_PAUSE,
            Self::Account => LONGEST_ACCOUNT,
        };
        let pauses_of = Backoff { initial: Seconds::new(PAUSE), max: Seconds::new(max), factor: 2.0, jitter: 0.0 };
        pauses_of.delay(pauses, 0.0)
    }
}

/// Why nothing may be claimed, and for how long; without a time, until the job on trial has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shut {
    pub why: String,
    pub wait: Option<Duration>,
}

impl Circuit {
    /// Nothing went wrong lately, and nothing is on trial.
    pub fn is_untouched(&self, now: Instant) -> bool {
        self.failed.is_empty() && self.may_claim(u32::MAX, now) == Ok(u32::MAX)
    }

    /// How many of `free` slots may get a job now.
    pub fn may_claim(&self, free: u32, now: Instant) -> Result<u32, Shut> {
        if let Some((until, why)) = self.rest.as_ref().filter(|(until, _)| *until > now) {
            return Err(Shut { why: why.clone(), wait: Some(until.duration_since(now)) });
        }
        let Some(open) = &self.open else { return Ok(free) };
        let wait = open.until.saturating_duration_since(now);
        if wait.is_zero() && open.trial.is_none() {
            return Ok(free.min(1));
        }
        let why = format!("{}, so one is tried at a time; the last: {}", self.what(open.cause), open.last);
        Err(Shut { why, wait: open.trial.is_none().then_some(wait) })
    }

    fn what(&self, cause: Cause) -> String {
        match cause {
            Cause::Failures => format!("{} jobs in a row failed", self.failed.len()),
            Cause::Account => "its account is refused although the check holds".to_owned(),
        }
    }

    /// The first of the jobs that were claimed.
    pub fn claimed(&mut self, job: &JobId) {
        if let Some(open) = &mut self.open {
            open.trial = Some(job.clone());
        }
    }

    /// A job was done: the backend works. What ran before it opened may have been done with the backend by then.
    pub fn succeeded(&mut self, job: &JobId) {
        if self.open.as_ref().is_some_and(|open| open.trial.as_ref() != Some(job)) {
            return;
        }
        // What it said of its rate holds all the same.
        *self = Self { rest: self.rest.take(), ..Self::default() };
    }

    /// The backend takes no more until then.
    pub fn rest(&mut self, job: &JobId, until: Instant, why: &str) {
        self.ended(job);
        if self.rest.as_ref().is_none_or(|(known, _)| *known < until) {
            self.rest = Some((until, why.to_owned()));
        }
    }

    /// Why it is open for jobs that failed, when it is.
    pub fn opened(&self) -> Option<String> {
        let open = self.open.as_ref().filter(|open| open.cause == Cause::Failures)?;
        Some(format!("{}; the last: {}", self.what(open.cause), open.last))
    }

    /// An attempt failed that another one may not fail.
    pub fn failed(&mut self, job: &JobId, failure: &Failure, now: Instant) {
        // Past that the number says nothing new.
        if self.failed.len() < 1000 {
            self.failed.insert(job.clone());
        }
        let cause = match &self.open {
            // Whatever else goes wrong, the account has not been seen to work.
            Some(open) => open.cause,
            None if self.failed.len() < IN_A_ROW => return,
            None => Cause::Failures,
        };
        self.opens(cause, job, &failure.message, now);
    }

    /// The account was refused.
    pub fn refused(&mut self, job: &JobId, why: &str, now: Instant) {
        self.opens(Cause::Account, job, why, now);
    }

    fn opens(&mut self, cause: Cause, job: &JobId, why: &str, now: Instant) {
        let pauses = match &self.open {
            // It ran before.
            Some(open) if open.trial.as_ref() != Some(job) => return,
            Some(open) if open.cause == cause => open.pauses.saturating_add(1),
            Some(_) | None => 1,
        };
        let until = now + cause.pause(pauses);
        self.open = Some(Open { cause, until, pauses, last: why.to_owned(), trial: None });
    }

    /// It ended in a way that says nothing of the backend.
    pub fn ended(&mut self, job: &JobId) {
        if let Some(open) = &mut self.open {
            open.trial.take_if(|trial| trial == job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Circuit, IN_A_ROW, Shut};
    use crate::queue::{Failure, FailureClass, JobId};
    use std::time::{Duration, Instant};

    fn id(job: usize) -> JobId {
        JobId::new(&format!("j{job}")).unwrap()
    }

    fn fail(circuit: &mut Circuit, jobs: impl IntoIterator<Item = usize>, now: Instant) {
        for job in jobs {
            circuit.failed(&id(job), &Failure::new(FailureClass::Retryable, format!("no {job}")), now);
        }
    }

    fn refuse(circuit: &mut Circuit, jobs: impl IntoIterator<Item = usize>, now: Instant) {
        for job in jobs {
            circuit.refused(&id(job), &format!("no credit for {job}"), now);
        }
    }

    /// Lets a pause pass, and has the job tried after it.
    fn try_one(circuit: &mut Circuit, job: usize, now: &mut Instant) -> Shut {
        let shut = circuit.may_claim(8, *now).unwrap_err();
        *now += shut.wait.unwrap();
        assert_eq!(circuit.may_claim(8, *now), Ok(1));
        circuit.claimed(&id(job));
        assert_eq!(circuit.may_claim(7, *now).unwrap_err().wait, None);
        shut
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
        circuit.succeeded(&id(50));
        fail(&mut circuit, 10..10 + IN_A_ROW - 1, now);
        assert_eq!(circuit.may_claim(8, now), Ok(8));
    }

    #[test]
    fn open_it_tries_one_job_after_pauses_that_grow() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW, now);
        let mut pauses = Vec::new();
        for job in 100..107 {
            let shut = try_one(&mut circuit, job, &mut now);
            assert!(shut.why.contains("jobs in a row failed"), "{}", shut.why);
            pauses.push(shut.wait.unwrap().as_secs());
            fail(&mut circuit, [job], now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        try_one(&mut circuit, 200, &mut now);
        circuit.succeeded(&id(200));
        assert_eq!(circuit.may_claim(8, now), Ok(8));
    }

    #[test]
    fn an_account_that_is_refused_opens_it_at_once_and_for_longer_each_time() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        // Of eight that run, all are refused, and that is once.
        refuse(&mut circuit, 0..8, now);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            // The same job: it goes back to the head of the queue.
            let shut = try_one(&mut circuit, 0, &mut now);
            assert!(shut.why.starts_with("its account is refused"), "{}", shut.why);
            assert!(shut.why.ends_with("no credit for 0"), "{}", shut.why);
            pauses.push(shut.wait.unwrap().as_secs());
            refuse(&mut circuit, [0], now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        try_one(&mut circuit, 0, &mut now);
        circuit.succeeded(&id(0));
        assert_eq!(circuit.may_claim(8, now), Ok(8));
        refuse(&mut circuit, [0], now);
        assert_eq!(circuit.may_claim(8, now).unwrap_err().wait, Some(Duration::from_secs(1)), "it starts over");
    }

    #[test]
    fn a_trial_that_fails_otherwise_does_not_show_that_the_account_works() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        refuse(&mut circuit, [0], now);
        try_one(&mut circuit, 1, &mut now);
        fail(&mut circuit, [1], now);
        let shut = circuit.may_claim(8, now).unwrap_err();
        assert_eq!(shut.wait, Some(Duration::from_secs(2)));
        assert!(shut.why.starts_with("its account is refused") && shut.why.ends_with("no 1"), "{}", shut.why);
        assert_eq!(circuit.opened(), None, "which is no word of jobs that fail");
    }

    #[test]
    fn an_account_that_is_refused_while_jobs_fail_is_what_is_said() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW, now);
        try_one(&mut circuit, 9, &mut now);
        fail(&mut circuit, [9], now);
        try_one(&mut circuit, 9, &mut now);
        refuse(&mut circuit, [9], now);
        let shut = circuit.may_claim(8, now).unwrap_err();
        assert_eq!(shut.wait, Some(Duration::from_secs(1)));
        assert!(shut.why.starts_with("its account is refused"), "{}", shut.why);
    }

    #[test]
    fn what_ran_before_it_opened_changes_no_pause() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..40, now);
        assert_eq!(circuit.may_claim(8, now).unwrap_err().wait, Some(Duration::from_secs(1)));
        // Not while another is tried, either.
        try_one(&mut circuit, 50, &mut now);
        fail(&mut circuit, 40..45, now);
        refuse(&mut circuit, 45..48, now);
        circuit.ended(&id(48));
        circuit.succeeded(&id(49));
        assert_eq!(circuit.may_claim(8, now).unwrap_err().wait, None, "the one on trial has not ended");
        fail(&mut circuit, [50], now);
        assert_eq!(circuit.may_claim(8, now).unwrap_err().wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_backend_that_says_when_is_left_alone_until_then_whatever_else_is_done() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        circuit.rest(&id(1), now + Duration::from_secs(30), "slow down");
        circuit.rest(&id(2), now + Duration::from_secs(10), "sooner");
        circuit.succeeded(&id(3));
        let shut = circuit.may_claim(8, now).unwrap_err();
        assert_eq!((shut.why.as_str(), shut.wait), ("slow down", Some(Duration::from_secs(30))));
        assert_eq!(circuit.may_claim(8, now + Duration::from_secs(30)), Ok(8));
    }

    #[test]
    fn a_trial_that_says_nothing_is_followed_by_another() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        fail(&mut circuit, 0..IN_A_ROW, now);
        try_one(&mut circuit, 7, &mut now);
        circuit.ended(&id(7));
        assert_eq!(circuit.may_claim(8, now), Ok(1));
    }
}
