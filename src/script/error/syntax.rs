//! Syntax errors in the words of somebody who wants to mend the script: Rhai names what its parser wanted, which is seldom
//! what was forgotten.

use std::collections::BTreeSet;

use rhai::{LexError, ParseError, ParseErrorType, Position};

use super::{at, lowercase};
use crate::base::{Problem, SourceText, did_you_mean};

/// Names of nothing in other languages.
const NOTHING: [&str; 6] = ["null", "None", "nil", "undefined", "NULL", "none"];

/// Words of other languages, with what is written here.
const FOREIGN: [(&str, &str); 22] = [
    ("elif", "write else if"),
    ("elsif", "write else if"),
    ("elseif", "write else if"),
    ("and", "write &&"),
    ("or", "write ||"),
    ("not", "write !"),
    ("is", "write =="),
    ("def", "write fn"),
    ("function", "write fn"),
    ("func", "write fn"),
    ("var", "write let"),
    ("match", "write switch"),
    ("case", "write switch value { 1 => ..., _ => ... }"),
    ("default", "in a switch, write _ => ..."),
    ("foreach", "write for item in list"),
    ("True", "write true"),
    ("False", "write false"),
    ("pass", "leave the block empty: { }"),
    ("except", "write catch"),
    ("new", "call the function that makes it"),
    ("static", "write const at the top of the file"),
    ("self", "write this, or pass the value as an argument"),
];

pub(in crate::script) fn problem(source: &SourceText, cause: &ParseError) -> Problem {
    let position = cause.position();
    let found = Found::at(&source.text, position);
    let (message, help) = explain(cause.err_type(), source, &found);
    let mut problem = Problem::error(message);
    problem.help = help;
    if let Some((line, opener)) = unclosed(cause.err_type(), source) {
        problem = problem.note(format!("the {opener} of line {line} is not closed"));
    }
    // Nothing stands where something is missing: the end of what stands before it is shown.
    let place = match cause.err_type() {
        ParseErrorType::MissingToken(token, _) if matches!(token.as_str(), "," | ";") => {
            found.before.or(Some(position))
        }
        ParseErrorType::UnexpectedEOF => found.last.or(Some(position)),
        _ => Some(position),
    };
    at(problem, source, place.unwrap_or(position))
}

/// What stands around a place.
struct Found {
    /// The word or sign at it.
    word: String,
    /// What follows that, without blanks.
    next: String,
    /// A quote stands right before it.
    behind_text: bool,
    /// The last character before it that is no blank.
    before: Option<Position>,
    /// The last character of the text.
    last: Option<Position>,
}

