//! `events::`: what scripts tell, and what happened lately.

use std::time::Instant;

use rhai::Array;
use serde_json::Value;

use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::data::{Secrets, to_json};
use crate::script::options::Options;
use crate::script::prelude::*;
use crate::script::program::Deps;
use crate::script::testing;
use crate::telemetry::{EventLog, Level};

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The machine's event log: what `machinist events`, `/events` and `on_event` see.
#[export_module]
mod functions {
    /// Tells of something: `events::emit("model_loaded", "sdxl is loaded")` makes an event of kind `script.model_loaded`.
    /// A hundred at once and ten a second are kept, of all scripts together; the rest is left out with a warning in the log.
    /// Fails where the name is not made of 1 to 40 of `a-z`, `0-9` and `_`.
    #[rhai_fn(return_raw)]
    pub fn emit(name: &str, message: &str) -> ScriptResult<()> {
        tell(name, message, Map::new())
    }

    /// As `emit(name, message)`.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `level` | who must act: `"info"` nobody, `"warn"` someone at working hours, `"error"` someone now | `"info"` |
    /// | `subject` | the service, worker, connector or job that it is about | none |
    /// | `data` | a map for programs | none |
    #[rhai_fn(name = "emit", return_raw)]
    pub fn emit_with(name: &str, message: &str, options: Map) -> ScriptResult<()> {
        tell(name, message, options)
    }

    /// The latest `n` events, the oldest first, each a map of `seq`, `at`, `level`, `kind`, `subject`, `message`, `data`.
    /// As many as there are where `n` is more.
    #[rhai_fn(return_raw)]
    pub fn recent(n: i64) -> ScriptResult<Array> {
        let call = Call::current()?;
        let World::Real(deps) = call.world() else { return Ok(Array::new()) };
        let events = log(deps)?.recent(usize::try_from(n).unwrap_or(0));
        events.iter().map(|event| rhai::serde::to_dynamic(event.as_ref())).collect()
    }
}

fn log(deps: &Deps) -> ScriptResult<EventLog> {
    deps.config.events.clone().ok_or_else(|| error("there are no events here: no machine runs"))
}

fn tell(name: &str, message: &str, options: Map) -> ScriptResult<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !(1..=40).contains(&name.len()) || !name.chars().all(plain) {
        return Err(error(format!("events::emit: {name:?} cannot name an event: write 1 to 40 of a-z, 0-9 and _")));
    }
    let mut options = Options::new("events::emit", options);
    let level = match options.text("level")?.as_deref() {
        None | Some("info") => Level::Info,
        Some("warn") => Level::Warn,
        Some("error") => Level::Error,
        Some(other) => return Err(options.wrong("level", &format!("is info, warn or error, not {other:?}"))),
    };
    let subject = options.text("subject")?;
    let data = options.map("data")?.map(|data| to_json(&Dynamic::from_map(data), Secrets::Redact));
    let data = data.transpose().map_err(|why| options.wrong("data", &why))?.unwrap_or(Value::Null);
    options.finish()?;
    let call = Call::current()?;
    let World::Real(deps) = call.world() else { return testing::emitted(name, message, data) };
    let log = log(deps)?;
    if deps.may_emit(Instant::now()) {
        log.say(format!("script.{name}"), level, subject, message.to_owned(), data);
    } else {
        tracing::warn!("script: the event script.{name} was left out, there are too many: {message}");
    }
    Ok(())
}
