use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::base::{Problem, SourceText};

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    Default,
    File { source: SourceText, line: usize, column: usize },
    Environment(String),
    Flag(String),
}

impl Origin {
    /// Names this place in a problem.
    pub fn locate(&self, problem: Problem) -> Problem {
        match self {
            Self::Default => problem.note("the value is the default"),
            Self::File { source, line, column } => problem.at(source, *line, Some(*column)),
            Self::Environment(name) => problem.note(format!("the value comes from the environment variable {name}")),
            Self::Flag(name) => problem.note(format!("the value comes from the flag {name}")),
        }
    }

    /// Text from these places may have to be read as a number, a boolean or a list.
    pub fn is_untyped(&self) -> bool {
        matches!(self, Self::Environment(_) | Self::Flag(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { source, line, .. } => write!(f, "{}:{line}", source.file.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Leaf {
    pub value: Value,
    pub origin: Origin,
}

/// Settings as leaves by their path, so that layers merge and every value keeps its origin. Lists are leaves.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub leaves: BTreeMap<Vec<String>, Leaf>,
}

impl Tree {
    /// Sets one value; whatever stood at, above or below its path is gone.
    pub fn set(&mut self, path: Vec<String>, leaf: Leaf) {
        self.leaves.retain(|other, _| !other.starts_with(&path) && !path.starts_with(other));
        self.leaves.insert(path, leaf);
    }

    pub fn merge(&mut self, over: Self) {
        for (path, leaf) in over.leaves {
            // An empty table in a higher layer adds nothing and takes nothing away.
            let empty = leaf.value.as_object().is_some_and(Map::is_empty);
            if !empty || !self.leaves.keys().any(|other| other.starts_with(&path)) {
                self.set(path, leaf);
            }
        }
    }

    pub fn origin(&self, path: &[String]) -> Option<&Origin> {
        let exact = self.leaves.get(path);
        let below = || self.leaves.iter().find(|(other, _)| other.starts_with(path)).map(|(_, leaf)| leaf);
        exact.or_else(below).map(|leaf| &leaf.origin)
    }

    pub fn to_value(&self) -> Value {
        let mut root = Map::new();
        for (path, leaf) in &self.leaves {
            let Some((last, parents)) = path.split_last() else { continue };
            let mut table = &mut root;
            for parent in parents {
                let entry = table.entry(parent.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                table = entry.as_object_mut().expect("UNWRAP: made an object just above");
            }
            table.insert(last.clone(), leaf.value.clone());
        }
        Value::Object(root)
    }
}
