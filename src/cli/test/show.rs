use std::time::Duration;

use serde_json::json;

use super::Outcome;
use crate::cli::output;
use crate::script::Verdict;

#[derive(Default)]
pub(super) struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// Files whose tests could not be run.
    pub broken: usize,
}

impl Counts {
    pub fn of(outcome: &Outcome) -> Self {
        let count =
            |wanted: fn(&Verdict) -> bool| outcome.reports.iter().filter(|report| wanted(&report.verdict)).count();
        Self {
            passed: count(|verdict| matches!(verdict, Verdict::Passed)),
            failed: count(|verdict| matches!(verdict, Verdict::Failed(_))),
            skipped: count(|verdict| matches!(verdict, Verdict::Skipped(_))),
            broken: usize::from(!outcome.problems.is_empty()),
        }
    }

    pub fn all(outcomes: &[Outcome]) -> Self {
        outcomes.iter().map(Self::of).fold(Self::default(), |all, one| Self {
            passed: all.passed + one.passed,
            failed: all.failed + one.failed,
            skipped: all.skipped + one.skipped,
            broken: all.broken + one.broken,
        })
    }

    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.broken == 0
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed", self.passed)?;
        let others = [(self.failed, "failed"), (self.skipped, "skipped"), (self.broken, "broken files")];
        others.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, what)| write!(f, ", {count} {what}"))
    }
}

/// Whether all passed.
pub(super) fn text(outcomes: &[Outcome], took: Duration) -> bool {
    for outcome in outcomes {
        let (file, counts) = (outcome.file.display(), Counts::of(outcome));
        let word = if counts.is_good() { "ok" } else { "FAILED" };
        output::line(&format!("{word:<6} {file}: {counts}"));
        for report in &outcome.reports {
            match &report.verdict {
                Verdict::Passed => {}
                Verdict::Skipped(why) => output::line(&format!("       {} was skipped: {why}", report.name)),
                Verdict::Failed(problem) => output::line(&format!("\nFAIL   {file} {}\n{problem}\n", report.name)),
            }
        }
        if !outcome.problems.is_empty() {
            output::line(&format!("\n{}\n", outcome.problems));
        }
    }
    let all = Counts::all(outcomes);
    if !outcomes.is_empty() {
        output::line(&format!("{all} in {:.2} s", took.as_secs_f64()));
    }
    all.is_good()
}

/// The same for programs.
pub(super) fn json(outcomes: &[Outcome], took: Duration) -> bool {
    let all = Counts::all(outcomes);
    let files = outcomes.iter().map(|outcome| {
        let tests = outcome.reports.iter().map(|report| {
            let (verdict, reason, problem) = match &report.verdict {
                Verdict::Passed => ("passed", None, None),
                Verdict::Skipped(why) => ("skipped", Some(why), None),
                Verdict::Failed(problem) => ("failed", None, Some(problem)),
            };
            json!({
                "name": report.name, "verdict": verdict, "seconds": report.took.as_secs_f64(), "reason": reason,
                "problem": problem,
            })
        });
        json!({ "file": outcome.file, "problems": outcome.problems, "tests": tests.collect::<Vec<_>>() })
    });
    output::json(&json!({
        "passed": all.passed, "failed": all.failed, "skipped": all.skipped, "broken": all.broken,
        "seconds": took.as_secs_f64(), "files": files.collect::<Vec<_>>(),
    }));
    all.is_good()
}
