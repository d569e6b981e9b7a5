use std::collections::BTreeSet;

use rhai::{AST, ASTNode, Engine, Expr, ParseErrorType, Position, Stmt};

use crate::base::{Problem, SourceText};
use crate::script::error::Places;

/// One file, compiled, with what a look at its tree tells.
pub(super) struct Unit {
    pub source: SourceText,
    pub functions: Vec<Function>,
    pub calls: Vec<Call>,
    pub imports: Vec<Import>,
    pub declared: Vec<(String, Position)>,
    /// Variables that are read or written somewhere.
    pub used: BTreeSet<String>,
    /// Every word that stands for a key, a property or a text: what may be called by name.
    pub words: BTreeSet<String>,
    pub problems: Vec<Problem>,
}

pub(super) struct Function {
    pub name: String,
    pub parameters: usize,
}

pub(super) struct Call {
    /// `namespace::name` or `name`.
    pub name: String,
    pub arguments: usize,
    /// `value.name(...)`.
    pub method: bool,
    pub at: Position,
    /// Maps that are written out among the arguments: the place, and the keys.
    pub maps: Vec<(usize, Vec<(String, Position)>)>,
}

pub(super) struct Import {
    pub path: String,
    pub alias: String,
    pub at: Position,
}

/// So many undefined variables of one file are reported at once.
const MAX_UNDEFINED: usize = 20;

impl Unit {
    /// None when the file does not even parse; its problems are then all there is to say.
    pub fn read(engine: &Engine, source: SourceText) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let ast = parse(engine, &source, &mut problems)?;
        let mut unit = Self {
            source,
            functions: Vec::new(),
            calls: Vec::new(),
            imports: Vec::new(),
            declared: Vec::new(),
            used: BTreeSet::new(),
            words: BTreeSet::new(),
            problems,
        };
        for function in ast.iter_functions() {
            if !function.name.starts_with("anon$") {
                unit.functions.push(Function { name: function.name.to_owned(), parameters: function.params.len() });
            }
        }
        let mut seen = BTreeSet::new();
        ast.walk(&mut |nodes: &[ASTNode<'_>]| {
            if let Some(node) = nodes.last() {
                unit.look_at(node, &mut seen);
            }
            true
        });
        Ok(unit)
    }

    fn look_at(&mut self, node: &ASTNode<'_>, seen: &mut BTreeSet<(Position, String)>) {
        match node {
            ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at)) => {
                self.call(call, *at, false, seen);
            }
            ASTNode::Expr(Expr::MethodCall(call, at)) => self.call(call, *at, true, seen),
            ASTNode::Expr(Expr::Variable(variable, _, _)) => drop(self.used.insert(variable.1.to_string())),
            ASTNode::Expr(Expr::Property(property, _)) => drop(self.words.insert(property.2.to_string())),
            ASTNode::Expr(Expr::StringConstant(text, _)) => drop(self.words.insert(text.to_string())),
            ASTNode::Expr(Expr::Map(map, _)) => self.words.extend(map.0.iter().map(|(key, _)| key.name.to_string())),
            ASTNode::Expr(Expr::DynamicConstant(value, _)) => self.word_of(value),
            ASTNode::Stmt(Stmt::Var(variable, ..)) => {
                self.declared.push((variable.0.name.to_string(), variable.0.pos));
            }
            ASTNode::Stmt(Stmt::Share(shared)) => {
                self.used.extend(shared.iter().map(|(name, _)| name.name.to_string()));
            }
            ASTNode::Stmt(Stmt::Export(export, _)) => drop(self.used.insert(export.0.name.to_string())),
            ASTNode::Stmt(Stmt::Import(import, at)) => {
                if let Expr::StringConstant(path, at_path) = &import.0 {
                    let at = if at_path.is_none() { *at } else { *at_path };
                    self.imports.push(Import { path: path.to_string(), alias: import.1.name.to_string(), at });
                }
            }
            _ => {}
        }
    }

    /// `Fn("name")` is a constant that names a function.
    fn word_of(&mut self, value: &rhai::Dynamic) {
        if let Some(function) = value.read_lock::<rhai::FnPtr>() {
            self.words.insert(function.fn_name().to_owned());
        }
    }

    fn call(&mut self, call: &rhai::FnCallExpr, at: Position, method: bool, seen: &mut BTreeSet<(Position, String)>) {
        let namespace = call.namespace.to_string();
        let namespace = namespace.trim_end_matches("::");
        let name = if namespace.is_empty() { call.name.to_string() } else { format!("{namespace}::{}", call.name) };
        // The tree has some nodes twice.
        if !seen.insert((at, name.clone())) {
            return;
        }
        let maps = call.args.iter().enumerate().filter_map(|(place, argument)| match argument {
            Expr::Map(map, _) => Some((place, map.0.iter().map(|(key, _)| (key.name.to_string(), key.pos)).collect())),
            _ => None,
        });
        self.calls.push(Call { name, arguments: call.args.len(), method, at, maps: maps.collect() });
    }

    /// `problem` at a place of this file.
    pub fn at(&self, problem: Problem, at: Position) -> Problem {
        match at.line() {
            Some(line) => problem.at(&self.source, line, at.position()),
            None => problem.in_file(&self.source.file),
        }
    }
}

/// Compiles, and goes on behind variables that are not there, so that all of them are known at once.
fn parse(engine: &Engine, source: &SourceText, problems: &mut Vec<Problem>) -> Result<AST, Vec<Problem>> {
    let mut text = source.text.to_string();
    loop {
        let cause = match engine.compile(&text) {
            Ok(ast) => return Ok(ast),
            Err(cause) => cause,
        };
        let undefined = match cause.err_type() {
            ParseErrorType::VariableUndefined(name) => Some(name.clone()),
            _ => None,
        };
        // Behind what was mended another error may be ours.
        if problems.is_empty() || undefined.is_some() {
            problems.push(Places::syntax(source, &cause));
        }
        let mended = undefined.and_then(|name| blank(&text, cause.position(), &name));
        match mended {
            Some(mended) if problems.len() < MAX_UNDEFINED => text = mended,
            _ => return Err(std::mem::take(problems)),
        }
    }
}

/// The text with a number in the place of a name, as long as it.
fn blank(text: &str, at: Position, name: &str) -> Option<String> {
    let line = text.split('\n').take(at.line()? - 1).map(|line| line.len() + 1).sum::<usize>();
    let column = text[line..].char_indices().nth(at.position()? - 1)?.0;
    let start = line + column;
    if !text[start..].starts_with(name) {
        return None;
    }
    let mut mended = text.to_owned();
    mended.replace_range(start..start + name.len(), &format!("0{}", " ".repeat(name.len() - 1)));
    Some(mended)
}
