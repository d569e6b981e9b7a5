use std::time::Duration;

use serde_json::Value;

use super::Submission;
use crate::spec::{LabelTest, Requirement};

const MAX_DEPTH: usize = 64;
const MAX_TEXT: usize = Requirement::MAX_NAME;
const MAX_TRACE_STATE: usize = 512;
const MAX_CLAUSES: usize = 100;
const MAX_DEPENDENCIES: usize = 10_000;
const MAX_EXPRESSION: usize = 1_000;
const MAX_TIMEOUT: Duration = Duration::from_hours(7 * 24);

/// Why a submission cannot be taken, as a sentence for its author. `most`: so many bytes of payload can be kept.
pub(super) fn refuse(submission: &Submission, most: usize) -> Option<String> {
    let depth = depth(&submission.payload, 0).max(
        serde_json::to_value(&submission.requirement).map_or(MAX_DEPTH + 1, |requirement| self::depth(&requirement, 0)),
    );
    if depth > MAX_DEPTH {
        return Some(format!("the job is nested deeper than {MAX_DEPTH} levels"));
    }
    let large = size_bound(&submission.payload) > most;
    let count = || serde_json::to_vec(&submission.payload).map_or(usize::MAX, |text| text.len());
    if large
        && let bytes = count()
        && bytes > most
    {
        let help = if most < Submission::MAX_BLOB_BYTES { " (more with the setting blobs.url)" } else { "" };
        return Some(format!(
            "the payload has {bytes} bytes, at most {most} are taken{help}; pass large data by reference"
        ));
    }
    let keys = [&submission.idempotency_key, &submission.unique_key];
    if keys.into_iter().flatten().any(|key| key.is_empty() || key.len() > Submission::MAX_KEY_BYTES) {
        return Some(format!("an idempotency key or unique key has 1 to {} bytes", Submission::MAX_KEY_BYTES));
    }
    let dependencies = submission.depends_on.len();
    if dependencies > MAX_DEPENDENCIES {
        return Some(format!("the job waits for {dependencies} others, at most {MAX_DEPENDENCIES} are taken"));
    }
    if submission.id.as_ref().is_some_and(|id| submission.depends_on.contains(id)) {
        return Some("the job waits for itself".to_owned());
    }
    if submission.affinity.as_ref().is_some_and(|affinity| affinity.wait.get() > Duration::from_secs(300)) {
        return Some("affinity.wait is longer than 5 minutes".to_owned());
    }
    let url = submission.webhook.as_deref().map(|url| (url, reqwest::Url::parse(url)));
    if let Some((url, parsed)) = url
        && !parsed.is_ok_and(|parsed| matches!(parsed.scheme(), "http" | "https"))
    {
        return Some(format!("the webhook {url:?} is no http or https address"));
    }
    if let Some(when) = &submission.requirement.when {
        if when.len() > MAX_EXPRESSION {
            return Some(format!("requirement.when has {} bytes, at most {MAX_EXPRESSION} are taken", when.len()));
        }
        if let Err(why) = super::expression::check(when) {
            return Some(format!("requirement: {why}"));
        }
    }
    let retry = &submission.retry;
    if !(1..=100).contains(&retry.max_attempts) {
        return Some(format!("retry.max_attempts is {}, it lies between 1 and 100", retry.max_attempts));
    }
    if !(1.0..=100.0).contains(&retry.backoff.factor) || !(0.0..=1.0).contains(&retry.backoff.jitter) {
        return Some("retry.backoff: factor lies between 1 and 100, jitter between 0 and 1".to_owned());
    }
    if retry.backoff.max.get() > MAX_TIMEOUT {
        return Some("retry.backoff.max is longer than 7 days".to_owned());
    }
    let timeout = submission.timeout.get();
    if timeout < Duration::from_millis(1) || timeout > MAX_TIMEOUT {
        return Some(format!("the timeout is {}, it lies between 1 ms and 7 days", submission.timeout));
    }
    let requirement = &submission.requirement;
    let clauses = requirement.labels.len() + requirement.exclude.len() + requirement.models.len();
    if clauses > MAX_CLAUSES {
        return Some(format!("the requirement has {clauses} labels and models, at most {MAX_CLAUSES} are taken"));
    }
    let names = requirement.labels.keys().chain(requirement.exclude.keys()).chain(&requirement.models);
    let texts = names.chain(&submission.customer).chain(submission.workflow.iter().map(|workflow| &workflow.id));
    let texts = texts.chain(&submission.trace).chain(submission.affinity.iter().map(|affinity| &affinity.model));
    if let Some(long) = texts.into_iter().find(|text| text.is_empty() || text.len() > MAX_TEXT) {
        let start: String = long.chars().take(40).collect();
        return Some(format!("{start:?}... has {} bytes, names in a job have 1 to {MAX_TEXT}", long.len()));
    }
    if submission.tracestate.as_ref().is_some_and(|state| state.len() > MAX_TRACE_STATE) {
        return Some(format!("tracestate is longer than {MAX_TRACE_STATE} bytes"));
    }
    let hardware = &requirement.hardware;
    if [hardware.gpu_memory_gb, hardware.ram_gb, hardware.cpu_cores].iter().any(|n| !n.is_finite() || *n < 0.0) {
        return Some("hardware minimums are numbers of at least 0".to_owned());
    }
    let mut tests = requirement.labels.iter().chain(&requirement.exclude);
    if let Some((label, _)) = tests.find(|(_, test)| matches!(test, LabelTest::AtLeast(least) if !least.is_finite())) {
        return Some(format!("at_least of label {label:?} is no number"));
    }
    None
}

