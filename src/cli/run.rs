use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::machine::{self, MachineError};
use crate::settings::{Overrides, load};
use crate::telemetry::init_tracing;

#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// The machine's directory.
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    flags: SettingFlags,
}

/// Settings from the command line.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SettingFlags {
    /// Address of the HTTP API, e.g. 0.0.0.0:9090.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The directory the engine writes to.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Any setting, e.g. --set machine.pool=heavy; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingFlags {
    /// With the environment of this process.
    pub fn overrides(&self) -> Result<Overrides, CliError> {
        let mut flags = Vec::new();
        for (flag, key, value) in
            [("--listen", "http.listen", &self.listen), ("--state-dir", "state_dir", &self.state_dir)]
        {
            flags.extend(value.clone().map(|value| (flag.to_owned(), key.to_owned(), value)));
        }
        for pair in &self.set {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| CliError::usage(format!("--set {pair:?}: write KEY=VALUE, e.g. machine.pool=heavy")))?;
            flags.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
        }
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Overrides { environment, flags })
    }
}

pub(super) async fn execute(args: RunArgs) -> Result<ExitCode, CliError> {
    let overrides = args.flags.overrides()?;
    let (settings, _) =
        load(&args.dir, &overrides).map_err(|problems| CliError::configuration(problems.to_string()))?;
    let log_level = init_tracing(settings.log.format, &settings.log.level);
    match machine::run(&args.dir, settings, overrides, log_level).await {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error @ (MachineError::Configuration(_) | MachineError::StateDir(_) | MachineError::Listen { .. })) => {
            Err(CliError::configuration(error.to_string()))
        }
        Err(error @ (MachineError::Queue(_) | MachineError::System { .. })) => Err(CliError::failed(error.to_string())),
    }
}
