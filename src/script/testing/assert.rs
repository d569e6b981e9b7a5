//! Assertions. What fails ends the test; no `catch` of a script keeps it going.

use rhai::{Array, FnPtr};

use super::diff::{differences, shown};
use super::world::{self, ENDED, Ended};
use crate::script::api::Thrown;
use crate::script::call::{ScriptResult, caught, error, terminated};
use crate::script::data::kind_of;
use crate::script::options::number;
use crate::script::prelude::*;
use crate::script::types::HostError;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// What a test expects. All of them end the test where it is not so, at the place where they stand.
#[export_module]
mod functions {
    /// Expects `condition` to be true.
    #[rhai_fn(return_raw)]
    pub fn assert(context: NativeCallContext<'_>, condition: bool) -> ScriptResult<()> {
        holds(&context, condition, || "the condition does not hold".to_owned())
    }

    /// Expects `condition` to be true; `message` says what should be.
    #[rhai_fn(name = "assert", return_raw)]
    pub fn assert_with(context: NativeCallContext<'_>, condition: bool, message: &str) -> ScriptResult<()> {
        holds(&context, condition, || format!("it does not hold that {message}"))
    }

    /// Expects both to be equal, maps and arrays in all their parts; whole numbers and others are compared by value.
    #[rhai_fn(return_raw)]
    pub fn assert_eq(context: NativeCallContext<'_>, found: Dynamic, expected: Dynamic) -> ScriptResult<()> {
        equal(&context, &found, &expected, "the values are not equal")
    }

    /// Expects both to be equal; `message` says what they are.
    #[rhai_fn(name = "assert_eq", return_raw)]
    pub fn assert_eq_with(
        context: NativeCallContext<'_>,
        found: Dynamic,
        expected: Dynamic,
        message: &str,
    ) -> ScriptResult<()> {
        equal(&context, &found, &expected, message)
    }

    /// Expects both to be different.
    #[rhai_fn(return_raw)]
    pub fn assert_ne(context: NativeCallContext<'_>, found: Dynamic, other: Dynamic) -> ScriptResult<()> {
        holds(&context, !differences(&found, &other).is_empty(), || format!("both are {}", shown(&found)))
    }

    /// Expects a text to hold another, an array to hold an element, or a map to have a key.
    #[rhai_fn(return_raw)]
    pub fn assert_contains(context: NativeCallContext<'_>, whole: Dynamic, part: Dynamic) -> ScriptResult<()> {
        let contains = if let Some(array) = whole.read_lock::<Array>() {
            array.iter().any(|element| differences(element, &part).is_empty())
        } else if let Some(map) = whole.read_lock::<Map>() {
            map.contains_key(part.to_string().as_str())
        } else if whole.is_string() && part.is_string() {
            whole.to_string().contains(&part.to_string())
        } else {
            return Err(error(format!("assert_contains: {} holds nothing", kind_of(&whole))));
        };
        holds(&context, contains, || format!("{} does not contain {}", shown(&whole), shown(&part)))
    }

    /// Expects two numbers to be no more than a millionth apart.
    #[rhai_fn(return_raw)]
    pub fn assert_approx(context: NativeCallContext<'_>, found: Dynamic, expected: Dynamic) -> ScriptResult<()> {
        near(&context, &found, &expected, 1e-6)
    }

    /// Expects two numbers to be no more than `tolerance` apart.
    #[rhai_fn(name = "assert_approx", return_raw)]
    pub fn assert_approx_within(
        context: NativeCallContext<'_>,
        found: Dynamic,
        expected: Dynamic,
        tolerance: f64,
    ) -> ScriptResult<()> {
        near(&context, &found, &expected, tolerance)
    }

    /// Expects `body` to throw, and gives back what `catch` would get.
    #[rhai_fn(return_raw)]
    pub fn assert_throws(context: NativeCallContext<'_>, body: FnPtr) -> ScriptResult<Dynamic> {
        throws(&context, &body, None)
    }

    /// Expects `body` to throw an error of class `expected` (`"fatal"`, `"retryable"` ...), of that `kind`, or with that
    /// text in its message; gives back what `catch` would get.
    #[rhai_fn(name = "assert_throws", return_raw)]
    pub fn assert_throws_with(context: NativeCallContext<'_>, body: FnPtr, expected: &str) -> ScriptResult<Dynamic> {
        throws(&context, &body, Some(expected))
    }

    /// Ends the test as failed.
    #[rhai_fn(return_raw)]
    pub fn fail(context: NativeCallContext<'_>, message: &str) -> ScriptResult<()> {
        Err(failed(&context, message, Vec::new()))
    }

    /// Ends the test as skipped; `reason` is shown.
    #[rhai_fn(return_raw)]
    pub fn skip(reason: &str) -> ScriptResult<()> {
        world::with(|world| {
            world.ended.get_or_insert(Ended::Skipped(reason.to_owned()));
        });
        Err(terminated(ENDED))
    }
}

/// Ends the test where its assertion stands.
fn failed(context: &NativeCallContext<'_>, message: impl Into<String>, lines: Vec<String>) -> Box<rhai::EvalAltResult> {
    // Rhai forgets the place of what ends a script.
    let at = context.call_position();
    let place = at.line().map(|line| (line, at.position()));
    world::with(|world| world.assertion = world.assertion.or(place));
    world::fail(message, None, lines)
}

fn holds(context: &NativeCallContext<'_>, condition: bool, message: impl FnOnce() -> String) -> ScriptResult<()> {
    if condition { Ok(()) } else { Err(failed(context, message(), Vec::new())) }
}

fn equal(context: &NativeCallContext<'_>, found: &Dynamic, expected: &Dynamic, message: &str) -> ScriptResult<()> {
    let lines = differences(found, expected);
    if lines.is_empty() { Ok(()) } else { Err(failed(context, message, lines)) }
}

fn near(context: &NativeCallContext<'_>, found: &Dynamic, expected: &Dynamic, tolerance: f64) -> ScriptResult<()> {
    let (Some(one), Some(other)) = (number(found), number(expected)) else {
        return Err(failed(
            context,
            format!("found {}, expected a number near {}", shown(found), shown(expected)),
            Vec::new(),
        ));
    };
    holds(context, (one - other).abs() <= tolerance, || {
        format!("found {one}, expected {other}, give or take {tolerance}")
    })
}

fn throws(context: &NativeCallContext<'_>, body: &FnPtr, expected: Option<&str>) -> ScriptResult<Dynamic> {
    let cause = match body.call_within_context::<Dynamic>(context, ()) {
        Ok(value) => return Err(failed(context, format!("nothing was thrown; it gave {}", shown(&value)), Vec::new())),
        Err(cause) => cause,
    };
    let Some(value) = caught(&cause) else { return Err(cause) };
    let (words, message) = if let Some(thrown) = value.read_lock::<Thrown>() {
        (vec![class(thrown.0.class)], thrown.0.message.clone())
    } else if let Some(host) = value.read_lock::<HostError>() {
        (vec![class(host.class), host.kind.to_owned()], host.message.clone())
    } else {
        (Vec::new(), value.to_string())
    };
    match expected {
        Some(expected) if !words.iter().any(|word| word == expected) && !message.contains(expected) => {
            let thrown = [words.join(" "), message].join(": ");
            Err(failed(context, format!("something else was thrown than {expected:?}: {thrown}"), Vec::new()))
        }
        _ => Ok(value),
    }
}

/// The name of a class, as in `outcome.failure.class`.
pub(super) fn class(class: crate::queue::FailureClass) -> String {
    serde_json::to_value(class).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}
