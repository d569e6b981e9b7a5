//! `log::info(text)` and its siblings: lines in the engine's own log.

use rhai::{FuncRegistration, Module};

const MAX_BYTES: usize = 8 * 1024;

pub(super) fn module() -> Module {
    let mut module = Module::new();
    FuncRegistration::new("debug").set_into_module(&mut module, |text: &str| tracing::debug!("script: {}", cut(text)));
    FuncRegistration::new("info").set_into_module(&mut module, |text: &str| tracing::info!("script: {}", cut(text)));
    FuncRegistration::new("warn").set_into_module(&mut module, |text: &str| tracing::warn!("script: {}", cut(text)));
    FuncRegistration::new("error").set_into_module(&mut module, |text: &str| tracing::error!("script: {}", cut(text)));
    module
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_BYTES)]
}
