//! The Rhai host: compiles programs, checks them, and runs their hooks on threads of their own, each with a deadline and a
//! cancel token, away from the async workers and without a lock.
//!
//! An engine is built once per program and shared; what belongs to one call (its deadline, its job) lies in the thread that
//! runs the call, see `call`.

mod api;
mod call;
mod config;
mod connector;
mod console;
mod context;
mod data;
mod engine;
mod error;
mod hooks;
mod lines;
mod lint;
mod locate;
mod options;
mod part_file;
mod prelude;
mod program;
mod reference;
mod resolver;
mod runner;
mod testing;
mod types;

pub use config::ConfigProblem;
pub use connector::{ConnectorContext, ConnectorProgram};
pub use console::{Console, NotTaken, Said, Shown, is_complete};
pub use context::MachineContext;
pub use hooks::{StepObserver, StepReport};
pub use program::{MachineProgram, ScriptHost, ScriptHostConfig};
pub use reference::{definitions, describe, reference};
pub use testing::{Report, Suite, Verdict};
