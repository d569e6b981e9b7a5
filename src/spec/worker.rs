use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::Hardware;
use super::fields::{FieldProblem, Fields};
use crate::base::Name;

/// One worker as the machine script wants it: it claims jobs and runs each through a connector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerSpec {
    pub name: Name,
    pub connector: Name,
    /// How many jobs it runs at once. Default 1.
    pub slots: u32,
    /// Services that must be ready before it claims.
    pub needs: Vec<Name>,
    /// The job services it takes. Default: the connector's name.
    pub services: BTreeSet<Name>,
    pub models: BTreeSet<String>,
    /// Added to the machine's labels.
    pub labels: BTreeMap<String, Value>,
    /// Overrides what was found on the machine.
    pub hardware: Option<Hardware>,
    pub deny_customers: BTreeSet<String>,
    pub allow_customers: BTreeSet<String>,
    /// Added to the connector's `vars` from the settings.
    pub vars: serde_json::Map<String, Value>,
}

impl WorkerSpec {
    pub const MAX_SLOTS: u32 = 10_000;

    /// Reads the map at `index` of what `workers(m)` returned.
    pub fn read(index: usize, value: &Value) -> (Option<Self>, Vec<FieldProblem>) {
        let mut fields = match Fields::new(format!("workers[{index}]"), value) {
            Ok(fields) => fields,
            Err(problem) => return (None, vec![problem]),
        };
        let name = fields.required::<Name>("name");
        if let Some(name) = &name {
            fields.set_path(format!("worker \"{name}\""));
        }
        let connector = fields.required::<Name>("connector");
        let slots = fields.optional::<u32>("slots").unwrap_or(1);
        if slots == 0 || slots > Self::MAX_SLOTS {
            fields.wrong("slots", &format!("must lie between 1 and {}", Self::MAX_SLOTS));
        }
        let needs = fields.or_default("needs");
        let vars = fields.or_default("vars");
        let mut services: BTreeSet<Name> = BTreeSet::new();
        let mut models = BTreeSet::new();
        let mut labels = BTreeMap::new();
        let mut hardware = None;
        let mut deny_customers = BTreeSet::new();
        let mut allow_customers = BTreeSet::new();
        let path = fields.path().to_owned();
        if let Some(value) = fields.raw("capabilities") {
            match Fields::new(format!("{path}, capabilities"), value) {
                Err(problem) => fields.report(problem),
                Ok(mut inner) => {
                    services = inner.or_default("services");
                    models = inner.or_default("models");
                    labels = inner.or_default("labels");
                    hardware = inner.optional("hardware");
                    deny_customers = inner.or_default("deny_customers");
                    allow_customers = inner.or_default("allow_customers");
                    fields.report_all(inner.finish());
                }
            }
        }
        if services.is_empty() {
            services.extend(connector.clone());
        }
        let problems = fields.finish();
        let spec = match (name, connector) {
            (Some(name), Some(connector)) if problems.is_empty() => Some(Self {
                name,
                connector,
                slots,
                needs,
                services,
                models,
                labels,
                hardware,
                deny_customers,
                allow_customers,
                vars,
            }),
            _ => None,
        };
        (spec, problems)
    }
}
