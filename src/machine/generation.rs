use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::base::{Name, Problem, Problems, Severity, did_you_mean};
use crate::host::process::find_program;
use crate::host::{Mark, Seen};
use crate::script::{ConnectorProgram, MachineContext, MachineProgram, ScriptHost};
use crate::settings::{Origin, Overrides, Settings, Tree, load, machine_files};
use crate::spec::{DrainTarget, FieldProblem, GpuRef, Kind, MachineSpec, ProbeTarget};

/// One version of a machine's files, compiled, checked and evaluated. Nothing of it runs until it is committed.
pub struct Generation {
    pub number: u64,
    /// Over all files it is made of.
    pub hash: String,
    /// The settings and all scripts, those that are there.
    pub files: BTreeSet<PathBuf>,
    /// What was read and what was looked for in vain.
    pub seen: SeenFiles,
    pub settings: Arc<Settings>,
    pub tree: Tree,
    pub context: MachineContext,
    pub program: MachineProgram,
    pub connectors: BTreeMap<Name, ConnectorProgram>,
    pub spec: Arc<MachineSpec>,
    pub warnings: Problems,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("number", &self.number).field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Files as a build found them.
pub type SeenFiles = BTreeMap<PathBuf, Option<Mark>>;

/// What is wrong with an edit, and the files in which the remedy will come.
#[derive(Debug, Default)]
pub struct Refused {
    pub problems: Problems,
    pub seen: SeenFiles,
}

/// What a build starts from.
#[derive(Clone)]
pub struct BuildInputs {
    pub dir: PathBuf,
    pub overrides: Overrides,
    pub host: ScriptHost,
    /// The context of the machine; settings fill in what they decide.
    pub context: MachineContext,
    /// What the running machine was started with; none when nothing runs.
    pub running: Option<Arc<Settings>>,
}

impl BuildInputs {
    /// Builds what lies in another directory as if the machine that runs had it. What is derived from a directory's name
    /// stays what it is.
    pub fn move_to(&mut self, dir: &Path) {
        let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        if let Some(running) = &mut self.running {
            let derived = [
                ("machine.type", running.machine.machine_type.to_string()),
                ("state_dir", running.state_dir.display().to_string()),
                ("scripts_dir", running.scripts_dir.display().to_string()),
            ];
            if let Ok((_, tree)) = load(&real, &self.overrides) {
                let is_default = |key: &str| {
                    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                    tree.origin(&path).is_some_and(|origin| matches!(origin, Origin::Default))
                };
                let kept = derived.into_iter().filter(|(key, _)| is_default(key));
                self.overrides
                    .flags
                    .extend(kept.map(|(key, value)| ("of the machine".to_owned(), key.to_owned(), value)));
            }
            Arc::make_mut(running).dir.clone_from(&real);
        }
        self.context.dir.clone_from(&real);
        self.host = self.host.for_directory(real.clone());
        self.dir = real;
    }
}

/// Reads everything again, compiles, evaluates and checks. The loader of `run`, of a reload and of `check`.
///
/// # Errors
/// Every problem found.
pub async fn build(inputs: &BuildInputs, number: u64) -> Result<Generation, Refused> {
    let seen = Seen::default();
    build_seen(inputs, number, &seen).await.map_err(|problems| Refused { problems, seen: seen.files() })
}

async fn build_seen(inputs: &BuildInputs, number: u64, seen: &Seen) -> Result<Generation, Problems> {
    for file in machine_files(&inputs.dir.canonicalize().unwrap_or_else(|_| inputs.dir.clone())) {
        seen.note(&file);
    }
    let (settings, tree) = load(&inputs.dir, &inputs.overrides)?;
    if let Some(running) = &inputs.running {
        let fixed = changed_fixed_settings(running, &settings, &tree);
        if fixed.has_errors() {
            return Err(fixed);
        }
    }
    let settings = Arc::new(settings);
    let mut context = inputs.context.clone();
    context.generation = number;
    context.pool.clone_from(&settings.machine.pool);
    context.labels.clone_from(&settings.machine.labels);
    context.vars.clone_from(&settings.vars);
    context.workers = workers(&settings, context.cpus);

    let script = settings.dir.join(&settings.machine.script);
    let scripts = inputs.host.recording(seen);
    let host = scripts.clone();
    let program = match blocking(move || host.load_machine(&script)).await {
        Ok(program) => program,
        // Which connectors it uses is unknown; those that lie beside it are looked at all the same.
        Err(mut found) => {
            for (name, path) in connectors_in(&settings.dir.join("connectors")) {
                let host = scripts.clone();
                let outcome = blocking(move || host.load_connector(&name, &path)).await;
                found.extend(outcome.err().into_iter().flatten());
            }
            return Err(found);
        }
    };
    let mut problems = program.warnings();
    let services = program.services(&context).await.unwrap_or_else(|found| collect(&mut problems, found));
    let workers = program.workers(&context).await.unwrap_or_else(|found| collect(&mut problems, found));
    let spec = match MachineSpec::check(&services, &workers, &gpu_refs(&context)) {
        Ok(spec) => Arc::new(spec),
        Err(found) => {
            problems.extend(program.locate(found));
            Arc::default()
        }
    };
    let mut connectors = BTreeMap::new();
    for name in spec.workers.iter().map(|worker| &worker.connector).collect::<BTreeSet<_>>() {
        let loaded = match connector_path(&settings, &program, &spec, name, seen) {
            Ok(path) => {
                let (host, name) = (scripts.clone(), name.clone());
                blocking(move || host.load_connector(&name, &path)).await
            }
            Err(problems) => Err(problems),
        };
        match loaded {
            Ok(connector) => {
                problems.extend(connector.warnings());
                connectors.insert(name.clone(), connector);
            }
            Err(found) => problems.extend(found),
        }
    }
    if !problems.has_errors() {
        problems.extend(unused_connectors(&settings, &tree, &spec));
    }
    problems.extend(wrong_vars(&settings, &tree, &program, &connectors, &spec));
    problems.extend(missing_programs(&settings, &program, &spec));
    problems.extend(missing_functions(&program, &spec));
    if problems.has_errors() {
        return Err(problems);
    }
    let mut files: BTreeMap<PathBuf, String> = program.files().into_iter().collect();
    files.extend(connectors.values().flat_map(ConnectorProgram::files));
    let mut hasher = Sha256::new();
    for (file, hash) in &files {
        hasher.update(file.to_string_lossy().as_bytes());
        hasher.update(hash.as_bytes());
    }
    hasher.update(serde_json::to_vec(&*settings).unwrap_or_default());
    let hash = hasher.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let mut files: BTreeSet<PathBuf> = files.into_keys().collect();
    files.extend(machine_files(&settings.dir).into_iter().filter(|file| file.is_file()));
    Ok(Generation {
        number,
        hash,
        files,
        seen: seen.files(),
        settings,
        tree,
        context,
        program,
        connectors,
        spec,
        warnings: problems,
    })
}

/// How many workers scripts are asked for.
fn workers(settings: &Settings, cpus: f64) -> u32 {
    if settings.machine.workers > 0 {
        return settings.machine.workers;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "CPUs are few and positive")]
    let per_cpu = cpus.floor() as u32;
    per_cpu.max(1)
}

