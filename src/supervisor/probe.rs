use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::hooks::ServiceHooks;
use crate::base::Name;
use crate::host::process::{Lineage, Processes, SpawnSpec};
use crate::spec::{Probe, ProbeKind, ProbeTarget};

/// What a prober tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Held,
    /// Failed as often as the spec allows.
    Lost(String),
    /// Does not hold yet; told when the reason changes.
    NotYet(String),
}

/// What trying takes.
pub(super) struct Prober {
    pub service: Name,
    pub kind: ProbeKind,
    pub probe: Probe,
    /// It counts as holding until it has failed as often as its spec allows.
    pub held: bool,
    pub processes: Processes,
    pub spawn: SpawnSpec,
    pub hooks: Option<Arc<dyn ServiceHooks>>,
}

impl Prober {
    /// Tries again and again, and tells only what changes.
    pub async fn run(self, tell: impl Fn(Verdict)) {
        let probe = &self.probe;
        let live = self.kind == ProbeKind::Live;
        let mut held = self.held;
        let (mut failures, mut successes) = (0, 0);
        let mut last_reason = None;
        if live {
            tokio::time::sleep(probe.within.get()).await;
        }
        loop {
            match self.attempt().await {
                Ok(()) => {
                    failures = 0;
                    successes += 1;
                    if !held && successes >= probe.successes {
                        held = true;
                        last_reason = None;
                        tell(Verdict::Held);
                        let asks_no_more = self.kind == ProbeKind::Startup || probe.recheck.get().is_zero();
                        if asks_no_more {
                            return;
                        }
                    }
                }
                Err(why) => {
                    successes = 0;
                    failures += 1;
                    if held && failures >= probe.failures {
                        held = live;
                        failures = 0;
                        tell(Verdict::Lost(why));
                    } else if !held && last_reason.as_ref() != Some(&why) {
                        last_reason = Some(why.clone());
                        tell(Verdict::NotYet(why));
                    }
                }
            }
            let pause = if held && self.kind == ProbeKind::Ready { probe.recheck } else { probe.every };
            tokio::time::sleep(pause.get()).await;
        }
    }

    /// One try; the reason when the probe does not hold.
    async fn attempt(&self) -> Result<(), String> {
        let timeout = self.probe.timeout.get();
        let attempt = async {
            match &self.probe.target {
                ProbeTarget::Http(url) => http(url).await,
                ProbeTarget::Tcp(address) => {
                    TcpStream::connect(address).await.map(drop).map_err(|cause| format!("{address}: {cause}"))
                }
                ProbeTarget::Exec(argv) => exec(argv, timeout, &self.processes, &self.spawn).await,
                ProbeTarget::Script(function) => match &self.hooks {
                    None => Err("the machine's script is not loaded yet".to_owned()),
                    Some(hooks) => match hooks.call(function, &self.service, timeout).await {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(format!("{function} returned false")),
                        Err(why) => Err(why),
                    },
                },
                // Told by the log and by the socket, not tried.
                ProbeTarget::Log(_) | ProbeTarget::Notify => std::future::pending().await,
            }
        };
        // A program is ended by its own timer, so that nothing of it is left when this returns.
        let ends_itself = matches!(self.probe.target, ProbeTarget::Exec(_));
        let patience = if ends_itself { timeout + Duration::from_secs(2) } else { timeout };
        tokio::time::timeout(patience, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {}", humantime::format_duration(timeout))))
    }
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
    let mut reader = tokio::io::AsyncReadExt::take(BufReader::with_capacity(256, stream), 256);
    reader.read_until(b'\n', &mut line).await.map_err(failed)?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("{url}: status {status}")),
        None => Err(format!("{url}: the answer is not HTTP")),
    }
}

/// Runs a program to its end, at most for `timeout`; nothing of it is left afterwards, however this ends.
pub(super) async fn exec(
    argv: &[String],
    timeout: Duration,
    processes: &Processes,
    spawn: &SpawnSpec,
) -> Result<(), String> {
    let program = &argv[0];
    let (sender, exit) = oneshot::channel();
    let spec = SpawnSpec { argv: argv.to_vec(), mark: format!("{}/probe", spawn.mark), ..spawn.clone() };
    let spawned = processes
        .spawn(&spec, move |exit| {
            let _ = sender.send(exit);
        })
        .map_err(|cause| format!("{program} cannot be started: {cause}"))?;
    let killer = Killer { processes: processes.clone(), lineage: spawned.lineage };
    let begun = Instant::now();
    let outcome = tokio::time::timeout(timeout, exit).await;
    drop(killer);
    match outcome {
        Ok(Ok(exit)) if exit.success() => Ok(()),
        Ok(Ok(exit)) => Err(format!("{program}: {exit}")),
        Ok(Err(_)) => Err(format!("{program}: its end was not seen")),
        Err(_) => Err(format!("{program} was killed after {} ms", begun.elapsed().as_millis())),
    }
}

/// Ends the program and all it started, whichever way the try is left.
struct Killer {
    processes: Processes,
    lineage: Lineage,
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.processes.signal_group(self.lineage.pid, Signal::SIGKILL);
        let (processes, lineage) = (self.processes.clone(), self.lineage.clone());
        if processes.left_orphans(&lineage) {
            tokio::task::spawn_blocking(move || processes.kill_lineage(&lineage, Duration::from_secs(1)));
        }
    }
}