/// At least the bytes of the value as JSON, told without writing it.
pub(super) fn size_bound(value: &Value) -> usize {
    // A character takes at most six bytes, a number thirty.
    let text = |text: &str| text.len() * 6 + 2;
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 30,
        Value::String(string) => text(string),
        Value::Array(items) => items.iter().map(|item| size_bound(item) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, item)| text(key) + size_bound(item) + 2).sum::<usize>() + 2,
    }
}

fn depth(value: &Value, above: usize) -> usize {
    if above > MAX_DEPTH {
        return above;
    }
    match value {
        Value::Array(items) => items.iter().map(|item| depth(item, above + 1)).max().unwrap_or(above + 1),
        Value::Object(map) => map.values().map(|item| depth(item, above + 1)).max().unwrap_or(above + 1),
        _ => above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bad_jobs_are_refused_with_a_reason() {
        let read = |value: Value| serde_json::from_value::<Submission>(value).unwrap();
        let most = Submission::MAX_INLINE_BYTES;
        assert_eq!(refuse(&read(json!({ "service": "s", "payload": { "a": [1, 2] } })), most), None);
        let mut deep = json!(1);
        for _ in 0..70 {
            deep = json!([deep]);
        }
        for (job, why) in [
            (json!({ "service": "s", "payload": deep }), "nested deeper"),
            (json!({ "service": "s", "payload": "x".repeat(1_100_000) }), "the payload has"),
            (json!({ "service": "s", "idempotency_key": "" }), "idempotency key"),
            (json!({ "service": "s", "requirement": { "when": "let x = 1" } }), "no expression"),
            (json!({ "service": "s", "webhook": "ftp://x" }), "webhook"),
            (json!({ "service": "s", "id": "a", "depends_on": ["a"] }), "waits for itself"),
            (json!({ "service": "s", "retry": { "max_attempts": 0 } }), "max_attempts"),
            (json!({ "service": "s", "timeout": 0 }), "timeout"),
            (json!({ "service": "s", "customer": "c".repeat(300) }), "has 300 bytes"),
            (json!({ "service": "s", "tracestate": "a=b,".repeat(200) }), "tracestate is longer"),
            (json!({ "service": "s", "requirement": { "hardware": { "ram_gb": -1.0 } } }), "hardware"),
        ] {
            let refusal = refuse(&read(job), most).unwrap();
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
