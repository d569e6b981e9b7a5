//! What the outside sees of the engine: one type per observable event (log line, metric, entry in the event log), metric
//! names, tracing set-up, and published state that readers take without asking anyone.

mod catalogue;
mod event;
mod event_log;
mod kind;
mod label;
pub mod metrics;
mod published;
pub mod script_metrics;
mod trace;
mod trace_export;
mod tracing_setup;
pub mod usage;

pub use catalogue::{GROUPS, Group, Metric, MetricKind, metric, metrics_page};
pub use event::{Event, Level, Observed};
pub use event_log::{EventLog, EventLogReader, Lagged};
pub use kind::EventKind;
pub use label::label;
pub use published::Published;
pub use trace::{Span, SpanKind, Trace, TraceScope, Traces};
pub use tracing_setup::{LogFormat, LogLevel, init_tracing};
