use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rhai::Engine;

use super::Functions;
use super::functions::is_word;
use super::unit::{Call, Unit};
use crate::base::{Problem, SourceText, did_you_mean};
use crate::script::hooks::Hook;

/// Words of the language that look like calls.
const LANGUAGE: [&str; 13] = [
    "print",
    "debug",
    "type_of",
    "call",
    "curry",
    "Fn",
    "is_def_var",
    "is_def_fn",
    "is_shared",
    "this",
    "eval",
    "throw",
    "global",
];

/// Where imports are looked for.
pub(in crate::script) trait Imports {
    /// # Errors
    /// A sentence that says why there is no such file.
    fn find(&self, path: &str) -> Result<PathBuf, String>;
    fn read(&self, file: &Path) -> std::io::Result<String>;
}

struct Walk<'a> {
    engine: &'a Engine,
    functions: &'a Functions,
    imports: &'a dyn Imports,
    /// By file; none of one that does not parse.
    units: BTreeMap<PathBuf, Option<Unit>>,
    problems: Vec<Problem>,
}

/// Everything that is wrong with the script and what it imports.
pub(in crate::script) fn lint(
    engine: &Engine,
    functions: &Functions,
    imports: &dyn Imports,
    source: &SourceText,
    hooks: &[Hook],
) -> Vec<Problem> {
    let mut walk = Walk { engine, functions, imports, units: BTreeMap::new(), problems: Vec::new() };
    walk.load(source.clone(), &mut vec![source.file.clone()]);
    let units: Vec<&Unit> = walk.units.values().flatten().collect();
    let mut problems: Vec<Problem> = Vec::new();
    let whole = walk.units.values().all(Option::is_some);
    // The words of all files: a map's function may be called in another one.
    let words: BTreeSet<&str> = units.iter().flat_map(|unit| unit.words.iter().map(String::as_str)).collect();
    for unit in &units {
        problems.extend(unit.problems.iter().cloned());
        problems.extend(unit.calls.iter().filter_map(|call| walk.check_call(unit, call, &words)));
        problems.extend(unit.calls.iter().flat_map(|call| walk.check_options(unit, call)));
        problems.extend(unused_variables(unit));
    }
    if let (Some(Some(main)), true) = (walk.units.get(&source.file), whole) {
        problems.extend(unused_functions(main, &words, hooks));
    }
    problems.extend(walk.problems);
    // In the order of reading: the script first, each file from its top.
    let place = |problem: &Problem| {
        let location = problem.location.as_ref();
        let file = location.map(|location| location.file.clone());
        (
            file.as_deref() != Some(source.file.as_path()),
            file,
            location.map(|location| (location.line, location.column)),
        )
    };
    problems.sort_by_key(place);
    problems
}

