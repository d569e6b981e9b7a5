use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::JobSink;
use crate::base::{Backoff, Name, Seconds, Timestamp};
use crate::queue::{Broker, BrokerError, Failure, FailureClass, JobState, Progress, Submission, Token, Usage};
use crate::telemetry::usage;

/// At most so many log lines are kept of one attempt, each of so many bytes at most.
const MAX_LOG_LINES: usize = 1_000;
const MAX_LOG_BYTES: usize = 8 * 1024;
/// Parts that wait to be delivered at most; a connector that is faster loses the rest, the result has it all.
const MAX_PARTS: usize = 1_000;
/// Bytes of one part, and of all of an attempt: parts are kept with the job's events.
const MAX_PART_BYTES: usize = Submission::MAX_INLINE_BYTES;
const MAX_BYTES_OF_PARTS: usize = 16 * 1024 * 1024;
/// Progress is delivered at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How long the end of an attempt waits for its reports to be delivered.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// Collects what a running job reports and delivers it in order, without ever making the job wait.
pub(super) struct Reporter {
    shared: Arc<Shared>,
}

struct Shared {
    broker: Arc<dyn Broker>,
    token: Token,
    connector: Name,
    runtime: tokio::runtime::Handle,
    reports: Mutex<Reports>,
    news: Notify,
    /// Begun by the first report: most jobs have none.
    delivery: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Reports {
    latest: Option<Progress>,
    undelivered: bool,
    logs: Vec<String>,
    log_lines: usize,
    parts: Vec<Value>,
    bytes_of_parts: usize,
    /// It was said why parts are missing.
    parts_missing: bool,
    saved: Option<Value>,
    /// Since it was last delivered.
    used: Usage,
    /// In all, attempts before this one included.
    used_in_all: Usage,
    closed: bool,
}

impl Reporter {
    /// `used` is what earlier attempts used up.
    pub fn start(broker: Arc<dyn Broker>, token: Token, connector: &Name, used: &Usage) -> Self {
        // Connectors report from threads of their own.
        let runtime = tokio::runtime::Handle::current();
        let reports = Mutex::new(Reports { used_in_all: used.clone(), ..Reports::default() });
        let (news, delivery) = (Notify::new(), Mutex::default());
        Self {
            shared: Arc::new(Shared { broker, token, connector: connector.clone(), runtime, reports, news, delivery }),
        }
    }

    pub fn sink(&self) -> Arc<dyn JobSink> {
        Arc::new(Sink(Arc::clone(&self.shared)))
    }

    pub fn progress(&self) -> Option<Progress> {
        self.shared.lock().latest.clone()
    }

