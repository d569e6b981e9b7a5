//! One request, from a script's options to its answer.

use std::time::Duration;

use reqwest::{Client, Method, Url};
use rhai::Array;

use super::body::fill;
use super::head::{Head, add_trace};
use super::retry::retry;
use crate::host::http::{HttpRequest, RetryPolicy, refusal, send, shown};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::{Options, scalar};
use crate::script::prelude::*;
use crate::script::testing;
use crate::script::types::{BodyLimits, HostError, Response};
use crate::telemetry::{Span, SpanKind};

/// As generous as the makers of APIs are themselves.
const TIMEOUT: Duration = Duration::from_secs(600);
const IDLE: Duration = Duration::from_secs(60);
const FOLLOW: u32 = 10;
const MAX_BODY: u64 = 64 * 1024 * 1024;
/// Of an answer's body in the message of an error.
const EXCERPT: usize = 500;

pub(super) struct Exchange {
    client: Client,
    request: HttpRequest,
    limits: BodyLimits,
    allow: Allowed,
    head: Head,
    /// Until the head of the answer is there.
    span: Span,
}

enum Allowed {
    All,
    These(Vec<u16>),
}

impl Exchange {
    pub async fn run(mut self) -> Result<Response, HostError> {
        let what = format!("{} {}", self.request.method, shown(&self.request.url));
        match send(&self.client, &self.request).await {
            Ok(response) => {
                let status = response.status();
                self.span.set("http.response.status_code", i64::from(status.as_u16()));
                if status.is_client_error() || status.is_server_error() {
                    self.span.failed(status.as_str());
                }
                self.judge(what, response).await
            }
            Err(cause) => {
                self.span.failed(cause.kind.as_str());
                Err(self.head.mask.error(cause))
            }
        }
    }

    /// As `run`, in a test, whose mocks answer.
    pub fn run_mocked(self, call: &Call) -> ScriptResult<Result<Response, HostError>> {
        let what = format!("{} {}", self.request.method, shown(&self.request.url));
        match testing::send(call, &self.client, &self.request)? {
            Ok(response) => call.wait(self.judge(what, response)),
            Err(cause) => Ok(Err(self.head.mask.error(cause))),
        }
    }

    async fn judge(self, what: String, response: reqwest::Response) -> Result<Response, HostError> {
        let status = response.status().as_u16();
        let allowed = match &self.allow {
            Allowed::All => true,
            Allowed::These(list) => status < 400 || list.contains(&status),
        };
        if !allowed {
            // Hidden before it is cut: half a secret is one, too.
            let mut cause = self.head.mask.error(refusal(response, &what).await);
            let excerpt: String = cause.body.split_whitespace().collect::<Vec<_>>().join(" ");
            if !excerpt.is_empty() {
                cause.message = format!("{}: {}", cause.message, &excerpt[..excerpt.floor_char_boundary(EXCERPT)]);
            }
            return Err(cause);
        }
        let url = shown(response.url());
        Ok(Response::new(what, url, response, self.limits))
    }

    pub fn read(what: &'static str, call: &Call, method: Method, url: &str, options: Map) -> ScriptResult<Self> {
        let mut url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| error(format!("{what}: the url is no address such as http://host/path")))?;
        let mut options = Options::new(what, options);
        let mut head = Head::read(&mut options)?;
        if let Some(query) = options.map("query")? {
            add_query(what, &mut url, query)?;
        }
        let fill = fill(what, &mut options, &mut head)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        let idle = options.duration("idle")?.unwrap_or(IDLE);
        let max_saved = options.size("max_body")?;
        let follow = options.count("follow")?.unwrap_or(FOLLOW);
        let retry = options.take("retry").map_or_else(|| Ok(RetryPolicy::default()), |value| retry(&value))?;
        let allow = match options.take("allow") {
            None => Allowed::These(Vec::new()),
            Some(value) if value.is_string() && value.to_string() == "all" => Allowed::All,
            Some(value) => Allowed::These(
                statuses(&value)
                    .ok_or_else(|| options.wrong("allow", "must be an array of statuses such as [404], or \"all\""))?,
            ),
        };
        options.finish()?;
        let client = call.client(&head.way).map_err(HostError::from)?;
        let mut headers = head.headers.clone();
        let span = span(call, &method, &url);
        add_trace(&mut headers, span.trace());
        let request = HttpRequest { method, url, headers, fill, timeout, follow, retry, deadline: call.deadline };
        let limits = BodyLimits { idle, max: max_saved.unwrap_or(MAX_BODY), max_saved };
        Ok(Self { client, request, limits, allow, head, span })
    }
}

/// Without path and query, where secrets may be.
fn span(call: &Call, method: &Method, url: &Url) -> Span {
    // Methods are anybody's words.
    let known =
        method.is_safe() || method.is_idempotent() || [Method::POST, Method::PATCH, Method::CONNECT].contains(method);
    let (name, word) = if known { (method.as_str(), method.as_str()) } else { ("HTTP", "_OTHER") };
    let mut span = call.trace.begin(name.to_owned(), SpanKind::Client);
    span.set("http.request.method", word.to_owned());
    span.set("server.address", url.host_str().unwrap_or_default().to_owned());
    span.set("server.port", i64::from(url.port_or_known_default().unwrap_or(0)));
    span
}

fn add_query(what: &str, url: &mut Url, query: Map) -> ScriptResult<()> {
    let wrong = |name: &str| error(format!("{what}: query: {name} must be a text, a number or an array of these"));
    let mut pairs = url.query_pairs_mut();
    for (name, value) in query {
        if value.is_unit() {
            continue;
        }
        let values = match value.read_lock::<Array>() {
            Some(array) => array.clone(),
            None => vec![value.clone()],
        };
        for value in values {
            pairs.append_pair(&name, &scalar(&value).ok_or_else(|| wrong(&name))?);
        }
    }
    Ok(())
}

fn statuses(value: &Dynamic) -> Option<Vec<u16>> {
    let array = value.read_lock::<Array>()?;
    array.iter().map(|value| u16::try_from(value.as_int().ok()?).ok()).collect()
}
