//! `PendingRequest`: a request that runs while the script does something else.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Response;
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::duration;
use crate::script::prelude::*;

/// The request ends with its last handle.
#[derive(Clone)]
pub(in crate::script) struct PendingRequest {
    task: Arc<Mutex<Option<AbortOnDropHandle<()>>>>,
    answer: watch::Receiver<Option<Result<Response, super::HostError>>>,
}

impl PendingRequest {
    pub fn start(
        call: &Call,
        request: impl Future<Output = Result<Response, super::HostError>> + Send + 'static,
    ) -> Self {
        let (sender, answer) = watch::channel(None);
        let task = call.runtime().spawn(async move {
            let outcome = request.await;
            sender.send_replace(Some(outcome));
        });
        Self { task: Arc::new(Mutex::new(Some(AbortOnDropHandle::new(task)))), answer }
    }

    /// One that is over.
    pub fn ended(outcome: Result<Response, super::HostError>) -> Self {
        Self { task: Arc::default(), answer: watch::channel(Some(outcome)).1 }
    }

    fn wait(&self, limit: Option<std::time::Duration>) -> ScriptResult<Option<Response>> {
        let call = Call::current()?;
        let mut answer = self.answer.clone();
        let ready = async {
            let outcome = answer.wait_for(Option::is_some).await;
            outcome.map(|outcome| outcome.clone()).ok().flatten()
        };
        let outcome = match limit {
            None => call.wait(ready)?,
            Some(limit) => match call.wait_for(limit, ready)? {
                Some(outcome) => outcome,
                None => return Ok(None),
            },
        };
        match outcome {
            Some(Ok(response)) => Ok(Some(response)),
            Some(Err(cause)) => Err(cause.into()),
            None => Err(error("the request was aborted")),
        }
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// A request that `http::start` began. It ends with the script that began it, or by `abort()`.
#[export_module]
mod functions {
    pub type PendingRequest = super::PendingRequest;

    /// Whether its answer, or its error, is there.
    #[rhai_fn(name = "done", pure)]
    pub fn pending_done(pending: &mut PendingRequest) -> bool {
        pending.answer.borrow().is_some() || pending.answer.has_changed().is_err()
    }

    /// Waits for the answer; throws what the request would have thrown.
    #[rhai_fn(name = "wait", return_raw, pure)]
    pub fn pending_wait(pending: &mut PendingRequest) -> ScriptResult<Dynamic> {
        Ok(pending.wait(None)?.map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// Waits for the answer, at most `limit` (seconds, or a text such as `"1s"`); `()` when it is not there by then.
    #[rhai_fn(name = "wait", return_raw, pure)]
    pub fn pending_wait_limited(pending: &mut PendingRequest, limit: Dynamic) -> ScriptResult<Dynamic> {
        let limit = duration(&limit).map_err(|why| error(format!("wait: {why}")))?;
        Ok(pending.wait(Some(limit))?.map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// Ends the request: the connection is closed, which tells most servers to stop working on it.
    #[rhai_fn(name = "abort", pure)]
    pub fn pending_abort(pending: &mut PendingRequest) {
        pending.task.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
