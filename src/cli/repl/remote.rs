use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::client::{Client, segment};
use crate::cli::{CliError, Global};
use crate::script::Said;

/// A console on a machine that runs.
pub(super) struct Remote {
    client: Client,
    path: String,
    pub names: Vec<String>,
    pub greeting: String,
}

impl Remote {
    pub async fn open(global: &Global) -> Result<Self, CliError> {
        let client = Client::new(global)?;
        let console = client.post("/consoles", None).await?;
        let id = console["console"].as_str().unwrap_or_default();
        let names = serde_json::from_value(console["names"].clone()).unwrap_or_default();
        let machine = client.get("/status").await?;
        let greeting = format!(
            "machine {} ({}), generation {}; :help, :quit",
            machine["machine"]["id"].as_str().unwrap_or("?"),
            machine["machine"]["type"].as_str().unwrap_or("?"),
            console["generation"]
        );
        Ok(Self { path: format!("/consoles/{}", segment(id)), client, names, greeting })
    }

    pub async fn evaluate(
        &self,
        code: &str,
        limit: Duration,
        cancel: CancellationToken,
        told: mpsc::Sender<Said>,
    ) -> Result<(), CliError> {
        let path = format!("{}?timeout={}", self.path, limit.as_secs_f64());
        let mut body = self.client.post_streamed(&path, code.to_owned()).await?;
        let (mut pending, mut cancelled) = (Vec::new(), false);
        loop {
            let chunk = tokio::select! {
                chunk = body.next() => chunk,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    self.client.post(&format!("{}/cancel", self.path), None).await?;
                    continue;
                }
            };
            let Some(chunk) = chunk else { break };
            let broken = |cause: reqwest::Error| CliError::failed(format!("the answer broke off: {cause}"));
            pending.extend_from_slice(&chunk.map_err(broken)?);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let said = serde_json::from_slice(&line)
                    .map_err(|cause| CliError::internal(format!("the answer cannot be read: {cause}")))?;
                // Whoever listens has all that there is by then.
                let _ = told.send(said).await;
            }
        }
        Ok(())
    }

    /// By itself it would end later.
    pub async fn close(&self) {
        let _: Result<Value, CliError> = self.client.delete(&self.path).await;
    }
}