    /// Delivers what is left; what comes later is dropped.
    pub async fn flush(&self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
        let delivery = self.shared.delivery.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(delivery) = delivery {
            // A queue that does not answer must not hold back the outcome's own retries.
            let _ = tokio::time::timeout(FLUSH_PATIENCE, delivery).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Reports> {
        // Nothing between lock and unlock can leave the reports half changed.
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(self: &Arc<Self>) {
        let mut delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        if delivery.is_none() && !self.lock().closed {
            *delivery = Some(self.runtime.spawn(deliver(Arc::clone(self))));
        }
        drop(delivery);
        self.news.notify_one();
    }
}

struct Sink(Arc<Shared>);

impl JobSink for Sink {
    fn progress(&self, fraction: f64, message: &str) {
        let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
        let message = message.chars().take(500).collect();
        let mut reports = self.0.lock();
        reports.latest = Some(Progress { fraction, message, at: Timestamp::now() });
        reports.undelivered = true;
        drop(reports);
        self.0.tell();
    }

    fn log(&self, line: &str) {
        let mut reports = self.0.lock();
        reports.log_lines += 1;
        if reports.log_lines <= MAX_LOG_LINES {
            let end = line.floor_char_boundary(MAX_LOG_BYTES);
            reports.logs.push(line[..end].to_owned());
        } else if reports.log_lines == MAX_LOG_LINES + 1 {
            reports.logs.push(format!("further lines are not kept: {MAX_LOG_LINES} is the limit"));
        }
        drop(reports);
        self.0.tell();
    }

    fn partial(&self, value: Value) {
        let bytes = value.to_string().len();
        let mut reports = self.0.lock();
        let in_all = reports.bytes_of_parts + bytes;
        if bytes > MAX_PART_BYTES || in_all > MAX_BYTES_OF_PARTS {
            if !std::mem::replace(&mut reports.parts_missing, true) {
                reports.logs.push(format!(
                    "a part of the result with {bytes} bytes is not kept, nor others like it: {MAX_PART_BYTES} are the limit of one, \
                     {MAX_BYTES_OF_PARTS} of all; the result has to have it all"
                ));
            }
        } else if reports.parts.len() < MAX_PARTS {
            reports.bytes_of_parts = in_all;
            reports.parts.push(value);
        }
        drop(reports);
        self.0.tell();
    }

    fn save(&self, value: Value) {
        self.0.lock().saved = Some(value);
        self.0.tell();
    }

    fn usage(&self, used: Usage) {
        for (unit, amount) in &used.0 {
            usage::count(self.0.connector.as_str(), unit, *amount);
        }
        let mut reports = self.0.lock();
        reports.used.add(&used);
        reports.used_in_all.add(&used);
        drop(reports);
        self.0.tell();
    }
}

async fn deliver(shared: Arc<Shared>) {
    let (broker, token) = (&shared.broker, &shared.token);
    let mut last_progress: Option<Instant> = None;
    loop {
        shared.news.notified().await;
        loop {
            let (saved, logs, parts, used, total, closed) = {
                let mut reports = shared.lock();
                let (logs, parts) = (std::mem::take(&mut reports.logs), std::mem::take(&mut reports.parts));
                let used = std::mem::take(&mut reports.used);
                (reports.saved.take(), logs, parts, used, reports.used_in_all.clone(), reports.closed)
            };
            // A refusal means that the job is held by somebody else, which the heartbeat finds out.
            if let Some(value) = saved {
                let _ = broker.save(token, value).await;
            }
            for line in logs {
                let _ = broker.log(token, line).await;
            }
            for value in parts {
                let _ = broker.partial(token, value).await;
            }
            if !used.is_empty() {
                let _ = broker.usage(token, used, total).await;
            }
            let wait = last_progress.map_or(Duration::ZERO, |at| PROGRESS_EVERY.saturating_sub(at.elapsed()));
            let progress = {
                let mut reports = shared.lock();
                let due = reports.undelivered && (wait.is_zero() || closed);
                reports.undelivered &= !due;
                if due { reports.latest.clone() } else { None }
            };
            if let Some(progress) = progress {
                last_progress = Some(Instant::now());
                let _ = broker.progress(token, progress).await;
            }
            let (more, later) = {
                let reports = shared.lock();
                let waiting = reports.saved.is_some()
                    || !reports.logs.is_empty()
                    || !reports.parts.is_empty()
                    || !reports.used.is_empty();
                (waiting, reports.undelivered)
            };
            if more {
                continue;
            }
            if closed {
                return;
            }
            if !later {
                break;
            }
            let _ = tokio::time::timeout(wait, shared.news.notified()).await;
        }
    }
}

/// What an attempt came to.
pub(super) enum Outcome {
    Completed(Value),
    Failed(Failure),
    /// No attempt charged.
    Released(String),
}

/// Hands the outcome over, again and again while the queue cannot be reached; `None` when the job is not ours any more.
pub(super) async fn hand_over(broker: &dyn Broker, token: &Token, outcome: &Outcome) -> Option<JobState> {
    let backoff = Backoff { initial: Seconds::from_millis(100), max: Seconds::from_secs(5), ..Backoff::default() };
    let mut failures = 0;
    let mut instead = None;
    loop {
        let outcome = instead.as_ref().unwrap_or(outcome);
        let result = match outcome {
            Outcome::Completed(result) => broker.complete(token, result.clone()).await.map(|()| JobState::Completed),
            Outcome::Failed(failure) => broker.fail(token, failure.clone()).await,
            Outcome::Released(why) => broker.release(token, why).await.map(|()| JobState::Pending),
        };
        match result {
            Ok(state) => return Some(state),
            Err(BrokerError::Unavailable { why }) => {
                failures += 1;
                let delay = backoff.random_delay(failures);
                tracing::warn!(job = %token.job, "the outcome is kept and tried again in {delay:?}: {why}");
                tokio::time::sleep(delay).await;
            }
            // Said as the job's failure, which it is: it would be the same again.
            Err(cause @ BrokerError::TooLarge(_)) => {
                instead = Some(Outcome::Failed(Failure::new(FailureClass::Fatal, cause.to_string())));
            }
            Err(_) => return None,
        }
    }
}
