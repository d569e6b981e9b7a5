use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::event::WithdrawnGpu;
use super::generation::Generation;
use crate::base::Name;
use crate::host::{Gpu, Identity};
use crate::queue::{Broker, Registration};
use crate::script::ConnectorContext;
use crate::spec::{Capabilities, GpuRef, Hardware, Kind, MachineSpec, WorkerSpec};
use crate::supervisor::{ServiceState, ServicesStatus};
use crate::telemetry::{EventLog, Traces};
use crate::worker::{Connector, Readiness, Worker, WorkerConfig, WorkerHandle, WorkerStatus};

/// A job that runs when its worker is replaced may finish; this only bounds the wait.
const REPLACED_WORKER_PATIENCE: Duration = Duration::from_hours(24);

/// The workers that run, and those that finish their last jobs.
pub(super) struct Workers {
    pub identity: Identity,
    pub hardware: Hardware,
    pub broker: Arc<dyn Broker>,
    pub events: EventLog,
    pub traces: Traces,
    pub tracker: TaskTracker,
    pub lease: Duration,
    pub incarnation: String,
    running: BTreeMap<Name, Running>,
    /// Counts what was started, so that no two registrations have one name.
    started: u64,
    /// A worker has published something new.
    changed: Arc<Notify>,
    /// Why no worker may claim now.
    held: Option<String>,
    gpus: Vec<Gpu>,
    /// GPUs that get no jobs.
    withdrawn: Vec<WithdrawnGpu>,
}

struct Running {
    spec: WorkerSpec,
    handle: WorkerHandle,
    ready: watch::Sender<Readiness>,
    hash: String,
    capabilities: Capabilities,
}

impl Workers {
    pub fn new(
        identity: Identity,
        hardware: Hardware,
        broker: Arc<dyn Broker>,
        events: EventLog,
        tracker: TaskTracker,
        lease: Duration,
        gpus: Vec<Gpu>,
    ) -> Self {
        let incarnation = format!("{}-{}", identity.incarnation, uuid::Uuid::new_v4().simple());
        Self {
            identity,
            hardware,
            broker,
            events,
            traces: Traces::default(),
            tracker,
            lease,
            incarnation,
            running: BTreeMap::new(),
            started: 0,
            changed: Arc::default(),
            held: None,
            gpus,
            withdrawn: Vec::new(),
        }
    }

