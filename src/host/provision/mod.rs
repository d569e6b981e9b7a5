//! Setup steps: directories, downloads, git checkouts, Python environments. Run in a process of its own, as a service of
//! kind `setup` is, so that it is logged, stopped and retried like any other.

mod download;
mod git;
mod pip;
mod progress;

use std::future::Future;
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::base::{Backoff, Seconds};
use crate::spec::StepSpec;
use progress::Progress;

/// Why a part of a step failed.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Trying again may help.
    #[error("{0}")]
    Passing(String),
    /// It will not.
    #[error("{0}")]
    Lasting(String),
}

/// Brings about what `step` wants, relative to `dir`; does nothing where it is there already.
///
/// # Errors
/// A sentence for people that says which part failed and why.
pub async fn provision(step: &StepSpec, dir: &Path) -> Result<(), String> {
    let progress = Progress::new();
    for directory in &step.directories {
        let path = dir.join(directory);
        std::fs::create_dir_all(&path).map_err(|cause| format!("{} cannot be made: {cause}", path.display()))?;
    }
    let client = download::client()?;
    stream::iter(&step.download)
        .map(|item| {
            let (client, progress) = (client.clone(), &progress);
            let what = item.to.display().to_string();
            async move { retry(step.retries, &what, || download::fetch(&client, item, dir, progress)).await }
        })
        .buffer_unordered(step.parallel.max(1))
        .try_collect::<Vec<()>>()
        .await?;
    for checkout in &step.git {
        let what = checkout.to.display().to_string();
        retry(step.retries, &what, || git::check_out(checkout, dir, &progress)).await?;
    }
    if let Some(install) = &step.pip {
        let what = install.venv.display().to_string();
        retry(step.retries, &what, || pip::install(install, dir, &progress)).await?;
    }
    progress.say("done");
    Ok(())
}

async fn retry<F: Future<Output = Result<(), ProvisionError>>>(
    retries: u32,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<(), String> {
    let backoff = Backoff { initial: Seconds::from_secs(1), max: Seconds::from_secs(60), ..Backoff::default() };
    let mut failures = 0;
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(ProvisionError::Lasting(why)) => return Err(format!("{what}: {why}")),
            Err(ProvisionError::Passing(why)) if failures >= retries => {
                return Err(format!("{what}: {why} (after {} tries)", failures + 1));
            }
            Err(ProvisionError::Passing(why)) => {
                failures += 1;
                let pause = backoff.random_delay(failures);
                progress::line(&format!("{what}: {why}; again in {:.1} s", pause.as_secs_f64()));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Runs a program with its output passed on, without a terminal to ask on.
async fn run(program: &Path, args: &[&str], dir: &Path) -> Result<(), ProvisionError> {
    let name = program.display();
    let status = tokio::process::Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|cause| ProvisionError::Lasting(format!("{name} cannot be started: {cause}")))?;
    if status.success() { Ok(()) } else { Err(ProvisionError::Passing(format!("{name} {}: {status}", args.join(" ")))) }
}
