use std::error::Error;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

/// Why a request has no usable answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct HttpError {
    pub kind: HttpErrorKind,
    pub status: Option<u16>,
    pub message: String,
    /// The server's wish.
    pub retry_after: Option<Duration>,
    /// Of the answer, where there was one.
    pub headers: HeaderMap,
    /// The beginning of the answer's body, where there was an answer.
    pub body: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpErrorKind {
    /// Nothing came in time.
    Timeout,
    /// There is no connection, or it broke.
    Connect,
    /// The answer says no.
    Status,
    /// More came than was allowed.
    Limit,
    /// The request makes no sense.
    Invalid,
    /// What came is not what was announced.
    Data,
}

impl HttpErrorKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Status => "status",
            Self::Limit => "limit",
            Self::Invalid => "invalid",
            Self::Data => "data",
        }
    }
}

impl HttpError {
    pub fn new(kind: HttpErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: None,
            message: message.into(),
            retry_after: None,
            headers: HeaderMap::new(),
            body: String::new(),
        }
    }

    pub(in crate::host) fn of(cause: reqwest::Error, what: &str) -> Self {
        let kind = if cause.is_builder() {
            HttpErrorKind::Invalid
        } else if cause.is_timeout() && !cause.is_connect() {
            HttpErrorKind::Timeout
        } else {
            HttpErrorKind::Connect
        };
        Self::new(kind, format!("{what}: {}", cause_text(cause)))
    }
}

/// The address without what may be secret: user, password, query.
pub fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// The whole chain of causes, without the address, which may carry a secret.
pub fn cause_text(cause: reqwest::Error) -> String {
    let cause = cause.without_url();
    let mut text = cause.to_string();
    let mut source = cause.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}
