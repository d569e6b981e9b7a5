//! Workers: claim, keep the lease, run each job through a [`Connector`], finish, drain.
//!
//! Each worker is one task that claims while it may and has free slots; each job is a task of its own that ends by
//! delivering its outcome, however long the queue takes to accept it; one task per worker keeps the lease.

mod abilities;
mod circuit;
mod connector;
mod events;
mod job;
mod status;
mod task;
mod trace;

pub use connector::{Connector, JobContext, JobSink};
pub use events::event_kinds;
pub use status::{InventoryStatus, RunningJob, WorkerState, WorkerStatus};
pub use task::{Readiness, Worker, WorkerConfig, WorkerHandle};
