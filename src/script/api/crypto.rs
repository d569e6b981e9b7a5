//! `crypto::sha256(text)`, `crypto::base64_encode(text)`, `crypto::base64_decode(text)`, `crypto::uuid()`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhai::{FuncRegistration, Module};
use sha2::{Digest, Sha256};

use crate::script::call::{ScriptResult, error};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("sha256").set_into_module(&mut module, |text: &str| sha256(text.as_bytes()));
    FuncRegistration::new("base64_encode")
        .set_into_module(&mut module, |text: &str| BASE64_STANDARD.encode(text.as_bytes()));
    FuncRegistration::new("base64_decode").set_into_module(&mut module, |text: &str| -> ScriptResult<String> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|cause| error(format!("not valid base64: {cause}")))?;
        String::from_utf8(bytes).map_err(|_| error("the decoded bytes are no UTF-8 text"))
    });
    FuncRegistration::new("uuid").set_into_module(&mut module, || uuid::Uuid::new_v4().to_string());
    module
}

/// In hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
