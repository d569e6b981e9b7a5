//! `env::get(name)`, `env::get(name, fallback)`, `env::has(name)`: the engine's environment.

use rhai::{FuncRegistration, Module};

use crate::script::call::{ScriptResult, error};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("get").set_into_module(&mut module, |name: &str| -> ScriptResult<String> {
        read(name).ok_or_else(|| error(format!("the environment variable {name} is not set")))
    });
    FuncRegistration::new("get")
        .set_into_module(&mut module, |name: &str, fallback: &str| read(name).unwrap_or_else(|| fallback.to_owned()));
    FuncRegistration::new("has").set_into_module(&mut module, |name: &str| read(name).is_some());
    module
}

fn read(name: &str) -> Option<String> {
    // A name with `=` or NUL names nothing, and asking for it would panic on some platforms.
    if name.is_empty() || name.contains(['=', '\0']) { None } else { std::env::var(name).ok() }
}
