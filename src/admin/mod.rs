//! HTTP: health, status, metrics, services, jobs, events. Reads published state; what changes something is sent on.

mod status;

pub use status::{
    Control, ControlReply, GenerationStatus, MachineIdentity, MachineState, MachineStatus, Rejection, StartupStep,
    StepState,
};
