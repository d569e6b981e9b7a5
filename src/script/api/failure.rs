//! The failures that scripts throw: they say what becomes of the job.

use crate::base::{Seconds, parse_duration};
use crate::queue::{self, FailureClass};
use crate::script::call::{ScriptResult, error};
use crate::script::prelude::*;

/// What `throw fatal("...")` throws: a failure with its class.
#[derive(Clone, Debug)]
pub(in crate::script) struct Thrown(pub queue::Failure);

impl Thrown {
    fn new(class: FailureClass, message: &str) -> Self {
        Self(queue::Failure::new(class, message))
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

pub(super) fn failure_type() -> Module {
    exported_module!(properties)
}

/// What a connector throws decides what becomes of the job: `throw retryable("the backend is busy")`. Anything else that
/// is thrown, and every error that is not caught, counts as `retryable`.
#[export_module]
mod functions {
    pub type Failure = super::Thrown;

    /// Another try may help: one attempt is charged, and the next one waits and prefers another worker.
    pub fn retryable(message: &str) -> Failure {
        Thrown::new(FailureClass::Retryable, message)
    }

    /// As `retryable(message)`, but the next attempt does not begin before `delay`, such as `"30s"`, is over. Fails where
    /// that is no duration.
    #[rhai_fn(return_raw)]
    pub fn retry_after(message: &str, delay: &str) -> ScriptResult<Failure> {
        let mut thrown = Thrown::new(FailureClass::Retryable, message);
        thrown.0.retry_after = Some(Seconds::new(parse_duration(delay).map_err(error)?));
        Ok(thrown)
    }

    /// The backend limits the rate and says nothing of when to come again: as `rate_limited(message, "10s")`.
    pub fn rate_limited(message: &str) -> Failure {
        Thrown::new(FailureClass::RateLimited, message)
    }

    /// The backend limits the rate, and takes more after `delay`, such as `"30s"`: the job waits so long. The first ten
    /// times that costs it no attempt. Nothing is claimed meanwhile by any worker that shares the connector's account, on
    /// any machine; without an account, by this worker. Fails where that is no duration.
    #[rhai_fn(name = "rate_limited", return_raw)]
    pub fn rate_limited_for(message: &str, delay: &str) -> ScriptResult<Failure> {
        let mut thrown = Thrown::new(FailureClass::RateLimited, message);
        thrown.0.retry_after = Some(Seconds::new(parse_duration(delay).map_err(error)?));
        Ok(thrown)
    }

    /// No other try would help: the job has failed.
    pub fn fatal(message: &str) -> Failure {
        Thrown::new(FailureClass::Fatal, message)
    }

    /// This machine cannot do it: the job goes to another worker and no attempt is charged.
    pub fn wrong_machine(message: &str) -> Failure {
        Thrown::new(FailureClass::WrongMachine, message)
    }

    /// The connector's account is at fault (no credit, key refused): the job goes back to the queue, no attempt is
    /// charged, and the worker claims nothing until its `check` holds again. Where that holds all the same, one job is tried
    /// at a time, after pauses of 1 s, each time twice as long, 5 min at most. Where the connector has an account in
    /// `machine.toml`, all workers that share it, on all machines, claim nothing for 30 s; then one job is tried, and only
    /// when that is done do the others go on.
    pub fn account(message: &str) -> Failure {
        Thrown::new(FailureClass::Account, message)
    }
}

/// What the functions for failures make, and `catch (failure)` gets.
#[export_module]
mod properties {
    pub type Failure = super::Thrown;

    /// The text that it was made with.
    #[rhai_fn(get = "message", pure)]
    pub fn failure_message(failure: &mut Failure) -> String {
        failure.0.message.clone()
    }

    /// The text that it was made with.
    #[rhai_fn(name = "to_string", pure)]
    pub fn failure_to_string(failure: &mut Failure) -> String {
        failure.0.message.clone()
    }
}
