//! `machinist test`: runs the tests that lie beside scripts, `foo_test.rhai` for `foo.rhai`, many at once; with `--watch` again
//! whenever something changes that they are made of.

mod find;
mod junit;
mod show;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Handle;

use self::show::Counts;
use super::{CliError, Global};
use crate::base::{Name, Problem, Problems};
use crate::host::process::Processes;
use crate::host::{Identity, Resources, Seen};
use crate::machine::machine_context;
use crate::script::{MachineContext, Report, ScriptHost, ScriptHostConfig, Suite};
use crate::settings::{Overrides, load, machine_files};

#[derive(Clone, Debug, Args)]
pub(crate) struct TestArgs {
    /// Directories that are searched, and files of tests.
    #[arg(default_value = ".")]
    paths: Vec<PathBuf>,
    /// Only tests whose name, or whose file, contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Also write what came of the tests to FILE, as build servers read it.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Of one test, in real time.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = crate::base::parse_duration)]
    timeout: Duration,
    /// Go on: when a file changes, run again the tests that it is part of.
    #[arg(short, long, conflicts_with = "junit")]
    watch: bool,
}

/// One file of tests and what came of it.
struct Outcome {
    file: PathBuf,
    /// What keeps all its tests from running.
    problems: Problems,
    reports: Vec<Report>,
}

impl Outcome {
    fn passed(&self) -> bool {
        Counts::of(self).is_good()
    }
}

/// What a machine has where a test says nothing else.
const RESOURCES: Resources = Resources { cpus: 4.0, memory_gb: 16.0 };

pub(super) async fn execute(args: TestArgs, global: &Global) -> Result<ExitCode, CliError> {
    let (json, watch) = (global.json, args.watch);
    let bench = Arc::new(Bench::new(args)?);
    if watch {
        return watch::watch(bench, json).await;
    }
    let done = tokio::task::spawn_blocking(move || bench.once(json)).await;
    done.map_err(|cause| CliError::internal(format!("the tests: {cause}")))?
}

/// What tests run with.
struct Bench {
    args: TestArgs,
    host: ScriptHost,
    scratch: tempfile::TempDir,
    /// Numbers the directories of tests.
    next: AtomicUsize,
}

/// A file of tests, read.
struct Loaded {
    file: PathBuf,
    suite: Result<Arc<Suite>, Problems>,
    /// All that was read for it, and what was looked for in vain.
    seen: Seen,
}

impl Bench {
    fn new(args: TestArgs) -> Result<Self, CliError> {
        let scratch = tempfile::tempdir()
            .map_err(|cause| CliError::failed(format!("no directory for the tests' files: {cause}")))?;
        let processes =
            Processes::start("test/0").map_err(|cause| CliError::internal(format!("the reaper: {cause}")))?;
        let host = ScriptHost::new(ScriptHostConfig {
            machine_dir: PathBuf::new(),
            scripts_dir: PathBuf::new(),
            state_dir: scratch.path().to_owned(),
            processes,
            supervisor: None,
            mark_prefix: "test".to_owned(),
            runtime: Handle::current(),
            events: None,
            gpus: None,
        });
        Ok(Self { args, host, scratch, next: AtomicUsize::new(0) })
    }

