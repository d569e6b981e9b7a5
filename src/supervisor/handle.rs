use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::hooks::ServiceHooks;
use super::logs::{LogFilter, ServiceLog};
use super::measure::Trees;
use super::notify::Notice;
use super::probe::Verdict;
use super::{LogLine, ServicesStatus};
use crate::base::Name;
use crate::host::Usage;
use crate::host::process::Exit;
use crate::spec::{GpuRef, MachineSpec, ProbeKind};
use crate::telemetry::Published;

/// What one says to the supervisor. Each verb only queues a message; the outcome is seen in the published status.
#[derive(Clone)]
pub struct SupervisorHandle {
    pub(super) sender: Sender<Message>,
    pub(super) status: Published<ServicesStatus>,
    pub(super) logs: LogDirectory,
    pub(super) trees: Trees,
    /// The number of the newest message that has one; those are sent under its lock, in their order.
    pub(super) revision: Arc<Mutex<u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no service \"{name}\"")]
pub struct UnknownService {
    pub name: Name,
}

/// A GPU that no process can use now.
#[derive(Clone, Debug, PartialEq)]
pub struct LostGpu {
    pub gpu: GpuRef,
    pub why: String,
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
    Apply(Arc<MachineSpec>, StartMode, u64),
    Start(Name),
    Stop(Name),
    Restart(Name),
    StartAll(u64),
    StopAll {
        deadline: Instant,
        done: oneshot::Sender<()>,
    },
    Hooks(Arc<dyn ServiceHooks>),
    HoldFor(Vec<LostGpu>),
    Exited {
        name: Name,
        incarnation: u64,
        exit: Exit,
    },
    /// What explains the end, when everything that the process wrote is read.
    LastWords {
        name: Name,
        incarnation: u64,
        last_stderr: Option<String>,
        out_of_memory: bool,
    },
    Probed {
        name: Name,
        incarnation: u64,
        kind: ProbeKind,
        verdict: Verdict,
    },
    Notified {
        name: Name,
        incarnation: u64,
        notice: Notice,
    },
    Drained {
        name: Name,
        incarnation: u64,
        outcome: Result<(), String>,
    },
    LineageGone {
        name: Name,
        incarnation: u64,
        met: usize,
    },
    OverLimit {
        name: Name,
        incarnation: u64,
        why: String,
    },
    /// A watched file of it has changed.
    Touched {
        name: Name,
    },
}

/// The logs of all services, removed ones included until their name is forgotten.
pub(super) type LogDirectory = Arc<Mutex<BTreeMap<Name, ServiceLog>>>;

impl SupervisorHandle {
    /// Makes `spec` the services that there are: what is new is started (or held), what is gone is stopped, what differs
    /// is updated or restarted, what is equal is not touched. Answers with the revision of the status that knows of it.
    pub fn apply(&self, spec: Arc<MachineSpec>, mode: StartMode) -> u64 {
        self.send_numbered(|revision| Message::Apply(spec, mode, revision))
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

    /// Starts every held service. Answers with the revision of the status in which they are wanted up.
    pub fn start_all(&self) -> u64 {
        self.send_numbered(Message::StartAll)
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

    /// The GPUs that are lost now: services pinned to one of them are stopped and wait until it is no longer among them.
    pub fn hold_for(&self, lost: Vec<LostGpu>) {
        self.send(Message::HoldFor(lost));
    }

    /// Whom probes and drain hooks that name a function of the script call.
    pub fn set_hooks(&self, hooks: Arc<dyn ServiceHooks>) {
        self.send(Message::Hooks(hooks));
    }

    /// What every service's process tree uses now; shared memory is read within `budget`. Blocks while it reads `/proc`.
    pub fn usage(&self, budget: Duration) -> BTreeMap<Name, Usage> {
        self.trees.measure(budget, &BTreeSet::new()).0
    }

    /// The same, and the services that these processes belong to.
    pub fn usage_and_owners(
        &self,
        budget: Duration,
        pids: &BTreeSet<u32>,
    ) -> (BTreeMap<Name, Usage>, BTreeMap<u32, Name>) {
        self.trees.measure(budget, pids)
    }

    /// The lines after cursor `after` that are kept, the newest `limit` of them that the filter takes, oldest first; `name`
    /// none: of all services, by time (then `after` is not used).
    ///
    /// # Errors
    /// When there is no such service.
    pub fn logs(
        &self,
        name: Option<&Name>,
        after: u64,
        limit: usize,
        filter: &LogFilter,
    ) -> Result<Vec<LogLine>, UnknownService> {
        let Some(name) = name else {
            let all: Vec<ServiceLog> = self.lock_logs().values().cloned().collect();
            let mut lines: Vec<LogLine> = all.iter().flat_map(|log| log.lines(0, limit, filter)).collect();
            lines.sort_by_key(|line| (line.at, line.seq));
            return Ok(lines.split_off(lines.len().saturating_sub(limit)));
        };
        self.log(name).map(|log| log.lines(after, limit, filter))
    }

    /// The cursor of the newest line of a service, whatever a filter takes.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn latest_log(&self, name: &Name) -> Result<u64, UnknownService> {
        self.log(name).map(|log| log.latest())
    }

    /// Lines that limits or disks took, by service.
    pub fn dropped_lines(&self) -> BTreeMap<Name, u64> {
        self.lock_logs().iter().map(|(name, log)| (name.clone(), log.dropped())).collect()
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

    fn send_numbered(&self, message: impl FnOnce(u64) -> Message) -> u64 {
        let mut revision = self.revision.lock().unwrap_or_else(PoisonError::into_inner);
        *revision += 1;
        self.send(message(*revision));
        *revision
    }

    fn send(&self, message: Message) {
        // Fails only when the engine is past its end.
        let _ = self.sender.send(message);
    }
}
