use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::base::Name;
use crate::host::Gpu;

/// What scripts see as `m`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineContext {
    pub id: Name,
    #[serde(rename = "type")]
    pub machine_type: Name,
    pub pool: Name,
    pub labels: BTreeMap<String, Value>,
    pub vars: Map<String, Value>,
    /// How many workers the settings ask for; one per CPU by default.
    pub workers: u32,
    pub gpus: Vec<Gpu>,
    pub cpus: f64,
    pub memory_gb: f64,
    pub env: BTreeMap<String, String>,
    /// Counts committed generations of this life of the engine.
    pub generation: u64,
    /// The path of machinist itself.
    pub engine: PathBuf,
    /// The machine's directory.
    pub dir: PathBuf,
    pub state_dir: PathBuf,
}