fn collect<T: Default>(problems: &mut Problems, found: Problems) -> T {
    problems.extend(found);
    T::default()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problems> + Send + 'static,
) -> Result<T, Problems> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Problem::error("loading the script panicked, which is a bug of machinist").into()),
    }
}

/// The connector's script: as the settings say, else below the machine's directory, else below the scripts directory.
fn connector_path(
    settings: &Settings,
    program: &MachineProgram,
    spec: &MachineSpec,
    name: &Name,
    seen: &Seen,
) -> Result<PathBuf, Problems> {
    let given = settings.connectors.get(name).and_then(|connector| connector.script.clone());
    let relative = given.unwrap_or_else(|| PathBuf::from(format!("connectors/{name}.rhai")));
    let candidates = [settings.dir.join(&relative), settings.scripts_dir.join(&relative)];
    candidates.iter().find(|path| seen.is_file(path)).cloned().ok_or_else(|| {
        let looked: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        let known: Vec<Name> = [&settings.dir, &settings.scripts_dir]
            .iter()
            .flat_map(|dir| connectors_in(&dir.join("connectors")))
            .map(|(name, _)| name)
            .collect();
        let help = match did_you_mean(name.as_str(), known.iter().map(Name::as_str)) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("write it, or name its file with script in [connectors.{name}]"),
        };
        let message = format!("the connector {name:?} has no script, looked for {}", looked.join(" and "));
        let worker = spec.workers.iter().find(|worker| worker.connector == *name);
        let worker = worker.map(|worker| format!("worker \"{}\"", worker.name)).unwrap_or_default();
        program.locate(vec![FieldProblem::new(worker, message).token(name.to_string()).help(help)])
    })
}

/// `vars` that a connector does not take.
fn wrong_vars(
    settings: &Settings,
    tree: &Tree,
    program: &MachineProgram,
    connectors: &BTreeMap<Name, ConnectorProgram>,
    spec: &MachineSpec,
) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for worker in &spec.workers {
        let name = &worker.connector;
        let Some(connector) = connectors.get(name) else { continue };
        let mut vars = settings.connectors.get(name).map(|given| given.vars.clone()).unwrap_or_default();
        vars.extend(worker.vars.clone());
        for found in connector.check_vars(&vars) {
            let message = format!("connector \"{name}\": vars.{} {}", found.key, found.message);
            let path = ["connectors", name.as_str(), "vars", &found.key].map(str::to_owned);
            let own = worker.vars.contains_key(&found.key);
            let located = if own {
                let field = FieldProblem::new(format!("worker \"{}\"", worker.name), message).token(found.key.clone());
                program.locate(vec![FieldProblem { help: found.help, ..field }]).0
            } else {
                let problem = Problem { help: found.help, ..Problem::error(message) };
                vec![match tree.origin(&path) {
                    Some(origin) => origin.locate(problem),
                    None => problem.note(format!("set it in [connectors.{name}.vars] of machine.toml")),
                }]
            };
            // Workers of one connector share what the settings say.
            problems
                .extend(located.into_iter().filter(|problem| own || !problems.contains(problem)).collect::<Vec<_>>());
        }
    }
    problems
}

