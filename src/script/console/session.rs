use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhai::{AST, Dynamic, Engine, Expr, Module, Scope, Shared, Stmt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Said, Shown};
use crate::base::{Problem, SourceText};
use crate::host::held_by_thread;
use crate::script::MachineContext;
use crate::script::call::MAX_MEMORY;
use crate::script::data::{Secrets, kind_of, to_json};
use crate::script::engine::{self, Power};
use crate::script::error::{Places, syntax};
use crate::script::lines::Lines;
use crate::script::lint::Functions;
use crate::script::program::{LOAD_LIMIT, Program};
use crate::script::resolver::RootedResolver;
use crate::script::runner;

/// What errors name as their file.
const NAME: &str = "console";
/// A longer text is cut.
const MAX_TEXT: usize = 256 * 1024;
/// What was written so far is kept, to show the place of errors.
const MAX_WRITTEN: usize = 4 * 1024 * 1024;

/// What a console remembers, in its thread.
pub(super) struct Session {
    program: Arc<Program>,
    engine: Engine,
    functions: &'static Functions,
    resolver: RootedResolver,
    scope: Scope<'static>,
    /// Functions of earlier inputs.
    defined: AST,
    /// By the line that they were written in.
    imports: BTreeMap<usize, String>,
    /// All inputs, one below the other: places are lines of this, so that a function of an earlier input has its own.
    written: String,
    /// Bytes that the thread held at the beginning.
    base: isize,
    /// The machine's own script could not be taken in.
    broken: Option<Problem>,
}

impl Session {
    pub fn new(program: Arc<Program>, m: MachineContext) -> Self {
        let resolver = program.resolver.with_the_same_files();
        let engine = engine::build(Power::Full, resolver.clone());
        let functions = Functions::of(Power::Full);
        let mut session = Self {
            program,
            engine,
            functions,
            resolver,
            scope: Scope::new(),
            defined: AST::empty(),
            imports: BTreeMap::new(),
            written: String::new(),
            base: 0,
            broken: None,
        };
        session.take_in_script(&m);
        session.base = held_by_thread();
        session
    }

    /// Makes the functions of the machine's script the engine's, with their own constants and imports.
    fn take_in_script(&mut self, m: &MachineContext) {
        let mut call = self.program.call(CancellationToken::new(), Instant::now() + LOAD_LIMIT);
        call.pure = true;
        let made = runner::guarded(call, || {
            let (engine, ast) = (&self.engine, &self.program.ast);
            // What a module does not export it keeps for its functions; the console has it, too.
            let mut constants = Scope::new();
            let module = engine
                .run_ast_with_scope(&mut constants, ast)
                .and_then(|()| Module::eval_ast_as_new(Scope::new(), ast, engine))
                .map_err(|cause| self.program.problem(&cause, &self.resolver.sources(), "", None))?;
            let m = rhai::serde::to_dynamic(m).map_err(|cause| Problem::error(cause.to_string()))?;
            Ok((module, constants, m))
        });
        match made.unwrap_or_else(|message| Err(Problem::error(message))) {
            Ok((module, constants, m)) => {
                self.scope = constants;
                self.scope.push_dynamic("m", m);
                self.engine.register_global_module(Shared::new(module));
            }
            Err(problem) => self.broken = Some(problem),
        }
    }

    /// Evaluates an input in this thread.
    pub fn evaluate(
        &mut self,
        code: &str,
        limit: Duration,
        cancel: CancellationToken,
        told: mpsc::Sender<Said>,
    ) -> Said {
        if let Some(problem) = &self.broken {
            return Said::Problem(problem.clone());
        }
        if self.written.len() + code.len() > MAX_WRITTEN {
            return Said::Problem(Problem::error("this console has been told enough").help("open a new one"));
        }
        let left = MAX_MEMORY.cast_signed() - (held_by_thread() - self.base);
        let mut call = self.program.call(cancel, Instant::now() + limit);
        call.lines = Arc::new(Lines::told_to(told));
        call.memory = left.max(0).cast_unsigned();
        let outcome = runner::guarded(call, || self.run(code, limit));
        match outcome {
            Ok(Ok(shown)) => Said::Value(shown),
            Ok(Err(problem)) => Said::Problem(problem),
            Err(message) => Said::Problem(Problem::error(message)),
        }
    }

