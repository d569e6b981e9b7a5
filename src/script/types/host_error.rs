//! `HostError`: what primitives of the network throw. Scripts catch it and look at it; uncaught it decides about the job.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use rhai::{EvalAltResult, Position};

use crate::base::Seconds;
use crate::host::http::{HttpError, HttpErrorKind};
use crate::host::redis::{RedisFault, RedisFaultKind};
use crate::host::storage::{StorageError, StorageErrorKind};
use crate::queue::{Failure, FailureClass};
use crate::script::prelude::*;

#[derive(Clone, Debug)]
pub(in crate::script) struct HostError {
    pub kind: &'static str,
    pub class: FailureClass,
    pub message: String,
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    /// Of the answer, their names in small letters.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl HostError {
    pub fn new(kind: &'static str, class: FailureClass, message: impl Into<String>) -> Self {
        let (headers, body) = (BTreeMap::new(), String::new());
        Self { kind, class, message: message.into(), status: None, retry_after: None, headers, body }
    }

    /// More came than is allowed, which it would again.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new("limit", FailureClass::Fatal, message)
    }

    pub fn failure(&self) -> Failure {
        Failure { retry_after: self.retry_after.map(Seconds::new), ..Failure::new(self.class, &self.message) }
    }
}

/// What the status of an answer means for the job that asked. Where the server says itself whether to try again, it knows best.
fn class_of(status: u16, try_again: Option<bool>, says_when: bool) -> FailureClass {
    if matches!(status, 401..=403) {
        return FailureClass::Account;
    }
    if status == 429 && says_when && try_again != Some(false) {
        return FailureClass::RateLimited;
    }
    let again = try_again.unwrap_or(matches!(status, 408 | 409 | 423 | 425 | 429 | 500..));
    if again { FailureClass::Retryable } else { FailureClass::Fatal }
}

/// `x-should-retry`, as the APIs of models send it.
fn try_again(headers: &HeaderMap) -> Option<bool> {
    headers.get("x-should-retry")?.to_str().ok()?.parse().ok()
}

impl From<HttpError> for HostError {
    fn from(cause: HttpError) -> Self {
        let status = cause.status.unwrap_or_default();
        let (kind, class) = match cause.kind {
            HttpErrorKind::Timeout => ("timeout", FailureClass::Retryable),
            HttpErrorKind::Connect => ("connect", FailureClass::Retryable),
            HttpErrorKind::Status => {
                ("status", class_of(status, try_again(&cause.headers), cause.retry_after.is_some()))
            }
            HttpErrorKind::Limit => ("limit", FailureClass::Fatal),
            HttpErrorKind::Invalid => ("invalid", FailureClass::Fatal),
            HttpErrorKind::Data => ("data", FailureClass::Retryable),
        };
        let HttpError { message, status, retry_after, headers, body, .. } = cause;
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        Self { kind, class, message, status, retry_after, headers, body }
    }
}

impl From<StorageError> for HostError {
    fn from(cause: StorageError) -> Self {
        let (kind, class) = match cause.kind {
            StorageErrorKind::Missing => ("missing", FailureClass::Fatal),
            StorageErrorKind::Denied => ("denied", FailureClass::Account),
            StorageErrorKind::Limit => ("limit", FailureClass::Fatal),
            StorageErrorKind::Invalid => ("invalid", FailureClass::Fatal),
            StorageErrorKind::Connect => ("connect", FailureClass::Retryable),
        };
        Self::new(kind, class, cause.message)
    }
}

impl From<RedisFault> for HostError {
    fn from(cause: RedisFault) -> Self {
        let (kind, class) = match cause.kind {
            RedisFaultKind::Connect => ("connect", FailureClass::Retryable),
            RedisFaultKind::Timeout => ("timeout", FailureClass::Retryable),
            RedisFaultKind::Busy => ("busy", FailureClass::Retryable),
            RedisFaultKind::Denied => ("denied", FailureClass::Account),
            RedisFaultKind::Refused => ("refused", FailureClass::Fatal),
            RedisFaultKind::Invalid => ("invalid", FailureClass::Fatal),
        };
        Self::new(kind, class, cause.message)
    }
}

