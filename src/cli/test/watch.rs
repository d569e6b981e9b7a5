use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Bench, Loaded, Outcome, find, show};
use crate::cli::{CliError, output};
use crate::host::{FileWatcher, Known, Seen, Watched};

/// Editors write several files at once.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Files of tests that come and go are looked for so often.
const SEARCH: Duration = Duration::from_secs(1);

/// Runs all tests, then those of files that change, until somebody presses Ctrl-C. The exit code tells how the tests stand then.
pub(super) async fn watch(bench: Arc<Bench>, json: bool) -> Result<ExitCode, CliError> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut tests: Vec<Test> = Vec::new();
    let mut watcher = FileWatcher::start(Watched::new(), DEBOUNCE, SEARCH, stop);
    // Listened to all the time: Ctrl-C while tests run ends after them.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|cause| CliError::internal(format!("the signal of Ctrl-C: {cause}")))?;
    let mut first = true;
    loop {
        let (again, before) = (Arc::clone(&bench), tests);
        let round = tokio::task::spawn_blocking(move || round(&again, before, json));
        tests = round.await.map_err(|cause| CliError::internal(format!("the tests: {cause}")))??;
        if std::mem::take(&mut first) && !json {
            output::line("waiting for changes; Ctrl-C ends");
        }
        let files = tests.iter().flat_map(|test| test.loaded.seen.files());
        watcher.set_files(files.map(|(path, mark)| (path, Known::Content(mark))).collect());
        tokio::select! {
            () = watcher.changed() => {}
            () = tokio::time::sleep(SEARCH) => {}
            _ = interrupts.recv() => {
                let bad = tests.iter().any(|test| !test.passed);
                return Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS });
            }
        }
    }
}

/// A file of tests as it was run last.
struct Test {
    loaded: Loaded,
    passed: bool,
}

impl Test {
    /// Whether what it is made of is as it was read.
    fn is_current(&self) -> bool {
        let now = Seen::default();
        let files = self.loaded.seen.files();
        for path in files.keys() {
            now.note(path);
        }
        now.files() == files
    }
}

/// Runs what is new or no longer what it was; what is gone is forgotten.
fn round(bench: &Bench, before: Vec<Test>, json: bool) -> Result<Vec<Test>, CliError> {
    let began = Instant::now();
    let mut before: Vec<Option<Test>> = before.into_iter().map(Some).collect();
    let mut tests = Vec::new();
    let mut renewed = Vec::new();
    for found in find::tests_in(&bench.args.paths)? {
        let kept = before.iter_mut().find(|test| test.as_ref().is_some_and(|test| test.loaded.file == found.file));
        match kept.and_then(Option::take) {
            Some(test) if test.is_current() => tests.push(test),
            _ => renewed.push(bench.load(&found)),
        }
    }
    let outcomes: Vec<Outcome> = bench.run(&renewed);
    if !outcomes.is_empty() {
        show(&outcomes, began.elapsed(), json);
    }
    let passed = |loaded: &Loaded| outcomes.iter().all(|outcome| outcome.file != loaded.file || outcome.passed());
    tests.extend(renewed.into_iter().map(|loaded| Test { passed: passed(&loaded), loaded }));
    Ok(tests)
}
