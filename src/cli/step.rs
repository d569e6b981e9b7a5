use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::host::provision::provision;
use crate::spec::StepSpec;

#[derive(Clone, Debug, Args)]
pub(crate) struct StepArgs {
    /// What to bring about, as JSON.
    step: String,
}

/// What a service of kind `setup` without a program of its own runs.
pub(super) async fn execute(args: StepArgs) -> Result<ExitCode, CliError> {
    let step: StepSpec = serde_json::from_str(&args.step)
        .map_err(|cause| CliError::usage(format!("this is no setup step: {cause}; steps are run by the engine")))?;
    let dir = std::env::current_dir().map_err(|cause| CliError::failed(format!("no working directory: {cause}")))?;
    provision(&step, &dir).await.map_err(CliError::failed)?;
    Ok(ExitCode::SUCCESS)
}
