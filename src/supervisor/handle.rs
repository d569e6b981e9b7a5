use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::logs::ServiceLog;
use super::{LogLine, ServicesStatus};
use crate::base::Name;
use crate::host::process::Exit;
use crate::spec::MachineSpec;
use crate::telemetry::Published;

/// What one says to the supervisor. Each verb only queues a message; the outcome is seen in the published status.
#[derive(Clone)]
pub struct SupervisorHandle {
    pub(super) sender: Sender<Message>,
    pub(super) status: Published<ServicesStatus>,
    pub(super) logs: LogDirectory,
}

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

/// What the supervisor's thread turns on.
pub(super) enum Message {
    Apply(Arc<MachineSpec>, StartMode),
    Start(Name),
    Stop(Name),
    Restart(Name),
    StartAll,
    StopAll { deadline: Instant, done: oneshot::Sender<()> },
    Exited { name: Name, incarnation: u64, exit: Exit },
    ProbeHeld { name: Name, incarnation: u64 },
    ProbeFailed { name: Name, incarnation: u64, why: String },
    LineageGone { name: Name, incarnation: u64 },
}

/// The logs of all services, removed ones included until their name is forgotten.
pub(super) type LogDirectory = Arc<Mutex<BTreeMap<Name, ServiceLog>>>;

impl SupervisorHandle {
    /// Makes `spec` the services that there are: what is new is started (or held), what is gone is stopped, what differs
    /// is updated or restarted, what is equal is not touched.
    pub fn apply(&self, spec: Arc<MachineSpec>, mode: StartMode) {
        self.send(Message::Apply(spec, mode));
    }

    /// # Errors
    /// When there is no such service.
    pub fn start(&self, name: &Name) -> Result<(), UnknownService> {
        self.send_to(name, Message::Start(name.clone()))
    }

    /// # Errors
    /// When there is no such service.
    pub fn stop(&self, name: &Name) -> Result<(), UnknownService> {
        self.send_to(name, Message::Stop(name.clone()))
    }

    /// # Errors
    /// When there is no such service.
    pub fn restart(&self, name: &Name) -> Result<(), UnknownService> {
        self.send_to(name, Message::Restart(name.clone()))
    }

    /// Starts every held service.
    pub fn start_all(&self) {
        self.send(Message::StartAll);
    }

    /// Stops everything, dependants before what they need; returns when nothing is left, at the latest shortly after
    /// `deadline`, when what still runs is killed.
    pub async fn stop_all(&self, deadline: Instant) {
        let (done, finished) = oneshot::channel();
        self.send(Message::StopAll { deadline, done });
        // A supervisor that is gone has nothing left to stop.
        let _ = finished.await;
    }

    pub fn status(&self) -> Arc<ServicesStatus> {
        self.status.get()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<ServicesStatus>> {
        self.status.subscribe()
    }

    /// The lines after cursor `after` that are kept, the newest `limit` of them, oldest first; `name` none: of all
    /// services, by time (then `after` is not used).
    ///
    /// # Errors
    /// When there is no such service.
    pub fn logs(&self, name: Option<&Name>, after: u64, limit: usize) -> Result<Vec<LogLine>, UnknownService> {
        let Some(name) = name else {
            let all: Vec<ServiceLog> = self.lock_logs().values().cloned().collect();
            let mut lines: Vec<LogLine> = all.iter().flat_map(|log| log.lines(0, limit)).collect();
            lines.sort_by_key(|line| (line.at, line.seq));
            return Ok(lines.split_off(lines.len().saturating_sub(limit)));
        };
        self.log(name).map(|log| log.lines(after, limit))
    }

    /// Returns when the service may have lines after `after`, at the latest after `timeout`.
    pub async fn wait_logs(&self, name: &Name, after: u64, timeout: Duration) {
        match self.log(name) {
            Ok(log) => log.wait(after, timeout).await,
            Err(_) => tokio::time::sleep(timeout).await,
        }
    }

    fn log(&self, name: &Name) -> Result<ServiceLog, UnknownService> {
        self.lock_logs().get(name).cloned().ok_or_else(|| UnknownService { name: name.clone() })
    }

    fn lock_logs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, ServiceLog>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_to(&self, name: &Name, message: Message) -> Result<(), UnknownService> {
        if !self.status.get().services.contains_key(name) {
            return Err(UnknownService { name: name.clone() });
        }
        self.send(message);
        Ok(())
    }

    fn send(&self, message: Message) {
        // Fails only when the engine is past its end.
        let _ = self.sender.send(message);
    }
}
