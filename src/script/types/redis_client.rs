//! `RedisClient`: a script's hold on a Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use rhai::Array;

use super::{Blob, HostError};
use crate::host::redis::RedisConnection;
use crate::script::api::text_of;
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::{Options, duration, scalar};
use crate::script::prelude::*;
use crate::script::testing;

/// Of one value that goes there.
const MAX_SENT: u64 = 64 * 1024 * 1024;
/// A longer text is a blob.
const MAX_TEXT: usize = 8 * 1024 * 1024;

#[derive(Clone)]
pub(in crate::script) struct RedisClient(Arc<Shared>);

struct Shared {
    /// None in a test, whose mocks answer.
    connection: Option<RedisConnection>,
    prefix: String,
    timeout: Duration,
}

impl RedisClient {
    /// Without a connection in a test.
    pub fn new(connection: Option<RedisConnection>, prefix: String, timeout: Duration) -> Self {
        Self(Arc::new(Shared { connection, prefix, timeout }))
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.0.prefix).into_bytes()
    }

    fn send(&self, words: &[Vec<u8>]) -> ScriptResult<Dynamic> {
        let call = Call::current()?;
        let Some(connection) = &self.0.connection else { return testing::redis(words) };
        let answer = call.wait(connection.command(words, self.0.timeout))?;
        shown(answer.map_err(HostError::from)?)
    }

    /// `NAME key words`
    fn ask(&self, name: &str, key: &str, words: impl IntoIterator<Item = Vec<u8>>) -> ScriptResult<Dynamic> {
        let begin = [name.as_bytes().to_vec(), self.key(key)];
        self.send(&begin.into_iter().chain(words).collect::<Vec<_>>())
    }
}

/// Texts and numbers as they are written, blobs as their bytes, data as JSON.
fn bytes(value: &Dynamic) -> ScriptResult<Vec<u8>> {
    if let Some(blob) = value.read_lock::<Blob>() {
        return blob.bytes(MAX_SENT).map(Into::into).map_err(|cause| error(format!("redis: {cause}")));
    }
    match scalar(value) {
        Some(text) => Ok(text.into_bytes()),
        None => text_of(value).map(String::into_bytes),
    }
}

fn all_bytes(values: &Array) -> ScriptResult<Vec<Vec<u8>>> {
    values.iter().map(bytes).collect()
}

/// An array's values, or the one value.
fn one_or_all(value: &Dynamic) -> ScriptResult<Vec<Vec<u8>>> {
    match value.read_lock::<Array>() {
        Some(array) => all_bytes(&array),
        None => Ok(vec![bytes(value)?]),
    }
}

fn fields(map: &Map) -> ScriptResult<Vec<Vec<u8>>> {
    let mut words = Vec::with_capacity(map.len() * 2);
    for (name, value) in map {
        words.push(name.as_bytes().to_vec());
        words.push(bytes(value)?);
    }
    Ok(words)
}

fn milliseconds(time: Duration) -> Vec<u8> {
    time.as_millis().max(1).to_string().into_bytes()
}

/// What Redis answers, as a script's values.
pub(in crate::script) fn shown(value: Value) -> ScriptResult<Dynamic> {
    Ok(match value {
        Value::Nil => Dynamic::UNIT,
        Value::Int(number) => number.into(),
        Value::BulkString(bytes) => match String::from_utf8(bytes) {
            Ok(text) if text.len() <= MAX_TEXT => text.into(),
            Ok(text) => Dynamic::from(Blob::new(text.into_bytes(), None)),
            Err(cause) => Dynamic::from(Blob::new(cause.into_bytes(), None)),
        },
        Value::Array(values) | Value::Set(values) => {
            values.into_iter().map(shown).collect::<ScriptResult<Array>>()?.into()
        }
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.into(),
        Value::Okay => "OK".into(),
        Value::Map(pairs) => {
            let entry = |(key, value)| -> ScriptResult<_> { Ok((shown(key)?.to_string().into(), shown(value)?)) };
            pairs.into_iter().map(entry).collect::<ScriptResult<Map>>()?.into()
        }
        Value::Double(number) => number.into(),
        Value::Boolean(truth) => truth.into(),
        Value::BigNumber(digits) => String::from_utf8_lossy(&digits).into_owned().into(),
        Value::Attribute { data, .. } => shown(*data)?,
        other => return Err(error(format!("redis: an answer that scripts cannot hold: {other:?}"))),
    })
}

