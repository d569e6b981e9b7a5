use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::diff::needs_new_process;
use super::redact::redact;
use super::{Change, Condition, Diff, MachineSpec, Probe, ProbeTarget, ServiceChange, ServiceSpec, WorkerSpec};
use crate::base::Name;

/// What a machine starts, in waves: a service comes after the waves of all that it waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartPlan {
    pub waves: Vec<Vec<PlannedService>>,
    pub workers: Vec<PlannedWorker>,
}

/// A service as it would be started; secrets are redacted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedService {
    pub name: Name,
    pub kind: String,
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cwd: Option<String>,
    /// What is added to the engine's own environment.
    pub env: BTreeMap<String, String>,
    pub ports: Vec<u16>,
    pub needs: Vec<String>,
    /// What is asked, by the kind of the probe.
    pub probes: BTreeMap<String, String>,
    pub restart: String,
    pub critical: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub schedule: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedWorker {
    pub name: Name,
    pub connector: Name,
    pub slots: u32,
    pub needs: Vec<Name>,
    /// What it can do beyond what the machine can.
    pub capabilities: Map<String, Value>,
}

/// What turning one machine into another takes, in the order in which it is done: what goes, then the rest by waves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChangePlan {
    pub services: Vec<Step>,
    pub workers: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub name: Name,
    pub action: Action,
    /// Counted from 1; none for what goes and for workers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wave: Option<usize>,
    /// The fields that take a new process.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub because: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub fields: Vec<FieldChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Remove,
    Add,
    Restart,
    /// It goes on running.
    Update,
}

/// A field by its path, `env.PORT`; a side that is not there is null. Secrets are redacted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    pub field: String,
    pub old: Value,
    pub new: Value,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Restart => "restart",
            Self::Update => "update",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.name)?;
        if let Some(wave) = self.wave {
            write!(f, " (wave {wave})")?;
        }
        if !self.because.is_empty() {
            write!(f, ", because of {}", self.because.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.field, self.old, self.new)
    }
}

impl StartPlan {
    pub fn of(machine: &MachineSpec) -> Self {
        let waves = waves(machine);
        let mut plan: Vec<Vec<PlannedService>> = vec![Vec::new(); waves.values().copied().max().unwrap_or(0)];
        for service in &machine.services {
            plan[waves[&service.name] - 1].push(PlannedService::of(service));
        }
        Self { waves: plan, workers: machine.workers.iter().map(PlannedWorker::of).collect() }
    }
}

impl PlannedService {
    fn of(service: &ServiceSpec) -> Self {
        let shown = |name: &str, value: &Value| match redact(name, value) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let command = redact("", &Value::from(service.command.clone()));
        let command = command.as_array().into_iter().flatten().map(|argument| shown("", argument)).collect();
        let env = service.env.iter().map(|(name, value)| (name.clone(), shown(name, &Value::from(value.clone()))));
        let probes = [("startup", &service.startup), ("ready", &service.ready), ("live", &service.live)];
        let probes = probes.into_iter().filter_map(|(kind, probe)| Some((kind.to_owned(), describe(probe.as_ref()?))));
        let needs = service.needs.iter().map(|need| match need.condition {
            Condition::Started => format!("{}:started", need.service),
            Condition::Ready => need.service.to_string(),
            Condition::Completed => format!("{}:completed", need.service),
        });
        Self {
            name: service.name.clone(),
            kind: word(&service.kind),
            command,
            cwd: service.cwd.as_ref().map(|cwd| cwd.display().to_string()),
            env: env.collect(),
            ports: service.ports.clone(),
            needs: needs.collect(),
            probes: probes.collect(),
            restart: word(&service.restart.mode),
            critical: service.critical,
            schedule: service.schedule.as_ref().map(word),
        }
    }
}

impl PlannedWorker {
    fn of(worker: &WorkerSpec) -> Self {
        let mut capabilities = Map::new();
        let value = serde_json::to_value(worker).unwrap_or_default();
        for key in ["services", "models", "labels", "hardware", "deny_customers", "allow_customers"] {
            let empty = |value: &Value| match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if let Some(value) = value.get(key).filter(|value| !empty(value)) {
                capabilities.insert(key.to_owned(), redact(key, value));
            }
        }
        Self {
            name: worker.name.clone(),
            connector: worker.connector.clone(),
            slots: worker.slots,
            needs: worker.needs.clone(),
            capabilities,
        }
    }
}

impl ChangePlan {
    pub fn between(old: &MachineSpec, new: &MachineSpec) -> Self {
        let diff = Diff::between(old, new);
        let waves = waves(new);
        let mut services: Vec<Step> = diff
            .services
            .into_iter()
            .map(|(name, change)| {
                let sides = (old.service(&name).map(value_of), new.service(&name).map(value_of));
                let wave = waves.get(&name).copied();
                let (action, because) = match change {
                    ServiceChange::Added => (Action::Add, Vec::new()),
                    ServiceChange::Removed => (Action::Remove, Vec::new()),
                    ServiceChange::Restarted(fields) => {
                        (Action::Restart, fields.into_iter().filter(|field| needs_new_process(field)).collect())
                    }
                    ServiceChange::Updated(_) => (Action::Update, Vec::new()),
                };
                Step { fields: differing(sides), name, action, wave, because }
            })
            .collect();
        services.sort_by_key(|step| (step.action != Action::Remove, step.wave));
        let workers = diff.workers.into_iter().map(|(name, change)| {
            let sides = (old.worker(&name).map(value_of), new.worker(&name).map(value_of));
            let fields = differing(sides);
            let (action, because) = match change {
                Change::Added => (Action::Add, Vec::new()),
                Change::Removed => (Action::Remove, Vec::new()),
                // It finishes its jobs and another one takes its place.
                Change::Changed(fields) if fields.iter().any(|field| field == "connector") => {
                    (Action::Restart, vec!["connector".to_owned()])
                }
                Change::Changed(_) => (Action::Update, Vec::new()),
            };
            Step { fields, name, action, wave: None, because }
        });
        Self { workers: workers.collect(), services }
    }
}

