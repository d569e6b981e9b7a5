use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// What axum reads from a request, refused in the API's own words.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|cause| ApiError::bad_request(cause.body_text()))
    }
}

pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|cause| ApiError::bad_request(cause.body_text()))
    }
}

/// The whole body, within the limit.
pub(super) struct Body(pub Bytes);

/// Reads a type that is an object in JSON. By itself serde takes the list of its fields' values for it as well, which nobody means.
pub(super) fn object<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    let first = json.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        return Err(serde::de::Error::custom("an object is wanted, this is a list"));
    }
    serde_json::from_slice(json)
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|cause: BytesRejection| {
            if cause.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::too_large("the body has more than 64 MiB").help("send it in parts")
            } else {
                ApiError::bad_request(cause.body_text())
            }
        })
    }
}
