//! Errors of running scripts, in the words of their authors.

use std::time::Duration;

use rhai::EvalAltResult;

use super::{is, lowercase, thrown_text};
use crate::base::did_you_mean;
use crate::script::call::{CANCELLED, DEADLINE, MAX_MEMORY, MEMORY};
use crate::script::lint::Functions;

/// What happened, and what can be done; `line` is the source up to the place of the error.
pub(super) fn explain(
    cause: &EvalAltResult,
    functions: &Functions,
    own: &[String],
    before: &str,
    limit: Option<Duration>,
    operations: u64,
) -> (String, Option<String>) {
    match cause {
        EvalAltResult::ErrorFunctionNotFound(signature, _) => not_found(signature, functions, own),
        EvalAltResult::ErrorVariableNotFound(name, _) => (format!("there is no variable {name}"), None),
        EvalAltResult::ErrorModuleNotFound(name, _) => {
            let name = name.trim_end_matches("::");
            (format!("there is no namespace {name}"), Some(format!("import \"path/of/file\" as {name}; at the top")))
        }
        EvalAltResult::ErrorPropertyNotFound(name, _) => no_property(name, before),
        EvalAltResult::ErrorDotExpr(text, _) => no_getter(text),
        EvalAltResult::ErrorIndexingType(text, _) => {
            let kinds: Vec<String> = text.split(['[', ']']).map(|part| kind_name(part.trim())).collect();
            let of = kinds.first().cloned().unwrap_or_default();
            if of == "()" {
                return ("[..] is used on (), which is nothing".to_owned(), Some(NOTHING_THERE.to_owned()));
            }
            let with = kinds.get(1).filter(|with| !with.is_empty());
            let with = with.map(|with| format!(" with {}", article(with))).unwrap_or_default();
            let help = "arrays are indexed by whole numbers, maps by texts";
            (format!("{} cannot be indexed{with}", article(&of)), Some(help.to_owned()))
        }
        EvalAltResult::ErrorArrayBounds(length, index, _) => (
            format!("there is no item {index}: the array has {length}"),
            Some("items count from 0; ask array.len() first, or write array.get(n), which gives () then".to_owned()),
        ),
        EvalAltResult::ErrorStringBounds(length, index, _) => (
            format!("there is no character {index}: the text has {length}"),
            Some("characters count from 0".to_owned()),
        ),
        EvalAltResult::ErrorIndexNotFound(index, _) => {
            (format!("there is nothing at {index}"), Some("ask `key in map` first".to_owned()))
        }
        EvalAltResult::ErrorFor(_) => (
            "for cannot go through this value".to_owned(),
            Some("it goes through arrays, ranges (0..n), map.keys() and map.values()".to_owned()),
        ),
        EvalAltResult::ErrorMismatchDataType(wanted, found, _)
        | EvalAltResult::ErrorMismatchOutputType(wanted, found, _) => (
            format!("{} is needed here, found {}", article(&kind_name(wanted)), article(&kind_name(found))),
            type_help(wanted, found),
        ),
        EvalAltResult::ErrorAssignmentToConstant(name, _) => {
            (format!("{name} is a constant and cannot be changed"), Some("write let for what changes".to_owned()))
        }
        EvalAltResult::ErrorNonPureMethodCallOnConstant(name, _) => {
            (format!("{name} would change a constant"), Some("copy it first: let copy = NAME;".to_owned()))
        }
        EvalAltResult::ErrorArithmetic(text, _) => (lowercase(text), None),
        EvalAltResult::ErrorTooManyOperations(_) => (
            "the script computed too long: it loops, or does too much".to_owned(),
            Some(format!("it has {} million operations", operations / 1_000_000)),
        ),
        EvalAltResult::ErrorStackOverflow(_) => {
            ("functions call each other too deeply".to_owned(), Some("a recursion has no end".to_owned()))
        }
        EvalAltResult::ErrorDataTooLarge(what, _) => (format!("too large: {}", lowercase(what)), None),
        EvalAltResult::ErrorTerminated(why, _) if is(why, DEADLINE) => {
            let limit = limit.map(|limit| format!(" of {}", humantime::format_duration(limit))).unwrap_or_default();
            (format!("the time limit{limit} is over"), None)
        }
        EvalAltResult::ErrorTerminated(why, _) if is(why, MEMORY) => {
            let most = bytesize::ByteSize::b(MAX_MEMORY as u64);
            let help = "keep less at once: hand bodies and files on as blobs, and drop what was worked off";
            (format!("the script's values take more than {most} of memory"), Some(help.to_owned()))
        }
        EvalAltResult::ErrorTerminated(..) => (CANCELLED.to_owned(), None),
        EvalAltResult::ErrorRuntime(value, _) if value.is_unit() => {
            ("the script threw () and did not say why".to_owned(), Some("write throw \"what went wrong\"".to_owned()))
        }
        EvalAltResult::ErrorRuntime(value, _) => (thrown_text(value), None),
        EvalAltResult::ErrorParsing(kind, _) => (format!("syntax: {}", lowercase(&kind.to_string())), None),
        other => {
            let mut text = other.to_string();
            if let Some(end) = text.rfind(" (line ") {
                text.truncate(end);
            }
            (lowercase(&text), None)
        }
    }
}

