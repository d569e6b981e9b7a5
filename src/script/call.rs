//! What belongs to one call of a hook: kept in the thread that runs it, so that primitives find it without a lock and one
//! engine serves any number of calls.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Client;
use rhai::{Dynamic, EvalAltResult, Position};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::hooks::StepObserver;
use super::lines::Lines;
use super::program::Deps;
use super::testing;
use crate::base::Timestamp;
use crate::host::held_by_thread;
use crate::host::http::{ClientOptions, HttpError};
use crate::telemetry::TraceScope;
use crate::worker::JobSink;

/// The value of `ErrorTerminated` tells why a call was ended.
pub(super) const CANCELLED: &str = "cancelled";
pub(super) const DEADLINE: &str = "deadline";
pub(super) const MEMORY: &str = "memory";

/// What the values of a script may take, in bytes. What it hands on without looking at it (a `Blob`) lies in files above 1 MiB.
pub(super) const MAX_MEMORY: usize = 256 * 1024 * 1024;

#[derive(Clone)]
pub(super) struct Call {
    /// See [`Call::world`].
    deps: Arc<Deps>,
    /// What it does and finds is made up by a test; see `testing`.
    mocked: bool,
    pub cancel: CancellationToken,
    pub deadline: Instant,
    pub sink: Option<Arc<dyn JobSink>>,
    /// Where relative paths begin and what may be written.
    pub work_dir: Option<PathBuf>,
    pub steps: Option<Arc<dyn StepObserver>>,
    /// What it asks of others belongs to that.
    pub trace: TraceScope,
    /// A pure hook's: it computes and does nothing else.
    pub pure: bool,
    /// Bytes that its values may take.
    pub memory: usize,
    pub lines: Arc<Lines>,
}

/// What a call acts on.
pub(super) enum World<'a> {
    Real(&'a Deps),
    /// A test's: `testing` answers.
    MadeUp,
}

thread_local! {
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
    /// What this thread may hold.
    static ALLOWANCE: Cell<isize> = const { Cell::new(isize::MAX) };
    static OPERATIONS: Cell<u32> = const { Cell::new(0) };
}

/// The call that was current before; a test calls hooks inside of its own call.
struct Restore {
    call: Option<Call>,
    allowance: isize,
}

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(self.call.take()));
        ALLOWANCE.set(self.allowance);
    }
}

pub(super) type ScriptResult<T> = Result<T, Box<EvalAltResult>>;

impl Call {
    pub fn new(deps: Arc<Deps>, mocked: bool, cancel: CancellationToken, deadline: Instant) -> Self {
        Self {
            deps,
            mocked,
            cancel,
            deadline,
            sink: None,
            work_dir: None,
            steps: None,
            trace: TraceScope::default(),
            pure: false,
            memory: MAX_MEMORY,
            lines: Arc::default(),
        }
    }

    /// The same in a world that a test makes up.
    pub fn made_up(self) -> Self {
        Self { mocked: true, ..self }
    }

