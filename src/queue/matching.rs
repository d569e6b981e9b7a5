use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::expression;
use super::model::{Affinity, ClassStatus, Scope, Submission, plain};

use crate::base::Name;
use crate::spec::{Capabilities, LabelTest, Requirement};

/// Equal requirements are one class: what a worker may run is decided once per class, never per job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub String);

/// What a class is made of.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Class {
    pub service: Name,
    pub requirement: Requirement,
    /// Isolation is decided by the customer, so jobs of different customers are of different classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Workers that are not to have the job: it failed there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub avoid: BTreeSet<String>,
}

/// The first reason why a worker may not run a job, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(pub String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Eight bytes of a digest, in eleven characters.
pub(super) fn short_hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(text.as_bytes())[..8])
}

impl Class {
    pub fn of(submission: &Submission) -> Self {
        Self {
            service: submission.service.clone(),
            requirement: sorted(submission.requirement.clone()),
            customer: submission.customer.clone(),
            affinity: submission.affinity.clone(),
            avoid: BTreeSet::new(),
        }
    }

    pub fn of_status(status: &ClassStatus) -> Self {
        Self {
            service: status.service.clone(),
            requirement: status.requirement.clone(),
            customer: status.customer.clone(),
            affinity: status.affinity.clone(),
            avoid: status.avoid.clone(),
        }
    }

    /// The one form in which equal classes are equal text: maps and sets are sorted.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn id(&self) -> ClassId {
        ClassId(short_hash(&self.canonical()))
    }

    /// Whether it tells single workers apart, so that two of equal capabilities may differ.
    pub fn is_personal(&self) -> bool {
        let want = &self.requirement;
        let named = want.when.as_ref().is_some_and(|when| when.contains("machine") || when.contains("worker"));
        named || want.machine.is_some() || want.worker.is_some() || !self.avoid.is_empty()
    }

    /// What holds its jobs back, in the words of the queue's functions.
    pub fn scopes(&self) -> String {
        let mut scopes = vec![Scope::Service(self.service.clone()).to_string()];
        scopes.extend(self.requirement.pool.clone().map(|pool| Scope::Pool(pool).to_string()));
        scopes.extend(self.customer.clone().map(|customer| Scope::Customer(customer).to_string()));
        let affinity = self.affinity.as_ref();
        scopes.extend(affinity.map(|a| format!("affinity:{}:{}", plain(&a.model), a.wait.get().as_millis())));
        scopes.join(" ")
    }

    /// [`Self::matches`], and that it is not a worker to be avoided; `worker` is its name in the queue.
    pub fn admits(&self, worker: &str, capabilities: &Capabilities) -> Result<(), Mismatch> {
        require(!self.avoid.contains(worker), || "the job failed here before".to_owned())?;
        self.matches(capabilities)
    }

    /// Why a worker may not run jobs of this class, for whoever wrote the job: with the model that may have been meant.
    pub fn explain(&self, worker: &str, capabilities: &Capabilities) -> Option<String> {
        let Mismatch(why) = self.admits(worker, capabilities).err()?;
        let missing = self.requirement.models.difference(&capabilities.models).next();
        let missing = missing.filter(|model| why == no_model(model));
        let is_meant = |model: &str, known: &str| known.contains(model) || (known.len() > 3 && model.contains(known));
        let meant = missing.and_then(|model| capabilities.models.iter().find(|known| is_meant(model, known)));
        Some(meant.map_or(why.clone(), |meant| format!("{why}, but {meant:?}")))
    }

    /// Whether a worker with these capabilities may run jobs of this class. Total over any input; what cannot be decided
    /// does not match.
    pub fn matches(&self, worker: &Capabilities) -> Result<(), Mismatch> {
        let want = &self.requirement;
        require(worker.services.contains(&self.service), || format!("the worker does not take {}", self.service))?;
        equal("machine type", want.machine_type.as_ref(), &worker.machine_type)?;
        equal("pool", want.pool.as_ref(), &worker.pool)?;
        equal("machine", want.machine.as_ref(), &worker.machine)?;
        equal("worker", want.worker.as_ref(), &worker.worker)?;
        let (least, has) = (&want.hardware, &worker.hardware);
        at_least("gpu_memory_gb", least.gpu_memory_gb, has.gpu_memory_gb)?;
        at_least("gpu_count", f64::from(least.gpu_count), f64::from(has.gpu_count))?;
        at_least("ram_gb", least.ram_gb, has.ram_gb)?;
        at_least("cpu_cores", least.cpu_cores, has.cpu_cores)?;
        for model in &want.models {
            require(worker.models.contains(model), || no_model(model))?;
        }
        for (label, test) in &want.labels {
            require(passes(test, worker.labels.get(label)), || format!("label {label:?} does not pass"))?;
        }
        for (label, test) in &want.exclude {
            require(!passes(test, worker.labels.get(label)), || format!("label {label:?} excludes the worker"))?;
        }
        if let Some(when) = &want.when {
            expression::holds(when, worker).map_err(Mismatch)?;
        }
        let customer = self.customer.as_deref().unwrap_or("");
        require(!worker.deny_customers.contains(customer), || "the worker denies this customer".to_owned())?;
        let allowed = worker.allow_customers.is_empty() || worker.allow_customers.contains(customer);
        require(allowed, || "the worker serves other customers only".to_owned())
    }
}

