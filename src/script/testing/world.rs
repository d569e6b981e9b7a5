//! What one test made up and what was asked of it, kept in the test's thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhai::{Array, Dynamic, EvalAltResult, FnPtr, Map};
use tokio_util::sync::CancellationToken;

use super::redis::FakeRedis;
use super::suite::Suite;
use crate::base::{Problem, Timestamp};
use crate::host::storage::Storage;
use crate::script::call::{CANCELLED, DEADLINE, ScriptResult, error, terminated};

/// 2026-01-01T00:00:00Z: every test begins then.
const EPOCH: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Ends a test from inside, past every `catch` of its scripts.
pub(in crate::script) const ENDED: &str = "ended";

/// One expectation of a test: what is asked, and what is answered.
struct Mock {
    kind: &'static str,
    /// For `http`: the method; all where nothing is said.
    method: Option<String>,
    pattern: String,
    answer: Dynamic,
    used: usize,
}

/// How a test is over before its end.
#[derive(Clone)]
pub(super) enum Ended {
    Failed { message: String, help: Option<String>, lines: Vec<String> },
    Skipped(String),
}

pub(super) struct World {
    suite: Arc<Suite>,
    began: Instant,
    elapsed: Duration,
    /// Of the hook that runs.
    limits: Vec<Limits>,
    mocks: Vec<Mock>,
    calls: Vec<(&'static str, Map)>,
    pub ended: Option<Ended>,
    pub variables: BTreeMap<String, String>,
    pub services: BTreeMap<String, String>,
    /// None where the test says nothing of them.
    pub gpus: Option<Vec<Map>>,
    pub redis: FakeRedis,
    pub jobs: usize,
    /// Line and column of the assertion that failed.
    pub assertion: Option<(usize, Option<usize>)>,
    /// Where in the script under test it was over.
    pub place: Option<Problem>,
    /// Of hooks that failed, the latest.
    pub failure: Option<String>,
    storages: BTreeMap<String, Storage>,
}

#[derive(Clone)]
pub(super) struct Limits {
    pub deadline: Duration,
    pub cancel_at: Option<Duration>,
    pub cancel: CancellationToken,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new(suite: Arc<Suite>) -> Self {
        Self {
            suite,
            began: Instant::now(),
            elapsed: Duration::ZERO,
            limits: Vec::new(),
            mocks: Vec::new(),
            calls: Vec::new(),
            ended: None,
            variables: BTreeMap::new(),
            services: BTreeMap::new(),
            gpus: None,
            redis: FakeRedis::default(),
            jobs: 0,
            assertion: None,
            place: None,
            failure: None,
            storages: BTreeMap::new(),
        }
    }

    /// Makes a new world, has `work` done in it, and gives it back.
    pub fn around<T>(suite: &Arc<Suite>, work: impl FnOnce() -> T) -> (T, Self) {
        /// A panic leaves no world behind.
        struct Clear;
        impl Drop for Clear {
            fn drop(&mut self) {
                WORLD.with(|world| world.borrow_mut().take());
            }
        }
        let _clear = Clear;
        WORLD.with(|world| *world.borrow_mut() = Some(Self::new(Arc::clone(suite))));
        let value = work();
        let world = WORLD.with(|world| world.borrow_mut().take());
        (value, world.expect("UNWRAP: the world was made above and nothing else takes it"))
    }
}

/// Looks at the world of the current test. Nothing that `look` does may call a script.
pub(super) fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with(|world| {
        let mut world = world.borrow_mut();
        look(world.as_mut().expect("UNWRAP: a call is mocked only inside of World::around"))
    })
}

pub(super) fn suite() -> Arc<Suite> {
    with(|world| Arc::clone(&world.suite))
}

pub(in crate::script) fn now() -> Instant {
    with(|world| world.began + world.elapsed)
}

pub(super) fn elapsed() -> Duration {
    with(|world| world.elapsed)
}

