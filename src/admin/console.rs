//! Consoles over HTTP: opened, told what to evaluate, ended. Whoever may use one can do on the machine whatever its scripts can,
//! so each of these routes is there only where the settings say so, and behind the token.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body as Content, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::error::{ApiError, Done};
use super::extract::{Body, Path, Query};
use super::route::LINES;
use super::server::{AdminDeps, ask};
use super::status::{ConsoleGround, Control};
use crate::base::Seconds;
use crate::script::{Console, NotTaken, Said};
use crate::telemetry::{EventKind, EventLog, Observed};

/// Each holds a thread and what its variables take.
const MAX_CONSOLES: usize = 8;
const LIMIT: Duration = Duration::from_mins(1);
const MAX_LIMIT: Duration = Duration::from_hours(1);

/// The consoles that are open, by their id.
#[derive(Clone, Default)]
pub struct Consoles(Arc<Mutex<BTreeMap<String, Open>>>);

#[derive(Clone)]
struct Open {
    console: Console,
    generation: u64,
    /// Ends what it evaluates.
    cancel: CancellationToken,
}

impl Consoles {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        // A map is whole after each of its own calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without those that have ended.
    fn living(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        let mut open = self.lock();
        open.retain(|_, open| !open.console.is_over());
        open
    }

    /// Answers with its id and its names.
    fn open(&self, ground: &ConsoleGround, cancel: CancellationToken) -> Result<(String, Vec<String>), ApiError> {
        // Held until the new one is among them, so that two at once do not both find the last place.
        let mut open = self.living();
        if open.len() >= MAX_CONSOLES {
            return Err(ApiError::conflict(format!("there are {MAX_CONSOLES} consoles already"))
                .help("end one; each ends by itself after 30 minutes without an input"));
        }
        let console = Console::open(&ground.program, &ground.context).map_err(ApiError::unavailable)?;
        let (id, names) = (Uuid::new_v4().simple().to_string(), console.names().to_vec());
        open.insert(id.clone(), Open { console, generation: ground.context.generation, cancel });
        Ok((id, names))
    }

    fn get(&self, id: &str) -> Result<Open, ApiError> {
        let open = self.living();
        open.get(id).cloned().ok_or_else(|| {
            ApiError::not_found("there is no such console")
                .help("one ends after 30 minutes without an input; POST /consoles")
        })
    }
}

/// Every kind of event that comes from here.
pub fn event_kinds() -> Vec<EventKind> {
    vec![EventKind::of::<ConsoleOpened>(), EventKind::of::<ConsoleUsed>()]
}

/// Somebody opened a console.
#[derive(Debug, Serialize, JsonSchema)]
struct ConsoleOpened {
    console: String,
    /// Whose script it has.
    generation: u64,
}

impl Observed for ConsoleOpened {
    const KIND: &'static str = "console.opened";
    fn message(&self) -> String {
        format!("console {} is open", self.console)
    }
}

/// A console has evaluated what somebody wrote. What that was is told to nobody: it may hold secrets.
#[derive(Debug, Serialize, JsonSchema)]
struct ConsoleUsed {
    console: String,
    bytes: usize,
    took_ms: u64,
    /// `value`, `problem`, or `cancelled` where nobody waited for the end.
    outcome: &'static str,
}

