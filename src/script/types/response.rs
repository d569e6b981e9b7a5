//! `Response`: the answer to a request. Its body is read when somebody wants it: into a blob, into a file, or event by
//! event while it comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use rhai::{EvalAltResult, FnPtr};
use serde_json::Value;

use super::parts::{Pattern, each_part};
use super::{Blob, BlobWriter, HostError};
use crate::base::Timestamp;
use crate::host::http::{SseParser, next_chunk, retry_after};
use crate::script::api::{decode_base64, writable};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::Options;
use crate::script::part_file::PartFile;
use crate::script::prelude::*;

/// A line of a stream of lines.
const MAX_LINE: usize = 8 * 1024 * 1024;

#[derive(Clone)]
pub(in crate::script) struct Response(Arc<Shared>);

struct Shared {
    /// `GET http://host/path`, for errors.
    what: String,
    url: String,
    status: u16,
    headers: HeaderMap,
    limits: BodyLimits,
    body: Mutex<Body>,
    last_event_id: Mutex<String>,
}

#[derive(Clone, Copy)]
pub(in crate::script) struct BodyLimits {
    /// The longest silence.
    pub idle: Duration,
    /// Of what is read as a whole.
    pub max: u64,
    /// Of what goes to a file; as much as comes where nothing is said.
    pub max_saved: Option<u64>,
}

enum Body {
    Coming(reqwest::Response),
    Read(Blob),
    Parsed(Blob, Arc<Value>),
    /// Saved, or handed out piece by piece.
    Gone,
}

