use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;
use nix::sys::signal::Signal;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::events::{
    DrainFailed, LimitExceeded, ServiceChanged, ServiceExited, ServiceFailed, ServiceHeld, ServiceReady,
    ServiceRestarting, ServiceStarted, ServiceUnready, StraysEnded,
};
use super::handle::{LogDirectory, LostGpu, Message, StartMode, SupervisorHandle};
use super::hooks::ServiceHooks;
use super::logs::{Collector, LogSinks, ServiceLog, Streams};
use super::measure::{Tree, Trees};
use super::notify::{Notice, NotifySocket};
use super::probe::{self, Prober, Verdict};
use super::state::{Action, After, Event, Lifecycle, State};
use super::status::{Desired, ServiceState, ServiceStatus, ServicesStatus};
use crate::base::{ByteSize, Name, Timestamp};
use crate::host::process::{ExecSetup, Exit, Hurry, Lineage, Processes, SpawnSpec, Stdin, row};
use crate::host::{self, Cgroup, CgroupLimits, Cgroups, FileWatcher, Known};
use crate::spec::{
    Condition, Diff, DrainTarget, Kind, LogFileFormat, MachineSpec, Need, ProbeKind, ProbeTarget, ServiceChange,
    ServiceSpec, StopSignal,
};
use crate::telemetry::{EventLog, Observed, Published};

/// What the kernel cannot end within this time is reported and left.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// After a spawn nobody is told anything for so long: whoever listens would wake up, and take the CPU from the program that
/// is just starting.
const SETTLE: Duration = Duration::from_millis(1);
/// Between two publications of the status when much happens.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);
/// A schedule is looked at again at least so often, since somebody may set the clock.
const LONGEST_SCHEDULE: Duration = Duration::from_secs(3600);
/// Quiet time after a watched file changed, and the time between two looks where nothing is reported.
const WATCH_DEBOUNCE: Duration = Duration::from_millis(500);
const WATCH_POLL: Duration = Duration::from_secs(10);
/// The last lines have so long to reach the disk.
const LOG_FLUSH: Duration = Duration::from_secs(2);

pub struct SupervisorConfig {
    pub machine: Name,
    pub engine_incarnation: u64,
    pub processes: Processes,
    pub events: EventLog,
    /// Where services' log files go; none keeps no files.
    pub log_dir: Option<PathBuf>,
    /// Print services' lines on the engine's standard output too, in this format.
    pub passthrough: Option<LogFileFormat>,
    pub default_cwd: PathBuf,
    /// The environment that services build on.
    pub base_env: Vec<(OsString, OsString)>,
    /// Where probes run.
    pub runtime: Handle,
}

/// The owner of all services; lives on a thread of its own.
pub struct Supervisor {
    config: SupervisorConfig,
    sender: Sender<Message>,
    spec: Arc<MachineSpec>,
    revision: u64,
    services: BTreeMap<Name, Service>,
    logs: LogDirectory,
    sinks: LogSinks,
    collector: Collector,
    trees: Trees,
    /// A thread measures trees that have limits.
    measuring: bool,
    /// Looked for when the first service wants one; none within where none can be made.
    cgroups: OnceCell<Option<Cgroups>>,
    hooks: Option<Arc<dyn ServiceHooks>>,
    lost_gpus: Vec<LostGpu>,
    status: Published<ServicesStatus>,
    published: Instant,
    publish_at: Option<Instant>,
    settle_at: Option<Instant>,
    /// Told when the turn is over, so that nobody who listens comes before the next start.
    announcements: Vec<(Streams, Announcement)>,
    /// The kernel's count of processes killed for want of memory, as last seen.
    oom_kills: Arc<AtomicU64>,
    ending: Option<Ending>,
}

type Announcement = Box<dyn FnOnce(&EventLog) + Send>;