    /// What it may act on: the one way to all that reaches out of the engine, so that whoever acts says as well what a test
    /// gets instead.
    pub fn world(&self) -> World<'_> {
        if self.mocked { World::MadeUp } else { World::Real(&self.deps) }
    }

    pub fn is_made_up(&self) -> bool {
        self.mocked
    }

    pub fn runtime(&self) -> &Handle {
        &self.deps.runtime
    }

    pub fn machine_dir(&self) -> &Path {
        &self.deps.config.machine_dir
    }

    /// A client of HTTP, which by itself asks nobody; what is asked goes through `Exchange` and `ws`.
    pub fn client(&self, way: &ClientOptions) -> Result<Client, HttpError> {
        self.deps.http.get(way)
    }

    /// Runs `work` with this call as the current one.
    pub fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        let allowance = ALLOWANCE.replace(held_by_thread() + self.memory.cast_signed());
        let _restore = Restore { call: CURRENT.with(|current| current.replace(Some(self))), allowance };
        work()
    }

    /// The call that this thread runs, for a primitive that acts or looks at the world.
    pub fn current() -> ScriptResult<Self> {
        let current = CURRENT.with(|current| current.borrow().clone());
        match current {
            Some(call) if call.pure => Err(error(
                "this function cannot be used here: services(m), workers(m) and the top level only compute; use m",
            )),
            Some(call) => Ok(call),
            None => Err(error("this function can be used inside a hook only")),
        }
    }

    /// Looks at the call that this thread runs, be it pure or not.
    pub fn with_current<T>(look: impl FnOnce(Option<&Self>) -> T) -> T {
        CURRENT.with(|current| look(current.borrow().as_ref()))
    }

    /// Why the call has to end now, if it has to.
    pub fn interruption(&self) -> Option<&'static str> {
        if self.cancel.is_cancelled() {
            Some(CANCELLED)
        } else if Instant::now() >= self.deadline {
            Some(DEADLINE)
        } else if self.mocked && testing::is_over() {
            Some(testing::ENDED)
        } else {
            None
        }
    }

    /// Waits for a future, no longer than the call may.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> ScriptResult<T> {
        if let Some(why) = self.interruption() {
            return Err(terminated(why));
        }
        self.deps.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(terminated(CANCELLED)),
                value = future => Ok(value),
                () = tokio::time::sleep_until(self.deadline.into()) => Err(terminated(DEADLINE)),
            }
        })
    }

    /// As [`Self::wait`], for at most `limit`; nothing where that is over first.
    pub fn wait_for<T>(&self, limit: Duration, future: impl Future<Output = T>) -> ScriptResult<Option<T>> {
        // The timer is made inside, where there is a runtime.
        self.wait(async { tokio::time::timeout(limit, future).await.ok() })
    }

    /// Where it may write: the attempt's own directory, which may not be there yet.
    pub fn scratch_dir(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| self.deps.config.state_dir.join("work"))
    }

    /// The time that it lives in.
    pub fn now(&self) -> Instant {
        if self.mocked { testing::now() } else { Instant::now() }
    }

    /// How long it may go on.
    pub fn left(&self) -> Duration {
        if self.mocked { testing::left() } else { self.deadline.saturating_duration_since(Instant::now()) }
    }

    /// A variable of the environment.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        if self.mocked { testing::variable(name) } else { std::env::var_os(name) }
    }

    pub fn timestamp(&self) -> Timestamp {
        if self.mocked { testing::timestamp() } else { Timestamp::now() }
    }

    pub fn sleep(&self, duration: Duration) -> ScriptResult<()> {
        if self.mocked {
            return testing::sleep(duration);
        }
        self.wait(async { tokio::time::sleep(duration).await })
    }
}

/// Asked at every operation of a script, any of which may double what there is. Operations over large arrays take a
/// millisecond; the clock is looked at often enough for them, and seldom enough for small ones. Rhai's own count begins
/// anew in every function that is called back.
pub(super) fn interruption_of_current() -> Option<&'static str> {
    if held_by_thread() > ALLOWANCE.get() {
        return Some(MEMORY);
    }
    let operations = OPERATIONS.get().wrapping_add(1);
    OPERATIONS.set(operations);
    if !operations.is_multiple_of(32) {
        return None;
    }
    Call::with_current(|call| call.and_then(Call::interruption))
}

/// The innermost error, under calls and imports.
pub(super) fn innermost(cause: &EvalAltResult) -> &EvalAltResult {
    match cause {
        EvalAltResult::ErrorInFunctionCall(_, _, nested, _) | EvalAltResult::ErrorInModule(_, nested, _) => {
            innermost(nested)
        }
        other => other,
    }
}

/// What was thrown, under all calls and imports; nothing for an error that nobody threw.
pub(super) fn thrown(cause: &EvalAltResult) -> Option<Dynamic> {
    match innermost(cause) {
        EvalAltResult::ErrorRuntime(value, _) => Some(value.clone()),
        _ => None,
    }
}

/// What a script's `catch` would get; nothing for an error that cannot be caught.
pub(super) fn caught(cause: &EvalAltResult) -> Option<Dynamic> {
    let catchable = cause.is_catchable();
    catchable.then(|| thrown(cause).unwrap_or_else(|| cause.to_string().into()))
}

/// Cannot be caught by a script.
pub(super) fn terminated(why: &'static str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorTerminated(Dynamic::from(why.to_owned()), Position::NONE).into()
}

pub(super) fn error(message: impl Into<String>) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(Dynamic::from(message.into()), Position::NONE).into()
}