impl Walk<'_> {
    /// Reads a file and, before it is looked at, what it imports.
    fn load(&mut self, source: SourceText, chain: &mut Vec<PathBuf>) {
        let file = source.file.clone();
        let unit = match Unit::read(self.engine, source) {
            Ok(unit) => unit,
            Err(problems) => {
                self.problems.extend(problems.into_iter().map(|problem| imported(problem, chain)));
                self.units.insert(file, None);
                return;
            }
        };
        let mut found = Vec::new();
        for import in &unit.imports {
            let path = match self.imports.find(&import.path) {
                Ok(path) => path,
                Err(why) => {
                    self.problems.push(unit.at(Problem::error(why), import.at));
                    continue;
                }
            };
            if let Some(begin) = chain.iter().position(|file| *file == path) {
                let mut names: Vec<String> = chain[begin..].iter().map(|file| file.display().to_string()).collect();
                names.push(path.display().to_string());
                let problem = Problem::error(format!("files import each other: {}", names.join(" -> ")));
                let problem = problem.help("move what both need into a third file");
                self.problems.push(unit.at(problem, import.at));
                continue;
            }
            match self.imports.read(&path) {
                Ok(text) => found.push(SourceText::new(&path, &text)),
                Err(cause) => {
                    let problem = Problem::error(format!("the import {:?} cannot be read: {cause}", import.path));
                    self.problems.push(unit.at(problem, import.at));
                }
            }
        }
        self.units.insert(file, Some(unit));
        for source in found {
            if !self.units.contains_key(&source.file) {
                chain.push(source.file.clone());
                self.load(source, chain);
                chain.pop();
            }
        }
    }

    /// What is imported in `unit` under `alias`; none when that is unknown, or could not be read.
    fn module(&self, unit: &Unit, alias: &str) -> Option<&Unit> {
        let import = unit.imports.iter().find(|import| import.alias == alias)?;
        let path = self.imports.find(&import.path).ok()?;
        self.units.get(&path)?.as_ref()
    }

    fn check_call(&self, unit: &Unit, call: &Call, words: &BTreeSet<&str>) -> Option<Problem> {
        let (namespace, bare) = call.name.rsplit_once("::").map_or((None, call.name.as_str()), |(n, b)| (Some(n), b));
        if !is_word(bare) || LANGUAGE.contains(&bare) {
            return None;
        }
        let own = |unit: &Unit, name: &str| -> BTreeSet<usize> {
            unit.functions.iter().filter(|function| function.name == name).map(|function| function.parameters).collect()
        };
        let fits = |takes: &BTreeSet<usize>| takes.contains(&call.arguments);
        let mut takes: BTreeSet<usize>;
        // For who misspelled one; most calls are right, and need none of them.
        let mut names: Vec<String> = Vec::new();
        match namespace {
            Some("global") => return None,
            Some(namespace) if self.functions.has_namespace(namespace) => {
                takes = self.functions.arities(&call.name).cloned().unwrap_or_default();
                if fits(&takes) {
                    return None;
                }
                let prefix = format!("{namespace}::");
                names.extend(self.functions.names().filter(|name| name.starts_with(&prefix)).map(str::to_owned));
            }
            Some(namespace) => {
                let module = self.module(unit, namespace)?;
                takes = own(module, bare);
                if fits(&takes) {
                    return None;
                }
                names.extend(module.functions.iter().map(|function| format!("{namespace}::{}", function.name)));
            }
            None => {
                let registered = self.functions.arities(bare).cloned().unwrap_or_default();
                // A script's own function can be called as a method, with `this` in the place of an argument.
                takes = own(unit, bare);
                if call.method {
                    takes.extend(registered.iter().filter_map(|n| n.checked_sub(1)));
                    // Whatever is written as a key or property may be a function in a map.
                    if takes.is_empty() && words.contains(bare) {
                        return None;
                    }
                } else {
                    takes.extend(registered);
                    // A variable may hold a function.
                    if takes.is_empty()
                        && (unit.used.contains(bare) || unit.declared.iter().any(|(name, _)| name == bare))
                    {
                        return None;
                    }
                }
                if fits(&takes) {
                    return None;
                }
                names.extend(unit.functions.iter().map(|function| function.name.clone()));
                names.extend(
                    self.functions.names().filter(|name| call.method || !name.contains("::")).map(str::to_owned),
                );
                if !call.method {
                    names.extend(self.functions.names().filter(|name| name.contains("::")).map(str::to_owned));
                }
            }
        }
        let shown = if call.method { format!(".{bare}") } else { call.name.clone() };
        let problem = if takes.is_empty() {
            let mut problem = Problem::error(format!("there is no function {shown}"));
            // `helper` for `tools::helper` is meant as well.
            let elsewhere = || {
                let tail = format!("::{bare}");
                names.iter().find(|name| name.ends_with(&tail)).map(String::as_str)
            };
            let meant = did_you_mean(&call.name, names.iter().map(String::as_str)).or_else(elsewhere);
            problem.help = Some(match (meant, namespace) {
                (Some(meant), _) => format!("did you mean {meant}?"),
                (None, Some(namespace)) => {
                    let mut known: Vec<&str> = names.iter().map(String::as_str).collect();
                    known.sort_unstable();
                    known.dedup();
                    if known.is_empty() {
                        format!("{namespace} has no functions")
                    } else {
                        format!("there are {}", known.join(", "))
                    }
                }
                (None, None) => "define it with fn, or import it; `machinist api` lists what there is".to_owned(),
            });
            problem
        } else {
            Problem::error(format!("{shown} is called with {}, it takes {}", count(call.arguments), or(&takes)))
        };
        Some(unit.at(problem, call.at))
    }

    fn check_options(&self, unit: &Unit, call: &Call) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (place, keys) in &call.maps {
            let Some(known) = self.functions.options(&call.name, *place) else { continue };
            for (key, at) in keys.iter().filter(|(key, _)| !known.contains(key)) {
                let problem = Problem::error(format!("{} has no option {key:?}", call.name));
                let help = match did_you_mean(key, known.iter().map(String::as_str)) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => format!("known are {}", known.join(", ")),
                };
                problems.push(unit.at(problem.help(help), *at));
            }
        }
        problems
    }
}

