//! What arrays do with a function of the script: Rhai's own go on after an error of it, and past every deadline.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rhai::{Array, FnPtr};

use crate::script::call::{ScriptResult, error};
use crate::script::data::kind_of;
use crate::script::prelude::*;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// In the place of the language's own, which go on after an error and past every deadline.
#[export_module]
mod functions {
    /// Sorts the array by `comparer(a, b)`, which returns a number (below 0: `a` comes first) or whether `a` comes first.
    /// Elements that are equal stay in their order. What the function throws ends the sorting.
    #[rhai_fn(name = "sort", name = "sort_by", return_raw)]
    pub fn sort(context: NativeCallContext, array: &mut Array, comparer: FnPtr) -> ScriptResult<()> {
        stopping_at_errors(|| {
            array.sort_by(|a, b| {
                let answer = comparer.call_within_context::<Dynamic>(&context, (a.clone(), b.clone()));
                let order = answer.and_then(|answer| match (answer.as_int(), answer.as_bool()) {
                    (Ok(number), _) => Ok(number.cmp(&0)),
                    (_, Ok(first)) => Ok(if first { Ordering::Less } else { Ordering::Greater }),
                    _ => Err(error(format!(
                        "what compares for sort returns a number or a bool, not {}",
                        kind_of(&answer)
                    ))),
                });
                order.unwrap_or_else(stop)
            });
        })
    }

    /// Removes every element that `same(element, next)` says is the same as the one before it.
    /// What the function throws ends it.
    #[rhai_fn(name = "dedup", return_raw)]
    pub fn dedup(context: NativeCallContext, array: &mut Array, same: FnPtr) -> ScriptResult<()> {
        stopping_at_errors(|| {
            array.dedup_by(|next, element| {
                let answer = same.call_within_context::<Dynamic>(&context, (element.clone(), next.clone()));
                answer.map_or_else(stop, |answer| answer.as_bool().unwrap_or(false))
            });
        })
    }
}

/// What a comparer threw, on its way out of a function of the standard library that knows no errors.
struct Stopped(Box<rhai::EvalAltResult>);

/// Unwinds without a panic's message; the array stays whole, in some order.
fn stop<T>(cause: Box<rhai::EvalAltResult>) -> T {
    resume_unwind(Box::new(Stopped(cause)))
}

fn stopping_at_errors(work: impl FnOnce()) -> ScriptResult<()> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match panic.downcast::<Stopped>() {
        Ok(stopped) => stopped.0,
        Err(_) => error("what compares for sort contradicts itself: it must give every pair the same order each time"),
    })
}