struct Service {
    spec: ServiceSpec,
    life: Lifecycle,
    incarnation: u64,
    pid: Option<u32>,
    /// What the process that runs, or ran last, was given for itself.
    holds: Holds,
    lineage: Option<Lineage>,
    streams: Streams,
    started: Option<(Timestamp, Instant)>,
    last_exit: Option<Exit>,
    /// Nothing of it is left, and its last words are still to come.
    awaits_last_words: bool,
    gone_before_words: bool,
    reason: Option<String>,
    /// The GPU that keeps it from running.
    held: Option<String>,
    says: Option<String>,
    detached: Vec<u32>,
    since: Timestamp,
    shown: ServiceState,
    probes: BTreeMap<ProbeKind, AbortHandle>,
    notify: Option<AbortHandle>,
    drain: Option<AbortHandle>,
    watch: Option<CancellationToken>,
    next_run: Option<(Timestamp, Instant)>,
    cgroup: Option<Cgroup>,
    oom_before: u64,
    hurry: Hurry,
    log: ServiceLog,
    /// What was published last.
    status: Arc<ServiceStatus>,
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
    /// When a thread cannot be started.
    pub fn start(config: SupervisorConfig) -> std::io::Result<SupervisorHandle> {
        let (sender, receiver) = mpsc::channel();
        let status = Published::new(ServicesStatus::default());
        let logs = LogDirectory::default();
        let trees = Trees::default();
        let handle = SupervisorHandle {
            sender: sender.clone(),
            status: status.clone(),
            logs: Arc::clone(&logs),
            trees: trees.clone(),
            revision: Arc::default(),
        };
        let sinks = LogSinks::start(config.log_dir.as_deref(), config.passthrough)?;
        let supervisor = Self {
            sinks,
            collector: Collector::start()?,
            config,
            sender,
            spec: Arc::default(),
            revision: 0,
            services: BTreeMap::new(),
            logs,
            trees,
            measuring: false,
            cgroups: OnceCell::new(),
            hooks: None,
            lost_gpus: Vec::new(),
            status,
            published: Instant::now(),
            publish_at: None,
            settle_at: None,
            announcements: Vec::new(),
            oom_kills: Arc::new(AtomicU64::new(host::oom_kills().unwrap_or(0))),
            ending: None,
        };
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
            if self.settle_at.is_none_or(|at| at <= Instant::now()) {
                self.settle_at = None;
                self.publish();
                self.announce_all();
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Apply(spec, mode, revision) => {
                self.apply(spec, mode);
                self.revision = revision;
            }
            Message::Start(name) => self.turn(&name, Event::Start),
            Message::Stop(name) => self.turn(&name, Event::Stop),
            Message::Restart(name) => self.turn(&name, Event::Restart),
            Message::StartAll(revision) => {
                self.revision = revision;
                let held = self.services.iter().filter(|(_, s)| {
                    s.life.desired == Desired::Down && s.life.state == State::Stopped && s.incarnation == 0
                });
                for name in held.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.start_unless_scheduled(&name);
                }
            }
            Message::StopAll { deadline, done } => {
                let ending = self.ending.get_or_insert(Ending { deadline, killed: false, waiting: Vec::new() });
                ending.deadline = ending.deadline.min(deadline);
                ending.waiting.push(done);
            }
            Message::Hooks(hooks) => self.hooks = Some(hooks),
            Message::HoldFor(lost) => self.hold_for(lost),
            Message::Exited { name, incarnation, exit } => self.exited(&name, incarnation, exit),
            Message::LastWords { name, incarnation, last_stderr, out_of_memory } => {
                self.last_words(&name, incarnation, last_stderr, out_of_memory);
            }
            Message::Probed { name, incarnation, kind, verdict } if self.is_current(&name, incarnation) => {
                self.probed(&name, kind, verdict);
            }
            Message::Notified { name, incarnation, notice } if self.is_current(&name, incarnation) => {
                self.notified(&name, notice);
            }
            Message::Drained { name, incarnation, outcome } if self.is_current(&name, incarnation) => {
                if let Err(why) = outcome {
                    self.announce(DrainFailed { service: name.clone(), why });
                }
                self.turn(&name, Event::Drained);
            }
            Message::LineageGone { name, incarnation, met } if self.is_current(&name, incarnation) => {
                if met > 0 {
                    let pid = self.services.get(&name).and_then(|s| s.lineage.as_ref()).map_or(0, |l| l.pid);
                    self.announce(StraysEnded { service: name.clone(), pid, count: met });
                }
                self.lineage_gone(&name);
            }
            Message::OverLimit { name, incarnation, why } if self.is_current(&name, incarnation) => {
                if let Some(service) = self.services.get_mut(&name).filter(|service| service.life.runs()) {
                    service.reason = Some(why.clone());
                    self.announce(LimitExceeded { service: name.clone(), why });
                    self.turn(&name, Event::OverLimit);
                }
            }
            Message::Touched { name } => {
                if let Some(service) =
                    self.services.get_mut(&name).filter(|service| service.life.desired == Desired::Up)
                {
                    service.reason = Some("a watched file has changed".to_owned());
                    self.turn(&name, Event::Restart);
                }
            }
            // Of a process that is no more.
            Message::Probed { .. }
            | Message::Notified { .. }
            | Message::Drained { .. }
            | Message::LineageGone { .. }
            | Message::OverLimit { .. } => {}
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
            self.announce(ServiceChanged { service: name.clone(), change: what, fields });
            match change {
                ServiceChange::Added => self.add(&name, mode),
                ServiceChange::Removed => {
                    self.turn(&name, Event::Stop);
                    if let Some(service) = self.services.get_mut(&name) {
                        service.removed = true;
                        service.end_watch();
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
                ServiceChange::Updated(_) => self.update(&name),
            }
        }
    }

    fn add(&mut self, name: &Name, mode: StartMode) {
        if self.services.contains_key(name) {
            // It was removed a moment ago and its process is not gone yet.
            self.replace_spec(name);
        } else if let Some(spec) = self.spec.service(name) {
            let log = ServiceLog::new(name, spec.logs, self.sinks.clone());
            self.logs.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), log.clone());
            self.services.insert(name.clone(), Service::new(spec.clone(), log));
            self.begin_watch(name);
        }
        if mode == StartMode::All {
            self.start_unless_scheduled(name);
        }
    }

    /// A oneshot with a schedule runs when its time has come, not at the start of the machine.
    fn start_unless_scheduled(&mut self, name: &Name) {
        self.plan_next_run(name);
        let waits = self.services.get(name).is_some_and(|s| s.spec.kind != Kind::Service && s.spec.schedule.is_some());
        if !waits {
            self.turn(name, Event::Start);
        }
    }

    fn replace_spec(&mut self, name: &Name) {
        if let (Some(service), Some(spec)) = (self.services.get_mut(name), self.spec.service(name)) {
            service.log.set_limits(spec.logs);
            service.spec = spec.clone();
            service.removed = false;
            self.begin_watch(name);
            self.plan_next_run(name);
        }
    }

    /// Gives a running service its new spec; probes that differ begin anew.
    fn update(&mut self, name: &Name) {
        let Some(old) = self.services.get(name).map(|service| service.spec.clone()) else { return };
        self.replace_spec(name);
        let Some(service) = self.services.get_mut(name) else { return };
        let asked: &[ProbeKind] = match service.life.state {
            State::Starting { probing: Some(ProbeKind::Startup), .. } => &[ProbeKind::Startup],
            State::Starting { probing: Some(ProbeKind::Ready), .. } => &[ProbeKind::Ready],
            State::Ready { .. } | State::Unready { .. } => &[ProbeKind::Ready, ProbeKind::Live],
            _ => &[],
        };
        let differing = asked.iter().filter(|kind| probe_of(&old, **kind) != service.probe(**kind));
        for kind in differing.copied().collect::<Vec<_>>() {
            let Some(service) = self.services.get_mut(name) else { return };
            if let Some(running) = service.probes.remove(&kind) {
                running.abort();
            }
            match service.probe(kind).map(|probe| probe.target.clone()) {
                // What is not asked about holds.
                None if kind != ProbeKind::Live => self.turn(name, Event::Held(kind)),
                None => {}
                Some(ProbeTarget::Log(_)) if matches!(service.life.state, State::Starting { .. }) => {
                    arm_log_probe(service, &self.sender);
                }
                Some(_) => self.begin_probe(name, kind),
            }
        }
    }

    fn plan_next_run(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        let now = Timestamp::now();
        let next = service.spec.schedule.as_ref().and_then(|schedule| schedule.next_after(now));
        service.next_run = next.map(|at| (at, Instant::now() + at.since(now).min(LONGEST_SCHEDULE)));
    }

    fn begin_watch(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.end_watch();
        if service.spec.watch.is_empty() {
            return;
        }
        let cwd = directory_of(&self.config, &service.spec);
        let files = service.spec.watch.iter().map(|path| (cwd.join(path), Known::Now)).collect();
        let stop = CancellationToken::new();
        service.watch = Some(stop.clone());
        let (sender, name) = (self.sender.clone(), name.clone());
        self.config.runtime.spawn(async move {
            let mut watcher = FileWatcher::start(files, WATCH_DEBOUNCE, WATCH_POLL, stop.clone());
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = watcher.changed() => {
                        let _ = sender.send(Message::Touched { name: name.clone() });
                    }
                }
            }
        });
    }

    fn exited(&mut self, name: &Name, incarnation: u64, exit: Exit) {
        let Some(service) = self.services.get_mut(name).filter(|service| service.incarnation == incarnation) else {
            return;
        };
        let asked = matches!(service.life.state, State::Stopping { .. } | State::Draining { .. });
        service.last_exit = Some(exit);
        if !asked {
            service.reason = Some(exit.to_string());
        }
        service.awaits_last_words = true;
        service.gone_before_words = false;
        service.says = None;
        self.trees.remove(name);
        let pid = service.pid.take().unwrap_or(0);
        // What explains the end is found out on the thread that reads its output, after everything it wrote.
        let (log, cgroup, oom_before) = (service.log.clone(), service.cgroup.clone(), service.oom_before);
        let (sender, owner, kills) = (self.sender.clone(), name.clone(), Arc::clone(&self.oom_kills));
        let announcement = move |events: &EventLog| {
            let last_stderr = log.last_stderr(incarnation);
            let out_of_memory = match cgroup {
                Some(group) => group.oom_kills() > oom_before,
                None if exit == Exit::Signal(libc::SIGKILL) && !asked => {
                    let now = host::oom_kills().unwrap_or(0);
                    now > kills.swap(now, Ordering::Relaxed)
                }
                None => false,
            };
            let event = ServiceExited { service: owner.clone(), pid, exit, asked, out_of_memory, last_stderr };
            let last_stderr = event.last_stderr.last().cloned();
            events.emit(&event);
            let _ = sender.send(Message::LastWords { name: owner, incarnation, last_stderr, out_of_memory });
        };
        let streams = std::mem::take(&mut service.streams);
        self.announcements.push((streams, Box::new(announcement)));
        self.turn(name, Event::Exited(exit));
    }

    fn last_words(&mut self, name: &Name, incarnation: u64, last_stderr: Option<String>, out_of_memory: bool) {
        let Some(service) = self.services.get_mut(name).filter(|service| service.incarnation == incarnation) else {
            return;
        };
        service.awaits_last_words = false;
        if let (Some(exit), Some(_)) = (service.last_exit, &service.reason)
            && !exit.success()
        {
            let oom = if out_of_memory { " for want of memory" } else { "" };
            let said = last_stderr.map(|line| format!(": {line}")).unwrap_or_default();
            service.reason = Some(format!("{exit}{oom}{said}"));
        }
        if std::mem::take(&mut service.gone_before_words) {
            self.turn(name, Event::LineageGone);
        }
    }

    /// A service that is given up is shown with its last words, so these come first.
    fn lineage_gone(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        let explains = matches!(service.life.state, State::Cleaning { after: After::GiveUp });
        if explains && service.awaits_last_words {
            service.gone_before_words = true;
        } else {
            self.turn(name, Event::LineageGone);
        }
    }

    fn probed(&mut self, name: &Name, kind: ProbeKind, verdict: Verdict) {
        let Some(service) = self.services.get_mut(name) else { return };
        match verdict {
            Verdict::Held => self.turn(name, Event::Held(kind)),
            Verdict::Lost(why) => {
                if service.life.runs() {
                    let what = if kind == ProbeKind::Live { "does not live" } else { "is not ready" };
                    service.reason = Some(format!("{what}: {why}"));
                    self.turn(name, Event::Lost(kind));
                }
            }
            Verdict::NotYet(why) => {
                if matches!(service.life.state, State::Starting { .. }) {
                    service.reason = Some(format!("not ready yet: {why}"));
                }
            }
        }
    }

    fn notified(&mut self, name: &Name, notice: Notice) {
        let Some(service) = self.services.get_mut(name) else { return };
        let by_notice = |probe: &Option<crate::spec::Probe>| {
            probe.as_ref().is_some_and(|probe| probe.target == ProbeTarget::Notify)
        };
        let (startup, ready, live) =
            (by_notice(&service.spec.startup), by_notice(&service.spec.ready), by_notice(&service.spec.live));
        match notice {
            Notice::Ready => {
                if startup {
                    self.turn(name, Event::Held(ProbeKind::Startup));
                }
                if ready {
                    self.turn(name, Event::Held(ProbeKind::Ready));
                }
            }
            Notice::Status(text) => service.says = Some(text),
            Notice::Silent(limit) if live => {
                let limit = humantime::format_duration(limit).to_string();
                self.probed(name, ProbeKind::Live, Verdict::Lost(format!("no WATCHDOG=1 for {limit}")));
            }
            Notice::Hangs if live => {
                self.probed(name, ProbeKind::Live, Verdict::Lost("it says that it hangs".to_owned()));
            }
            Notice::Alive | Notice::Silent(_) | Notice::Hangs => {}
        }
    }

    /// Lets one event happen to one service and does what it asks for.
    fn turn(&mut self, name: &Name, event: Event) {
        let Some(service) = self.services.get_mut(name) else { return };
        let before = service.life.shown();
        let restarts = service.life.restarts;
        let actions = service.life.handle(event, &service.spec, rand::random(), Instant::now());
        if service.life.restarts > restarts {
            let delay = match service.life.state {
                State::Backoff { until } => until.saturating_duration_since(Instant::now()),
                State::Cleaning { after: After::Retry(delay) }
                | State::Stopping { after: After::Retry(delay), .. }
                | State::Draining { after: After::Retry(delay), .. } => delay,
                _ => Duration::ZERO,
            };
            let why = service.reason.clone().unwrap_or_else(|| "it was not ready in time".to_owned());
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            self.announce(ServiceRestarting { service: name.clone(), delay_ms, why });
        }
        let after = self.services.get(name).map_or(before, |service| service.life.shown());
        if after != before {
            self.changed(name, before, after);
        }
        for action in actions {
            self.perform(name, action);
        }
    }

    fn changed(&mut self, name: &Name, before: ServiceState, shown: ServiceState) {
        let Some(service) = self.services.get_mut(name) else { return };
        match shown {
            ServiceState::Ready => {
                service.reason = None;
                let after_ms = service.started.map_or(0, |(_, at)| at.elapsed().as_millis());
                let after_ms = u64::try_from(after_ms).unwrap_or(u64::MAX);
                self.announce(ServiceReady { service: name.clone(), after_ms });
                self.recovered(name);
            }
            ServiceState::Unready => {
                let why = service.reason.clone().unwrap_or_default();
                self.announce(ServiceUnready { service: name.clone(), why });
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
                self.announce(ServiceFailed { service: name.clone(), why });
            }
            ServiceState::Stopped => service.reason = None,
            ServiceState::Completed => {
                service.reason = None;
                self.recovered(name);
            }
            _ => {}
        }
        let _ = before;
    }

    /// Whoever was given up, or waits to try again, may get further now that `name` is up.
    fn recovered(&mut self, name: &Name) {
        let stuck = self.services.iter().filter(|(_, service)| {
            matches!(service.life.state, State::Failed | State::Backoff { .. })
                && service.spec.needs.iter().any(|need| need.service == *name)
        });
        for dependant in stuck.map(|(dependant, _)| dependant.clone()).collect::<Vec<_>>() {
            self.turn(&dependant, Event::NeedRecovered);
        }
    }

    fn announce<E: Observed + Send + 'static>(&mut self, event: E) {
        self.announcements.push((Streams::default(), Box::new(move |events| events.emit(&event))));
    }

    fn announce_all(&mut self) {
        if self.announcements.is_empty() {
            return;
        }
        let announcements = std::mem::take(&mut self.announcements);
        let events = self.config.events.clone();
        self.collector.after(announcements.into_iter().map(|(streams, announcement)| {
            let events = events.clone();
            (streams, Box::new(move || announcement(&events)) as Box<dyn FnOnce() + Send>)
        }));
    }

    fn perform(&mut self, name: &Name, action: Action) {
        let Some(service) = self.services.get_mut(name) else { return };
        match action {
            Action::Spawn => self.spawn(name),
            Action::BeginProbe(kind) => self.begin_probe(name, kind),
            Action::EndProbe(kind) => {
                if let Some(probe) = service.probes.remove(&kind) {
                    probe.abort();
                }
            }
            Action::EndProbes => service.end_probes(),
            Action::Drain => self.drain(name),
            Action::Signal => {
                if let Some(pid) = service.pid {
                    self.config.processes.signal_group(pid, to_signal(service.spec.stop.signal));
                }
            }
            Action::Kill => {
                service.hurry.store(true, Ordering::Relaxed);
                if let Some(pid) = service.pid {
                    self.config.processes.signal_group(pid, Signal::SIGKILL);
                }
            }
            Action::CleanLineage { kill_at } => self.clean_lineage(name, kill_at),
        }
    }

    fn spawn(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.holds = Holds::of(&service.spec);
        if let Some(why) = busy_port(&service.spec.ports) {
            service.reason = Some(why);
            service.last_exit = Some(Exit::NotStarted(nix::errno::Errno::EADDRINUSE as i32));
            return self.turn(name, Event::SpawnFailed);
        }
        service.incarnation += 1;
        let incarnation = service.incarnation;
        let cgroup = self.cgroup(name);
        let Some(service) = self.services.get_mut(name) else { return };
        service.oom_before = cgroup.as_ref().map_or(0, Cgroup::oom_kills);
        service.cgroup = cgroup;
        let spec = match self.spawn_spec(name) {
            Ok(spec) => spec,
            Err(why) => return self.spawn_failed(name, why, libc::ENOENT),
        };
        let (sender, owner) = (self.sender.clone(), name.clone());
        let on_exit = move |exit| {
            let _ = sender.send(Message::Exited { name: owner, incarnation, exit });
        };
        let spawned = self.config.processes.spawn(&spec, on_exit);
        self.settle_at.get_or_insert_with(|| Instant::now() + SETTLE);
        let Some(service) = self.services.get_mut(name) else { return };
        match spawned {
            Ok(spawned) => {
                service.pid = Some(spawned.pid);
                service.started = Some((Timestamp::now(), Instant::now()));
                service.reason = None;
                service.hurry = Hurry::default();
                arm_log_probe(service, &self.sender);
                service.streams = self.collector.add(&service.log, incarnation, spawned.stdout, spawned.stderr);
                let limits = service.spec.limits;
                let measured = limits.any() && !service.cgroup.as_ref().is_some_and(|group| group.enforced);
                let limits = measured.then_some(limits);
                service.lineage = Some(spawned.lineage.clone());
                self.trees.insert(name, Tree { lineage: spawned.lineage, incarnation, limits });
                if measured {
                    self.measure();
                }
                let started = ServiceStarted { service: name.clone(), pid: spawned.pid, incarnation };
                let kills = Arc::clone(&self.oom_kills);
                let announcement = move |events: &EventLog| {
                    // What was killed before this start does not explain its end.
                    kills.store(host::oom_kills().unwrap_or(0), Ordering::Relaxed);
                    events.emit(&started);
                };
                self.announcements.push((Streams::default(), Box::new(announcement)));
                self.turn(name, Event::Spawned);
            }
            Err(cause) => {
                let program = service.spec.command[0].clone();
                let errno = cause.raw_os_error().unwrap_or(0);
                let why = match errno {
                    libc::ENOENT => format!("the program {program:?} is not there"),
                    _ => format!("{program:?} cannot be started: {cause}"),
                };
                self.spawn_failed(name, why, errno);
            }
        }
    }

    fn spawn_failed(&mut self, name: &Name, why: String, errno: i32) {
        if let Some(service) = self.services.get_mut(name) {
            service.reason = Some(why);
            service.last_exit = Some(Exit::NotStarted(errno));
            service.end_notify();
            self.turn(name, Event::SpawnFailed);
        }
    }

    /// The service's control group, where it wants one and the engine may make one.
    fn cgroup(&mut self, name: &Name) -> Option<Cgroup> {
        let limits = self.services.get(name)?.spec.limits;
        if !limits.any() || !limits.cgroup {
            return None;
        }
        let machine = self.config.machine.as_str();
        let cgroups = self.cgroups.get_or_init(|| Cgroups::detect(machine)).as_ref()?;
        let wanted = CgroupLimits { memory: limits.memory.map(ByteSize::bytes), cpu: limits.cpu, pids: limits.pids };
        cgroups
            .group(name.as_str(), wanted)
            .inspect_err(|cause| tracing::warn!(service = %name, "no control group, its limits are measured: {cause}"))
            .ok()
    }

    /// One thread measures whatever has limits, from the first such service on.
    fn measure(&mut self) {
        if std::mem::replace(&mut self.measuring, true) {
            return;
        }
        let (trees, sender) = (self.trees.clone(), self.sender.clone());
        let tell = move |name: &Name, incarnation, why| {
            let _ = sender.send(Message::OverLimit { name: name.clone(), incarnation, why });
        };
        let thread = std::thread::Builder::new().name("limits".to_owned()).spawn(move || trees.watch_limits(tell));
        if let Err(cause) = thread {
            tracing::error!("limits are not enforced, no thread to measure: {cause}");
        }
    }

    /// The environment is computed from the spec of now, at every start.
    fn spawn_spec(&mut self, name: &Name) -> Result<SpawnSpec, String> {
        let listens = self.listen(name);
        let service = self.services.get(name).ok_or("the service is gone")?;
        let (config, spec) = (&self.config, &service.spec);
        let cwd = directory_of(config, spec);
        let mut env: BTreeMap<OsString, OsString> = config.base_env.iter().cloned().collect();
        for file in &spec.env_files {
            let path = cwd.join(file);
            let failed = |cause: dotenvy::Error| format!("the environment file {}: {cause}", path.display());
            for entry in dotenvy::from_path_iter(&path).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                env.insert(key.into(), value.into());
            }
        }
        env.extend(spec.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
        env.insert("MACHINIST_SERVICE".into(), spec.name.as_str().into());
        if let Some(address) = listens {
            env.insert("NOTIFY_SOCKET".into(), address.into());
        }
        if let Some(probe) = spec.live.as_ref().filter(|probe| probe.target == ProbeTarget::Notify) {
            env.insert("WATCHDOG_USEC".into(), probe.every.get().as_micros().to_string().into());
        }
        let cgroups = service.cgroup.as_ref().map(Cgroup::entrances).unwrap_or_default();
        let setup =
            (!spec.setup.is_empty() || !cgroups.is_empty()).then(|| ExecSetup { cgroups, process: spec.setup.clone() });
        Ok(SpawnSpec {
            argv: spec.command.clone(),
            cwd: Some(cwd),
            env: env.into_iter().collect(),
            stdin: Stdin::Null,
            mark: format!("{}/{}/{name}/{}", config.machine, config.engine_incarnation, service.incarnation),
            detach: spec.detach.as_slice().into(),
            setup,
        })
    }

    /// Opens the service's notify socket where somebody is to speak on it; its address.
    fn listen(&mut self, name: &Name) -> Option<String> {
        let service = self.services.get_mut(name)?;
        service.end_notify();
        let spec = &service.spec;
        let probes = [&spec.startup, &spec.ready, &spec.live];
        let told = probes.into_iter().flatten().any(|probe| probe.target == ProbeTarget::Notify);
        if !told && spec.kind != Kind::Setup {
            return None;
        }
        let live = spec.live.as_ref().filter(|probe| probe.target == ProbeTarget::Notify);
        let watchdog = live.map(|probe| probe.every.get() * probe.failures);
        let config = &self.config;
        let incarnation = service.incarnation;
        let address = format!("machinist/{}/{}/{name}/{incarnation}", config.machine, config.engine_incarnation);
        let socket = NotifySocket::bind(&address)
            .inspect_err(|cause| tracing::error!(service = %name, "no notify socket: {cause}"))
            .ok()?;
        let address = socket.address.clone();
        let (sender, owner) = (self.sender.clone(), name.clone());
        let tell = move |notice| {
            let _ = sender.send(Message::Notified { name: owner.clone(), incarnation, notice });
        };
        service.notify = Some(config.runtime.spawn(socket.listen(watchdog, tell)).abort_handle());
        Some(address)
    }

    fn begin_probe(&mut self, name: &Name, kind: ProbeKind) {
        let Some(service) = self.services.get(name) else { return };
        let Some(probe) = service.probe(kind).cloned() else { return };
        if matches!(probe.target, ProbeTarget::Log(_) | ProbeTarget::Notify) {
            return; // Armed before the process could speak.
        }
        let incarnation = service.incarnation;
        // One that begins anew for a service that is ready finds out whether it still is.
        let held = kind == ProbeKind::Live || matches!(service.life.state, State::Ready { .. });
        if kind == ProbeKind::Ready && held && probe.recheck.get().is_zero() {
            return;
        }
        // Only programs need what it takes to start one.
        let spawn = match &probe.target {
            ProbeTarget::Exec(_) => self.helper_spec(name),
            _ => SpawnSpec::default(),
        };
        let prober = Prober {
            service: name.clone(),
            kind,
            probe,
            held,
            processes: self.config.processes.clone(),
            spawn,
            hooks: self.hooks.clone(),
        };
        let (sender, owner) = (self.sender.clone(), name.clone());
        let tell = move |verdict| {
            let _ = sender.send(Message::Probed { name: owner.clone(), incarnation, kind, verdict });
        };
        let task = self.config.runtime.spawn(prober.run(tell)).abort_handle();
        if let Some(service) = self.services.get_mut(name)
            && let Some(old) = service.probes.insert(kind, task)
        {
            old.abort();
        }
    }

    /// What a program started beside the service gets: its directory and environment, and its pid.
    fn helper_spec(&self, name: &Name) -> SpawnSpec {
        let Some(service) = self.services.get(name) else { return SpawnSpec::default() };
        let (config, spec) = (&self.config, &service.spec);
        let mut env: BTreeMap<OsString, OsString> = config.base_env.iter().cloned().collect();
        env.extend(spec.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
        env.insert("MACHINIST_SERVICE".into(), spec.name.as_str().into());
        env.insert("MACHINIST_PID".into(), service.pid.unwrap_or(0).to_string().into());
        SpawnSpec {
            cwd: Some(directory_of(config, spec)),
            env: env.into_iter().collect(),
            mark: format!("{}/{}/{name}/{}", config.machine, config.engine_incarnation, service.incarnation),
            ..SpawnSpec::default()
        }
    }

    fn drain(&mut self, name: &Name) {
        let Some(service) = self.services.get(name) else { return };
        let Some(drain) = service.spec.stop.drain.clone() else { return };
        let (incarnation, sender, owner) = (service.incarnation, self.sender.clone(), name.clone());
        let (processes, spawn, hooks) = (self.config.processes.clone(), self.helper_spec(name), self.hooks.clone());
        let task = self.config.runtime.spawn(async move {
            let limit = drain.timeout.get();
            let outcome = match (&drain.target, hooks) {
                (DrainTarget::Exec(argv), _) => probe::exec(argv, limit, &processes, &spawn).await,
                (DrainTarget::Script(function), Some(hooks)) => hooks.call(function, &owner, limit).await.map(drop),
                (DrainTarget::Script(_), None) => Err("the machine's script is not loaded".to_owned()),
            };
            let _ = sender.send(Message::Drained { name: owner, incarnation, outcome });
        });
        if let Some(service) = self.services.get_mut(name) {
            service.drain = Some(task.abort_handle());
        }
    }

    /// Usually nothing is left, which a look at the engine's own children tells; the ending of strays takes its time on a
    /// thread of its own.
    fn clean_lineage(&mut self, name: &Name, kill_at: Option<Instant>) {
        let Some(service) = self.services.get_mut(name) else { return };
        service.end_notify();
        // Of earlier lives too, as long as they live.
        let names = &service.spec.detach;
        service.detached.retain(|pid| row(*pid).is_some_and(|row| !row.zombie && names.contains(&row.name)));
        let Some(lineage) = service.lineage.take() else { return };
        if lineage.may_detach() {
            service.detached.extend(self.config.processes.detached(&lineage));
        }
        if !self.config.processes.left_orphans(&lineage) {
            return self.lineage_gone(name);
        }
        if !lineage.may_detach() && kill_at.is_none() && service.cgroup.as_ref().is_some_and(Cgroup::kill) {
            tracing::debug!(service = %name, "killed what was left in its control group");
        }
        service.lineage = Some(lineage.clone());
        let incarnation = service.incarnation;
        let (signal, hurry) = (to_signal(service.spec.stop.signal), Arc::clone(&service.hurry));
        let (processes, sender, owner) = (self.config.processes.clone(), self.sender.clone(), name.clone());
        let clean = move || {
            let met = match kill_at {
                Some(kill_at) => processes.end_lineage(&lineage, signal, kill_at, &hurry, KILL_PATIENCE),
                None => processes.kill_lineage(&lineage, KILL_PATIENCE),
            };
            let _ = sender.send(Message::LineageGone { name: owner, incarnation, met });
        };
        let thread = std::thread::Builder::new().name("clean".to_owned()).spawn(clean);
        if let Err(cause) = thread {
            tracing::error!(service = %name, "strays of {name} may be left, no thread to end them: {cause}");
            self.lineage_gone(name);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let services = self
            .services
            .values()
            .flat_map(|service| service.life.timer_at().into_iter().chain(service.next_run.map(|(_, at)| at)));
        let ending = self.ending.as_ref().filter(|ending| !ending.killed).map(|ending| ending.deadline);
        services.chain(ending).chain(self.publish_at).chain(self.settle_at).min()
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        let due = self.services.iter().filter(|(_, service)| service.life.timer_at().is_some_and(|at| at <= now));
        for name in due.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.turn(&name, Event::Timer);
        }
        let scheduled = self.services.iter().filter(|(_, s)| s.next_run.is_some_and(|(_, at)| at <= now));
        for name in scheduled.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.run_scheduled(&name);
        }
    }

    fn run_scheduled(&mut self, name: &Name) {
        let Some(service) = self.services.get(name) else { return };
        let due = service.next_run.is_some_and(|(at, _)| at <= Timestamp::now());
        let event = match service.spec.kind {
            Kind::Service if service.life.desired == Desired::Up => Some(Event::Restart),
            Kind::Service => None,
            // One that still runs is left to it.
            Kind::Oneshot | Kind::Setup => (!service.life.has_process()).then_some(Event::Start),
        };
        self.plan_next_run(name);
        if let Some(event) = event.filter(|_| due && self.ending.is_none()) {
            self.turn(name, event);
        }
    }

    /// Moves on whatever can be moved now: the ending, and services whose needs are met. One step may allow the next.
    fn progress(&mut self) {
        self.progress_ending();
        self.mark_held();
        loop {
            let waiting = self.services.iter().filter(|(_, service)| service.life.state == State::Waiting);
            let names: Vec<Name> = waiting.map(|(name, _)| name.clone()).collect();
            let mut started = false;
            for name in names {
                if self.ending.is_some() {
                    break;
                }
                match self.lost_gpu(&name).or_else(|| self.unmet_need(&name)).or_else(|| self.still_held(&name)) {
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
        let gone = self.services.iter().filter(|(_, s)| s.removed && s.life.state == State::Stopped);
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(service) = self.services.remove(name) {
            self.logs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            if let Some(group) = &service.cgroup {
                group.remove();
            }
            for metric in ["machinist_service_up", "machinist_service_ready"] {
                gauge!(metric, "service" => name.to_string()).set(0.0);
            }
        }
    }

    /// Ends what runs on a GPU that is lost, since it can do no more work, and starts what was given up for want of one that
    /// is back.
    fn hold_for(&mut self, lost: Vec<LostGpu>) {
        let before = std::mem::replace(&mut self.lost_gpus, lost);
        let names: Vec<Name> = self.services.keys().cloned().collect();
        for name in names {
            let Some(service) = self.services.get(&name).filter(|service| service.life.desired == Desired::Up) else {
                continue;
            };
            let was_held = lost_of(&service.spec, &before).is_some();
            match lost_of(&service.spec, &self.lost_gpus) {
                Some(why) if !was_held => {
                    let runs = service.life.runs();
                    self.announce(ServiceHeld { service: name.clone(), why: why.clone() });
                    if let Some(service) = self.services.get_mut(&name).filter(|_| runs) {
                        service.reason = Some(why);
                        self.turn(&name, Event::Restart);
                    }
                }
                None if was_held => self.turn(&name, Event::NeedRecovered),
                _ => {}
            }
        }
    }

    fn lost_gpu(&self, name: &Name) -> Option<String> {
        lost_of(&self.services.get(name)?.spec, &self.lost_gpus)
    }

    /// Keeps what is shown of services in line with the GPUs that are lost.
    fn mark_held(&mut self) {
        for service in self.services.values_mut() {
            let wanted = service.life.desired == Desired::Up && !service.life.runs();
            let held = wanted.then(|| lost_of(&service.spec, &self.lost_gpus)).flatten();
            if service.held != held {
                service.held = held;
            }
        }
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
                    matches!(
                        shown,
                        ServiceState::Starting | ServiceState::Ready | ServiceState::Unready | ServiceState::Completed
                    ),
                    "to be started",
                ),
                Condition::Ready => (shown == ServiceState::Ready, "to be ready"),
                Condition::Completed => (shown == ServiceState::Completed, "to complete"),
            };
            (!met).then(|| format!("waits for {service} {what}; {service} is {shown}"))
        })
    }

    /// Stop before start where two would clash: what comes waits for what goes and holds the same port or GPU.
    fn still_held(&self, name: &Name) -> Option<String> {
        let wanted = Holds::of(&self.services.get(name)?.spec);
        let others = self.services.iter().filter(|(other, _)| *other != name);
        let mut leaving = others.filter(|(_, other)| other.life.shown() == ServiceState::Stopping);
        leaving.find_map(|(other, service)| {
            let what = wanted.clash(&service.holds)?;
            // Two services may well share a GPU: only one that gives it up is waited for.
            let keeps = !service.removed && wanted.clash(&Holds::of(&service.spec)).is_some();
            (!keeps).then(|| format!("waits for {other} to leave {what}"))
        })
    }

    /// Stops what nothing that still runs depends on, lower orders first; kills what is left at the deadline.
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
            let mut needed = BTreeSet::new();
            for service in self.services.values().filter(|service| service.life.has_process()) {
                needed.extend(service.spec.waits_for(&self.spec).into_iter().map(|need| need.service));
            }
            let running = |service: &&Service| service.life.has_process();
            let free = |service: &&Service| !needed.contains(&service.spec.name);
            let order = self.services.values().filter(running).filter(free).map(|s| s.spec.stop.order).min();
            let wanted = self.services.values().filter(|service| service.life.desired == Desired::Up);
            let next = wanted.filter(|service| {
                !service.life.has_process() || (free(service) && Some(service.spec.stop.order) == order)
            });
            let names: Vec<Name> = next.map(|service| service.spec.name.clone()).collect();
            if names.is_empty() {
                break;
            }
            for name in names {
                self.turn(&name, Event::Stop);
            }
        }
        if self.services.values().all(|service| !service.life.has_process())
            && let Some(waiting) = self.ending.as_mut().map(|ending| std::mem::take(&mut ending.waiting))
            && !waiting.is_empty()
        {
            for service in self.services.values() {
                if let Some(group) = &service.cgroup {
                    group.remove();
                }
            }
            self.announce_all();
            let sinks = self.sinks.clone();
            // After everything that was written is read.
            let finish = move || {
                sinks.flush(LOG_FLUSH);
                for done in waiting {
                    let _ = done.send(());
                }
            };
            self.collector.after([(Streams::default(), Box::new(finish) as Box<dyn FnOnce() + Send>)]);
        }
    }

    /// Publishes what has changed: at once, and when much happens every few milliseconds.
    fn publish(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.published) < PUBLISH_EVERY && self.ending.is_none() {
            self.publish_at.get_or_insert(self.published + PUBLISH_EVERY);
            return;
        }
        self.publish_at = None;
        let before = self.status.get();
        let mut changed = self.services.len() != before.services.len() || self.revision != before.revision;
        for (name, service) in &mut self.services {
            let shown = service.life.shown();
            if shown != service.shown {
                service.shown = shown;
                service.since = Timestamp::now();
                let up = f64::from(u8::from(service.pid.is_some()));
                gauge!("machinist_service_up", "service" => name.to_string()).set(up);
                let ready = f64::from(u8::from(shown.is_ready()));
                gauge!("machinist_service_ready", "service" => name.to_string()).set(ready);
            }
            if service.differs() {
                service.status = Arc::new(service.to_status());
                changed = true;
            }
        }
        if changed {
            self.published = now;
            let services = self.services.iter().map(|(name, service)| (name.clone(), Arc::clone(&service.status)));
            self.status.set_if_changed(ServicesStatus { revision: self.revision, services: services.collect() });
        }
    }
}

