use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhai::{Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Shared};

use super::call::ScriptResult;
use super::data::is_shallow;
use super::lint::Imports;
use crate::base::SourceText;
use crate::host::Seen;

/// Resolves imports inside the allowed directories only and remembers every file it read. Each file is read and run once.
#[derive(Clone)]
pub(super) struct RootedResolver {
    roots: Arc<Vec<PathBuf>>,
    seen: Seen,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    modules: BTreeMap<PathBuf, Shared<Module>>,
    sources: Vec<SourceText>,
    /// The imports that are being resolved, outermost first.
    chain: Vec<PathBuf>,
}

impl RootedResolver {
    pub fn new(roots: Vec<PathBuf>, seen: Seen) -> Self {
        Self { roots: Arc::new(roots), seen, state: Arc::default() }
    }

    /// What was read before stands as it was read; what is imported from now on is this one's only.
    pub fn with_the_same_files(&self) -> Self {
        let state = self.lock();
        let state = State { modules: state.modules.clone(), sources: state.sources.clone(), chain: Vec::new() };
        Self { roots: Arc::clone(&self.roots), seen: Seen::default(), state: Arc::new(Mutex::new(state)) }
    }

    /// The imported files, in the order they were met.
    pub fn sources(&self) -> Vec<SourceText> {
        self.lock().sources.clone()
    }

    fn find(&self, path: &str) -> Result<PathBuf, String> {
        let relative = Path::new(path);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(format!(
                "the import {path:?} leaves the script directories; write a path below the machine's or the scripts directory"
            ));
        }
        for root in self.roots.iter() {
            let candidate = root.join(format!("{path}.rhai"));
            if !self.seen.is_file(&candidate) {
                continue;
            }
            let Ok(real) = candidate.canonicalize() else { continue };
            // A link out of the directory is as good as `..`. Links inside it are how Kubernetes mounts files.
            let inside =
                self.roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
            if !inside {
                return Err(format!("the import {path:?} is a link that leaves the script directories"));
            }
            return Ok(candidate);
        }
        let roots: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
        let without = path.strip_suffix(".rhai").map(|path| format!("; write the import without .rhai: {path:?}"));
        // A machine was copied to where no scripts lie beside it.
        let nowhere = self.roots.last().filter(|root| !root.is_dir());
        let nowhere = nowhere.map(|root| {
            format!("; {} is not there: say where the scripts are, MACHINIST_SCRIPTS_DIR=DIR", root.display())
        });
        let notes = [without, nowhere].into_iter().flatten().collect::<String>();
        Err(format!("there is no file {path}.rhai in {}{notes}", roots.join(" or ")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModuleResolver for RootedResolver {
    fn resolve(
        &self,
        engine: &Engine,
        _source: Option<&str>,
        path: &str,
        position: Position,
    ) -> ScriptResult<Shared<Module>> {
        let fail =
            |message: String| -> Box<EvalAltResult> { EvalAltResult::ErrorRuntime(message.into(), position).into() };
        let file = self.find(path).map_err(fail)?;
        {
            let mut state = self.lock();
            if let Some(module) = state.modules.get(&file) {
                return Ok(Shared::clone(module));
            }
            if state.chain.contains(&file) {
                let names: Vec<String> = state.chain.iter().map(|file| file.display().to_string()).collect();
                return Err(fail(format!("files import each other: {} -> {}", names.join(" -> "), file.display())));
            }
            state.chain.push(file.clone());
        }
        let outcome = self.load(engine, &file, path, position);
        let mut state = self.lock();
        state.chain.pop();
        let module = outcome?;
        state.modules.insert(file, Shared::clone(&module));
        Ok(module)
    }
}

impl Imports for RootedResolver {
    fn find(&self, path: &str) -> Result<PathBuf, String> {
        RootedResolver::find(self, path)
    }

    fn read(&self, file: &Path) -> std::io::Result<String> {
        self.seen.read(file)
    }
}

impl RootedResolver {
    fn load(&self, engine: &Engine, file: &Path, path: &str, position: Position) -> ScriptResult<Shared<Module>> {
        let in_module = |cause: Box<EvalAltResult>| -> Box<EvalAltResult> {
            EvalAltResult::ErrorInModule(file.display().to_string(), cause, position).into()
        };
        let text = self.seen.read(file).map_err(|cause| {
            let message = format!("the import {path:?} cannot be read: {cause}");
            Box::new(EvalAltResult::ErrorRuntime(message.into(), position))
        })?;
        self.lock().sources.push(SourceText::new(file, &text));
        let mut ast = engine.compile(&text).map_err(|cause| in_module(Box::new(cause.into())))?;
        ast.set_source(file.display().to_string());
        let module = Module::eval_ast_as_new(Scope::new(), &ast, engine).map_err(in_module)?;
        // The module outlives the thread that runs it, whose stack is the only one with room for anything.
        if let Some((name, _)) = module.iter_var().find(|(_, value)| !is_shallow(value)) {
            let message = format!("what {name} stands for is nested too deeply to be exported");
            return Err(in_module(EvalAltResult::ErrorRuntime(message.into(), Position::NONE).into()));
        }
        Ok(Shared::new(module))
    }
}
