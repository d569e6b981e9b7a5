//! `time::` and `sleep`.

use std::time::Duration;

use crate::base::parse_duration;
use crate::script::call::{Call, ScriptResult, error};
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// What `sleep` is made of; it replaces the stock one, which nothing can interrupt.
pub(super) fn words() -> Module {
    exported_module!(waiting)
}

/// The clock.
#[export_module]
mod functions {
    /// The time now in UTC, in RFC 3339: `"2026-01-31T09:00:00.000Z"`.
    #[rhai_fn(return_raw)]
    pub fn now() -> ScriptResult<String> {
        Ok(Call::current()?.timestamp().to_string())
    }

    /// The time now in milliseconds since 1970 in UTC.
    #[rhai_fn(return_raw)]
    pub fn now_ms() -> ScriptResult<i64> {
        Ok(i64::try_from(Call::current()?.timestamp().as_millis()).unwrap_or(i64::MAX))
    }
}

/// Waits. It ends early, with an error that cannot be caught, when the call is cancelled or its time is over.
#[export_module]
mod waiting {
    /// Waits for so many seconds: `sleep(0.5)`. Less than nothing is nothing.
    #[rhai_fn(return_raw)]
    pub fn sleep(seconds: f64) -> ScriptResult<()> {
        wait(Duration::try_from_secs_f64(seconds.max(0.0)))
    }

    /// Waits for so many seconds.
    #[rhai_fn(name = "sleep", return_raw)]
    pub fn sleep_whole(seconds: i64) -> ScriptResult<()> {
        wait(Ok::<_, String>(Duration::from_secs(seconds.max(0).unsigned_abs())))
    }

    /// Waits for a time such as `"200ms"`, `"1.5s"` or `"2m"`. Fails where the text is no duration.
    #[rhai_fn(name = "sleep", return_raw)]
    pub fn sleep_text(duration: &str) -> ScriptResult<()> {
        wait(parse_duration(duration))
    }
}

fn wait<E: ToString>(duration: Result<Duration, E>) -> ScriptResult<()> {
    let duration = duration.map_err(|cause| error(cause.to_string()))?;
    Call::current()?.sleep(duration)
}
