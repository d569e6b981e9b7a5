use std::fs::File;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A process that was killed while it spawned another leaves its files open in the child until that has begun its
/// program; on a busy machine that takes a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Locks a file for this process alone; `EWOULDBLOCK` when another holds it for longer than such a moment.
pub fn lock_file(mut file: File) -> Result<Flock<File>, Errno> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, Errno::EWOULDBLOCK)) if Instant::now() < end => {
                file = same;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, errno)) => return Err(errno),
        }
    }
}
