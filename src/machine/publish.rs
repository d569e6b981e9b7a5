use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::gauge;
use tokio::sync::mpsc;

use super::announcer::{Turn, turns};
use super::generation::Generation;
use super::handle::Machine;
use super::probation::Probation;
use super::startup::Timeline;
use crate::admin::{GenerationStatus, HostStatus, MachineIdentity, MachineState, MachineStatus, Rejection};
use crate::base::{Name, Timestamp};
use crate::host::GpusStatus;
use crate::queue::QueueStats;
use crate::supervisor::ServicesStatus;
use crate::telemetry::Published;
use crate::worker::WorkerStatus;

/// Puts the machine's status together and publishes it.
pub(super) struct Publisher {
    pub identity: MachineIdentity,
    pub timeline: Timeline,
    pub status: Published<MachineStatus>,
    pub generation: GenerationStatus,
    /// Who tells the queue of turns, once there is somebody.
    pub turns: Option<mpsc::UnboundedSender<Turn>>,
    since: Timestamp,
}

impl Publisher {
    pub fn new(identity: MachineIdentity, timeline: Timeline) -> Self {
        let now = Timestamp::now();
        let generation = GenerationStatus {
            number: 0,
            hash: String::new(),
            since: now,
            files: Vec::new(),
            probation: None,
            rejection: None,
        };
        let status = MachineStatus {
            machine: identity.clone(),
            state: MachineState::Starting,
            since: now,
            reason: Some("booting".to_owned()),
            started: false,
            startup: Vec::new(),
            generation: generation.clone(),
            services: BTreeMap::new(),
            workers: BTreeMap::new(),
            queue: None,
            gpus: GpusStatus::default(),
            host: HostStatus::default(),
        };
        Self { identity, timeline, status: Published::new(status), generation, turns: None, since: now }
    }

    /// What the boot is at, while there is no event loop to tell.
    pub fn booting(&self, reason: &str) {
        self.set(MachineState::Starting, self.since, reason.to_owned());
    }

    /// The machine ends without having started anything.
    pub fn stopped(&self, reason: String) {
        self.set(MachineState::Stopped, Timestamp::now(), reason);
    }

    fn set(&self, state: MachineState, since: Timestamp, reason: String) {
        let before = self.status.get().as_ref().clone();
        let (machine, startup) = (self.identity.clone(), self.timeline.steps());
        self.status.set_if_changed(MachineStatus { machine, state, since, reason: Some(reason), startup, ..before });
    }

    pub fn committed(&mut self, generation: &Generation) {
        // What settings say of the machine and jobs may ask for.
        self.identity.pool.clone_from(&generation.settings.machine.pool);
        self.identity.labels.clone_from(&generation.settings.machine.labels);
        self.generation = GenerationStatus {
            number: generation.number,
            hash: generation.hash.clone(),
            since: Timestamp::now(),
            files: generation.files.iter().map(|file| file.display().to_string()).collect(),
            probation: None,
            rejection: None,
        };
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
        gauge!("machinist_generation").set(generation.number as f64);
    }

    pub fn rejected(&mut self, rejection: Rejection) {
        self.generation.rejection = Some(rejection);
    }

    pub fn publish(
        &mut self,
        machine: &Machine,
        services: &ServicesStatus,
        workers: BTreeMap<Name, WorkerStatus>,
        queue: Option<QueueStats>,
    ) {
        self.generation.probation = machine.probation().map(Probation::status);
        let before = self.status.get();
        if before.state != machine.state {
            self.since = Timestamp::now();
        }
        let now = MachineStatus {
            machine: self.identity.clone(),
            state: machine.state,
            since: self.since,
            reason: machine.reason.clone(),
            started: machine.started,
            startup: self.timeline.steps(),
            generation: self.generation.clone(),
            services: services.services.clone(),
            workers,
            queue,
            // Filled in for whoever reads, so that a look every few seconds is no news.
            gpus: GpusStatus::default(),
            host: HostStatus::default(),
        };
        // Before others see the state: who hears of it by itself hears of the turn first.
        if let Some(teller) = &self.turns {
            let kinds = turns(&before, &now);
            let turned = (!kinds.is_empty()).then(|| Arc::new(now.clone()));
            for (kind, status) in kinds.into_iter().zip(turned.iter().cycle()) {
                // It outlives the loop.
                let _ = teller.send(Turn::To(kind, Arc::clone(status)));
            }
        }
        self.status.set_if_changed(now);
    }
}