impl Observed for ConsoleUsed {
    const KIND: &'static str = "console.used";
    fn message(&self) -> String {
        format!("console {} evaluated {} bytes in {} ms: {}", self.console, self.bytes, self.took_ms, self.outcome)
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ConsoleIsOpen {
    console: String,
    /// Whose script it has; a reload does not change it.
    generation: u64,
    /// What can be written, for completion: `http::get`, `step`; methods and properties as `.len`.
    names: Vec<String>,
}

async fn allowed(deps: &AdminDeps) -> Result<Box<ConsoleGround>, ApiError> {
    ask(deps, Control::Console).await?.ok_or_else(|| {
        ApiError::forbidden("this machine allows no console")
            .help("set http.console = true in machine.toml, which needs http.token; a running machine takes it over")
    })
}

pub(super) async fn open(State(deps): State<AdminDeps>) -> Result<(StatusCode, Json<ConsoleIsOpen>), ApiError> {
    let ground = allowed(&deps).await?;
    let generation = ground.context.generation;
    let (id, names) = deps.consoles.open(&ground, deps.shutdown.child_token())?;
    deps.events.emit(&ConsoleOpened { console: id.clone(), generation });
    Ok((StatusCode::CREATED, Json(ConsoleIsOpen { console: id, generation, names })))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConsoleQuery {
    /// How long it may take: `60s` (the default) to `1h`.
    timeout: Option<Seconds>,
}

/// Answers line by line while it evaluates. A client that goes away cancels it.
pub(super) async fn evaluate(
    State(deps): State<AdminDeps>,
    Path(id): Path<String>,
    Query(query): Query<ConsoleQuery>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    // It may have been forbidden since.
    allowed(&deps).await?;
    let open = deps.consoles.get(&id)?;
    let code = String::from_utf8(body.to_vec()).map_err(|_| ApiError::bad_request("the body is no text"))?;
    let limit = query.timeout.map_or(LIMIT, Seconds::get).min(MAX_LIMIT);
    let (cancel, bytes) = (open.cancel.child_token(), code.len());
    let said = open.console.evaluate(code, limit, cancel.clone()).map_err(|why| match why {
        NotTaken::Busy => ApiError::conflict(why.to_string()).help("wait for it, or POST /consoles/{id}/cancel"),
        NotTaken::Ended => ApiError::not_found(why.to_string()),
    })?;
    let answer = Answer {
        said,
        used: Some(ConsoleUsed { console: id, bytes, took_ms: 0, outcome: "cancelled" }),
        began: Instant::now(),
        events: deps.events.clone(),
        _cancel: cancel.drop_guard(),
    };
    let lines = stream::unfold(answer, async |mut answer| {
        let line = answer.next().await?;
        Some((Ok::<_, Infallible>(line), answer))
    });
    Ok(([(header::CONTENT_TYPE, LINES)], Content::from_stream(lines)).into_response())
}

/// An answer that is being sent. Dropped before its end it cancels what it waits for.
struct Answer {
    said: mpsc::Receiver<Said>,
    used: Option<ConsoleUsed>,
    began: Instant,
    events: EventLog,
    _cancel: DropGuard,
}

impl Answer {
    async fn next(&mut self) -> Option<Bytes> {
        let said = self.said.recv().await?;
        let outcome = match &said {
            Said::Printed(_) => None,
            Said::Value(_) => Some("value"),
            Said::Problem(_) => Some("problem"),
        };
        if let (Some(outcome), Some(used)) = (outcome, &mut self.used) {
            used.outcome = outcome;
        }
        let mut line = serde_json::to_vec(&said).unwrap_or_default();
        line.push(b'\n');
        Some(line.into())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(mut used) = self.used.take() {
            used.took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.events.emit(&used);
        }
    }
}

pub(super) async fn cancel(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Done>, ApiError> {
    let fresh = deps.shutdown.child_token();
    let running = {
        let mut consoles = deps.consoles.lock();
        let open = consoles.get_mut(&id).ok_or_else(|| ApiError::not_found("there is no such console"))?;
        std::mem::replace(&mut open.cancel, fresh)
    };
    running.cancel();
    Ok(Json(Done { message: "what it evaluates is told to stop".to_owned() }))
}

pub(super) async fn close(State(deps): State<AdminDeps>, Path(id): Path<String>) -> Result<Json<Done>, ApiError> {
    let open = deps.consoles.lock().remove(&id).ok_or_else(|| ApiError::not_found("there is no such console"))?;
    open.cancel.cancel();
    Ok(Json(Done { message: format!("console {id} of generation {} ends", open.generation) }))
}
