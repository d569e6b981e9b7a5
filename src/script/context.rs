use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::base::Name;
use crate::host::Gpu;

/// What scripts see as `m`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MachineContext {
    /// The machine's identifier, the same over restarts.
    pub id: Name,
    /// As the settings say; the name of the directory by default.
    #[serde(rename = "type")]
    pub machine_type: Name,
    /// The pool of workers it belongs to.
    pub pool: Name,
    /// `[machine.labels]` of the settings.
    pub labels: BTreeMap<String, Value>,
    /// `[vars]` of the settings.
    pub vars: Map<String, Value>,
    /// How many workers the settings ask for; one per CPU by default.
    pub workers: u32,
    /// Maps with `index`, `uuid`, `name` and `memory_gb`; empty where there is none.
    pub gpus: Vec<Gpu>,
    /// CPUs that the container may use, a fraction included.
    pub cpus: f64,
    /// Memory that the container may use, in GiB.
    pub memory_gb: f64,
    /// The engine's environment.
    pub env: BTreeMap<String, String>,
    /// Counts committed generations of this life of the engine.
    pub generation: u64,
    /// The path of machinist itself.
    pub engine: PathBuf,
    /// The machine's directory.
    pub dir: PathBuf,
    /// Where the machine may write.
    pub state_dir: PathBuf,
}
