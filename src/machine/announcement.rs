use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::admin::{MachineIdentity, MachineState, MachineStatus, MachineSummary, StartupStep};
use crate::base::{Name, Timestamp};
use crate::host::{GpuState, GpusStatus, Level, Resource};
use crate::queue::JobId;
use crate::supervisor::{Desired, ServiceState, ServiceStatus};
use crate::worker::WorkerState;

/// Grows when a field changes its meaning or goes. Fields and kinds may be added at any time.
const VERSION: u32 = 1;
/// Entries of one list; what is left out is counted.
const MOST_SERVICES: usize = 50;
const MOST_WORKERS: usize = 50;
const MOST_JOBS: usize = 100;
const MOST_GPUS: usize = 16;
const MOST_STEPS: usize = 50;
/// Bytes of a text for people.
const MOST_TEXT: usize = 200;
/// Bytes of all labels as JSON.
const MOST_LABELS: usize = 4_096;

/// What a machine says of itself to all, on the channel `machine:status:<id>`: every 15 s, when something changes, and at the
/// turns of its life. Some KiB of JSON, at most 128 KiB; it has no payload, no environment and no setting but labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Announcement {
    /// Of this schema; 1.
    pub version: u32,
    pub kind: AnnouncementKind,
    /// Counts the messages of one life of the engine (`machine.incarnation`) from 1: a gap is a message that was missed.
    pub seq: u64,
    /// When what it says was so.
    pub at: Timestamp,
    pub machine: MachineIdentity,
    pub state: MachineState,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// Why it is in this state, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The start-up sequence is through, and all was up once.
    pub started: bool,
    pub generation: AnnouncedGeneration,
    pub services: AnnouncedServices,
    pub workers: AnnouncedWorkers,
    pub gpus: AnnouncedGpus,
    /// How much of each resource was in use at the latest look, of 1.
    pub resources: BTreeMap<Resource, f64>,
    /// With `startup_complete`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub startup: Option<AnnouncedStartup>,
    /// With `shutdown`; missing where the engine ends before it could run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnnouncementKind {
    /// The engine has begun; nothing of the machine runs yet.
    Starting,
    /// How the machine is now.
    Status,
    /// The start-up sequence is through, with the times of its steps.
    StartupComplete,
    /// The machine is there to work: right after `startup_complete`, and when its connection to the queue is new.
    Online,
    /// It claims no more, finishes what runs, and ends.
    Draining,
    /// It cannot go on: its jobs go back, and it ends.
    Failed,
    /// Its last word: all of it has ended, and the engine does.
    Shutdown,
}

