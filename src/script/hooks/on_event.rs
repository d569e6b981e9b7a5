use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::Problem;
use crate::script::{MachineContext, MachineProgram};
use crate::telemetry::Event;

const EVENT_LIMIT: Duration = Duration::from_secs(30);

impl MachineProgram {
    pub fn has_on_event(&self) -> bool {
        self.full.has("on_event", 2)
    }

    /// Calls `on_event(m, event)`.
    pub async fn on_event(&self, m: &MachineContext, event: &Event, cancel: CancellationToken) -> Result<(), Problem> {
        let program = &self.full;
        let call = program.call(cancel, Instant::now() + EVENT_LIMIT);
        let (m, event) = (m.clone(), event.clone());
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?, rhai::serde::to_dynamic(&event)?));
        program.invoke("on_event", Some(EVENT_LIMIT), call, arguments, |_| ()).await.map_err(|error| error.problem)
    }
}
