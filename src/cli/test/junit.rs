//! `JUnit`'s XML, as far as build servers read it.

use std::fmt::Write as _;
use std::time::Duration;

use super::Outcome;
use super::show::Counts;
use crate::script::Verdict;

pub(super) fn document(outcomes: &[Outcome], took: Duration) -> String {
    let all = Counts::all(outcomes);
    let tests = all.passed + all.failed + all.skipped + all.broken;
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    // Writing to a text cannot fail.
    let _ = writeln!(
        xml,
        "<testsuites name=\"machinist test\" tests=\"{tests}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
        all.failed,
        all.broken,
        all.skipped,
        took.as_secs_f64()
    );
    for outcome in outcomes {
        suite(&mut xml, outcome);
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn suite(xml: &mut String, outcome: &Outcome) {
    let counts = Counts::of(outcome);
    let file = escaped(&outcome.file.to_string_lossy());
    let tests = outcome.reports.len() + counts.broken;
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{file}\" tests=\"{tests}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">",
        counts.failed, counts.broken, counts.skipped
    );
    if !outcome.problems.is_empty() {
        let _ = writeln!(
            xml,
            "    <testcase name=\"{file}\" classname=\"{file}\"><error message=\"the file cannot be tested\">{}</error></testcase>",
            escaped(&outcome.problems.to_string())
        );
    }
    for report in &outcome.reports {
        let name = escaped(&report.name);
        let _ = write!(
            xml,
            "    <testcase name=\"{name}\" classname=\"{file}\" time=\"{:.3}\">",
            report.took.as_secs_f64()
        );
        match &report.verdict {
            Verdict::Passed => {}
            Verdict::Skipped(why) => {
                let _ = write!(xml, "<skipped message=\"{}\"/>", escaped(why));
            }
            Verdict::Failed(problem) => {
                let (message, text) = (escaped(&problem.message), escaped(&problem.to_string()));
                let _ = write!(xml, "<failure message=\"{message}\">{text}</failure>");
            }
        }
        xml.push_str("</testcase>\n");
    }
    xml.push_str("  </testsuite>\n");
}

/// A text inside of an element or an attribute; what XML cannot hold is replaced.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push('\t'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_ends_an_attribute_early() {
        assert_eq!(escaped("a<b> & \"c\"\nd\u{0}"), "a&lt;b&gt; &amp; &quot;c&quot;&#10;d\u{fffd}");
    }
}
