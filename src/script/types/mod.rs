//! What scripts hold that is no plain data, one type a file.

#[allow(dead_code, reason = "the network primitives, which come next, use all of it")]
mod blob;
#[allow(dead_code, reason = "the network primitives, which come next, use all of it")]
mod secret;

use super::api::Section;

#[allow(unused_imports, reason = "the network primitives, which come next, make blobs of pieces")]
pub(super) use blob::{Blob, BlobWriter};
pub(super) use secret::Secret;

/// In the order of the reference.
pub(super) fn sections() -> Vec<Section> {
    vec![Section::of_type("Blob", blob::module()), Section::of_type("Secret", secret::module())]
}
