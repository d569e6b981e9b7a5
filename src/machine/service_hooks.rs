use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::generation::Generation;
use crate::base::Name;
use crate::supervisor::{HookCall, ServiceHooks};

/// Probes and drain hooks that are functions of the script: always those of the generation that runs.
pub(super) struct ScriptHooks {
    pub program: watch::Receiver<Arc<Generation>>,
}

impl ServiceHooks for ScriptHooks {
    fn call(&self, function: &str, service: &Name, limit: Duration) -> HookCall {
        let generation = Arc::clone(&self.program.borrow());
        let (function, service) = (function.to_owned(), service.clone());
        Box::pin(async move {
            let outcome = generation.program.service_function(&generation.context, &function, &service, limit).await;
            outcome.map_err(|problem| problem.message.clone())
        })
    }
}
