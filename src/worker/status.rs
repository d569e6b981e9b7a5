use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{Name, Timestamp, is_default};
use crate::queue::{JobId, Progress};

/// A worker as it publishes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    pub name: Name,
    pub connector: Name,
    /// What it shares with all workers that use the same key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub account: Option<Name>,
    pub slots: u32,
    pub state: WorkerState,
    /// Why it does not claim, when it does not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// How many models jobs may ask for, whoever named them.
    #[serde(skip_serializing_if = "is_default", default)]
    pub models: usize,
    /// What the backend says that it has, where the connector asks it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inventory: Option<InventoryStatus>,
    pub running: Vec<RunningJob>,
    pub completed: u64,
    pub failed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Services it needs are not ready, or its backend has not told yet what it has.
    Waiting,
    /// The connector's check fails, or its jobs do, or are refused, although it holds.
    NotReady,
    /// The account that it shares with others is held: nobody claims with it.
    Held,
    /// Claims, or waits for jobs.
    Active,
    /// Cannot reach the queue; running jobs go on.
    Disconnected,
    /// Claims no more; finishes what it runs.
    Draining,
    Stopped,
}

/// For people; JSON has a word of its own.
impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::NotReady => "not ready",
            Self::Held => "held",
            Self::Active => "active",
            Self::Disconnected => "disconnected",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryStatus {
    /// When it was told last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at: Option<Timestamp>,
    /// How many models were told then.
    pub models: usize,
    /// Why the latest question had no answer; what was told before holds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunningJob {
    pub id: JobId,
    pub since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub progress: Option<Progress>,
}
