//! machinist turns a container or a workstation into a *machine*: it boots services in order, keeps them alive, claims
//! the jobs it is able to run from a queue, runs each through a connector and reports health and metrics.
//!
//! The modules are declared in import order: a module uses only those above it (`tests/architecture.rs` holds this).
//! ARCHITECTURE.md explains the parts and what they promise each other.

pub mod base;

pub mod telemetry;

pub mod spec;

pub mod settings;

pub mod host;

pub mod queue;

pub mod supervisor;

pub mod worker;

pub mod script;

pub mod admin;

pub mod machine;

pub mod cli;