    /// Makes the workers those of `generation`.
    pub fn apply(&mut self, generation: &Generation, services: &ServicesStatus) {
        let spec = &generation.spec;
        let gone: Vec<Name> = self.running.keys().filter(|name| spec.worker(name).is_none()).cloned().collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                running.handle.drain(Instant::now() + REPLACED_WORKER_PATIENCE);
            }
        }
        for worker in &spec.workers {
            let connector = Self::bind(generation, worker);
            let Some(connector) = connector else { continue };
            let hash = generation.hash.clone();
            let capabilities = self.capabilities(generation, worker);
            match self.running.get_mut(&worker.name) {
                Some(running) if only_live_fields_differ(&running.spec, worker) => {
                    if running.spec.slots != worker.slots {
                        running.handle.set_slots(worker.slots);
                    }
                    // Whatever it was bound to may have changed.
                    if running.hash != hash {
                        running.handle.replace_connector(connector);
                    }
                    if running.capabilities != capabilities {
                        running.handle.set_capabilities(capabilities.clone());
                        running.capabilities = capabilities;
                    }
                    running.spec = worker.clone();
                    running.hash = hash;
                }
                Some(_) => self.replace(generation, worker, connector, hash),
                None => self.start(generation, worker, connector, hash, None),
            }
        }
        self.services_changed(spec, services);
    }

    fn replace(&mut self, generation: &Generation, worker: &WorkerSpec, connector: Arc<dyn Connector>, hash: String) {
        let old = self.running.remove(&worker.name).map(|running| running.handle);
        if let Some(old) = &old {
            old.drain(Instant::now() + REPLACED_WORKER_PATIENCE);
        }
        self.start(generation, worker, connector, hash, old);
    }

    /// `after` finishes its jobs first: both have one name in the queue, and the jobs of one must not count as lost.
    fn start(
        &mut self,
        generation: &Generation,
        worker: &WorkerSpec,
        connector: Arc<dyn Connector>,
        hash: String,
        after: Option<WorkerHandle>,
    ) {
        self.started += 1;
        let waiting = if after.is_some() { "its predecessor finishes its jobs" } else { "starting" };
        let (ready, receiver) = watch::channel(Err(waiting.to_owned()));
        let (gate, gated) = watch::channel(Err(waiting.to_owned()));
        let capabilities = self.capabilities(generation, worker);
        let config = WorkerConfig {
            name: worker.name.clone(),
            connector_name: worker.connector.clone(),
            slots: worker.slots,
            registration: Registration {
                worker: format!("{}/{}", self.identity.id, worker.name),
                incarnation: format!("{}-{}-{}", self.incarnation, self.started, worker.name),
                assignable: true,
            },
            capabilities: capabilities.clone(),
            broker: Arc::clone(&self.broker),
            connector,
            lease: self.lease,
            ready: gated,
            events: self.events.clone(),
            traces: self.traces.clone(),
        };
        let handle = Worker::start(config, &self.tracker);
        self.tracker.spawn(pass_on_readiness(receiver, gate, after, handle.clone()));
        let (mut status, changed) = (handle.subscribe(), Arc::clone(&self.changed));
        let over = handle.clone();
        self.tracker.spawn(async move {
            loop {
                tokio::select! {
                    news = status.changed() => if news.is_err() { return },
                    () = over.stopped() => return changed.notify_one(),
                }
                changed.notify_one();
            }
        });
        let running = Running { spec: worker.clone(), handle, ready, hash, capabilities };
        self.running.insert(worker.name.clone(), running);
    }

    fn bind(generation: &Generation, worker: &WorkerSpec) -> Option<Arc<dyn Connector>> {
        let program = generation.connectors.get(&worker.connector)?;
        let settings = generation.settings.connectors.get(&worker.connector);
        let mut vars = settings.map(|settings| settings.vars.clone()).unwrap_or_default();
        vars.extend(worker.vars.clone());
        let work_dir = generation.settings.state_dir.join("work").join(worker.name.as_str());
        Some(program.bind(ConnectorContext {
            connector: worker.connector.clone(),
            worker: worker.name.clone(),
            vars,
            machine: generation.context.clone(),
            work_dir,
            checked: serde_json::Value::Null,
        }))
    }

    fn capabilities(&self, generation: &Generation, worker: &WorkerSpec) -> Capabilities {
        let mut labels = generation.settings.machine.labels.clone();
        labels.extend(worker.labels.clone());
        Capabilities {
            services: worker.services.clone(),
            machine_type: generation.settings.machine.machine_type.clone(),
            machine: self.identity.id.clone(),
            worker: worker.name.clone(),
            pool: generation.settings.machine.pool.clone(),
            hardware: self.what_is_left_of(worker.hardware.unwrap_or(self.hardware)),
            models: worker.models.clone(),
            labels,
            deny_customers: worker.deny_customers.clone(),
            allow_customers: worker.allow_customers.clone(),
            account: generation.settings.connectors.get(&worker.connector).and_then(|known| known.account.clone()),
        }
    }

    /// Lets no worker claim for this reason, or all again.
    pub fn hold(&mut self, why: Option<String>, spec: &MachineSpec, services: &ServicesStatus) {
        self.held = why;
        self.services_changed(spec, services);
    }

    /// Lets no worker claim jobs for these GPUs, and gives back those that were withdrawn before.
    pub fn withdraw(&mut self, withdrawn: Vec<WithdrawnGpu>, generation: &Generation, services: &ServicesStatus) {
        self.withdrawn = withdrawn;
        let names: Vec<Name> = self.running.keys().cloned().collect();
        for name in names {
            let Some(worker) = generation.spec.worker(&name) else { continue };
            let capabilities = self.capabilities(generation, worker);
            if let Some(running) = self.running.get_mut(&name).filter(|running| running.capabilities != capabilities) {
                running.handle.set_capabilities(capabilities.clone());
                running.capabilities = capabilities;
            }
        }
        self.services_changed(&generation.spec, services);
    }

    /// Without the GPUs that are withdrawn.
    fn what_is_left_of(&self, hardware: Hardware) -> Hardware {
        if self.withdrawn.is_empty() {
            return hardware;
        }
        let withdrawn = |gpu: &&Gpu| self.withdrawn.iter().any(|withdrawn| withdrawn.gpu.uuid == gpu.uuid);
        let left: Vec<&Gpu> = self.gpus.iter().filter(|gpu| !withdrawn(gpu)).collect();
        let smallest = left.iter().map(|gpu| gpu.memory_gb).reduce(f64::min).unwrap_or(0.0);
        Hardware {
            gpu_count: hardware.gpu_count.min(u32::try_from(left.len()).unwrap_or(u32::MAX)),
            // What is left may be larger than what was the smallest.
            gpu_memory_gb: if hardware == self.hardware { smallest } else { hardware.gpu_memory_gb.min(smallest) },
            ..hardware
        }
    }

    /// Why a worker may not claim: a service that it needs is pinned to a GPU that is withdrawn.
    fn withdrawn_gpu(&self, worker: &WorkerSpec, spec: &MachineSpec) -> Option<String> {
        if self.withdrawn.is_empty() {
            return None;
        }
        worker.needs.iter().find_map(|need| {
            let mut entries = spec.service(need)?.gpus();
            let means = |withdrawn: &&WithdrawnGpu, entry: &str| {
                let gpu = GpuRef { index: withdrawn.gpu.index, uuid: withdrawn.gpu.uuid.clone() };
                gpu.is_meant_by(entry)
            };
            let found = entries.find_map(|entry| self.withdrawn.iter().find(|withdrawn| means(withdrawn, entry)))?;
            Some(format!("{need}: {}", found.why))
        })
    }

    /// Tells each worker whether what it needs is ready.
    pub fn services_changed(&self, spec: &MachineSpec, services: &ServicesStatus) {
        let setup = spec.services.iter().filter(|service| service.kind == Kind::Setup).map(|service| &service.name);
        let setup = first_not_ready(setup, services);
        for running in self.running.values() {
            let needs = first_not_ready(running.spec.needs.iter(), services);
            let gpu = self.withdrawn_gpu(&running.spec, spec);
            let readiness = self.held.clone().or_else(|| setup.clone()).or(gpu).or(needs).map_or(Ok(()), Err);
            running.ready.send_if_modified(|current| {
                let changed = *current != readiness;
                current.clone_from(&readiness);
                changed
            });
        }
    }

    pub fn status(&self) -> BTreeMap<Name, WorkerStatus> {
        self.running.iter().map(|(name, running)| (name.clone(), running.handle.status().as_ref().clone())).collect()
    }

    /// Waits until a worker has published something new. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn handles(&self) -> Vec<WorkerHandle> {
        self.running.values().map(|running| running.handle.clone()).collect()
    }
}