    fn run(&mut self, code: &str, limit: Duration) -> Result<Shown, Problem> {
        let first = self.written.lines().count() + 1;
        let text = self.in_place(first, code);
        let _ = writeln!(self.written, "{}", code.trim_end_matches(['\n', '\r']));
        let source = SourceText::new(Path::new(NAME), &self.written);
        let input =
            self.engine.compile_with_scope(&self.scope, &text).map_err(|cause| syntax::problem(&source, &cause))?;
        let functions = self.defined.merge(&input.clone_functions_only());
        let mut whole = functions.merge(&AST::new(input.statements().to_vec(), Module::new()));
        whole.set_source(NAME);
        let outcome = self.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &whole);
        // What an input defined is there, whatever became of the rest of it: so are its variables.
        self.defined = functions;
        self.forget_shadowed();
        match outcome {
            Ok(value) => {
                self.imports.extend(imports(first, &input));
                Ok(self.show(&value))
            }
            Err(cause) => Err(self.problem(&cause, &source, first, limit)),
        }
    }

    /// The input as the compiler gets it: in its own lines, below what earlier inputs imported.
    fn in_place(&self, first: usize, code: &str) -> String {
        let mut text = String::new();
        for line in 1..first {
            text.push_str(self.imports.get(&line).map_or("", String::as_str));
            text.push('\n');
        }
        text + code
    }

    /// A name that was declared again is one variable.
    fn forget_shadowed(&mut self) {
        let mut names = BTreeSet::new();
        // The latest comes first.
        let mut kept: Vec<(String, bool, Dynamic)> = self
            .scope
            .iter_raw()
            .filter(|(name, ..)| names.insert((*name).to_owned()))
            .map(|(name, constant, value)| (name.to_owned(), constant, value.clone()))
            .collect();
        if kept.len() == self.scope.len() {
            return;
        }
        kept.reverse();
        self.scope.clear();
        for (name, constant, value) in kept {
            if constant {
                self.scope.push_constant_dynamic(name, value);
            } else {
                self.scope.push_dynamic(name, value);
            }
        }
    }

    fn problem(&self, cause: &rhai::EvalAltResult, source: &SourceText, first: usize, limit: Duration) -> Problem {
        let mut sources = vec![source.clone()];
        sources.extend(self.program.sources.iter().cloned());
        sources.extend(self.resolver.sources());
        let places = Places { sources: &sources, tree: None, engine: &self.engine, functions: self.functions };
        let problem = places.runtime(cause, "", Some(limit));
        // Rhai does not say where a primitive was called that failed.
        let somewhere = problem.location.as_ref().is_some_and(|place| place.line == 0 && place.file == source.file);
        if somewhere { problem.at(source, first, Some(1)) } else { problem }
    }

    fn show(&self, value: &Dynamic) -> Shown {
        let kind = kind_of(value);
        let data = to_json(value, Secrets::Redact).ok();
        let mut text = match &data {
            Some(data) if !value.is_unit() => serde_json::to_string_pretty(data).unwrap_or_default(),
            Some(_) => String::new(),
            None => self.in_words(value),
        };
        let length = text.len();
        let mut data = data.filter(|data| !data.is_null());
        if length > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            let _ = write!(text, "... ({length} bytes in all)");
            data = None;
        }
        let mut variables: Vec<String> = self.scope.iter_raw().map(|(name, ..)| name.to_owned()).collect();
        variables.sort();
        Shown { kind, text, data, variables }
    }

    /// What is no plain data, as it prints itself.
    fn in_words(&self, value: &Dynamic) -> String {
        let mut scope = Scope::new();
        scope.push_dynamic("value", value.clone());
        let said = self.engine.eval_expression_with_scope::<String>(&mut scope, "value.to_string()");
        said.unwrap_or_else(|_| value.to_string())
    }
}

/// What an input imports under a name, as it would be written.
fn imports(first: usize, input: &AST) -> Option<(usize, String)> {
    let mut text = String::new();
    for statement in input.statements() {
        let Stmt::Import(import, at) = statement else { continue };
        let (path, name) = &**import;
        // What stands for earlier inputs is compiled again with this one.
        if at.line().is_none_or(|line| line < first) || name.is_empty() {
            continue;
        }
        if let Expr::StringConstant(path, _) = path {
            let _ = write!(text, "import {} as {};", serde_json::Value::from(path.as_str()), name.as_str());
        }
    }
    (!text.is_empty()).then_some((first, text))
}
