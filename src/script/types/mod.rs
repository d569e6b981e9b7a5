//! What scripts hold that is no plain data, one type a file.

mod blob;
mod host_error;
mod mask;
mod parts;
mod pending_request;
mod redis_client;
mod response;
mod secret;
mod store;
mod subscription;
mod web_socket;

use super::api::Section;

pub(super) use blob::{Blob, BlobWriter};
pub(super) use host_error::HostError;
pub(super) use mask::Mask;
pub(super) use pending_request::PendingRequest;
pub(super) use redis_client::{RedisClient, shown as shown_redis};
pub(super) use response::{BodyLimits, Response};
pub(super) use secret::Secret;
pub(super) use store::Store;
pub(super) use subscription::Subscription;
pub(super) use web_socket::WebSocket;

/// In the order of the reference.
pub(super) fn sections() -> Vec<Section> {
    vec![
        Section::of_type("Blob", blob::module()),
        Section::of_type("HostError", host_error::module()),
        Section::of_type("PendingRequest", pending_request::module()),
        Section::of_type("RedisClient", redis_client::module()),
        Section::of_type("Response", response::module()),
        Section::of_type("Secret", secret::module()),
        Section::of_type("Store", store::module()),
        Section::of_type("Subscription", subscription::module()),
        Section::of_type("WebSocket", web_socket::module()),
    ]
}
