//! `time::now()`, `time::now_ms()`, and `sleep(seconds)` or `sleep("200ms")`.

use std::time::Duration;

use rhai::{Engine, FuncRegistration, Module};

use crate::base::{Timestamp, parse_duration};
use crate::script::call::{Call, ScriptResult, error};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("now").set_into_module(&mut module, || -> ScriptResult<String> {
        Call::current()?;
        Ok(Timestamp::now().to_string())
    });
    FuncRegistration::new("now_ms").set_into_module(&mut module, || -> ScriptResult<i64> {
        Call::current()?;
        Ok(i64::try_from(Timestamp::now().as_millis()).unwrap_or(i64::MAX))
    });
    module
}

/// Replaces the stock `sleep`, which nothing can interrupt.
pub(super) fn register_sleep(engine: &mut Engine) {
    engine.register_fn("sleep", |seconds: f64| sleep(Duration::try_from_secs_f64(seconds.max(0.0))));
    engine.register_fn("sleep", |seconds: i64| {
        sleep(Ok::<_, String>(Duration::from_secs(seconds.max(0).unsigned_abs())))
    });
    engine.register_fn("sleep", |text: &str| sleep(parse_duration(text)));
}

fn sleep<E: ToString>(duration: Result<Duration, E>) -> ScriptResult<()> {
    let duration = duration.map_err(|cause| error(cause.to_string()))?;
    Call::current()?.sleep(duration)
}
