use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::base::did_you_mean;

/// Reads the keys of one map, collecting every problem instead of stopping at the first; what nobody asked for at the end
/// is an unknown key.
pub struct Fields<'a> {
    /// Where the map is, for the reader: `services[1]` or `service "web"`.
    path: String,
    map: &'a Map<String, Value>,
    asked: Vec<&'static str>,
    problems: Vec<FieldProblem>,
}

/// A problem in a map that a script returned, before its place in the script is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// Where the map is: `service "web"`.
    pub path: String,
    /// A lowercase sentence.
    pub message: String,
    /// The key or value as written, by which the script host finds the place.
    pub token: Option<String>,
    pub help: Option<String>,
}

impl FieldProblem {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), token: None, help: None }
    }

    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl<'a> Fields<'a> {
    /// # Errors
    /// When `value` is no map.
    pub fn new(path: impl Into<String>, value: &'a Value) -> Result<Self, FieldProblem> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map, asked: Vec::new(), problems: Vec::new() }),
            other => Err(FieldProblem::new(path, format!("expected a map, found {}", type_name(other)))
                .help("write #{ key: value, ... }")),
        }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn set_path(&mut self, path: impl Into<String>) {
        self.path = path.into();
    }

    /// The value as it stands; `null` and `()` count as absent.
    pub fn raw(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The value read as `T`, `None` when absent; a wrong value is reported and counts as absent.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.raw(key)?;
        match T::deserialize(value) {
            Ok(read) => Some(read),
            Err(cause) => {
                self.wrong(key, &cause.to_string());
                None
            }
        }
    }

    pub fn or_default<T: DeserializeOwned + Default>(&mut self, key: &'static str) -> T {
        self.optional(key).unwrap_or_default()
    }

    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        if self.raw(key).is_none() {
            self.problems.push(FieldProblem::new(&self.path, format!("the key \"{key}\" is missing")));
            return None;
        }
        self.optional(key)
    }

    /// Reports a value that has the right type and is wrong all the same.
    pub fn wrong(&mut self, key: &str, why: &str) {
        self.problems.push(FieldProblem::new(&self.path, format!("\"{key}\": {why}")).token(key));
    }

    pub fn no_problem_yet(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn report(&mut self, problem: FieldProblem) {
        self.problems.push(problem);
    }

    pub fn report_all(&mut self, problems: impl IntoIterator<Item = FieldProblem>) {
        self.problems.extend(problems);
    }

    /// Everything wrong, unknown keys included.
    pub fn finish(mut self) -> Vec<FieldProblem> {
        for key in self.map.keys() {
            if self.asked.contains(&key.as_str()) {
                continue;
            }
            let mut problem = FieldProblem::new(&self.path, format!("unknown key \"{key}\"")).token(key);
            problem.help = Some(match did_you_mean(key, self.asked.iter().copied()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("known keys: {}", self.asked.join(", ")),
            });
            self.problems.push(problem);
        }
        self.problems
    }
}

/// The JSON type of a value in the words of a script's author.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "a map",
    }
}
