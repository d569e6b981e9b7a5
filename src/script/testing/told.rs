//! What scripts tell, written down instead of told.

use serde_json::Value;

use super::world::record;
use crate::script::call::ScriptResult;
use crate::script::prelude::*;
use crate::telemetry::Level;
use crate::telemetry::script_metrics::Change;

pub(in crate::script) fn emitted(name: &str, message: &str, data: Value) -> ScriptResult<()> {
    let data = rhai::serde::to_dynamic(data)?;
    record("events", map([("name", name.into()), ("message", message.into()), ("data", data)]));
    Ok(())
}

pub(in crate::script) fn measured(name: &str, labels: &[(String, String)], what: &Change) {
    let labels: Map = labels.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let (kind, value): (&str, Dynamic) = match what {
        Change::Count(by) => ("count", i64::try_from(*by).unwrap_or(i64::MAX).into()),
        Change::Gauge(value) => ("gauge", (*value).into()),
        Change::Observe(value) => ("observe", (*value).into()),
    };
    record("metrics", map([("kind", kind.into()), ("name", name.into()), ("value", value), ("labels", labels.into())]));
}

pub(in crate::script) fn logged(level: Option<Level>, text: &str) {
    let level = match level {
        None => "debug",
        Some(Level::Info) => "info",
        Some(Level::Warn) => "warn",
        Some(Level::Error) => "error",
    };
    record("log", map([("level", level.into()), ("text", text.into())]));
}

pub(super) fn map<const N: usize>(fields: [(&str, Dynamic); N]) -> Map {
    fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
}