pub(in crate::script) fn timestamp() -> Timestamp {
    EPOCH.plus(elapsed())
}

pub(in crate::script) fn left() -> Duration {
    const WITHOUT_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
    with(|world| world.limits.last().map_or(WITHOUT_LIMIT, |limits| limits.deadline.saturating_sub(world.elapsed)))
}

/// Moves the clock; what would have ended the hook on the way ends it.
pub(in crate::script) fn sleep(duration: Duration) -> ScriptResult<()> {
    let over = with(|world| {
        let target = world.elapsed.saturating_add(duration);
        let limits = world.limits.last().cloned();
        let cancelled = limits.as_ref().and_then(|limits| limits.cancel_at).filter(|at| *at <= target);
        let late = limits.as_ref().map(|limits| limits.deadline).filter(|at| *at <= target);
        match (cancelled, late) {
            (Some(at), late) if late.is_none_or(|late| at <= late) => {
                world.elapsed = world.elapsed.max(at);
                if let Some(limits) = limits {
                    limits.cancel.cancel();
                }
                Some(CANCELLED)
            }
            (_, Some(at)) => {
                world.elapsed = world.elapsed.max(at);
                Some(DEADLINE)
            }
            _ => {
                world.elapsed = target;
                None
            }
        }
    });
    over.map_or(Ok(()), |why| Err(terminated(why)))
}

/// What nothing will ever come of: waits as long as the hook may run.
pub(super) fn wait_for_ever<T>() -> ScriptResult<T> {
    sleep(left())?;
    Err(terminated(DEADLINE))
}

/// Does `work` as a hook with its limits.
pub(super) fn within<T>(limits: Limits, work: impl FnOnce() -> T) -> T {
    with(|world| world.limits.push(limits));
    let value = work();
    with(|world| world.limits.pop());
    value
}

pub(in crate::script) fn variable(name: &str) -> Option<OsString> {
    with(|world| world.variables.get(name).map(OsString::from))
}

pub(in crate::script) fn storage(url: &str) -> Storage {
    with(|world| world.storages.entry(url.to_owned()).or_insert_with(|| Storage::in_memory(url)).clone())
}

/// Ends the test as failed, at the place that is run now.
pub(super) fn fail(message: impl Into<String>, help: Option<String>, lines: Vec<String>) -> Box<EvalAltResult> {
    let failed = Ended::Failed { message: message.into(), help, lines };
    // What failed first is told.
    with(|world| world.ended.get_or_insert(failed).clone());
    // Rhai forgets the way to what terminates a script, and remembers it for what is thrown: the test failed, even if the
    // script catches this.
    error(ENDED)
}

pub(in crate::script) fn is_over() -> bool {
    WORLD.with(|world| world.try_borrow().is_ok_and(|world| world.as_ref().is_some_and(|world| world.ended.is_some())))
}

/// Writes down what was asked of the world.
pub(super) fn record(kind: &'static str, call: Map) {
    with(|world| world.calls.push((kind, call)));
}

pub(super) fn calls(kind: &str) -> Array {
    with(|world| {
        let calls = world.calls.iter().filter(|(found, _)| *found == kind);
        calls.map(|(_, call)| Dynamic::from_map(call.clone())).collect()
    })
}

/// Answers calls like this from now on; later ones come before earlier ones.
pub(super) fn expect(kind: &'static str, method: Option<&str>, pattern: &str, answer: Dynamic) {
    let method = method.map(str::to_ascii_uppercase);
    with(|world| world.mocks.push(Mock { kind, method, pattern: pattern.to_owned(), answer, used: 0 }));
}

