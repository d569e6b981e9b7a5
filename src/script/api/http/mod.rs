//! `http::`: requests to the outside. The work is done in `host::http`; here a script's options become a request, and what
//! came of it a response or an error that knows what it means for the job.

mod body;
mod exchange;
mod head;
mod retry;

use reqwest::Method;

pub(in crate::script) use head::{Head, add_trace};

use crate::script::call::{Call, ScriptResult, error};
use crate::script::prelude::*;
use crate::script::types::{PendingRequest, Response};
use exchange::Exchange;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Requests. `options` of all of them:
///
/// | option | what | default |
/// |---|---|---|
/// | `headers` | map of texts, numbers and secrets; without a `traceparent` among them that of the job's trace is sent | |
/// | `query` | map, added to the address; an array gives a name several times | |
/// | `json` | the body: data as JSON | |
/// | `form` | the body: map of texts and numbers | |
/// | `multipart` | the body: parts, see the guide | |
/// | `body` | the body: a text or a blob | |
/// | `auth` | `#{ bearer: .. }` or `#{ user: .., password: .. }`, texts or secrets | none |
/// | `secrets` | `json` and `form` may hold secrets, which are sent as they are; else they are an error | false |
/// | `timeout` | of one try, up to the head of the answer | 10 min |
/// | `idle` | the longest silence while the body comes | 60 s |
/// | `max_body` | of the answer's body; `save` takes as much as comes unless this is given | 64 MiB |
/// | `retry` | tries after the first, or `#{ max, on, unsafe, initial, longest, patience }`, see the guide | 2 |
/// | `follow` | redirects that are followed | 10 |
/// | `allow` | statuses from 400 on that are given back instead of thrown: an array, or `"all"` | `[]` |
/// | `proxy` | an address, or `"none"` | as `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` say |
/// | `ca` | a file of certificates in PEM that are trusted beside the system's | |
#[export_module]
mod functions {
    /// Gets `url`. Throws a `HostError` when there is no answer or its status is 400 or above.
    #[rhai_fn(return_raw)]
    pub fn get(url: &str) -> ScriptResult<Response> {
        perform("http::get", Method::GET, url, Map::new())
    }

    /// As `get(url)`, with options.
    #[rhai_fn(name = "get", return_raw)]
    pub fn get_with(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::get", Method::GET, url, options)
    }

    /// Asks for the head of `url` only.
    #[rhai_fn(return_raw)]
    pub fn head(url: &str) -> ScriptResult<Response> {
        perform("http::head", Method::HEAD, url, Map::new())
    }

    /// As `head(url)`, with options.
    #[rhai_fn(name = "head", return_raw)]
    pub fn head_with(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::head", Method::HEAD, url, options)
    }

    /// Posts to `url`: `http::post(url, #{ json: #{ prompt: "..." } })`. Not repeated, except where nothing was sent or
    /// the server asks for it; see `retry`.
    #[rhai_fn(return_raw)]
    pub fn post(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::post", Method::POST, url, options)
    }

    /// Puts to `url`.
    #[rhai_fn(return_raw)]
    pub fn put(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::put", Method::PUT, url, options)
    }

    /// Patches `url`. Not repeated, as `post`.
    #[rhai_fn(return_raw)]
    pub fn patch(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::patch", Method::PATCH, url, options)
    }

    /// Deletes `url`.
    #[rhai_fn(return_raw)]
    pub fn delete(url: &str) -> ScriptResult<Response> {
        perform("http::delete", Method::DELETE, url, Map::new())
    }

    /// As `delete(url)`, with options.
    #[rhai_fn(name = "delete", return_raw)]
    pub fn delete_with(url: &str, options: Map) -> ScriptResult<Response> {
        perform("http::delete", Method::DELETE, url, options)
    }

    /// Any request. Beside the other options:
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `url` | the address | required |
    /// | `method` | of the request | `"GET"` |
    #[rhai_fn(return_raw)]
    pub fn request(options: Map) -> ScriptResult<Response> {
        let (method, url, options) = addressed("http::request", options)?;
        perform("http::request", method, &url, options)
    }

    /// Begins a request and gives back at once a handle on it, with `done()`, `wait()`, `wait("1s")` and `abort()`: for
    /// servers that answer when all is done and are asked for progress meanwhile. Beside the other options:
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `url` | the address | required |
    /// | `method` | of the request | `"GET"` |
    #[rhai_fn(return_raw)]
    pub fn start(options: Map) -> ScriptResult<PendingRequest> {
        let (method, url, options) = addressed("http::start", options)?;
        let call = Call::current()?;
        let exchange = Exchange::read("http::start", &call, method, &url, options)?;
        if call.is_made_up() {
            return Ok(PendingRequest::ended(exchange.run_mocked(&call)?));
        }
        Ok(PendingRequest::start(&call, exchange.run()))
    }
}

fn addressed(what: &'static str, mut options: Map) -> ScriptResult<(Method, String, Map)> {
    let mut text = |key: &str| options.remove(key).and_then(|value| value.into_string().ok());
    let method = text("method").unwrap_or_else(|| "GET".to_owned());
    let url = text("url").ok_or_else(|| error(format!("{what}: url is missing, or no text")))?;
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
        .map_err(|_| error(format!("{what}: {method:?} is no method")))?;
    Ok((method, url, options))
}

fn perform(what: &'static str, method: Method, url: &str, options: Map) -> ScriptResult<Response> {
    let call = Call::current()?;
    let exchange = Exchange::read(what, &call, method, url, options)?;
    Ok(if call.is_made_up() { exchange.run_mocked(&call)? } else { call.wait(exchange.run())? }?)
}
