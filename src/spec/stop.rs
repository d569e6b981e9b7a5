use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::Seconds;

/// How a service is stopped: the drain hook, then the signal to its process group, then, after the grace period, SIGKILL
/// to all that is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// Default TERM.
    pub signal: StopSignal,
    /// From the signal to SIGKILL. Default 30 s.
    pub grace: Seconds,
    /// What is run before the signal.
    pub drain: Option<Drain>,
    /// Among services that do not need each other, those with lower numbers are stopped first. Default 0.
    pub order: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    #[serde(flatten)]
    pub target: DrainTarget,
    /// The signal is sent after so long, whatever the hook does. Default 30 s.
    pub timeout: Seconds,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainTarget {
    /// This program is run in the service's environment, with its pid in `$MACHINIST_PID`.
    Exec(Vec<String>),
    /// This function of the machine's script is called with `m` and the service's name.
    Script(String),
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
        Self { signal: StopSignal::Term, grace: Seconds::from_secs(30), drain: None, order: 0 }
    }
}

impl Stop {
    pub(super) fn read(path: &str, value: &Value) -> (Self, Vec<FieldProblem>) {
        let usual = Self::default();
        let mut fields = match Fields::new(format!("{path}, stop"), value) {
            Err(problem) => return (usual, vec![problem]),
            Ok(fields) => fields,
        };
        let mut problems = Vec::new();
        let mut drain = None;
        if let Some(value) = fields.raw("drain") {
            let (read, found) = Drain::read(format!("{path}, stop, drain"), value);
            drain = read;
            problems = found;
        }
        let stop = Self {
            signal: fields.optional("signal").unwrap_or(usual.signal),
            grace: fields.optional("grace").unwrap_or(usual.grace),
            drain,
            order: fields.or_default("order"),
        };
        fields.report_all(problems);
        (stop, fields.finish())
    }
}

impl Drain {
    fn read(path: String, value: &Value) -> (Option<Self>, Vec<FieldProblem>) {
        let mut fields = match Fields::new(path, value) {
            Err(problem) => return (None, vec![problem]),
            Ok(fields) => fields,
        };
        let exec = fields.optional::<Vec<String>>("exec");
        let script = fields.optional::<String>("script");
        let timeout = fields.optional("timeout").unwrap_or(Seconds::from_secs(30));
        let target = match (exec, script) {
            (Some(argv), None) if !argv.is_empty() => Some(DrainTarget::Exec(argv)),
            (None, Some(function)) => Some(DrainTarget::Script(function)),
            _ => {
                let problem = FieldProblem::new(fields.path(), "a drain hook has one target")
                    .help("write exec: [\"program\", \"argument\"] or script: \"function\"");
                fields.report(problem);
                None
            }
        };
        (target.map(|target| Self { target, timeout }), fields.finish())
    }
}
