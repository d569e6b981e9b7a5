use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::Name;

/// What a worker can do now. Two workers with equal capabilities have the same profile and match the same jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// The job services it takes, usually its connector's name.
    pub services: BTreeSet<Name>,
    pub machine_type: Name,
    /// The machine's id, for jobs pinned to it.
    pub machine: Name,
    /// The worker's name, for jobs pinned to it.
    pub worker: Name,
    pub pool: Name,
    #[serde(default)]
    pub hardware: Hardware,
    #[serde(default)]
    pub models: BTreeSet<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, Value>,
    /// Customers it must never serve, whatever a job says.
    #[serde(default)]
    pub deny_customers: BTreeSet<String>,
    /// When not empty, the only customers it serves; jobs without a customer are refused too.
    #[serde(default)]
    pub allow_customers: BTreeSet<String>,
    /// What it shares with all that use the same key at the same provider. It changes when a job may be claimed, never
    /// which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hardware {
    /// Memory of the smallest GPU the worker may use, in GiB.
    pub gpu_memory_gb: f64,
    pub gpu_count: u32,
    pub ram_gb: f64,
    pub cpu_cores: f64,
}
