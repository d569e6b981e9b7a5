use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::plan::ReloadPlan;
use crate::base::{Name, Problems, Timestamp};
use crate::host::{GpusStatus, Level};
use crate::queue::QueueStats;
use crate::script::{MachineContext, MachineProgram};
use crate::spec::Hardware;
use crate::supervisor::ServiceStatus;
use crate::worker::WorkerStatus;

/// `/status`: everything about one machine, from published state only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStatus {
    pub machine: MachineIdentity,
    pub state: MachineState,
    pub since: Timestamp,
    /// Why it is in this state, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// All start-up steps are done: the machine may serve.
    pub started: bool,
    pub startup: Vec<StartupStep>,
    pub generation: GenerationStatus,
    pub services: BTreeMap<Name, Arc<ServiceStatus>>,
    pub workers: BTreeMap<Name, WorkerStatus>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue: Option<QueueStats>,
    /// What is known of the GPUs, from the latest look.
    #[serde(default)]
    pub gpus: GpusStatus,
    #[serde(default)]
    pub host: HostStatus,
}

/// How the host is, from the latest look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostStatus {
    /// Processes that run or want to, on average over 1, 5 and 15 minutes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<[f64; 3]>,
    /// How much of memory, disk, file descriptors and GPU memory is in use: of the container where it is limited.
    pub levels: Vec<Level>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MachineIdentity {
    pub id: Name,
    #[serde(rename = "type")]
    pub machine_type: Name,
    pub pool: Name,
    pub labels: BTreeMap<String, Value>,
    /// Counts the lives of the engine on this state directory.
    pub incarnation: u64,
    pub version: String,
    pub pid: u32,
    pub started: Timestamp,
    pub hardware: Hardware,
}

/// The states of MISSION E: `Starting` until the first time all is up; `Draining`, `Failed` and `Stopped` are left only
/// forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Starting,
    Healthy,
    /// A service is down and being brought back, or was given up without being critical.
    ServiceFailure,
    /// A service that was down is starting again.
    Restarting,
    /// The queue cannot be reached.
    ConnectionLoss,
    /// The queue cannot be reached, and was tried again.
    Reconnecting,
    /// Memory, disk, file descriptors or GPU memory are short; no jobs are claimed.
    ResourceExhausted,
    /// The script's `recover` hook works on it.
    ResourceRecovery,
    Draining,
    Failed,
    Stopped,
}

impl MachineState {
    pub const ALL: [Self; 11] = [
        Self::Starting,
        Self::Healthy,
        Self::ServiceFailure,
        Self::Restarting,
        Self::ConnectionLoss,
        Self::Reconnecting,
        Self::ResourceExhausted,
        Self::ResourceRecovery,
        Self::Draining,
        Self::Failed,
        Self::Stopped,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::ServiceFailure => "service_failure",
            Self::Restarting => "restarting",
            Self::ConnectionLoss => "connection_loss",
            Self::Reconnecting => "reconnecting",
            Self::ResourceExhausted => "resource_exhausted",
            Self::ResourceRecovery => "resource_recovery",
            Self::Draining => "draining",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StartupStep {
    pub name: String,
    pub state: StepState,
    /// Milliseconds from the engine's start to the step's.
    pub begun_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub took_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Running,
    Done,
    Failed,
}

/// Which version of the machine's files runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerationStatus {
    /// Counts committed generations of this life of the engine, from 1.
    pub number: u64,
    /// SHA-256 over all files of the program.
    pub hash: String,
    pub since: Timestamp,
    pub files: Vec<String>,
    /// Whether it may still be rolled back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probation: Option<ProbationStatus>,
    /// The newest edit that was refused, or rolled back, until one is taken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rejection: Option<Rejection>,
}

/// What a generation has to show before it counts as good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbationStatus {
    pub until: Timestamp,
    /// The generation that would run again.
    pub back_to: u64,
    /// The services that are watched: those that the edit touched, and whoever needs them.
    pub services: Vec<Name>,
    /// The workers whose connector changed.
    pub workers: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rejection {
    pub at: Timestamp,
    /// The number of the generation that was live and is not any more; none when it never was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rolled_back: Option<u64>,
    pub problems: Problems,
}

/// What the HTTP API asks of the machine's event loop.
#[derive(Debug)]
pub enum Control {
    /// Read the machine's files again now; answer when the outcome is live, or only when it has passed its probation.
    Reload { verdict: bool, reply: oneshot::Sender<ControlReply> },
    /// Tell what a reload would do; of the machine's own files, or of those in another directory.
    Plan { dir: Option<PathBuf>, reply: oneshot::Sender<Result<Box<ReloadPlan>, Problems>> },
    /// Only answer, as a loop that turns does.
    Ping(oneshot::Sender<()>),
    /// Drain and exit.
    Drain(oneshot::Sender<ControlReply>),
    /// What a console is opened on; nothing where the settings allow none.
    Console(oneshot::Sender<Result<Option<Box<ConsoleGround>>, Problems>>),
}

/// What a console is opened on: the script that is live, and its `m`.
pub struct ConsoleGround {
    pub program: MachineProgram,
    pub context: MachineContext,
}

impl fmt::Debug for ConsoleGround {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleGround").field("generation", &self.context.generation).finish_non_exhaustive()
    }
}

/// Done with a sentence for people, or refused with the problems.
pub type ControlReply = Result<String, Problems>;
