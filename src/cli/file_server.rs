use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tower_http::services::ServeDir;

use super::{CliError, output};

#[derive(Clone, Debug, Args)]
pub(crate) struct FileServerArgs {
    /// The directory to serve.
    dir: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
}

pub(super) async fn execute(args: FileServerArgs) -> Result<ExitCode, CliError> {
    if !args.dir.is_dir() {
        return Err(CliError::failed(format!("there is no directory {}", args.dir.display())));
    }
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .map_err(|cause| CliError::failed(format!("cannot listen on {}: {cause}", args.listen)))?;
    let address = listener.local_addr().unwrap_or(args.listen);
    output::line(&format!("serving {} on http://{address}", args.dir.display()));
    let router = axum::Router::new().fallback_service(ServeDir::new(&args.dir));
    let mut terminate = signal(SignalKind::terminate()).map_err(|cause| CliError::internal(cause.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|cause| CliError::internal(cause.to_string()))?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let served = axum::serve(listener, router).with_graceful_shutdown(stop).await;
    served.map(|()| ExitCode::SUCCESS).map_err(|cause| CliError::failed(cause.to_string()))
}