fn truth(answer: &Dynamic) -> bool {
    answer.as_int().is_ok_and(|number| number != 0) || answer.is_string()
}

fn number(answer: &Dynamic) -> i64 {
    answer.as_int().unwrap_or(0)
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// A Redis, by `redis::connect` or `redis::open`. Values are texts, numbers, blobs, or data, which become JSON; what comes
/// back is a text, or a blob where it is no UTF-8. Whatever fails throws a `HostError`: of kind `"connect"`, `"timeout"` or
/// `"busy"` (retried), `"denied"` (for the account), `"refused"` or `"invalid"` (not retried).
#[export_module]
mod functions {
    pub type RedisClient = super::RedisClient;

    /// The value of `key`; `()` where it has none.
    #[rhai_fn(name = "get", return_raw, pure)]
    pub fn redis_get(client: &mut RedisClient, key: &str) -> ScriptResult<Dynamic> {
        client.ask("GET", key, [])
    }

    /// Sets `key` to `value`.
    #[rhai_fn(name = "set", return_raw, pure)]
    pub fn redis_set(client: &mut RedisClient, key: &str, value: Dynamic) -> ScriptResult<bool> {
        redis_set_with(client, key, value, Map::new())
    }

    /// Sets `key` to `value`; gives back whether it did.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `ttl` | how long it is kept | for ever |
    /// | `only_new` | only where `key` has no value | false |
    #[rhai_fn(name = "set", return_raw, pure)]
    pub fn redis_set_with(client: &mut RedisClient, key: &str, value: Dynamic, options: Map) -> ScriptResult<bool> {
        let mut options = Options::new("redis.set", options);
        let mut words = vec![bytes(&value)?];
        if let Some(ttl) = options.duration("ttl")? {
            words.extend([b"PX".to_vec(), milliseconds(ttl)]);
        }
        if options.flag("only_new")? == Some(true) {
            words.push(b"NX".to_vec());
        }
        options.finish()?;
        Ok(truth(&client.ask("SET", key, words)?))
    }

    /// Deletes `key`; gives back whether it was there.
    #[rhai_fn(name = "del", return_raw, pure)]
    pub fn redis_del(client: &mut RedisClient, key: &str) -> ScriptResult<bool> {
        Ok(truth(&client.ask("DEL", key, [])?))
    }

    /// Adds 1 to `key`, which begins at 0; gives back what it is then.
    #[rhai_fn(name = "incr", return_raw, pure)]
    pub fn redis_incr(client: &mut RedisClient, key: &str) -> ScriptResult<i64> {
        redis_incr_by(client, key, 1)
    }

    /// Adds `by` to `key`, which begins at 0; gives back what it is then.
    #[rhai_fn(name = "incr", return_raw, pure)]
    pub fn redis_incr_by(client: &mut RedisClient, key: &str, by: i64) -> ScriptResult<i64> {
        Ok(number(&client.ask("INCRBY", key, [by.to_string().into_bytes()])?))
    }

    /// Keeps `key` for `ttl` (seconds, or a text such as `"1h"`) more; gives back whether it is there.
    #[rhai_fn(name = "expire", return_raw, pure)]
    pub fn redis_expire(client: &mut RedisClient, key: &str, ttl: Dynamic) -> ScriptResult<bool> {
        let ttl = duration(&ttl).map_err(|why| error(format!("redis.expire: {why}")))?;
        Ok(truth(&client.ask("PEXPIRE", key, [milliseconds(ttl)])?))
    }

    /// The value of `field` in the hash `key`; `()` where it has none.
    #[rhai_fn(name = "hget", return_raw, pure)]
    pub fn redis_hget(client: &mut RedisClient, key: &str, field: &str) -> ScriptResult<Dynamic> {
        client.ask("HGET", key, [field.as_bytes().to_vec()])
    }

    /// Sets `field` in the hash `key`.
    #[rhai_fn(name = "hset", return_raw, pure)]
    pub fn redis_hset(client: &mut RedisClient, key: &str, field: &str, value: Dynamic) -> ScriptResult<()> {
        client.ask("HSET", key, [field.as_bytes().to_vec(), bytes(&value)?]).map(drop)
    }

    /// Sets all fields of `map` in the hash `key`.
    #[rhai_fn(name = "hset", return_raw, pure)]
    pub fn redis_hset_all(client: &mut RedisClient, key: &str, map: Map) -> ScriptResult<()> {
        client.ask("HSET", key, fields(&map)?).map(drop)
    }

    /// All fields of the hash `key`, as a map, which is empty where there is none.
    #[rhai_fn(name = "hgetall", return_raw, pure)]
    pub fn redis_hgetall(client: &mut RedisClient, key: &str) -> ScriptResult<Map> {
        Ok(client.ask("HGETALL", key, [])?.try_cast::<Map>().unwrap_or_default())
    }

    /// Puts a value, or each of an array, at the head of the list `key`; gives back how long it is then.
    #[rhai_fn(name = "lpush", return_raw, pure)]
    pub fn redis_lpush(client: &mut RedisClient, key: &str, value: Dynamic) -> ScriptResult<i64> {
        Ok(number(&client.ask("LPUSH", key, one_or_all(&value)?)?))
    }

    /// Takes the value at the end of the list `key`; `()` where it is empty.
    #[rhai_fn(name = "rpop", return_raw, pure)]
    pub fn redis_rpop(client: &mut RedisClient, key: &str) -> ScriptResult<Dynamic> {
        client.ask("RPOP", key, [])
    }

    /// Tells `message` to whoever listens on `channel`; gives back how many these are.
    #[rhai_fn(name = "publish", return_raw, pure)]
    pub fn redis_publish(client: &mut RedisClient, channel: &str, message: Dynamic) -> ScriptResult<i64> {
        Ok(number(&client.ask("PUBLISH", channel, [bytes(&message)?])?))
    }

    /// Adds an entry to the stream `key`; gives back its id.
    #[rhai_fn(name = "xadd", return_raw, pure)]
    pub fn redis_xadd(client: &mut RedisClient, key: &str, entry: Map) -> ScriptResult<Dynamic> {
        redis_xadd_with(client, key, entry, Map::new())
    }

    /// As `xadd(key, entry)`, with options.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `max` | entries that are kept, about; older ones go | all |
    #[rhai_fn(name = "xadd", return_raw, pure)]
    pub fn redis_xadd_with(client: &mut RedisClient, key: &str, entry: Map, options: Map) -> ScriptResult<Dynamic> {
        let mut options = Options::new("redis.xadd", options);
        let mut words = Vec::new();
        if let Some(max) = options.count("max")? {
            words.extend([b"MAXLEN".to_vec(), b"~".to_vec(), max.to_string().into_bytes()]);
        }
        options.finish()?;
        words.push(b"*".to_vec());
        words.extend(fields(&entry)?);
        client.ask("XADD", key, words)
    }

    /// Runs a Lua script with `KEYS` (the prefix is put before each) and `ARGV`.
    #[rhai_fn(name = "lua", return_raw, pure)]
    pub fn redis_lua(client: &mut RedisClient, script: &str, keys: Array, arguments: Array) -> ScriptResult<Dynamic> {
        let mut words = vec![b"EVAL".to_vec(), script.as_bytes().to_vec(), keys.len().to_string().into_bytes()];
        for key in keys {
            words.push(client.key(&key.into_string().map_err(|_| error("redis.lua: keys are texts"))?));
        }
        words.extend(all_bytes(&arguments)?);
        client.send(&words)
    }

    /// Any command that needs no connection of its own, as an array of words: `redis.command(["ZADD", "scores", 3, "me"])`.
    /// Its keys are taken as they are, without the prefix.
    #[rhai_fn(name = "command", return_raw, pure)]
    pub fn redis_command(client: &mut RedisClient, words: Array) -> ScriptResult<Dynamic> {
        client.send(&all_bytes(&words)?)
    }

    /// As `RedisClient(redis://host)`.
    #[rhai_fn(name = "to_string", pure)]
    pub fn redis_to_string(client: &mut RedisClient) -> String {
        client
            .0
            .connection
            .as_ref()
            .map_or_else(|| "RedisClient".to_owned(), |connection| format!("RedisClient({connection:?})"))
    }
}
