use std::future::IntoFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::console::Consoles;
use super::error::{ApiError, Done};
use super::extract::Query;
use super::metrics::Looks;
use super::plan::ReloadPlan;
use super::route;
use super::routes::routes;
use super::status::{Control, ControlReply, MachineStatus};
use crate::base::Problems;
use crate::host::{GpusStatus, Level};
use crate::queue::Broker;
use crate::settings::Secret;
use crate::supervisor::SupervisorHandle;
use crate::telemetry::{EventLog, Published, Traces};

/// What the HTTP API reads and talks to.
#[derive(Clone)]
pub struct AdminDeps {
    pub status: watch::Receiver<Arc<MachineStatus>>,
    pub events: EventLog,
    pub broker: Arc<dyn Broker>,
    pub supervisor: SupervisorHandle,
    pub control: mpsc::Sender<Control>,
    pub metrics: PrometheusHandle,
    pub gpus: Published<GpusStatus>,
    /// What was in use when it was looked at last.
    pub levels: Published<Vec<Level>>,
    /// Show metrics of GPUs as dcgm-exporter names them too.
    pub dcgm_names: bool,
    pub state_dir: PathBuf,
    pub token: Option<Secret>,
    /// The address listened on can be reached from this host only.
    pub loopback: bool,
    /// Fires when the server is to end; streams end with it.
    pub shutdown: CancellationToken,
    /// Sockets of web clients, which the server does not wait for by itself.
    pub sockets: TaskTracker,
    pub consoles: Consoles,
    pub traces: Traces,
    pub looks: Looks,
}

/// A bulk submission of a hundred thousand jobs.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// How long requests may take to end when the server does.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

fn router(deps: AdminDeps) -> Router {
    route::router(routes(), &deps)
        .fallback(async || ApiError::not_found("there is no such path").help("GET / lists all"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(deps)
}

/// Answers until `shutdown` fires.
pub async fn serve(listener: TcpListener, deps: AdminDeps) -> std::io::Result<()> {
    let (shutdown, sockets) = (deps.shutdown.clone(), deps.sockets.clone());
    let ended = shutdown.clone();
    let server = axum::serve(listener, router(deps)).with_graceful_shutdown(ended.cancelled_owned()).into_future();
    let all = async {
        let outcome = server.await;
        sockets.close();
        sockets.wait().await;
        outcome
    };
    tokio::select! {
        outcome = all => outcome,
        () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_REQUESTS).await } => Ok(()),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadQuery {
    /// Answer only when it is known whether the edit passes its probation.
    #[serde(default)]
    wait: bool,
}

pub(super) async fn reload(
    deps: axum::extract::State<AdminDeps>,
    Query(query): Query<ReloadQuery>,
) -> Result<Json<Done>, ApiError> {
    control(&deps, |reply| Control::Reload { verdict: query.wait, reply }).await
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanQuery {
    /// A directory on the machine, whose files are taken instead of the machine's own.
    dir: Option<PathBuf>,
}

pub(super) async fn plan(
    deps: axum::extract::State<AdminDeps>,
    Query(query): Query<PlanQuery>,
) -> Result<Json<ReloadPlan>, ApiError> {
    ask(&deps, |reply| Control::Plan { dir: query.dir, reply }).await.map(|plan| Json(*plan))
}

pub(super) async fn drain(deps: axum::extract::State<AdminDeps>) -> Result<Json<Done>, ApiError> {
    control(&deps, Control::Drain).await
}

async fn control(
    deps: &AdminDeps,
    message: impl FnOnce(oneshot::Sender<ControlReply>) -> Control,
) -> Result<Json<Done>, ApiError> {
    ask(deps, message).await.map(|message| Json(Done { message }))
}

pub(super) async fn ask<T>(
    deps: &AdminDeps,
    message: impl FnOnce(oneshot::Sender<Result<T, Problems>>) -> Control,
) -> Result<T, ApiError> {
    let (reply, answer) = oneshot::channel();
    let gone = || ApiError::unavailable("the machine is past its end");
    deps.control.send(message(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(ApiError::refused)
}
