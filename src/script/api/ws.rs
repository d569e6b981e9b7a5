//! `ws::`: websockets. The work is done in `host::ws`; here a script's options become a connection.

use std::time::Duration;

use reqwest::Url;
use rhai::Array;
use serde_json::Value;

use super::http::{Head, add_trace};
use crate::host::ws::{Filter, Frame, Link, SharedRequest, WsOptions, WsRequest, open};
use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::data::{Secrets, to_json};
use crate::script::options::Options;
use crate::script::prelude::*;
use crate::script::testing;
use crate::script::types::{HostError, Subscription, WebSocket};

const TIMEOUT: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(60);
const MAX_MESSAGE: u64 = 16 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(30);
const QUEUE: u32 = 256;
const MAX_QUEUE: u32 = 10_000;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Websockets. `options` of both functions:
///
/// | option | what | default |
/// |---|---|---|
/// | `headers` | map of texts, numbers and secrets | |
/// | `auth` | `#{ bearer: .. }` or `#{ user: .., password: .. }`, texts or secrets | none |
/// | `subprotocols` | array of names, one of which the server may choose | |
/// | `timeout` | until the connection is open | 10 s |
/// | `ping` | how often a ping goes out | 20 s |
/// | `idle` | the longest silence, answers to pings included; then the connection counts as broken | 60 s |
/// | `max_message` | of what comes | 16 MiB |
/// | `proxy` | an address, or `"none"` | as `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` say |
/// | `ca` | a file of certificates in PEM that are trusted beside the system's | |
#[export_module]
mod functions {
    /// Connects to `url` (`ws://` or `wss://`). Throws a `HostError` when there is no connection.
    #[rhai_fn(return_raw)]
    pub fn connect(url: &str) -> ScriptResult<WebSocket> {
        dial(url, Map::new())
    }

    /// As `connect(url)`, with options.
    #[rhai_fn(name = "connect", return_raw)]
    pub fn connect_with(url: &str, options: Map) -> ScriptResult<WebSocket> {
        dial(url, options)
    }

    /// Subscribes to the one connection that all scripts of the machine have to `url`: who asks for the same address with
    /// the same headers shares it. It is opened by the first, made again when it breaks, and closed when nobody has used it
    /// for `linger`. Throws a `HostError` when it is not open within `timeout`.
    #[rhai_fn(return_raw)]
    pub fn subscribe(url: &str) -> ScriptResult<Subscription> {
        share(url, Map::new())
    }

    /// As `subscribe(url)`, with options: `ws::subscribe(url, #{ filter: #{ "/data/prompt_id": id } })`. Beside those of
    /// `connect`:
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `filter` | map of JSON pointers with the value, or the array of values, that a message must have there | all messages |
    /// | `blobs` | binary messages, too | true |
    /// | `queue` | messages kept that the script has not taken, up to 10,000; then the oldest are dropped | 256 |
    /// | `hello` | a text or data, sent first on every connection | |
    /// | `linger` | how long the connection outlives the last script that uses it | 30 s |
    #[rhai_fn(name = "subscribe", return_raw)]
    pub fn subscribe_with(url: &str, options: Map) -> ScriptResult<Subscription> {
        share(url, options)
    }
}

fn dial(url: &str, options: Map) -> ScriptResult<WebSocket> {
    let call = Call::current()?;
    let mut options = Options::new("ws::connect", options);
    let (head, mut request) = request(url, &mut options)?;
    options.finish()?;
    // A connection that several share is nobody's alone: `subscribe` carries no trace.
    add_trace(&mut request.headers, &call.trace.trace);
    let client = call.client(&head.way).map_err(HostError::from)?;
    if call.is_made_up() {
        return Ok(WebSocket::mocked(testing::connect(&call, &request, None)?.map_err(HostError::from)?, head));
    }
    let socket = call.wait(open(&client, &request))?.map_err(|cause| head.mask.error(cause))?;
    let _runtime = call.runtime().enter();
    Ok(WebSocket::new(Link::start(socket, &request.what(), &request.options), head))
}

