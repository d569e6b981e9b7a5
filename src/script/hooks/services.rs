use std::time::Instant;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::PURE_LIMIT;
use crate::base::{Problem, Problems};
use crate::script::{MachineContext, MachineProgram};

impl MachineProgram {
    /// Calls `services(m)`.
    pub async fn services(&self, m: &MachineContext) -> Result<Vec<Value>, Problems> {
        self.list("services", m).await
    }

    /// Calls `workers(m)`; a script without it has none.
    pub async fn workers(&self, m: &MachineContext) -> Result<Vec<Value>, Problems> {
        if self.pure.has("workers", 1) { self.list("workers", m).await } else { Ok(Vec::new()) }
    }

    async fn list(&self, hook: &'static str, m: &MachineContext) -> Result<Vec<Value>, Problems> {
        let program = &self.pure;
        let call = program.call(CancellationToken::new(), Instant::now() + PURE_LIMIT);
        let m = m.clone();
        let outcome = program.invoke(hook, call, move || Ok((rhai::serde::to_dynamic(&m)?,))).await;
        let returned = outcome.map_err(|cause| Problems::from(program.problem(&cause, hook, Some(PURE_LIMIT))))?;
        let value: Value = rhai::serde::from_dynamic(&returned).map_err(|cause| {
            Problem::error(format!("{hook}(m) returned something that is no plain data: {cause}"))
                .in_file(&program.sources[0].file)
        })?;
        match value {
            Value::Array(items) => Ok(items),
            _ => {
                let message = format!("{hook}(m) must return an array of maps, it returned {}", returned.type_name());
                Err(Problem::error(message).in_file(&program.sources[0].file).help("write [ #{ ... }, ... ]").into())
            }
        }
    }
}
