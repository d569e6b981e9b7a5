use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::lineage;
use super::spawn::spawn;
use super::{Exit, SpawnSpec, Spawned};

type OnExit = Box<dyn FnOnce(Exit) + Send>;

/// Without any child there is nothing to wait on; as PID 1 a stranger's orphan may still arrive.
const CHILDLESS_LOOK: Duration = Duration::from_secs(5);

/// All child processes of the engine. Clones share one registry and one reaper thread; nothing else in the program waits
/// for a child.
#[derive(Clone)]
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    /// Managed children that are not reaped yet. A pid in here cannot have been reused.
    managed: Mutex<HashMap<u32, OnExit>>,
    spawned: Condvar,
}

impl Processes {
    /// Makes this process the reaper of its descendants and starts the thread.
    pub fn start() -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let shared = Arc::new(Shared { managed: Mutex::default(), spawned: Condvar::new() });
        let reaper = Arc::clone(&shared);
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap_forever(&reaper))?;
        Ok(Self { shared })
    }

    /// Starts a process. `on_exit` is called once on the reaper's thread after the process was reaped; it must do no more
    /// than send a message.
    pub fn spawn(&self, spec: &SpawnSpec, on_exit: impl FnOnce(Exit) + Send + 'static) -> io::Result<Spawned> {
        // Held over both, so that the reaper cannot meet a pid that is not entered yet.
        let mut managed = self.shared.lock();
        let spawned = spawn(spec)?;
        managed.insert(spawned.pid, Box::new(on_exit));
        drop(managed);
        self.shared.spawned.notify_one();
        Ok(spawned)
    }

    /// Signals the process group of a managed child; nothing once the child has been reaped.
    pub fn signal_group(&self, pid: u32, signal: Signal) {
        let managed = self.shared.lock();
        if managed.contains_key(&pid)
            && let Some(pid) = to_pid(pid)
        {
            // A child that is about to become the leader of its group is signalled by itself.
            if killpg(pid, signal) == Err(Errno::ESRCH) {
                let _ = kill(pid, signal);
            }
        }
    }

    /// Whether anything is left of the process `pid` with this mark: itself, its descendants, or what it left behind.
    pub fn lineage_is_alive(&self, pid: u32, mark: &str) -> bool {
        !self.lineage(pid, mark).is_empty()
    }

    /// Kills everything that is left of the process `pid` with this mark, again and again until nothing is. Blocks; gives
    /// up after `patience`, for what the kernel itself cannot end. Answers how many were killed.
    pub fn kill_lineage(&self, pid: u32, mark: &str, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let mut killed = std::collections::BTreeSet::new();
        loop {
            let members = self.lineage(pid, mark);
            if members.is_empty() || Instant::now() >= deadline {
                return killed.len();
            }
            for member in members {
                killed.insert(member);
                if let Some(member) = to_pid(member) {
                    let _ = kill(member, Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn lineage(&self, pid: u32, mark: &str) -> Vec<u32> {
        let managed: Vec<u32> = self.shared.lock().keys().copied().collect();
        lineage::members(pid, mark, &managed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, OnExit>> {
        // Nothing between lock and unlock can leave the map half changed.
        self.managed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reap_forever(shared: &Shared) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) => reap(shared, status),
            Err(Errno::ECHILD) => {
                let managed = shared.lock();
                if managed.is_empty() {
                    drop(shared.spawned.wait_timeout(managed, CHILDLESS_LOOK));
                }
            }
            Err(_) => {}
        }
    }
}

fn reap(shared: &Shared, status: WaitStatus) {
    let (pid, exit) = match status {
        WaitStatus::Exited(pid, code) => (pid, Exit::Code(code)),
        WaitStatus::Signaled(pid, signal, _) => (pid, Exit::Signal(signal as i32)),
        _ => return,
    };
    let mut managed = shared.lock();
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    let on_exit = u32::try_from(pid.as_raw()).ok().and_then(|pid| managed.remove(&pid));
    drop(managed);
    if let Some(on_exit) = on_exit {
        on_exit(exit);
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}
