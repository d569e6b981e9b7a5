use metrics::{counter, gauge};
use schemars::JsonSchema;
use serde::Serialize;

use super::gpu_events;
use super::unmatched::JobsUnmatched;
use crate::admin::MachineState;
use crate::base::Problems;
use crate::host::Resource;
use crate::host::process::Leftover;
use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    let mut kinds = vec![
        EventKind::of::<StateChanged>(),
        EventKind::of::<StartupComplete>(),
        EventKind::of::<ReloadCommitted>(),
        EventKind::of::<ReloadRejected>(),
        EventKind::of::<ReloadPassed>(),
        EventKind::of::<ReloadRolledBack>(),
        EventKind::of::<LeftoversKilled>(),
        EventKind::of::<ResourceShort>(),
        EventKind::of::<HookFailed>(),
        EventKind::of::<EventsSkipped>(),
        EventKind::of::<JobsUnmatched>(),
    ];
    kinds.extend(gpu_events::event_kinds());
    kinds
}

/// The machine as a whole is in another state.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StateChanged {
    pub from: MachineState,
    pub to: MachineState,
    pub reason: Option<String>,
}

impl Observed for StateChanged {
    const KIND: &'static str = "machine.state";
    fn level(&self) -> Level {
        match self.to {
            MachineState::Failed => Level::Error,
            MachineState::ServiceFailure | MachineState::ConnectionLoss | MachineState::ResourceExhausted => {
                Level::Warn
            }
            _ => Level::Info,
        }
    }
    fn message(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("the machine is {} (was {}){reason}", self.to, self.from)
    }
}

/// The start-up sequence is through: everything is up for the first time.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StartupComplete {
    pub took_ms: u64,
}

impl Observed for StartupComplete {
    const KIND: &'static str = "machine.startup_complete";
    fn message(&self) -> String {
        format!("start-up is complete after {} ms", self.took_ms)
    }
}

/// An edit is live.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadCommitted {
    pub generation: u64,
    pub hash: String,
    pub changes: Vec<String>,
}

impl Observed for ReloadCommitted {
    const KIND: &'static str = "reload.committed";
    fn message(&self) -> String {
        let what = if self.changes.is_empty() { "nothing to do".to_owned() } else { self.changes.join(", ") };
        format!("generation {} is live: {what}", self.generation)
    }
    fn record(&self) {
        counter!("machinist_reloads_total", "result" => "committed").increment(1);
        gauge!("machinist_last_reload_success").set(1.0);
    }
}

/// An edit is refused; nothing has changed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadRejected {
    pub problems: Problems,
}

impl Observed for ReloadRejected {
    const KIND: &'static str = "reload.rejected";
    fn level(&self) -> Level {
        Level::Error
    }
    fn message(&self) -> String {
        format!("the edit is refused, the machine goes on as it is\n{}", self.problems)
    }
    fn record(&self) {
        counter!("machinist_reloads_total", "result" => "rejected").increment(1);
        gauge!("machinist_last_reload_success").set(0.0);
    }
}

/// What an edit touched is up: there is no way back any more.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadPassed {
    pub generation: u64,
}

impl Observed for ReloadPassed {
    const KIND: &'static str = "reload.passed";
    fn message(&self) -> String {
        format!("generation {} has passed its probation", self.generation)
    }
}

/// An edit was taken back: what it touched did not come up.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReloadRolledBack {
    pub generation: u64,
    pub back_to: u64,
    pub problems: Problems,
}

impl Observed for ReloadRolledBack {
    const KIND: &'static str = "reload.rolled_back";
    fn level(&self) -> Level {
        Level::Error
    }
    fn message(&self) -> String {
        let Self { generation, back_to, problems } = self;
        format!("generation {generation} is rolled back, generation {back_to} runs again\n{problems}")
    }
    fn record(&self) {
        counter!("machinist_reloads_total", "result" => "rolled_back").increment(1);
        gauge!("machinist_last_reload_success").set(0.0);
    }
}

/// Processes of an earlier life of the engine were found and ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LeftoversKilled {
    pub leftovers: Vec<Leftover>,
}

impl Observed for LeftoversKilled {
    const KIND: &'static str = "machine.leftovers_killed";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn message(&self) -> String {
        let which: Vec<String> =
            self.leftovers.iter().map(|leftover| format!("{} ({})", leftover.command, leftover.pid)).collect();
        format!("ended {} processes of an earlier life of the engine: {}", self.leftovers.len(), which.join(", "))
    }
}

/// The machine runs out of something; `recover` is called.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ResourceShort {
    pub resource: Resource,
    /// Of 1.
    pub used: f64,
    pub detail: String,
}

impl Observed for ResourceShort {
    const KIND: &'static str = "resource.short";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(self.resource.to_string())
    }
    fn message(&self) -> String {
        format!("{} is short: {}", self.resource, self.detail)
    }
    fn record(&self) {
        counter!("machinist_resource_shortages_total", "resource" => self.resource.as_str()).increment(1);
    }
}

/// A hook of the machine's script failed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HookFailed {
    pub hook: &'static str,
    pub problem: String,
}

impl Observed for HookFailed {
    const KIND: &'static str = "script.failed";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(self.hook.to_owned())
    }
    fn message(&self) -> String {
        format!("hook {} failed\n{}", self.hook, self.problem)
    }
    fn record(&self) {
        counter!("machinist_script_errors_total", "hook" => self.hook).increment(1);
    }
}

/// `on_event` was not called for some events.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct EventsSkipped {
    pub skipped: u64,
    pub reason: String,
}

impl Observed for EventsSkipped {
    const KIND: &'static str = "script.events_skipped";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some("on_event".to_owned())
    }
    fn message(&self) -> String {
        format!("on_event was not called for {} events: {}", self.skipped, self.reason)
    }
    fn record(&self) {
        counter!("machinist_script_events_skipped_total").increment(self.skipped);
    }
}