/// What the test answers to `request`: a value, what its function returned, or the next of its array. None where nothing
/// of this kind was made up.
///
/// # Errors
/// Ends the test where an array of answers is used up; what a function throws.
pub(super) fn answer(
    kind: &'static str,
    method: Option<&str>,
    subjects: &[&str],
    request: Map,
    lists: bool,
) -> ScriptResult<Option<Dynamic>> {
    enum Found {
        Value(Dynamic),
        Function(FnPtr),
        UsedUp(String, usize),
    }
    let found = with(|world| {
        let mocks = world.mocks.iter_mut().rev();
        let mock = mocks.into_iter().find(|mock| {
            mock.kind == kind
                && mock.method.as_deref().is_none_or(|wanted| method.is_some_and(|method| method == wanted))
                && subjects.iter().any(|subject| matches(&mock.pattern, subject))
        })?;
        let turn = mock.used;
        mock.used += 1;
        if let Some(function) = mock.answer.read_lock::<FnPtr>() {
            return Some(Found::Function(function.clone()));
        }
        // Where an answer is itself a list, an array is one answer.
        if let Some(array) = mock.answer.read_lock::<Array>().filter(|_| !lists) {
            return Some(match array.get(turn) {
                Some(value) => match value.read_lock::<FnPtr>() {
                    Some(function) => Found::Function(function.clone()),
                    None => Found::Value(value.clone()),
                },
                None => Found::UsedUp(mock.pattern.clone(), array.len()),
            });
        }
        Some(Found::Value(mock.answer.clone()))
    });
    match found {
        None => Ok(None),
        Some(Found::Value(value)) => Ok(Some(value)),
        Some(Found::UsedUp(pattern, count)) => {
            let message = format!("the mock of {kind} {pattern:?} has {count} answers, and was asked once more");
            Err(fail(
                message,
                Some("add an answer, or give one that is not in an array: it stays".to_owned()),
                Vec::new(),
            ))
        }
        Some(Found::Function(function)) => call_back(&function, vec![request.into()]).map(Some),
    }
}

/// What replies to the messages of a websocket, unlike an answer as often as it is asked.
pub(super) fn reply(kind: &'static str, url: &str) -> Option<Dynamic> {
    with(|world| {
        let mut mocks = world.mocks.iter().rev();
        mocks.find(|mock| mock.kind == kind && mock.pattern == url).map(|mock| mock.answer.clone())
    })
}

/// Calls a function of the test; it may take fewer arguments than there are.
pub(super) fn call_back(function: &FnPtr, arguments: Array) -> ScriptResult<Dynamic> {
    let suite = suite();
    let program = suite.test();
    let first = function.call::<Dynamic>(&program.engine, &program.ast, arguments);
    match first {
        Err(cause) if matches!(&*cause, EvalAltResult::ErrorFunctionNotFound(name, _) if name.starts_with("anon$")) => {
            function.call::<Dynamic>(&program.engine, &program.ast, ())
        }
        other => other,
    }
}

/// The kind of error that `mock::error(kind)` made.
pub(super) fn error_kind(answer: &Dynamic) -> Option<String> {
    let map = answer.read_lock::<Map>()?;
    map.get("mock_error").map(ToString::to_string)
}

/// Ends the test: nothing says what this call gives.
pub(super) fn unmocked(what: &str, how: &str) -> Box<EvalAltResult> {
    fail(format!("the test does not say what {what} gives"), Some(format!("before it, write {how}")), Vec::new())
}

/// Ends the test: what it made up is no answer.
pub(super) fn no_answer(what: &str, why: &str) -> Box<EvalAltResult> {
    fail(format!("the mock of {what} {why}"), None, Vec::new())
}

/// `delay` of an answer.
pub(super) fn delay_of(map: &mut Map) -> ScriptResult<Duration> {
    match map.remove("delay") {
        None => Ok(Duration::ZERO),
        Some(value) => crate::script::options::duration(&value).map_err(|why| error(format!("delay: {why}"))),
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for anything.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("http://a/b", "http://a/b", true),
            ("http://a/b", "http://a/bc", false),
            ("http://*/b", "http://host:80/b", true),
            ("http://*/b/*", "http://host/b/1?x=2", true),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
