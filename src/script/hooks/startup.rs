use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::Problem;
use crate::script::{MachineContext, MachineProgram};

/// A machine that has not started in a day never will.
const STARTUP_LIMIT: Duration = Duration::from_hours(24);

/// What `step("name", || ...)` reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepReport {
    Begun,
    Done,
    Failed(String),
}

/// Told of each step of the start-up sequence.
pub trait StepObserver: Send + Sync {
    fn step(&self, name: &str, report: StepReport);
}

impl MachineProgram {
    pub fn has_startup(&self) -> bool {
        self.full.has("startup", 1)
    }

    /// Calls `startup(m)`.
    pub async fn startup(
        &self,
        m: &MachineContext,
        steps: Arc<dyn StepObserver>,
        cancel: CancellationToken,
    ) -> Result<(), Problem> {
        let program = &self.full;
        let mut call = program.call(cancel, Instant::now() + STARTUP_LIMIT);
        call.steps = Some(steps);
        let m = m.clone();
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?,));
        let outcome = program.invoke("startup", Some(STARTUP_LIMIT), call, arguments, |_| ()).await;
        outcome.map_err(|error| error.problem)
    }
}
