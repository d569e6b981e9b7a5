//! `json::parse(text)` and `json::stringify(value)`.

use rhai::{Dynamic, FuncRegistration, Module};

use crate::script::call::{ScriptResult, error};
use crate::script::data::{Secrets, to_json};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("parse").set_into_module(&mut module, |text: &str| -> ScriptResult<Dynamic> {
        serde_json::from_str(text).map_err(|cause| error(format!("not valid JSON: {cause}")))
    });
    FuncRegistration::new("stringify").set_into_module(&mut module, |value: Dynamic| -> ScriptResult<String> {
        Ok(to_json(&value, Secrets::Redact).map_err(error)?.to_string())
    });
    module
}