async fn pass_on_readiness(
    mut from: watch::Receiver<Readiness>,
    to: watch::Sender<Readiness>,
    after: Option<WorkerHandle>,
    worker: WorkerHandle,
) {
    if let Some(after) = after {
        tokio::select! {
            () = after.stopped() => {}
            () = worker.stopped() => return,
        }
    }
    loop {
        let readiness = from.borrow_and_update().clone();
        drop(to.send_replace(readiness));
        tokio::select! {
            changed = from.changed() => if changed.is_err() { return },
            () = worker.stopped() => return,
        }
    }
}

fn first_not_ready<'a>(names: impl Iterator<Item = &'a Name>, services: &ServicesStatus) -> Option<String> {
    names.into_iter().find_map(|name| {
        let state = services.services.get(name).map(|service| service.state);
        let ready = state.is_some_and(ServiceState::is_ready);
        let shown = state.map_or("not there", ServiceState::as_str);
        (!ready).then(|| format!("waits for service {name}, which is {shown}"))
    })
}

/// What a running worker can take over without leaving the queue.
fn only_live_fields_differ(old: &WorkerSpec, new: &WorkerSpec) -> bool {
    // All else is a number, a var, a need or a capability.
    (&old.name, &old.connector) == (&new.name, &new.connector)
}
