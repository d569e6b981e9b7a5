use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;
use nix::sys::signal::Signal;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::events::{ServiceChanged, ServiceExited, ServiceFailed, ServiceReady, ServiceRestarting, ServiceStarted};
use super::handle::{LogDirectory, Message, StartMode, SupervisorHandle};
use super::logs::{LogStream, ServiceLog, pump};
use super::probe;
use super::state::{Action, Event, Lifecycle, State};
use super::status::{Desired, ServiceState, ServiceStatus, ServicesStatus};
use crate::base::{Name, Timestamp};
use crate::host::process::{Exit, Processes, SpawnSpec, Stdin};
use crate::spec::{Condition, Diff, Kind, MachineSpec, Need, ProbeTarget, ServiceChange, ServiceSpec, StopSignal};
use crate::telemetry::{EventLog, Published};

/// What the kernel cannot end within this time is reported and left.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of a process waits for the end of its output.
const LAST_WORDS: Duration = Duration::from_millis(20);

pub struct SupervisorConfig {
    pub machine: Name,
    pub engine_incarnation: u64,
    pub processes: Processes,
    pub events: EventLog,
    /// Where services' log files go; none keeps no files.
    pub log_dir: Option<PathBuf>,
    /// Print services' lines on the engine's standard output too.
    pub passthrough: bool,
    pub default_cwd: PathBuf,
    /// The environment that services build on.
    pub base_env: Vec<(OsString, OsString)>,
    /// Where probes and log readers run.
    pub runtime: Handle,
}

/// The owner of all services; lives on a thread of its own.
pub struct Supervisor {
    config: SupervisorConfig,
    sender: Sender<Message>,
    spec: Arc<MachineSpec>,
    services: BTreeMap<Name, Service>,
    logs: LogDirectory,
    status: Published<ServicesStatus>,
    ending: Option<Ending>,
}

struct Service {
    spec: ServiceSpec,
    life: Lifecycle,
    incarnation: u64,
    pid: Option<u32>,
    started: Option<(Timestamp, Instant)>,
    last_exit: Option<Exit>,
    reason: Option<String>,
    since: Timestamp,
    shown: ServiceState,
    probe: Option<AbortHandle>,
    log: ServiceLog,
    /// Gone from the spec; forgotten when at rest.
    removed: bool,
}

