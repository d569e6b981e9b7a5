//! What scripts hold that is no plain data, one type a file.

mod blob;
mod host_error;
mod pending_request;
mod response;
mod secret;

use super::api::Section;

pub(super) use blob::{Blob, BlobWriter};
pub(super) use host_error::HostError;
pub(super) use pending_request::PendingRequest;
pub(super) use response::{BodyLimits, Response};
pub(super) use secret::Secret;

/// In the order of the reference.
pub(super) fn sections() -> Vec<Section> {
    vec![
        Section::of_type("Blob", blob::module()),
        Section::of_type("HostError", host_error::module()),
        Section::of_type("PendingRequest", pending_request::module()),
        Section::of_type("Response", response::module()),
        Section::of_type("Secret", secret::module()),
    ]
}
