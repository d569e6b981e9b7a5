use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{LogStream, ServiceLog};

/// A longer line is cut into several.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// Read at once; as much as a pipe holds.
const READ: usize = 64 * 1024;
/// What the pipe of a service that fills it is made to hold.
const WIDE: libc::c_int = 256 * 1024;
/// Reads of one pipe in a row, while others wait.
const FAIR_SHARE: usize = 8;
const WAKE: u64 = 0;

/// One thread that reads what all services write, and afterwards does what has to come after the reading: telling that a
/// process ended, with its last words.
#[derive(Clone)]
pub(in crate::supervisor) struct Collector {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: Epoll,
    wake: EventFd,
    next_token: AtomicU64,
    arrivals: Mutex<Arrivals>,
}

#[derive(Default)]
struct Arrivals {
    sources: Vec<(u64, Source)>,
    orders: Vec<Order>,
}

/// One stream of one process.
struct Source {
    pipe: std::fs::File,
    log: ServiceLog,
    incarnation: u64,
    stream: LogStream,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Its pipe was made to hold more.
    widened: bool,
}

enum Order {
    /// Read what these have now, then do that.
    Then(Vec<u64>, Box<dyn FnOnce() + Send>),
}

/// The streams of one process.
#[derive(Clone, Debug, Default)]
pub(in crate::supervisor) struct Streams(Vec<u64>);

impl Collector {
    pub fn start() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let shared = Arc::new(Shared { epoll, wake, next_token: AtomicU64::new(WAKE + 1), arrivals: Mutex::default() });
        let reader = Arc::clone(&shared);
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || collect_forever(&reader))?;
        Ok(Self { shared })
    }

    /// Reads both streams of a process into `log` until every holder of their other ends is gone.
    pub fn add(&self, log: &ServiceLog, incarnation: u64, stdout: OwnedFd, stderr: OwnedFd) -> Streams {
        let mut tokens = Vec::with_capacity(2);
        for (fd, stream) in [(stdout, LogStream::Stdout), (stderr, LogStream::Stderr)] {
            let token = self.shared.next_token.fetch_add(1, Ordering::Relaxed);
            let _ = fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            let pipe = std::fs::File::from(fd);
            // Entered before epoll knows it: whoever meets the token finds the source among the arrivals.
            let mut arrivals = self.shared.lock();
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
            match self.shared.epoll.add(&pipe, event) {
                Ok(()) => {
                    let source =
                        Source { pipe, log: log.clone(), incarnation, stream, partial: Vec::new(), widened: false };
                    arrivals.sources.push((token, source));
                    tokens.push(token);
                }
                Err(cause) => tracing::error!("{} of a service cannot be read: {cause}", stream.as_str()),
            }
        }
        Streams(tokens)
    }

    /// Does each on the collector's thread when what its streams hold now is read, in this order.
    pub fn after(&self, orders: impl IntoIterator<Item = (Streams, Box<dyn FnOnce() + Send>)>) {
        self.shared.lock().orders.extend(orders.into_iter().map(|(streams, then)| Order::Then(streams.0, then)));
        let _ = self.shared.wake.write(1);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn collect_forever(shared: &Shared) {
    let mut sources: HashMap<u64, Source> = HashMap::new();
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = vec![0u8; READ];
    loop {
        let count = shared.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        // Before the arrivals are taken: a call that comes after that wakes again.
        let tokens = || events[..count].iter().map(EpollEvent::data);
        if tokens().any(|token| token == WAKE) {
            let _ = shared.wake.read();
        }
        let arrived = std::mem::take(&mut *shared.lock());
        sources.extend(arrived.sources);
        for token in tokens().filter(|token| *token != WAKE) {
            read(&shared.epoll, &mut sources, token, &mut buffer, FAIR_SHARE);
        }
        for Order::Then(tokens, then) in arrived.orders {
            for token in tokens {
                read(&shared.epoll, &mut sources, token, &mut buffer, usize::MAX);
            }
            then();
        }
    }
}

/// Reads until nothing is there, at most `share` times; forgets a source that has ended. What is left is told by epoll
/// again.
fn read(epoll: &Epoll, sources: &mut HashMap<u64, Source>, token: u64, buffer: &mut [u8], share: usize) {
    let Some(source) = sources.get_mut(&token) else { return };
    let mut ended = false;
    for _ in 0..share {
        match source.pipe.read(buffer) {
            Ok(0) => ended = true,
            Ok(count) => {
                if count == buffer.len() && !std::mem::replace(&mut source.widened, true) {
                    // Who writes so much is held up less by a larger pipe. An unprivileged engine may be refused, which
                    // costs only time.
                    let _ = fcntl(source.pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(WIDE));
                }
                source.log.append(source.incarnation, source.stream, &mut source.partial, &buffer[..count]);
                continue;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => ended = cause.kind() != io::ErrorKind::WouldBlock,
        }
        break;
    }
    if ended && let Some(mut source) = sources.remove(&token) {
        // Closing alone would not take it out of the set: a child that is being spawned holds a copy until it executes its
        // program, and epoll would go on telling of it.
        let _ = epoll.delete(&source.pipe);
        source.log.end_of_stream(source.incarnation, source.stream, &mut source.partial);
    }
}