struct Ending {
    deadline: Instant,
    killed: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Supervisor {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: SupervisorConfig) -> std::io::Result<SupervisorHandle> {
        let (sender, receiver) = mpsc::channel();
        let status = Published::new(ServicesStatus::default());
        let logs = LogDirectory::default();
        let handle = SupervisorHandle { sender: sender.clone(), status: status.clone(), logs: Arc::clone(&logs) };
        let supervisor =
            Self { config, sender, spec: Arc::default(), services: BTreeMap::new(), logs, status, ending: None };
        std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || supervisor.run(&receiver))?;
        Ok(handle)
    }

    fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            let message = match self.next_timer() {
                None => receiver.recv().ok(),
                Some(at) => match receiver.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            if let Some(message) = message {
                self.handle(message);
                // What came with it is one turn, and one publication.
                while let Ok(message) = receiver.try_recv() {
                    self.handle(message);
                }
            }
            self.fire_timers();
            self.progress();
            self.publish();
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Apply(spec, mode) => self.apply(spec, mode),
            Message::Start(name) => self.turn(&name, Event::Start),
            Message::Stop(name) => self.turn(&name, Event::Stop),
            Message::Restart(name) => self.turn(&name, Event::Restart),
            Message::StartAll => {
                let held = self.services.iter().filter(|(_, s)| {
                    s.life.desired == Desired::Down && s.life.state == State::Stopped && s.incarnation == 0
                });
                for name in held.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.turn(&name, Event::Start);
                }
            }
            Message::StopAll { deadline, done } => {
                let ending = self.ending.get_or_insert(Ending { deadline, killed: false, waiting: Vec::new() });
                ending.deadline = ending.deadline.min(deadline);
                ending.waiting.push(done);
            }
            Message::Exited { name, incarnation, exit } => self.exited(&name, incarnation, exit),
            Message::ProbeHeld { name, incarnation } if self.is_current(&name, incarnation) => {
                self.turn(&name, Event::ProbeHeld);
            }
            Message::ProbeFailed { name, incarnation, why } if self.is_current(&name, incarnation) => {
                if let Some(service) = self.services.get_mut(&name)
                    && matches!(service.life.state, State::Starting { .. })
                {
                    service.reason = Some(format!("not ready yet: {why}"));
                }
            }
            Message::LineageGone { name, incarnation } if self.is_current(&name, incarnation) => {
                self.turn(&name, Event::LineageGone);
            }
            Message::ProbeHeld { .. } | Message::ProbeFailed { .. } | Message::LineageGone { .. } => {}
        }
    }

    fn is_current(&self, name: &Name, incarnation: u64) -> bool {
        self.services.get(name).is_some_and(|service| service.incarnation == incarnation)
    }

    fn apply(&mut self, spec: Arc<MachineSpec>, mode: StartMode) {
        // What is being removed counts as gone already.
        let diff = Diff::between(&self.spec, &spec);
        self.spec = Arc::clone(&spec);
        for (name, change) in diff.services {
            let (what, fields) = match &change {
                ServiceChange::Added => ("added", Vec::new()),
                ServiceChange::Removed => ("removed", Vec::new()),
                ServiceChange::Restarted(fields) => ("restarted", fields.clone()),
                ServiceChange::Updated(fields) => ("updated", fields.clone()),
            };
            self.config.events.emit(&ServiceChanged { service: name.clone(), change: what, fields });
            match change {
                ServiceChange::Added => self.add(&name, mode),
                ServiceChange::Removed => {
                    self.turn(&name, Event::Stop);
                    if let Some(service) = self.services.get_mut(&name) {
                        service.removed = true;
                    }
                }
                ServiceChange::Restarted(_) => {
                    // The old process is stopped as its own spec says.
                    let up = self.services.get(&name).is_some_and(|service| service.life.desired == Desired::Up);
                    if up {
                        self.turn(&name, Event::Restart);
                    }
                    self.replace_spec(&name);
                }
                ServiceChange::Updated(_) => self.replace_spec(&name),
            }
        }
    }

    fn add(&mut self, name: &Name, mode: StartMode) {
        if self.services.contains_key(name) {
            // It was removed a moment ago and its process is not gone yet.
            self.replace_spec(name);
        } else if let Some(spec) = self.spec.service(name) {
            let directory = self.config.log_dir.as_deref();
            let log = ServiceLog::new(name, spec.logs, directory, self.config.passthrough);
            self.logs.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), log.clone());
            let service = Service {
                spec: spec.clone(),
                life: Lifecycle::new(),
                incarnation: 0,
                pid: None,
                started: None,
                last_exit: None,
                reason: None,
                since: Timestamp::now(),
                shown: ServiceState::Stopped,
                probe: None,
                log,
                removed: false,
            };
            self.services.insert(name.clone(), service);
        }
        if mode == StartMode::All {
            self.turn(name, Event::Start);
        }
    }

    fn replace_spec(&mut self, name: &Name) {
        if let (Some(service), Some(spec)) = (self.services.get_mut(name), self.spec.service(name)) {
            service.log.set_limits(spec.logs);
            service.spec = spec.clone();
            service.removed = false;
        }
    }

    fn exited(&mut self, name: &Name, incarnation: u64, exit: Exit) {
        let Some(service) = self.services.get_mut(name).filter(|service| service.incarnation == incarnation) else {
            return;
        };
        let asked = matches!(service.life.state, State::Stopping { .. });
        service.last_exit = Some(exit);
        let last_stderr = service.log.last_stderr(incarnation);
        let said = last_stderr.as_ref().filter(|_| !exit.success()).map(|line| format!(": {line}"));
        service.reason = (!asked).then(|| format!("{exit}{}", said.unwrap_or_default()));
        let pid = service.pid.unwrap_or(0);
        self.config.events.emit(&ServiceExited { service: name.clone(), pid, exit, asked, last_stderr });
        self.turn(name, Event::Exited(exit));
    }

    /// Lets one event happen to one service and does what it asks for.
    fn turn(&mut self, name: &Name, event: Event) {
        let Some(service) = self.services.get_mut(name) else { return };
        let before = service.life.shown();
        let restarts = service.life.restarts;
        let actions = service.life.handle(event, &service.spec, rand::random(), Instant::now());
        if service.life.restarts > restarts {
            let delay_ms = match service.life.state {
                State::Backoff { until } => until.saturating_duration_since(Instant::now()).as_millis(),
                State::Cleaning { after: super::state::After::Retry(delay) }
                | State::Stopping { after: super::state::After::Retry(delay), .. } => delay.as_millis(),
                _ => 0,
            };
            let why = service.reason.clone().unwrap_or_else(|| "it was not ready in time".to_owned());
            let delay_ms = u64::try_from(delay_ms).unwrap_or(u64::MAX);
            self.config.events.emit(&ServiceRestarting { service: name.clone(), delay_ms, why });
        }
        let after = service.life.shown();
        if after != before {
            self.announce(name, after);
        }
        for action in actions {
            self.perform(name, action);
        }
    }

    fn announce(&mut self, name: &Name, shown: ServiceState) {
        let Some(service) = self.services.get_mut(name) else { return };
        match shown {
            ServiceState::Ready => {
                let after_ms = service.started.map_or(0, |(_, at)| at.elapsed().as_millis());
                service.reason = None;
                let after_ms = u64::try_from(after_ms).unwrap_or(u64::MAX);
                self.config.events.emit(&ServiceReady { service: name.clone(), after_ms });
            }
            ServiceState::Failed => {
                let last = service.reason.take().unwrap_or_else(|| "it was not ready in time".to_owned());
                let why = if service.spec.kind == Kind::Service && service.life.restarts > 0 {
                    let limit = service.spec.restart.limit;
                    format!("failed more than {limit} times in {}; last: {last}", service.spec.restart.window)
                } else {
                    last
                };
                service.reason = Some(why.clone());
                self.config.events.emit(&ServiceFailed { service: name.clone(), why });
            }
            ServiceState::Stopped | ServiceState::Completed => service.reason = None,
            _ => {}
        }
    }

    fn perform(&mut self, name: &Name, action: Action) {
        let Some(service) = self.services.get_mut(name) else { return };
        match action {
            Action::Spawn => self.spawn(name),
            Action::BeginProbe => self.begin_probe(name),
            Action::EndProbe => {
                if let Some(probe) = service.probe.take() {
                    probe.abort();
                }
            }
            Action::Signal => {
                if let Some(pid) = service.pid {
                    self.config.processes.signal_group(pid, to_signal(service.spec.stop.signal));
                }
            }
            Action::Kill => {
                if let Some(pid) = service.pid {
                    self.config.processes.signal_group(pid, Signal::SIGKILL);
                }
            }
            Action::CleanLineage => self.clean_lineage(name),
        }
    }

    fn spawn(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        if let Some(why) = busy_port(&service.spec.ports) {
            service.reason = Some(why);
            service.last_exit = Some(Exit::NotStarted(nix::errno::Errno::EADDRINUSE as i32));
            return self.turn(name, Event::SpawnFailed);
        }
        service.incarnation += 1;
        let incarnation = service.incarnation;
        let spec = spawn_spec(&self.config, service);
        let (report, exit) = oneshot::channel();
        let on_exit = move |exit| {
            let _ = report.send(exit);
        };
        match self.config.processes.spawn(&spec, on_exit) {
            Ok(spawned) => {
                service.pid = Some(spawned.pid);
                service.started = Some((Timestamp::now(), Instant::now()));
                service.reason = None;
                let pid = spawned.pid;
                arm_log_probe(service, &self.sender);
                let log = service.log.clone();
                self.config.runtime.spawn(pump(spawned.stdout, log.clone(), incarnation, LogStream::Stdout));
                let stderr = self.config.runtime.spawn(pump(spawned.stderr, log, incarnation, LogStream::Stderr));
                let (sender, owner) = (self.sender.clone(), name.clone());
                self.config.runtime.spawn(async move {
                    let Ok(exit) = exit.await else { return };
                    // What it said last explains its end. A stray that holds the pipe open does not delay it much.
                    let _ = tokio::time::timeout(LAST_WORDS, stderr).await;
                    let _ = sender.send(Message::Exited { name: owner, incarnation, exit });
                });
                self.config.events.emit(&ServiceStarted { service: name.clone(), pid, incarnation });
                self.turn(name, Event::Spawned);
            }
            Err(cause) => {
                let program = service.spec.command[0].clone();
                service.reason = Some(match cause.raw_os_error() {
                    Some(libc::ENOENT) => format!("the program {program:?} is not there"),
                    _ => format!("{program:?} cannot be started: {cause}"),
                });
                service.last_exit = Some(Exit::NotStarted(cause.raw_os_error().unwrap_or(0)));
                self.turn(name, Event::SpawnFailed);
            }
        }
    }

    fn begin_probe(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(probe) = service.spec.ready.clone() else { return };
        let (incarnation, sender, owner) = (service.incarnation, self.sender.clone(), name.clone());
        if matches!(probe.target, ProbeTarget::Log(_)) {
            return; // Armed before the process could write: see `arm_log_probe`.
        }
        let processes = self.config.processes.clone();
        let spawn = spawn_spec(&self.config, service);
        let task = self.config.runtime.spawn(async move {
            loop {
                match probe::attempt(&probe.target, probe.timeout.get(), &processes, &spawn).await {
                    Ok(()) => {
                        let _ = sender.send(Message::ProbeHeld { name: owner, incarnation });
                        return;
                    }
                    Err(why) => {
                        let _ = sender.send(Message::ProbeFailed { name: owner.clone(), incarnation, why });
                    }
                }
                tokio::time::sleep(probe.every.get()).await;
            }
        });
        service.probe = Some(task.abort_handle());
    }

    /// Usually nothing is left, which a look at the engine's own children tells; the killing of strays takes its time on
    /// a thread of its own.
    fn clean_lineage(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(pid) = service.pid.take() else { return };
        let incarnation = service.incarnation;
        let mark = mark(&self.config, name, incarnation);
        if !self.config.processes.lineage_is_alive(pid, &mark) {
            return self.turn(name, Event::LineageGone);
        }
        let (processes, sender, owner) = (self.config.processes.clone(), self.sender.clone(), name.clone());
        let clean = move || {
            let killed = processes.kill_lineage(pid, &mark, KILL_PATIENCE);
            tracing::info!(service = %owner, "killed {killed} processes that {owner} (pid {pid}) left behind");
            let _ = sender.send(Message::LineageGone { name: owner, incarnation });
        };
        let thread = std::thread::Builder::new().name("clean".to_owned()).spawn(clean);
        if let Err(cause) = thread {
            tracing::error!(service = %name, "strays of {name} may be left, no thread to kill them: {cause}");
            self.turn(name, Event::LineageGone);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let services = self.services.values().filter_map(|service| service.life.timer_at());
        let ending = self.ending.as_ref().filter(|ending| !ending.killed).map(|ending| ending.deadline);
        services.chain(ending).min()
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        let due = self.services.iter().filter(|(_, service)| service.life.timer_at().is_some_and(|at| at <= now));
        for name in due.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.turn(&name, Event::Timer);
        }
    }

    /// Moves on whatever can be moved now: the ending, and services whose needs are met. One step may allow the next.
    fn progress(&mut self) {
        self.progress_ending();
        loop {
            let waiting = self.services.iter().filter(|(_, service)| service.life.state == State::Waiting);
            let names: Vec<Name> = waiting.map(|(name, _)| name.clone()).collect();
            let mut started = false;
            for name in names {
                if self.ending.is_some() {
                    break;
                }
                match self.unmet_need(&name) {
                    None => {
                        self.turn(&name, Event::NeedsMet);
                        started = true;
                    }
                    Some(why) => {
                        if let Some(service) = self.services.get_mut(&name) {
                            service.reason = Some(why);
                        }
                    }
                }
            }
            if !started {
                break;
            }
        }
        let logs = &self.logs;
        self.services.retain(|name, service| {
            let gone = service.removed && service.life.state == State::Stopped;
            if gone {
                logs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                for metric in ["machinist_service_up", "machinist_service_ready"] {
                    gauge!(metric, "service" => name.to_string()).set(0.0);
                }
            }
            !gone
        });
    }

    fn unmet_need(&self, name: &Name) -> Option<String> {
        let needs = self.services.get(name)?.spec.waits_for(&self.spec);
        needs.into_iter().find_map(|Need { service, condition }| {
            let Some(needed) = self.services.get(&service) else {
                return Some(format!("waits for {service}, which is not there"));
            };
            let shown = needed.life.shown();
            let (met, what) = match condition {
                Condition::Started => (
                    matches!(shown, ServiceState::Starting | ServiceState::Ready | ServiceState::Completed),
                    "to be started",
                ),
                Condition::Ready => (shown == ServiceState::Ready, "to be ready"),
                Condition::Completed => (shown == ServiceState::Completed, "to complete"),
            };
            (!met).then(|| format!("waits for {service} {what}; {service} is {shown}"))
        })
    }

    /// Stops what nothing that still runs depends on; kills what is left at the deadline.
    fn progress_ending(&mut self) {
        let Some(ending) = &mut self.ending else { return };
        if Instant::now() >= ending.deadline && !ending.killed {
            ending.killed = true;
            for name in self.services.keys().cloned().collect::<Vec<_>>() {
                self.turn(&name, Event::Stop);
                self.turn(&name, Event::KillNow);
            }
        }
        loop {
            let wanted = |service: &&Service| service.life.desired == Desired::Up;
            let next = self.services.values().filter(wanted).find(|service| {
                let name = &service.spec.name;
                !service.life.has_process() || !self.has_running_dependant(name)
            });
            let Some(name) = next.map(|service| service.spec.name.clone()) else { break };
            self.turn(&name, Event::Stop);
        }
        if self.services.values().all(|service| !service.life.has_process())
            && let Some(ending) = &mut self.ending
        {
            for done in ending.waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn has_running_dependant(&self, name: &Name) -> bool {
        self.services.values().any(|other| {
            other.life.has_process() && other.spec.waits_for(&self.spec).iter().any(|need| need.service == *name)
        })
    }

    fn publish(&mut self) {
        let mut services = BTreeMap::new();
        for (name, service) in &mut self.services {
            let shown = service.life.shown();
            if shown != service.shown {
                service.shown = shown;
                service.since = Timestamp::now();
                let up = f64::from(u8::from(service.pid.is_some()));
                gauge!("machinist_service_up", "service" => name.to_string()).set(up);
                let ready = f64::from(u8::from(matches!(shown, ServiceState::Ready | ServiceState::Completed)));
                gauge!("machinist_service_ready", "service" => name.to_string()).set(ready);
            }
            let status = ServiceStatus {
                name: name.clone(),
                kind: service.spec.kind,
                desired: service.life.desired,
                state: shown,
                since: service.since,
                pid: service.pid,
                incarnation: service.incarnation,
                restarts: service.life.restarts,
                started: service.started.filter(|_| service.pid.is_some()).map(|(at, _)| at),
                last_exit: service.last_exit,
                reason: service.reason.clone(),
                critical: service.spec.critical,
            };
            services.insert(name.clone(), status);
        }
        self.status.set_if_changed(ServicesStatus { services });
    }
}

/// Asks the log for the line that makes the service ready, before anything of its output is read.
fn arm_log_probe(service: &mut Service, sender: &Sender<Message>) {
    let Some(ProbeTarget::Log(pattern)) = service.spec.ready.as_ref().map(|probe| &probe.target) else { return };
    // The pattern was compiled when the spec was checked.
    let Ok(pattern) = regex::Regex::new(pattern) else { return };
    service.reason = Some(format!("waits for a line that matches {:?}", pattern.as_str()));
    let (sender, name, incarnation) = (sender.clone(), service.spec.name.clone(), service.incarnation);
    service.log.watch_for(incarnation, pattern, move || {
        let _ = sender.send(Message::ProbeHeld { name, incarnation });
    });
}

fn mark(config: &SupervisorConfig, name: &Name, incarnation: u64) -> String {
    format!("{}/{}/{name}/{incarnation}", config.machine, config.engine_incarnation)
}

/// The environment is computed from the spec of now, at every start.
fn spawn_spec(config: &SupervisorConfig, service: &Service) -> SpawnSpec {
    let spec = &service.spec;
    let own = spec.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let base = config.base_env.iter().filter(|(name, _)| !name.to_str().is_some_and(|n| spec.env.contains_key(n)));
    let named = (OsString::from("MACHINIST_SERVICE"), OsString::from(spec.name.as_str()));
    let cwd = spec.cwd.as_ref().map_or_else(|| config.default_cwd.clone(), |cwd| config.default_cwd.join(cwd));
    SpawnSpec {
        argv: spec.command.clone(),
        cwd: Some(cwd),
        env: base.cloned().chain(own).chain([named]).collect(),
        stdin: Stdin::Null,
        mark: mark(config, &spec.name, service.incarnation),
    }
}

/// The first port that somebody listens on already. A listener on any address counts: the service could not tell either.
fn busy_port(ports: &[u16]) -> Option<String> {
    ports.iter().find_map(|port| {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
        let cause = TcpListener::bind(address).err()?;
        (cause.kind() == std::io::ErrorKind::AddrInUse).then(|| format!("port {port} is taken by another process"))
    })
}

fn to_signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Quit => Signal::SIGQUIT,
        StopSignal::Hup => Signal::SIGHUP,
        StopSignal::Usr1 => Signal::SIGUSR1,
        StopSignal::Usr2 => Signal::SIGUSR2,
        StopSignal::Kill => Signal::SIGKILL,
    }
}
