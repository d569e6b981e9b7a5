//! `env::`: the engine's environment.

use crate::script::call::{Call, ScriptResult, error};
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The environment of the engine. Pure hooks have `m.env` instead.
#[export_module]
mod functions {
    /// The value of the environment variable `name`. Fails where it is not set.
    #[rhai_fn(return_raw)]
    pub fn get(name: &str) -> ScriptResult<String> {
        read(&Call::current()?, name).ok_or_else(|| error(format!("the environment variable {name} is not set")))
    }

    /// The value of the environment variable `name`, or `fallback` where it is not set.
    #[rhai_fn(name = "get", return_raw)]
    pub fn get_or(name: &str, fallback: &str) -> ScriptResult<String> {
        Ok(read(&Call::current()?, name).unwrap_or_else(|| fallback.to_owned()))
    }
}

fn read(call: &Call, name: &str) -> Option<String> {
    // A name with `=` or NUL names nothing, and asking for it would panic on some platforms.
    if name.is_empty() || name.contains(['=', '\0']) { None } else { call.variable(name)?.into_string().ok() }
}
