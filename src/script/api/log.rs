//! `log::`: lines in the engine's own log.

use crate::script::prelude::*;

const MAX_BYTES: usize = 8 * 1024;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Lines in the engine's own log, each cut at 8 KiB. A job's own lines are written by `job.log`.
#[export_module]
mod functions {
    /// For those who look for a fault; not shown by default.
    pub fn debug(text: &str) {
        tracing::debug!("script: {}", cut(text));
    }

    /// What happens, worth knowing.
    pub fn info(text: &str) {
        tracing::info!("script: {}", cut(text));
    }

    /// What somebody should look at.
    pub fn warn(text: &str) {
        tracing::warn!("script: {}", cut(text));
    }

    /// What somebody must act on.
    pub fn error(text: &str) {
        tracing::error!("script: {}", cut(text));
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_BYTES)]
}
