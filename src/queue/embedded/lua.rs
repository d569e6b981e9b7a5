use std::cell::RefCell;
use std::ops::Bound;
use std::rc::Rc;

use mlua::{Function, Lua, MultiValue, Value};
use sha1::{Digest, Sha1};

use super::data::{Data, Text};
use crate::base::Timestamp;
use crate::queue::store::{FUNCTIONS, Reply};

/// Runs the queue's functions on [`Data`], as Redis runs them on its own.
pub(super) struct Functions {
    lua: Lua,
    run: Function,
    pub data: Rc<RefCell<Data>>,
}

/// What the functions expect around them, and what Redis does when it calls one.
const HOST: &str = "
return function(name, ...)
  enter('')
  local f = F[name] or reads[name]
  if not f then error('no function ' .. name) end
  return f({...})
end";

impl Functions {
    pub fn load(data: Data) -> mlua::Result<Self> {
        let lua = Lua::new();
        let data = Rc::new(RefCell::new(data));
        let redis = lua.create_table()?;
        let shared = Rc::clone(&data);
        redis.set("call", lua.create_function(move |lua, arguments: MultiValue| command(lua, &shared, &arguments))?)?;
        let sha1hex = |_: &Lua, text: mlua::LuaString| {
            Ok(Sha1::digest(text.as_bytes()).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")))
        };
        redis.set("sha1hex", lua.create_function(sha1hex)?)?;
        lua.globals().set("redis", redis)?;
        let run: Function = lua.load(format!("{FUNCTIONS}{HOST}")).set_name("=queue.lua").eval()?;
        Ok(Self { lua, run, data })
    }

    /// Runs one function. An error leaves the data as they were.
    pub fn call(&self, name: &str, arguments: &[String]) -> Result<Reply, String> {
        let mut values = MultiValue::with_capacity(arguments.len() + 1);
        let lua = &self.lua;
        let outcome = (|| {
            values.push_back(Value::String(lua.create_string(name)?));
            for argument in arguments {
                values.push_back(Value::String(lua.create_string(argument)?));
            }
            reply(self.run.call::<Value>(values)?)
        })();
        if outcome.is_err() {
            self.data.borrow_mut().undo_call();
        }
        outcome.map_err(|cause: mlua::Error| cause.to_string())
    }
}

/// Like Redis: false is nil, numbers lose their fraction, a table ends at its first nil.
fn reply(value: Value) -> mlua::Result<Reply> {
    Ok(match value {
        Value::Nil | Value::Boolean(false) => Reply::Nil,
        Value::Boolean(true) => Reply::Int(1),
        Value::Integer(number) => Reply::Int(number),
        #[expect(clippy::cast_possible_truncation, reason = "what Redis does")]
        Value::Number(number) => Reply::Int(number as i64),
        Value::String(text) => Reply::Text(text.to_str()?.to_owned()),
        Value::Table(table) => {
            let mut items = Vec::new();
            for item in table.sequence_values::<Value>() {
                items.push(reply(item?)?);
            }
            Reply::List(items)
        }
        other => return Err(mlua::Error::runtime(format!("a function answered with a {}", other.type_name()))),
    })
}

type Arguments = Vec<Text>;

fn text_of(value: &Value) -> mlua::Result<Text> {
    Ok(match value {
        Value::String(text) => Text::from(&*text.to_str()?),
        Value::Integer(number) => number.to_string().into(),
        // As Redis writes them: %.17g, which for whole numbers of this size has no exponent.
        Value::Number(number) if number.fract() == 0.0 => format!("{number:.0}").into(),
        Value::Number(number) => number.to_string().into(),
        other => return Err(mlua::Error::runtime(format!("a command was given a {}", other.type_name()))),
    })
}

fn command(lua: &Lua, data: &RefCell<Data>, arguments: &MultiValue) -> mlua::Result<Value> {
    let mut words = Vec::with_capacity(arguments.len());
    for argument in arguments {
        words.push(text_of(argument)?);
    }
    let mut data = data.borrow_mut();
    let name = Text::clone(words.first().ok_or_else(|| wrong("", "no command"))?);
    run(lua, &mut data, &name, words.split_off(1))
}

fn wrong(name: &str, why: &str) -> mlua::Error {
    mlua::Error::runtime(format!("{name}: {why}"))
}

/// The commands that the functions use. Each does what Redis documents, as far as they use it.
fn run(lua: &Lua, data: &mut Data, name: &str, words: Arguments) -> mlua::Result<Value> {
    let word = |at: usize| words.get(at).ok_or_else(|| wrong(name, "too few arguments"));
    let int = |at: usize| -> mlua::Result<i64> {
        word(at)?.parse().map_err(|_| wrong(name, &format!("{:?} is no whole number", words[at])))
    };
    let number = |at: usize| -> mlua::Result<f64> {
        word(at)?.parse().map_err(|_| wrong(name, &format!("{:?} is no number", words[at])))
    };
    let text = |value: &Text| -> mlua::Result<Value> { Ok(Value::String(lua.create_string(value.as_bytes())?)) };
    let optional = |value: Option<&Text>| -> mlua::Result<Value> { value.map_or(Ok(Value::Boolean(false)), text) };
    let truth = |value: bool| Ok(Value::Integer(i64::from(value)));
    let count = |value: usize| Ok(Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
    let list = |items: Vec<Value>| -> mlua::Result<Value> { Ok(Value::Table(lua.create_sequence_from(items)?)) };
    let score_text = |score: f64| -> mlua::Result<Value> {
        let shown = if score.fract() == 0.0 { format!("{score:.0}") } else { score.to_string() };
        Ok(Value::String(lua.create_string(shown)?))
    };
    let with_scores = |found: Vec<(Text, f64)>, scores: bool| -> mlua::Result<Value> {
        let mut items = Vec::with_capacity(found.len() * 2);
        for (member, score) in &found {
            items.push(text(member)?);
            if scores {
                items.push(score_text(*score)?);
            }
        }
        list(items)
    };
    match name {
        "TIME" => {
            let now = data.clock.unwrap_or_else(|| Timestamp::now().as_millis());
            let parts = [(now / 1000).to_string(), (now % 1000 * 1000).to_string()];
            list(parts.into_iter().map(|part| text(&part.into())).collect::<mlua::Result<_>>()?)
        }
        "PUBLISH" => {
            data.published.push((Text::clone(word(0)?), Text::clone(word(1)?)));
            // Whoever works with this queue listens.
            truth(true)
        }
        "GET" => optional(data.text(word(0)?)),
        "GETRANGE" => {
            let (from, to) = (usize::try_from(int(1)?).unwrap_or(0), int(2)?);
            let most = usize::try_from(to.saturating_add(1)).unwrap_or(0).saturating_sub(from);
            let value = data.text(word(0)?).map_or(&[][..], |text| text.as_bytes());
            let part: Vec<u8> = value.iter().skip(from).take(most).copied().collect();
            Ok(Value::String(lua.create_string(part)?))
        }
        "MGET" => list(words.iter().map(|key| optional(data.text(key))).collect::<mlua::Result<_>>()?),
        "SET" => {
            if words.get(2).is_some_and(|word| &**word == "NX") && data.exists(word(0)?) {
                return Ok(Value::Boolean(false));
            }
            // What ends by itself is for others to see, who cannot look in here.
            if words.get(2).is_none_or(|word| &**word != "PX") {
                data.set_text(word(0)?, Text::clone(word(1)?));
            }
            let ok = lua.create_table()?;
            ok.set("ok", "OK")?;
            Ok(Value::Table(ok))
        }
        "INCR" | "DECR" | "INCRBY" | "DECRBY" => {
            let by = if words.len() > 1 { int(1)? } else { 1 };
            let by = if name.starts_with("DECR") { -by } else { by };
            let current = data.text(word(0)?).map_or(Ok(0), |text| text.parse::<i64>());
            let current = current.map_err(|_| wrong(name, "the value is no whole number"))?;
            data.set_text(word(0)?, (current + by).to_string().into());
            Ok(Value::Integer(current + by))
        }
        "EXISTS" => count(words.iter().filter(|key| data.exists(key)).count()),
        "DEL" | "UNLINK" => {
            let mut n = 0;
            for key in &words {
                n += usize::from(data.delete(key));
            }
            count(n)
        }
        "HGET" => optional(data.hash(word(0)?).and_then(|hash| hash.get(word(1).ok()?))),
        "HEXISTS" => truth(data.hash(word(0)?).is_some_and(|hash| words.get(1).is_some_and(|w| hash.contains_key(w)))),
        "HMGET" => {
            let hash = data.hash(word(0)?);
            let values = words[1..].iter().map(|field| optional(hash.and_then(|hash| hash.get(field))));
            list(values.collect::<mlua::Result<_>>()?)
        }
        "HSET" => {
            let mut n = 0;
            for pair in words[1..].chunks(2) {
                let [field, value] = pair else { return Err(wrong(name, "a field has no value")) };
                n += usize::from(data.hash_set(&words[0], field, Text::clone(value)));
            }
            count(n)
        }
        "HDEL" => {
            let mut n = 0;
            for field in &words[1..] {
                n += usize::from(data.hash_remove(&words[0], field));
            }
            count(n)
        }
        "HINCRBY" => {
            let current = data.hash(word(0)?).and_then(|hash| hash.get(word(1).ok()?));
            let current = current.map_or(Ok(0), |text| text.parse::<i64>());
            let next = current.map_err(|_| wrong(name, "the value is no whole number"))? + int(2)?;
            data.hash_set(&words[0], &words[1], next.to_string().into());
            Ok(Value::Integer(next))
        }
        "HLEN" => count(data.hash(word(0)?).map_or(0, std::collections::BTreeMap::len)),
        "HKEYS" => {
            let keys = data.hash(word(0)?).into_iter().flat_map(|hash| hash.keys());
            list(keys.map(text).collect::<mlua::Result<_>>()?)
        }
        "HSCAN" => {
            // Redis' cursors are opaque; here it is the last field of the page before.
            let from = word(1)?;
            let after = if &**from == "0" { Bound::Unbounded } else { Bound::Excluded(Text::clone(from)) };
            let most = usize::try_from(int(3)?).unwrap_or(0).max(1);
            let Some(hash) = data.hash(word(0)?) else { return list(vec![text(&"0".into())?, list(Vec::new())?]) };
            let mut rest = hash.range((after, Bound::Unbounded));
            let page: Vec<(&Text, &Text)> = rest.by_ref().take(most).collect();
            let next = rest.next().and(page.last()).map_or_else(|| "0".into(), |(field, _)| Text::clone(field));
            let items = page.iter().flat_map(|(field, value)| [text(field), text(value)]);
            list(vec![text(&next)?, list(items.collect::<mlua::Result<_>>()?)?])
        }
        "HGETALL" => {
            let all = data.hash(word(0)?).into_iter().flatten();
            list(all.flat_map(|(field, value)| [text(field), text(value)]).collect::<mlua::Result<_>>()?)
        }
        "SADD" => {
            let mut n = 0;
            for member in &words[1..] {
                n += usize::from(data.set_add(&words[0], member));
            }
            count(n)
        }
        "SREM" => {
            let mut n = 0;
            for member in &words[1..] {
                n += usize::from(data.set_remove(&words[0], member));
            }
            count(n)
        }
        "SCARD" => count(data.set(word(0)?).map_or(0, std::collections::BTreeSet::len)),
        "SMEMBERS" => list(data.set(word(0)?).into_iter().flatten().map(text).collect::<mlua::Result<_>>()?),
        "SRANDMEMBER" => {
            let most = usize::try_from(int(1)?).unwrap_or(0);
            list(data.set(word(0)?).into_iter().flatten().take(most).map(text).collect::<mlua::Result<_>>()?)
        }
        "SISMEMBER" => truth(data.set(word(0)?).is_some_and(|set| words.get(1).is_some_and(|word| set.contains(word)))),
        "SMISMEMBER" => {
            let set = data.set(word(0)?);
            let found = words[1..].iter().map(|member| set.is_some_and(|set| set.contains(member)));
            list(found.map(|found| Value::Integer(i64::from(found))).collect())
        }
        "SINTER" => {
            let (Some(one), Some(two)) = (data.set(word(0)?), data.set(word(1)?)) else { return list(Vec::new()) };
            list(one.intersection(two).map(text).collect::<mlua::Result<_>>()?)
        }
        "ZADD" => {
            let mut n = 0;
            for at in (1..words.len()).step_by(2) {
                n += usize::from(data.sorted_add(&words[0], word(at + 1)?, number(at)?));
            }
            count(n)
        }
        "ZREM" => {
            let mut n = 0;
            for member in &words[1..] {
                n += usize::from(data.sorted_remove(&words[0], member));
            }
            count(n)
        }
        "ZREMRANGEBYRANK" => {
            let from = usize::try_from(int(1)?).unwrap_or(0);
            let most = usize::try_from(int(2)?.saturating_add(1)).unwrap_or(0).saturating_sub(from);
            let found = data.sorted_iter(word(0)?, false).skip(from).take(most);
            let members: Vec<Text> = found.map(|(member, _)| Text::clone(member)).collect();
            for member in &members {
                data.sorted_remove(&words[0], member);
            }
            count(members.len())
        }
        "ZSCORE" => data.score(word(0)?, word(1)?).map_or(Ok(Value::Boolean(false)), score_text),
        "ZMSCORE" => {
            let scores = words[1..].iter().map(|member| data.score(&words[0], member));
            list(scores.map(|s| s.map_or(Ok(Value::Boolean(false)), score_text)).collect::<mlua::Result<_>>()?)
        }
        // Of a sorted set and a set, with the scores of the first.
        "ZINTERSTORE" => {
            let (Some(set), sorted) = (data.set(word(3)?), word(2)?) else { return count(0) };
            let found = set.iter().filter_map(|member| Some((Text::clone(member), data.score(sorted, member)?)));
            let found: Vec<(Text, f64)> = found.collect();
            for (member, score) in &found {
                data.sorted_add(&words[0], member, *score);
            }
            count(found.len())
        }
        "ZCARD" => count(data.sorted_len(word(0)?)),
        "ZRANGE" | "ZREVRANGE" => {
            let (from, to) = (usize::try_from(int(1)?).unwrap_or(0), int(2)?);
            let items = data.sorted_iter(word(0)?, name == "ZREVRANGE").skip(from);
            let most = usize::try_from(to.saturating_add(1)).unwrap_or(0).saturating_sub(from);
            let items = items.take(most).map(|(member, score)| (Text::clone(member), score));
            with_scores(items.collect(), words.len() > 3)
        }
        "ZRANGEBYSCORE" => {
            let open = word(1)?.starts_with('(');
            let bound = |text: &str| text.trim_start_matches('(').replace("+inf", "inf").parse::<f64>();
            let least = bound(word(1)?).map_err(|_| wrong(name, "no number"))?;
            let most = bound(word(2)?).map_err(|_| wrong(name, "no number"))?;
            let scores = words.iter().any(|word| &**word == "WITHSCORES");
            let limit = words.iter().position(|word| &**word == "LIMIT");
            let limit = limit.map_or(Ok(i64::MAX), |at| int(at + 2))?;
            let items = data.sorted_between(word(0)?, (least, open), most);
            let items = items.take(usize::try_from(limit).unwrap_or(usize::MAX));
            with_scores(items.map(|(member, score)| (Text::clone(member), score)).collect(), scores)
        }
        "RPUSH" => {
            let mut n = 0;
            for item in &words[1..] {
                n = data.list_push(&words[0], Text::clone(item));
            }
            count(n)
        }
        "LPOP" => {
            let item = data.list_pop(word(0)?);
            optional(item.as_ref())
        }
        "LTRIM" => {
            // Only to the last so many.
            let keep = usize::try_from(-int(1)?).unwrap_or(0);
            while data.list(word(0)?).is_some_and(|items| items.len() > keep) {
                data.list_pop(word(0)?);
            }
            truth(true)
        }
        "LLEN" => count(data.list(word(0)?).map_or(0, std::collections::VecDeque::len)),
        "LINDEX" => {
            let at = usize::try_from(int(1)?).unwrap_or(usize::MAX);
            optional(data.list(word(0)?).and_then(|items| items.get(at)))
        }
        "LRANGE" => {
            let (from, to) = (usize::try_from(int(1)?).unwrap_or(0), int(2)?);
            let most = usize::try_from(to.saturating_add(1)).unwrap_or(0).saturating_sub(from);
            let items = data.list(word(0)?).into_iter().flatten().skip(from).take(most);
            list(items.map(text).collect::<mlua::Result<_>>()?)
        }
        other => Err(wrong(other, "the embedded queue does not know this command")),
    }
}

/// Names that the functions use, so that a missing one is found by a test and not by a user.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_functions_is_known() {
        let pattern = regex::Regex::new(r"call\('([A-Z]+)'").unwrap();
        let lua = Lua::new();
        let mut names = std::collections::BTreeSet::new();
        for found in pattern.captures_iter(FUNCTIONS) {
            names.insert(found[1].to_owned());
        }
        assert!(names.len() > 20);
        for name in &names {
            let words: Arguments = ["k", "1", "2", "3"].map(Text::from).to_vec();
            if let Err(cause) = run(&lua, &mut Data::default(), name, words) {
                assert!(!cause.to_string().contains("does not know"), "{cause}");
            }
        }
    }
}
