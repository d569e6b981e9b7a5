use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::host::process::{Processes, SpawnSpec};
use crate::spec::ProbeTarget;

/// One try; the reason when the probe does not hold. Log probes are not tried, they are told.
pub(super) async fn attempt(
    target: &ProbeTarget,
    timeout: Duration,
    processes: &Processes,
    spawn: &SpawnSpec,
) -> Result<(), String> {
    let attempt = async {
        match target {
            ProbeTarget::Http(url) => http(url).await,
            ProbeTarget::Tcp(address) => {
                TcpStream::connect(address).await.map(drop).map_err(|cause| format!("{address}: {cause}"))
            }
            ProbeTarget::Exec(argv) => exec(argv, timeout, processes, spawn).await,
            ProbeTarget::Log(pattern) => Err(format!("no line has matched {pattern:?} yet")),
        }
    };
    // A program is ended by its own timer, so that nothing of it is left when this returns.
    let patience = if matches!(target, ProbeTarget::Exec(_)) { timeout + Duration::from_secs(2) } else { timeout };
    tokio::time::timeout(patience, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}", humantime::format_duration(timeout))))
}

/// GET by HTTP/1.1 on a connection of its own; only the status line is read.
async fn http(url: &str) -> Result<(), String> {
    let failed = |cause: io::Error| format!("{url}: {cause}");
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: only http:// is probed"))?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let host = if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let mut stream = TcpStream::connect(&host).await.map_err(failed)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: machinist-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = Vec::new();
    let mut reader = tokio::io::AsyncReadExt::take(BufReader::new(stream), 256);
    reader.read_until(b'\n', &mut line).await.map_err(failed)?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("{url}: status {status}")),
        None => Err(format!("{url}: the answer is not HTTP")),
    }
}

async fn exec(argv: &[String], timeout: Duration, processes: &Processes, spawn: &SpawnSpec) -> Result<(), String> {
    let program = &argv[0];
    let (sender, exit) = oneshot::channel();
    let spec = SpawnSpec { argv: argv.to_vec(), mark: format!("{}/probe", spawn.mark), ..spawn.clone() };
    let spawned = processes
        .spawn(&spec, move |exit| {
            let _ = sender.send(exit);
        })
        .map_err(|cause| format!("{program} cannot be started: {cause}"))?;
    let begun = Instant::now();
    let outcome = tokio::time::timeout(timeout, exit).await;
    if outcome.is_err() {
        processes.signal_group(spawned.pid, Signal::SIGKILL);
    }
    let (processes, pid, mark) = (processes.clone(), spawned.pid, spec.mark);
    let cleanup = move || processes.kill_lineage(pid, &mark, Duration::from_secs(1));
    let _ = tokio::task::spawn_blocking(cleanup).await;
    match outcome {
        Ok(Ok(exit)) if exit.success() => Ok(()),
        Ok(Ok(exit)) => Err(format!("{program}: {exit}")),
        Ok(Err(_)) => Err(format!("{program}: its end was not seen")),
        Err(_) => Err(format!("{program} was killed after {} ms", begun.elapsed().as_millis())),
    }
}
