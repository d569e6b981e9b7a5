use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something wrong in what the reader wrote (settings, script, job), with the place and the remedy.
///
/// Shown as a compiler would:
/// ```text
/// error: unknown key "comand" in service "web"
///   --> machines/gpu/machine.rhai:12:9
///    |
/// 12 |         comand: ["python3"],
///    |         ^
///    = help: did you mean "command"?
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    pub severity: Severity,
    /// A lowercase sentence without a full stop.
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub location: Option<Location>,
    /// The text of the line at `location`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_line: Option<String>,
    /// What the reader can do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
    /// More context, for example the hook or the import chain.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Warning,
    Error,
}

/// A place in a file; lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Location {
    pub file: PathBuf,
    pub line: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<usize>,
}

/// A file's path with its text, kept so that problems can show the line.
#[derive(Clone, Debug)]
pub struct SourceText {
    pub file: PathBuf,
    pub text: Arc<str>,
}

impl SourceText {
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.into() }
    }

    /// The text of line `line`, counted from 1.
    pub fn line(&self, line: usize) -> Option<&str> {
        self.text.lines().nth(line.checked_sub(1)?)
    }
}

impl Problem {
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            location: None,
            source_line: None,
            help: None,
            notes: Vec::new(),
        }
    }

    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Names the place and takes along the text of its line.
    #[must_use]
    pub fn at(mut self, source: &SourceText, line: usize, column: Option<usize>) -> Self {
        self.source_line = source.line(line).map(str::to_owned);
        self.location = Some(Location { file: source.file.clone(), line, column });
        self
    }

    /// Names a file as a whole.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.location = Some(Location { file: file.to_owned(), line: 0, column: None });
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}", self.message)?;
        let mut margin = String::new();
        if let Some(location) = &self.location {
            margin = " ".repeat(location.line.to_string().len());
            write!(f, "\n{margin}--> {location}")?;
            if let Some(text) = &self.source_line {
                // A tab would put the caret in another column than the character it points at.
                let text = text.replace('\t', " ");
                write!(f, "\n{margin} |\n{} | {}", location.line, text.trim_end())?;
                if let Some(column) = location.column {
                    let before = column.saturating_sub(1);
                    write!(f, "\n{margin} | {}{}", " ".repeat(before), "^".repeat(token_width(&text, before)))?;
                }
            }
        }
        for note in &self.notes {
            write!(f, "\n{margin} = note: {note}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{margin} = help: {help}")?;
        }
        Ok(())
    }
}

/// How many characters the word, number or text has that begins after `before` characters of the line.
fn token_width(line: &str, before: usize) -> usize {
    let rest: Vec<char> = line.chars().skip(before).collect();
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    let width = match rest.first() {
        Some('"') => {
            let mut escaped = false;
            let end = rest.iter().skip(1).position(|c| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            end.map_or(1, |end| end + 2)
        }
        _ => rest.iter().take_while(|c| word(c)).count(),
    };
    width.max(1)
}

/// All that is wrong at once, so that nobody mends one line only to learn of the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.0.extend(problems);
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|problem| problem.severity == Severity::Error)
    }

    pub fn errors(&self) -> usize {
        self.0.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::{Problem, SourceText};
    use std::path::Path;

    #[test]
    fn a_problem_shows_its_line_with_a_caret() {
        let source = SourceText::new(Path::new("machine.rhai"), "fn services(m) {\n\t[#{ comand: [] }]\n}\n");
        let problem =
            Problem::error("unknown key \"comand\"").at(&source, 2, Some(6)).help("did you mean \"command\"?");
        insta::assert_snapshot!(problem, @r#"
        error: unknown key "comand"
         --> machine.rhai:2:6
          |
        2 |  [#{ comand: [] }]
          |      ^^^^^^
          = help: did you mean "command"?
        "#);
    }

    #[test]
    fn a_line_beyond_the_end_is_no_panic() {
        let source = SourceText::new(Path::new("f"), "");
        assert_eq!(Problem::error("e").at(&source, 9, None).source_line, None);
    }
}
