use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Helper};

use crate::cli::CliError;
use crate::script::is_complete;

/// Reads inputs from a terminal, with history and completion.
pub(super) struct Editor {
    editor: rustyline::Editor<Words, FileHistory>,
    history: Option<PathBuf>,
}

/// What was entered.
pub(super) enum Entered {
    Input(String),
    /// Ctrl-C, or an empty line.
    Nothing,
    /// Ctrl-D.
    End,
}

const PROMPT: &str = "> ";
const MAX_HISTORY: usize = 2_000;
const COMMANDS: [&str; 7] = [":help", ":names", ":vars", ":timeout", ":reset", ":quit", ":exit"];
const KEYWORDS: [&str; 20] = [
    "let", "const", "if", "else", "switch", "for", "in", "while", "loop", "do", "until", "break", "continue", "return",
    "throw", "try", "catch", "fn", "import", "type_of",
];

impl Editor {
    pub fn new(names: &[String]) -> Result<Self, CliError> {
        let failed = |cause: ReadlineError| CliError::failed(format!("the terminal: {cause}"));
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)
            .map_err(failed)?
            // As shells do: what begins with a space, such as a secret, is not kept.
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .build();
        let history = FileHistory::with_config(&config);
        let mut editor = rustyline::Editor::with_history(config, history).map_err(failed)?;
        editor.set_helper(Some(Words { names: names.to_vec(), variables: vec!["m".to_owned()] }));
        let history = history_file();
        if let Some(path) = &history {
            // There is none at first.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    pub fn read(&mut self) -> Result<Entered, CliError> {
        match self.editor.readline(PROMPT) {
            Ok(input) if input.trim().is_empty() => Ok(Entered::Nothing),
            Ok(input) => {
                let added = self.editor.add_history_entry(input.as_str());
                if let (Ok(true), Some(path)) = (added, &self.history) {
                    // At once: a console that is killed loses nothing. A history that cannot be kept keeps nobody from working.
                    let _ = self.editor.append_history(path);
                }
                Ok(Entered::Input(input))
            }
            Err(ReadlineError::Interrupted) => Ok(Entered::Nothing),
            Err(ReadlineError::Eof) => Ok(Entered::End),
            Err(cause) => Err(CliError::failed(format!("the terminal: {cause}"))),
        }
    }

    pub fn set_names(&mut self, names: &[String]) {
        if let Some(words) = self.editor.helper_mut() {
            *words = Words { names: names.to_vec(), variables: vec!["m".to_owned()] };
        }
    }

    pub fn set_variables(&mut self, variables: Vec<String>) {
        if let Some(words) = self.editor.helper_mut() {
            words.variables = variables;
        }
    }

    pub fn variables(&self) -> &[String] {
        self.editor.helper().map_or(&[], |words| &words.variables)
    }
}

/// In the user's state directory, for nobody else to read; none where there is no such directory.
fn history_file() -> Option<PathBuf> {
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = home("XDG_STATE_HOME").or_else(|| home("HOME").map(|home| home.join(".local/state")))?;
    let dir = state.join("machinist");
    fs::create_dir_all(&dir).ok()?;
    let path = dir.join("repl_history");
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).ok()?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).ok()?;
    Some(path)
}

/// What can be written.
struct Words {
    names: Vec<String>,
    variables: Vec<String>,
}

impl Words {
    /// Where the word before the cursor begins, and what it may become.
    fn candidates(&self, line: &str, cursor: usize) -> (usize, Vec<String>) {
        let before = &line[..cursor];
        if before.starts_with(':') && !before.contains(char::is_whitespace) {
            let fitting = COMMANDS.iter().filter(|name| name.starts_with(before));
            return (0, fitting.map(|name| (*name).to_owned()).collect());
        }
        let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let begin =
            before.rfind(|c: char| !part(c)).map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        // After a dot there are methods and properties only.
        let begin = if before[..begin].ends_with('.') { begin - 1 } else { begin };
        let word = &before[begin..];
        if word.is_empty() {
            return (cursor, Vec::new());
        }
        let names = self.names.iter().map(String::as_str);
        let all = names.chain(self.variables.iter().map(String::as_str)).chain(KEYWORDS);
        let mut fitting: Vec<String> = all.filter(|name| name.starts_with(word)).map(str::to_owned).collect();
        // A namespace first, then what is in it.
        if !word.contains(':') {
            let namespace = |name: &String| name.find("::").map(|end| name[..end + 2].to_owned());
            fitting = fitting.into_iter().map(|name| namespace(&name).unwrap_or(name)).collect();
        }
        fitting.sort();
        fitting.dedup();
        (begin, fitting)
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(line, cursor))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        // An empty line ends what can only be wrong.
        let whole = input.starts_with(':') || input.ends_with("\n\n") || is_complete(input);
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {
    fn highlight_candidate<'c>(&self, candidate: &'c str, _: CompletionType) -> Cow<'c, str> {
        Cow::Borrowed(candidate)
    }
}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn words_are_completed_where_they_begin() {
        let names = ["http::get", "http::post", "sleep", "step", ".len", ".trim", ".to_json"];
        let words = Words { names: names.map(str::to_owned).to_vec(), variables: vec!["answer".to_owned()] };
        let of = |line: &str| {
            let (begin, found) = words.candidates(line, line.len());
            (begin, found.join(" "))
        };
        assert_eq!(of("ht"), (0, "http::".to_owned()));
        assert_eq!(of("let x = http::p"), (8, "http::post".to_owned()));
        assert_eq!(of("print(st"), (6, "step".to_owned()));
        assert_eq!(of("ans"), (0, "answer".to_owned()));
        assert_eq!(of("answer.t"), (6, ".to_json .trim".to_owned()));
        assert_eq!(of("f(\u{e4}; sl"), (6, "sleep".to_owned()));
        assert_eq!(of(":re"), (0, ":reset".to_owned()));
        assert_eq!(of("1 + "), (4, String::new()));
    }
}
