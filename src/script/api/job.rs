//! What a connector sees as `job`.

use std::path::PathBuf;
use std::sync::Arc;

use rhai::{Dynamic, Engine};
use tokio_util::sync::CancellationToken;

use crate::queue::Job;
use crate::script::call::{ScriptResult, error};
use crate::script::data::{Secrets, to_json};
use crate::worker::JobSink;

#[derive(Clone)]
pub(in crate::script) struct JobHandle {
    job: Arc<Job>,
    sink: Arc<dyn JobSink>,
    cancel: CancellationToken,
    work_dir: PathBuf,
}

impl JobHandle {
    pub fn new(job: Arc<Job>, sink: Arc<dyn JobSink>, cancel: CancellationToken, work_dir: PathBuf) -> Self {
        Self { job, sink, cancel, work_dir }
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<JobHandle>("Job");
    engine.register_get("id", |job: &mut JobHandle| job.job.id.to_string());
    engine.register_get("service", |job: &mut JobHandle| job.job.submission.service.to_string());
    engine.register_get("payload", |job: &mut JobHandle| -> ScriptResult<Dynamic> {
        rhai::serde::to_dynamic(&job.job.submission.payload)
    });
    // From 1: how often the job has been tried, this time included; lost and released claims are not tries.
    engine.register_get("attempt", |job: &mut JobHandle| i64::from(job.job.attempts) + 1);
    engine.register_get("priority", |job: &mut JobHandle| i64::from(job.job.submission.priority.get()));
    engine.register_get("customer", |job: &mut JobHandle| -> ScriptResult<Dynamic> {
        rhai::serde::to_dynamic(&job.job.submission.customer)
    });
    engine.register_get("saved", |job: &mut JobHandle| -> ScriptResult<Dynamic> {
        rhai::serde::to_dynamic(&job.job.saved)
    });
    // The script makes it when it needs one; the engine removes it when the attempt is over, however it ends.
    engine.register_get("work_dir", |job: &mut JobHandle| job.work_dir.display().to_string());
    engine.register_fn("progress", |job: &mut JobHandle, fraction: f64| job.sink.progress(fraction, ""));
    engine.register_fn("progress", |job: &mut JobHandle, fraction: f64, message: &str| {
        job.sink.progress(fraction, message);
    });
    engine.register_fn("log", |job: &mut JobHandle, line: &str| job.sink.log(line));
    engine.register_fn("save", |job: &mut JobHandle, value: Dynamic| -> ScriptResult<()> {
        job.sink.save(to_json(&value, Secrets::Redact).map_err(error)?);
        Ok(())
    });
    engine.register_fn("cancelled", |job: &mut JobHandle| job.cancel.is_cancelled());
}
