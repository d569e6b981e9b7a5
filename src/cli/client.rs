use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::{CliError, Global};

/// Talks to a machine's HTTP API.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub fn new(global: &Global) -> Result<Self, CliError> {
        // One provider for the process; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|cause| CliError::internal(format!("no HTTP client: {cause}")))?;
        let base = global.url.trim_end_matches('/').to_owned();
        Ok(Self { http, base, token: global.token.clone().filter(|token| !token.is_empty()) })
    }

    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        let response = self.send(self.request(Method::GET, path).timeout(Duration::from_secs(30))).await?;
        read(response).await
    }

    /// The answer whatever its status.
    pub async fn get_any(&self, path: &str) -> Result<(StatusCode, Value), CliError> {
        let request = self.request(Method::GET, path).timeout(Duration::from_secs(30));
        let response = request.send().await.map_err(|cause| self.unreachable(&cause))?;
        let status = response.status();
        let body = response.json().await.map_err(|cause| CliError::internal(format!("{path}: {cause}")))?;
        Ok((status, body))
    }

    pub async fn post(&self, path: &str, body: Option<(String, &'static str)>) -> Result<Value, CliError> {
        let mut request = self.request(Method::POST, path).timeout(Duration::from_secs(300));
        if let Some((body, content_type)) = body {
            request = request.header("content-type", content_type).body(body);
        }
        read(self.send(request).await?).await
    }

    /// The answer as it comes, however long that takes.
    pub async fn post_streamed(
        &self,
        path: &str,
        text: String,
    ) -> Result<impl Stream<Item = reqwest::Result<Bytes>> + Unpin + use<>, CliError> {
        let request = self.request(Method::POST, path).header("content-type", "text/plain").body(text);
        Ok(self.send(request).await?.bytes_stream().boxed())
    }

    /// Waits for the answer as long as it takes.
    pub async fn post_patiently(&self, path: &str) -> Result<Value, CliError> {
        read(self.send(self.request(Method::POST, path)).await?).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, CliError> {
        read(self.send(self.request(Method::DELETE, path).timeout(Duration::from_secs(30))).await?).await
    }

    /// Hands on an answer as it comes.
    pub async fn copy(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), CliError> {
        let mut body = self.send(self.request(Method::GET, path)).await?.bytes_stream();
        let mut pending = Vec::new();
        while let Some(chunk) = body.next().await {
            pending
                .extend_from_slice(&chunk.map_err(|cause| CliError::failed(format!("the answer broke off: {cause}")))?);
            if let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') {
                let lines: Vec<u8> = pending.drain(..=end).collect();
                each(&String::from_utf8_lossy(&lines));
            }
        }
        Ok(())
    }

    /// Follows a stream of server-sent events from `after`, again when it breaks, until `each` says that it is enough.
    pub async fn follow(
        &self,
        path: &str,
        mut after: Option<u64>,
        mut each: impl FnMut(&str, Value) -> bool,
    ) -> Result<(), CliError> {
        let mut failures = 0;
        loop {
            let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
            if let Some(after) = after {
                request = request.header("last-event-id", after.to_string());
            }
            let response = match self.send(request).await {
                Ok(response) => response,
                // A machine that restarts is back in a moment; one that never answered is not there.
                Err(error) if after.is_none() || failures >= 20 => return Err(error),
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    continue;
                }
            };
            failures = 0;
            let mut body = response.bytes_stream();
            let mut pending = Vec::new();
            let mut event = String::new();
            while let Some(Ok(chunk)) = body.next().await {
                pending.extend_from_slice(&chunk);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line);
                    let line = line.trim_end();
                    if let Some(name) = line.strip_prefix("event:") {
                        name.trim().clone_into(&mut event);
                    } else if let Some(id) = line.strip_prefix("id:") {
                        after = id.trim().parse().ok().or(after);
                    } else if let Some(data) = line.strip_prefix("data:") {
                        let value = serde_json::from_str(data.trim()).unwrap_or(Value::Null);
                        if each(&event, value) {
                            return Ok(());
                        }
                        event.clear();
                    }
                }
            }
            after = after.or(Some(0));
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        // Whoever runs in a trace, as a program of a job does, goes on in it.
        for (variable, header) in [("TRACEPARENT", "traceparent"), ("TRACESTATE", "tracestate")] {
            let given = std::env::var(variable).ok().and_then(|value| HeaderValue::from_str(&value).ok());
            if let Some(value) = given {
                request = request.header(header, value);
            }
        }
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|cause| self.unreachable(&cause))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn unreachable(&self, cause: &reqwest::Error) -> CliError {
        if cause.is_builder() {
            return CliError::usage(format!("{:?} is no address; write http://HOST:PORT", self.base));
        }
        let mut deepest: &dyn std::error::Error = cause;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        CliError::unreachable(format!(
            "no machine answers at {}: {deepest}\n = help: start one with `machinist run DIR`, or name another with --url \
             or MACHINIST_URL",
            self.base
        ))
    }
}

async fn read(response: Response) -> Result<Value, CliError> {
    response.json().await.map_err(|cause| CliError::internal(format!("the answer is no JSON: {cause}")))
}

async fn refusal(response: Response) -> CliError {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or(Value::Null);
    let error = &body["error"];
    let mut message = error["message"].as_str().map_or_else(|| format!("the machine answered {status}"), str::to_owned);
    if let Some(help) = error["help"].as_str() {
        message = format!("{message}\n = help: {help}");
    }
    if status.is_server_error() { CliError::failed(message) } else { CliError::refused(message) }
}

/// A part of a path, with everything escaped that means something in one.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
