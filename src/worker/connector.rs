use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::queue::{Failure, Job, Usage};
use crate::spec::Inventory;
use crate::telemetry::TraceScope;

/// What runs jobs of one kind. A worker holds one; a reload hands it a new one, and jobs in flight finish on the old.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Whether the backend can take a job now; the reason when it cannot. Called before claiming and while idle.
    async fn check(&self) -> Result<(), Failure>;

    /// What the backend has that jobs may ask for; `None` where the connector does not tell. Called after a check that held:
    /// before the first claim, and then at most once a minute, or 10 s after the last time where a job found something missing.
    async fn capabilities(&self) -> Result<Option<Inventory>, Failure> {
        Ok(None)
    }

    /// Runs the job to its end. Must return soon after `context.cancel` fires and before `context.deadline`, with
    /// everything it started stopped. When `job.saved` is there and the connector can, it resumes instead of starting
    /// anew.
    async fn run(&self, job: Arc<Job>, context: JobContext) -> Result<Value, Failure>;
}

/// What a running job may use.
#[derive(Clone)]
pub struct JobContext {
    /// Fires when the job is cancelled, its lease is lost, or the drain deadline has come.
    pub cancel: CancellationToken,
    /// When this attempt's time is over.
    pub deadline: Instant,
    pub sink: Arc<dyn JobSink>,
    /// What it asks of others belongs to the run of the job.
    pub trace: TraceScope,
}

/// Where a running job reports to. No call waits; the worker delivers in order and fenced by the claim's token.
pub trait JobSink: Send + Sync {
    /// `fraction` is clamped to 0..=1. Only the newest of several quick reports is delivered.
    fn progress(&self, fraction: f64, message: &str);
    fn log(&self, line: &str);
    /// A part of the result, for whoever watches the job.
    fn partial(&self, value: Value);
    /// Keeps a value for a later attempt.
    fn save(&self, value: Value);
    /// Counts what the job used up.
    fn usage(&self, used: Usage);
}
