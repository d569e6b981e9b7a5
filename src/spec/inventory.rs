use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::fields::{FieldProblem, Fields};
use super::{Capabilities, Requirement};

/// What a connector found its backend to have. It goes into its worker's capabilities beside what the machine's script says,
/// and either changes without the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    pub models: BTreeSet<String>,
    pub labels: BTreeMap<String, Value>,
}

impl Inventory {
    /// Every worker's names lie in the queue, and all machines read them.
    pub const MAX_MODELS: usize = 5_000;
    /// Of all models' names together.
    pub const MAX_MODEL_BYTES: usize = 256 * 1024;
    pub const MAX_LABELS: usize = 100;
    /// Of all labels, as JSON.
    pub const MAX_LABEL_BYTES: usize = 16 * 1024;

    /// Reads what `capabilities(ctx)` returned; nothing is an empty one. Names that no job can ask for are left out.
    ///
    /// # Errors
    /// A sentence for the connector's author.
    pub fn read(returned: &Value) -> Result<Self, String> {
        if returned.is_null() {
            return Ok(Self::default());
        }
        let mut fields = Fields::new("capabilities(ctx)", returned).map_err(said)?;
        let models: Vec<String> = fields.or_default("models");
        let mut labels: BTreeMap<String, Value> = fields.or_default("labels");
        if let Some(problem) = fields.finish().into_iter().next() {
            return Err(said(problem));
        }
        let can_be_asked_for = |name: &String| (1..=Requirement::MAX_NAME).contains(&name.len());
        let models: BTreeSet<String> = models.into_iter().filter(can_be_asked_for).collect();
        labels.retain(|name, value| can_be_asked_for(name) && !value.is_null());
        let bytes = models.iter().map(String::len).sum();
        let written = serde_json::to_string(&labels).map_or(usize::MAX, |text| text.len());
        for (what, found, unit, most) in [
            ("models", models.len(), "", Self::MAX_MODELS),
            ("models", bytes, " bytes", Self::MAX_MODEL_BYTES),
            ("labels", labels.len(), "", Self::MAX_LABELS),
            ("labels", written, " bytes", Self::MAX_LABEL_BYTES),
        ] {
            if found > most {
                return Err(format!("capabilities(ctx): \"{what}\" has {found}{unit}, at most {most} are taken"));
            }
        }
        Ok(Self { models, labels })
    }
}

fn said(problem: FieldProblem) -> String {
    let help = problem.help.map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{}: {}{help}", problem.path, problem.message)
}

impl Capabilities {
    /// These, and what the backend has. Where both name a label, the machine's script is right: whoever runs the machine decides.
    #[must_use]
    pub fn with(mut self, inventory: &Inventory) -> Self {
        self.models.extend(inventory.models.iter().cloned());
        for (name, value) in &inventory.labels {
            self.labels.entry(name.clone()).or_insert_with(|| value.clone());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Capabilities, Inventory};

    #[test]
    fn models_are_joined_and_labels_of_the_script_win() {
        let script: Capabilities = serde_json::from_value(json!({
            "services": ["s"], "machine_type": "t", "machine": "m", "worker": "w", "pool": "p", "models": ["a"], "labels": { "tier": 1 },
        }))
        .unwrap();
        let found = json!({ "models": ["b", "a", "", "x".repeat(257)], "labels": { "tier": 2, "version": "1.2", "none": null } });
        let all = script.clone().with(&Inventory::read(&found).unwrap());
        assert_eq!(json!(all.models), json!(["a", "b"]));
        assert_eq!(json!(all.labels), json!({ "tier": 1, "version": "1.2" }));
        assert_eq!(script.clone().with(&Inventory::read(&json!(null)).unwrap()), script);
    }

    #[test]
    fn what_cannot_be_taken_is_said() {
        let many = |count: usize, length: usize| (0..count).map(|n| format!("{n:0length$}")).collect::<Vec<_>>();
        let labels = |count: usize, length: usize| {
            let labels: serde_json::Map<_, _> =
                many(count, 4).into_iter().map(|name| (name, json!("x".repeat(length)))).collect();
            json!({ "labels": labels })
        };
        for (returned, why) in [
            (json!(["a"]), "expected a map, found an array"),
            (json!({ "model": ["a"] }), "unknown key \"model\" (did you mean \"models\"?)"),
            (json!({ "models": "a" }), "\"models\": invalid type: string"),
            (json!({ "models": [{ "name": "a" }] }), "\"models\": invalid type: map"),
            (json!({ "models": many(5_001, 6) }), "\"models\" has 5001, at most 5000 are taken"),
            (json!({ "models": many(2_000, 200) }), "\"models\" has 400000 bytes, at most 262144 are taken"),
            (labels(101, 1), "\"labels\" has 101, at most 100 are taken"),
            (labels(20, 1_000), "bytes, at most 16384 are taken"),
        ] {
            let cause = Inventory::read(&returned).unwrap_err();
            assert!(cause.starts_with("capabilities(ctx): ") && cause.contains(why), "{cause}");
        }
        assert_eq!(Inventory::read(&json!({ "models": many(5_000, 6) })).unwrap().models.len(), 5_000);
    }
}
