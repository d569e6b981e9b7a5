use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Timestamp;

/// Who must act: `Error` someone now, `Warn` someone at working hours, `Info` nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// One entry of the machine's event log.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts from 1 without gaps within one life of the engine; the cursor of `/events`.
    pub seq: u64,
    pub at: Timestamp,
    pub level: Level,
    /// Dotted, for example `service.exited`.
    pub kind: String,
    /// The service, worker, connector or job it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// One sentence for people.
    pub message: String,
    /// The same for programs: the event's own fields.
    #[serde(skip_serializing_if = "serde_json::Value::is_null", default)]
    pub data: serde_json::Value,
}

/// Something worth knowing that happened. One type per kind of event; [`super::EventLog::emit`] makes the log line, the
/// metric and the entry of the event log from it, so that the three never disagree.
pub trait Observed: Serialize {
    /// Dotted and stable: scripts and alert rules match on it.
    const KIND: &'static str;

    fn level(&self) -> Level {
        Level::Info
    }

    /// The service, worker, connector or job it is about.
    fn subject(&self) -> Option<String> {
        None
    }

    /// One sentence for people, without a full stop.
    fn message(&self) -> String;

    /// Counts it. Labels are bounded: never a job id.
    fn record(&self) {}
}
