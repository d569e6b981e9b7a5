use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rhai::Dynamic;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::MachineContext;
use super::api::JobHandle;
use super::call::Call;
use super::config::ConfigProblem;
use super::data::{Secrets, to_json};
use super::program::Program;
use crate::base::{Name, Problems};
use crate::queue::{Failure, FailureClass, Job};
use crate::spec::Inventory;
use crate::telemetry::TraceScope;
use crate::worker::{Connector, JobContext};

pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// A `ComfyUI` with many nodes takes seconds to say what it has.
pub(super) const CAPABILITIES_LIMIT: Duration = Duration::from_secs(30);
pub(super) const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// A connector's script, compiled and checked; `bind` gives it a place in a machine.
#[derive(Clone)]
pub struct ConnectorProgram {
    name: Name,
    pub(super) program: Arc<Program>,
}

/// What scripts see as `ctx`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ConnectorContext {
    /// The connector's name.
    pub connector: Name,
    /// The worker's name.
    pub worker: Name,
    /// `[connectors.NAME.vars]` of the settings, and the worker's own `vars` over them.
    pub vars: Map<String, Value>,
    /// The machine, as its own hooks see it in `m`.
    pub machine: MachineContext,
    /// Jobs of this worker keep their files below it.
    pub work_dir: PathBuf,
    /// In `capabilities`: what `check` gave back just before, so that what it asked for need not be asked for again.
    #[serde(default)]
    pub checked: Value,
}

struct Bound {
    program: Arc<Program>,
    context: ConnectorContext,
    /// What the latest check gave back, for `capabilities`.
    checked: Mutex<Value>,
}

impl ConnectorProgram {
    pub(super) fn new(name: Name, program: Arc<Program>) -> Self {
        Self { name, program }
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Every file it is made of with the SHA-256 of its text; the script itself first.
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        self.program.files()
    }

    /// What could be better in it.
    pub fn warnings(&self) -> Problems {
        self.program.warnings.clone()
    }

    /// What is wrong with the `vars` that it is to get.
    pub fn check_vars(&self, vars: &Map<String, Value>) -> Vec<ConfigProblem> {
        self.program.config.as_ref().map(|config| config.check(vars)).unwrap_or_default()
    }

    pub fn bind(&self, mut context: ConnectorContext) -> Arc<dyn Connector> {
        if let Some(config) = &self.program.config {
            config.fill(&mut context.vars);
        }
        Arc::new(Bound { program: Arc::clone(&self.program), context, checked: Mutex::default() })
    }
}

impl Bound {
    fn context(&self) -> ConnectorContext {
        self.context.clone()
    }

    fn call(&self, cancel: CancellationToken, deadline: Instant) -> Call {
        let mut call = self.program.call(cancel, deadline);
        call.work_dir = Some(self.context.work_dir.clone());
        call
    }

    /// Tells the backend to stop; what it answers changes nothing any more.
    async fn tell_cancelled(&self, job: JobHandle, trace: TraceScope) {
        if !self.program.has("cancel", 2) {
            return;
        }
        let mut call = self.call(CancellationToken::new(), Instant::now() + CANCEL_LIMIT);
        call.trace = trace;
        let context = self.context();
        let arguments = move || Ok((Dynamic::from(job), rhai::serde::to_dynamic(&context)?));
        if let Err(error) = self.program.invoke("cancel", Some(CANCEL_LIMIT), call, arguments, |_| ()).await {
            tracing::warn!(connector = %self.context.connector, "{}", error.problem);
        }
    }
}

#[async_trait]
impl Connector for Bound {
    async fn check(&self) -> Result<(), Failure> {
        if !self.program.has("check", 1) {
            return Ok(());
        }
        let call = self.call(CancellationToken::new(), Instant::now() + CHECK_LIMIT);
        let context = self.context();
        let arguments = move || Ok((rhai::serde::to_dynamic(&context)?,));
        let outcome = self.program.invoke("check", Some(CHECK_LIMIT), call, arguments, of_check).await;
        let found = outcome.map_err(|error| error.failure)??;
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    async fn capabilities(&self) -> Result<Option<Inventory>, Failure> {
        if !self.program.has("capabilities", 1) {
            return Ok(None);
        }
        let call = self.call(CancellationToken::new(), Instant::now() + CAPABILITIES_LIMIT);
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let context = ConnectorContext { checked, ..self.context() };
        let arguments = move || Ok((rhai::serde::to_dynamic(&context)?,));
        let limit = Some(CAPABILITIES_LIMIT);
        let outcome = self.program.invoke("capabilities", limit, call, arguments, inventory).await;
        match outcome {
            Ok(found) => found.map(Some),
            Err(error) => {
                tracing::debug!(connector = %self.context.connector, "{}", error.problem);
                Err(error.failure)
            }
        }
    }

    async fn run(&self, job: Arc<Job>, context: JobContext) -> Result<Value, Failure> {
        let hook = if job.saved.is_some() && self.program.has("resume", 2) { "resume" } else { "run" };
        let mut call = self.call(context.cancel.clone(), context.deadline);
        call.sink = Some(Arc::clone(&context.sink));
        call.trace = context.trace.clone();
        let work_dir = self.context.work_dir.join(format!("{}-{}", job.id.as_str().replace(':', "_"), job.claims));
        call.work_dir = Some(work_dir.clone());
        let handle =
            JobHandle::new(Arc::clone(&job), Arc::clone(&context.sink), context.cancel.clone(), work_dir.clone());
        let (argument, bound) = (handle.clone(), self.context());
        let arguments = move || Ok((Dynamic::from(argument), rhai::serde::to_dynamic(&bound)?));
        let limit = job.submission.timeout.get();
        let finish = |returned: &Dynamic| to_json(returned, Secrets::Redact);
        let outcome = self.program.invoke(hook, Some(limit), call, arguments, finish).await;
        // Scripts that are stopped cannot tidy up.
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(work_dir)).await;
        match outcome {
            Ok(returned) => returned.map_err(|cause| {
                let message = format!("{hook}(job, ctx) returned something that is no plain data: {cause}");
                Failure::new(FailureClass::Fatal, message)
            }),
            Err(error) => {
                if context.cancel.is_cancelled() || Instant::now() >= context.deadline {
                    self.tell_cancelled(handle, context.trace).await;
                }
                tracing::debug!(connector = %self.context.connector, job = %job.id, "{}", error.problem);
                Err(error.failure)
            }
        }
    }
}

/// A check may throw a reason, or just say no. What it found out is for `capabilities`, which sees plain data only.
pub(super) fn of_check(answer: &Dynamic) -> Result<Value, Failure> {
    if answer.as_bool() == Ok(false) {
        return Err(Failure::new(FailureClass::Retryable, "the connector's check says that it is not ready"));
    }
    Ok(to_json(answer, Secrets::Refuse).unwrap_or_default())
}

/// What `capabilities(ctx)` returned, or why it cannot be taken.
pub(super) fn inventory(returned: &Dynamic) -> Result<Inventory, Failure> {
    let plain = to_json(returned, Secrets::Refuse);
    let plain = plain.map_err(|why| format!("capabilities(ctx) returned something that is no plain data: {why}"));
    plain.and_then(|plain| Inventory::read(&plain)).map_err(|why| Failure::new(FailureClass::Fatal, why))
}
