use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhai::{AST, Dynamic, Engine, EvalAltResult, FuncArgs, OptimizationLevel, Scope};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::call::{Call, ScriptResult, error};
use super::config::ConfigSchema;
use super::connector::ConnectorProgram;
use super::data::{Secrets, to_json};
use super::engine::{self, Power};
use super::error::{Places, failure_of};
use super::hooks::{CONNECTOR_HOOKS, Hook, MACHINE_HOOKS};
use super::lint::{Functions, at_function, count, lint};
use super::locate::locate;
use super::resolver::RootedResolver;
use super::runner;
use crate::base::{Allowance, Name, Problem, Problems, SourceText, did_you_mean};
use crate::host::http::HttpClients;
use crate::host::process::Processes;
use crate::host::redis::RedisConnections;
use crate::host::storage::Storages;
use crate::host::ws::SharedSockets;
use crate::host::{GpusStatus, Seen};
use crate::queue::Failure;
use crate::spec::FieldProblem;
use crate::supervisor::SupervisorHandle;
use crate::telemetry::{EventLog, Published};

#[derive(Clone)]
pub struct ScriptHostConfig {
    pub machine_dir: PathBuf,
    pub scripts_dir: PathBuf,
    pub state_dir: PathBuf,
    pub processes: Processes,
    /// For the `service::` primitives and the start-up sequence; none where nothing runs, as in `machinist check`.
    pub supervisor: Option<SupervisorHandle>,
    /// `<machine>/<engine incarnation>`, for the marks of processes that scripts start.
    pub mark_prefix: String,
    pub runtime: Handle,
    /// What `events::` writes to and reads; none where nothing runs.
    pub events: Option<EventLog>,
    /// What `gpu::` reads; none where nothing runs.
    pub gpus: Option<Published<GpusStatus>>,
}

/// What primitives work with.
#[derive(Clone)]
pub(super) struct Deps {
    pub config: ScriptHostConfig,
    pub runtime: Handle,
    pub http: HttpClients,
    pub sockets: SharedSockets,
    pub storages: Storages,
    pub redis: RedisConnections,
    emitted: Arc<Mutex<Allowance>>,
}

/// Events of all scripts together.
const EVENTS_AT_ONCE: u32 = 100;
const EVENTS_PER_SECOND: f64 = 10.0;

impl Deps {
    /// Whether a script may tell of another event.
    pub fn may_emit(&self, now: Instant) -> bool {
        self.emitted.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }
}

/// Loads programs.
#[derive(Clone)]
pub struct ScriptHost {
    pub(super) deps: Arc<Deps>,
    pub(super) seen: Seen,
}

/// Top levels only declare; a second is plenty.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(2);

impl ScriptHost {
    pub fn new(config: ScriptHostConfig) -> Self {
        let runtime = config.runtime.clone();
        let deps = Deps {
            config,
            runtime,
            http: HttpClients::default(),
            sockets: SharedSockets::default(),
            storages: Storages::default(),
            redis: RedisConnections::default(),
            emitted: Arc::new(Mutex::new(Allowance::new(EVENTS_AT_ONCE, EVENTS_PER_SECOND, Instant::now()))),
        };
        Self { deps: Arc::new(deps), seen: Seen::default() }
    }

    /// A host for a machine in another directory.
    #[must_use]
    pub fn for_directory(&self, machine_dir: PathBuf) -> Self {
        let config = ScriptHostConfig { machine_dir, ..self.deps.config.clone() };
        // What is connected stays connected.
        let deps = Deps { config, ..Deps::clone(&self.deps) };
        Self { deps: Arc::new(deps), seen: Seen::default() }
    }

    /// The same with imports from another place, too.
    #[must_use]
    pub fn for_directories(&self, machine_dir: PathBuf, scripts_dir: PathBuf) -> Self {
        let config = ScriptHostConfig { machine_dir, scripts_dir, ..self.deps.config.clone() };
        Self { deps: Arc::new(Deps { config, ..Deps::clone(&self.deps) }), seen: Seen::default() }
    }

    /// The same host; what it loads is remembered in `seen`, the files that failed or were not there as well.
    #[must_use]
    pub fn recording(&self, seen: &Seen) -> Self {
        Self { deps: Arc::clone(&self.deps), seen: seen.clone() }
    }

    /// Reads, compiles and checks a machine's script. Runs nothing but its top level. Blocks.
    pub fn load_machine(&self, path: &Path) -> Result<MachineProgram, Problems> {
        let full = self.load(path, Power::Full, &MACHINE_HOOKS)?;
        // The same text once more for the hooks that only compute, in an engine that counts their operations.
        let pure = self.load(path, Power::Pure, &MACHINE_HOOKS)?;
        Ok(MachineProgram { pure: Arc::new(pure), full: Arc::new(full) })
    }