/// The alternatives of a test have no order, and none is meant twice.
fn sorted(mut requirement: Requirement) -> Requirement {
    for test in requirement.labels.values_mut().chain(requirement.exclude.values_mut()) {
        if let LabelTest::AnyOf(values) = test {
            values.sort_by_cached_key(Value::to_string);
            values.dedup();
        }
    }
    requirement
}

fn no_model(model: &str) -> String {
    format!("the worker has no model {model:?}")
}

fn require(holds: bool, why: impl FnOnce() -> String) -> Result<(), Mismatch> {
    if holds { Ok(()) } else { Err(Mismatch(why())) }
}

fn equal(what: &str, want: Option<&Name>, has: &Name) -> Result<(), Mismatch> {
    match want {
        Some(want) if want != has => Err(Mismatch(format!("{what} {want} is asked for, the worker's is {has}"))),
        _ => Ok(()),
    }
}

/// Written so that a NaN on either side does not match.
fn at_least(what: &str, least: f64, has: f64) -> Result<(), Mismatch> {
    require(has >= least, || format!("{what} of at least {least} is asked for, the worker has {has}"))
}

fn passes(test: &LabelTest, value: Option<&Value>) -> bool {
    match (test, value) {
        (LabelTest::Exists(wanted), value) => value.is_some() == *wanted,
        (_, None) => false,
        (LabelTest::Equals(wanted), Some(value)) => wanted == value,
        (LabelTest::AnyOf(wanted), Some(value)) => wanted.contains(value),
        (LabelTest::AtLeast(least), Some(value)) => value.as_f64().is_some_and(|value| value >= *least),
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn worker() -> Capabilities {
        serde_json::from_value(json!({
            "services": ["comfyui"], "machine_type": "gpu", "machine": "m1", "worker": "w1", "pool": "heavy",
            "hardware": { "gpu_memory_gb": 24.0, "gpu_count": 1, "ram_gb": 64.0, "cpu_cores": 8.0 },
            "models": ["sdxl"], "labels": { "region": "eu", "tier": 3 }, "deny_customers": ["evil"],
        }))
        .unwrap()
    }

    fn class(requirement: Value, customer: Option<&str>) -> Class {
        let requirement = serde_json::from_value(requirement).unwrap();
        let customer = customer.map(str::to_owned);
        Class { service: Name::new("comfyui").unwrap(), requirement, customer, affinity: None, avoid: BTreeSet::new() }
    }

    #[test]
    fn each_clause_decides() {
        let good = [
            json!({}),
            json!({ "machine_type": "gpu", "pool": "heavy", "machine": "m1", "worker": "w1" }),
            json!({ "hardware": { "gpu_memory_gb": 24, "gpu_count": 1 }, "models": ["sdxl"] }),
            json!({ "labels": { "region": { "equals": "eu" }, "tier": { "at_least": 3 }, "gone": { "exists": false } } }),
            json!({ "when": "labels.tier > 2 && models.contains(\"sdxl\") && hardware.gpu_memory_gb >= 24.0" }),
            json!({ "labels": { "region": { "any_of": ["us", "eu"] } }, "exclude": { "tier": { "at_least": 4 } } }),
        ];
        for requirement in good {
            assert_eq!(class(requirement.clone(), None).matches(&worker()), Ok(()), "{requirement}");
        }
        let bad = [
            (json!({ "machine_type": "api" }), "machine type"),
            (json!({ "when": "labels.tier > 3" }), "labels.tier > 3"),
            (json!({ "when": "labels.gone > 3" }), "labels.gone > 3"),
            (json!({ "when": "loop {}" }), "loop"),
            (json!({ "pool": "fast" }), "pool"),
            (json!({ "worker": "w2" }), "worker"),
            (json!({ "hardware": { "gpu_memory_gb": 24.1 } }), "gpu_memory_gb"),
            (json!({ "models": ["flux", "sdxl"] }), "flux"),
            (json!({ "labels": { "region": { "equals": "us" } } }), "region"),
            (json!({ "labels": { "region": { "at_least": 1 } } }), "region"),
            (json!({ "labels": { "gone": { "equals": null } } }), "gone"),
            (json!({ "exclude": { "region": { "exists": true } } }), "excludes"),
        ];
        for (requirement, why) in bad {
            let mismatch = class(requirement, None).matches(&worker()).unwrap_err();
            assert!(mismatch.0.contains(why), "{mismatch}");
        }
        assert!(class(json!({}), Some("evil")).matches(&worker()).is_err(), "isolation is the worker's to say");
        let mut other = class(json!({}), None);
        other.service = Name::new("openai").unwrap();
        assert!(other.matches(&worker()).is_err());
    }

    #[test]
    fn a_model_that_may_have_been_meant_is_named() {
        let mut has = worker();
        has.models = ["xl/base_1.0.safetensors", "v1"].map(str::to_owned).into();
        for (asked, said) in [
            ("base_1.0", ", but \"xl/base_1.0.safetensors\""),
            ("models/xl/base_1.0.safetensors", ", but \"xl/base_1.0.safetensors\""),
            ("v1.5", ""),
            ("flux", ""),
        ] {
            let why = class(json!({ "models": [asked, "v1"] }), None).explain("w", &has).unwrap();
            assert_eq!(why, format!("the worker has no model {asked:?}{said}"));
        }
        assert_eq!(class(json!({ "models": ["v1"] }), None).explain("w", &has), None);
        let other = class(json!({ "models": ["base_1.0"], "pool": "x" }), None).explain("w", &has).unwrap();
        assert!(other.starts_with("pool x is asked for"), "{other}");
    }

    #[test]
    fn what_is_no_number_matches_nothing() {
        let mut nan = class(json!({}), None);
        nan.requirement.hardware.ram_gb = f64::NAN;
        assert!(nan.matches(&worker()).is_err());
        let mut broken = worker();
        broken.hardware.ram_gb = f64::NAN;
        assert!(class(json!({ "hardware": { "ram_gb": 1 } }), None).matches(&broken).is_err());
    }

    proptest! {
        #[test]
        fn a_class_is_its_content(models in prop::collection::vec("[a-c]{1,2}", 0..4), customer in prop::option::of("[a-b]")) {
            let one = class(json!({ "models": models }), customer.as_deref());
            let mut reversed = models.clone();
            reversed.reverse();
            prop_assert_eq!(one.id(), class(json!({ "models": reversed }), customer.as_deref()).id());
            prop_assert_ne!(one.id(), class(json!({ "models": models, "pool": "x" }), customer.as_deref()).id());
        }
    }
}
