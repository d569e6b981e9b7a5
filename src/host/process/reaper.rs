use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::lineage::{self, Lineage, Look};
use super::spawn::spawn;
use super::tag::Tag;
use super::{Exit, SpawnSpec, Spawned};

type OnExit = Box<dyn FnOnce(Exit) + Send>;

/// Without any child there is nothing to wait on; as PID 1 a stranger's orphan may still arrive.
const CHILDLESS_LOOK: Duration = Duration::from_secs(5);
/// What the supervisor's thread spends on a look at the adopted, and what a thread of its own does.
const SHORT_LOOK: Duration = Duration::from_millis(2);
const LONG_LOOK: Duration = Duration::from_secs(1);
/// Between two looks at what is to go; a reaped process brings the next look forward.
const LOOK: Duration = Duration::from_millis(5);

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
    /// Something that nobody manages was reaped: an orphan.
    orphan_reaped: Condvar,
    life: Tag,
    spawns: AtomicU64,
}

/// Why [`Processes::end_lineage`] should no longer be patient.
pub type Hurry = Arc<AtomicBool>;

impl Processes {
    /// Makes this process the reaper of its descendants and starts the thread; once in a process, since a second reaper would
    /// take the children of the first. `life` is `<machine>/<incarnation>`, with
    /// which all marks begin.
    pub fn start(life: &str) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let shared = Arc::new(Shared {
            managed: Mutex::default(),
            spawned: Condvar::new(),
            orphan_reaped: Condvar::new(),
            life: Tag::life(life),
            spawns: AtomicU64::new(1),
        });
        let reaper = Arc::clone(&shared);
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap_forever(&reaper))?;
        Ok(Self { shared })
    }

    /// Starts a process. `on_exit` is called once on the reaper's thread after the process was reaped; it must do no more
    /// than send a message.
    pub fn spawn(&self, spec: &SpawnSpec, on_exit: impl FnOnce(Exit) + Send + 'static) -> io::Result<Spawned> {
        let tag = self.shared.life.spawn(self.shared.spawns.fetch_add(1, Ordering::Relaxed));
        // Held over both, so that the reaper cannot meet a pid that is not entered yet, and no two spawns share a tag.
        let mut managed = self.shared.lock();
        let (pid, pipes) = tag.while_spawning(|| spawn(spec))?;
        managed.insert(pid, Box::new(on_exit));
        drop(managed);
        self.shared.spawned.notify_one();
        let (mark, detach) = (spec.mark.as_str().into(), Arc::clone(&spec.detach));
        let lineage = Lineage { pid, tag, mark, detach };
        Ok(Spawned { pid, lineage, stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr })
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

    /// Whether a process that has ended left others behind, besides detached ones. Usually costs one small read; when so
    /// much is being adopted that a short look cannot tell, the answer is yes, for [`Self::end_lineage`] to find out.
    pub fn left_orphans(&self, lineage: &Lineage) -> bool {
        self.looks_left(lineage, SHORT_LOOK)
    }

    fn looks_left(&self, lineage: &Lineage, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            // Nothing is reaped while the lock is held, which keeps the list whole.
            let managed = self.shared.lock();
            let strangers = lineage::adopted().map(|mut pids| {
                pids.retain(|pid| !managed.contains_key(pid));
                pids
            });
            drop(managed);
            match strangers.map(|pids| lineage::look(&pids, lineage, until)) {
                Some(Look::Left) => return true,
                Some(Look::Nothing) => return false,
                Some(Look::Again) if Instant::now() >= until => return true,
                Some(Look::Again) => std::thread::yield_now(),
                None => return !self.members(lineage).is_empty(),
            }
        }
    }

    /// All that lives of it, its detached programs aside.
    pub fn members(&self, lineage: &Lineage) -> Vec<u32> {
        lineage::members(lineage, &self.managed())
    }

    /// What of it detached and lives.
    pub fn detached(&self, lineage: &Lineage) -> Vec<u32> {
        lineage::detached(lineage, &self.managed())
    }

    /// The pids of all managed children.
    pub fn managed(&self) -> HashSet<u32> {
        self.shared.lock().keys().copied().collect()
    }

    /// Kills everything that is left of it, again and again until nothing is. Blocks; gives up after `patience`, for what
    /// the kernel itself cannot end. Answers how many were killed.
    pub fn kill_lineage(&self, lineage: &Lineage, patience: Duration) -> usize {
        self.end_lineage(lineage, Signal::SIGKILL, Instant::now(), &Hurry::default(), patience)
    }

    /// Asks everything that is left of it to end, with `signal`; at `kill_at`, or as soon as `hurry` is set, kills it. Blocks
    /// until nothing is left, at most `patience` longer. Answers how many it met.
    pub fn end_lineage(
        &self,
        lineage: &Lineage,
        signal: Signal,
        kill_at: Instant,
        hurry: &Hurry,
        patience: Duration,
    ) -> usize {
        let mut met = HashSet::new();
        let mut give_up = None;
        loop {
            let members = self.members(lineage);
            let now = Instant::now();
            let hard = signal == Signal::SIGKILL || now >= kill_at || hurry.load(Ordering::Relaxed);
            if hard {
                give_up.get_or_insert(now + patience);
            }
            // A process that forks and ends while the table is read hides its child; a look at the adopted finds it.
            let gone = members.is_empty() && !self.looks_left(lineage, LONG_LOOK);
            if gone || give_up.is_some_and(|at| now >= at) {
                return met.len();
            }
            for member in members {
                let new = met.insert(member);
                if let Some(pid) = to_pid(member).filter(|_| new || hard) {
                    let _ = kill(pid, if hard { Signal::SIGKILL } else { signal });
                }
            }
            let managed = self.shared.lock();
            drop(self.shared.orphan_reaped.wait_timeout(managed, LOOK));
        }
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
    match on_exit {
        Some(on_exit) => on_exit(exit),
        None => shared.orphan_reaped.notify_all(),
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}
