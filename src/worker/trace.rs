use std::time::{Duration, SystemTime};

use super::job::Outcome;
use crate::base::{Name, Timestamp};
use crate::queue::Job;
use crate::telemetry::{Span, SpanKind, Traces};

/// The span of an attempt, below whoever submitted the job; and that of its wait, which is over.
pub(super) fn begin_run(traces: &Traces, job: &Job, connector: &Name) -> Span {
    let (submission, asking) = (&job.submission, job.submission.trace());
    if !traces.are_exported() {
        return traces.begin("", SpanKind::Consumer, &asking);
    }
    let mut span = traces.begin(format!("run {}", submission.service), SpanKind::Consumer, &asking);
    let id = job.id.to_string();
    // A job of no trace begins one with each attempt.
    let above = if asking.is_none() { span.trace() } else { &asking };
    let since = submission.not_before.map_or(job.submitted, |due| due.max(job.submitted));
    let since = job.history.last().map_or(since, |attempt| attempt.ended);
    let until = job.claimed.unwrap_or(since);
    let attributes = vec![("machinist.job.id", id.clone()), ("machinist.job.service", submission.service.to_string())];
    traces.record(format!("wait {}", submission.service), above, (time(since), time(until)), attributes);
    span.set("machinist.job.id", id);
    span.set("machinist.job.service", submission.service.to_string());
    span.set("machinist.job.attempt", i64::from(job.attempts) + 1);
    span.set("machinist.connector", connector.to_string());
    if let Some(worker) = &job.worker {
        span.set("machinist.worker", worker.clone());
    }
    if let Some(flow) = &submission.workflow {
        span.set("machinist.workflow.id", flow.id.clone());
        span.set("machinist.workflow.step", i64::from(flow.step));
    }
    span
}

/// What a failure says may have what others must not see; its class has not.
pub(super) fn end_run(span: &mut Span, ended: &'static str, outcome: &Outcome) {
    span.set("machinist.job.outcome", ended);
    if let Outcome::Failed(failure) = outcome {
        span.failed(failure.class.as_str());
    }
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis())
}
