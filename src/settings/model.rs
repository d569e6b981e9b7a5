use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{RedisAddress, Secret};
use crate::base::{Name, Seconds};
use crate::telemetry::LogFormat;

/// The checked settings. Their meaning and defaults stand in `defaults.toml`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// The machine's directory, absolute.
    pub dir: PathBuf,
    pub state_dir: PathBuf,
    pub scripts_dir: PathBuf,
    pub machine: MachineSettings,
    pub queue: QueueSettings,
    pub blobs: BlobSettings,
    pub http: HttpSettings,
    pub reload: ReloadSettings,
    pub shutdown: ShutdownSettings,
    pub resources: ResourceSettings,
    pub gpu: GpuSettings,
    pub log: LogSettings,
    pub telemetry: TelemetrySettings,
    pub vars: Map<String, Value>,
    pub connectors: BTreeMap<Name, ConnectorSettings>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineSettings {
    /// None: made once and kept in the state directory.
    pub id: Option<Name>,
    #[serde(rename = "type")]
    pub machine_type: Name,
    pub pool: Name,
    pub script: PathBuf,
    /// 0: one per CPU.
    pub workers: u32,
    pub labels: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueSettings {
    pub backend: QueueBackend,
    /// Several queues can share a Redis.
    pub name: Name,
    /// Signs webhooks.
    pub webhook_secret: Option<Secret>,
    pub lease: Seconds,
    pub connect_timeout: Seconds,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueBackend {
    Embedded(PathBuf),
    Redis(RedisAddress),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlobSettings {
    /// None: large payloads are refused.
    pub url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub token: Option<Secret>,
    /// Whoever has the token may have scripts evaluated.
    pub console: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReloadSettings {
    pub debounce: Seconds,
    pub poll: Seconds,
    /// Zero: no edit is rolled back.
    pub probation: Seconds,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShutdownSettings {
    pub grace: Seconds,
}

/// When a resource counts as short: shares of 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResourceSettings {
    pub every: Seconds,
    pub samples: u32,
    pub memory: f64,
    pub disk: f64,
    pub files: f64,
    pub gpu_memory: f64,
    pub hysteresis: f64,
    /// Zero: never.
    pub give_up_after: Seconds,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuSettings {
    /// None: the one that the loader finds.
    pub library: Option<PathBuf>,
    pub every: Seconds,
    /// Zero: no GPU is withheld for an Xid error.
    pub xid_hold: Seconds,
    pub dcgm_names: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogSettings {
    pub format: LogFormat,
    pub level: String,
    pub services: bool,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct TelemetrySettings {
    /// None: traces are handed on, and not exported.
    pub otlp_endpoint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct ConnectorSettings {
    /// None: `connectors/<name>.rhai` in the machine's directory, else in the scripts directory.
    pub script: Option<PathBuf>,
    /// What it shares, over all machines, with every connector that names the same: limits, holds, one try for all.
    pub account: Option<Name>,
    pub vars: Map<String, Value>,
}
