//! Workers: claim, keep the lease, run each job through a [`Connector`], finish, drain.

mod connector;
mod status;

pub use connector::{Connector, JobContext, JobSink};
pub use status::{RunningJob, WorkerState, WorkerStatus};
