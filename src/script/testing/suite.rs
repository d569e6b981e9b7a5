use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhai::{Dynamic, Scope};
use tokio_util::sync::CancellationToken;

use super::world::{Ended, World};
use crate::base::{Name, Problem, Problems, SourceText};
use crate::script::engine::Power;
use crate::script::program::Program;
use crate::script::{ConnectorProgram, MachineContext, MachineProgram, ScriptHost, runner};

/// One file of tests with the script that it tests, compiled once.
pub struct Suite {
    test: Arc<Program>,
    pub(super) subject: Subject,
    /// What hooks get as `m` where a test says nothing else.
    pub(super) machine: MachineContext,
    tests: Vec<String>,
}

/// The script under test.
pub(super) enum Subject {
    Machine(MachineProgram),
    Connector(ConnectorProgram),
    Library(Arc<Program>),
}

/// What one test came to.
#[derive(Clone, Debug)]
pub struct Report {
    pub name: String,
    pub verdict: Verdict,
    pub took: Duration,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    Passed,
    Skipped(String),
    Failed(Problem),
}

impl Subject {
    pub fn program(&self) -> Arc<Program> {
        match self {
            Self::Machine(machine) => Arc::clone(&machine.full),
            Self::Connector(connector) => Arc::clone(&connector.program),
            Self::Library(program) => Arc::clone(program),
        }
    }
}

impl Suite {
    /// Reads, compiles and checks the tests in `file` and the script `subject`. Blocks.
    ///
    /// # Errors
    /// All that is wrong with either.
    pub fn load(host: &ScriptHost, file: &Path, subject: &Path, machine: MachineContext) -> Result<Self, Problems> {
        let named = |path: &Path| path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let in_connectors = subject.parent().and_then(Path::file_name).is_some_and(|name| name == "connectors");
        let loaded = if named(subject) == "machine" {
            Subject::Machine(host.load_machine(subject)?)
        } else if in_connectors {
            let name =
                Name::new(&named(subject)).map_err(|cause| Problem::error(cause.to_string()).in_file(subject))?;
            Subject::Connector(host.load_connector(&name, subject)?)
        } else {
            Subject::Library(Arc::new(Program::load(&host.deps, &host.seen, subject, Power::Full, &[])?))
        };
        let test = Program::load(&host.deps, &host.seen, file, Power::Test, &[])?;
        let tests = tests_in(&test)?;
        Ok(Self { test: Arc::new(test), subject: loaded, machine, tests })
    }

    /// The names of its tests, in the order of the file.
    pub fn tests(&self) -> &[String] {
        &self.tests
    }

    pub(super) fn test(&self) -> &Program {
        &self.test
    }

    /// Runs one test on a thread of its own, in a world of its own, for no longer than `limit`. Its files lie in `work_dir`,
    /// which is removed. Blocks.
    pub fn run(self: &Arc<Self>, name: &str, limit: Duration, work_dir: PathBuf) -> Report {
        let began = Instant::now();
        let mut call = self.test.call(CancellationToken::new(), began + limit);
        call.work_dir = Some(work_dir.clone());
        let verdict = runner::run_now("test", call, || self.run_here(name, limit));
        // Most tests write nothing.
        let _ = std::fs::remove_dir_all(work_dir);
        let verdict = verdict.unwrap_or_else(|message| {
            let source = &self.test.sources[0];
            Verdict::Failed(crate::script::lint::at_function(source, name, Problem::error(message)))
        });
        Report { name: name.to_owned(), verdict, took: began.elapsed() }
    }

    fn run_here(self: &Arc<Self>, name: &str, limit: Duration) -> Verdict {
        let (outcome, world) = World::around(self, || {
            let outcome = self.test.engine.call_fn::<Dynamic>(&mut Scope::new(), &self.test.ast, name, ());
            // Dropped here, where it was made.
            outcome.map(drop).map_err(|cause| self.test.problem(&cause, &[], name, Some(limit)))
        });
        let here = || {
            let found = outcome.as_ref().err().cloned();
            found.unwrap_or_else(|| Problem::error("").in_file(&self.test.sources[0].file))
        };
        let mut problem = match (&world.ended, &outcome) {
            (None, Ok(())) => return Verdict::Passed,
            (Some(Ended::Skipped(why)), _) => return Verdict::Skipped(why.clone()),
            (None, Err(problem)) => problem.clone(),
            (Some(Ended::Failed { message, help, lines }), _) => {
                let test = here();
                let mut problem = match &world.place {
                    Some(place) => {
                        let mut place = place.clone();
                        place.notes.extend(test.location.map(|location| format!("asked for at {location}")));
                        place
                    }
                    None => match world.assertion {
                        Some((line, column)) => test.at(&self.test.sources[0], line, column),
                        None => test,
                    },
                };
                problem.message.clone_from(message);
                problem.help.clone_from(help);
                problem.notes.splice(0..0, lines.iter().cloned());
                problem
            }
        };
        let hook = format!("in hook {name}");
        problem.notes.retain(|note| *note != hook);
        if let Some(failure) = &world.failure {
            let mut lines = failure.lines();
            let what = lines.next().unwrap_or_default().trim_start_matches("error: ");
            let place = lines.next().map(|line| line.trim().trim_start_matches("--> ").to_owned()).unwrap_or_default();
            problem.notes.push(format!("the hook failed before: {what} ({place})"));
        }
        Verdict::Failed(problem)
    }
}

/// The functions that are tests, in the order of the text.
fn tests_in(program: &Program) -> Result<Vec<String>, Problems> {
    let source: &SourceText = &program.sources[0];
    let mut problems = Problems::default();
    let mut found = Vec::new();
    for function in program.ast.iter_functions().filter(|function| function.name.starts_with("test_")) {
        if function.params.is_empty() {
            let at = source.text.find(&format!("fn {}(", function.name)).unwrap_or(usize::MAX);
            found.push((at, function.name.to_owned()));
        } else {
            let problem = Problem::error(format!("the test {} takes arguments, a test takes none", function.name));
            problems.push(crate::script::lint::at_function(source, function.name, problem));
        }
    }
    if found.is_empty() && problems.is_empty() {
        let problem = Problem::error("there are no tests in this file").in_file(&source.file);
        problems.push(problem.help("a test is a function whose name begins with test_: fn test_it_works() { .. }"));
    }
    found.sort();
    if problems.is_empty() { Ok(found.into_iter().map(|(_, name)| name).collect()) } else { Err(problems) }
}
