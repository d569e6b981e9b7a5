use std::path::Path;
use std::time::Duration;

use rhai::{EvalAltResult, ParseError, Position};

use super::api::Thrown;
use super::call::{CANCELLED, DEADLINE, MAX_MEMORY, MEMORY};
use super::types::HostError;
use crate::base::{Problem, SourceText, did_you_mean};
use crate::queue::{Failure, FailureClass};

/// Longer texts that are thrown are cut.
const MAX_THROWN: usize = 8 * 1024;

/// What is needed to tell the place of an error.
pub(super) struct Places<'a> {
    /// The script itself first, then what it imports.
    pub sources: &'a [SourceText],
    /// Every function a script may call, for suggestions.
    pub functions: &'a [String],
}

impl Places<'_> {
    pub fn syntax(source: &SourceText, cause: &ParseError) -> Problem {
        let problem = Problem::error(format!("syntax: {}", lowercase(&cause.err_type().to_string())));
        at(problem, source, cause.position())
    }

    /// The error with its place, the chain of imports and calls, and a hint.
    pub fn runtime(&self, cause: &EvalAltResult, hook: &str, limit: Option<Duration>) -> Problem {
        let mut notes = Vec::new();
        let mut file: Option<String> = None;
        let mut inner = cause;
        let mut position = cause.position();
        loop {
            match inner {
                EvalAltResult::ErrorInFunctionCall(name, source, nested, _) => {
                    if !source.is_empty() {
                        file = Some(source.clone());
                    }
                    if name != hook && !name.starts_with("anon$") {
                        notes.push(format!("in function {name}"));
                    }
                    inner = nested;
                }
                EvalAltResult::ErrorInModule(name, nested, at) => {
                    if !name.is_empty() {
                        file = Some(name.clone());
                    }
                    notes.push(format!("imported at {}", position_text(*at)));
                    inner = nested;
                }
                _ => break,
            }
            if !inner.position().is_none() {
                position = inner.position();
            }
        }
        let (message, help) = self.explain(inner, limit);
        let mut problem = Problem::error(message);
        problem.help = help;
        for note in notes {
            problem = problem.note(note);
        }
        if !hook.is_empty() {
            problem = problem.note(format!("in hook {hook}"));
        }
        match self.source(file.as_deref()) {
            // An endless empty loop has no place of its own.
            Some(source) if position.is_none() && !hook.is_empty() => {
                let line = source.text.lines().position(|line| line.contains(&format!("fn {hook}(")));
                problem.at(source, line.map_or(1, |line| line + 1), None)
            }
            Some(source) => at(problem, source, position),
            None => problem,
        }
    }

    fn source(&self, file: Option<&str>) -> Option<&SourceText> {
        let named = file.and_then(|file| self.sources.iter().find(|source| source.file == Path::new(file)));
        named.or_else(|| self.sources.first())
    }

    fn explain(&self, cause: &EvalAltResult, limit: Option<Duration>) -> (String, Option<String>) {
        match cause {
            EvalAltResult::ErrorFunctionNotFound(signature, _) => {
                let name = signature.split([' ', '(']).next().unwrap_or(signature);
                let known = self.functions.iter().any(|function| function == name);
                let help = if known {
                    "the function is there, but takes other arguments".to_owned()
                } else {
                    match did_you_mean(name, self.functions.iter().map(String::as_str)) {
                        Some(meant) => format!("did you mean {meant}?"),
                        None => "define it with fn, or import it".to_owned(),
                    }
                };
                (format!("there is no function {signature}"), Some(help))
            }
            EvalAltResult::ErrorVariableNotFound(name, _) => (format!("there is no variable {name}"), None),
            EvalAltResult::ErrorPropertyNotFound(name, _) => {
                let help = format!("ask `\"{name}\" in map` first, or write map?.{name}");
                (format!("there is no property {name}"), Some(help))
            }
            EvalAltResult::ErrorTooManyOperations(_) => {
                ("the script computed too long: it loops, or does too much".to_owned(), None)
            }
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
}

fn thrown_text(value: &rhai::Dynamic) -> String {
    if let Some(cause) = value.read_lock::<HostError>() {
        return cause.message.clone();
    }
    match value.clone().try_cast::<Thrown>() {
        Some(thrown) => thrown.0.message,
        None => {
            let mut text = value.to_string();
            text.truncate(text.floor_char_boundary(MAX_THROWN));
            text
        }
    }
}

/// Whether the call was terminated for this reason.
fn is(why: &rhai::Dynamic, reason: &str) -> bool {
    why.read_lock::<rhai::ImmutableString>().is_some_and(|why| *why == reason)
}

/// The innermost error, under calls and imports.
fn innermost(cause: &EvalAltResult) -> &EvalAltResult {
    match cause {
        EvalAltResult::ErrorInFunctionCall(_, _, nested, _) | EvalAltResult::ErrorInModule(_, nested, _) => {
            innermost(nested)
        }
        other => other,
    }
}

/// How a connector's error decides about its job.
pub(super) fn failure_of(cause: &EvalAltResult, problem: &Problem) -> Failure {
    match innermost(cause) {
        EvalAltResult::ErrorRuntime(value, _) => match (value.clone().try_cast(), value.read_lock::<HostError>()) {
            (Some(Thrown(failure)), _) => failure,
            (None, Some(cause)) => cause.failure(),
            (None, None) => Failure::new(FailureClass::Retryable, one_line(problem)),
        },
        EvalAltResult::ErrorTerminated(why, _) if is(why, CANCELLED) => {
            Failure::new(FailureClass::Cancelled, CANCELLED)
        }
        EvalAltResult::ErrorTerminated(why, _) if is(why, DEADLINE) => {
            Failure::new(FailureClass::Timeout, one_line(problem))
        }
        _ => Failure::new(FailureClass::Retryable, one_line(problem)),
    }
}

fn one_line(problem: &Problem) -> String {
    match &problem.location {
        Some(location) => format!("{} ({location})", problem.message),
        None => problem.message.clone(),
    }
}

fn at(problem: Problem, source: &SourceText, position: Position) -> Problem {
    match position.line() {
        Some(line) => problem.at(source, line, position.position()),
        None => problem.in_file(&source.file),
    }
}

fn position_text(position: Position) -> String {
    position.line().map_or_else(|| "the top".to_owned(), |line| format!("line {line}"))
}

fn lowercase(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