    /// Reads, compiles and checks a connector. Blocks.
    pub fn load_connector(&self, name: &Name, path: &Path) -> Result<ConnectorProgram, Problems> {
        let program = self.load(path, Power::Full, &CONNECTOR_HOOKS)?;
        Ok(ConnectorProgram::new(name.clone(), Arc::new(program)))
    }

    fn load(&self, path: &Path, power: Power, hooks: &[Hook]) -> Result<Program, Problems> {
        Program::load(&self.deps, &self.seen, path, power, hooks)
    }
}

/// A machine's script, compiled and checked.
#[derive(Clone)]
pub struct MachineProgram {
    pub(super) pure: Arc<Program>,
    pub(super) full: Arc<Program>,
}

impl MachineProgram {
    /// Every file it is made of with the SHA-256 of its text; the script itself first.
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        self.full.files()
    }

    /// What could be better in it.
    pub fn warnings(&self) -> Problems {
        self.full.warnings.clone()
    }

    /// Gives problems in what `services(m)` and `workers(m)` returned their place.
    pub fn locate(&self, problems: Vec<FieldProblem>) -> Problems {
        locate(&self.full.sources[0], problems)
    }
}

/// One script with its engine.
pub(super) struct Program {
    pub deps: Arc<Deps>,
    pub engine: Engine,
    pub ast: AST,
    pub sources: Vec<SourceText>,
    pub resolver: RootedResolver,
    /// Nothing of it keeps the script from running.
    pub warnings: Problems,
    /// What a connector's `vars` may be.
    pub config: Option<ConfigSchema>,
    functions: &'static Functions,
    power: Power,
}

impl Program {
    pub(super) fn load(
        deps: &Arc<Deps>,
        seen: &Seen,
        path: &Path,
        power: Power,
        hooks: &[Hook],
    ) -> Result<Self, Problems> {
        let text = seen
            .read(path)
            .map_err(|cause| Problem::error(format!("the script cannot be read: {cause}")).in_file(path))?;
        let source = SourceText::new(path, &text);
        let roots = vec![deps.config.machine_dir.clone(), deps.config.scripts_dir.clone()];
        let resolver = RootedResolver::new(roots, seen.clone());
        let mut engine = engine::build(power, resolver.clone());
        let functions = Functions::of(power);
        let mut problems = Problems::default();
        // The same files are looked at once, not for each power.
        if power != Power::Pure {
            // Maps of constants are kept as they are written, with the places of their keys.
            engine.set_optimization_level(OptimizationLevel::None);
            problems.extend(lint(&engine, functions, &resolver, &source, hooks));
            engine.set_optimization_level(OptimizationLevel::Simple);
        }
        let mut ast = match engine.compile(&text) {
            Ok(ast) => ast,
            Err(_) if problems.has_errors() => return Err(problems),
            Err(cause) => return Err(Places::syntax(&source, &cause).into()),
        };
        ast.set_source(path.display().to_string());
        let mut program = Self {
            deps: Arc::clone(deps),
            engine,
            ast,
            sources: vec![source],
            resolver: resolver.clone(),
            warnings: problems,
            config: None,
            functions,
            power,
        };
        let wrong = program.check_hooks(hooks);
        program.warnings.extend(wrong);
        if program.warnings.has_errors() {
            return Err(program.warnings);
        }
        program.run_top_level(&resolver)
    }

    /// Runs the declarations once, which loads and runs all imports.
    fn run_top_level(mut self, resolver: &RootedResolver) -> Result<Self, Problems> {
        let mut call = self.call(CancellationToken::new(), Instant::now() + LOAD_LIMIT);
        call.pure = true;
        // What it declares is dropped where it was made, whose stack has room for any nesting.
        let outcome = runner::run_now("load", call, || {
            let mut scope = Scope::new();
            let outcome = self.engine.run_ast_with_scope(&mut scope, &self.ast);
            outcome.map_err(|cause| self.problem(&cause, &resolver.sources(), "", Some(LOAD_LIMIT)))?;
            match scope.get_value::<Dynamic>("CONFIG") {
                None => Ok(None),
                Some(config) => {
                    let schema = to_json(&config, Secrets::Refuse).and_then(ConfigSchema::read);
                    schema.map(Some).map_err(|why| self.at_config(why))
                }
            }
        });
        self.sources.extend(resolver.sources());
        match outcome {
            Ok(Ok(config)) => {
                self.config = config;
                Ok(self)
            }
            Ok(Err(problem)) => Err(problem.into()),
            Err(message) => Err(Problem::error(message).in_file(&self.sources[0].file).into()),
        }
    }

