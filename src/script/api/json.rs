//! `json::`: data as text.

use crate::script::call::{ScriptResult, error};
use crate::script::data::{Secrets, to_json};
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Data as text.
#[export_module]
mod functions {
    /// The data that `text` holds as JSON: maps, arrays, texts, numbers, truths; `null` becomes `()`. Fails where it is
    /// no JSON, with line and column.
    #[rhai_fn(return_raw)]
    pub fn parse(text: &str) -> ScriptResult<Dynamic> {
        serde_json::from_str(text).map_err(|cause| error(format!("not valid JSON: {cause}")))
    }

    /// `value` as JSON on one line; `()` becomes `null`. Fails where it holds something that is no plain data.
    #[rhai_fn(return_raw)]
    pub fn stringify(value: Dynamic) -> ScriptResult<String> {
        Ok(to_json(&value, Secrets::Redact).map_err(error)?.to_string())
    }
}
