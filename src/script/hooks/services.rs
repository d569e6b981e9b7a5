use std::time::Instant;

use rhai::Dynamic;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::PURE_LIMIT;
use crate::base::{Problem, Problems};
use crate::script::data::{Secrets, kind_of, to_json};
use crate::script::lint::at_function;
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
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?,));
        let finish = |returned: &Dynamic| match to_json(returned, Secrets::Refuse) {
            Ok(Value::Array(items)) => Ok(items),
            Ok(_) => Err(format!("must return an array of maps, it returned {}", kind_of(returned))),
            Err(why) => Err(format!("returned something that is no plain data: {why}")),
        };
        let returned = program.invoke(hook, Some(PURE_LIMIT), call, arguments, finish).await;
        returned.map_err(|error| error.problem)?.map_err(|why| {
            let problem = Problem::error(format!("{hook}(m) {why}")).help("write [ #{ ... }, ... ]");
            at_function(&program.sources[0], hook, problem).into()
        })
    }
}
