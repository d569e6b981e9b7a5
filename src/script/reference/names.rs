use std::collections::BTreeSet;

use super::entry::{Form, entries};
use super::language;
use crate::script::api::{Place, sections};

/// Everything that has a name, as one begins to write it: `http::get`, `step`; properties and methods with their dot.
pub(in crate::script) fn words() -> Vec<String> {
    let mut words = BTreeSet::new();
    for section in sections() {
        for entry in entries(&section) {
            match (section.place, entry.form) {
                (_, Form::Operator) => false,
                (_, Form::Property | Form::Method) => words.insert(format!(".{}", entry.name)),
                (Place::Namespace(namespace), Form::Function) => words.insert(format!("{namespace}::{}", entry.name)),
                (_, Form::Function) => words.insert(entry.name),
            };
        }
    }
    for (about, names) in language::functions() {
        // Functions of a text, an array or a map are mostly called with a dot.
        let dot = if matches!(about, "Texts" | "Arrays" | "Maps") { "." } else { "" };
        words.extend(names.into_iter().map(|name| format!("{dot}{name}")));
    }
    words.into_iter().collect()
}

/// What the reference says of `name`: a namespace, `http::get`, or a function, method or property of any type.
pub fn describe(name: &str) -> Vec<String> {
    let wanted = name.trim_start_matches('.').trim_end_matches("::");
    let mut found = Vec::new();
    for section in sections() {
        if matches!(section.place, Place::Namespace(namespace) if namespace == wanted) {
            let comment: Vec<&str> = section.module.doc().lines().collect();
            let signatures = entries(&section).into_iter().map(|entry| format!("  {}", entry.signature));
            found.push(format!("{}\n\n{}", super::entry::text_of(&comment), signatures.collect::<Vec<_>>().join("\n")));
        }
        for entry in entries(&section) {
            let full = match section.place {
                Place::Namespace(namespace) => format!("{namespace}::{}", entry.name),
                Place::Type(_) | Place::Words(_) => entry.name.clone(),
            };
            if full == wanted {
                found.push(format!("{}\n\n{}", entry.signature, entry.doc));
            }
        }
    }
    found
}
