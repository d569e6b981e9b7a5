use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::base::{Seconds, did_you_mean};

/// What a connector says its `vars` may be: `const CONFIG = #{ key: #{ type: "int", fallback: 1 }, ... };`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConfigSchema(BTreeMap<String, Rule>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    required: bool,
    fallback: Option<Value>,
    one_of: Option<Vec<Value>>,
    min: Option<f64>,
    max: Option<f64>,
    /// For people.
    about: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    String,
    Int,
    Float,
    Bool,
    Array,
    Map,
    Duration,
    Any,
}

/// What is wrong with one of the `vars`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    pub key: String,
    /// Follows the key in a sentence.
    pub message: String,
    pub help: Option<String>,
}

impl ConfigSchema {
    /// # Errors
    /// A sentence for whoever wrote the connector.
    pub fn read(config: Value) -> Result<Self, String> {
        let Value::Object(config) = config else { return Err("CONFIG must be a map".to_owned()) };
        let mut rules = BTreeMap::new();
        for (key, rule) in config {
            let rule: Rule = serde_json::from_value(rule).map_err(|cause| format!("CONFIG: {key}: {cause}"))?;
            if let Some(why) = rule.fallback.as_ref().and_then(|value| rule.refuse(value)) {
                return Err(format!("CONFIG: {key}: the fallback {why}"));
            }
            if rule.required && rule.fallback.is_some() {
                return Err(format!("CONFIG: {key}: what has a fallback is not required"));
            }
            rules.insert(key, rule);
        }
        Ok(Self(rules))
    }

    pub fn check(&self, vars: &Map<String, Value>) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for (key, value) in vars {
            let (message, help) = match self.0.get(key) {
                Some(rule) => match rule.refuse(value) {
                    Some(why) => (why, rule.about.clone()),
                    None => continue,
                },
                None => {
                    let help = match did_you_mean(key, self.0.keys().map(String::as_str)) {
                        Some(meant) => format!("did you mean {meant:?}?"),
                        None if self.0.is_empty() => "the connector takes no vars".to_owned(),
                        None => {
                            format!("known are {}", self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
                        }
                    };
                    ("is none of the connector's vars".to_owned(), Some(help))
                }
            };
            problems.push(ConfigProblem { key: key.clone(), message, help });
        }
        let missing = self.0.iter().filter(|(key, rule)| rule.required && !vars.contains_key(*key));
        problems.extend(missing.map(|(key, rule)| ConfigProblem {
            key: key.clone(),
            message: "is required and not set".to_owned(),
            help: rule.about.clone(),
        }));
        problems
    }

    /// Puts fallbacks where nothing is set.
    pub fn fill(&self, vars: &mut Map<String, Value>) {
        for (key, rule) in &self.0 {
            if let (Some(fallback), false) = (&rule.fallback, vars.contains_key(key)) {
                vars.insert(key.clone(), fallback.clone());
            }
        }
    }
}

impl Rule {
    /// Why `value` is none of this kind: follows the key in a sentence.
    fn refuse(&self, value: &Value) -> Option<String> {
        let fits = match self.kind {
            Kind::String => value.is_string(),
            Kind::Int => value.is_i64() || value.is_u64(),
            Kind::Float => value.is_number(),
            Kind::Bool => value.is_boolean(),
            Kind::Array => value.is_array(),
            Kind::Map => value.is_object(),
            Kind::Duration => serde_json::from_value::<Seconds>(value.clone()).is_ok(),
            Kind::Any => true,
        };
        if !fits {
            return Some(format!("must be {}, found {value}", self.kind.with_article()));
        }
        if let Some(choices) = self.one_of.as_ref().filter(|choices| !choices.contains(value)) {
            let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
            return Some(format!("must be one of {}, found {value}", choices.join(", ")));
        }
        let number = value.as_f64();
        match (number, self.min, self.max) {
            (Some(number), Some(min), _) if number < min => Some(format!("must be {min} or more, found {value}")),
            (Some(number), _, Some(max)) if number > max => Some(format!("must be {max} or less, found {value}")),
            _ => None,
        }
    }
}

impl Kind {
    fn with_article(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Bool => "true or false",
            Self::Array => "an array",
            Self::Map => "a map",
            Self::Duration => "a duration such as \"30s\"",
            Self::Any => "anything",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::ConfigSchema;

    fn found(schema: &ConfigSchema, vars: Value) -> Vec<String> {
        let problems = schema.check(vars.as_object().unwrap());
        let shown = problems
            .into_iter()
            .map(|problem| format!("{} {} ({})", problem.key, problem.message, problem.help.unwrap_or_default()));
        shown.collect()
    }

    #[test]
    fn vars_are_held_against_the_schema() {
        let schema = ConfigSchema::read(json!({
            "port": { "type": "int", "min": 1, "max": 65535, "fallback": 8188 },
            "url": { "type": "string", "required": true, "about": "where it answers" },
            "mode": { "type": "string", "one_of": ["fast", "good"] },
            "poll": { "type": "duration" },
        }))
        .unwrap();
        assert_eq!(found(&schema, json!({ "url": "http://x", "poll": "2s", "mode": "fast" })), Vec::<String>::new());
        assert_eq!(
            found(&schema, json!({ "prt": 1, "port": 0, "mode": "slow", "poll": "soon" })),
            [
                "mode must be one of \"fast\", \"good\", found \"slow\" ()",
                "poll must be a duration such as \"30s\", found \"soon\" ()",
                "port must be 1 or more, found 0 ()",
                "prt is none of the connector's vars (did you mean \"port\"?)",
                "url is required and not set (where it answers)",
            ]
        );
        let mut vars = json!({ "url": "x" }).as_object().unwrap().clone();
        schema.fill(&mut vars);
        assert_eq!(vars["port"], 8188);
    }

    #[test]
    fn a_schema_that_contradicts_itself_is_refused() {
        for (schema, why) in [
            (json!([]), "must be a map"),
            (json!({ "a": { "type": "number" } }), "unknown variant"),
            (json!({ "a": { "type": "int", "falback": 1 } }), "unknown field"),
            (json!({ "a": { "type": "int", "fallback": "x" } }), "the fallback must be a whole number"),
            (json!({ "a": { "type": "int", "fallback": 1, "required": true } }), "is not required"),
        ] {
            let cause = ConfigSchema::read(schema).unwrap_err();
            assert!(cause.contains(why), "{cause}");
        }
    }
}
