//! `metrics::`: what scripts count, for whoever watches the fleet.

use crate::script::call::{Call, ScriptResult, error};
use crate::script::data::kind_of;
use crate::script::options::{self, scalar};
use crate::script::prelude::*;
use crate::script::testing;
use crate::telemetry::script_metrics::{Change, change};

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Metrics at `/metrics`. `machinist_script_` is put before every name; names and labels are made of `a-z`, `0-9` and `_`.
/// A name belongs to one kind of metric. There is room for 1,000 series of all scripts together, each name with each set of
/// labels being one: those beyond are dropped and counted in `machinist_script_metrics_dropped_total`. Never put a job's id
/// into a label. A series that was not touched for an hour ends.
#[export_module]
mod functions {
    /// Counts one more: `metrics::count("images_total")`.
    #[rhai_fn(return_raw)]
    pub fn count(name: &str) -> ScriptResult<()> {
        act(name, Map::new(), Change::Count(1))
    }

    /// Counts `n` more.
    #[rhai_fn(name = "count", return_raw)]
    pub fn count_by(name: &str, n: i64) -> ScriptResult<()> {
        act(name, Map::new(), counted(n)?)
    }

    /// Counts `n` more with labels: `metrics::count("images_total", 4, #{ model: "sdxl" })`.
    #[rhai_fn(name = "count", return_raw)]
    pub fn count_with(name: &str, n: i64, labels: Map) -> ScriptResult<()> {
        act(name, labels, counted(n)?)
    }

    /// Says how much it is now: `metrics::gauge("models_loaded", 3)`.
    #[rhai_fn(return_raw)]
    pub fn gauge(name: &str, value: Dynamic) -> ScriptResult<()> {
        act(name, Map::new(), Change::Gauge(number(&value)?))
    }

    /// Says how much it is now, with labels.
    #[rhai_fn(name = "gauge", return_raw)]
    pub fn gauge_with(name: &str, value: Dynamic, labels: Map) -> ScriptResult<()> {
        act(name, labels, Change::Gauge(number(&value)?))
    }

    /// Adds a value to a distribution, usually of seconds: `metrics::observe("load_seconds", 2.5)`. Its buckets reach from
    /// 5 ms to an hour.
    #[rhai_fn(return_raw)]
    pub fn observe(name: &str, value: Dynamic) -> ScriptResult<()> {
        act(name, Map::new(), Change::Observe(number(&value)?))
    }

    /// Adds a value to a distribution, with labels.
    #[rhai_fn(name = "observe", return_raw)]
    pub fn observe_with(name: &str, value: Dynamic, labels: Map) -> ScriptResult<()> {
        act(name, labels, Change::Observe(number(&value)?))
    }
}

fn act(name: &str, labels: Map, what: Change) -> ScriptResult<()> {
    let call = Call::current()?;
    let label = |(name, value): (rhai::Identifier, Dynamic)| {
        let text = scalar(&value).ok_or_else(|| error(format!("metrics: label {name} must be a text or a number")))?;
        Ok((name.to_string(), text))
    };
    let labels = labels.into_iter().map(label).collect::<ScriptResult<Vec<_>>>()?;
    if call.is_made_up() {
        testing::measured(name, &labels, &what);
        return Ok(());
    }
    change(name, labels, what).map_err(|why| error(format!("metrics: {why}")))
}

fn counted(n: i64) -> ScriptResult<Change> {
    u64::try_from(n).map(Change::Count).map_err(|_| error("metrics::count: a counter only goes up"))
}

fn number(value: &Dynamic) -> ScriptResult<f64> {
    options::number(value)
        .ok_or_else(|| error(format!("metrics: the value must be a number, found {}", kind_of(value))))
}