impl Service {
    fn new(spec: ServiceSpec, log: ServiceLog) -> Self {
        let life = Lifecycle::new();
        let since = Timestamp::now();
        let status = ServiceStatus {
            name: spec.name.clone(),
            kind: spec.kind,
            desired: life.desired,
            state: ServiceState::Stopped,
            since,
            pid: None,
            incarnation: 0,
            restarts: 0,
            late: 0,
            started: None,
            last_exit: None,
            reason: None,
            critical: spec.critical,
            held: None,
            says: None,
            detached: Vec::new(),
            next_run: None,
        };
        Self {
            spec,
            life,
            incarnation: 0,
            pid: None,
            holds: Holds::default(),
            lineage: None,
            streams: Streams::default(),
            started: None,
            last_exit: None,
            awaits_last_words: false,
            gone_before_words: false,
            reason: None,
            held: None,
            says: None,
            detached: Vec::new(),
            since,
            shown: ServiceState::Stopped,
            probes: BTreeMap::new(),
            notify: None,
            drain: None,
            watch: None,
            next_run: None,
            cgroup: None,
            oom_before: 0,
            hurry: Hurry::default(),
            log,
            status: Arc::new(status),
            removed: false,
        }
    }

    fn probe(&self, kind: ProbeKind) -> Option<&crate::spec::Probe> {
        probe_of(&self.spec, kind)
    }

