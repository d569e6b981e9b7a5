//! What went wrong in a script, with its place, the chain of calls and imports, and a remedy.

mod runtime;
pub(super) mod syntax;

use std::path::Path;
use std::time::Duration;

use rhai::{AST, ASTNode, Engine, EvalAltResult, Expr, ParseError, Position, Stmt};

use super::api::Thrown;
use super::call::{CANCELLED, DEADLINE, innermost};
use super::lint::{Functions, at_function};
use super::types::HostError;
use crate::base::{Problem, SourceText};
use crate::queue::{Failure, FailureClass};

/// Longer texts that are thrown are cut.
const MAX_THROWN: usize = 8 * 1024;

/// What is needed to tell the place of an error.
pub(super) struct Places<'a> {
    /// The script itself first, then what it imports.
    pub sources: &'a [SourceText],
    /// The script itself, where it is at hand.
    pub tree: Option<&'a AST>,
    pub engine: &'a Engine,
    pub functions: &'a Functions,
}

impl Places<'_> {
    pub fn syntax(source: &SourceText, cause: &ParseError) -> Problem {
        syntax::problem(source, cause)
    }

    /// The error with its place, the chain of imports and calls, and a hint.
    pub fn runtime(&self, cause: &EvalAltResult, hook: &str, limit: Option<Duration>) -> Problem {
        let mut notes = Vec::new();
        let mut file: Option<String> = None;
        let mut function = hook.to_owned();
        let mut inner = cause;
        loop {
            match inner {
                EvalAltResult::ErrorInFunctionCall(name, source, nested, at) => {
                    if !source.is_empty() {
                        file = Some(source.clone());
                    }
                    if name != hook && !name.starts_with("anon$") {
                        let place =
                            if at.is_none() { String::new() } else { format!(", called at {}", position_text(*at)) };
                        notes.push(format!("in function {name}{place}"));
                        function.clone_from(name);
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
        }
        let source = self.source(file.as_deref());
        let mut position = inner.position();
        // Rhai does not say where a primitive was called that failed.
        if let (true, Some(source)) = (position.is_none(), source) {
            let calls = self.primitive_calls(source, &function);
            match calls.as_slice() {
                [(_, only)] => position = *only,
                [] => {}
                several => {
                    let each: Vec<String> =
                        several.iter().map(|(name, at)| format!("{name} ({})", position_text(*at))).collect();
                    notes.push(format!("in one of the calls of {}", each.join(", ")));
                }
            }
        }
        if let (EvalAltResult::ErrorParsing(kind, at), Some(source)) = (inner, source) {
            let mut problem = syntax::problem(source, &ParseError(kind.clone().into(), *at));
            problem.notes.extend(notes);
            return problem;
        }
        let before = source.map(|source| before(source, position)).unwrap_or_default();
        let own: Vec<String> = self.sources.iter().flat_map(|source| function_names(&source.text)).collect();
        let (message, help) =
            runtime::explain(inner, self.functions, &own, &before, limit, self.engine.max_operations());
        let mut problem = Problem::error(message);
        problem.help = help;
        for note in notes {
            problem = problem.note(note);
        }
        if !hook.is_empty() {
            problem = problem.note(format!("in hook {hook}"));
        }
        match source {
            // An endless empty loop has no place of its own.
            Some(source) if position.is_none() && !hook.is_empty() => at_function(source, &function, problem),
            Some(source) => at(problem, source, position),
            None => problem,
        }
    }

    fn source(&self, file: Option<&str>) -> Option<&SourceText> {
        let named = file.and_then(|file| self.sources.iter().find(|source| source.file == Path::new(file)));
        named.or_else(|| self.sources.first())
    }

    /// Where `function` calls primitives in a namespace.
    fn primitive_calls(&self, source: &SourceText, function: &str) -> Vec<(String, Position)> {
        let Some((begin, end)) = lines_of(&source.text, function) else { return Vec::new() };
        let own = self.tree.filter(|_| self.sources.first().is_some_and(|own| own.file == source.file));
        let made = if own.is_none() { self.engine.compile(source.text.as_ref()).ok() } else { None };
        let Some(ast) = own.or(made.as_ref()) else { return Vec::new() };
        let mut calls: Vec<(String, Position)> = Vec::new();
        ast.walk(&mut |nodes: &[ASTNode<'_>]| {
            if let Some(ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at))) = nodes.last() {
                let namespace = call.namespace.to_string();
                let namespace = namespace.trim_end_matches("::");
                let inside = at.line().is_some_and(|line| (begin..=end).contains(&line));
                let found = (format!("{namespace}::{}", call.name), *at);
                if inside && self.functions.has_namespace(namespace) && !calls.contains(&found) {
                    calls.push(found);
                }
            }
            true
        });
        calls
    }
}

/// The first and the last line of a function: the next one begins behind it.
fn lines_of(text: &str, function: &str) -> Option<(usize, usize)> {
    let starts = |line: &str| line.starts_with("fn ") || line.starts_with("private fn ");
    let head = format!("fn {function}(");
    let begin = text.lines().position(|line| line.contains(&head))?;
    let length = text.lines().skip(begin + 1).position(starts);
    Some((begin + 1, length.map_or_else(|| text.lines().count(), |length| begin + 1 + length)))
}

fn function_names(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().trim_start_matches("private ").strip_prefix("fn ")?;
        Some(rest.split('(').next()?.trim().to_owned())
    })
}

/// The line of `position` up to it.
fn before(source: &SourceText, position: Position) -> String {
    let line = position.line().and_then(|line| source.line(line)).unwrap_or_default();
    line.chars().take(position.position().unwrap_or(1).saturating_sub(1)).collect()
}

fn thrown_text(value: &rhai::Dynamic) -> String {
    if let Some(thrown) = value.read_lock::<Thrown>() {
        return thrown.0.message.clone();
    }
    if let Some(cause) = value.read_lock::<HostError>() {
        return cause.message.clone();
    }
    let message = value.read_lock::<rhai::Map>().and_then(|map| map.get("message").cloned());
    match message {
        Some(message) if message.is_string() => message.to_string(),
        _ => {
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
    let place = problem.location.as_ref().map(|location| format!(" ({location})")).unwrap_or_default();
    let help = problem.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{}{place}{help}", problem.message)
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
