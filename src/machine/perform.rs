use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::event::{Asker, Event, ReloadCause, WithdrawnGpu};
use super::events::{
    HookFailed, ReloadCommitted, ReloadPassed, ReloadRejected, ReloadRolledBack, ResourceShort, StartupComplete,
    StateChanged,
};
use super::generation::{BuildInputs, Generation, Refused, SeenFiles, build};
use super::handle::{Effect, Limits, Machine};
use super::plan::reload_plan;
use super::probation::{Fault, Subject, Trial};
use super::publish::Publisher;
use super::startup::Timeline;
use super::workers::Workers;
use crate::admin::{MachineState, Rejection, ReloadPlan};
use crate::base::{Name, Problem, Problems, Timestamp};
use crate::host::{FileWatcher, Known, Level, Watched, give_back};
use crate::queue::QueueStats;
use crate::script::ConnectorProgram;
use crate::settings::ResourceSettings;
use crate::spec::{Change, Diff, GpuRef, ProbeTarget, ServiceChange};
use crate::supervisor::{LogFilter, LostGpu, StartMode, SupervisorHandle};
use crate::telemetry::{EventLog, LogLevel};
use crate::worker::WorkerState;

/// The supervisor kills at its deadline; this is for what the kernel itself cannot end.
const LAST_PATIENCE: Duration = Duration::from_secs(6);
/// Lines of a service that failed its probation, to show with the refusal.
const LAST_LINES: usize = 10;
/// Lines that tell what the edit was.
const EDIT_LINES: usize = 40;

/// Does what `handle` decided. Nothing here waits: what takes time is a task that reports back with an event.
pub(super) struct Performer {
    pub inputs: BuildInputs,
    pub current: Arc<Generation>,
    /// The last one that passed its probation.
    pub good: Arc<Generation>,
    /// The highest number that was given.
    pub latest: u64,
    /// The hash of the edit that was rolled back, and why: it is not tried again.
    pub rolled_back: Option<(String, Problems)>,
    pub supervisor: SupervisorHandle,
    pub workers: Workers,
    pub publisher: Publisher,
    pub events: EventLog,
    pub watcher: FileWatcher,
    pub sender: mpsc::UnboundedSender<Event>,
    /// The script that `on_event` is called of.
    pub program: watch::Sender<Arc<Generation>>,
    pub timeline: Timeline,
    pub queue: Option<QueueStats>,
    pub startup_cancel: CancellationToken,
    pub resources: watch::Sender<ResourceSettings>,
    pub xid_hold: watch::Sender<Duration>,
    pub log_level: LogLevel,
    pub exit_code: Option<u8>,
}

