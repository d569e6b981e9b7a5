use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use super::generation::Generation;
use crate::admin::ReloadPlan;
use crate::base::Name;
use crate::script::ConnectorProgram;
use crate::spec::{Action, ChangePlan, Step, differences};

/// What a reload that leads to `new` would do.
pub(super) fn reload_plan(running: &Generation, new: &Generation) -> ReloadPlan {
    let value = |generation: &Generation| serde_json::to_value(&*generation.settings).unwrap_or_default();
    let (old_settings, new_settings) = (value(running), value(new));
    let settings = running.settings.changes(&new.settings).into_iter().flat_map(|change| {
        let pointer = format!("/{}", change.key.replace('.', "/"));
        let side = |settings: &Value| settings.pointer(&pointer).cloned().unwrap_or_default();
        differences(change.key, &side(&old_settings), &side(&new_settings))
    });
    let mut changes = ChangePlan::between(&running.spec, &new.spec);
    for name in with_other_connectors(running, new) {
        match changes.workers.iter_mut().find(|step| step.name == name) {
            Some(step) => step.because.push("its connector reads otherwise".to_owned()),
            None => changes.workers.push(Step {
                name,
                action: Action::Update,
                wave: None,
                because: vec!["its connector reads otherwise".to_owned()],
                fields: Vec::new(),
            }),
        }
    }
    ReloadPlan {
        generation: running.number,
        files: differing_files(running, new),
        settings: settings.collect(),
        changes,
        warnings: new.warnings.clone(),
    }
}

/// Workers of both generations whose connector is the same by name and not by text.
fn with_other_connectors(running: &Generation, new: &Generation) -> Vec<Name> {
    let workers = new.spec.workers.iter().filter(|worker| {
        let before = running.spec.worker(&worker.name);
        let texts = |generation: &Generation| {
            let program = generation.connectors.get(&worker.connector)?;
            Some(below(generation, program.files()).into_iter().map(|(_, hash)| hash).collect::<Vec<_>>())
        };
        before.is_some_and(|before| before.connector == worker.connector) && texts(running) != texts(new)
    });
    workers.map(|worker| worker.name.clone()).collect()
}

fn differing_files(running: &Generation, new: &Generation) -> Vec<PathBuf> {
    let files = |generation: &Generation| -> BTreeMap<PathBuf, String> {
        let connectors = generation.connectors.values().flat_map(ConnectorProgram::files);
        below(generation, generation.program.files().into_iter().chain(connectors).collect()).into_iter().collect()
    };
    let (old, new) = (files(running), files(new));
    let names: BTreeSet<&PathBuf> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

/// Paths inside the machine's directory, since the other machine may lie in another one.
fn below(generation: &Generation, files: Vec<(PathBuf, String)>) -> Vec<(PathBuf, String)> {
    let relative = |path: PathBuf| path.strip_prefix(&generation.settings.dir).map(PathBuf::from).unwrap_or(path);
    files.into_iter().map(|(path, hash)| (relative(path), hash)).collect()
}