impl Found {
    fn at(text: &str, position: Position) -> Self {
        let offset = offset(text, position).unwrap_or(text.len());
        let rest = &text[offset..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let length = if length == 0 { rest.chars().next().map_or(0, char::len_utf8) } else { length };
        let next = rest[length..].trim_start().chars().take(12).collect();
        let behind_text = text[..offset].ends_with('"');
        Self {
            word: rest[..length].to_owned(),
            next,
            behind_text,
            before: last_of(&text[..offset]),
            last: last_of(text),
        }
    }
}

fn last_of(text: &str) -> Option<Position> {
    let text = text.trim_end();
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next()?.chars().count();
    let (line, column) = (u16::try_from(line).ok()?, u16::try_from(column).ok()?);
    (column > 0).then(|| Position::new(line, column))
}

fn offset(text: &str, position: Position) -> Option<usize> {
    let line: usize = text.split_inclusive('\n').take(position.line()? - 1).map(str::len).sum();
    let column = position.position().unwrap_or(1).saturating_sub(1);
    let within = text[line..].char_indices().nth(column).map_or(text[line..].len(), |(at, _)| at);
    Some(line + within)
}

fn explain(kind: &ParseErrorType, source: &SourceText, found: &Found) -> (String, Option<String>) {
    let foreign = FOREIGN.iter().find(|(word, _)| *word == found.word).map(|(_, instead)| (*instead).to_owned());
    match kind {
        ParseErrorType::VariableUndefined(name) => undefined(name, source, found),
        ParseErrorType::ModuleUndefined(name) => {
            let help =
                format!("import \"path/of/file\" as {name}; at the top, or see `machinist api` for the namespaces");
            (format!("there is no namespace {name}"), Some(help))
        }
        ParseErrorType::Reserved(word) if NOTHING.contains(&word.as_str()) => nothing(word),
        ParseErrorType::Reserved(word) if found.next.starts_with(':') => (
            format!("syntax: the language keeps the word {word} for itself"),
            Some(format!("as a key it is written in quotes: \"{word}\": ...")),
        ),
        ParseErrorType::Reserved(word) => {
            let help = FOREIGN.iter().find(|(foreign, _)| foreign == word).map(|(_, instead)| (*instead).to_owned());
            let help = help.or_else(|| Some("the language keeps this word for itself: use another name".to_owned()));
            (format!("syntax: {word:?} cannot be used here"), help)
        }
        ParseErrorType::VariableExpected if found.word.starts_with(char::is_alphabetic) => {
            let help = "the language keeps this word for itself: use another name".to_owned();
            (format!("syntax: {:?} cannot be used here", found.word), Some(help))
        }
        ParseErrorType::MissingToken(token, what) => missing(token, what, found, foreign),
        ParseErrorType::UnexpectedEOF => {
            ("syntax: the file ends in the middle of something".to_owned(), Some("close what is open".to_owned()))
        }
        ParseErrorType::BadInput(cause) => lexical(cause),
        ParseErrorType::AssignmentToConstant(name) => {
            let help = "a const keeps its value: write let for what changes, or give it another name";
            (format!("the constant {name} cannot be changed"), Some(help.to_owned()))
        }
        ParseErrorType::AssignmentToInvalidLHS(_) => {
            ("syntax: nothing can be assigned to this".to_owned(), Some("to compare, write ==".to_owned()))
        }
        ParseErrorType::WrongFnDefinition => (
            "syntax: a function cannot be defined inside of something".to_owned(),
            Some("a } is missing above it; every fn stands at the top level".to_owned()),
        ),
        ParseErrorType::FnDuplicatedDefinition(name, parameters) => {
            let message = format!("there are two functions {name} with {parameters} parameters");
            (message, Some("rename one, or remove it".to_owned()))
        }
        ParseErrorType::DuplicatedProperty(key) => {
            (format!("the map has the key {key:?} twice"), Some("remove one".to_owned()))
        }
        ParseErrorType::MismatchedType(wanted, given) => {
            let help = if wanted.contains("bool") {
                "a condition is true or false: compare with ==, !=, <, >, or ask value != ()"
            } else {
                "for goes through arrays, ranges (0..n), map.keys() and map.values()"
            };
            (format!("{wanted} is needed here, found {given}"), Some(help.to_owned()))
        }
        ParseErrorType::PropertyExpected => (
            "syntax: a key is missing here".to_owned(),
            Some("a map is written #{ key: value, other: value }".to_owned()),
        ),
        other => (format!("syntax: {}", lowercase(&other.to_string())), foreign),
    }
}

fn nothing(word: &str) -> (String, Option<String>) {
    let help = "nothing is written (): `if value == () { ... }`, `let value = ();`";
    (format!("there is no {word}"), Some(help.to_owned()))
}

fn undefined(name: &str, source: &SourceText, found: &Found) -> (String, Option<String>) {
    if NOTHING.contains(&name) {
        return nothing(name);
    }
    if let Some((_, instead)) = FOREIGN.iter().find(|(word, _)| *word == name) {
        return (format!("syntax: {name:?} is no word of this language"), Some((*instead).to_owned()));
    }
    if found.next.starts_with(':') && !found.next.starts_with("::") {
        let help = "a map is written #{ key: value }, with a # before the {";
        return (format!("syntax: {name}: looks like the key of a map, and this is a block"), Some(help.to_owned()));
    }
    let message = format!("there is no variable {name}");
    if found.next.starts_with('=') && !found.next.starts_with("==") && !found.next.starts_with("=>") {
        return (message, Some(format!("a new variable is written let {name} = ...;")));
    }
    if found.next.starts_with('"') {
        return (message, Some("values go into a text in backticks: `port ${port}`".to_owned()));
    }
    for (word, help) in [
        ("const", format!("functions do not see variables of their file: write global::{name}")),
        (
            "let",
            format!(
                "functions do not see variables of their file: write const {name} = ...; and global::{name}, or pass it as an argument"
            ),
        ),
    ] {
        if source
            .text
            .lines()
            .any(|line| line.starts_with(&format!("{word} {name} ")) || line.starts_with(&format!("{word} {name}=")))
        {
            return (message, Some(help));
        }
    }
    if ["m", "ctx", "job"].contains(&name) {
        return (message, Some(format!("this function does not get {name}: add it to its parameters, and pass it")));
    }
    // Only what is a name somewhere can be what was meant.
    let names = declared(&source.text);
    let help = did_you_mean(name, names.iter().map(String::as_str)).map(|meant| format!("did you mean {meant}?"));
    (message, Some(help.unwrap_or_else(|| format!("write let {name} = ...; before, or \"{name}\" if it is a text"))))
}

/// Variables and parameters of a text.
fn declared(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for line in text.lines() {
        for keyword in ["let ", "const ", "for "] {
            names.extend(line.split(keyword).skip(1).map(word));
        }
        if let Some((_, rest)) = line.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')) {
            names.extend(rest.split(')').next().unwrap_or("").split(',').map(word));
        }
    }
    names.remove("");
    names
}

