use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::event::{Event, ReloadCause};
use super::events::{HookFailed, ReloadCommitted, ReloadRejected, ResourceShort, StartupComplete, StateChanged};
use super::generation::{BuildInputs, Generation, build};
use super::handle::{Effect, Machine};
use super::publish::Publisher;
use super::startup::Timeline;
use super::workers::Workers;
use crate::admin::{ControlReply, MachineState, Rejection};
use crate::base::{Problem, Problems, Timestamp};
use crate::host::{FileWatcher, Level, give_back};
use crate::queue::QueueStats;
use crate::spec::{Change, Diff, ServiceChange};
use crate::supervisor::{StartMode, SupervisorHandle};
use crate::telemetry::EventLog;

/// The supervisor kills at its deadline; this is for what the kernel itself cannot end.
const LAST_PATIENCE: Duration = Duration::from_secs(6);

/// Does what `handle` decided. Nothing here waits: what takes time is a task that reports back with an event.
pub(super) struct Performer {
    pub inputs: BuildInputs,
    pub current: Arc<Generation>,
    pub built: u64,
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
    pub exit_code: Option<u8>,
}

impl Performer {
    pub fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Build(cause) => self.build(cause),
            Effect::Commit(generation, replies) => self.commit(Arc::new(*generation), replies),
            Effect::Reject(problems, replies) => self.reject(problems, replies),
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

    fn build(&mut self, cause: ReloadCause) {
        tracing::debug!("reading the machine's files again: {cause:?}");
        self.built += 1;
        let (inputs, sender, number) = (self.inputs.clone(), self.sender.clone(), self.current.number + 1);
        tokio::spawn(async move {
            let outcome = build(&inputs, number).await.map(Box::new);
            let _ = sender.send(Event::ReloadBuilt(outcome));
        });
    }

    fn commit(&mut self, generation: Arc<Generation>, replies: Vec<oneshot::Sender<ControlReply>>) {
        self.watcher.set_files(generation.files.clone());
        let answer = if generation.hash == self.current.hash {
            self.publisher.generation.rejection = None;
            "nothing has changed".to_owned()
        } else {
            let diff = Diff::between(&self.current.spec, &generation.spec);
            self.go_live(&generation, StartMode::All);
            let changes = describe(&diff);
            let text = if changes.is_empty() { "no service or worker changes".to_owned() } else { changes.join(", ") };
            let number = generation.number;
            self.events.emit(&ReloadCommitted { generation: number, hash: generation.hash.clone(), changes });
            format!("generation {number} is live: {text}")
        };
        for reply in replies {
            let _ = reply.send(Ok(answer.clone()));
        }
    }

    /// Makes a generation the one that runs.
    pub fn go_live(&mut self, generation: &Arc<Generation>, mode: StartMode) {
        for warning in &generation.warnings.0 {
            tracing::warn!("{warning}");
        }
        self.current = Arc::clone(generation);
        self.publisher.committed(generation);
        self.supervisor.apply(Arc::clone(&generation.spec), mode);
        self.workers.apply(generation, &self.supervisor.status());
        self.program.send_replace(Arc::clone(generation));
    }

    fn reject(&mut self, problems: Problems, replies: Vec<oneshot::Sender<ControlReply>>) {
        // Files that the refused edit brought along have to be watched too, for that is where the remedy will come.
        let mut files = self.current.files.clone();
        files.extend(problems.0.iter().filter_map(|problem| problem.location.as_ref()).map(|place| place.file.clone()));
        self.watcher.set_files(files);
        self.events.emit(&ReloadRejected { problems: problems.clone() });
        self.publisher.rejected(Rejection { at: Timestamp::now(), problems: problems.clone() });
        for reply in replies {
            let _ = reply.send(Err(problems.clone()));
        }
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

/// Calls `on_event` for every event, one after the other; what comes too fast is skipped, as the event log tells.
pub(super) async fn call_on_event(
    events: EventLog,
    program: watch::Receiver<Arc<Generation>>,
    stop: CancellationToken,
) {
    let mut reader = events.reader(events.latest());
    let mut failures: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = reader.ready() => {}
        }
        let (batch, lagged) = reader.take(100);
        if let Some(lagged) = lagged {
            tracing::warn!("on_event is too slow: {} events were skipped", lagged.missed);
        }
        for event in batch {
            let generation = program.borrow().clone();
            // The failure of the hook is an event itself, which must not call the hook again.
            if !generation.program.has_on_event() || event.kind == "script.failed" {
                continue;
            }
            let outcome = generation.program.on_event(&generation.context, &event, stop.clone()).await;
            if let Err(problem) = outcome {
                let count = failures.entry(generation.hash.clone()).or_default();
                *count += 1;
                // A hook that always fails says so now and then, not at every event.
                if count.is_power_of_two() {
                    events.emit(&HookFailed { hook: "on_event", problem: problem.to_string() });
                }
            }
        }
    }
}