/// The connectors in a directory; tests are none.
fn connectors_in(dir: &Path) -> Vec<(Name, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(Name, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".rhai")?.to_owned();
            let connector = !name.ends_with("_test");
            Name::new(&name).ok().filter(|_| connector).map(|name| (name, path))
        })
        .collect();
    found.sort();
    found
}

/// Connectors that the settings speak of and no worker uses.
fn unused_connectors(settings: &Settings, tree: &Tree, spec: &MachineSpec) -> Vec<Problem> {
    let used: BTreeSet<&Name> = spec.workers.iter().map(|worker| &worker.connector).collect();
    let unused = settings.connectors.keys().filter(|name| !used.contains(name));
    unused
        .map(|name| {
            let problem = Problem::warning(format!("no worker uses the connector {name:?}"));
            let problem = match did_you_mean(name.as_str(), used.iter().map(|name| name.as_str())) {
                Some(meant) => problem.help(format!("is {meant:?} meant?")),
                None => problem.help("add a worker for it in workers(m), or remove its settings"),
            };
            let path = ["connectors".to_owned(), name.to_string()];
            tree.origin(&path).map_or_else(|| problem.clone(), |origin| origin.locate(problem.clone()))
        })
        .collect()
}

/// Programs of services and exec probes that are not there. Where a setup step runs first it may bring them, so that is a
/// warning.
fn missing_programs(settings: &Settings, script: &MachineProgram, spec: &MachineSpec) -> Vec<Problem> {
    let has_setup = spec.services.iter().any(|service| service.kind == Kind::Setup);
    let engine_path = std::env::var_os("PATH");
    let mut problems = Vec::new();
    for service in &spec.services {
        let cwd = service.cwd.as_ref().map_or_else(|| settings.dir.clone(), |cwd| settings.dir.join(cwd));
        let path = service.env.get("PATH").map(std::ffi::OsString::from).or_else(|| engine_path.clone());
        let probes = [&service.startup, &service.ready, &service.live].into_iter().flatten();
        let probe = probes.filter_map(|probe| match &probe.target {
            ProbeTarget::Exec(argv) => argv.first(),
            _ => None,
        });
        for program in service.command.first().into_iter().chain(probe) {
            if find_program(program, Some(Path::new(&cwd)), path.as_deref()).is_some() {
                continue;
            }
            let message = format!("the program {program:?} is not there");
            let brought = has_setup && service.kind != Kind::Setup;
            let field = FieldProblem::new(format!("service \"{}\"", service.name), message)
                .token(program.clone())
                .help("install it, or write its full path; PATH and the working directory were searched");
            let severity = if brought { Severity::Warning } else { Severity::Error };
            problems.extend(script.locate(vec![field]).into_iter().map(|problem| Problem { severity, ..problem }));
        }
    }
    problems
}

/// Functions that probes and drain hooks name and the script does not have.
fn missing_functions(program: &MachineProgram, spec: &MachineSpec) -> Problems {
    let mut found = Vec::new();
    for service in &spec.services {
        let probes = [&service.startup, &service.ready, &service.live].into_iter().flatten();
        let probes = probes.filter_map(|probe| match &probe.target {
            ProbeTarget::Script(function) => Some(function),
            _ => None,
        });
        let drain = service.stop.drain.as_ref().and_then(|drain| match &drain.target {
            DrainTarget::Script(function) => Some(function),
            DrainTarget::Exec(_) => None,
        });
        for function in probes.chain(drain).filter(|function| !program.has_service_function(function)) {
            let mut problem = FieldProblem::new(
                format!("service \"{}\"", service.name),
                format!("the script has no function {function}(m, service)"),
            );
            let names = program.function_names();
            problem.help =
                did_you_mean(function, names.iter().map(String::as_str)).map(|meant| format!("did you mean {meant}?"));
            found.push(problem.token(function.clone()));
        }
    }
    program.locate(found)
}

/// Settings that a running machine cannot take over.
fn changed_fixed_settings(old: &Settings, new: &Settings, tree: &Tree) -> Problems {
    let mut problems = Problems::default();
    if old.dir != new.dir {
        let message = format!("the machine's directory was {} and is {} now", old.dir.display(), new.dir.display());
        problems.push(Problem::error(message).help("restart the machine to use it, or lead the link back"));
    }
    for change in old.changes(new).into_iter().filter(|change| !change.live) {
        let path: Vec<String> = change.key.split('.').map(str::to_owned).collect();
        let problem = Problem::error(format!("{} cannot be changed while the machine runs", change.key))
            .help("restart the machine to use it, or put the old value back");
        problems.push(tree.origin(&path).map_or_else(|| problem.clone(), |origin| origin.locate(problem.clone())));
    }
    problems
}

fn gpu_refs(context: &MachineContext) -> Vec<GpuRef> {
    context.gpus.iter().map(|gpu| GpuRef { index: gpu.index, uuid: gpu.uuid.clone() }).collect()
}
