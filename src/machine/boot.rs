use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announcer::Announcer;
use super::event::{Asker, Event, ReloadCause, StopCause};
use super::event_hook::call_on_event;
use super::events::LeftoversKilled;
use super::generation::{BuildInputs, Generation, Refused, build};
use super::gpus::{GpuChange, GpuTask, GpuWatch};
use super::handle::{Limits, Machine};
use super::perform::{Performer, record_success, watched};
use super::publish::Publisher;
use super::resources;
use super::service_hooks::ScriptHooks;
use super::startup::Timeline;
use super::unmatched::watch_unmatched;
use super::workers::Workers;
use crate::admin::{AdminDeps, ConsoleGround, Consoles, Control, Looks, MachineIdentity, serve};
use crate::base::{Problems, Timestamp};
use crate::host::process::{Processes, kill_leftovers};
use crate::host::{
    self, BlobStore, FileWatcher, GpuMonitor, GpuNews, GpusStatus, HostSignal, Identity, StateDir, StateDirError,
};
use crate::queue::{self, Broker, BrokerError, QueueConfig, WebhookSender};
use crate::script::{MachineContext, ScriptHost, ScriptHostConfig};
use crate::settings::{GpuSettings, Overrides, QueueBackend, Settings};
use crate::spec::{Hardware, LogFileFormat};
use crate::supervisor::{StartMode, Supervisor, SupervisorConfig, SupervisorHandle};
use crate::telemetry::{EventLog, LogFormat, LogLevel, Published, Traces, metrics};

/// Events kept for readers that come late.
const EVENTS_KEPT: usize = 10_000;
/// How long a start waits for a driver that does not answer; the machine has no GPUs then.
const GPU_PATIENCE: Duration = Duration::from_secs(15);
/// Requests that wait for the end of a boot.
const MOST_ASKED: usize = 16;
/// What leftovers of an earlier life get to end by themselves.
const LEFTOVER_GRACE: Duration = Duration::from_secs(3);

