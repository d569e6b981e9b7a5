use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{LogLine, ServicesStatus};
use crate::base::Name;
use crate::spec::MachineSpec;

/// What one says to the supervisor. Each verb only queues a message; the outcome is seen in the published status.
#[derive(Clone)]
pub struct SupervisorHandle {}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no service \"{name}\"")]
pub struct UnknownService {
    pub name: Name,
}

/// What new services are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Start as soon as what they need allows.
    All,
    /// Wait for [`SupervisorHandle::start`], as a `startup(m)` hook decides.
    Held,
}

#[expect(clippy::todo, unused_variables, clippy::unused_async, reason = "the contract; the supervisor fills it in")]
impl SupervisorHandle {
    /// Makes `spec` the services that there are: what is new is started (or held), what is gone is stopped, what differs
    /// is updated or restarted, what is equal is not touched.
    pub fn apply(&self, spec: Arc<MachineSpec>, mode: StartMode) {
        todo!()
    }

    /// # Errors
    /// When there is no such service.
    pub fn start(&self, name: &Name) -> Result<(), UnknownService> {
        todo!()
    }

    /// # Errors
    /// When there is no such service.
    pub fn stop(&self, name: &Name) -> Result<(), UnknownService> {
        todo!()
    }

    /// # Errors
    /// When there is no such service.
    pub fn restart(&self, name: &Name) -> Result<(), UnknownService> {
        todo!()
    }

    /// Starts every held service.
    pub fn start_all(&self) {
        todo!()
    }

    /// Stops everything, dependants before what they need; returns when nothing is left, at the latest shortly after
    /// `deadline`, when what still runs is killed.
    pub async fn stop_all(&self, deadline: Instant) {
        todo!()
    }

    pub fn status(&self) -> Arc<ServicesStatus> {
        todo!()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<ServicesStatus>> {
        todo!()
    }

    /// The lines after cursor `after` that are kept, the newest `limit` of them, oldest first; `name` none: of all
    /// services, by time (then `after` is not used).
    ///
    /// # Errors
    /// When there is no such service.
    pub fn logs(&self, name: Option<&Name>, after: u64, limit: usize) -> Result<Vec<LogLine>, UnknownService> {
        todo!()
    }

    /// Returns when the service may have lines after `after`, at the latest after `timeout`.
    pub async fn wait_logs(&self, name: &Name, after: u64, timeout: Duration) {
        todo!()
    }
}