    fn end_probes(&mut self) {
        for probe in std::mem::take(&mut self.probes).into_values().chain(self.drain.take()) {
            probe.abort();
        }
    }

    fn end_notify(&mut self) {
        if let Some(listener) = self.notify.take() {
            listener.abort();
        }
    }

    fn end_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.cancel();
        }
    }

    /// Whether what was published last is no longer true.
    fn differs(&self) -> bool {
        let status = &self.status;
        status.state != self.shown
            || status.since != self.since
            || status.incarnation != self.incarnation
            || status.pid != self.pid
            || status.desired != self.life.desired
            || status.restarts != self.life.restarts
            || status.late != self.life.late
            || status.reason != self.reason
            || status.last_exit != self.last_exit
            || status.critical != self.spec.critical
            || status.kind != self.spec.kind
            || status.held != self.held
            || status.says != self.says
            || status.detached != self.detached
            || status.next_run != self.next_run.map(|(at, _)| at)
    }

    fn to_status(&self) -> ServiceStatus {
        ServiceStatus {
            name: self.spec.name.clone(),
            kind: self.spec.kind,
            desired: self.life.desired,
            state: self.shown,
            since: self.since,
            pid: self.pid,
            incarnation: self.incarnation,
            restarts: self.life.restarts,
            late: self.life.late,
            started: self.started.filter(|_| self.pid.is_some()).map(|(at, _)| at),
            last_exit: self.last_exit,
            reason: self.reason.clone(),
            critical: self.spec.critical,
            held: self.held.clone(),
            says: self.says.clone(),
            detached: self.detached.clone(),
            next_run: self.next_run.map(|(at, _)| at),
        }
    }
}