impl Response {
    pub fn new(what: String, url: String, response: reqwest::Response, limits: BodyLimits) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = Mutex::new(Body::Coming(response));
        Self(Arc::new(Shared { what, url, status, headers, limits, body, last_event_id: Mutex::default() }))
    }

    fn take_body(&self) -> Body {
        std::mem::replace(&mut *self.0.body.lock().unwrap_or_else(PoisonError::into_inner), Body::Gone)
    }

    fn put_body(&self, body: Body) {
        *self.0.body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    fn gone(&self) -> Box<EvalAltResult> {
        error(format!("{}: the body was handed out already; call blob() first to use it twice", self.0.what))
    }

    fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> =
            self.0.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        if values.is_empty() { None } else { Some(values.join(", ")) }
    }

    fn too_large(&self, max: u64) -> HostError {
        let size = bytesize::ByteSize(max);
        HostError::limit(format!("{}: the body has more than {size}", self.0.what))
    }

    fn announced(&self) -> Option<u64> {
        self.0.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// All of the body.
    fn load(&self, call: &Call) -> ScriptResult<Blob> {
        let mut response = match self.take_body() {
            Body::Coming(response) => response,
            Body::Read(blob) => {
                self.put_body(Body::Read(blob.clone()));
                return Ok(blob);
            }
            Body::Parsed(blob, value) => {
                self.put_body(Body::Parsed(blob.clone(), value));
                return Ok(blob);
            }
            Body::Gone => return Err(self.gone()),
        };
        let BodyLimits { idle, max, .. } = self.0.limits;
        if self.announced().is_some_and(|length| length > max) {
            return Err(self.too_large(max).into());
        }
        let mut writer = BlobWriter::new(call.scratch_dir());
        call.wait(async {
            while let Some(chunk) = next_chunk(&mut response, idle, &self.0.what).await.map_err(HostError::from)? {
                if writer.written() + chunk.len() as u64 > max {
                    return Err(self.too_large(max).into());
                }
                writer.write(&chunk).map_err(|cause| error(format!("{}: {cause}", self.0.what)))?;
            }
            Ok::<_, Box<EvalAltResult>>(())
        })??;
        let content_type = self.0.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let blob = writer.finish(content_type).map_err(|cause| error(format!("{}: {cause}", self.0.what)))?;
        self.put_body(Body::Read(blob.clone()));
        Ok(blob)
    }

    fn bad_json(&self, cause: &serde_json::Error) -> HostError {
        let message = format!("{}: the body is no JSON: {cause}", self.0.what);
        HostError {
            status: Some(self.0.status),
            ..HostError::new("data", crate::queue::FailureClass::Retryable, message)
        }
    }

    /// The body as JSON, parsed once.
    fn parsed(&self, call: &Call) -> ScriptResult<Arc<Value>> {
        match self.take_body() {
            Body::Parsed(blob, value) => {
                self.put_body(Body::Parsed(blob, Arc::clone(&value)));
                return Ok(value);
            }
            other => self.put_body(other),
        }
        let blob = self.load(call)?;
        let bytes = blob.bytes(u64::MAX).map_err(|cause| error(cause.to_string()))?;
        let value: Arc<Value> = Arc::new(serde_json::from_slice(&bytes).map_err(|cause| self.bad_json(&cause))?);
        self.put_body(Body::Parsed(blob, Arc::clone(&value)));
        Ok(value)
    }

    fn at(&self, call: &Call, pointer: &str) -> ScriptResult<(Arc<Value>, String)> {
        let value = self.parsed(call)?;
        if value.pointer(pointer).is_none() {
            return Err(error(format!("{}: the body has nothing at {pointer:?}", self.0.what)));
        }
        Ok((value, pointer.to_owned()))
    }

    /// Hands the pieces of the body to `take` while they come, until it says that it has enough. Whether the body came
    /// to its end.
    fn each_piece(&self, call: &Call, mut take: impl FnMut(&[u8]) -> ScriptResult<bool>) -> ScriptResult<bool> {
        let mut response = match self.take_body() {
            Body::Coming(response) => response,
            Body::Read(blob) | Body::Parsed(blob, _) => {
                self.put_body(Body::Read(blob.clone()));
                return take(&blob.bytes(u64::MAX).map_err(|cause| error(cause.to_string()))?);
            }
            Body::Gone => return Err(self.gone()),
        };
        let idle = self.0.limits.idle;
        loop {
            let chunk = call.wait(next_chunk(&mut response, idle, &self.0.what))?;
            match chunk.map_err(HostError::from)? {
                Some(chunk) if take(&chunk)? => {}
                Some(_) => return Ok(false),
                None => return Ok(true),
            }
        }
    }

    /// The lines of the body, blank ones left out.
    fn lines(&self, mut take: impl FnMut(&str) -> ScriptResult<bool>) -> ScriptResult<bool> {
        let call = Call::current()?;
        let mut rest: Vec<u8> = Vec::new();
        let whole = self.each_piece(&call, |piece| {
            let mut piece = piece;
            while let Some(end) = memchr::memchr(b'\n', piece) {
                rest.extend_from_slice(&piece[..end]);
                piece = &piece[end + 1..];
                let line = std::mem::take(&mut rest);
                if !line.trim_ascii().is_empty() && !take(String::from_utf8_lossy(&line).trim_end())? {
                    return Ok(false);
                }
            }
            rest.extend_from_slice(piece);
            if rest.len() > MAX_LINE {
                return Err(HostError::limit(format!("{}: a line has more than {MAX_LINE} bytes", self.0.what)).into());
            }
            Ok(true)
        })?;
        if whole && !rest.trim_ascii().is_empty() {
            return take(String::from_utf8_lossy(&rest).trim_end());
        }
        Ok(whole)
    }

    fn save(&self, path: &str, options: Map) -> ScriptResult<i64> {
        let call = Call::current()?;
        let mut options = Options::new("resp.save", options);
        let max = options.size("max")?.or(self.0.limits.max_saved).unwrap_or(u64::MAX);
        let wanted = options.text("sha256")?;
        options.finish()?;
        if self.announced().is_some_and(|length| length > max) {
            return Err(self.too_large(max).into());
        }
        let mut file = PartFile::create(writable(path)?)?;
        self.each_piece(&call, |piece| {
            if file.written() + piece.len() as u64 > max {
                return Err(self.too_large(max).into());
            }
            file.write(piece)?;
            Ok(true)
        })?;
        file.finish(&self.0.what, wanted.as_deref())
    }
}

