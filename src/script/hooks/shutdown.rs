use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::base::Problem;
use crate::script::{MachineContext, MachineProgram};

impl MachineProgram {
    pub fn has_shutdown(&self) -> bool {
        self.full.has("shutdown", 1)
    }

    /// Calls `shutdown(m)`, which must be through by `deadline`.
    pub async fn shutdown(&self, m: &MachineContext, deadline: Instant) -> Result<(), Problem> {
        let program = &self.full;
        let call = program.call(CancellationToken::new(), deadline);
        let m = m.clone();
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?,));
        program.invoke("shutdown", None, call, arguments, |_| ()).await.map_err(|error| error.problem)
    }
}
