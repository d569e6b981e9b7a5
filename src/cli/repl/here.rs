use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::run::SettingFlags;
use crate::cli::{CliError, check};
use crate::script::{Console, Said};

/// A console in this process, on the script of a machine of which nothing runs.
pub(super) struct Here {
    pub console: Console,
    pub greeting: String,
}

impl Here {
    pub async fn open(dir: &Path, flags: &SettingFlags) -> Result<Self, CliError> {
        let generation = check::check(dir, flags).await?;
        let generation = generation.map_err(|problems| CliError::configuration(problems.to_string()))?;
        let console = Console::open(&generation.program, &generation.context).map_err(CliError::failed)?;
        let greeting = format!("the script of {}, of which nothing runs; :help, :quit", dir.display());
        Ok(Self { console, greeting })
    }

    pub async fn evaluate(
        &self,
        code: &str,
        limit: Duration,
        cancel: CancellationToken,
        told: mpsc::Sender<Said>,
    ) -> Result<(), CliError> {
        let said = self.console.evaluate(code.to_owned(), limit, cancel);
        let mut said = said.map_err(|why| CliError::failed(why.to_string()))?;
        while let Some(said) = said.recv().await {
            if told.send(said).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}
