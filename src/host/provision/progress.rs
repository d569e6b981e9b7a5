#![expect(clippy::print_stdout, reason = "what a setup step prints is its log")]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::ByteSize;

/// Between two lines about one thing.
const EVERY: Duration = Duration::from_secs(2);

/// Tells how far a step is: on its output, and as `STATUS=` on the notify socket.
pub(super) struct Progress {
    socket: Option<UnixDatagram>,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub fn new() -> Self {
        Self { socket: connect(), last: Mutex::new(None) }
    }

    pub fn say(&self, text: &str) {
        line(text);
        if let Some(socket) = &self.socket {
            // Nobody may listen any more.
            let _ = socket.send(format!("STATUS={text}").as_bytes());
        }
    }

    /// Says how many bytes of how many are there, now and then.
    pub fn bytes(&self, what: &str, done: u64, total: Option<u64>, begun: Instant, before: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no exact bytes")]
        let rate = (done - before) as f64 / begun.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive")]
        let rate = ByteSize(rate as u64);
        let of = total
            .map_or_else(String::new, |total| format!(" of {} ({} %)", ByteSize(total), done * 100 / total.max(1)));
        self.say(&format!("{what}: {}{of}, {rate}/s", ByteSize(done)));
    }
}

pub(super) fn line(text: &str) {
    println!("{text}");
}

fn connect() -> Option<UnixDatagram> {
    let address = std::env::var("NOTIFY_SOCKET").ok()?;
    let socket = UnixDatagram::unbound().ok()?;
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?,
        None => socket.connect(address).ok()?,
    }
    Some(socket)
}
