//! A Redis in memory, of the commands that scripts have methods for; a test answers the others.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use redis::Value;
use rhai::{Array, Dynamic};

use super::told::map;
use super::world::{answer, elapsed, error_kind, record, unmocked, with};
use crate::queue::FailureClass;
use crate::script::call::ScriptResult;
use crate::script::types::{HostError, shown_redis};

#[derive(Default)]
pub(super) struct FakeRedis {
    keys: BTreeMap<Vec<u8>, (Kept, Option<Duration>)>,
    entries: u64,
}

enum Kept {
    Text(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    List(VecDeque<Vec<u8>>),
    /// The number of its entries.
    Stream(u64),
}

/// What is no error of the network.
enum Refused {
    Unknown,
    Error(&'static str),
}

const WRONG_TYPE: Refused = Refused::Error("WRONGTYPE: the key holds another kind of value");

pub(in crate::script) fn redis(words: &[Vec<u8>]) -> ScriptResult<Dynamic> {
    let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
    let name = words.first().map(text).unwrap_or_default().to_ascii_uppercase();
    let shown: Array = words.iter().map(|word| text(word).into()).collect();
    let request = map([("command", name.clone().into()), ("words", shown.into())]);
    record("redis", request.clone());
    if let Some(given) = answer("redis", None, &[&name], request, false)? {
        return match error_kind(&given).as_deref() {
            None => Ok(given),
            Some("timeout") => {
                Err(HostError::new("timeout", FailureClass::Retryable, "redis: no answer in time").into())
            }
            Some("denied") => Err(HostError::new("denied", FailureClass::Account, "redis: NOAUTH").into()),
            Some(_) => Err(HostError::new("connect", FailureClass::Retryable, "redis: there is no connection").into()),
        };
    }
    let now = elapsed();
    match with(|world| world.redis.command(&name, &words[1..], now)) {
        Ok(value) => shown_redis(value),
        Err(Refused::Unknown) => {
            Err(unmocked(&format!("the Redis command {name}"), &format!("mock::redis({name:?}, |request| ..)")))
        }
        Err(Refused::Error(why)) => Err(HostError::new("refused", FailureClass::Fatal, format!("redis: {why}")).into()),
    }
}

impl FakeRedis {
    fn command(&mut self, name: &str, words: &[Vec<u8>], now: Duration) -> Result<Value, Refused> {
        self.keys.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        let Some((key, rest)) = words.split_first() else { return Err(Refused::Unknown) };
        let number = |word: Option<&Vec<u8>>| -> Result<i64, Refused> {
            let text = word.and_then(|word| std::str::from_utf8(word).ok());
            text.and_then(|text| text.parse().ok()).ok_or(Refused::Error("ERR value is not an integer"))
        };
        let until = |millis: i64| now + Duration::from_millis(millis.unsigned_abs());
        let bulk = |bytes: Option<Vec<u8>>| bytes.map_or(Value::Nil, Value::BulkString);
        Ok(match name {
            "GET" => match self.keys.get(key) {
                None => Value::Nil,
                Some((Kept::Text(text), _)) => Value::BulkString(text.clone()),
                Some(_) => return Err(WRONG_TYPE),
            },
            "SET" => {
                let option = |name: &[u8]| rest.iter().skip(1).position(|word| word.eq_ignore_ascii_case(name));
                if option(b"NX").is_some() && self.keys.contains_key(key) {
                    return Ok(Value::Nil);
                }
                let ttl = option(b"PX").map(|at| number(rest.get(at + 2))).transpose()?;
                let value = rest.first().cloned().unwrap_or_default();
                self.keys.insert(key.clone(), (Kept::Text(value), ttl.map(until)));
                Value::Okay
            }
            "DEL" => Value::Int(i64::from(self.keys.remove(key).is_some())),
            "EXISTS" => Value::Int(i64::from(self.keys.contains_key(key))),
            "INCRBY" => {
                let by = number(rest.first())?;
                let (old, kept) = match self.keys.get(key) {
                    None => (0, None),
                    Some((Kept::Text(text), kept)) => (number(Some(text))?, *kept),
                    Some(_) => return Err(WRONG_TYPE),
                };
                let new = old.checked_add(by).ok_or(Refused::Error("ERR increment would overflow"))?;
                self.keys.insert(key.clone(), (Kept::Text(new.to_string().into_bytes()), kept));
                Value::Int(new)
            }
            "PEXPIRE" => {
                let at = until(number(rest.first())?);
                Value::Int(i64::from(self.keys.get_mut(key).map(|(_, until)| *until = Some(at)).is_some()))
            }
            "HGET" => bulk(self.hash(key)?.get(rest.first().unwrap_or(key)).cloned()),
            "HSET" => {
                let hash = self.hash(key)?;
                let before = hash.len();
                hash.extend(rest.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
                Value::Int(i64::try_from(hash.len() - before).unwrap_or(i64::MAX))
            }
            "HGETALL" => {
                let pairs = self.hash(key)?.iter();
                Value::Map(pairs.map(|(k, v)| (Value::BulkString(k.clone()), Value::BulkString(v.clone()))).collect())
            }
            "LPUSH" => {
                let list = self.list(key)?;
                for value in rest {
                    list.push_front(value.clone());
                }
                Value::Int(i64::try_from(list.len()).unwrap_or(i64::MAX))
            }
            "RPOP" => bulk(self.list(key)?.pop_back()),
            "PUBLISH" => Value::Int(0),
            "XADD" => {
                let kept = self.keys.entry(key.clone()).or_insert((Kept::Stream(0), None));
                let Kept::Stream(length) = &mut kept.0 else { return Err(WRONG_TYPE) };
                *length += 1;
                self.entries += 1;
                Value::BulkString(format!("{}-{}", now.as_millis(), self.entries).into_bytes())
            }
            _ => return Err(Refused::Unknown),
        })
    }

    fn hash(&mut self, key: &[u8]) -> Result<&mut BTreeMap<Vec<u8>, Vec<u8>>, Refused> {
        match self.keys.entry(key.to_vec()).or_insert_with(|| (Kept::Hash(BTreeMap::new()), None)) {
            (Kept::Hash(hash), _) => Ok(hash),
            _ => Err(WRONG_TYPE),
        }
    }

    fn list(&mut self, key: &[u8]) -> Result<&mut VecDeque<Vec<u8>>, Refused> {
        match self.keys.entry(key.to_vec()).or_insert_with(|| (Kept::List(VecDeque::new()), None)) {
            (Kept::List(list), _) => Ok(list),
            _ => Err(WRONG_TYPE),
        }
    }
}
