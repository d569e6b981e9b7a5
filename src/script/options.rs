//! The map of options that a primitive takes: each is taken by name and type, and what is left over is an error.

use std::time::Duration;

use rhai::{Array, Dynamic, Map};

use super::call::{ScriptResult, error};
use super::data::kind_of;
use super::types::Secret;
use crate::base::{ByteSize, did_you_mean, parse_duration};

pub(super) struct Options {
    what: &'static str,
    map: Map,
    known: Vec<&'static str>,
}

/// A text that may have come as a secret.
#[derive(Clone)]
pub(super) enum Word {
    Open(String),
    Hidden(Secret),
}

impl Word {
    pub fn text(&self) -> &str {
        match self {
            Self::Open(text) => text,
            Self::Hidden(secret) => secret.reveal(),
        }
    }

    pub fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Open(_) => None,
            Self::Hidden(secret) => Some(secret),
        }
    }

    pub fn read(value: &Dynamic) -> Option<Self> {
        if let Some(secret) = value.read_lock::<Secret>() {
            return Some(Self::Hidden(secret.clone()));
        }
        scalar(value).map(Self::Open)
    }
}

/// Texts, numbers and truths as text.
pub(super) fn scalar(value: &Dynamic) -> Option<String> {
    if value.is_string() || value.is_int() || value.is_float() || value.is_bool() || value.is_char() {
        Some(value.to_string())
    } else {
        None
    }
}

impl Options {
    /// `what` is the function's name, for errors.
    pub fn new(what: &'static str, map: Map) -> Self {
        Self { what, map, known: Vec::new() }
    }

    /// The function's name.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// `()` is as good as nothing.
    pub fn take(&mut self, key: &'static str) -> Option<Dynamic> {
        self.known.push(key);
        self.map.remove(key).map(Dynamic::flatten).filter(|value| !value.is_unit())
    }

    fn take_as<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&Dynamic) -> Option<T>,
    ) -> ScriptResult<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, &format!("must be {wanted}, found {}", kind_of(&value)))),
        }
    }

    pub fn text(&mut self, key: &'static str) -> ScriptResult<Option<String>> {
        self.take_as(key, "a text", |value| value.clone().into_string().ok())
    }

    pub fn word(&mut self, key: &'static str) -> ScriptResult<Option<Word>> {
        self.take_as(key, "a text or a secret", Word::read)
    }

    pub fn flag(&mut self, key: &'static str) -> ScriptResult<Option<bool>> {
        self.take_as(key, "true or false", |value| value.as_bool().ok())
    }

    pub fn count(&mut self, key: &'static str) -> ScriptResult<Option<u32>> {
        self.take_as(key, "a number from 0 on", |value| u32::try_from(value.as_int().ok()?).ok())
    }

    pub fn number(&mut self, key: &'static str) -> ScriptResult<Option<f64>> {
        self.take_as(key, "a number", number)
    }

    pub fn fraction(&mut self, key: &'static str) -> ScriptResult<Option<f64>> {
        self.take_as(key, "a number from 0.0 to 1.0", |value| number(value).filter(|n| (0.0..=1.0).contains(n)))
    }

    pub fn map(&mut self, key: &'static str) -> ScriptResult<Option<Map>> {
        self.take_as(key, "a map", |value| value.clone().try_cast::<Map>())
    }

    pub fn array(&mut self, key: &'static str) -> ScriptResult<Option<Array>> {
        self.take_as(key, "an array", |value| value.clone().try_cast::<Array>())
    }

    pub fn duration(&mut self, key: &'static str) -> ScriptResult<Option<Duration>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        duration(&value).map(Some).map_err(|why| self.wrong(key, &why))
    }

    pub fn size(&mut self, key: &'static str) -> ScriptResult<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let size = rhai::serde::from_dynamic::<ByteSize>(&value);
        match size {
            Ok(size) => Ok(Some(size.bytes())),
            Err(_) => Err(self.wrong(key, "must be a number of bytes or a text such as \"10MiB\"")),
        }
    }

    pub fn wrong(&self, key: &str, why: &str) -> Box<rhai::EvalAltResult> {
        error(format!("{}: {key}: {why}", self.what))
    }

    /// # Errors
    /// When there is an option that nobody took.
    pub fn finish(self) -> ScriptResult<()> {
        let Some(unknown) = self.map.keys().next() else { return Ok(()) };
        let meant = did_you_mean(unknown, self.known.iter().copied());
        let hint = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("known are {}", self.known.join(", ")),
        };
        Err(error(format!("{}: there is no option {unknown:?}; {hint}", self.what)))
    }
}

/// A number, whole or not; of a whole one beyond 2^53 its nearest neighbour.
#[expect(clippy::cast_precision_loss, reason = "told above")]
pub(super) fn number(value: &Dynamic) -> Option<f64> {
    value.as_float().ok().or_else(|| value.as_int().ok().map(|whole| whole as f64))
}

/// A number of seconds or a text such as `"200ms"`.
pub(super) fn duration(value: &Dynamic) -> Result<Duration, String> {
    match number(value) {
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds).map_err(|_| "a duration is positive and finite".to_owned())
        }
        None => match value.read_lock::<rhai::ImmutableString>() {
            Some(text) => parse_duration(&text),
            None => Err("must be a number of seconds or a text such as \"10s\"".to_owned()),
        },
    }
}
