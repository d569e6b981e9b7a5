//! The hooks of a machine's script, one file each.

mod on_event;
mod recover;
mod service;
mod services;
mod shutdown;
mod startup;
mod table;

use std::time::Duration;

pub use startup::{StepObserver, StepReport};

pub(super) use table::{CONNECTOR_HOOKS, Hook, MACHINE_HOOKS};

/// Pure hooks compute; this is generous.
const PURE_LIMIT: Duration = Duration::from_secs(5);
