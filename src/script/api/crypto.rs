//! `crypto::`: digests, base64, identifiers.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::script::call::{ScriptResult, error};
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Digests, base64 and identifiers of texts.
#[export_module]
mod functions {
    /// The SHA-256 of `text` in UTF-8, as 64 hexadecimal digits.
    pub fn sha256(text: &str) -> String {
        digest(text.as_bytes())
    }

    /// `text` in UTF-8 as base64, with padding.
    pub fn base64_encode(text: &str) -> String {
        BASE64_STANDARD.encode(text.as_bytes())
    }

    /// The text that `text` stands for in base64. Fails where it is no base64, or the bytes are no UTF-8 text.
    #[rhai_fn(return_raw)]
    pub fn base64_decode(text: &str) -> ScriptResult<String> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|cause| error(format!("not valid base64: {cause}")))?;
        String::from_utf8(bytes).map_err(|_| error("the decoded bytes are no UTF-8 text"))
    }

    /// A new random identifier (UUID, version 4).
    pub fn uuid() -> String {
        uuid::Uuid::new_v4().to_string()
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