/// The wave of each service, from 1.
fn waves(machine: &MachineSpec) -> BTreeMap<Name, usize> {
    let mut waves: BTreeMap<Name, usize> = BTreeMap::new();
    // A checked machine has no cycle.
    for name in super::start_order(machine).unwrap_or_default() {
        let needs = machine.service(&name).map(|service| service.waits_for(machine)).unwrap_or_default();
        let before = needs.iter().filter_map(|need| waves.get(&need.service)).max().copied().unwrap_or(0);
        waves.insert(name, before + 1);
    }
    waves
}

fn value_of(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A value that is written as one word.
fn word(value: &impl Serialize) -> String {
    match value_of(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn describe(probe: &Probe) -> String {
    let target = match &probe.target {
        ProbeTarget::Http(url) => redact("", &Value::from(url.clone())).as_str().map(|url| format!("GET {url}")),
        ProbeTarget::Tcp(address) => Some(format!("connect to {address}")),
        ProbeTarget::Exec(argv) => Some(format!("run {}", redact("", &Value::from(argv.clone())))),
        ProbeTarget::Log(pattern) => Some(format!("a line that matches {pattern:?}")),
        ProbeTarget::Notify => Some("a word on $NOTIFY_SOCKET".to_owned()),
        ProbeTarget::Script(function) => Some(format!("{function}(m, service)")),
    };
    let within = humantime::format_duration(probe.within.get());
    format!("{}, within {within}", target.unwrap_or_default())
}

/// What differs, by path. Where one side is missing all of the other differs, which says nothing.
fn differing(sides: (Option<Value>, Option<Value>)) -> Vec<FieldChange> {
    let (Some(old), Some(new)) = sides else { return Vec::new() };
    differences("", &old, &new)
}

/// What differs between two values, by path.
pub fn differences(path: &str, old: &Value, new: &Value) -> Vec<FieldChange> {
    if old == new {
        return Vec::new();
    }
    let (Some(old_map), Some(new_map)) = (old.as_object(), new.as_object()) else {
        let name = path.rsplit('.').next().unwrap_or(path);
        return vec![FieldChange { field: path.to_owned(), old: redact(name, old), new: redact(name, new) }];
    };
    let mut keys: Vec<&String> = old_map.keys().chain(new_map.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let inner = keys.into_iter().flat_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let side = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        differences(&path, &side(old_map), &side(new_map))
    });
    inner.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(services: Value, workers: Value) -> MachineSpec {
        MachineSpec::check(services.as_array().unwrap(), workers.as_array().unwrap(), &[]).unwrap()
    }

    #[test]
    fn waves_follow_the_needs_and_secrets_stay_hidden() {
        let machine = spec(
            json!([
                { "name": "web", "command": "x", "needs": ["db", "cache:started"], "env": { "API_KEY": "s3cret" } },
                { "name": "db", "command": ["db", "--password", "s3cret"], "ready": { "tcp": 1 } },
                { "name": "cache", "command": "x" },
                { "name": "fetch", "command": "x", "kind": "setup" },
            ]),
            json!([{ "name": "w", "connector": "command", "slots": 2 }]),
        );
        let plan = StartPlan::of(&machine);
        let names: Vec<Vec<&str>> =
            plan.waves.iter().map(|wave| wave.iter().map(|service| service.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["fetch"], vec!["db", "cache"], vec!["web"]]);
        assert!(!serde_json::to_string(&plan).unwrap().contains("s3cret"));
    }

    #[test]
    fn a_change_names_its_fields_its_reason_and_its_place_in_the_order() {
        let old = spec(
            json!([
                { "name": "db", "command": "x", "env": { "A": "1", "TOKEN": "s3cret" } },
                { "name": "web", "command": "x", "needs": ["db"], "stop": { "grace": "5s" } },
                { "name": "gone", "command": "x" },
            ]),
            json!([{ "name": "w", "connector": "command" }]),
        );
        let new = spec(
            json!([
                { "name": "late", "command": "x", "needs": ["web"] },
                { "name": "web", "command": "x", "needs": ["db"], "stop": { "grace": "6s" } },
                { "name": "db", "command": "x", "env": { "A": "2", "TOKEN": "s3cret too" }, "critical": true },
            ]),
            json!([{ "name": "w", "connector": "command", "slots": 3 }]),
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&ChangePlan::between(&old, &new)).unwrap());
        assert_eq!(ChangePlan::between(&new, &new), ChangePlan::default());
    }
}
