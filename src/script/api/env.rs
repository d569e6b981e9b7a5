//! `env::get(name)`, `env::get(name, fallback)`, `env::has(name)`: the engine's environment.

use rhai::{FuncRegistration, Module};

use crate::script::call::{Call, ScriptResult, error};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("get").set_into_module(&mut module, |name: &str| -> ScriptResult<String> {
        Call::current()?;
        read(name).ok_or_else(|| error(format!("the environment variable {name} is not set")))
    });
    FuncRegistration::new("get").set_into_module(&mut module, |name: &str, fallback: &str| -> ScriptResult<String> {
        Call::current()?;
        Ok(read(name).unwrap_or_else(|| fallback.to_owned()))
    });
    module
}

fn read(name: &str) -> Option<String> {
    // A name with `=` or NUL names nothing, and asking for it would panic on some platforms.
    if name.is_empty() || name.contains(['=', '\0']) { None } else { std::env::var(name).ok() }
}
