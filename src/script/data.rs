//! Script values as JSON: the one way from a script to a result, a saved value, a body.

use rhai::{Array, Dynamic, FnPtr, Map};
use serde_json::Value;

use super::reference::type_name;
use super::types::{Blob, Secret};

/// Deeper than any data people write, and no danger to the stack.
const MAX_DEPTH: usize = 100;

/// What becomes of a secret that lies in the data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Shown as `[redacted]`: in results and logs.
    Redact,
    /// An error: what is sent would not be what its author meant.
    Refuse,
    /// As they are, where the script asked for just that, in what leaves the engine at once.
    Reveal,
}

/// # Errors
/// A sentence for the script's author when something in `value` is no plain data.
pub(super) fn to_json(value: &Dynamic, secrets: Secrets) -> Result<Value, String> {
    convert(value, secrets, 0)
}

/// What scripts call the type of a value.
pub(super) fn kind_of(value: &Dynamic) -> String {
    type_name(value.type_name())
}

/// Whether a value is nested so little that any thread may drop it.
pub(super) fn is_shallow(value: &Dynamic) -> bool {
    fn within(value: &Dynamic, depth: usize) -> bool {
        if depth > MAX_DEPTH {
            return false;
        }
        if let Some(map) = value.read_lock::<Map>() {
            return map.values().all(|value| within(value, depth + 1));
        }
        if let Some(array) = value.read_lock::<Array>() {
            return array.iter().all(|value| within(value, depth + 1));
        }
        let Some(closure) = value.read_lock::<FnPtr>() else { return true };
        closure.iter_curry().all(|value| within(value, depth + 1))
    }
    within(value, 0)
}

/// The secrets that lie in the data.
pub(super) fn secrets_in(value: &Dynamic) -> Vec<Secret> {
    fn collect(value: &Dynamic, depth: usize, found: &mut Vec<Secret>) {
        if depth > MAX_DEPTH {
            return;
        }
        if let Some(map) = value.read_lock::<Map>() {
            map.values().for_each(|value| collect(value, depth + 1, found));
        } else if let Some(array) = value.read_lock::<Array>() {
            array.iter().for_each(|value| collect(value, depth + 1, found));
        } else if let Some(secret) = value.read_lock::<Secret>() {
            found.push(secret.clone());
        }
    }
    let mut found = Vec::new();
    collect(value, 0, &mut found);
    found
}

fn convert(value: &Dynamic, secrets: Secrets, depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(format!("the data is nested more than {MAX_DEPTH} deep"));
    }
    if let Some(map) = value.read_lock::<Map>() {
        let entry = |(key, value): (&rhai::Identifier, &Dynamic)| -> Result<_, String> {
            Ok((key.to_string(), convert(value, secrets, depth + 1)?))
        };
        return Ok(Value::Object(map.iter().map(entry).collect::<Result<_, _>>()?));
    }
    if let Some(array) = value.read_lock::<Array>() {
        let items = array.iter().map(|value| convert(value, secrets, depth + 1));
        return Ok(Value::Array(items.collect::<Result<_, _>>()?));
    }
    if let Some(blob) = value.read_lock::<Blob>() {
        let length = blob.byte_count();
        return Err(format!(
            "a Blob ({length} bytes) is no plain data: save it with blob.save(path) or upload it, and name where it is"
        ));
    }
    if let Some(secret) = value.read_lock::<Secret>() {
        return match secrets {
            Secrets::Redact => Ok(Value::String(secret.to_string())),
            Secrets::Refuse => Err("a secret cannot be part of this: use it in headers, auth or env".to_owned()),
            Secrets::Reveal => Ok(Value::String(secret.reveal().to_owned())),
        };
    }
    rhai::serde::from_dynamic(value).map_err(|_| format!("a {} is no plain data", kind_of(value)))
}
