use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Hardware;
use crate::base::{Name, is_default};

/// What a job asks of the worker that runs it, beside its service. The default asks for nothing.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Requirement {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Minimums; a zero asks for nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub hardware: Hardware,
    /// All of these are there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub models: BTreeSet<String>,
    /// Each label passes its test.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, LabelTest>,
    /// No worker for which any of these tests passes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exclude: BTreeMap<String, LabelTest>,
    /// Only this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Name>,
    /// A Rhai expression over the worker's capabilities that must be true, for what the other clauses cannot say:
    /// `labels.tier > 2 && models.contains("sdxl")`. It knows `services`, `machine_type`, `machine`, `worker`, `pool`,
    /// `hardware`, `models` and `labels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Only workers of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Name>,
}

impl Requirement {
    /// Of a model, a label: 1 to so many bytes.
    pub const MAX_NAME: usize = 256;
}

/// A test of one label's value. A label that is absent passes none of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LabelTest {
    Equals(Value),
    AnyOf(Vec<Value>),
    AtLeast(f64),
    /// `true`: the label is there; `false`: it is not.
    Exists(bool),
}