/// Whether to go on: a callback ends a stream by returning false.
fn goes_on(context: &NativeCallContext<'_>, callback: &FnPtr, argument: Dynamic) -> ScriptResult<bool> {
    let answer = callback.call_within_context::<Dynamic>(context, (argument,))?;
    Ok(answer.as_bool() != Ok(false))
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The answer to a request. The body is read when it is asked for.
#[export_module]
mod functions {
    pub type Response = super::Response;

    /// The status, such as 200.
    #[rhai_fn(get = "status", pure)]
    pub fn response_status(response: &mut Response) -> i64 {
        i64::from(response.0.status)
    }

    /// Whether the status is one of 200 to 299.
    #[rhai_fn(get = "ok", pure)]
    pub fn response_ok(response: &mut Response) -> bool {
        (200..300).contains(&response.0.status)
    }

    /// Where the answer came from, after redirects, without login and query.
    #[rhai_fn(get = "url", pure)]
    pub fn response_url(response: &mut Response) -> String {
        response.0.url.clone()
    }

    /// All headers: their names in small letters, several of one name joined by commas.
    #[rhai_fn(get = "headers", pure)]
    pub fn response_headers(response: &mut Response) -> Map {
        let names = response.0.headers.keys();
        names.map(|name| (name.as_str().into(), response.header(name.as_str()).unwrap_or_default().into())).collect()
    }

    /// One header, whatever the letters of its name; `()` where it is not there.
    #[rhai_fn(name = "header", pure)]
    pub fn response_header(response: &mut Response, name: &str) -> Dynamic {
        response.header(name).map_or(Dynamic::UNIT, Into::into)
    }

    /// How long the server asks to wait, in seconds, by `retry-after-ms` or `retry-after`, be it seconds or a date; `()` where it
    /// does not.
    #[rhai_fn(get = "retry_after", pure)]
    pub fn response_retry_after(response: &mut Response) -> Dynamic {
        let now = Call::with_current(|call| call.map_or_else(Timestamp::now, Call::timestamp));
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now.as_millis());
        retry_after(&response.0.headers, now).map_or(Dynamic::UNIT, |wait| wait.as_secs_f64().into())
    }

    /// The body as a text, with what is no UTF-8 replaced. At most `max_body` of the request, and 8 MiB.
    #[rhai_fn(name = "text", return_raw, pure)]
    pub fn response_text(response: &mut Response) -> ScriptResult<String> {
        let blob = response.load(&Call::current()?)?;
        let bytes = blob.bytes(MAX_LINE as u64);
        let bytes = bytes.map_err(|cause| error(format!("{}: text(): {cause}; use blob()", response.0.what)))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The body as data. At most `max_body` of the request; texts in it have at most 8 MiB together: take larger parts
    /// with `blob_at`. Fails with kind `"data"` where it is no JSON.
    #[rhai_fn(name = "json", return_raw, pure)]
    pub fn response_json(response: &mut Response) -> ScriptResult<Dynamic> {
        let blob = response.load(&Call::current()?)?;
        let bytes = blob.bytes(u64::MAX).map_err(|cause| error(cause.to_string()))?;
        Ok(serde_json::from_slice(&bytes).map_err(|cause| response.bad_json(&cause))?)
    }

    /// A part of the body's JSON, by its JSON pointer (`"/data/0/url"`).
    #[rhai_fn(name = "json_at", return_raw, pure)]
    pub fn response_json_at(response: &mut Response, pointer: &str) -> ScriptResult<Dynamic> {
        let (value, pointer) = response.at(&Call::current()?, pointer)?;
        rhai::serde::to_dynamic(value.pointer(&pointer))
    }

    /// Calls `callback(value)` for each part of the body's JSON that a JSON pointer means in which `*` stands for any key or index
    /// (`"/data/*/id"`), in their order, until it returns false; gives back whether it came to the end. Only these parts become
    /// values, so that the body may have more than a script's values may.
    #[rhai_fn(name = "each_at", return_raw, pure)]
    pub fn response_each_at(
        context: NativeCallContext,
        response: &mut Response,
        pointer: &str,
        callback: FnPtr,
    ) -> ScriptResult<bool> {
        let pattern = Pattern::new(pointer).map_err(|why| error(format!("{}: {why}", response.0.what)))?;
        let blob = response.load(&Call::current()?)?;
        let bytes = blob.bytes(u64::MAX).map_err(|cause| error(cause.to_string()))?;
        each_part(&bytes, &pattern, |part| goes_on(&context, &callback, part))
            .map_err(|cause| response.bad_json(&cause))?
    }

    /// The bytes of a base64 text inside the body's JSON, by its JSON pointer (`"/images/0"`), however large.
    #[rhai_fn(name = "blob_at", return_raw, pure)]
    pub fn response_blob_at(response: &mut Response, pointer: &str) -> ScriptResult<Blob> {
        let (value, pointer) = response.at(&Call::current()?, pointer)?;
        let text = value.pointer(&pointer).and_then(Value::as_str);
        let text = text.ok_or_else(|| error(format!("{}: at {pointer:?} is no text", response.0.what)))?;
        decode_base64(text).map_err(|why| error(format!("{}: at {pointer:?}: {why}", response.0.what)))
    }

    /// The body as a blob, of at most `max_body` of the request (64 MiB); more than 1 MiB of it lies in a file.
    #[rhai_fn(name = "blob", return_raw, pure)]
    pub fn response_blob(response: &mut Response) -> ScriptResult<Blob> {
        response.load(&Call::current()?)
    }

    /// Writes the body to `path` in the job's work directory while it comes; gives back how many bytes it had. As much
    /// as comes, unless the request says `max_body`. The file is there when it is whole.
    #[rhai_fn(name = "save", return_raw, pure)]
    pub fn response_save(response: &mut Response, path: &str) -> ScriptResult<i64> {
        response.save(path, Map::new())
    }

    /// As `save(path)`, with `max` (a size) and `sha256` (hexadecimal digits), which the body is checked against.
    #[rhai_fn(name = "save", return_raw, pure)]
    pub fn response_save_checked(response: &mut Response, path: &str, options: Map) -> ScriptResult<i64> {
        response.save(path, options)
    }

    /// Calls `callback(#{ event, data, id })` for each server-sent event while they come, until it returns false or the
    /// stream ends. Gives back whether the stream ended by itself. Fails with kind `"timeout"` when nothing comes for
    /// `idle` of the request, and with kind `"connect"` when the connection breaks.
    #[rhai_fn(name = "each_event", return_raw, pure)]
    pub fn response_each_event(
        context: NativeCallContext,
        response: &mut Response,
        callback: FnPtr,
    ) -> ScriptResult<bool> {
        let mut parser = SseParser::default();
        response.each_piece(&Call::current()?, |piece| {
            let events = parser.push(piece);
            for event in events.map_err(|why| HostError::limit(format!("{}: {why}", response.0.what)))? {
                event.id.clone_into(&mut response.0.last_event_id.lock().unwrap_or_else(PoisonError::into_inner));
                let fields = [("event", event.event), ("data", event.data), ("id", event.id)];
                let map: Map = fields.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
                if !goes_on(&context, &callback, map.into())? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// The id of the last event, for the header `last-event-id` of a request that goes on after it.
    #[rhai_fn(get = "last_event_id", pure)]
    pub fn response_last_event_id(response: &mut Response) -> String {
        response.0.last_event_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `callback(line)` for each line that is not blank while they come, until it returns false; otherwise as
    /// `each_event`.
    #[rhai_fn(name = "each_line", return_raw, pure)]
    pub fn response_each_line(
        context: NativeCallContext,
        response: &mut Response,
        callback: FnPtr,
    ) -> ScriptResult<bool> {
        response.lines(|line| goes_on(&context, &callback, line.to_owned().into()))
    }

    /// Calls `callback(value)` for each line of JSON (NDJSON) while they come, until it returns false; otherwise as
    /// `each_event`.
    #[rhai_fn(name = "each_json", return_raw, pure)]
    pub fn response_each_json(
        context: NativeCallContext,
        response: &mut Response,
        callback: FnPtr,
    ) -> ScriptResult<bool> {
        response.lines(|line| {
            let value: Dynamic = serde_json::from_str(line).map_err(|cause| response.bad_json(&cause))?;
            goes_on(&context, &callback, value)
        })
    }

    /// As `Response(200)`.
    #[rhai_fn(name = "to_string", pure)]
    pub fn response_to_string(response: &mut Response) -> String {
        format!("Response({})", response.0.status)
    }
}
