use std::fmt;
use std::process::ExitCode;

/// Shown under `--help`.
pub(super) const HELP: &str = "\
Exit codes:
  0   done; for `run`: stopped as asked
  1   what was asked about failed, or is not healthy; for `run`: the machine failed
  2   the command line is wrong
  3   no machine answers
  4   the machine refused: not authorised, not found, not valid
  5   for `plan` against a running machine: a reload would change something
  70  an error of machinist itself
  78  the configuration is wrong
`run` passes on the exit code of a critical service that was given up (128 + N for signal N).";

/// An error as the user sees it, with its exit code.
#[derive(Debug)]
pub struct CliError {
    code: u8,
    message: String,
}

impl CliError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self { code: 4, message: message.into() }
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { code: 70, message: message.into() }
    }

    pub(super) fn configuration(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Problems bring their own heading.
        if self.message.starts_with("error:") || self.message.starts_with("warning:") {
            f.write_str(&self.message)
        } else {
            write!(f, "error: {}", self.message)
        }
    }
}
