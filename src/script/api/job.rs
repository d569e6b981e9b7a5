//! What a connector sees as `job`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::queue;
use crate::script::call::{ScriptResult, error};
use crate::script::data::{Secrets, to_json};
use crate::script::prelude::*;
use crate::worker::JobSink;

#[derive(Clone)]
pub(in crate::script) struct JobHandle {
    job: Arc<queue::Job>,
    sink: Arc<dyn JobSink>,
    cancel: CancellationToken,
    work_dir: PathBuf,
    /// What was saved last: by an earlier attempt, or by this one, which `cancel` has to know.
    saved: Arc<Mutex<Option<Value>>>,
    /// What it was told of what the job used up.
    units: Arc<Mutex<queue::Usage>>,
}

impl JobHandle {
    pub fn new(job: Arc<queue::Job>, sink: Arc<dyn JobSink>, cancel: CancellationToken, work_dir: PathBuf) -> Self {
        let saved = Arc::new(Mutex::new(job.saved.clone()));
        Self { job, sink, cancel, work_dir, saved, units: Arc::default() }
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The first argument of a connector's `run`, `resume` and `cancel`: the job, and what is reported about it.
#[export_module]
mod functions {
    pub type Job = super::JobHandle;

    /// The job's identifier.
    #[rhai_fn(get = "id", pure)]
    pub fn id(job: &mut Job) -> String {
        job.job.id.to_string()
    }

    /// The service that the job asks for.
    #[rhai_fn(get = "service", pure)]
    pub fn service(job: &mut Job) -> String {
        job.job.submission.service.to_string()
    }

    /// What the submitter gave the job to work with, any JSON.
    #[rhai_fn(get = "payload", pure, return_raw)]
    pub fn payload(job: &mut Job) -> ScriptResult<Dynamic> {
        rhai::serde::to_dynamic(&job.job.submission.payload)
    }

    /// From 1: how often the job has been tried, this time included; lost and released claims are not tries.
    #[rhai_fn(get = "attempt", pure)]
    pub fn attempt(job: &mut Job) -> i64 {
        i64::from(job.job.attempts) + 1
    }

    /// The job's priority.
    #[rhai_fn(get = "priority", pure)]
    pub fn priority(job: &mut Job) -> i64 {
        i64::from(job.job.submission.priority.get())
    }

    /// Who the job is for, a text; `()` where nobody is named.
    #[rhai_fn(get = "customer", pure, return_raw)]
    pub fn customer(job: &mut Job) -> ScriptResult<Dynamic> {
        rhai::serde::to_dynamic(&job.job.submission.customer)
    }

    /// What was given to `save` last, by this attempt or an earlier one; `()` where nothing was saved.
    #[rhai_fn(get = "saved", pure, return_raw)]
    pub fn saved(job: &mut Job) -> ScriptResult<Dynamic> {
        let saved = job.saved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rhai::serde::to_dynamic(&saved)
    }

    /// The directory of this attempt, where relative paths of `fs::` begin. The script makes it when it needs one
    /// (`fs::mkdir(job.work_dir)`); the engine removes it when the attempt is over, however it ends.
    #[rhai_fn(get = "work_dir", pure)]
    pub fn work_dir(job: &mut Job) -> String {
        job.work_dir.display().to_string()
    }

    /// Reports how far the job is, from 0.0 to 1.0.
    #[rhai_fn(name = "progress", pure)]
    pub fn progress(job: &mut Job, fraction: f64) {
        job.sink.progress(fraction, "");
    }

    /// Reports how far the job is, from 0.0 to 1.0, and what it does now.
    #[rhai_fn(name = "progress", pure)]
    pub fn progress_with(job: &mut Job, fraction: f64, message: &str) {
        job.sink.progress(fraction, message);
    }

    /// Adds a line to the job's own log.
    #[rhai_fn(name = "log", pure)]
    pub fn log_line(job: &mut Job, line: &str) {
        job.sink.log(line);
    }

    /// Keeps `value` for the next attempt, which calls `resume` instead of `run` where the connector has it: save the
    /// backend's own identifier as soon as there is one. Fails where the value is no plain data, or more than 1 MiB of JSON.
    #[rhai_fn(name = "save", pure, return_raw)]
    pub fn save(job: &mut Job, value: Dynamic) -> ScriptResult<()> {
        let value = to_json(&value, Secrets::Redact).map_err(error)?;
        let (bytes, most) = (value.to_string().len(), queue::Submission::MAX_INLINE_BYTES);
        if bytes > most {
            return Err(error(format!(
                "the value to save has {bytes} bytes as JSON, at most {most} are kept: put large data into storage and save where it is"
            )));
        }
        *job.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
        job.sink.save(value);
        Ok(())
    }

    /// Adds a part of the result to the job's events, for whoever watches the job; the result has to have it all. One of more
    /// than 1 MiB of JSON, and what is more than 16 MiB in all, is not kept; the job's log says so once. Fails where the value
    /// is no plain data.
    #[rhai_fn(name = "partial", pure, return_raw)]
    pub fn partial(job: &mut Job, value: Dynamic) -> ScriptResult<()> {
        job.sink.partial(to_json(&value, Secrets::Redact).map_err(error)?);
        Ok(())
    }

    /// Counts what the job used up: `job.usage(#{ input_tokens: 26, output_tokens: 2, cost_usd: 0.002 })`. Called again it
    /// adds; what failed attempts used stays counted. It is shown with the job, in its events, and in the metrics
    /// `machinist_connector_usage_total` and, of `cost_usd`, `machinist_connector_cost_dollars_total`. Fails where a value
    /// is no number of at least 0, a name has other letters than a-z, 0-9 and `_`, or there are more than 16.
    #[rhai_fn(name = "usage", pure, return_raw)]
    pub fn usage(job: &mut Job, used: Map) -> ScriptResult<()> {
        let mut amounts = BTreeMap::new();
        for (unit, value) in used {
            #[expect(clippy::cast_precision_loss, reason = "amounts are doubles")]
            let amount = value.as_float().or_else(|_| value.as_int().map(|whole| whole as f64));
            let amount =
                amount.map_err(|found| error(format!("the usage of {unit} must be a number, found {found}")))?;
            amounts.insert(unit.to_string(), amount);
        }
        let used = queue::Usage::new(amounts).map_err(error)?;
        let mut all = job.units.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of earlier calls count as well.
        let mut together = all.0.clone();
        together.extend(used.0.clone());
        *all = queue::Usage::new(together).map_err(error)?;
        drop(all);
        job.sink.usage(used);
        Ok(())
    }

    /// Whether the job was cancelled. Blocking functions end by themselves then.
    #[rhai_fn(name = "cancelled", pure)]
    pub fn cancelled(job: &mut Job) -> bool {
        job.cancel.is_cancelled()
    }
}
