use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::{Name, Timestamp};

/// What a machine says of itself to all.
#[derive(Clone, Debug)]
pub struct Word {
    pub machine: Name,
    /// For how long it counts as present without another word; zero: it takes leave.
    pub presence: Duration,
    /// JSON, for whoever listens.
    pub message: String,
    /// JSON, kept for a day: the machine's entry in the list of all.
    pub summary: String,
}

/// A machine that is on the queue, or was.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownMachine {
    pub id: Name,
    pub presence: Presence,
    /// When it spoke last.
    pub said: Timestamp,
    /// Until when it counts as present, or since when it does not.
    pub until: Timestamp,
    /// Of its last word.
    pub summary: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    Present,
    /// It took leave.
    Left,
    /// It has not been heard of for longer than it said.
    Lost,
}
