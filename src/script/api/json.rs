//! `json::parse(text)` and `json::stringify(value)`.

use rhai::{Dynamic, FuncRegistration, Module};

use crate::script::call::{ScriptResult, error};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("parse").set_into_module(&mut module, |text: &str| -> ScriptResult<Dynamic> {
        serde_json::from_str(text).map_err(|cause| error(format!("not valid JSON: {cause}")))
    });
    FuncRegistration::new("stringify").set_into_module(&mut module, |value: Dynamic| -> ScriptResult<String> {
        let value: serde_json::Value = rhai::serde::from_dynamic(&value)?;
        Ok(value.to_string())
    });
    module
}
