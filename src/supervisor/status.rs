use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{Name, Timestamp};
use crate::host::process::Exit;
use crate::spec::Kind;

/// All services as the supervisor sees them now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// Of the newest spec, or start of all, that it is the outcome of, as [`super::SupervisorHandle`] counts them.
    #[serde(default)]
    pub revision: u64,
    pub services: BTreeMap<Name, Arc<ServiceStatus>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub name: Name,
    pub kind: Kind,
    pub desired: Desired,
    pub state: ServiceState,
    /// Since when it is in this state.
    pub since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Counts the processes this service has had in this life of the engine.
    pub incarnation: u64,
    /// Restarts that nobody asked for.
    pub restarts: u64,
    /// Starts that were not ready in time.
    #[serde(skip_serializing_if = "crate::base::is_default", default)]
    pub late: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_exit: Option<Exit>,
    /// Why it is as it is, for people: what it waits for, what the probe said, why it was given up.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    pub critical: bool,
    /// What keeps it from running although it should: a GPU that is lost.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<String>,
    /// What the service says of itself (`STATUS=` on its notify socket).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub says: Option<String>,
    /// Processes that it left behind and that its spec lets live.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub detached: Vec<u32>,
    /// When its schedule runs it next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_run: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Up,
    Down,
}

/// Up is not ready: a service with a probe is `Starting` until the probe holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not running, and not meant to.
    Stopped,
    /// Waits for what it needs.
    Waiting,
    /// Its process runs and is not ready yet; for a oneshot: it runs.
    Starting,
    Ready,
    /// Was ready, and its readiness probe fails now.
    Unready,
    /// Told to stop, its processes not all gone yet.
    Stopping,
    /// Failed, and waits for its next start.
    Backoff,
    /// Failed three times or more, and waits for its next start.
    CrashLoop,
    /// A oneshot that has ended with success.
    Completed,
    /// Given up: too many restarts, or a oneshot that failed.
    Failed,
}

impl ServiceState {
    /// What waits for it may go on: it is ready, or a oneshot that has completed.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Completed)
    }

    pub const ALL: [Self; 10] = [
        Self::Stopped,
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::Unready,
        Self::Stopping,
        Self::Backoff,
        Self::CrashLoop,
        Self::Completed,
        Self::Failed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::CrashLoop => "crash_loop",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
