use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::{Backoff, Seconds};

/// What happens when a service's process ends without having been told to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restart {
    pub mode: RestartMode,
    /// Waits between restarts. The first restart of a service that was up for `healthy_after` waits for nothing.
    pub backoff: Backoff,
    /// Up and ready so long, a service has its earlier failures forgotten. Default 10 s.
    pub healthy_after: Seconds,
    /// More than `limit` restarts within `window` and the engine gives the service up. Defaults: 10 in 10 minutes.
    pub limit: u32,
    pub window: Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub fn new(mode: RestartMode) -> Self {
        Self {
            mode,
            backoff: Backoff::default(),
            healthy_after: Seconds::from_secs(10),
            limit: 10,
            window: Seconds::from_secs(600),
        }
    }

    /// `"always"`, `"on_failure"`, `"never"`, or a map with `mode`, `initial`, `max`, `factor`, `jitter`,
    /// `healthy_after`, `limit` and `window`.
    pub(super) fn read(path: &str, value: &Value, default: RestartMode) -> (Self, Vec<FieldProblem>) {
        let mut restart = Self::new(default);
        if value.is_string() {
            let mode = RestartMode::deserialize(value);
            let problems = mode.as_ref().err().map(|cause| {
                FieldProblem::new(path, format!("\"restart\": {cause}")).token(value.as_str().unwrap_or_default())
            });
            restart.mode = mode.unwrap_or(default);
            return (restart, problems.into_iter().collect());
        }
        let mut fields = match Fields::new(format!("{path}, restart"), value) {
            Ok(fields) => fields,
            Err(problem) => return (restart, vec![problem]),
        };
        restart.mode = fields.optional("mode").unwrap_or(default);
        let usual = restart.backoff;
        restart.backoff = Backoff {
            initial: fields.optional("initial").unwrap_or(usual.initial),
            max: fields.optional("max").unwrap_or(usual.max),
            factor: fields.optional("factor").unwrap_or(usual.factor),
            jitter: fields.optional("jitter").unwrap_or(usual.jitter),
        };
        restart.healthy_after = fields.optional("healthy_after").unwrap_or(restart.healthy_after);
        restart.limit = fields.optional("limit").unwrap_or(restart.limit);
        restart.window = fields.optional("window").unwrap_or(restart.window);
        if !(1.0..=100.0).contains(&restart.backoff.factor) {
            fields.wrong("factor", "must lie between 1 and 100");
        }
        if !(0.0..=1.0).contains(&restart.backoff.jitter) {
            fields.wrong("jitter", "must lie between 0 and 1");
        }
        (restart, fields.finish())
    }
}
