use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

pub const REDACTED: &str = "[redacted]";

static IN_URL: LazyLock<Regex> = LazyLock::new(|| pattern(r"(://[^/\s:@]*):[^/\s@]+@"));
static IN_TEXT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?i)([\w-]*(?:token|secret|passw|credential|api[_-]?key)[\w-]*(?:=|:\s*)|bearer\s+)("[^"]*"|'[^']*'|[^\s"']+)"#,
    )
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("UNWRAP: a pattern that a test compiles")
}

/// A name as those of secrets are. Rather one too many is hidden than one too few.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["token", "secret", "passw", "credential", "private", "apikey", "auth"];
    parts.iter().any(|part| name.contains(part)) || name.ends_with("key")
}

/// The value under `name` as it may be shown: what a name or a shape tells to be secret is replaced, at any depth.
pub fn redact(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, inner)| (key.clone(), redact(key, inner)));
            Value::Object(entries.collect())
        }
        Value::Null | Value::Bool(_) => value.clone(),
        _ if is_secret(name) => Value::String(REDACTED.to_owned()),
        Value::Array(items) => {
            let mut after_secret = false;
            let items = items.iter().map(|item| {
                // The value of an option may follow it as an argument of its own.
                if std::mem::replace(&mut after_secret, item.as_str().is_some_and(is_secret_option)) {
                    return Value::String(REDACTED.to_owned());
                }
                redact("", item)
            });
            Value::Array(items.collect())
        }
        Value::String(text) => Value::String(redact_text(text)),
        Value::Number(_) => value.clone(),
    }
}

fn is_secret_option(argument: &str) -> bool {
    argument.starts_with('-') && !argument.contains('=') && is_secret(argument)
}

fn redact_text(text: &str) -> String {
    let text = IN_URL.replace_all(text, format!("$1:{REDACTED}@"));
    IN_TEXT.replace_all(&text, format!("${{1}}{REDACTED}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_looks_like_a_secret_is_not_shown() {
        let spec = json!({
            "command": ["x", "--api-key", "s3cret", "--password=s3cret", "redis://me:s3cret@host/0", "-v"],
            "shell": "HF_TOKEN=s3cret curl -H 'Authorization: Bearer s3cret' x",
            "env": { "OPENAI_API_KEY": "s3cret", "DEBUG": "1", "NESTED": { "db_password": "s3cret" } },
            "ports": [80],
        });
        let shown = redact("", &spec);
        assert!(!shown.to_string().contains("s3cret"), "{shown:#}");
        assert_eq!(shown["command"][0], "x");
        assert_eq!(shown["command"][5], "-v");
        assert_eq!((&shown["env"]["DEBUG"], &shown["ports"]), (&json!("1"), &json!([80])));
    }
}
