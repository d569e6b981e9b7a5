use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::Seconds;

/// How a service is stopped: the signal to its process group, then, after the grace period, SIGKILL to all that is left of
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Default TERM.
    pub signal: StopSignal,
    /// Default 30 s.
    pub grace: Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: StopSignal::Term, grace: Seconds::from_secs(30) }
    }
}

impl Stop {
    pub(super) fn read(path: &str, value: &Value) -> (Self, Vec<FieldProblem>) {
        let usual = Self::default();
        match Fields::new(format!("{path}, stop"), value) {
            Err(problem) => (usual, vec![problem]),
            Ok(mut fields) => {
                let stop = Self {
                    signal: fields.optional("signal").unwrap_or(usual.signal),
                    grace: fields.optional("grace").unwrap_or(usual.grace),
                };
                (stop, fields.finish())
            }
        }
    }
}
