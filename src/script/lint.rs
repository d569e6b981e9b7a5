use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, Engine, Expr, Position, Stmt};

use crate::base::{Problem, SourceText, did_you_mean};

/// What a script may call: names with the numbers of arguments they take.
#[derive(Debug, Default)]
pub(super) struct Functions {
    arities: BTreeMap<String, BTreeSet<usize>>,
}

/// Words of the language that look like calls.
const LANGUAGE: [&str; 12] = [
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
];

impl Functions {
    /// Everything registered in the engine, primitives as `namespace::name`.
    pub fn of(engine: &Engine) -> Self {
        let mut functions = Self::default();
        for signature in engine.gen_fn_signatures(true) {
            let Some((name, rest)) = signature.split_once('(') else { continue };
            functions.arities.entry(name.trim().to_owned()).or_default().insert(count_parameters(rest));
        }
        functions
    }

    pub fn names(&self) -> Vec<String> {
        self.arities.keys().filter(|name| is_word(name)).cloned().collect()
    }

    /// Calls in `ast` to functions that are not there, or with a number of arguments that none of them takes.
    pub fn check(&self, ast: &AST, source: &SourceText) -> Vec<Problem> {
        let mut own: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        let mut variables: BTreeSet<String> = BTreeSet::new();
        for function in ast.iter_functions() {
            own.entry(function.name.to_owned()).or_default().insert(function.params.len());
            variables.extend(function.params.iter().map(|name| (*name).to_owned()));
        }
        let mut calls: Vec<(String, usize, Position)> = Vec::new();
        ast.walk(&mut |nodes: &[ASTNode<'_>]| {
            match nodes.last() {
                Some(ASTNode::Expr(Expr::FnCall(call, position)) | ASTNode::Stmt(Stmt::FnCall(call, position))) => {
                    let namespace = call.namespace.to_string();
                    let name = if namespace.is_empty() {
                        call.name.to_string()
                    } else {
                        format!("{}::{}", namespace.trim_end_matches("::"), call.name)
                    };
                    calls.push((name, call.args.len(), *position));
                }
                Some(ASTNode::Stmt(Stmt::Var(variable, ..))) => {
                    variables.insert(variable.0.name.to_string());
                }
                _ => {}
            }
            true
        });
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, arguments, position) in calls {
            let bare = name.rsplit("::").next().unwrap_or(&name);
            let skipped = !is_word(bare) || LANGUAGE.contains(&bare) || variables.contains(&name);
            if skipped || !self.knows_namespace(&name) || !seen.insert((name.clone(), arguments, position)) {
                continue;
            }
            let arities: BTreeSet<usize> =
                [own.get(&name), self.arities.get(&name)].into_iter().flatten().flatten().copied().collect();
            if arities.contains(&arguments) {
                continue;
            }
            let problem = if arities.is_empty() {
                let names = own.keys().chain(self.arities.keys()).map(String::as_str).filter(|name| is_word(name));
                let mut problem = Problem::error(format!("there is no function {name}"));
                problem.help = did_you_mean(&name, names).map(|meant| format!("did you mean {meant}?"));
                problem
            } else {
                let takes: Vec<String> = arities.iter().map(ToString::to_string).collect();
                Problem::error(format!("{name} is called with {arguments} arguments, it takes {}", takes.join(" or ")))
            };
            problems.push(match position.line() {
                Some(line) => problem.at(source, line, position.position()),
                None => problem.in_file(&source.file),
            });
        }
        problems
    }

    /// What a script imports under a name of its own is checked in its own file.
    fn knows_namespace(&self, name: &str) -> bool {
        match name.rsplit_once("::") {
            None => true,
            Some((namespace, _)) => self.arities.keys().any(|known| known.starts_with(&format!("{namespace}::"))),
        }
    }
}

fn is_word(name: &str) -> bool {
    !name.contains('$') && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

/// Counts the parameters in `a: X, b: Y<Z, W>) -> R`.
fn count_parameters(rest: &str) -> usize {
    let mut depth = 0;
    let mut commas = 0;
    let mut any = false;
    for c in rest.chars() {
        match c {
            ')' if depth == 0 => break,
            '(' | '<' | '[' => depth += 1,
            ')' | '>' | ']' => depth -= 1,
            ',' if depth == 0 => commas += 1,
            _ => {}
        }
        any |= !c.is_whitespace();
    }
    if any { commas + 1 } else { 0 }
}