const NOTHING_THERE: &str =
    "nothing came from where this value is made: a function without a result, or a null in JSON";

fn no_property(name: &str, before: &str) -> (String, Option<String>) {
    let message = format!("there is no property {name}");
    let of = |owner: &str| before.trim_end().ends_with(&format!("{owner}."));
    let help = if of("m.vars") {
        format!(
            "set {name} in [vars] of machine.toml, or write m.vars.get(\"{name}\"), which gives () where it is not set"
        )
    } else if of("ctx.vars") {
        format!("set {name} in [connectors.NAME.vars] of machine.toml, or give it a fallback in const CONFIG")
    } else if of("m.env") {
        format!("set {name} in the environment, or write m.env.get(\"{name}\"), which gives () where it is not set")
    } else if of("job.payload") {
        format!(
            "the job was submitted without it: ask `\"{name}\" in job.payload` first and throw fatal(...), or write job.payload.get(\"{name}\")"
        )
    } else {
        format!("ask `\"{name}\" in map` first, or write map.get(\"{name}\"), which gives () where it is not set")
    };
    (message, Some(help))
}

/// `Unknown property 'x' - a getter is not registered for type 'y'`.
fn no_getter(text: &str) -> (String, Option<String>) {
    let quoted: Vec<&str> = text.split('\'').skip(1).step_by(2).collect();
    match quoted.as_slice() {
        [property, kind] if kind_name(kind) == "()" => {
            (format!(".{property} is asked of (), which is nothing"), Some(NOTHING_THERE.to_owned()))
        }
        [property, kind] => {
            let help =
                if text.contains("getter") { "only maps have properties of any name" } else { "it can only be read" };
            (format!("{} has no property {property}", article(&kind_name(kind))), Some(help.to_owned()))
        }
        _ => (lowercase(text), None),
    }
}

fn not_found(signature: &str, functions: &Functions, own: &[String]) -> (String, Option<String>) {
    let (name, rest) = signature.split_once(" (").unwrap_or((signature, ""));
    let kinds: Vec<String> =
        rest.strip_suffix(')').unwrap_or(rest).split(", ").filter(|kind| !kind.is_empty()).map(kind_name).collect();
    let nothing = kinds.iter().any(|kind| kind == "()");
    if let Some(property) = name.strip_prefix("get$") {
        let of = kinds.first().cloned().unwrap_or_default();
        return (format!("{} has no property {property}", article(&of)), nothing.then(|| NOTHING_THERE.to_owned()));
    }
    let operator = !name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':');
    if operator {
        let shown: Vec<String> = kinds.iter().map(|kind| article(kind)).collect();
        let message = format!("{name} cannot be used with {}", shown.join(" and "));
        let help = if nothing {
            NOTHING_THERE.to_owned()
        } else if name.starts_with('+') {
            "to make a text of it, write `${value}` in backticks; to join maps, write +".to_owned()
        } else if kinds.iter().any(|kind| kind == "string") {
            "make a number of a text with parse_int(text) or parse_float(text)".to_owned()
        } else {
            "both sides must be of the same kind".to_owned()
        };
        return (message, Some(help));
    }
    let given = kinds.join(", ");
    let known = functions.signatures(name);
    if own.iter().any(|function| function == name) && known.is_empty() {
        return (format!("{name} does not take {} arguments", kinds.len()), Some(format!("look at fn {name}")));
    }
    if !known.is_empty() {
        if kinds.first().is_some_and(|kind| kind == "()") {
            return (format!("{name} is called on (), which is nothing"), Some(NOTHING_THERE.to_owned()));
        }
        // Many functions of the language take everything; a list of them helps nobody.
        let takes = if known.len() > 6 { String::new() } else { format!("it is {}", known.join(" or ")) };
        let takes_float = known.iter().any(|signature| signature.contains("float"));
        let help = if takes_float && kinds.iter().any(|kind| kind == "int") {
            format!("{takes}; a float is written 1.0, or made by n.to_float()").trim_start_matches("; ").to_owned()
        } else {
            takes
        };
        return (format!("{name} does not take ({given})"), Some(help).filter(|help| !help.is_empty()));
    }
    let names = own.iter().map(String::as_str).chain(functions.names());
    let help = match did_you_mean(name, names) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "define it with fn, or import it; `machinist api` lists what there is".to_owned(),
    };
    (format!("there is no function {name}({given})"), Some(help))
}

fn type_help(wanted: &str, found: &str) -> Option<String> {
    let help = match (kind_name(wanted).as_str(), kind_name(found).as_str()) {
        (_, "()") => NOTHING_THERE,
        ("bool", _) => "a condition is true or false: compare with ==, or ask value != ()",
        ("string", _) => "write `${value}` in backticks to make a text of it",
        ("float", "int") => "write 1.0, or n.to_float()",
        ("int", "float") => "write n.to_int()",
        _ => return None,
    };
    Some(help.to_owned())
}

/// The name that scripts know for what Rhai calls `kind`.
fn kind_name(kind: &str) -> String {
    let kind = kind.split(" | ").next().unwrap_or(kind).trim();
    crate::script::reference::type_name(kind)
}

fn article(kind: &str) -> String {
    match kind {
        "()" => "()".to_owned(),
        "int" | "array" | "any" => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}
