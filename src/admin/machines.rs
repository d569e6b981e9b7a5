use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::server::AdminDeps;
use crate::base::{Name, Timestamp};
use crate::queue::{KnownMachine, Presence};

/// A machine's last word in short, as it is kept on the queue. Machines of other versions write it too: what one cannot say
/// is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MachineSummary {
    #[serde(rename = "type")]
    pub machine_type: String,
    pub pool: String,
    /// As in `/status`.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why it is in this state, for people; of one that has left, why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub version: String,
    /// Counts the lives of the engine on its state directory.
    pub incarnation: u64,
    pub generation: u64,
    /// Jobs that run on it.
    pub jobs: u64,
    /// Jobs that it may run at once.
    pub slots: u64,
    pub services: u64,
    /// Services that should be up and are not.
    pub services_down: u64,
    /// Workers that claim nothing, and why: their state, and the reason; 50 at most.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub not_claiming: BTreeMap<Name, String>,
    /// Of one that has left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

/// A machine that is on the queue, or was within a day.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Listed {
    id: Name,
    presence: Presence,
    /// When it spoke last.
    said: Timestamp,
    /// Until when it counts as present, or since when it does not.
    until: Timestamp,
    #[serde(flatten)]
    summary: MachineSummary,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Machines {
    machines: Vec<Listed>,
}

pub(super) async fn list(State(deps): State<AdminDeps>) -> Result<Json<Machines>, ApiError> {
    let listed = |machine: KnownMachine| {
        let KnownMachine { id, presence, said, until, summary } = machine;
        // One that another version wrote in another way is shown by its name.
        let summary = serde_json::from_value(summary).unwrap_or_default();
        Listed { id, presence, said, until, summary }
    };
    Ok(Json(Machines { machines: deps.broker.machines().await?.into_iter().map(listed).collect() }))
}
