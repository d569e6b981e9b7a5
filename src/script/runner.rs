//! Threads that scripts run on. A script's values never leave its thread: however deeply they are nested, its stack has room
//! to walk and to drop them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use tokio::sync::oneshot;

use super::call::Call;
use crate::host::{held_by_thread, take_over};

/// Calls that run or block at once; each holds a thread.
const MAX_CALLS: usize = 2_000;
/// Address space, of which a script touches some kilobytes. Values are nested at most as deep as their memory and the limits
/// of `engine` allow: arrays 100,000 deep take 1.6 KiB of stack a level to print, closures within closures 170 bytes for
/// each 200 of memory.
const STACK: usize = 256 * 1024 * 1024;

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Counts a call while it runs.
struct Slot;

impl Slot {
    fn take(hook: &str) -> Result<Self, String> {
        let taken = CALLS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_CALLS).then_some(n + 1));
        taken.map(|_| Self).map_err(|_| format!("{MAX_CALLS} scripts run already; hook {hook} was not called"))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread of its own as `call` and waits for it. Dropping the future cancels the call.
///
/// # Errors
/// A sentence where there is no thread for it, or where it panicked.
pub(super) async fn run<T: Send + 'static>(
    hook: &str,
    call: Call,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let slot = Slot::take(hook)?;
    let (sender, outcome) = oneshot::channel();
    let cancel_on_drop = call.cancel.clone().drop_guard();
    let body = move || {
        let _slot = slot;
        let _ = sender.send(guarded(call, work));
    };
    thread(hook).spawn(body).map_err(|cause| no_thread(hook, &cause))?;
    let result = outcome.await.unwrap_or_else(|_| Err("the script's thread is gone".to_owned()));
    cancel_on_drop.disarm();
    result
}

/// The same for a caller that may block.
pub(super) fn run_now<T: Send>(hook: &str, call: Call, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let slot = Slot::take(hook)?;
    std::thread::scope(|scope| {
        let body = move || {
            let _slot = slot;
            guarded(call, work)
        };
        let running = thread(hook).spawn_scoped(scope, body).map_err(|cause| no_thread(hook, &cause))?;
        running.join().unwrap_or_else(|_| Err("the script's thread is gone".to_owned()))
    })
}

/// Runs `work` on several threads at once, fewer where there are not so many, and waits for all of them. What is left of
/// what they allocated is the caller's.
pub(super) fn run_together(hook: &str, call: &Call, threads: usize, work: &(dyn Fn() + Sync)) -> Result<(), String> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        let mut none = String::new();
        for _ in 0..threads {
            let (call, slot) = match (call.clone(), Slot::take(hook)) {
                (call, Ok(slot)) => (call, slot),
                (_, Err(why)) => {
                    none = why;
                    break;
                }
            };
            let body = move || {
                let _slot = slot;
                let before = held_by_thread();
                (guarded(call, work), held_by_thread() - before)
            };
            match thread(hook).spawn_scoped(scope, body) {
                Ok(thread) => running.push(thread),
                Err(cause) => {
                    none = no_thread(hook, &cause);
                    break;
                }
            }
        }
        if running.is_empty() {
            return Err(none);
        }
        let mut outcome = Ok(());
        for thread in running {
            let (ended, left) = thread.join().map_err(|_| "the script's thread is gone".to_owned())?;
            take_over(left);
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// Has a thread of its own, which counts as a call while it runs, do `work`, whose values stay there.
pub(super) fn keep(hook: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let slot = Slot::take(hook)?;
    let body = move || {
        let _slot = slot;
        work();
    };
    thread(hook).spawn(body).map(drop).map_err(|cause| no_thread(hook, &cause))
}

fn thread(hook: &str) -> Builder {
    Builder::new().name(format!("script:{hook}").chars().take(15).collect()).stack_size(STACK)
}

fn no_thread(hook: &str, cause: &std::io::Error) -> String {
    format!("no thread for hook {hook}: {cause}")
}

/// A panic in a primitive is that script's error and nobody else's.
pub(super) fn guarded<T>(call: Call, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(|| call.scope(work))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        format!("a primitive of the engine panicked, which is a bug of machinist: {text}")
    })
}