/// How long the machine's files may take to be read once it is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of the engine may wait for the last traces to be exported.
const LAST_TRACES: Duration = Duration::from_secs(1);

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{0}")]
    Configuration(#[from] Problems),
    #[error("{0}")]
    StateDir(#[from] StateDirError),
    #[error("{0}")]
    Queue(#[from] BrokerError),
    #[error("cannot listen on {address}: {cause}; set http.listen (MACHINIST_HTTP__LISTEN) or --listen")]
    Listen { address: std::net::SocketAddr, cause: std::io::Error },
    #[error("{what}: {cause}")]
    System { what: &'static str, cause: std::io::Error },
}

/// Runs the machine until it has stopped; answers with the process's exit code.
pub async fn run(
    dir: &Path,
    settings: Settings,
    overrides: Overrides,
    log_level: LogLevel,
) -> Result<u8, MachineError> {
    let timeline = Timeline::new();
    let signals = host::listen().map_err(|cause| MachineError::System { what: "signal handlers", cause })?;
    let metrics = metrics::install();
    let events = EventLog::new(EVENTS_KEPT);
    let settings = Arc::new(settings);
    let state_dir = timeline.step("state directory", || StateDir::open(&settings.state_dir))?;
    let identity = state_dir.begin_life(settings.machine.id.as_ref())?;
    let mark_prefix = format!("{}/{}", identity.id, identity.incarnation);
    let processes =
        Processes::start(&mark_prefix).map_err(|cause| MachineError::System { what: "the reaper", cause })?;
    let resources = host::resources();
    let mut found = FoundGpus::ask(&settings.gpu)?;

    let traces = start_traces(&settings, &identity);
    let broker = timeline.step("queue", || open_queue(&settings))?;
    let supervisor = Supervisor::start(SupervisorConfig {
        machine: identity.id.clone(),
        engine_incarnation: identity.incarnation,
        processes: processes.clone(),
        events: events.clone(),
        log_dir: Some(settings.state_dir.join("logs")),
        passthrough: settings.log.services.then_some(match settings.log.format {
            LogFormat::Text => LogFileFormat::Text,
            LogFormat::Json => LogFileFormat::Json,
        }),
        default_cwd: settings.dir.clone(),
        base_env: std::env::vars_os().filter(|(name, _)| name != "MACHINIST_TOKEN").collect(),
        runtime: Handle::current(),
    })
    .map_err(|cause| MachineError::System { what: "the supervisor", cause })?;

    let mut publisher =
        Publisher::new(machine_identity(&settings, &identity, hardware(resources, &[])), timeline.clone());
    let levels = Published::default();
    let (control, controls) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let address = settings.http.listen;
    let listener = TcpListener::bind(address).await.map_err(|cause| MachineError::Listen { address, cause })?;
    let bound = listener.local_addr().unwrap_or(address);
    tracing::info!("machine {} ({}), http://{bound}", identity.id, settings.machine.machine_type);
    let admin = AdminDeps {
        status: publisher.status.subscribe(),
        events: events.clone(),
        broker: Arc::clone(&broker),
        supervisor: supervisor.clone(),
        control,
        metrics: metrics.clone(),
        gpus: found.status.clone(),
        levels: levels.clone(),
        dcgm_names: settings.gpu.dcgm_names,
        state_dir: settings.state_dir.clone(),
        token: settings.http.token.clone(),
        loopback: bound.ip().is_loopback(),
        shutdown: shutdown.clone(),
        sockets: TaskTracker::new(),
        consoles: Consoles::default(),
        traces: traces.clone(),
        looks: Looks::default(),
    };
    let server = tokio::spawn(serve(listener, admin));
    let announcer =
        Announcer::start(Arc::clone(&broker), publisher.status.subscribe(), found.status.clone(), levels.clone());
    publisher.turns = Some(announcer.turns());
    let front = Front { announcer, traces: traces.clone(), shutdown, server };
    let mut waiting = Waiting { signals, controls, asked: VecDeque::new(), told: None };

    timeline.begin("hardware");
    let patience = humantime::format_duration(GPU_PATIENCE);
    publisher.booting(&format!("waits for the NVIDIA driver to say which GPUs there are, {patience} at most"));
    let answered = waiting.during(found.look(), Duration::ZERO).await;
    let silent = || format!("the NVIDIA driver has not answered for {patience}: no GPUs until the next start");
    timeline.end("hardware", (answered == Some(false)).then(silent));
    let gpus = found.watch.gpus();
    let hardware = hardware(resources, &gpus);
    publisher.identity.hardware = hardware;

    let script_host = ScriptHost::new(ScriptHostConfig {
        machine_dir: settings.dir.clone(),
        scripts_dir: settings.scripts_dir.clone(),
        state_dir: settings.state_dir.clone(),
        processes: processes.clone(),
        supervisor: Some(supervisor.clone()),
        mark_prefix: mark_prefix.clone(),
        runtime: Handle::current(),
        events: Some(events.clone()),
        gpus: Some(found.status.clone()),
    });
    let inputs = BuildInputs {
        dir: dir.to_owned(),
        overrides,
        host: script_host,
        context: machine_context(&settings, &identity, resources, gpus.clone()),
        running: Some(Arc::clone(&settings)),
    };
    timeline.begin("script");
    publisher.booting("reads the machine's files");
    // Told to stop, it goes on to here: the files say what an earlier life's services may leave behind.
    let Some(generation) = waiting.during(build(&inputs, 1), STOP_PATIENCE).await else {
        tracing::warn!("stops while its files are read: what an earlier life of the engine left is not ended");
        return Ok(front.stop_early(&publisher, waiting.told).await);
    };
    timeline.end("script", generation.as_ref().err().map(|refused| format!("{} problems", refused.problems.errors())));
    let generation = match generation {
        Ok(generation) => Arc::new(generation),
        Err(Refused { problems, .. }) => {
            front.announcer.finish(None, Some(format!("its files cannot be used: {}", first_line(&problems)))).await;
            return Err(problems.into());
        }
    };

    timeline.begin("leftovers");
    publisher.booting("ends what an earlier life of the engine left");
    let (machine_prefix, own_prefix) = (format!("{}/", identity.id), format!("{mark_prefix}/"));
    let spec = Arc::clone(&generation.spec);
    let detached = move |owner: &str| {
        let service = spec.services.iter().find(|service| service.name.as_str() == owner);
        service.map(|service| service.detach.clone()).unwrap_or_default()
    };
    let clean = move || kill_leftovers(&machine_prefix, &own_prefix, LEFTOVER_GRACE, &detached);
    // It ends by itself, in a few seconds.
    let leftovers = waiting.during(tokio::task::spawn_blocking(clean), Duration::MAX).await;
    let leftovers = leftovers.and_then(Result::ok).unwrap_or_default();
    timeline.end("leftovers", None);
    if !leftovers.is_empty() {
        events.emit(&LeftoversKilled { leftovers });
    }
    // Jobs of an earlier life left their files.
    let _ = std::fs::remove_dir_all(settings.state_dir.join("work"));
    if waiting.told.is_some() {
        return Ok(front.stop_early(&publisher, waiting.told).await);
    }

    let (sender, receiver) = mpsc::unbounded_channel();
    let tracker = TaskTracker::new();
    let lease = settings.queue.lease.get();
    let mut workers =
        Workers::new(identity, hardware, Arc::clone(&broker), events.clone(), tracker.clone(), lease, gpus.clone());
    workers.traces = traces.clone();
    let stop = CancellationToken::new();
    let (debounce, poll) = (settings.reload.debounce.get(), settings.reload.poll.get());
    let watcher = FileWatcher::start(watched(&generation.seen), debounce, poll, stop.clone());
    let (program, program_receiver) = watch::channel(Arc::clone(&generation));
    let mut performer = Performer {
        inputs,
        current: Arc::clone(&generation),
        good: Arc::clone(&generation),
        latest: 1,
        rolled_back: None,
        supervisor: supervisor.clone(),
        workers,
        publisher,
        events: events.clone(),
        watcher,
        sender: sender.clone(),
        program,
        timeline: timeline.clone(),
        queue: None,
        startup_cancel: CancellationToken::new(),
        resources: watch::Sender::new(settings.resources.clone()),
        xid_hold: watch::Sender::new(settings.gpu.xid_hold.get()),
        log_level,
        exit_code: None,
    };
    tracker.spawn(call_on_event(events.clone(), program_receiver, stop.clone()));
    tracker.spawn(watch_services(supervisor.clone(), sender.clone(), stop.clone()));
    let gpu_status = found.status.clone();
    let resources = resources::watch(
        performer.resources.subscribe(),
        settings.state_dir.clone(),
        gpu_status,
        levels,
        sender.clone(),
        stop.clone(),
    );
    tracker.spawn(resources);
    let (gpu_task, gpu_changes, gpu_monitor) =
        found.task(performer.xid_hold.subscribe(), events.clone(), sender.clone(), stop.clone());
    tracker.spawn(gpu_task.run(gpu_changes));
    supervisor.set_hooks(Arc::new(ScriptHooks { program: performer.program.subscribe() }));
    let (stats, stats_receiver) = watch::channel(None);
    tracker.spawn(watch_unmatched(Arc::clone(&broker), events.clone(), stats_receiver.clone(), stop.clone()));
    tracker.spawn(keep_queue(broker, sender.clone(), stats, metrics, stop.clone()));
    start_up(&mut performer, &generation, &tracker);

    record_success();
    let limits = Limits::of(&settings);
    let inputs = LoopInputs { receiver, waiting, stats: stats_receiver };
    let exit_code = event_loop(Machine::new(limits), &mut performer, inputs).await;

    stop.cancel();
    drop(gpu_monitor);
    tracker.close();
    front.close(&tracker, exit_code).await;
    drop(state_dir);
    Ok(exit_code)
}

/// What is wrong, in a word; the log has all of it.
fn first_line(problems: &Problems) -> String {
    problems.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What others see of the machine.
struct Front {
    announcer: Announcer,
    traces: Traces,
    shutdown: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

impl Front {
    /// Whoever watches sees the last state; then the server ends.
    async fn close(self, tasks: &TaskTracker, exit_code: u8) {
        let ended = tokio::time::timeout(Duration::from_secs(2), tasks.wait());
        let _ = tokio::join!(ended, self.announcer.finish(Some(exit_code), None), self.traces.finish(LAST_TRACES));
        self.shutdown.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(3), self.server).await;
    }

    /// The end of a machine that has started nothing yet; answers with its exit code.
    async fn stop_early(self, publisher: &Publisher, cause: Option<StopCause>) -> u8 {
        publisher.stopped(cause.map_or_else(String::new, |cause| cause.to_string()));
        let nothing = TaskTracker::new();
        nothing.close();
        self.close(&nothing, 0).await;
        0
    }
}

/// Signals and requests, and what of them waits for the event loop.
struct Waiting {
    signals: mpsc::Receiver<HostSignal>,
    controls: mpsc::Receiver<Control>,
    asked: VecDeque<Control>,
    /// Why the machine is to stop, once it is told to.
    told: Option<StopCause>,
}

impl Waiting {
    /// Answers for the event loop while a step of the boot is done. None: the machine is to stop, and the step was given
    /// up `patience` after it was told so.
    async fn during<T>(&mut self, step: impl Future<Output = T>, patience: Duration) -> Option<T> {
        tokio::pin!(step);
        let mut until = None;
        loop {
            if self.told.is_some() && until.is_none() {
                until = tokio::time::Instant::now().checked_add(patience);
            }
            let given_up = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = &mut step => return Some(done),
                () = given_up => return None,
                Some(signal) = self.signals.recv() => match signal {
                    HostSignal::Stop(name) => drop(self.told.get_or_insert(StopCause::Signal(name))),
                    // The files are read after this, or watched from what was read on.
                    HostSignal::Reload => {}
                },
                Some(control) = self.controls.recv() => match control {
                    Control::Ping(reply) => {
                        let _ = reply.send(());
                    }
                    Control::Drain(reply) => {
                        let _ = reply.send(Ok("stopping".to_owned()));
                        self.told.get_or_insert(StopCause::Request);
                    }
                    // Whoever asks more than this is told that nobody answers.
                    control => {
                        if self.asked.len() < MOST_ASKED {
                            self.asked.push_back(control);
                        }
                    }
                },
            }
        }
    }
}

async fn next_control(asked: &mut VecDeque<Control>, controls: &mut mpsc::Receiver<Control>) -> Option<Control> {
    match asked.pop_front() {
        Some(control) => Some(control),
        None => controls.recv().await,
    }
}

/// The GPUs at the start, and what hears of them from then on.
struct FoundGpus {
    monitor: GpuMonitor,
    news: mpsc::UnboundedReceiver<GpuNews>,
    watch: GpuWatch,
    changes: Vec<GpuChange>,
    status: Published<GpusStatus>,
}

impl FoundGpus {
    /// Has them looked at, without waiting for an answer.
    fn ask(settings: &GpuSettings) -> Result<Self, MachineError> {
        let (tell, news) = mpsc::unbounded_channel();
        let tell = move |heard| {
            // Nobody listens any more at the machine's end.
            let _ = tell.send(heard);
        };
        let monitor = GpuMonitor::start(settings.library.clone(), settings.every.get(), tell)
            .map_err(|cause| MachineError::System { what: "the thread that looks at GPUs", cause })?;
        let watch = GpuWatch::new(settings.every.get(), settings.xid_hold.get(), Instant::now());
        let status = Published::new(watch.status());
        Ok(Self { monitor, news, watch, changes: Vec::new(), status })
    }

    /// Waits for the first answer as long as a start may; whether there was one.
    async fn look(&mut self) -> bool {
        let first = tokio::time::timeout(GPU_PATIENCE, self.news.recv()).await.ok().flatten();
        let answered = first.is_some();
        self.changes
            .extend(first.into_iter().flat_map(|news| self.watch.handle(news, Timestamp::now(), Instant::now())));
        self.changes.extend(self.watch.tick(Instant::now()));
        self.status.set_if_changed(self.watch.status());
        answered
    }

    fn task(
        self,
        hold: watch::Receiver<Duration>,
        events: EventLog,
        sender: mpsc::UnboundedSender<Event>,
        stop: CancellationToken,
    ) -> (GpuTask, Vec<GpuChange>, GpuMonitor) {
        let Self { monitor, news, watch, changes, status } = self;
        (GpuTask { watch, news, hold, status, events, sender, stop }, changes, monitor)
    }
}

struct LoopInputs {
    receiver: mpsc::UnboundedReceiver<Event>,
    waiting: Waiting,
    stats: watch::Receiver<Option<crate::queue::QueueStats>>,
}

/// Makes events, lets `handle` decide, performs.
async fn event_loop(mut machine: Machine, performer: &mut Performer, inputs: LoopInputs) -> u8 {
    let LoopInputs { mut receiver, waiting, stats } = inputs;
    let Waiting { mut signals, mut controls, mut asked, told: _ } = waiting;
    loop {
        performer.queue.clone_from(&stats.borrow());
        performer.publish(&machine);
        if let Some(code) = performer.exit_code {
            return code;
        }
        let deadline = machine.next_deadline();
        let due = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            Some(event) = receiver.recv() => event,
            Some(signal) = signals.recv() => match signal {
                HostSignal::Stop(name) => Event::StopWanted(StopCause::Signal(name), None),
                HostSignal::Reload => Event::ReloadWanted(ReloadCause::Hangup, None),
            },
            Some(control) = next_control(&mut asked, &mut controls) => match control {
                Control::Ping(reply) => {
                    let _ = reply.send(());
                    continue;
                }
                Control::Plan { dir, reply } => {
                    performer.plan(dir, reply);
                    continue;
                }
                Control::Console(reply) => {
                    let Generation { settings, program, context, .. } = &*performer.current;
                    let ground = || Box::new(ConsoleGround { program: program.clone(), context: context.clone() });
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(settings.http.console.then(ground)));
                    continue;
                }
                Control::Reload { verdict, reply } => {
                    Event::ReloadWanted(ReloadCause::Request, Some(Asker { reply, verdict }))
                }
                Control::Drain(reply) => Event::StopWanted(StopCause::Request, Some(reply)),
            },
            () = performer.workers.changed() => Event::Workers(performer.workers.status()),
            () = performer.watcher.changed() => Event::ReloadWanted(ReloadCause::FilesChanged, None),
            () = due => Event::Deadline,
        };
        if let Event::Services(services) = &event {
            performer.workers.services_changed(&performer.current.spec, services);
        }
        for effect in machine.handle(event, Instant::now()) {
            performer.perform(effect);
        }
    }
}

/// Starts services and workers, by the script's own sequence where there is one.
fn start_up(performer: &mut Performer, generation: &Arc<Generation>, tracker: &TaskTracker) {
    let mode = if generation.program.has_startup() { StartMode::Held } else { StartMode::All };
    let revision = performer.go_live(generation, mode);
    let (generation, supervisor) = (Arc::clone(generation), performer.supervisor.clone());
    let (timeline, sender) = (performer.timeline.clone(), performer.sender.clone());
    let cancel = performer.startup_cancel.clone();
    tracker.spawn(async move {
        let mut outcome = Ok(());
        known(&supervisor, revision, &cancel).await;
        if mode == StartMode::Held {
            timeline.begin("startup(m)");
            let steps = Arc::new(timeline.clone());
            outcome = generation.program.startup(&generation.context, steps, cancel.clone()).await;
            timeline.end("startup(m)", outcome.as_ref().err().map(|problem| problem.message.clone()));
            if outcome.is_ok() {
                // What the sequence did not name comes after it.
                let revision = supervisor.start_all();
                known(&supervisor, revision, &cancel).await;
            }
        }
        // Nothing counts as up before it is known to be there.
        let _ = sender.send(Event::Services(supervisor.status()));
        let _ = sender.send(Event::StartupEnded(outcome.map_err(|problem| problem.to_string())));
    });
}

/// Returns when the published status is of this revision: the supervisor works on its own thread, and publishes later.
async fn known(supervisor: &SupervisorHandle, revision: u64, cancel: &CancellationToken) {
    let mut status = supervisor.subscribe();
    let known = status.wait_for(|status| status.revision >= revision);
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = known => {}
    }
}

