use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::extract::Query;
use super::server::AdminDeps;
use super::status::{Control, HostStatus, MachineState, MachineStatus};
use crate::host::load;
use crate::supervisor::Desired;
use crate::worker::WorkerState;

/// A loop that does not answer for so long hangs.
const LOOP_HANGS: Duration = Duration::from_secs(5);

/// `/health`: one boolean, and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    pub healthy: bool,
    /// `pass`, `warn` (something is down and the machine goes on) or `fail`.
    pub status: String,
    pub state: MachineState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    pub checks: BTreeMap<String, Check>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ReadyQuery {
    /// Given, whatever its value: check by check even when it is ready.
    verbose: Option<String>,
    /// Checks that do not count, separated by commas.
    exclude: Option<String>,
}

/// What is well and what is not. A machine is healthy while it is `Healthy`: nothing that should be up is down.
pub fn health_of(status: &MachineStatus) -> Health {
    let mut checks = BTreeMap::new();
    let mut check = |name: String, ok: bool, reason: Option<String>| {
        checks.insert(name, Check { ok, reason: reason.filter(|_| !ok) });
    };
    check("startup".to_owned(), status.started, status.reason.clone());
    for (name, service) in status.services.iter().filter(|(_, service)| service.desired == Desired::Up) {
        let ok = service.state.is_ready();
        let reason = service.reason.clone().unwrap_or_else(|| service.state.to_string());
        check(format!("service:{name}"), ok, Some(reason));
    }
    for (name, worker) in &status.workers {
        // A held account is no fault of this machine, and no other would do better.
        let ok = matches!(worker.state, WorkerState::Active | WorkerState::Held);
        check(format!("worker:{name}"), ok, worker.reason.clone());
    }
    let lost = matches!(status.state, MachineState::ConnectionLoss | MachineState::Reconnecting);
    check("queue".to_owned(), !lost, status.reason.clone());
    let short = matches!(status.state, MachineState::ResourceExhausted | MachineState::ResourceRecovery);
    check("resources".to_owned(), !short, status.reason.clone());
    let grade = match status.state {
        MachineState::Healthy => "pass",
        MachineState::Starting | MachineState::Draining | MachineState::Failed | MachineState::Stopped => "fail",
        _ => "warn",
    };
    Health {
        healthy: status.state == MachineState::Healthy,
        status: grade.to_owned(),
        state: status.state,
        reason: status.reason.clone(),
        checks,
    }
}

/// Only the engine's own loop: a restart must not be the answer to a slow service or a lost queue.
pub(super) async fn livez(State(deps): State<AdminDeps>) -> Response {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        // A machine past its end has no loop any more, and is not alive.
        deps.control.send(Control::Ping(reply)).await.ok()?;
        answer.await.ok()
    };
    if let Ok(Some(())) = tokio::time::timeout(LOOP_HANGS, asked).await {
        return "ok\n".into_response();
    }
    let text = format!("the engine's loop has not answered for {} s\n", LOOP_HANGS.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Whether the machine takes work: started, not draining, all that should be up is.
pub(super) async fn readyz(State(deps): State<AdminDeps>, Query(query): Query<ReadyQuery>) -> Response {
    let status = deps.status.borrow().clone();
    let health = health_of(&status);
    let ending = matches!(status.state, MachineState::Draining | MachineState::Failed | MachineState::Stopped);
    let excluded: Vec<&str> = query.exclude.as_ref().map(|names| names.split(',').collect()).unwrap_or_default();
    let mut text = String::new();
    let mut ready = !ending;
    let _ = writeln!(text, "[{}]machine {}", if ending { '-' } else { '+' }, status.state);
    for (name, check) in &health.checks {
        let counts = !excluded.contains(&name.as_str());
        ready &= check.ok || !counts;
        match (&check.reason, check.ok) {
            (_, true) => writeln!(text, "[+]{name} ok"),
            (reason, false) => {
                writeln!(text, "[-]{name} failed: {}", reason.as_deref().unwrap_or("no reason is known"))
            }
        }
        .unwrap_or_default();
    }
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let _ = writeln!(text, "readyz check {}", if ready { "passed" } else { "failed" });
    if query.verbose.is_some() || !ready { (code, text).into_response() } else { (code, "ok\n").into_response() }
}

/// Whether the start-up sequence is through.
pub(super) async fn startupz(State(deps): State<AdminDeps>) -> Response {
    let status = deps.status.borrow().clone();
    if status.started {
        return "ok\n".into_response();
    }
    let mut text = format!("starting: {}\n", status.reason.as_deref().unwrap_or("no reason is known"));
    for step in &status.startup {
        let took = step.took_ms.map_or_else(|| "running".to_owned(), |took| format!("{took} ms"));
        let _ = writeln!(text, "{} {took} {}", step.name, step.error.as_deref().unwrap_or(""));
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

pub(super) async fn health(State(deps): State<AdminDeps>) -> Response {
    let health = health_of(&deps.status.borrow());
    let code = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

pub(super) async fn status(State(deps): State<AdminDeps>) -> Json<MachineStatus> {
    let mut status = deps.status.borrow().as_ref().clone();
    // The numbers of now, not of the last publication.
    if let Ok(Ok(stats)) = tokio::time::timeout(Duration::from_secs(1), deps.broker.stats()).await {
        status.queue = Some(stats);
    }
    status.gpus = deps.gpus.get().as_ref().clone();
    status.host = HostStatus { load: load(), levels: deps.levels.get().as_ref().clone() };
    Json(status)
}
