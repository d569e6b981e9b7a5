use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::generation::{Generation, Refused};
use super::handle::Limits;
use super::probation::Trial;
use crate::admin::ControlReply;
use crate::base::Name;
use crate::host::{Gpu, Level};
use crate::supervisor::ServicesStatus;
use crate::worker::WorkerStatus;

/// What the event loop turns on. Everything that happens to a machine arrives as one of these.
#[derive(Debug)]
pub enum Event {
    /// The supervisor published a new state of the services.
    Services(Arc<ServicesStatus>),
    /// What the workers are doing, some of them something new.
    Workers(BTreeMap<Name, WorkerStatus>),
    /// The latest word from the queue: reachable, or why not.
    Queue(Result<(), String>),
    /// What is short now; nothing when nothing is.
    Resources(Vec<Level>),
    /// The GPUs that are not to be used now.
    Gpus(Vec<WithdrawnGpu>),
    /// The `recover` hook is called for what is short.
    RecoveryBegun,
    /// It has returned.
    RecoveryEnded,
    /// The start-up sequence is through, or why it failed.
    StartupEnded(Result<(), String>),
    ReloadWanted(ReloadCause, Option<Asker>),
    /// What the latest build came to.
    ReloadBuilt(Result<Box<Generation>, Refused>),
    /// A generation is live from now on, and on probation where it touched something.
    WentLive(Trial, Limits, Vec<Asker>),
    /// A reload led to what runs already, or to what was rolled back: no commit, by the hash of the files.
    Unchanged(String, Vec<Asker>),
    /// The generation before is live again; statuses of services know of it from this revision on.
    RolledBack(u64, Limits),
    StopWanted(StopCause, Option<oneshot::Sender<ControlReply>>),
    /// No worker runs a job any more.
    WorkersStopped,
    /// No service has a process any more.
    ServicesStopped,
    /// The time asked for with [`super::handle::Machine::next_deadline`] has come.
    Deadline,
}

/// A GPU that gets no jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct WithdrawnGpu {
    pub gpu: Gpu,
    /// It does not answer: nothing that needs it can run.
    pub lost: bool,
    /// One sentence, with its name.
    pub why: String,
}

/// Somebody who asked for a reload.
#[derive(Debug)]
pub struct Asker {
    pub reply: oneshot::Sender<ControlReply>,
    /// Wants to know whether the generation passes its probation, not only that it is live.
    pub verdict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadCause {
    FilesChanged,
    Hangup,
    Request,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    Signal(&'static str),
    Request,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "stopped by {name}"),
            Self::Request => f.write_str("stopped by request"),
        }
    }
}
