//! Websockets, as a test plays their server.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhai::{Array, Dynamic, FnPtr, Map};

use super::told::map;
use super::world::{answer, call_back, error_kind, expect, left, no_answer, record, sleep, unmocked, wait_for_ever};
use crate::host::http::{HttpError, HttpErrorKind};
use crate::host::ws::{End, Event, Filter, Frame, WsRequest};
use crate::script::api::text_of;
use crate::script::call::{Call, ScriptResult};
use crate::script::data::kind_of;
use crate::script::options::duration;
use crate::script::types::Blob;

/// What comes of the server, in its order.
enum Coming {
    Frame(Frame),
    After(Duration),
    Closed(End),
}

/// A connection whose server is a test.
pub(in crate::script) struct MockedSocket {
    url: String,
    filter: Option<Filter>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    coming: VecDeque<Coming>,
    ended: Option<End>,
}

/// Opens a connection; with a filter it is one that is made again when it breaks.
pub(in crate::script) fn connect(
    _call: &Call,
    request: &WsRequest,
    filter: Option<Filter>,
) -> ScriptResult<Result<MockedSocket, HttpError>> {
    // The address was `ws://` before it was one of HTTP.
    let url = request.url.as_str().replacen("http", "ws", 1);
    let headers = request.headers.iter();
    let headers: Map = headers
        .map(|(name, value)| (name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into_owned().into()))
        .collect();
    let asked = map([("action", "connect".into()), ("url", url.clone().into()), ("headers", headers.into())]);
    record("ws", asked.clone());
    let plain = url.split(['?', '#']).next().unwrap_or(&url).to_owned();
    let Some(given) = answer("ws", None, &[&url, &plain, plain.trim_end_matches('/')], asked, true)? else {
        return Err(unmocked(&format!("the websocket {plain}"), &format!("mock::ws({plain:?}, [\"a frame\"])")));
    };
    if let Some(kind) = error_kind(&given) {
        let (kind, why) = match kind.as_str() {
            "timeout" => {
                sleep(request.options.timeout)?;
                (HttpErrorKind::Timeout, "no answer in time")
            }
            _ => (HttpErrorKind::Connect, "there is no connection"),
        };
        return Ok(Err(HttpError::new(kind, format!("{url}: {why}"))));
    }
    let mut frames = given.clone();
    if let Some(map) = given.read_lock::<Map>() {
        frames = map.get("frames").cloned().unwrap_or_else(|| Array::new().into());
        if let Some(reply) = map.get("reply") {
            // What replies is found by the address, for no script value may lie in a socket.
            expect("ws reply", None, &url, reply.clone());
        }
    }
    let coming = script(&url, &frames)?;
    Ok(Ok(MockedSocket { url, filter, state: Mutex::new(State { coming: coming.into(), ended: None }) }))
}

fn script(url: &str, frames: &Dynamic) -> ScriptResult<Vec<Coming>> {
    if frames.is_unit() {
        return Ok(Vec::new());
    }
    let Some(frames) = frames.read_lock::<Array>() else {
        let kind = kind_of(frames);
        return Err(no_answer(&format!("websocket {url}"), &format!("gives a {kind}; write an array of frames")));
    };
    frames.iter().map(|frame| coming(url, frame)).collect()
}

fn coming(url: &str, frame: &Dynamic) -> ScriptResult<Coming> {
    if let Some(blob) = frame.read_lock::<Blob>() {
        let bytes = blob.bytes(u64::MAX).map_err(|cause| no_answer(url, &cause.to_string()))?;
        return Ok(Coming::Frame(Frame::Blob(bytes)));
    }
    if let Some(map) = frame.read_lock::<Map>() {
        if let Some(time) = map.get("mock_wait") {
            return duration(time).map(Coming::After).map_err(|why| no_answer(url, &format!("waits wrongly: {why}")));
        }
        if let Some(code) = map.get("mock_close") {
            let code = code.as_int().ok().and_then(|code| u16::try_from(code).ok()).unwrap_or(1000);
            let reason = map.get("reason").map(ToString::to_string).unwrap_or_default();
            return Ok(Coming::Closed(End { code, reason }));
        }
        if map.contains_key("mock_drop") {
            return Ok(Coming::Closed(End { code: 1006, reason: "the connection broke".to_owned() }));
        }
    }
    Ok(Coming::Frame(Frame::text(text_of(frame)?)))
}

impl MockedSocket {
    pub fn send(&self, frame: &Frame) -> ScriptResult<Result<(), HttpError>> {
        if self.lock().ended.is_some() {
            let message = format!("{}: the connection is closed", self.url);
            return Ok(Err(HttpError::new(HttpErrorKind::Connect, message)));
        }
        let message: Dynamic = match frame {
            Frame::Text(text) => text.as_str().into(),
            Frame::Blob(bytes) => Dynamic::from(Blob::new(bytes.clone(), None)),
        };
        record("ws", map([("action", "send".into()), ("url", self.url.clone().into()), ("message", message.clone())]));
        let replies = super::world::reply("ws reply", &self.url);
        if let Some(function) = replies.and_then(Dynamic::try_cast::<FnPtr>) {
            let frames = call_back(&function, vec![message])?;
            let more = script(&self.url, &frames)?;
            self.lock().coming.extend(more);
        }
        Ok(Ok(()))
    }

    pub fn close(&self) {
        record("ws", map([("action", "close".into()), ("url", self.url.clone().into())]));
        self.lock().ended = Some(End { code: 1000, reason: String::new() });
    }

    /// The next message, or the end; none where `limit` is over first.
    pub fn next(&self, limit: Option<Duration>) -> ScriptResult<Option<Result<Frame, End>>> {
        let until = limit.unwrap_or_else(left);
        let mut waited = Duration::ZERO;
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.coming.pop_front();
                match (next, &state.ended) {
                    (None, Some(end)) => return Ok(Some(Err(end.clone()))),
                    (next, _) => next,
                }
            };
            match next {
                Some(Coming::Frame(frame))
                    if self.filter.as_ref().is_some_and(|filter| !filter.lets_through(&frame)) => {}
                Some(Coming::Frame(frame)) => return Ok(Some(Ok(frame))),
                Some(Coming::After(time)) if waited + time > until => {
                    let left = until.saturating_sub(waited);
                    self.lock().coming.push_front(Coming::After(time.saturating_sub(left)));
                    sleep(left)?;
                    return Ok(None);
                }
                Some(Coming::After(time)) => {
                    sleep(time)?;
                    waited += time;
                }
                Some(Coming::Closed(end)) => {
                    // A shared connection is made again.
                    if self.filter.is_none() {
                        self.lock().ended = Some(end.clone());
                    }
                    return Ok(Some(Err(end)));
                }
                None if limit.is_some() => {
                    sleep(until.saturating_sub(waited))?;
                    return Ok(None);
                }
                None => return wait_for_ever(),
            }
        }
    }

    /// As `next`, of a shared connection.
    pub fn next_event(&self, limit: Option<Duration>) -> ScriptResult<Option<Event>> {
        Ok(self.next(limit)?.map(|next| next.map_or(Event::Reconnected, Event::Frame)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