fn missing(token: &str, what: &str, found: &Found, foreign: Option<String>) -> (String, Option<String>) {
    if foreign.is_some() {
        return (format!("syntax: {:?} is no word of this language", found.word), foreign);
    }
    if found.word == "=" && !found.next.starts_with('=') {
        return ("syntax: = sets a value and does not compare".to_owned(), Some("write == to compare".to_owned()));
    }
    let what = what.trim();
    match token {
        "," => ("syntax: a comma is missing".to_owned(), Some("put a comma behind this".to_owned())),
        ";" => {
            let opener = found.word == "{" || found.word == "(";
            let help =
                if opener { "write the condition or call in front of it" } else { "put a semicolon behind this" };
            ("syntax: a semicolon is missing".to_owned(), Some(help.to_owned()))
        }
        ":" => ("syntax: a key is followed by a colon".to_owned(), Some("write key: value".to_owned())),
        "}" | ")" | "]" => {
            let message = if found.word.trim().is_empty() {
                format!("syntax: {token} is missing {what}")
            } else {
                format!("syntax: {token} is missing {what}, found {:?}", found.word)
            };
            let help = if what.contains("block") {
                format!("close it with {token}")
            } else if found.behind_text {
                format!("put a comma or {token} in front of this; does the text before it end where it should?")
            } else {
                format!("put a comma or {token} in front of this")
            };
            (message, Some(help))
        }
        "{" => {
            let help = "a block begins with {, also where it has one line".to_owned();
            (format!("syntax: {{ is missing {what}"), Some(help))
        }
        _ => (format!("syntax: {token} is missing {what}"), None),
    }
}

fn lexical(cause: &LexError) -> (String, Option<String>) {
    let (message, help) = match cause {
        LexError::UnterminatedString => (
            "syntax: a text begins here and does not end".to_owned(),
            "put a \" at its end; texts of several lines stand in backticks".to_owned(),
        ),
        LexError::MalformedChar(_) => {
            ("syntax: ' ' holds one character".to_owned(), "texts are written in double quotes: \"text\"".to_owned())
        }
        LexError::MalformedEscapeSequence(sequence) => (
            format!("syntax: {sequence} is no escape in a text"),
            "a backslash is written \\\\; in `backticks` it stands for itself".to_owned(),
        ),
        LexError::UnexpectedInput(sign) => (
            format!("syntax: {sign} does not belong here"),
            "something is missing before it: a value, or a semicolon at the end of the line above".to_owned(),
        ),
        LexError::ImproperSymbol(sign, _) if sign == "=" => {
            ("syntax: = sets a value and does not compare".to_owned(), "write == to compare".to_owned())
        }
        LexError::ImproperSymbol(_, text) if text.contains("'eval' is disabled") => {
            ("eval cannot be used: only what was checked is run".to_owned(), "write a function".to_owned())
        }
        LexError::ImproperSymbol(sign, text) if text.contains("hould it be '") => {
            let instead =
                text.rsplit("hould it be '").next().and_then(|rest| rest.split('\'').next()).unwrap_or_default();
            (format!("syntax: {sign} is no operator of this language"), format!("write {instead}"))
        }
        other => return (format!("syntax: {}", lowercase(&other.to_string())), None),
    };
    (message, Some(help))
}

/// The innermost bracket that is open at the end of the text, where the error may come from that.
fn unclosed(kind: &ParseErrorType, source: &SourceText) -> Option<(usize, char)> {
    let concerned = match kind {
        ParseErrorType::UnexpectedEOF | ParseErrorType::WrongFnDefinition => true,
        ParseErrorType::MissingToken(token, _) => matches!(token.as_str(), "}" | ")" | "]"),
        _ => false,
    };
    if !concerned {
        return None;
    }
    let mut open: Vec<(usize, char)> = Vec::new();
    let mut line = 1;
    let mut chars = source.text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            '"' | '`' => {
                // To the end of the text.
                while let Some(inner) = chars.next() {
                    match inner {
                        '\n' => line += 1,
                        '\\' if c == '"' => drop(chars.next()),
                        _ if inner == c => break,
                        _ => {}
                    }
                }
            }
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            '{' | '(' | '[' => open.push((line, c)),
            '}' | ')' | ']' => {
                let opener = match c {
                    '}' => '{',
                    ')' => '(',
                    _ => '[',
                };
                match open.last() {
                    Some((_, last)) if *last == opener => drop(open.pop()),
                    // The one that stands before this one was forgotten.
                    Some(wrong) => return Some(*wrong),
                    None => return None,
                }
            }
            _ => {}
        }
    }
    open.last().copied()
}
