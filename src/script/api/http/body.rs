//! The body of a request.

use std::sync::Arc;

use reqwest::Body;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::multipart::{Form, Part};
use rhai::Array;

use super::head::Head;
use crate::host::http::Fill;
use crate::script::api::fs::readable;
use crate::script::call::{ScriptResult, error};
use crate::script::data::{Secrets, secrets_in, to_json};
use crate::script::options::{Options, scalar};
use crate::script::prelude::*;
use crate::script::types::{Blob, Mask, Secret};

/// The body, as a function that puts it into a request.
pub(super) fn fill(what: &'static str, options: &mut Options, head: &mut Head) -> ScriptResult<Option<Fill>> {
    let secrets = if options.flag("secrets")?.unwrap_or(false) { Secrets::Reveal } else { Secrets::Refuse };
    let headers = &mut head.headers;
    let given = ["json", "form", "multipart", "body"].map(|key| (key, options.take(key)));
    let mut given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let Some((key, value)) = given.next() else { return Ok(None) };
    if let Some((other, _)) = given.next() {
        return Err(error(format!("{what}: {key} and {other}: a request has one body")));
    }
    let mut default_type = |text: &'static str| {
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(text));
    };
    let fill: Fill = match key {
        "json" => {
            let json = to_json(&value, secrets).map_err(|why| {
                let why =
                    why.replace("headers, auth or env", "headers or auth, or send it with the option secrets: true");
                error(format!("{what}: json: {why}"))
            })?;
            hide(&mut head.mask, &value, |text| serde_json::Value::from(text).to_string().trim_matches('"').to_owned());
            default_type("application/json");
            let text = bytes::Bytes::from(json.to_string());
            Arc::new(move |builder| builder.body(text.clone()))
        }
        "form" => {
            let map = value.try_cast::<Map>().ok_or_else(|| options.wrong("form", "must be a map"))?;
            let text = |value: &Dynamic| match value.read_lock::<Secret>() {
                Some(secret) if secrets == Secrets::Reveal => Some(secret.reveal().to_owned()),
                _ => scalar(value),
            };
            let pairs: Option<Vec<(String, String)>> =
                map.iter().map(|(name, value)| Some((name.to_string(), text(value)?))).collect();
            let wanted = "its values must be texts or numbers, or secrets with the option secrets: true";
            let pairs = pairs.ok_or_else(|| options.wrong("form", wanted))?;
            hide(&mut head.mask, &Dynamic::from_map(map), |text| {
                reqwest::Url::parse_with_params("http://h/", [("", text)])
                    .ok()
                    .and_then(|url| Some(url.query()?.trim_start_matches('=').to_owned()))
                    .unwrap_or_default()
            });
            Arc::new(move |builder| builder.form(&pairs))
        }
        "multipart" => {
            let parts = parts(what, &value)?;
            Arc::new(move |builder| {
                let form = parts.iter().fold(Form::new(), |form, part| form.part(part.name.clone(), part.build()));
                builder.multipart(form)
            })
        }
        _ => match value.clone().try_cast::<Blob>() {
            Some(blob) => {
                if let Some(text) = blob.content_type().and_then(|text| HeaderValue::from_str(text).ok()) {
                    headers.entry(CONTENT_TYPE).or_insert(text);
                }
                // Its length is known, so it is said instead of sending pieces that not every server takes.
                let length = HeaderValue::from(blob.byte_count());
                headers.insert(reqwest::header::CONTENT_LENGTH, length);
                Arc::new(move |builder| builder.body(Body::wrap_stream(blob.stream())))
            }
            None => {
                let text = value.into_string().map_err(|_| options.wrong("body", "must be a text or a blob"))?;
                let text = bytes::Bytes::from(text);
                Arc::new(move |builder| builder.body(text.clone()))
            }
        },
    };
    Ok(Some(fill))
}

/// Has messages show no secret of a body, be it as it is or as it was sent.
fn hide(mask: &mut Mask, value: &Dynamic, sent: impl Fn(&str) -> String) {
    for secret in secrets_in(value) {
        mask.add(Secret::new(sent(secret.reveal())));
        mask.add(secret);
    }
}

struct FormPart {
    name: String,
    content: PartContent,
    filename: Option<String>,
    content_type: Option<String>,
}

enum PartContent {
    Text(String),
    Blob(Blob),
}

impl FormPart {
    fn build(&self) -> Part {
        let part = match &self.content {
            PartContent::Text(text) => Part::text(text.clone()),
            PartContent::Blob(blob) => Part::stream_with_length(Body::wrap_stream(blob.stream()), blob.byte_count()),
        };
        let part = match &self.filename {
            Some(name) => part.file_name(name.clone()),
            None => part,
        };
        let mut headers = HeaderMap::new();
        if let Some(text) = self.content_type.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(CONTENT_TYPE, text);
        }
        part.headers(headers)
    }
}

/// `#{ name: text | blob | #{ text | blob | path, filename, type } }`, or an array of such maps with `name`.
fn parts(what: &'static str, value: &Dynamic) -> ScriptResult<Vec<FormPart>> {
    if let Some(map) = value.read_lock::<Map>() {
        return map.iter().map(|(name, value)| part(what, name.to_string(), value.clone())).collect();
    }
    let Some(array) = value.read_lock::<Array>() else {
        return Err(error(format!("{what}: multipart: must be a map of parts, or an array of maps with name")));
    };
    let named = |value: &Dynamic| {
        let mut map = value.clone().try_cast::<Map>().unwrap_or_default();
        let name = map.remove("name").and_then(|name| name.into_string().ok());
        let name = name.ok_or_else(|| error(format!("{what}: multipart: each part is a map with name")))?;
        part(what, name, map.into())
    };
    array.iter().map(named).collect()
}

fn part(what: &'static str, name: String, value: Dynamic) -> ScriptResult<FormPart> {
    let wrong = |why: &str| error(format!("{what}: multipart: {name}: {why}"));
    let open = |path: &str| -> ScriptResult<Blob> {
        let place = readable(path)?;
        let opened = place.open().and_then(|file| Blob::of_file(file, None));
        opened.map_err(|cause| wrong(&format!("{}: {cause}", place.shown().display())))
    };
    let (mut content, mut filename, mut content_type) = (value.clone(), None, None);
    if let Some(map) = value.try_cast::<Map>() {
        let mut options = Options::new(what, map);
        (filename, content_type) = (options.text("filename")?, options.text("type")?);
        let path = options.text("path")?;
        let given = options.take("blob").or_else(|| options.take("text"));
        options.finish()?;
        content = match (given, path) {
            (Some(given), None) => given,
            (None, Some(path)) => {
                filename = filename.or_else(|| path.rsplit('/').next().map(str::to_owned));
                Dynamic::from(open(&path)?)
            }
            _ => return Err(wrong("give one of text, blob and path")),
        };
    }
    let content = match content.clone().try_cast::<Blob>() {
        Some(blob) => {
            content_type = content_type
                .or_else(|| blob.content_type().map(str::to_owned))
                .or_else(|| Some("application/octet-stream".to_owned()));
            // Without a name servers take it for a field of text.
            filename = filename.or_else(|| Some(name.clone()));
            PartContent::Blob(blob)
        }
        None => PartContent::Text(scalar(&content).ok_or_else(|| wrong("must be a text, a number or a blob"))?),
    };
    Ok(FormPart { name, content, filename, content_type })
}
