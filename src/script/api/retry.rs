//! `retry` and `poll`: again and again, within the call's time.

use std::time::Duration;

use rhai::{Array, EvalAltResult, FnPtr};

use super::Thrown;
use crate::base::{Backoff, Seconds};
use crate::queue::FailureClass;
use crate::script::call::{Call, ScriptResult, thrown};
use crate::script::options::Options;
use crate::script::prelude::*;
use crate::script::types::HostError;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Trying until something works, asking until something is there. Both wait no longer than the call may run, and end at once
/// when it is cancelled.
#[export_module]
mod functions {
    /// Calls `body` until it does not throw, three times at most, and gives back what it gives back:
    /// `retry(|| http::post(url, #{ json: x, retry: #{ max: 0 } }))`. Throws what the last try threw.
    ///
    /// Tried again is what another time may be different: errors of the network and of servers that are `retryable`, what
    /// was thrown by `retryable`, `retry_after` or `rate_limited`, and thrown texts. Mistakes of the script (an unknown function, a missing property) and
    /// `fatal`, `wrong_machine` and `account` are not. Where the error says how long to wait, it is waited so long.
    #[rhai_fn(return_raw)]
    pub fn retry(context: NativeCallContext<'_>, body: FnPtr) -> ScriptResult<Dynamic> {
        run_retry(&context, Map::new(), &body)
    }

    /// As `retry(body)`: `retry(#{ max: 5, initial: "2s" }, || ...)`.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `max` | tries, the first included | 3 |
    /// | `initial` | the wait before the second try; each further one is twice as long | `"500ms"` |
    /// | `max_delay` | no wait is longer, those that errors ask for included | `"30s"` |
    /// | `jitter` | how much of a wait chance may take away, from 0.0 to 1.0 | 0.2 |
    /// | `on` | kinds of errors (`e.kind`) that are tried again, instead of those above: `["connect", "timeout"]` | see above |
    #[rhai_fn(name = "retry", return_raw)]
    pub fn retry_with(context: NativeCallContext<'_>, options: Map, body: FnPtr) -> ScriptResult<Dynamic> {
        run_retry(&context, options, &body)
    }

    /// Calls `body` every second until it gives back something other than `()` and `false`, and gives that back:
    /// `poll(|| { let r = http::get(url).json(); if r.status == "done" { r } })`. What it throws ends the polling.
    #[rhai_fn(return_raw)]
    pub fn poll(context: NativeCallContext<'_>, body: FnPtr) -> ScriptResult<Dynamic> {
        run_poll(&context, Map::new(), &body)
    }

    /// As `poll(body)`: `poll(#{ every: "500ms", backoff: 1.5, max: "10s", within: "5m" }, || ...)`.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `every` | the wait between two calls | `"1s"` |
    /// | `backoff` | every wait is so many times as long as the one before | 1.0 |
    /// | `max` | no wait is longer | `"30s"` |
    /// | `within` | after so long it fails, with an error of kind `"timeout"` | as long as the call may run |
    #[rhai_fn(name = "poll", return_raw)]
    pub fn poll_with(context: NativeCallContext<'_>, options: Map, body: FnPtr) -> ScriptResult<Dynamic> {
        run_poll(&context, options, &body)
    }
}

fn run_retry(context: &NativeCallContext<'_>, options: Map, body: &FnPtr) -> ScriptResult<Dynamic> {
    let call = Call::current()?;
    let mut options = Options::new("retry", options);
    let max = options.count("max")?.unwrap_or(3).max(1);
    let usual = Backoff::default();
    let backoff = Backoff {
        initial: options.duration("initial")?.map_or(usual.initial, Seconds::new),
        max: options.duration("max_delay")?.map_or(usual.max, Seconds::new),
        factor: 2.0,
        jitter: options.fraction("jitter")?.unwrap_or(usual.jitter),
    };
    let on = options.array("on")?;
    options.finish()?;
    for tries in 1.. {
        let cause = match body.call_within_context::<Dynamic>(context, ()) {
            Ok(value) => return Ok(value),
            Err(cause) => cause,
        };
        let Some(asked) = wait_asked_for(&cause, on.as_ref()) else { return Err(cause) };
        let wait = asked.max(backoff.delay(tries, rand::random())).min(backoff.max.get());
        // The error says more than that the time was over in the middle of a wait.
        if tries >= max || wait >= call.left() {
            return Err(cause);
        }
        call.sleep(wait)?;
    }
    unreachable!("the tries are counted")
}

/// Whether another try may come out otherwise.
fn helps(class: FailureClass) -> bool {
    matches!(class, FailureClass::Retryable | FailureClass::RateLimited)
}

/// The least wait before another try; nothing when that would not help after this error.
fn wait_asked_for(cause: &EvalAltResult, on: Option<&Array>) -> Option<Duration> {
    let value = thrown(cause)?;
    let error = value.read_lock::<HostError>();
    if let Some(on) = on {
        let error = error.as_ref()?;
        let listed = on.iter().any(|kind| kind.read_lock::<ImmutableString>().is_some_and(|kind| *kind == error.kind));
        return listed.then(|| error.retry_after.unwrap_or_default());
    }
    if let Some(error) = error {
        return helps(error.class).then(|| error.retry_after.unwrap_or_default());
    }
    match value.read_lock::<Thrown>() {
        Some(thrown) if helps(thrown.0.class) => Some(thrown.0.retry_after.map(Seconds::get).unwrap_or_default()),
        Some(_) => None,
        None => Some(Duration::ZERO),
    }
}

fn run_poll(context: &NativeCallContext<'_>, options: Map, body: &FnPtr) -> ScriptResult<Dynamic> {
    let call = Call::current()?;
    let mut options = Options::new("poll", options);
    let every = options.duration("every")?.unwrap_or(Duration::from_secs(1));
    let factor = options.number("backoff")?.unwrap_or(1.0);
    let max = options.duration("max")?.unwrap_or(Duration::from_secs(30)).max(every);
    let within = options.duration("within")?;
    options.finish()?;
    let backoff = Backoff { initial: Seconds::new(every), max: Seconds::new(max), factor, jitter: 0.0 };
    let begun = call.now();
    for asked in 1.. {
        let answer = body.call_within_context::<Dynamic>(context, ())?;
        if !answer.is_unit() && answer.as_bool() != Ok(false) {
            return Ok(answer);
        }
        let wait = backoff.delay(asked, 0.0);
        if let Some(within) = within
            && call.now() - begun + wait > within
        {
            let message = format!("nothing was there within {}", humantime::format_duration(within));
            return Err(HostError::new("timeout", FailureClass::Retryable, message).into());
        }
        call.sleep(wait)?;
    }
    unreachable!("a poll ends with an answer or its time")
}
