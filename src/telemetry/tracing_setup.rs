use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt};

/// How the engine writes its own log lines to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Changes what the engine's own log shows while it runs.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(EnvFilter) + Send + Sync>);

impl LogLevel {
    /// `filter` has the syntax of `RUST_LOG`.
    pub fn set(&self, filter: &str) {
        (self.0)(parse(filter));
    }
}

/// Sends the engine's own log to standard error. `filter` has the syntax of `RUST_LOG`. Does nothing when a subscriber is
/// installed already, as in tests.
pub fn init_tracing(format: LogFormat, filter: &str) -> LogLevel {
    let builder = fmt().with_env_filter(parse(filter)).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            LogLevel(Arc::new(move |filter| drop(handle.reload(filter))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            LogLevel(Arc::new(move |filter| drop(handle.reload(filter))))
        }
    }
}

fn parse(filter: &str) -> EnvFilter {
    EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"))
}
