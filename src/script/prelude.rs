//! What the code names that `export_module` makes, which the macro decides, and what most primitives take.

pub(super) use rhai::Map;
pub(super) use rhai::plugin::*;
