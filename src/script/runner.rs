use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use rhai::EvalAltResult;
use tokio::sync::oneshot;

use super::call::{Call, ScriptResult, error};

/// Calls that run or block at once; each holds a thread.
const MAX_CALLS: usize = 2_000;
const STACK: usize = 2 * 1024 * 1024;

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Counts a call while it runs.
struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        let taken = CALLS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_CALLS).then_some(n + 1));
        taken.ok().map(|_| Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread of its own as `call` and waits for it. Dropping the future cancels the call.
pub(super) async fn run<T: Send + 'static>(
    hook: &str,
    call: Call,
    work: impl FnOnce() -> ScriptResult<T> + Send + 'static,
) -> ScriptResult<T> {
    let Some(slot) = Slot::take() else {
        return Err(error(format!("{MAX_CALLS} scripts run already; hook {hook} was not called")));
    };
    let (sender, outcome) = oneshot::channel();
    let cancel_on_drop = call.cancel.clone().drop_guard();
    let body = move || {
        let _slot = slot;
        // A panic in a primitive is that script's error and nobody else's.
        let result = catch_unwind(AssertUnwindSafe(|| call.scope(work)));
        let result = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        let _ = sender.send(result);
    };
    let name: String = format!("script:{hook}").chars().take(15).collect();
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK)
        .spawn(body)
        .map_err(|cause| error(format!("no thread for hook {hook}: {cause}")))?;
    let result = outcome.await.unwrap_or_else(|_| Err(error("the script's thread is gone")));
    cancel_on_drop.disarm();
    result
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Box<EvalAltResult> {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    error(format!("a primitive of the engine panicked, which is a bug of machinist: {text}"))
}
