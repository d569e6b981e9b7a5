use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use crate::base::{ByteSize, Seconds};

/// What a service's whole process tree may use. Where the engine may write cgroups the kernel enforces it; everywhere else
/// the tree is measured, and a service over its limit for `period` is drained and restarted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    pub memory: Option<ByteSize>,
    /// In cores: 1.5 is one and a half.
    pub cpu: Option<f64>,
    /// Processes and threads; enforced by a cgroup only.
    pub pids: Option<u32>,
    /// How long a measured tree may be over its limit. Default 30 s.
    pub period: Seconds,
    /// False only measures, even where cgroups may be written. Default true.
    pub cgroup: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: None, cpu: None, pids: None, period: Seconds::from_secs(30), cgroup: true }
    }
}

impl Limits {
    pub const fn any(&self) -> bool {
        self.memory.is_some() || self.cpu.is_some() || self.pids.is_some()
    }

    pub(super) fn read(path: String, value: &Value) -> (Self, Vec<FieldProblem>) {
        let usual = Self::default();
        let mut fields = match Fields::new(path, value) {
            Err(problem) => return (usual, vec![problem]),
            Ok(fields) => fields,
        };
        let limits = Self {
            memory: fields.optional("memory"),
            cpu: fields.optional("cpu"),
            pids: fields.optional("pids"),
            period: fields.optional("period").unwrap_or(usual.period),
            cgroup: fields.optional("cgroup").unwrap_or(true),
        };
        if limits.memory.is_some_and(|memory| memory.bytes() < 1024 * 1024) {
            fields.wrong("memory", "must be at least 1 MiB; write \"2GiB\"");
        }
        if limits.cpu.is_some_and(|cpu| !(0.01..=10_000.0).contains(&cpu)) {
            fields.wrong("cpu", "is a number of cores, at least 0.01");
        }
        if limits.pids == Some(0) {
            fields.wrong("pids", "must be at least 1");
        }
        (limits, fields.finish())
    }
}

/// How a process is set up before its program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSetup {
    /// Name or number.
    pub user: Option<String>,
    pub group: Option<String>,
    pub umask: Option<u32>,
    /// -20 to 19.
    pub nice: Option<i32>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    pub rlimits: BTreeMap<Rlimit, RlimitValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rlimit {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Nofile,
    Nproc,
    Stack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitValue {
    pub soft: u64,
    pub hard: u64,
}

impl ProcessSetup {
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let text = |value: &Value| match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) if number.as_u64().is_some_and(|id| u32::try_from(id).is_ok()) => {
                Some(number.to_string())
            }
            _ => None,
        };
        let mut id = |key: &'static str| {
            let value = fields.raw(key)?;
            let read = text(value);
            if read.is_none() {
                fields.wrong(key, "expected a name or a number");
            }
            read
        };
        let (user, group) = (id("user"), id("group"));
        let umask = match fields.raw("umask") {
            None => None,
            Some(Value::String(octal)) => {
                u32::from_str_radix(octal.trim_start_matches("0o"), 8).ok().or(Some(u32::MAX))
            }
            Some(value) => value.as_u64().and_then(|mask| u32::try_from(mask).ok()).or(Some(u32::MAX)),
        };
        if umask.is_some_and(|mask| mask > 0o777) {
            fields.wrong("umask", "expected octal digits in quotes, e.g. \"027\"");
        }
        let nice = fields.optional::<i32>("nice");
        if nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            fields.wrong("nice", "must lie between -20 and 19");
        }
        let oom_score_adj = fields.optional::<i32>("oom_score_adj");
        if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            fields.wrong("oom_score_adj", "must lie between -1000 and 1000");
        }
        let mut rlimits = BTreeMap::new();
        for (limit, value) in fields.or_default::<BTreeMap<Rlimit, Value>>("rlimits") {
            match rlimit_value(&value) {
                Some(value) if value.soft <= value.hard => drop(rlimits.insert(limit, value)),
                _ => fields.wrong(
                    "rlimits",
                    "expected a number, \"unlimited\" or #{ soft: .., hard: .. } with soft at most hard",
                ),
            }
        }
        Self { user, group, umask, nice, oom_score_adj, rlimits }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn rlimit_value(value: &Value) -> Option<RlimitValue> {
    let one = |value: &Value| match value {
        Value::String(text) if text == "unlimited" => Some(u64::MAX),
        other => other.as_u64(),
    };
    if let Some(map) = value.as_object() {
        if map.keys().any(|key| !matches!(key.as_str(), "soft" | "hard")) {
            return None;
        }
        let hard = map.get("hard").map_or(Some(u64::MAX), one)?;
        return Some(RlimitValue { soft: one(map.get("soft")?)?, hard });
    }
    one(value).map(|both| RlimitValue { soft: both, hard: both })
}
