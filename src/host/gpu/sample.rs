use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Timestamp;

/// An NVIDIA GPU that this process may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    pub memory_gb: f64,
}

/// What a GPU said of itself at one time. What its kind does not tell is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuSample {
    /// Share of time in which a kernel ran, of 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub utilization: Option<f64>,
    /// Share of time in which its memory was read or written, of 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_utilization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub temperature_celsius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power_watts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power_limit_watts: Option<f64>,
    /// Since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_joules: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sm_clock_hertz: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_clock_hertz: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pcie_replays: Option<u64>,
    /// Why its clocks are lower than they could be; empty where nothing lowers them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttle: Option<Vec<Throttle>>,
    /// Errors of memory since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ecc: Option<EccErrors>,
    /// Errors of memory in its whole life.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ecc_lifetime: Option<EccErrors>,
    /// Processes that have memory on it, as far as the driver shows those of other containers.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub processes: Vec<GpuProcess>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EccErrors {
    pub corrected: u64,
    pub uncorrected: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuProcess {
    pub pid: u32,
    pub memory_bytes: u64,
}

/// Why clocks are held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// Nothing runs.
    Idle,
    /// As somebody set them.
    Setting,
    /// The power limit.
    PowerCap,
    /// Temperature, by the driver.
    Thermal,
    /// Temperature, by the hardware.
    HardwareThermal,
    /// The power supply.
    PowerBrake,
    /// Temperature or power, by the hardware.
    HardwareSlowdown,
    /// Another GPU that it is in step with.
    SyncBoost,
}

impl Throttle {
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Setting,
        Self::PowerCap,
        Self::Thermal,
        Self::HardwareThermal,
        Self::PowerBrake,
        Self::HardwareSlowdown,
        Self::SyncBoost,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Setting => "setting",
            Self::PowerCap => "power_cap",
            Self::Thermal => "thermal",
            Self::HardwareThermal => "hardware_thermal",
            Self::PowerBrake => "power_brake",
            Self::HardwareSlowdown => "hardware_slowdown",
            Self::SyncBoost => "sync_boost",
        }
    }
}

/// What one look at one GPU came to: its sample, or why it does not answer.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuReading {
    pub gpu: Gpu,
    pub outcome: Result<GpuSample, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuState {
    Ok,
    /// It answers, and gets no jobs for a while after an error.
    Withheld,
    /// It does not answer any more.
    Lost,
}

impl GpuState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Withheld => "withheld",
            Self::Lost => "lost",
        }
    }
}

/// What is known of one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuStatus {
    #[serde(flatten)]
    pub gpu: Gpu,
    pub state: GpuState,
    /// Why it is not ok.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The latest Xid error, the driver's word for what went wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_xid: Option<u64>,
    /// How many Xid errors of each code there were in this life of the engine.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub xids: BTreeMap<u64, u64>,
    /// When the sample was taken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sampled: Option<Timestamp>,
    /// None while the GPU is lost, and while nothing new is heard of any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sample: Option<GpuSample>,
}

/// What is known of all GPUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpusStatus {
    pub gpus: Vec<GpuStatus>,
    /// Why nothing new is heard: the driver hangs, or there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub silent: Option<String>,
    /// A driver is there and is looked at.
    pub sampling: bool,
}
