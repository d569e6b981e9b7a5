use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The signals that mean something to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostSignal {
    /// Drain and exit.
    Stop(&'static str),
    /// Read the machine's files again.
    Reload,
}

/// Listens for SIGTERM, SIGINT, SIGQUIT (stop) and SIGHUP (reload) from now on.
///
/// # Errors
/// When the process cannot install handlers.
pub fn listen() -> std::io::Result<mpsc::Receiver<HostSignal>> {
    let (sender, receiver) = mpsc::channel(8);
    let signals = [
        (SignalKind::terminate(), HostSignal::Stop("SIGTERM")),
        (SignalKind::interrupt(), HostSignal::Stop("SIGINT")),
        (SignalKind::quit(), HostSignal::Stop("SIGQUIT")),
        (SignalKind::hangup(), HostSignal::Reload),
    ];
    for (kind, meaning) in signals {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(meaning).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}
