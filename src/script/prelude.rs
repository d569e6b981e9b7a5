//! What the code names that `export_module` makes; the macro decides what that is.

pub(super) use rhai::plugin::*;
