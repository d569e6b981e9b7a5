use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::admin::{StartupStep, StepState};
use crate::script::{StepObserver, StepReport};

/// The steps of this start-up with their times, for everybody to see.
#[derive(Clone)]
pub(super) struct Timeline {
    begun: Instant,
    steps: Arc<Mutex<Vec<(StartupStep, Instant)>>>,
}

impl Timeline {
    pub fn new() -> Self {
        Self { begun: Instant::now(), steps: Arc::default() }
    }

    pub fn elapsed_ms(&self) -> u64 {
        millis(self.begun)
    }

    pub fn begin(&self, name: &str) {
        let step = StartupStep {
            name: name.to_owned(),
            state: StepState::Running,
            begun_ms: millis(self.begun),
            took_ms: None,
            error: None,
        };
        self.lock().push((step, Instant::now()));
    }

    pub fn end(&self, name: &str, error: Option<String>) {
        let mut steps = self.lock();
        if let Some((step, begun)) =
            steps.iter_mut().rev().find(|(step, _)| step.name == name && step.state == StepState::Running)
        {
            step.state = if error.is_some() { StepState::Failed } else { StepState::Done };
            step.took_ms = Some(millis(*begun));
            step.error = error;
        }
    }

    /// Runs one step of the engine's own.
    pub fn step<T, E: ToString>(&self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.begin(name);
        let result = work();
        self.end(name, result.as_ref().err().map(ToString::to_string));
        result
    }

    pub fn steps(&self) -> Vec<StartupStep> {
        self.lock().iter().map(|(step, _)| step.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(StartupStep, Instant)>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepObserver for Timeline {
    fn step(&self, name: &str, report: StepReport) {
        match report {
            StepReport::Begun => self.begin(name),
            StepReport::Done => self.end(name, None),
            StepReport::Failed(why) => self.end(name, Some(why)),
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
