use std::process::ExitCode;

use super::{CliError, output};
use crate::admin::openapi;

/// Needs no machine: the document is made of this program's routes.
#[expect(clippy::unnecessary_wraps, reason = "as every subcommand")]
pub(super) fn execute() -> Result<ExitCode, CliError> {
    output::json(&openapi());
    Ok(ExitCode::SUCCESS)
}
