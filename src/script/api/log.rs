//! `log::`: lines in the engine's own log.

use crate::script::lines::write;
use crate::script::prelude::*;
use crate::telemetry::Level;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Lines in the engine's own log, each cut at 8 KiB; `print` and `debug` write there as well. Of one call, 200 at once and 20
/// a second are kept, and the log says how many were left out. A job's own lines are written by `job.log`.
#[export_module]
mod functions {
    /// For those who look for a fault; not shown by default.
    pub fn debug(text: &str) {
        write(None, text);
    }

    /// What happens, worth knowing.
    pub fn info(text: &str) {
        write(Some(Level::Info), text);
    }

    /// What somebody should look at.
    pub fn warn(text: &str) {
        write(Some(Level::Warn), text);
    }

    /// What somebody must act on.
    pub fn error(text: &str) {
        write(Some(Level::Error), text);
    }
}
