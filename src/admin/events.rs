use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::extract::Query;
use super::server::AdminDeps;
use super::services::{last_event_id, wants_stream};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Only what happened after the event of this number.
    after: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Events {
    events: Vec<Arc<crate::telemetry::Event>>,
    /// Events after the cursor that are kept no longer.
    missed: u64,
}

const PAGE: usize = 1_000;

/// The machine's events after a cursor; with `Accept: text/event-stream` whatever follows too. A reader that comes too
/// late is told how many it missed.
pub(super) async fn events(
    State(deps): State<AdminDeps>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Response {
    let after = last_event_id(&headers).or(query.after).unwrap_or(0);
    let mut reader = deps.events.reader(after);
    if !wants_stream(&headers) {
        let (events, lagged) = reader.take(PAGE);
        return Json(Events { events, missed: lagged.map_or(0, |lagged| lagged.missed) }).into_response();
    }
    let pending: Vec<Event> = Vec::new();
    let events = stream::unfold((deps, reader, pending), async |(deps, mut reader, mut pending)| {
        while pending.is_empty() {
            tokio::select! {
                () = deps.shutdown.cancelled() => return None,
                () = reader.ready() => {}
            }
            let (events, lagged) = reader.take(PAGE);
            let told =
                lagged.map(|lagged| Event::default().event("lagged").data(format!("{{\"missed\":{}}}", lagged.missed)));
            pending = told.into_iter().chain(events.iter().map(to_sse)).rev().collect();
        }
        let event = pending.pop()?;
        Some((Ok::<_, Infallible>(event), (deps, reader, pending)))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

fn to_sse(event: &Arc<crate::telemetry::Event>) -> Event {
    let data = serde_json::to_string(event.as_ref()).unwrap_or_default();
    Event::default().id(event.seq.to_string()).event(&event.kind).data(data)
}
