//! What scripts hold that is no plain data, one type a file.

#[allow(dead_code, reason = "the network primitives, which come next, use all of it")]
mod blob;
#[allow(dead_code, reason = "the network primitives, which come next, use all of it")]
mod secret;

use rhai::Engine;

#[allow(unused_imports, reason = "the network primitives, which come next, make blobs of pieces")]
pub(super) use blob::{Blob, BlobWriter};
pub(super) use secret::Secret;

pub(super) fn register(engine: &mut Engine) {
    blob::register(engine);
    secret::register(engine);
}
