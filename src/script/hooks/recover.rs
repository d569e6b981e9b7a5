use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::Problem;
use crate::host::Level;
use crate::script::{MachineContext, MachineProgram};

const RECOVER_LIMIT: Duration = Duration::from_mins(5);

impl MachineProgram {
    pub fn has_recover(&self) -> bool {
        self.full.has("recover", 2)
    }

    /// Calls `recover(m, shortage)`, where `shortage` has `resource`, `used` (of 1) and `detail`.
    pub async fn recover(
        &self,
        m: &MachineContext,
        shortage: &Level,
        cancel: CancellationToken,
    ) -> Result<(), Problem> {
        let program = &self.full;
        let call = program.call(cancel, Instant::now() + RECOVER_LIMIT);
        let (m, shortage) = (m.clone(), shortage.clone());
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?, rhai::serde::to_dynamic(&shortage)?));
        program.invoke("recover", Some(RECOVER_LIMIT), call, arguments, |_| ()).await.map_err(|error| error.problem)
    }
}
