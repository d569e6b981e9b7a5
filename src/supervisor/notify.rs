use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The socket on which a service tells how it is, by the protocol of `sd_notify(3)`. It has an abstract address, so that no
/// file system has to be writable and nothing is left behind.
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    /// As it stands in `$NOTIFY_SOCKET`.
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Ready,
    Alive,
    /// The service found out itself that it hangs (`WATCHDOG=trigger`).
    Hangs,
    Status(String),
    /// Nothing was heard for so long.
    Silent(Duration),
}

/// A datagram of `sd_notify` is a few lines.
const LONGEST: usize = 4096;
/// What is shown of a status.
const LONGEST_STATUS: usize = 200;

impl NotifySocket {
    pub fn bind(name: &str) -> io::Result<Self> {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address: format!("@{name}") })
    }

    /// Tells what arrives, until dropped; with `watchdog`, also that nothing has for so long, counted from the first
    /// `READY=1`.
    pub async fn listen(self, watchdog: Option<Duration>, tell: impl Fn(Notice)) {
        let Ok(socket) = tokio::net::UnixDatagram::from_std(self.socket) else { return };
        let mut buffer = vec![0; LONGEST];
        let mut watched = false;
        loop {
            let limit = watchdog.filter(|_| watched);
            let received = match limit {
                None => socket.recv(&mut buffer).await,
                Some(limit) => match tokio::time::timeout(limit, socket.recv(&mut buffer)).await {
                    Ok(received) => received,
                    Err(_) => {
                        tell(Notice::Silent(limit));
                        continue;
                    }
                },
            };
            let Ok(len) = received else { return };
            for notice in parse(&String::from_utf8_lossy(&buffer[..len])) {
                watched |= notice == Notice::Ready;
                tell(notice);
            }
        }
    }
}

fn parse(text: &str) -> Vec<Notice> {
    let notice = |line: &str| match line.split_once('=')? {
        ("READY", "1") => Some(Notice::Ready),
        ("WATCHDOG", "1") => Some(Notice::Alive),
        ("WATCHDOG", "trigger") => Some(Notice::Hangs),
        ("STATUS", status) => Some(Notice::Status(status.chars().take(LONGEST_STATUS).collect())),
        _ => None,
    };
    text.lines().filter_map(notice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_understood_and_the_rest_left() {
        let notices = parse("STOPPING=1\nREADY=1\nSTATUS=loading 3/4 = well\nWATCHDOG=1\nMAINPID=7\nnonsense\n");
        assert_eq!(notices, [Notice::Ready, Notice::Status("loading 3/4 = well".to_owned()), Notice::Alive],);
    }
}
