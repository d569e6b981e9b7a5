//! The composition root and the one event loop.
//!
//! `run` builds the parts and turns events into effects: `handle` decides (pure), `perform` acts. Everything that happens
//! arrives as an `Event`; nothing else holds the state of the machine.

mod announcement;
mod announcer;
mod boot;
mod event;
mod event_hook;
mod events;
mod generation;
mod gpu_events;
mod gpus;
mod handle;
mod perform;
mod plan;
mod probation;
mod publish;
mod resources;
mod service_hooks;
mod startup;
mod unmatched;
mod workers;

pub use announcement::Announcement;
pub use boot::{MachineError, machine_context, run};
pub use events::event_kinds;
pub use generation::{BuildInputs, Generation, Refused, build};