impl Performer {
    pub fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Build(cause) => self.build(cause),
            Effect::Commit(generation, askers) => self.commit(Arc::new(*generation), askers),
            Effect::Reject(refused, askers) => self.reject(refused, None, askers),
            Effect::TellUnchanged(hash, askers) => match &self.rolled_back {
                // It was rolled back a moment ago.
                Some((rolled_back, problems)) if *rolled_back == hash => answer(askers, problems),
                _ => {
                    for asker in askers {
                        let _ = asker.reply.send(Ok("nothing has changed".to_owned()));
                    }
                }
            },
            Effect::Pass { generation, watched } => self.pass(generation, watched),
            Effect::RollBack(faults, askers) => self.roll_back(&faults, askers),
            Effect::Reply(replies, answer) => {
                for reply in replies {
                    let answer = answer.clone().map_err(|why| Problems::from(Problem::error(why)));
                    // Whoever asked may have gone.
                    let _ = reply.send(answer);
                }
            }
            Effect::AnnounceStarted => {
                self.events.emit(&StartupComplete { took_ms: self.timeline.elapsed_ms() });
                tokio::task::spawn_blocking(give_back);
            }
            Effect::AnnounceState { from, to, reason } => {
                self.events.emit(&StateChanged { from, to, reason });
                if matches!(to, MachineState::Draining | MachineState::Failed) {
                    self.startup_cancel.cancel();
                }
            }
            Effect::WithdrawGpus(withdrawn) => self.withdraw_gpus(withdrawn),
            Effect::HoldWorkers(why) => self.workers.hold(why, &self.current.spec, &self.supervisor.status()),
            Effect::Recover(levels) => self.recover(levels),
            Effect::DrainWorkers { deadline } => self.drain_workers(deadline),
            Effect::StopServices { deadline } => self.stop_services(deadline),
            Effect::Exit(code) => self.exit_code = Some(code),
        }
    }

    pub fn publish(&mut self, machine: &Machine) {
        let services = self.supervisor.status();
        self.publisher.publish(machine, &services, self.workers.status(), self.queue.clone());
    }

    fn withdraw_gpus(&mut self, withdrawn: Vec<WithdrawnGpu>) {
        let lost = withdrawn.iter().filter(|gpu| gpu.lost);
        let lost = lost.map(|WithdrawnGpu { gpu, why, .. }| LostGpu {
            gpu: GpuRef { index: gpu.index, uuid: gpu.uuid.clone() },
            why: why.clone(),
        });
        self.supervisor.hold_for(lost.collect());
        self.workers.withdraw(withdrawn, &self.current, &self.supervisor.status());
    }

    fn recover(&self, levels: Vec<Level>) {
        for level in &levels {
            let Level { resource, used, detail } = level.clone();
            self.events.emit(&ResourceShort { resource, used, detail });
        }
        let (generation, sender, events) = (Arc::clone(&self.current), self.sender.clone(), self.events.clone());
        let cancel = self.startup_cancel.clone();
        tokio::spawn(async move {
            if generation.program.has_recover() {
                let _ = sender.send(Event::RecoveryBegun);
                for level in &levels {
                    if let Err(problem) = generation.program.recover(&generation.context, level, cancel.clone()).await {
                        events.emit(&HookFailed { hook: "recover", problem: problem.to_string() });
                    }
                }
            }
            let _ = sender.send(Event::RecoveryEnded);
        });
    }

    /// Builds without going live, and tells what it would change.
    pub fn plan(&self, dir: Option<PathBuf>, reply: oneshot::Sender<Result<Box<ReloadPlan>, Problems>>) {
        let (mut inputs, running, number) = (self.inputs.clone(), Arc::clone(&self.current), self.latest + 1);
        if let Some(dir) = dir {
            inputs.move_to(&dir);
        }
        tokio::spawn(async move {
            let plan = build(&inputs, number).await.map(|new| Box::new(reload_plan(&running, &new)));
            // Whoever asked may have gone.
            let _ = reply.send(plan.map_err(|refused| refused.problems));
        });
    }

    fn build(&mut self, cause: ReloadCause) {
        tracing::debug!("reading the machine's files again: {cause:?}");
        let (inputs, sender, number) = (self.inputs.clone(), self.sender.clone(), self.latest + 1);
        tokio::spawn(async move {
            let outcome = build(&inputs, number).await.map(Box::new);
            let _ = sender.send(Event::ReloadBuilt(outcome));
        });
    }

    fn commit(&mut self, generation: Arc<Generation>, askers: Vec<Asker>) {
        if let Some((hash, problems)) = &self.rolled_back
            && *hash == generation.hash
        {
            let (problems, seen) = (problems.clone(), generation.seen.clone());
            let rolled_back = self.publisher.generation.rejection.take().and_then(|rejection| rejection.rolled_back);
            self.reject(Refused { problems, seen }, rolled_back, askers);
            let _ = self.sender.send(Event::Unchanged(generation.hash.clone(), Vec::new()));
            return;
        }
        self.watcher.set_files(watched(&generation.seen));
        if generation.hash == self.current.hash {
            self.publisher.generation.rejection = None;
            let _ = self.sender.send(Event::Unchanged(generation.hash.clone(), askers));
            return;
        }
        let trial = self.trial(&generation);
        let diff = Diff::between(&self.current.spec, &generation.spec);
        self.latest = generation.number;
        self.rolled_back = None;
        let revision = self.go_live(&generation, StartMode::All);
        let changes = describe(&diff);
        let text = if changes.is_empty() { "no service or worker changes".to_owned() } else { changes.join(", ") };
        let number = generation.number;
        self.events.emit(&ReloadCommitted { generation: number, hash: generation.hash.clone(), changes });
        let (waiting, at_once): (Vec<_>, Vec<_>) = askers.into_iter().partition(|asker| asker.verdict);
        for asker in at_once {
            let _ = asker.reply.send(Ok(format!("generation {number} is live: {text}")));
        }
        let limits = Limits::of(&generation.settings);
        let _ = self.sender.send(Event::WentLive(Trial { revision, ..trial }, limits, waiting));
    }

    /// What `generation` has to show, taken down before it goes live.
    fn trial(&self, generation: &Generation) -> Trial {
        let window = generation.settings.reload.probation.get();
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let ends = Timestamp::from_millis(Timestamp::now().as_millis().saturating_add(window_ms));
        let mut trial = Trial {
            generation: generation.number,
            back_to: self.good.number,
            window,
            ends: Some(ends),
            ..Trial::default()
        };
        // Nothing was ever better than what is good.
        if generation.hash == self.good.hash {
            return trial;
        }
        let mut affected = Diff::between(&self.good.spec, &generation.spec).affected(&generation.spec);
        if self.good.program.files() != generation.program.files() {
            // Probes may call functions that read otherwise now.
            let asks = generation.spec.services.iter().filter(|service| {
                let mut probes = [&service.startup, &service.ready, &service.live].into_iter().flatten();
                probes.any(|probe| matches!(probe.target, ProbeTarget::Script(_)))
            });
            let asks = asks.map(|service| service.name.clone()).filter(|name| !affected.fresh.contains(name));
            affected.others.extend(asks.collect::<Vec<_>>());
        }
        trial.services = Trial::services(&affected, &self.supervisor.status());
        trial.renewed = Diff::between(&self.current.spec, &generation.spec).affected(&generation.spec).fresh;
        let workers = self.workers.status();
        let holds = |state| matches!(state, WorkerState::Active | WorkerState::Held);
        let held = |name: &Name| workers.get(name).is_some_and(|worker| holds(worker.state));
        let on_trial = self.publisher.generation.probation.iter().flat_map(|probation| probation.workers.iter());
        let on_trial: Vec<&Name> = on_trial.collect();
        let differing = generation.spec.workers.iter().filter(|worker| self.other_connector(generation, &worker.name));
        let names = differing.map(|worker| worker.name.clone());
        trial.workers = names.filter(|name| held(name) || on_trial.contains(&name)).collect();
        trial
    }

    /// Whether the worker's check may come out otherwise than with the good generation.
    fn other_connector(&self, generation: &Generation, name: &Name) -> bool {
        let of = |generation: &Generation| {
            let worker = generation.spec.worker(name).cloned()?;
            let files = generation.connectors.get(&worker.connector).map(ConnectorProgram::files);
            let settings = generation.settings.connectors.get(&worker.connector).cloned();
            Some((worker.connector, worker.vars, files, settings, generation.settings.vars.clone()))
        };
        of(&self.good) != of(generation)
    }

    fn pass(&mut self, generation: u64, watched: bool) {
        self.good = Arc::clone(&self.current);
        record_success();
        if watched {
            self.events.emit(&ReloadPassed { generation });
        }
    }

    fn roll_back(&mut self, faults: &[Fault], askers: Vec<Asker>) {
        let (failed, good) = (Arc::clone(&self.current), Arc::clone(&self.good));
        let mut problems: Vec<Problem> = faults.iter().map(|fault| self.problem_of(fault)).collect();
        if let Some(last) = problems.last_mut() {
            last.notes.extend(edit_in_words(&good, &failed));
            last.help = Some("change a file; the same edit is not tried again".to_owned());
        }
        let problems = Problems(problems);
        let revision = self.go_live(&good, StartMode::All);
        let _ = self.sender.send(Event::RolledBack(revision, Limits::of(&good.settings)));
        self.rolled_back = Some((failed.hash.clone(), problems.clone()));
        // As they are on the disk now, where the remedy will come.
        let paths = good.seen.keys().chain(failed.seen.keys());
        self.watcher.set_files(paths.map(|path| (path.clone(), Known::Now)).collect());
        let (generation, back_to) = (failed.number, good.number);
        self.events.emit(&ReloadRolledBack { generation, back_to, problems: problems.clone() });
        let rejection = Rejection { at: Timestamp::now(), rolled_back: Some(generation), problems: problems.clone() };
        self.publisher.rejected(rejection);
        answer(askers, &problems);
    }

    /// With the last words of a service.
    fn problem_of(&self, fault: &Fault) -> Problem {
        let mut problem = Problem::error(format!("{} {}", fault.subject, fault.what));
        if let Subject::Service(name) = &fault.subject {
            let lines = self.supervisor.logs(Some(name), 0, LAST_LINES, &LogFilter::default()).unwrap_or_default();
            problem.notes.extend(lines.into_iter().map(|line| format!("{name} wrote: {}", line.text)));
        }
        problem
    }

    /// Makes a generation the one that runs; the revision of the services' status that knows of it.
    pub fn go_live(&mut self, generation: &Arc<Generation>, mode: StartMode) -> u64 {
        for warning in &generation.warnings.0 {
            tracing::warn!("{warning}");
        }
        let settings = &generation.settings;
        self.watcher.set_timing(settings.reload.debounce.get(), settings.reload.poll.get());
        if self.current.settings.log.level != settings.log.level {
            self.log_level.set(&settings.log.level);
        }
        self.resources.send_if_modified(|current| {
            let differs = *current != settings.resources;
            current.clone_from(&settings.resources);
            differs
        });
        self.xid_hold.send_replace(settings.gpu.xid_hold.get());
        self.current = Arc::clone(generation);
        self.publisher.committed(generation);
        let revision = self.supervisor.apply(Arc::clone(&generation.spec), mode);
        self.workers.apply(generation, &self.supervisor.status());
        self.program.send_replace(Arc::clone(generation));
        revision
    }

    /// `rolled_back` is the number of the generation that this edit was once, where it was live before.
    fn reject(&mut self, refused: Refused, rolled_back: Option<u64>, askers: Vec<Asker>) {
        let Refused { problems, seen } = refused;
        // Files that the refused edit brought along, or missed, have to be watched too, for that is where the remedy will
        // come.
        let mut files: Watched = self.current.seen.keys().map(|path| (path.clone(), Known::Now)).collect();
        files.extend(watched(&seen));
        self.watcher.set_files(files);
        self.events.emit(&ReloadRejected { problems: problems.clone() });
        self.publisher.rejected(Rejection { at: Timestamp::now(), rolled_back, problems: problems.clone() });
        answer(askers, &problems);
    }

    fn drain_workers(&mut self, deadline: Instant) {
        let handles = self.workers.handles();
        for handle in &handles {
            handle.drain(deadline);
        }
        let (sender, generation, events) = (self.sender.clone(), Arc::clone(&self.current), self.events.clone());
        tokio::spawn(async move {
            if generation.program.has_shutdown()
                && let Err(problem) = generation.program.shutdown(&generation.context, deadline).await
            {
                events.emit(&HookFailed { hook: "shutdown", problem: problem.to_string() });
            }
            for handle in handles {
                handle.stopped().await;
            }
            let _ = sender.send(Event::WorkersStopped);
        });
    }

    fn stop_services(&mut self, deadline: Instant) {
        let (sender, supervisor) = (self.sender.clone(), self.supervisor.clone());
        tokio::spawn(async move {
            let all_gone = supervisor.stop_all(deadline);
            if tokio::time::timeout_at((deadline + LAST_PATIENCE).into(), all_gone).await.is_err() {
                tracing::error!("some processes could not be killed and are left behind");
            }
            let _ = sender.send(Event::ServicesStopped);
        });
    }
}

