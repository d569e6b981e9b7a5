use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::status::{Control, ControlReply, MachineStatus};
use super::{auth, events, health, jobs, metrics, queue, services};
use crate::queue::Broker;
use crate::settings::Secret;
use crate::supervisor::SupervisorHandle;
use crate::telemetry::EventLog;

/// What the HTTP API reads and talks to.
#[derive(Clone)]
pub struct AdminDeps {
    pub status: watch::Receiver<Arc<MachineStatus>>,
    pub events: EventLog,
    pub broker: Arc<dyn Broker>,
    pub supervisor: SupervisorHandle,
    pub control: mpsc::Sender<Control>,
    pub metrics: PrometheusHandle,
    pub token: Option<Secret>,
    /// The address listened on can be reached from this host only.
    pub loopback: bool,
    /// Fires when the server is to end; streams end with it.
    pub shutdown: CancellationToken,
}

/// A bulk submission of a hundred thousand jobs.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// How long requests may take to end when the server does.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

const ROUTES: &str = "machinist\n\n\
    GET  /livez /readyz[?verbose] /startupz /health /status /metrics\n\
    GET  /services /services/{name} /services/{name}/logs[?tail=N&after=SEQ] /logs[?tail=N]\n\
    POST /services/{name}/start|stop|restart\n\
    GET  /jobs[?state&service&offset&limit] /jobs/{id} /jobs/{id}/explain /jobs/{id}/events[?after=N] /jobs/{id}/ws\n\
    POST /jobs /batches /jobs/{id}/cancel /jobs/{id}/retry\n\
    GET  /queue /queue/classes /queue/workers[/{machine}/{worker}] /queue/limits /queue/schedules /queue/export\n\
    POST /queue/limits|pause|resume|drain?scope=S /queue/schedules /queue/verify[?repair] /queue/purge?state=S\n\
    GET  /events[?after=N]\n\
    POST /reload /drain\n";

fn router(deps: AdminDeps) -> Router {
    let changing = Router::new()
        .route("/services/{name}/{verb}", post(services::act))
        .route("/jobs", post(jobs::submit))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/batches", post(jobs::submit_batch))
        .route("/queue/limits", post(queue::set_limit))
        .route("/queue/pause", post(queue::pause))
        .route("/queue/resume", post(queue::resume))
        .route("/queue/drain", post(queue::drain))
        .route("/queue/schedules", post(queue::put_schedule))
        .route("/queue/schedules/{name}", delete(queue::drop_schedule))
        .route("/queue/verify", post(queue::verify))
        .route("/queue/purge", post(queue::purge))
        .route("/reload", post(reload))
        .route("/drain", post(drain))
        .route_layer(middleware::from_fn_with_state(deps.clone(), auth::require));
    let reading = Router::new()
        .route("/", get(async || ROUTES))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/startupz", get(health::startupz))
        .route("/health", get(health::health))
        .route("/status", get(health::status))
        .route("/metrics", get(metrics::render))
        .route("/services", get(services::list))
        .route("/services/{name}", get(services::one))
        .route("/services/{name}/logs", get(services::logs))
        .route("/logs", get(services::all_logs))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::get))
        .route("/jobs/{id}/events", get(jobs::events))
        .route("/jobs/{id}/explain", get(jobs::explain))
        .route("/jobs/{id}/ws", get(jobs::socket))
        .route("/queue", get(queue::stats))
        .route("/queue/classes", get(queue::classes))
        .route("/queue/workers", get(queue::workers))
        .route("/queue/workers/{machine}/{worker}", get(queue::explain_worker))
        .route("/queue/limits", get(queue::limits))
        .route("/queue/schedules", get(queue::schedules))
        .route("/queue/export", get(queue::export))
        .route("/events", get(events::events));
    reading
        .merge(changing)
        .fallback(async || ApiError::not_found("there is no such path").help("GET / lists all"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(deps)
}

/// Answers until `shutdown` fires.
pub async fn serve(listener: TcpListener, deps: AdminDeps) -> std::io::Result<()> {
    let shutdown = deps.shutdown.clone();
    let ended = shutdown.clone();
    let server = axum::serve(listener, router(deps)).with_graceful_shutdown(ended.cancelled_owned()).into_future();
    tokio::select! {
        outcome = server => outcome,
        () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_REQUESTS).await } => Ok(()),
    }
}

async fn reload(deps: axum::extract::State<AdminDeps>) -> Result<Json<serde_json::Value>, ApiError> {
    control(&deps, Control::Reload).await
}

async fn drain(deps: axum::extract::State<AdminDeps>) -> Result<Json<serde_json::Value>, ApiError> {
    control(&deps, Control::Drain).await
}

async fn control(
    deps: &AdminDeps,
    message: impl FnOnce(oneshot::Sender<ControlReply>) -> Control,
) -> Result<Json<serde_json::Value>, ApiError> {
    let (reply, answer) = oneshot::channel();
    let gone = || ApiError::unavailable("the machine is past its end");
    deps.control.send(message(reply)).await.map_err(|_| gone())?;
    match answer.await.map_err(|_| gone())? {
        Ok(message) => Ok(Json(json!({ "message": message }))),
        Err(problems) => Err(ApiError::refused(problems)),
    }
}