/// Which version of the machine's files runs; 0 before the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedGeneration {
    pub number: u64,
    pub hash: String,
    pub since: Timestamp,
    /// It may still be rolled back.
    pub on_probation: bool,
    /// The newest edit was refused or rolled back.
    pub edit_refused: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedServices {
    pub total: usize,
    /// How many are in each state that some are in.
    pub states: BTreeMap<String, usize>,
    /// Those that should be up and are not, at most 50; failed ones first.
    pub down: Vec<AnnouncedService>,
    /// How many more there are.
    #[serde(skip_serializing_if = "crate::base::is_default", default)]
    pub down_left_out: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedService {
    pub name: Name,
    pub state: ServiceState,
    pub since: Timestamp,
    pub restarts: u64,
    pub critical: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedWorkers {
    pub total: usize,
    /// Jobs that may run at once.
    pub slots: u64,
    /// Jobs that run.
    pub running: usize,
    /// Jobs of this life of the engine that were completed, and that failed for good.
    pub completed: u64,
    pub failed: u64,
    /// At most 50; those that do not claim first.
    pub workers: Vec<AnnouncedWorker>,
    #[serde(skip_serializing_if = "crate::base::is_default", default)]
    pub left_out: usize,
    /// The jobs that run, those that have run longest first; at most 100.
    pub jobs: Vec<AnnouncedJob>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedWorker {
    pub name: Name,
    pub connector: Name,
    pub state: WorkerState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    pub slots: u32,
    pub running: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedJob {
    pub id: JobId,
    pub worker: Name,
    pub since: Timestamp,
    /// 0 to 1, where it tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub progress: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedGpus {
    pub total: usize,
    /// At most 16.
    pub gpus: Vec<AnnouncedGpu>,
}

/// What it does not tell is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedGpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    pub state: GpuState,
    /// Share of time in which a kernel ran, of 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub utilization: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub temperature_celsius: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedStartup {
    /// From the engine's start until all was up.
    pub took_ms: u64,
    /// At most 50.
    pub steps: Vec<StartupStep>,
}

impl Announcement {
    /// `seq` and `at` are those of the moment.
    pub fn of(kind: AnnouncementKind, status: &MachineStatus, gpus: &GpusStatus, levels: &[Level]) -> Self {
        let mut machine = status.machine.clone();
        if serde_json::to_string(&machine.labels).is_ok_and(|text| text.len() > MOST_LABELS) {
            machine.labels = BTreeMap::from([("labels_left_out".to_owned(), Value::from(machine.labels.len()))]);
        }
        let generation = &status.generation;
        Self {
            version: VERSION,
            kind,
            seq: 0,
            at: Timestamp::now(),
            machine,
            state: status.state,
            since: status.since,
            reason: status.reason.as_deref().map(short),
            started: status.started,
            generation: AnnouncedGeneration {
                number: generation.number,
                hash: generation.hash.clone(),
                since: generation.since,
                on_probation: generation.probation.is_some(),
                edit_refused: generation.rejection.is_some(),
            },
            services: services(status),
            workers: workers(status),
            gpus: self::gpus(gpus),
            resources: levels.iter().map(|level| (level.resource, level.used)).collect(),
            startup: (kind == AnnouncementKind::StartupComplete).then(|| startup(status)),
            exit_code: None,
        }
    }

    /// Without what changes all the time: whether the rest differs decides whether there is news.
    #[must_use]
    pub fn news(&self) -> Self {
        let Self { workers, gpus, .. } = self;
        let jobs = workers.jobs.iter().map(|job| AnnouncedJob { progress: None, ..job.clone() }).collect();
        let gpus = gpus.gpus.iter().map(|gpu| AnnouncedGpu {
            utilization: None,
            memory_used_bytes: None,
            temperature_celsius: None,
            ..gpu.clone()
        });
        Self {
            kind: AnnouncementKind::Status,
            seq: 0,
            at: Timestamp::from_millis(0),
            workers: AnnouncedWorkers { completed: 0, failed: 0, jobs, ..workers.clone() },
            gpus: AnnouncedGpus { total: self.gpus.total, gpus: gpus.collect() },
            resources: BTreeMap::new(),
            startup: None,
            ..self.clone()
        }
    }

    pub fn summary(&self) -> MachineSummary {
        MachineSummary {
            machine_type: self.machine.machine_type.to_string(),
            pool: self.machine.pool.to_string(),
            state: self.state.to_string(),
            since: Some(self.since),
            reason: self.reason.clone(),
            version: self.machine.version.clone(),
            incarnation: self.machine.incarnation,
            generation: self.generation.number,
            jobs: self.workers.running as u64,
            slots: self.workers.slots,
            services: self.services.total as u64,
            services_down: (self.services.down.len() + self.services.down_left_out) as u64,
            not_claiming: self.workers.not_claiming(),
            exit_code: self.exit_code,
        }
    }
}

impl AnnouncedWorkers {
    fn not_claiming(&self) -> BTreeMap<Name, String> {
        let idle = self.workers.iter().filter(|worker| worker.state != WorkerState::Active);
        idle.map(|worker| {
            let state = worker.state.to_string();
            let why = worker.reason.as_ref().map_or(state.clone(), |reason| format!("{state}: {reason}"));
            (worker.name.clone(), why)
        })
        .collect()
    }
}

fn services(status: &MachineStatus) -> AnnouncedServices {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for service in status.services.values() {
        *states.entry(service.state.to_string()).or_default() += 1;
    }
    let is_down = |service: &&ServiceStatus| service.desired == Desired::Up && !service.state.is_ready();
    let mut down: Vec<&ServiceStatus> = status.services.values().map(AsRef::as_ref).filter(is_down).collect();
    let badness = |state| match state {
        ServiceState::Failed => 0,
        ServiceState::CrashLoop => 1,
        ServiceState::Backoff => 2,
        ServiceState::Unready => 3,
        _ => 4,
    };
    down.sort_by_key(|service| (badness(service.state), !service.critical));
    let shown = down.iter().take(MOST_SERVICES).map(|service| AnnouncedService {
        name: service.name.clone(),
        state: service.state,
        since: service.since,
        restarts: service.restarts,
        critical: service.critical,
        reason: service.held.as_deref().or(service.reason.as_deref()).map(short),
    });
    AnnouncedServices {
        total: status.services.len(),
        states,
        down: shown.collect(),
        down_left_out: down.len().saturating_sub(MOST_SERVICES),
    }
}

fn workers(status: &MachineStatus) -> AnnouncedWorkers {
    let all = || status.workers.values();
    let mut workers: Vec<AnnouncedWorker> = all()
        .map(|worker| AnnouncedWorker {
            name: worker.name.clone(),
            connector: worker.connector.clone(),
            state: worker.state,
            reason: worker.reason.as_deref().map(short),
            slots: worker.slots,
            running: worker.running.len(),
        })
        .collect();
    let total = workers.len();
    workers.sort_by_key(|worker| worker.state == WorkerState::Active);
    workers.truncate(MOST_WORKERS);
    let of = all().flat_map(|worker| worker.running.iter().map(move |job| (&worker.name, job)));
    let mut jobs: Vec<AnnouncedJob> = of
        .map(|(worker, job)| AnnouncedJob {
            id: job.id.clone(),
            worker: worker.clone(),
            since: job.since,
            progress: job.progress.as_ref().map(|progress| progress.fraction),
        })
        .collect();
    let running = jobs.len();
    jobs.sort_by(|one, other| (one.since, &one.id).cmp(&(other.since, &other.id)));
    jobs.truncate(MOST_JOBS);
    AnnouncedWorkers {
        total,
        slots: all().map(|worker| u64::from(worker.slots)).sum(),
        running,
        completed: all().map(|worker| worker.completed).sum(),
        failed: all().map(|worker| worker.failed).sum(),
        left_out: total - workers.len(),
        workers,
        jobs,
    }
}

fn gpus(gpus: &GpusStatus) -> AnnouncedGpus {
    let shown = gpus.gpus.iter().take(MOST_GPUS).map(|status| {
        let sample = status.sample.as_ref();
        AnnouncedGpu {
            index: status.gpu.index,
            uuid: short(&status.gpu.uuid),
            name: short(&status.gpu.name),
            state: status.state,
            utilization: sample.and_then(|sample| sample.utilization),
            memory_used_bytes: sample.and_then(|sample| sample.memory_used_bytes),
            memory_total_bytes: sample.and_then(|sample| sample.memory_total_bytes),
            temperature_celsius: sample.and_then(|sample| sample.temperature_celsius),
        }
    });
    AnnouncedGpus { total: gpus.gpus.len(), gpus: shown.collect() }
}

fn startup(status: &MachineStatus) -> AnnouncedStartup {
    let steps = &status.startup;
    let end = |step: &StartupStep| step.begun_ms + step.took_ms.unwrap_or(0);
    let shown = steps.iter().take(MOST_STEPS).map(|step| StartupStep {
        name: short(&step.name),
        error: step.error.as_deref().map(short),
        ..step.clone()
    });
    // What came up after the sequence counts too.
    let begun = status.machine.started;
    let took = u64::try_from(Timestamp::now().since(begun).as_millis()).unwrap_or(u64::MAX);
    AnnouncedStartup { took_ms: steps.iter().map(end).max().unwrap_or(0).max(took), steps: shown.collect() }
}

/// The beginning of a text for people, on one line.
fn short(text: &str) -> String {
    let end = text.floor_char_boundary(MOST_TEXT);
    let cut = if end < text.len() { "..." } else { "" };
    let line = text[..end].replace(|c: char| c.is_control(), " ");
    format!("{line}{cut}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(services: usize, workers: usize, jobs: usize) -> MachineStatus {
        let at = "2026-01-01T00:00:00Z";
        let words = "\u{1}\"é".repeat(500);
        let name = |start: &str, n: usize| format!("{start}{n:0>50}");
        let service = |n| {
            let state = if n % 2 == 0 { "backoff" } else { "failed" };
            let service = json!({
                "name": name("s", n), "kind": "service", "desired": "up", "state": state, "since": at,
                "incarnation": 1, "restarts": 5, "critical": n == 3, "reason": words,
            });
            (name("s", n), service)
        };
        let job = |n| json!({ "id": format!("{n:0>128}"), "since": at, "progress": { "fraction": 0.5, "at": at } });
        let worker = |n| {
            let worker = json!({
                "name": name("w", n), "connector": name("c", n), "slots": 4, "reason": words, "completed": 7,
                "state": if n == 60 { "not_ready" } else { "active" },
                "running": (0..jobs).map(|k| job(n * 1000 + k)).collect::<Vec<_>>(), "failed": 1,
            });
            (name("w", n), worker)
        };
        let step = |n| json!({ "name": words, "state": "done", "begun_ms": n, "took_ms": 1, "error": words });
        serde_json::from_value(json!({
            "machine": {
                "id": "m", "type": "gpu", "pool": "p", "labels": { "note": "x".repeat(5_000) }, "incarnation": 2,
                "version": "1", "pid": 1, "started": at, "hardware": { "gpu_memory_gb": 1.0, "gpu_count": 1, "ram_gb": 1.0, "cpu_cores": 1.0 },
            },
            "state": "service_failure", "since": at, "reason": words, "started": true,
            "startup": (0..500).map(step).collect::<Vec<_>>(),
            "generation": { "number": 3, "hash": "h", "since": at, "files": [words] },
            "services": (0..services).map(service).collect::<serde_json::Map<_, _>>(),
            "workers": (0..workers).map(worker).collect::<serde_json::Map<_, _>>(),
        }))
        .unwrap()
    }

    #[test]
    fn a_large_machine_makes_a_small_message_that_has_the_worst_first() {
        let status = status(400, 70, 30);
        let said = Announcement::of(AnnouncementKind::StartupComplete, &status, &GpusStatus::default(), &[]);
        assert_eq!((said.services.total, said.services.down.len(), said.services.down_left_out), (400, 50, 350));
        assert_eq!(said.services.states, BTreeMap::from([("backoff".to_owned(), 200), ("failed".to_owned(), 200)]));
        assert!(said.services.down[0].critical, "a critical one that failed is told first");
        assert!(said.services.down.iter().all(|service| service.state == ServiceState::Failed));
        assert_eq!((said.workers.total, said.workers.slots, said.workers.running), (70, 280, 2_100));
        assert_eq!(said.workers.workers[0].state, WorkerState::NotReady);
        assert_eq!((said.workers.workers.len(), said.workers.left_out, said.workers.jobs.len()), (50, 20, 100));
        assert_eq!(said.machine.labels, BTreeMap::from([("labels_left_out".to_owned(), json!(1))]));
        let text = serde_json::to_string(&said).unwrap();
        assert!(text.len() < 128 * 1024, "{}", text.len());
        assert!(serde_json::to_string(&said.summary()).unwrap().len() < 2_000);
        assert_eq!((said.summary().jobs, said.summary().services_down), (2_100, 400));
    }

    #[test]
    fn progress_and_counters_are_no_news_and_a_state_is() {
        let told = |status: &MachineStatus| {
            Announcement::of(AnnouncementKind::Status, status, &GpusStatus::default(), &[]).news()
        };
        let old = status(3, 2, 2);
        let mut new = old.clone();
        for worker in new.workers.values_mut() {
            worker.completed += 1;
            worker.running[0].progress = None;
        }
        assert_eq!(told(&old), told(&new));
        new.state = MachineState::Healthy;
        assert_ne!(told(&old), told(&new));
        let mut new = old.clone();
        new.workers.values_mut().next().unwrap().running.pop();
        assert_ne!(told(&old), told(&new), "a job has ended");
    }
}
