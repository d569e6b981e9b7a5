use metrics::counter;
use schemars::JsonSchema;
use serde::Serialize;

use crate::base::Name;
use crate::host::process::Exit;
use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    vec![
        EventKind::of::<ServiceStarted>(),
        EventKind::of::<ServiceReady>(),
        EventKind::of::<ServiceExited>(),
        EventKind::of::<ServiceRestarting>(),
        EventKind::of::<ServiceFailed>(),
        EventKind::of::<ServiceChanged>(),
        EventKind::of::<ServiceUnready>(),
        EventKind::of::<StraysEnded>(),
        EventKind::of::<LimitExceeded>(),
        EventKind::of::<DrainFailed>(),
        EventKind::of::<ServiceHeld>(),
    ]
}

/// A process of a service was started.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceStarted {
    pub service: Name,
    pub pid: u32,
    pub incarnation: u64,
}

impl Observed for ServiceStarted {
    const KIND: &'static str = "service.started";
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} runs as pid {}", self.service, self.pid)
    }
    fn record(&self) {
        counter!("machinist_service_starts_total", "service" => self.service.to_string()).increment(1);
    }
}

/// A service became ready.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceReady {
    pub service: Name,
    pub after_ms: u64,
}

impl Observed for ServiceReady {
    const KIND: &'static str = "service.ready";
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} is ready after {} ms", self.service, self.after_ms)
    }
}

/// A process of a service has ended, whether it was told to or not.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceExited {
    pub service: Name,
    pub pid: u32,
    pub exit: Exit,
    /// It was told to.
    pub asked: bool,
    /// The kernel killed it, or one of its processes, for want of memory.
    pub out_of_memory: bool,
    /// The last lines on standard error, oldest first.
    pub last_stderr: Vec<String>,
}

impl Observed for ServiceExited {
    const KIND: &'static str = "service.exited";
    fn level(&self) -> Level {
        if self.asked || self.exit.success() { Level::Info } else { Level::Warn }
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        let last = self.last_stderr.last().filter(|_| !self.asked).map(|line| format!("; it said last: {line}"));
        let oom = if self.out_of_memory { " for want of memory" } else { "" };
        format!("{} (pid {}) ended: {}{oom}{}", self.service, self.pid, self.exit, last.unwrap_or_default())
    }
    fn record(&self) {
        let outcome = match self.exit {
            _ if self.asked => "stopped",
            _ if self.out_of_memory => "out_of_memory",
            Exit::Code(0) => "success",
            Exit::Code(_) => "failure",
            Exit::Signal(_) => "signal",
            Exit::NotStarted(_) => "not_started",
        };
        counter!("machinist_service_exits_total", "service" => self.service.to_string(), "outcome" => outcome)
            .increment(1);
    }
}

/// A service failed and is started again after a wait.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceRestarting {
    pub service: Name,
    pub delay_ms: u64,
    pub why: String,
}

impl Observed for ServiceRestarting {
    const KIND: &'static str = "service.restarting";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} starts again in {} ms: {}", self.service, self.delay_ms, self.why)
    }
    fn record(&self) {
        counter!("machinist_service_restarts_total", "service" => self.service.to_string()).increment(1);
    }
}

/// A service is given up.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceFailed {
    pub service: Name,
    pub why: String,
}

impl Observed for ServiceFailed {
    const KIND: &'static str = "service.failed";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} is given up: {}", self.service, self.why)
    }
}

/// An edit added, removed, restarted or updated a service.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceChanged {
    pub service: Name,
    /// `added`, `removed`, `restarted` or `updated`.
    pub change: &'static str,
    pub fields: Vec<String>,
}

impl Observed for ServiceChanged {
    const KIND: &'static str = "service.changed";
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        let fields = if self.fields.is_empty() { String::new() } else { format!(": {}", self.fields.join(", ")) };
        format!("{} is {}{fields}", self.service, self.change)
    }
}

/// A service that was ready is not any more.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceUnready {
    pub service: Name,
    pub why: String,
}

impl Observed for ServiceUnready {
    const KIND: &'static str = "service.unready";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} is no longer ready: {}", self.service, self.why)
    }
}

/// A service left processes behind, which were ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StraysEnded {
    pub service: Name,
    pub pid: u32,
    pub count: usize,
}

impl Observed for StraysEnded {
    const KIND: &'static str = "service.strays_ended";
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("ended {} processes that {} (pid {}) left behind", self.count, self.service, self.pid)
    }
    fn record(&self) {
        let count = u64::try_from(self.count).unwrap_or(u64::MAX);
        counter!("machinist_service_strays_total", "service" => self.service.to_string()).increment(count);
    }
}

/// A service was over its memory or CPU and is restarted.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LimitExceeded {
    pub service: Name,
    pub why: String,
}

impl Observed for LimitExceeded {
    const KIND: &'static str = "service.over_limit";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} is restarted: {}", self.service, self.why)
    }
    fn record(&self) {
        counter!("machinist_service_over_limit_total", "service" => self.service.to_string()).increment(1);
    }
}

/// The drain hook of a service failed; the service is stopped all the same.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DrainFailed {
    pub service: Name,
    pub why: String,
}

impl Observed for DrainFailed {
    const KIND: &'static str = "service.drain_failed";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("the drain hook of {} failed: {}", self.service, self.why)
    }
}

/// A service is kept from running: the GPU that it is pinned to is lost. It starts when the GPU is back.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServiceHeld {
    pub service: Name,
    pub why: String,
}

impl Observed for ServiceHeld {
    const KIND: &'static str = "service.held";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        format!("{} is {}", self.service, self.why)
    }
}
