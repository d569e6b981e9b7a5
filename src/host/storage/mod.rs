//! Objects in a directory, S3, Google Cloud Storage or Azure as scripts use them: streamed in and out, listed, and handed to
//! others by signed addresses. The queue's own large data lie in `host::blobs`.

mod open;
mod transfer;

pub use open::{Credentials, Storage, Storages};
pub use transfer::{Put, Stored};

use object_store::Error;

/// Why an object is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    pub kind: StorageErrorKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageErrorKind {
    Missing,
    /// The credentials are wrong or allow less.
    Denied,
    /// More came than was allowed.
    Limit,
    /// Another time would be the same.
    Invalid,
    /// The store is not there, or fails.
    Connect,
}

impl StorageError {
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn of(what: &str, cause: &Error) -> Self {
        let kind = match cause {
            Error::NotFound { .. } => StorageErrorKind::Missing,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StorageErrorKind::Denied,
            Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => StorageErrorKind::Invalid,
            _ => StorageErrorKind::Connect,
        };
        let message = match cause {
            Error::NotFound { .. } => format!("{what} is not there"),
            cause => format!("{what}: {cause}"),
        };
        Self::new(kind, message)
    }
}
