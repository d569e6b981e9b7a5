//! `clock::`: the virtual clock of a test.

use super::world;
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::duration;
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The clock of a test. It begins at 2026-01-01T00:00:00Z, stands still while scripts compute, and jumps where they wait.
#[export_module]
mod functions {
    /// The time now, in seconds since the test began.
    #[rhai_fn(return_raw)]
    pub fn now() -> ScriptResult<f64> {
        Call::current()?;
        Ok(world::elapsed().as_secs_f64())
    }

    /// Moves the clock on by `time`, seconds or a text such as `"5s"`.
    #[rhai_fn(return_raw)]
    pub fn advance(time: Dynamic) -> ScriptResult<()> {
        let time = duration(&time).map_err(|why| error(format!("clock::advance: {why}")))?;
        Call::current()?.sleep(time)
    }
}
