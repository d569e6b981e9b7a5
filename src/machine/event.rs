use std::sync::Arc;

use tokio::sync::oneshot;

use super::generation::Generation;
use crate::admin::ControlReply;
use crate::base::Problems;
use crate::host::Level;
use crate::supervisor::ServicesStatus;

/// What the event loop turns on. Everything that happens to a machine arrives as one of these.
#[derive(Debug)]
pub enum Event {
    /// The supervisor published a new state of the services.
    Services(Arc<ServicesStatus>),
    /// A worker published a new state.
    Workers,
    /// The latest word from the queue: reachable, or why not.
    Queue(Result<(), String>),
    /// What is short now; nothing when nothing is.
    Resources(Vec<Level>),
    /// The `recover` hook is called for what is short.
    RecoveryBegun,
    /// It has returned.
    RecoveryEnded,
    /// The start-up sequence is through, or why it failed.
    StartupEnded(Result<(), String>),
    ReloadWanted(ReloadCause, Option<oneshot::Sender<ControlReply>>),
    /// What the latest build came to.
    ReloadBuilt(Result<Box<Generation>, Problems>),
    StopWanted(StopCause, Option<oneshot::Sender<ControlReply>>),
    /// No worker runs a job any more.
    WorkersStopped,
    /// No service has a process any more.
    ServicesStopped,
    /// The time asked for with [`super::handle::Machine::next_deadline`] has come.
    Deadline,
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
