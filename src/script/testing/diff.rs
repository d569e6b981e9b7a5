//! Where two values of scripts differ.

use rhai::{Array, Dynamic, Map};

use crate::script::options::number;
use crate::script::types::Blob;

/// So many differences are told.
const MOST: usize = 20;
/// A longer value is cut.
const MAX_SHOWN: usize = 400;

/// One line for each place where `found` is not what was `expected`; none where both are equal.
pub(super) fn differences(found: &Dynamic, expected: &Dynamic) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", found, expected, &mut lines);
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn compare(path: &str, found: &Dynamic, expected: &Dynamic, lines: &mut Vec<String>) {
    let place = if path.is_empty() { String::new() } else { format!("{path}: ") };
    if let (Some(found), Some(expected)) = (found.read_lock::<Map>(), expected.read_lock::<Map>()) {
        for (key, value) in &*expected {
            match found.get(key) {
                Some(other) => compare(&format!("{path}.{key}"), other, value, lines),
                None => lines.push(format!("{path}.{key}: expected {}, it is not there", shown(value))),
            }
        }
        for (key, value) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
            lines.push(format!("{path}.{key}: found {}, expected none", shown(value)));
        }
        return;
    }
    if let (Some(found), Some(expected)) = (found.read_lock::<Array>(), expected.read_lock::<Array>()) {
        if found.len() != expected.len() {
            lines.push(format!("{place}found {} elements, expected {}", found.len(), expected.len()));
        }
        for (index, (one, other)) in found.iter().zip(expected.iter()).enumerate() {
            compare(&format!("{path}[{index}]"), one, other, lines);
        }
        let (more, word) = if found.len() > expected.len() {
            (&found[expected.len()..], "found")
        } else {
            (&expected[found.len()..], "expected")
        };
        let first = found.len().min(expected.len());
        lines.extend(
            more.iter().enumerate().map(|(n, value)| format!("{path}[{}]: {word} {}", first + n, shown(value))),
        );
        return;
    }
    if !same(found, expected) {
        lines.push(format!("{place}found {}, expected {}", shown(found), shown(expected)));
    }
}

/// Whether two values that hold no others are equal.
fn same(one: &Dynamic, other: &Dynamic) -> bool {
    if let (Ok(one), Ok(other)) = (one.as_int(), other.as_int()) {
        return one == other;
    }
    if let (Some(one), Some(other)) = (number(one), number(other)) {
        // Exactly: assert_approx is for those that are nearly the same.
        return one.partial_cmp(&other).is_some_and(std::cmp::Ordering::is_eq);
    }
    if let (Some(one), Some(other)) = (one.read_lock::<Blob>(), other.read_lock::<Blob>()) {
        let same = one.bytes(u64::MAX).ok().zip(other.bytes(u64::MAX).ok());
        return same.is_some_and(|(one, other)| one == other);
    }
    one.type_name() == other.type_name() && one.to_string() == other.to_string()
}

/// A value as a script would write it.
pub(super) fn shown(value: &Dynamic) -> String {
    let mut text = if let Some(map) = value.read_lock::<Map>() {
        let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}: {}", shown(value))).collect();
        if entries.is_empty() { "#{}".to_owned() } else { format!("#{{ {} }}", entries.join(", ")) }
    } else if let Some(array) = value.read_lock::<Array>() {
        format!("[{}]", array.iter().map(shown).collect::<Vec<_>>().join(", "))
    } else if let Some(text) = value.read_lock::<rhai::ImmutableString>() {
        format!("{:?}", text.as_str())
    } else if value.is_unit() {
        "()".to_owned()
    } else {
        value.to_string()
    };
    if text.len() > MAX_SHOWN {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        text.push_str(" ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::differences;
    use rhai::Dynamic;
    use serde_json::{Value, json};

    fn lines(found: Value, expected: Value) -> Vec<String> {
        let [found, expected] = [found, expected].map(|value| rhai::serde::to_dynamic(value).unwrap());
        differences(&found, &expected)
    }

    #[test]
    fn differences_have_their_place() {
        assert!(lines(json!({ "a": [1, { "b": "x" }] }), json!({ "a": [1.0, { "b": "x" }] })).is_empty());
        assert_eq!(
            lines(json!({ "a": [1, { "b": "x" }], "c": 1 }), json!({ "a": [1, { "b": "y" }, 3], "d": null })),
            [
                ".a: found 2 elements, expected 3",
                ".a[1].b: found \"x\", expected \"y\"",
                ".a[2]: expected 3",
                ".d: expected (), it is not there",
                ".c: found 1, expected none",
            ]
        );
        assert_eq!(lines(json!("1"), json!(1)), ["found \"1\", expected 1"]);
        assert_eq!(differences(&Dynamic::UNIT, &Dynamic::TRUE), ["found (), expected true"]);
    }
}
