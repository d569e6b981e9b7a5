//! `blob::open(path)`, `blob::from_text(text)`, `blob::from_base64(text)`: blobs that come from no request.

use crate::script::prelude::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::fs::readable;
use crate::script::call::{ScriptResult, error};
use crate::script::types::Blob;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Makes blobs.
#[export_module]
mod functions {
    /// The file `path` as it is now, below the job's work directory or the machine's. Nothing is read before it is needed,
    /// and the blob stays whole when the file is replaced or removed.
    #[rhai_fn(return_raw)]
    pub fn open(path: &str) -> ScriptResult<Blob> {
        let place = readable(path)?;
        let opened = place.open().and_then(|file| Blob::of_file(file, None));
        opened.map_err(|cause| error(format!("{}: {cause}", place.shown().display())))
    }

    /// The bytes of `text` in UTF-8; its content type is `text/plain; charset=utf-8`.
    pub fn from_text(text: &str) -> Blob {
        Blob::new(text.as_bytes().to_vec(), Some("text/plain; charset=utf-8"))
    }

    /// The bytes that `text` stands for in base64; what a `data:` URL has in front of them is taken as the content type.
    /// Fails where it is no base64.
    #[rhai_fn(return_raw)]
    pub fn from_base64(text: &str) -> ScriptResult<Blob> {
        decode(text).map_err(|why| error(format!("blob::from_base64: {why}")))
    }
}

/// Base64, alone or as a `data:` URL.
pub(in crate::script) fn decode(text: &str) -> Result<Blob, String> {
    let (content_type, digits) = match text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        Some((content_type, digits)) => (Some(content_type).filter(|text| !text.is_empty()), digits),
        None => (None, text),
    };
    let bytes = BASE64_STANDARD.decode(digits.trim()).map_err(|cause| format!("it is no base64: {cause}"))?;
    Ok(Blob::new(bytes, content_type))
}
