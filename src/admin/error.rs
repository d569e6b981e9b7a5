use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::base::Problems;
use crate::queue::BrokerError;
use crate::supervisor::UnknownService;

/// What went wrong with a request, with the right status.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    what: What,
}

/// How every error is answered.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct ErrorBody {
    error: What,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct What {
    /// Which kind of error it is, for programs.
    code: &'static str,
    /// For people.
    message: String,
    /// What the reader can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// What is wrong with the machine's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<Problems>,
}

/// Done, in a sentence for people.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Done {
    pub message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, what: What { code, message: message.into(), help: None, problems: None } }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub fn upgrade_required(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    pub fn refused(problems: Problems) -> Self {
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", problems.to_string());
        error.what.problems = Some(problems);
        error
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.what.help = Some(help.into());
        self
    }
}

impl From<BrokerError> for ApiError {
    fn from(cause: BrokerError) -> Self {
        let (status, code) = match &cause {
            BrokerError::UnknownJob(_) => (StatusCode::NOT_FOUND, "unknown_job"),
            BrokerError::WrongState { .. } | BrokerError::StaleToken(_) => (StatusCode::CONFLICT, "wrong_state"),
            BrokerError::Refused { .. } | BrokerError::TooLarge(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
            BrokerError::NotRegistered(_) | BrokerError::Held { .. } => (StatusCode::CONFLICT, "not_registered"),
            BrokerError::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "queue_damaged"),
            BrokerError::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable"),
        };
        Self::new(status, code, cause.to_string())
    }
}

impl From<UnknownService> for ApiError {
    fn from(cause: UnknownService) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_service", cause.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.what })).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
