use std::time::{Duration, Instant};

use rhai::Dynamic;
use tokio_util::sync::CancellationToken;

use crate::base::{Name, Problem};
use crate::script::{MachineContext, MachineProgram};

impl MachineProgram {
    /// Whether a probe or drain hook may name this function.
    pub fn has_service_function(&self, function: &str) -> bool {
        self.full.has(function, 2)
    }

    /// The names of all functions, for those who misspell one.
    pub fn function_names(&self) -> Vec<String> {
        self.full.ast.iter_functions().map(|function| function.name.to_owned()).collect()
    }

    /// Calls `function(m, service)` for a probe or drain hook. Answers whether it returned true; nothing returned counts as
    /// true.
    pub async fn service_function(
        &self,
        m: &MachineContext,
        function: &str,
        service: &Name,
        limit: Duration,
    ) -> Result<bool, Problem> {
        let program = &self.full;
        let call = program.call(CancellationToken::new(), Instant::now() + limit);
        let (m, service) = (m.clone(), service.to_string());
        let arguments = move || Ok((rhai::serde::to_dynamic(&m)?, rhai::ImmutableString::from(service)));
        let finish = |returned: &Dynamic| returned.is_unit() || returned.as_bool().unwrap_or(false);
        program.invoke(function, Some(limit), call, arguments, finish).await.map_err(|error| error.problem)
    }
}
