use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::{MachineSpec, ServiceSpec, WorkerSpec};
use crate::base::Name;

/// What turns one generation of a machine into the next. What is equal in all fields appears nowhere and is not touched.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Diff {
    pub services: Vec<(Name, ServiceChange)>,
    pub workers: Vec<(Name, Change)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceChange {
    Added,
    Removed,
    /// These fields differ and take effect only in a new process.
    Restarted(Vec<String>),
    /// Only fields differ that the engine itself acts on; the process lives on.
    Updated(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Added,
    Removed,
    Changed(Vec<String>),
}

/// The services of the new generation that a change may hurt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// A new process is due.
    pub fresh: BTreeSet<Name>,
    /// Updated in place, or they need what is touched, directly or not.
    pub others: BTreeSet<Name>,
}

/// Fields that a running process cannot take over.
const NEEDS_NEW_PROCESS: &[&str] = &[
    "kind",
    "command",
    "cwd",
    "env",
    "env_files",
    "ports",
    "user",
    "group",
    "umask",
    "nice",
    "oom_score_adj",
    "rlimits",
    "limits",
    "detach",
];

/// Whether a running process cannot take this field of its service over.
pub(super) fn needs_new_process(field: &str) -> bool {
    NEEDS_NEW_PROCESS.contains(&field)
}

impl Diff {
    pub fn between(old: &MachineSpec, new: &MachineSpec) -> Self {
        let mut diff = Self::default();
        for service in &old.services {
            if new.service(&service.name).is_none() {
                diff.services.push((service.name.clone(), ServiceChange::Removed));
            }
        }
        for service in &new.services {
            let change = old.service(&service.name).map_or(Some(ServiceChange::Added), |old| changed(old, service));
            diff.services.extend(change.map(|change| (service.name.clone(), change)));
        }
        for worker in &old.workers {
            if new.worker(&worker.name).is_none() {
                diff.workers.push((worker.name.clone(), Change::Removed));
            }
        }
        for worker in &new.workers {
            let change = old.worker(&worker.name).map_or(Some(Change::Added), |old| worker_changed(old, worker));
            diff.workers.extend(change.map(|change| (worker.name.clone(), change)));
        }
        diff
    }

    /// What of `new`, which this diff leads to, it touches.
    pub fn affected(&self, new: &MachineSpec) -> Affected {
        let mut affected = Affected::default();
        for (name, change) in &self.services {
            match change {
                ServiceChange::Added | ServiceChange::Restarted(_) => drop(affected.fresh.insert(name.clone())),
                ServiceChange::Updated(_) => drop(affected.others.insert(name.clone())),
                ServiceChange::Removed => {}
            }
        }
        let mut grown = true;
        while grown {
            grown = false;
            for service in &new.services {
                let touched = |name: &Name| affected.fresh.contains(name) || affected.others.contains(name);
                let needs = service.waits_for(new);
                if !touched(&service.name) && needs.iter().any(|need| touched(&need.service)) {
                    affected.others.insert(service.name.clone());
                    grown = true;
                }
            }
        }
        affected
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.workers.is_empty()
    }
}

fn changed(old: &ServiceSpec, new: &ServiceSpec) -> Option<ServiceChange> {
    let fields = differing_fields(&serde_json::to_value(old).ok()?, &serde_json::to_value(new).ok()?);
    if fields.is_empty() {
        None
    } else if fields.iter().any(|field| needs_new_process(field)) {
        Some(ServiceChange::Restarted(fields))
    } else {
        Some(ServiceChange::Updated(fields))
    }
}

fn worker_changed(old: &WorkerSpec, new: &WorkerSpec) -> Option<Change> {
    let fields = differing_fields(&serde_json::to_value(old).ok()?, &serde_json::to_value(new).ok()?);
    (!fields.is_empty()).then_some(Change::Changed(fields))
}

fn differing_fields(old: &Value, new: &Value) -> Vec<String> {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return Vec::new() };
    new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whoever_needs_what_is_touched_is_affected() {
        let spec = |version: &str| {
            let services = json!([
                { "name": "db", "command": ["x", version] },
                { "name": "api", "command": "x", "needs": ["db"] },
                { "name": "web", "command": "x", "needs": ["api:started"] },
                { "name": "other", "command": "x" },
            ]);
            MachineSpec::check(services.as_array().unwrap(), &[], &[]).unwrap()
        };
        let (old, new) = (spec("1"), spec("2"));
        let affected = Diff::between(&old, &new).affected(&new);
        let names = |set: &BTreeSet<Name>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            (names(&affected.fresh), names(&affected.others)),
            (vec!["db".into()], vec!["api".into(), "web".into()])
        );
    }

    #[test]
    fn only_what_differs_is_named_and_only_what_must_is_restarted() {
        let spec = |services: Value| MachineSpec::check(services.as_array().unwrap(), &[], &[]).unwrap();
        let old = spec(json!([
            { "name": "same", "command": "x", "env": { "A": 1 } },
            { "name": "gone", "command": "x" },
            { "name": "patient", "command": "x", "stop": { "grace": "5s" } },
            { "name": "busy", "command": "x" },
        ]));
        let new = spec(json!([
            { "name": "busy", "command": ["x", "-v"], "critical": true },
            { "name": "same", "command": ["x"], "env": { "A": "1" }, "kind": "service" },
            { "name": "patient", "command": "x", "stop": { "grace": "6s" } },
            { "name": "new", "command": "x" },
        ]));
        let name = |text: &str| Name::new(text).unwrap();
        assert_eq!(
            Diff::between(&old, &new).services,
            [
                (name("gone"), ServiceChange::Removed),
                (name("busy"), ServiceChange::Restarted(vec!["command".into(), "critical".into()])),
                (name("patient"), ServiceChange::Updated(vec!["stop".into()])),
                (name("new"), ServiceChange::Added),
            ]
        );
        assert!(Diff::between(&new, &new).is_empty());
    }
}