    fn at_config(&self, why: String) -> Problem {
        let source = &self.sources[0];
        let problem =
            Problem::error(why).help("a var is #{ type: \"int\", fallback: 1, about: \"...\" }, see docs/jobs.md");
        match source.text.lines().position(|line| line.trim_start().starts_with("const CONFIG")) {
            Some(line) => problem.at(source, line + 1, Some(1)),
            None => problem.in_file(&source.file),
        }
    }

    fn check_hooks(&self, hooks: &[Hook]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let defined: Vec<(String, usize)> =
            self.ast.iter_functions().map(|function| (function.name.to_owned(), function.params.len())).collect();
        for hook in hooks {
            let arguments = defined.iter().filter(|(name, _)| name == hook.name).map(|(_, n)| *n).collect::<Vec<_>>();
            if arguments.contains(&hook.arity()) {
                continue;
            }
            let signature = hook.signature();
            if let Some(wrong) = arguments.first() {
                let message = format!("the hook {} takes {}, this one takes {wrong}", hook.name, count(hook.arity()));
                let problem = at_function(&self.sources[0], hook.name, Problem::error(message));
                problems.push(problem.help(format!("write fn {signature}")));
            } else if hook.required {
                let names = defined.iter().map(|(name, _)| name.as_str());
                let help = match did_you_mean(hook.name, names) {
                    Some(close) => format!("is fn {close} meant to be it?"),
                    None => format!("write fn {signature} {{ ... }}"),
                };
                let message = format!("the hook {signature} is missing");
                problems.push(Problem::error(message).in_file(&self.sources[0].file).help(help));
            }
        }
        problems
    }

    pub fn has(&self, hook: &str, arity: usize) -> bool {
        self.ast.iter_functions().any(|function| function.name == hook && function.params.len() == arity)
    }

    pub fn files(&self) -> Vec<(PathBuf, String)> {
        let hash = |text: &str| {
            let digest = Sha256::digest(text.as_bytes());
            digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
        };
        self.sources.iter().map(|source| (source.file.clone(), hash(&source.text))).collect()
    }

    pub fn call(&self, cancel: CancellationToken, deadline: Instant) -> Call {
        let mut call = Call::new(Arc::clone(&self.deps), self.power == Power::Test, cancel, deadline);
        call.pure = self.power == Power::Pure;
        call
    }

    /// The error with its place and a remedy.
    pub fn problem(
        &self,
        cause: &EvalAltResult,
        imported: &[SourceText],
        hook: &str,
        limit: Option<Duration>,
    ) -> Problem {
        let sources: Vec<SourceText> = self.sources.iter().chain(imported).cloned().collect();
        let tree = Some(&self.ast);
        Places { sources: &sources, tree, engine: &self.engine, functions: self.functions }.runtime(cause, hook, limit)
    }

    /// Calls a function of the script on a thread of its own, which `limit` is told of when the call runs into its deadline.
    /// `finish` takes what is returned over into values of the engine.
    pub async fn invoke<A: FuncArgs, T: Send + 'static>(
        self: &Arc<Self>,
        function: &str,
        limit: Option<Duration>,
        call: Call,
        arguments: impl FnOnce() -> ScriptResult<A> + Send + 'static,
        finish: impl FnOnce(&Dynamic) -> T + Send + 'static,
    ) -> Result<T, HookError> {
        let (this, hook) = (Arc::clone(self), function.to_owned());
        let work = move || {
            let returned = arguments()
                .and_then(|arguments| this.engine.call_fn::<Dynamic>(&mut Scope::new(), &this.ast, &hook, arguments));
            returned.map(|value| finish(&value)).map_err(|cause| this.hook_error(&cause, &hook, limit))
        };
        match runner::run(function, call, work).await {
            Ok(outcome) => outcome,
            Err(message) => Err(self.hook_error(&error(message), function, limit)),
        }
    }

    pub fn hook_error(&self, cause: &EvalAltResult, hook: &str, limit: Option<Duration>) -> HookError {
        let problem = self.problem(cause, &[], hook, limit);
        HookError { failure: failure_of(cause, &problem), problem }
    }
}

/// How a call of a hook ended badly.
#[derive(Debug)]
pub(super) struct HookError {
    /// For the author of the script.
    pub problem: Problem,
    /// For the job, where there is one.
    pub failure: Failure,
}

/// What processes of scripts see of the engine's environment: enough to find programs, and no secrets.
pub(super) fn basic_environment() -> Vec<(OsString, OsString)> {
    const KEPT: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER"];
    KEPT.iter().filter_map(|name| std::env::var_os(name).map(|value| (OsString::from(name), value))).collect()
}
