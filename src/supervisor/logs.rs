use serde::{Deserialize, Serialize};

use crate::base::{Name, Timestamp};

/// One line that a service wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Grows within a service; the cursor for following.
    pub seq: u64,
    pub at: Timestamp,
    pub service: Name,
    pub incarnation: u64,
    pub stream: LogStream,
    /// Without its line end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}
