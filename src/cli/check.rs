use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;

use super::{CliError, Global, output};
use crate::base::{Name, Problems};
use crate::cli::run::SettingFlags;
use crate::host::process::Processes;
use crate::host::{self, Identity};
use crate::machine::{BuildInputs, Generation, build, machine_context};
use crate::script::{ScriptHost, ScriptHostConfig};
use crate::settings::load;

/// A driver that does not answer for so long counts as none.
const GPU_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// The machines' directories.
    #[arg(default_value = ".")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    flags: SettingFlags,
}

pub(super) async fn execute(args: CheckArgs, global: &Global) -> Result<ExitCode, CliError> {
    let mut reports = Vec::new();
    let mut all_right = true;
    for dir in &args.dirs {
        let outcome = check(dir, &args.flags).await?;
        let (problems, summary) = match &outcome {
            Ok(generation) => {
                let (services, workers) = (generation.spec.services.len(), generation.spec.workers.len());
                (&generation.warnings, format!("{services} services, {workers} workers"))
            }
            Err(problems) => (problems, format!("{} errors", problems.errors())),
        };
        all_right &= outcome.is_ok();
        if global.json {
            reports.push(json!({ "dir": dir, "ok": outcome.is_ok(), "problems": problems }));
            continue;
        }
        if !problems.is_empty() {
            output::line(&format!("{problems}\n"));
        }
        output::line(&format!("{}: {} ({summary})", dir.display(), if outcome.is_ok() { "ok" } else { "not ok" }));
    }
    if global.json {
        output::json(&reports);
    }
    Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::from(78) })
}

/// The same loader as `run`, with nothing started.
pub(super) async fn check(dir: &Path, flags: &SettingFlags) -> Result<Result<Generation, Problems>, CliError> {
    let overrides = flags.overrides()?;
    let settings = match load(dir, &overrides) {
        Ok((settings, _)) => settings,
        Err(problems) => return Ok(Err(problems)),
    };
    let processes = Processes::start("check/0").map_err(|cause| CliError::internal(format!("the reaper: {cause}")))?;
    let host = ScriptHost::new(ScriptHostConfig {
        machine_dir: settings.dir.clone(),
        scripts_dir: settings.scripts_dir.clone(),
        state_dir: settings.state_dir.clone(),
        processes,
        supervisor: None,
        mark_prefix: "check".to_owned(),
        runtime: Handle::current(),
        events: None,
        gpus: None,
    });
    let id = settings.machine.id.clone().or_else(|| Name::new("check").ok());
    let id = id.ok_or_else(|| CliError::internal("no name for the machine"))?;
    let identity = Identity { id, incarnation: 0 };
    let gpus = host::gpus(settings.gpu.library.as_deref(), GPU_PATIENCE);
    let context = machine_context(&settings, &identity, host::resources(), gpus);
    let inputs = BuildInputs { dir: dir.to_owned(), overrides, host, context, running: None };
    Ok(build(&inputs, 1).await.map_err(|refused| refused.problems))
}