/// Why a service cannot run, where it is pinned to a GPU that is lost.
fn lost_of(spec: &ServiceSpec, lost: &[LostGpu]) -> Option<String> {
    if lost.is_empty() {
        return None;
    }
    let found = spec.gpus().find_map(|entry| lost.iter().find(|lost| lost.gpu.is_meant_by(entry)))?;
    Some(format!("held until its GPU is back: {}", found.why))
}

fn probe_of(spec: &ServiceSpec, kind: ProbeKind) -> Option<&crate::spec::Probe> {
    match kind {
        ProbeKind::Startup => spec.startup.as_ref(),
        ProbeKind::Ready => spec.ready.as_ref(),
        ProbeKind::Live => spec.live.as_ref(),
    }
}

/// What only one service can have at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Holds {
    ports: Vec<u16>,
    gpus: BTreeSet<String>,
}

impl Holds {
    fn of(spec: &ServiceSpec) -> Self {
        Self { ports: spec.ports.clone(), gpus: spec.gpus().map(str::to_owned).collect() }
    }

    fn clash(&self, other: &Self) -> Option<String> {
        let port = self.ports.iter().find(|port| other.ports.contains(port)).map(|port| format!("port {port}"));
        port.or_else(|| self.gpus.intersection(&other.gpus).next().map(|gpu| format!("GPU {gpu}")))
    }
}

/// Asks the log for the line that makes the service ready, before anything of its output is read.
fn arm_log_probe(service: &mut Service, sender: &Sender<Message>) {
    let probes = [(ProbeKind::Startup, &service.spec.startup), (ProbeKind::Ready, &service.spec.ready)];
    for (kind, probe) in probes {
        let Some(ProbeTarget::Log(pattern)) = probe.as_ref().map(|probe| &probe.target) else { continue };
        // The pattern was compiled when the spec was checked.
        let Ok(pattern) = regex::bytes::Regex::new(pattern) else { continue };
        service.reason = Some(format!("waits for a line that matches {:?}", pattern.as_str()));
        let (sender, name, incarnation) = (sender.clone(), service.spec.name.clone(), service.incarnation);
        service.log.watch_for(incarnation, pattern, move || {
            let _ = sender.send(Message::Probed { name, incarnation, kind, verdict: Verdict::Held });
        });
        return;
    }
}

fn directory_of(config: &SupervisorConfig, spec: &ServiceSpec) -> PathBuf {
    spec.cwd.as_ref().map_or_else(|| config.default_cwd.clone(), |cwd| config.default_cwd.join(cwd))
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
