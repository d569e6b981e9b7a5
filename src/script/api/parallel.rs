//! `parallel`: several things at once, within one call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rhai::{Array, EvalAltResult, FnPtr};

use crate::script::call::{Call, ScriptResult, caught, error};
use crate::script::data::kind_of;
use crate::script::options::Options;
use crate::script::prelude::*;
use crate::script::runner;

/// How many run at once where nothing is said, and at most.
const USUAL: u32 = 8;
const MOST: u32 = 64;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Several functions of a script that run at the same time, each on a thread of its own. They end with the call: at its
/// deadline, when it is cancelled, and no later than `parallel` itself. What they share of the script's variables they read
/// and write one after the other; better they give back what they found.
#[export_module]
mod functions {
    /// Runs functions without parameters and gives back what each gave back, in their order:
    /// `let [a, b] = parallel([|| http::get(x).json(), || http::get(y).json()]);` with the results by index. When one throws,
    /// the others are stopped and `parallel` throws the same.
    #[rhai_fn(return_raw)]
    pub fn parallel(context: NativeCallContext<'_>, functions: Array) -> ScriptResult<Array> {
        run(&context, functions, Map::new())
    }

    /// As `parallel(functions)`.
    ///
    /// | option | what | default |
    /// |---|---|---|
    /// | `limit` | how many run at once, from 1 to 64 | 8 |
    /// | `settle` | `true`: let all come to their end, and give back `#{ ok: true, value }` or `#{ ok: false, error }` of each, where `error` is what `catch` would get | `false` |
    #[rhai_fn(name = "parallel", return_raw)]
    pub fn parallel_with(context: NativeCallContext<'_>, functions: Array, options: Map) -> ScriptResult<Array> {
        run(&context, functions, options)
    }
}

fn run(context: &NativeCallContext<'_>, functions: Array, options: Map) -> ScriptResult<Array> {
    let call = Call::current()?;
    let mut options = Options::new("parallel", options);
    let limit = options.count("limit")?.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(options.wrong("limit", &format!("lies between 1 and {MOST}")));
    }
    let settle = options.flag("settle")?.unwrap_or(false);
    options.finish()?;
    let functions: Vec<FnPtr> = functions.into_iter().enumerate().map(function).collect::<ScriptResult<_>>()?;
    if functions.is_empty() {
        return Ok(Array::new());
    }

    let threads = functions.len().min(limit as usize);
    let cancel = call.cancel.child_token();
    let mut each = call.clone();
    each.cancel = cancel.clone();
    each.memory = call.memory / threads;
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Dynamic>> = Mutex::new(vec![Dynamic::UNIT; functions.len()]);
    let failed: Mutex<Option<Box<EvalAltResult>>> = Mutex::default();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(function) = functions.get(index) else { return };
            let outcome = function.call_within_context::<Dynamic>(context, ());
            let outcome = outcome.map(|value| if settle { settled(true, "value", value) } else { value });
            let outcome = outcome.or_else(|cause| match caught(&cause) {
                Some(value) if settle => Ok(settled(false, "error", value)),
                _ => Err(cause),
            });
            match outcome {
                Ok(value) => results.lock().unwrap_or_else(PoisonError::into_inner)[index] = value,
                Err(cause) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
                    cancel.cancel();
                    return;
                }
            }
        }
    };
    if call.is_made_up() {
        // What a test made up lies in its own thread; one after the other is one of the orders that there may be.
        each.scope(work);
    } else {
        runner::run_together("parallel", &each, threads, &work).map_err(error)?;
    }
    // The first to fail stopped the others; why the whole call ends is no failure of one of them.
    if let Some(why) = call.interruption() {
        return Err(crate::script::call::terminated(why));
    }
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(cause) => Err(cause),
        None => Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn function((index, value): (usize, Dynamic)) -> ScriptResult<FnPtr> {
    let kind = kind_of(&value);
    value
        .try_cast::<FnPtr>()
        .ok_or_else(|| error(format!("parallel: element {index} must be a function such as || work(), found {kind}")))
}

fn settled(ok: bool, key: &str, value: Dynamic) -> Dynamic {
    Dynamic::from_map(Map::from([("ok".into(), ok.into()), (key.into(), value)]))
}