pub(super) fn record_success() {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
    let now = Timestamp::now().as_millis() as f64 / 1000.0;
    gauge!("machinist_last_reload_success_timestamp_seconds").set(now);
}

fn answer(askers: Vec<Asker>, problems: &Problems) {
    for asker in askers {
        // Whoever asked may have gone.
        let _ = asker.reply.send(Err(problems.clone()));
    }
}

/// With the contents that were read: whatever differs from them has changed since.
pub(super) fn watched(seen: &SeenFiles) -> Watched {
    seen.iter().map(|(path, mark)| (path.clone(), Known::Content(*mark))).collect()
}

/// What the edit was, a line for each field.
fn edit_in_words(old: &Generation, new: &Generation) -> Vec<String> {
    let ReloadPlan { files, changes, settings, .. } = reload_plan(old, new);
    let files = files.iter().map(|file| format!("the edit: file {}", file.display()));
    let settings = settings.iter().map(|change| format!("the edit: setting {change}"));
    let steps = changes.services.iter().chain(&changes.workers).flat_map(|step| {
        let fields = step.fields.iter().map(|field| format!("the edit: {}: {field}", step.name));
        std::iter::once(format!("the edit: {step}")).chain(fields).collect::<Vec<_>>()
    });
    files.chain(settings).chain(steps).take(EDIT_LINES).collect()
}

fn describe(diff: &Diff) -> Vec<String> {
    let services = diff.services.iter().map(|(name, change)| match change {
        ServiceChange::Added => format!("{name} added"),
        ServiceChange::Removed => format!("{name} removed"),
        ServiceChange::Restarted(fields) => format!("{name} restarted ({})", fields.join(", ")),
        ServiceChange::Updated(fields) => format!("{name} updated ({})", fields.join(", ")),
    });
    let workers = diff.workers.iter().map(|(name, change)| match change {
        Change::Added => format!("worker {name} added"),
        Change::Removed => format!("worker {name} removed"),
        Change::Changed(fields) => format!("worker {name} changed ({})", fields.join(", ")),
    });
    services.chain(workers).collect()
}
