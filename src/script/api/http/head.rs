//! What a request carries beside its address and body: headers, credentials, and the way that it takes.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use rhai::EvalAltResult;

use crate::host::http::ClientOptions;
use crate::script::call::{ScriptResult, error};
use crate::script::options::{Options, Word};
use crate::script::prelude::*;
use crate::script::types::{Mask, Secret};
use crate::telemetry::Trace;

/// Of a certificate file.
const MAX_CA: u64 = 1024 * 1024;

pub(in crate::script) struct Head {
    pub headers: HeaderMap,
    pub way: ClientOptions,
    /// What the request carries.
    pub mask: Mask,
}

impl Head {
    /// Takes `headers`, `auth`, `proxy` and `ca`.
    pub fn read(options: &mut Options) -> ScriptResult<Self> {
        let what = options.what();
        let (mut headers, mut mask) = (HeaderMap::new(), Mask::default());
        for (name, value) in options.map("headers")?.unwrap_or_default() {
            let (name, value) = header(what, &name, &value, &mut mask)?;
            headers.append(name, value);
        }
        if let Some(auth) = options.map("auth")? {
            headers.insert(AUTHORIZATION, authorization(auth, &mut mask)?);
        }
        let proxy = options.word("proxy")?;
        proxy.iter().filter_map(Word::secret).for_each(|secret| mask.add(secret.clone()));
        let ca = options.text("ca")?.map(|path| certificates(what, &path)).transpose()?;
        let way = ClientOptions { proxy: proxy.map(|word| word.text().to_owned()), ca };
        Ok(Self { headers, way, mask })
    }
}

/// Carries the trace on, unless the script does so itself.
pub(in crate::script) fn add_trace(headers: &mut HeaderMap, trace: &Trace) {
    if headers.contains_key("traceparent") {
        return;
    }
    headers.remove("tracestate");
    for (name, value) in trace.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

fn header(what: &str, name: &str, value: &Dynamic, mask: &mut Mask) -> ScriptResult<(HeaderName, HeaderValue)> {
    let wrong = |why: &str| error(format!("{what}: the header {name:?} {why}"));
    let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("has no valid name"))?;
    let word = Word::read(value).ok_or_else(|| wrong("must be a text, a number or a secret"))?;
    let mut text = HeaderValue::from_str(word.text()).map_err(|_| wrong("has a value that no header can have"))?;
    if let Some(secret) = word.secret() {
        text.set_sensitive(true);
        mask.add(secret.clone());
        // `Bearer KEY`: a server that sends the key back may leave the scheme out.
        if let Some((_, rest)) = secret.reveal().split_once(' ') {
            mask.add(Secret::new(rest));
        }
    }
    Ok((key, text))
}

fn authorization(auth: Map, mask: &mut Mask) -> ScriptResult<HeaderValue> {
    let mut auth = Options::new("auth", auth);
    let bearer = auth.word("bearer")?;
    let (user, password) = (auth.word("user")?, auth.word("password")?);
    let text = match (&bearer, &user) {
        (Some(token), None) => format!("Bearer {}", token.text()),
        (None, Some(user)) => {
            let password = password.as_ref().map(Word::text).unwrap_or_default();
            format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{password}", user.text())))
        }
        _ => return Err(error("auth: write #{ bearer: .. } or #{ user: .., password: .. }")),
    };
    auth.finish()?;
    [bearer, user, password].iter().flatten().filter_map(Word::secret).for_each(|secret| mask.add(secret.clone()));
    // What was sent, too, for servers that send it back.
    mask.add(Secret::new(text.split_once(' ').map_or("", |(_, rest)| rest)));
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| error("auth: it has characters that no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(what: &str, path: &str) -> ScriptResult<Vec<u8>> {
    let failed = |why: &dyn std::fmt::Display| -> Box<EvalAltResult> { error(format!("{what}: ca: {path}: {why}")) };
    // Certificates are no secrets and lie where the system keeps them, outside of what scripts may read.
    let metadata = std::fs::metadata(path).map_err(|cause| failed(&cause))?;
    if !metadata.is_file() || metadata.len() > MAX_CA {
        return Err(failed(&"it is no file of certificates"));
    }
    std::fs::read(path).map_err(|cause| failed(&cause))
}
