//! `machinist test`: runs the tests that lie beside scripts, `foo_test.rhai` for `foo.rhai`, many at once.

mod find;
mod junit;
mod show;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Handle;

use super::{CliError, Global};
use crate::base::{Name, Problems};
use crate::host::process::Processes;
use crate::host::{Identity, Resources};
use crate::machine::machine_context;
use crate::script::{MachineContext, Report, ScriptHost, ScriptHostConfig, Suite};
use crate::settings::{Overrides, load};

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
}

/// One file of tests and what came of it.
struct Outcome {
    file: PathBuf,
    /// What keeps all its tests from running.
    problems: Problems,
    reports: Vec<Report>,
}

/// What a machine has where a test says nothing else.
const RESOURCES: Resources = Resources { cpus: 4.0, memory_gb: 16.0 };

pub(super) async fn execute(args: TestArgs, global: &Global) -> Result<ExitCode, CliError> {
    let json = global.json;
    let done = tokio::task::spawn_blocking(move || run(&args, json)).await;
    done.map_err(|cause| CliError::internal(format!("the tests: {cause}")))?
}

fn run(args: &TestArgs, json: bool) -> Result<ExitCode, CliError> {
    let began = Instant::now();
    let found = find::tests_in(&args.paths)?;
    let scratch =
        tempfile::tempdir().map_err(|cause| CliError::failed(format!("no directory for the tests' files: {cause}")))?;
    let processes = Processes::start("test/0").map_err(|cause| CliError::internal(format!("the reaper: {cause}")))?;
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

    let wanted = |text: &str| args.filter.as_deref().is_none_or(|filter| text.contains(filter));
    let mut outcomes = Vec::new();
    let mut suites = BTreeMap::new();
    for test in &found {
        let mut outcome = Outcome { file: test.file.clone(), problems: Problems::default(), reports: Vec::new() };
        match load_suite(&host, test, scratch.path()) {
            Ok(suite) => drop(suites.insert(outcomes.len(), Arc::new(suite))),
            Err(problems) => outcome.problems = problems,
        }
        outcomes.push(outcome);
    }
    let work: Vec<(usize, &Arc<Suite>, &str)> = suites
        .iter()
        .flat_map(|(index, suite)| suite.tests().iter().map(move |name| (*index, suite, name.as_str())))
        .filter(|(index, _, name)| wanted(name) || wanted(&outcomes[*index].file.to_string_lossy()))
        .collect();

    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(work.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((index, suite, name)) = work.get(number) else { return };
                    let report = suite.run(name, args.timeout, scratch.path().join(number.to_string()));
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push((number, *index, report));
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by_key(|(number, _, _)| *number);
    for (_, index, report) in reports {
        outcomes[index].reports.push(report);
    }
    // A file without a test that is wanted is not told of.
    outcomes.retain(|outcome| !outcome.reports.is_empty() || !outcome.problems.is_empty());

    let took = began.elapsed();
    if let Some(path) = &args.junit {
        std::fs::write(path, junit::document(&outcomes, took))
            .map_err(|cause| CliError::failed(format!("{}: {cause}", path.display())))?;
    }
    let passed = if json { show::json(&outcomes, took) } else { show::text(&outcomes, took) };
    if outcomes.is_empty() {
        let what = args.filter.as_ref().map_or_else(
            || "there are no tests: a test lies beside its script, foo_test.rhai for foo.rhai".to_owned(),
            |filter| format!("there is no test whose name contains {filter:?}"),
        );
        return Err(CliError::failed(what));
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn load_suite(host: &ScriptHost, test: &find::Found, state_dir: &std::path::Path) -> Result<Suite, Problems> {
    // The machine's own settings, and nothing of the environment that the tests happen to run in.
    let overrides = Overrides { environment: Vec::new().into_iter().collect(), flags: Vec::new() };
    let (settings, _) = load(&test.machine_dir, &overrides)?;
    let host = host.for_directories(settings.dir.clone(), settings.scripts_dir.clone());
    let id = Name::new("test").map_err(|cause| crate::base::Problem::error(cause.to_string()))?;
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
