//! HTTP: health, status, metrics, services, jobs, events. Reads published state; what changes something is sent on.

mod auth;
mod console;
mod error;
mod events;
mod extract;
mod health;
mod jobs;
mod machines;
mod metrics;
mod openapi;
mod plan;
mod queue;
mod route;
mod routes;
mod server;
mod services;
mod status;

pub use console::{Consoles, event_kinds};
pub use health::{Check, Health, health_of};
pub use machines::MachineSummary;
pub use metrics::Looks;
pub use openapi::openapi;
pub use plan::ReloadPlan;
pub use server::{AdminDeps, serve};
pub use status::{
    ConsoleGround, Control, ControlReply, GenerationStatus, HostStatus, MachineIdentity, MachineState, MachineStatus,
    ProbationStatus, Rejection, StartupStep, StepState,
};