impl From<HostError> for Box<EvalAltResult> {
    fn from(cause: HostError) -> Self {
        EvalAltResult::ErrorRuntime(Dynamic::from(cause), Position::NONE).into()
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// What `http::`, `ws::`, `storage::` and `redis::` throw: `try { ... } catch (e) { if e.kind == "timeout" { ... } }`.
#[export_module]
mod functions {
    pub type HostError = super::HostError;

    /// What went wrong: `"connect"`, `"timeout"`, `"status"` (the answer says no), `"limit"` (more came than is allowed),
    /// `"data"` (what came is not what was announced), `"invalid"` (the request makes no sense); of a
    /// store or a Redis also `"missing"` (no such object), `"denied"` (the credentials allow less), `"busy"` (not now),
    /// `"refused"` (the server says no).
    #[rhai_fn(get = "kind", pure)]
    pub fn error_kind(cause: &mut HostError) -> ImmutableString {
        cause.kind.into()
    }

    /// The status of the answer; `()` where there was none.
    #[rhai_fn(get = "status", pure)]
    pub fn error_status(cause: &mut HostError) -> Dynamic {
        cause.status.map_or(Dynamic::UNIT, |status| i64::from(status).into())
    }

    /// What a person reads. Names no secret, and of addresses neither login nor query.
    #[rhai_fn(get = "message", pure)]
    pub fn error_message(cause: &mut HostError) -> String {
        cause.message.clone()
    }

    /// How long the server asks to wait, in seconds; `()` where it does not.
    #[rhai_fn(get = "retry_after", pure)]
    pub fn error_retry_after(cause: &mut HostError) -> Dynamic {
        cause.retry_after.map_or(Dynamic::UNIT, |wait| wait.as_secs_f64().into())
    }

    /// A header of the answer, whatever the letters of its name; `()` where it is not there, or no answer was.
    #[rhai_fn(name = "header", pure)]
    pub fn error_header(cause: &mut HostError, name: &str) -> Dynamic {
        cause.headers.get(&name.to_ascii_lowercase()).map_or(Dynamic::UNIT, |value| value.clone().into())
    }

    /// The first 64 KiB of the body of the answer, as text.
    #[rhai_fn(get = "body", pure)]
    pub fn error_body(cause: &mut HostError) -> String {
        cause.body.clone()
    }

    /// The message.
    #[rhai_fn(name = "to_string", pure)]
    pub fn error_to_string(cause: &mut HostError) -> String {
        cause.message.clone()
    }

    /// The message.
    #[rhai_fn(name = "to_debug", pure)]
    pub fn error_to_debug(cause: &mut HostError) -> String {
        cause.message.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_whether_to_try_again_is_believed() {
        let class = |status: u16, should: Option<&'static str>| {
            let mut cause = HttpError::new(HttpErrorKind::Status, "no");
            cause.status = Some(status);
            if let Some(should) = should {
                cause.headers.insert("x-should-retry", HeaderValue::from_static(should));
            }
            HostError::from(cause).class
        };
        let mut limited = HttpError::new(HttpErrorKind::Status, "slow down");
        (limited.status, limited.retry_after) = (Some(429), Some(Duration::from_secs(3)));
        assert_eq!(HostError::from(limited).class, FailureClass::RateLimited);
        assert_eq!(class(429, None), FailureClass::Retryable, "nobody says when");
        assert_eq!(class(429, Some("false")), FailureClass::Fatal);
        assert_eq!(class(503, None), FailureClass::Retryable);
        assert_eq!(class(503, Some("false")), FailureClass::Fatal);
        assert_eq!(class(400, None), FailureClass::Fatal);
        assert_eq!(class(400, Some("true")), FailureClass::Retryable);
        assert_eq!(class(400, Some("perhaps")), FailureClass::Fatal);
        assert_eq!(class(401, Some("true")), FailureClass::Account, "no other try has another key");
    }
}