async fn watch_services(supervisor: SupervisorHandle, sender: mpsc::UnboundedSender<Event>, stop: CancellationToken) {
    let mut status = supervisor.subscribe();
    loop {
        let services = status.borrow_and_update().clone();
        if sender.send(Event::Services(services)).is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

/// Reaps and counts, which also tells whether the queue can be reached.
async fn keep_queue(
    broker: Arc<dyn Broker>,
    sender: mpsc::UnboundedSender<Event>,
    stats: watch::Sender<Option<crate::queue::QueueStats>>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    stop: CancellationToken,
) {
    let mut reachable = true;
    loop {
        let outcome = broker.reap().await.map(|round| (round.stats, round.next));
        metrics.run_upkeep();
        let pause = match outcome {
            Ok((now, next)) => {
                stats.send_if_modified(|current| {
                    let changed = current.as_ref() != Some(&now);
                    *current = Some(now);
                    changed
                });
                if !std::mem::replace(&mut reachable, true) {
                    let _ = sender.send(Event::Queue(Ok(())));
                }
                next
            }
            Err(cause) => {
                reachable = false;
                let _ = sender.send(Event::Queue(Err(cause.to_string())));
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = broker.reap_wanted(pause) => {}
        }
    }
}

/// A machine works without them.
fn start_traces(settings: &Settings, identity: &Identity) -> Traces {
    let about = vec![
        ("service.name", "machinist".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", identity.id.to_string()),
        ("machinist.machine.type", settings.machine.machine_type.to_string()),
        ("machinist.machine.pool", settings.machine.pool.to_string()),
    ];
    Traces::start(settings.telemetry.otlp_endpoint.as_deref(), about).unwrap_or_else(|why| {
        tracing::error!("traces cannot be exported: {why}");
        Traces::default()
    })
}

fn open_queue(settings: &Settings) -> Result<Arc<dyn Broker>, BrokerError> {
    let name = settings.queue.name.as_str();
    let secret = settings.queue.webhook_secret.as_ref().map(|secret| secret.reveal().as_bytes().to_vec());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let webhooks = Some(Arc::new(WebhookSender::new(reqwest::Client::new(), secret)));
    let open = |url: &String| Ok::<_, BrokerError>(BlobStore::open(url, std::env::vars())?.within(name));
    let blobs = settings.blobs.url.as_ref().map(open).transpose()?;
    let config = QueueConfig { lease: settings.queue.lease.get(), webhooks, blobs, ..QueueConfig::default() };
    match &settings.queue.backend {
        QueueBackend::Embedded(path) => queue::open_embedded(path, config),
        QueueBackend::Redis(address) => Ok(queue::connect_redis(address.clone(), name, config)),
    }
}

fn hardware(resources: host::Resources, gpus: &[host::Gpu]) -> Hardware {
    let smallest = gpus.iter().map(|gpu| gpu.memory_gb).fold(f64::INFINITY, f64::min);
    Hardware {
        gpu_memory_gb: if smallest.is_finite() { smallest } else { 0.0 },
        gpu_count: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        ram_gb: resources.memory_gb,
        cpu_cores: resources.cpus,
    }
}

fn machine_identity(settings: &Settings, identity: &Identity, hardware: Hardware) -> MachineIdentity {
    MachineIdentity {
        id: identity.id.clone(),
        machine_type: settings.machine.machine_type.clone(),
        pool: settings.machine.pool.clone(),
        labels: settings.machine.labels.clone(),
        incarnation: identity.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: Timestamp::now(),
        hardware,
    }
}

/// The context that scripts are evaluated with; settings fill in the rest at every build.
pub fn machine_context(
    settings: &Settings,
    identity: &Identity,
    resources: host::Resources,
    gpus: Vec<host::Gpu>,
) -> MachineContext {
    MachineContext {
        id: identity.id.clone(),
        machine_type: settings.machine.machine_type.clone(),
        pool: settings.machine.pool.clone(),
        labels: BTreeMap::new(),
        vars: serde_json::Map::new(),
        workers: 0,
        gpus,
        cpus: resources.cpus,
        memory_gb: resources.memory_gb,
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name != "MACHINIST_TOKEN")
            .collect(),
        generation: 0,
        engine: std::env::current_exe().unwrap_or_else(|_| "machinist".into()),
        dir: settings.dir.clone(),
        state_dir: settings.state_dir.clone(),
    }
}