/// With the files that lead to it.
fn imported(problem: Problem, chain: &[PathBuf]) -> Problem {
    let outer = &chain[..chain.len() - 1];
    outer.iter().rev().fold(problem, |problem, file| problem.note(format!("imported by {}", file.display())))
}

fn unused_variables(unit: &Unit) -> Vec<Problem> {
    let unused = unit.declared.iter().filter(|(name, _)| {
        // Configuration is read by the engine, and constants of a module by others.
        let constant = name.chars().all(|c| c.is_uppercase() || c == '_' || c.is_numeric());
        !name.starts_with('_') && !constant && !unit.used.contains(name)
    });
    unused
        .map(|(name, at)| {
            let problem = Problem::warning(format!("the variable {name} is never used"));
            unit.at(problem.help(format!("remove it, or call it _{name}")), *at)
        })
        .collect()
}

/// Functions that nobody calls: superfluous, or hooks that are misspelled.
fn unused_functions(main: &Unit, words: &BTreeSet<&str>, hooks: &[Hook]) -> Vec<Problem> {
    let called: BTreeSet<&str> = main.calls.iter().map(|call| call.name.as_str()).collect();
    let mut problems = Vec::new();
    for function in &main.functions {
        let name = function.name.as_str();
        let is_hook = hooks.iter().any(|hook| hook.name == name);
        let named = called.contains(name) || words.contains(name) || main.used.contains(name);
        let is_test = name.starts_with("test_") && main.source.file.to_string_lossy().ends_with("_test.rhai");
        if is_hook || named || is_test || name.starts_with('_') {
            continue;
        }
        let missing = hooks.iter().filter(|hook| !main.functions.iter().any(|function| function.name == hook.name));
        let missing: Vec<&Hook> = missing.filter(|hook| hook.arity() == function.parameters).collect();
        let meant = did_you_mean(name, missing.iter().map(|hook| hook.name));
        // That a required hook is missing is told anyway.
        if meant.is_some_and(|meant| hooks.iter().any(|hook| hook.name == meant && hook.required)) {
            continue;
        }
        let problem = match meant {
            Some(meant) => {
                Problem::error(format!("nothing calls the function {name}, and there is no hook of that name"))
                    .help(format!("did you mean {meant}?"))
            }
            None => Problem::warning(format!("nothing calls the function {name}"))
                .help(format!("remove it, or call it _{name}")),
        };
        problems.push(at_function(&main.source, name, problem));
    }
    problems
}

/// `problem` at the definition of function `name`.
pub(in crate::script) fn at_function(source: &SourceText, name: &str, problem: Problem) -> Problem {
    let needle = format!("fn {name}");
    let found = source.text.lines().enumerate().find_map(|(number, line)| {
        let column = line.find(&needle)?;
        let next = line[column + needle.len()..].chars().next();
        let whole = next.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        whole.then(|| (number + 1, line[..column].chars().count() + 4))
    });
    match found {
        Some((line, column)) => problem.at(source, line, Some(column)),
        None => problem.in_file(&source.file),
    }
}

pub(in crate::script) fn count(arguments: usize) -> String {
    match arguments {
        0 => "no arguments".to_owned(),
        1 => "1 argument".to_owned(),
        n => format!("{n} arguments"),
    }
}

fn or(numbers: &BTreeSet<usize>) -> String {
    let numbers: Vec<String> =
        numbers.iter().map(|n| if *n == 0 { "none".to_owned() } else { n.to_string() }).collect();
    numbers.join(" or ")
}