fn share(url: &str, options: Map) -> ScriptResult<Subscription> {
    let call = Call::current()?;
    let mut options = Options::new("ws::subscribe", options);
    let (head, request) = request(url, &mut options)?;
    let filter = filter(&mut options)?;
    let queue = options.count("queue")?.unwrap_or(QUEUE).min(MAX_QUEUE) as usize;
    let linger = options.duration("linger")?.unwrap_or(LINGER);
    let hello = options.take("hello").map(|value| text_of(&value)).transpose()?;
    options.finish()?;
    let client = call.client(&head.way).map_err(HostError::from)?;
    let World::Real(deps) = call.world() else {
        let socket = testing::connect(&call, &request, Some(filter))?.map_err(HostError::from)?;
        if let Some(hello) = hello {
            socket.send(&Frame::text(hello))?.map_err(HostError::from)?;
        }
        return Ok(Subscription::mocked(socket, head));
    };
    let limit = request.options.timeout;
    let shared = SharedRequest { request, client, way: head.way.clone(), hello, linger };
    let subscribed = deps.sockets.subscribe(&deps.runtime, shared, filter, queue);
    let subscription = subscribed.map_err(HostError::from)?;
    call.wait(subscription.opened(limit))?.map_err(|cause| head.mask.error(cause))?;
    Ok(Subscription::new(subscription, head))
}

fn request(url: &str, options: &mut Options) -> ScriptResult<(Head, WsRequest)> {
    let what = options.what();
    let url = match url.split_once("://") {
        Some(("ws" | "http", rest)) => Url::parse(&format!("http://{rest}")).ok(),
        Some(("wss" | "https", rest)) => Url::parse(&format!("https://{rest}")).ok(),
        _ => None,
    };
    let url = url.filter(Url::has_host);
    let url = url.ok_or_else(|| error(format!("{what}: the url is no address such as ws://host/path")))?;
    let head = Head::read(options)?;
    let subprotocols = options.array("subprotocols")?.unwrap_or_default();
    let subprotocols = subprotocols.into_iter().map(|name| name.into_string().ok()).collect::<Option<Vec<_>>>();
    let settings = WsOptions {
        subprotocols: subprotocols.ok_or_else(|| options.wrong("subprotocols", "must be an array of texts"))?,
        timeout: options.duration("timeout")?.unwrap_or(TIMEOUT),
        ping: options.duration("ping")?.unwrap_or(PING),
        idle: options.duration("idle")?.unwrap_or(IDLE),
        max_message: options.size("max_message")?.unwrap_or(MAX_MESSAGE),
    };
    if settings.ping.is_zero() || settings.idle.is_zero() {
        return Err(options.wrong("ping, idle", "must be longer than nothing"));
    }
    let headers = head.headers.clone();
    Ok((head, WsRequest { url, headers, options: settings }))
}

fn filter(options: &mut Options) -> ScriptResult<Filter> {
    let blobs = options.flag("blobs")?.unwrap_or(true);
    let mut wanted = Vec::new();
    for (pointer, value) in options.map("filter")?.unwrap_or_default() {
        if !pointer.starts_with('/') {
            return Err(options.wrong("filter", &format!("{pointer:?} is no JSON pointer such as \"/data/id\"")));
        }
        let json = |value: &Dynamic| to_json(value, Secrets::Refuse).map_err(error);
        let values: Vec<Value> = match value.read_lock::<Array>() {
            Some(array) => array.iter().map(json).collect::<ScriptResult<_>>()?,
            None => vec![json(&value)?],
        };
        wanted.push((pointer.to_string(), values));
    }
    Ok(Filter { wanted, blobs })
}

/// A text as it is, data as JSON.
pub(in crate::script) fn text_of(value: &Dynamic) -> ScriptResult<String> {
    match value.read_lock::<ImmutableString>() {
        Some(text) => Ok(text.to_string()),
        None => to_json(value, Secrets::Refuse).map(|json| json.to_string()).map_err(error),
    }
}