    fn once(&self, json: bool) -> Result<ExitCode, CliError> {
        let began = Instant::now();
        let found = find::tests_in(&self.args.paths)?;
        let loaded = at_once(&found, |test| self.load(test));
        let outcomes = self.run(&loaded);
        let took = began.elapsed();
        if let Some(path) = &self.args.junit {
            std::fs::write(path, junit::document(&outcomes, took))
                .map_err(|cause| CliError::failed(format!("{}: {cause}", path.display())))?;
        }
        let passed = show(&outcomes, took, json);
        if outcomes.is_empty() {
            let what = self.args.filter.as_ref().map_or_else(
                || "there are no tests: a test lies beside its script, foo_test.rhai for foo.rhai".to_owned(),
                |filter| format!("there is no test whose name contains {filter:?}"),
            );
            return Err(CliError::failed(what));
        }
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn load(&self, test: &find::Found) -> Loaded {
        let seen = Seen::default();
        let suite = load_suite(&self.host, test, self.scratch.path(), &seen).map(Arc::new);
        // Where it broke off early, these are what somebody mends.
        seen.note(&test.file);
        seen.note(&test.subject);
        Loaded { file: test.file.clone(), suite, seen }
    }

    /// Runs all that is wanted of it, many tests at once.
    fn run(&self, loaded: &[Loaded]) -> Vec<Outcome> {
        let wanted = |text: &str| self.args.filter.as_deref().is_none_or(|filter| text.contains(filter));
        let mut outcomes = Vec::new();
        let mut work = Vec::new();
        for (index, Loaded { file, suite, .. }) in loaded.iter().enumerate() {
            let mut outcome = Outcome { file: file.clone(), problems: Problems::default(), reports: Vec::new() };
            match suite {
                Ok(suite) => {
                    let whole = wanted(&file.to_string_lossy());
                    let names = suite.tests().iter().filter(|name| whole || wanted(name));
                    work.extend(names.map(|name| (index, suite, name)));
                }
                Err(problems) => outcome.problems = problems.clone(),
            }
            outcomes.push(outcome);
        }
        let reports = at_once(&work, |(index, suite, name)| {
            let dir = self.next.fetch_add(1, Ordering::Relaxed).to_string();
            (*index, suite.run(name, self.args.timeout, self.scratch.path().join(dir)))
        });
        for (index, report) in reports {
            outcomes[index].reports.push(report);
        }
        // A file without a test that is wanted is not told of.
        outcomes.retain(|outcome| !outcome.reports.is_empty() || !outcome.problems.is_empty());
        outcomes
    }
}

/// What `act` makes of each, in their order, on as many threads as there are processors.
fn at_once<T: Sync, R: Send>(work: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(work.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(part) = work.get(number) else { return };
                    let result = act(part);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Whether all passed.
fn show(outcomes: &[Outcome], took: Duration, json: bool) -> bool {
    if json { show::json(outcomes, took) } else { show::text(outcomes, took) }
}

fn load_suite(host: &ScriptHost, test: &find::Found, state_dir: &Path, seen: &Seen) -> Result<Suite, Problems> {
    if !seen.is_file(&test.subject) {
        let (file, subject) = (test.file.display(), test.subject.display());
        return Err(Problem::error(format!("{file} tests {subject}, which is not there")).into());
    }
    for file in &machine_files(&test.machine_dir) {
        seen.note(file);
    }
    // The machine's own settings, and of the environment that the tests happen to run in only where scripts lie.
    let name = "MACHINIST_SCRIPTS_DIR".to_owned();
    let environment = std::env::var(&name).ok().map(|dir| (name, dir)).into_iter().collect();
    let mut overrides = Overrides { environment, flags: Vec::new() };
    // A library belongs to no machine, and the name of its directory need be no machine's.
    if !machine_files(&test.machine_dir).iter().any(|file| file.is_file()) {
        overrides.flags.push(("tests".into(), "machine.type".into(), "test".into()));
    }
    let (settings, _) = load(&test.machine_dir, &overrides)?;
    let host = host.for_directories(settings.dir.clone(), settings.scripts_dir.clone()).recording(seen);
    let id = Name::new("test").map_err(|cause| Problem::error(cause.to_string()))?;
    let context = machine_context(&settings, &Identity { id, incarnation: 1 }, RESOURCES, Vec::new());
    let context = MachineContext {
        labels: settings.machine.labels.clone(),
        vars: settings.vars.clone(),
        workers: if settings.machine.workers > 0 { settings.machine.workers } else { 4 },
        env: BTreeMap::new(),
        generation: 1,
        engine: "machinist".into(),
        state_dir: state_dir.to_owned(),
        ..context
    };
    Suite::load(&host, &test.file, &test.subject, context)
}
