//! `Subscription`: a script's share of a connection that all scripts of the machine use.

use std::sync::Arc;
use std::time::Duration;

use super::web_socket::{frame_of, kind_and, limit_of, message, timeout, within};
use crate::host::ws;
use crate::host::ws::Event;
use crate::script::api::Head;
use crate::script::call::{Call, ScriptResult};
use crate::script::prelude::*;

#[derive(Clone)]
pub(in crate::script) struct Subscription(Arc<Shared>);

struct Shared {
    subscription: ws::Subscription,
    head: Head,
}

impl Subscription {
    /// No error shows a secret of `head`.
    pub fn new(subscription: ws::Subscription, head: Head) -> Self {
        Self(Arc::new(Shared { subscription, head }))
    }

    fn receive(&self, limit: Option<Duration>) -> ScriptResult<Map> {
        Ok(match within(limit, self.0.subscription.next())? {
            None => timeout(),
            Some(Event::Frame(frame)) => message(frame),
            Some(Event::Reconnected) => kind_and("reconnected", []),
            Some(Event::Lagged(count)) => {
                kind_and("lagged", [("count", i64::try_from(count).unwrap_or(i64::MAX).into())])
            }
        })
    }
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// A share of a connection, by `ws::subscribe`. It ends with the script.
#[export_module]
mod functions {
    pub type Subscription = super::Subscription;

    /// Waits for the next message that the filter lets through: `#{ kind: "text", text }` or `#{ kind: "blob", blob }`. Also
    /// `#{ kind: "reconnected" }` when the connection broke and is there again, so that messages may be missing, and
    /// `#{ kind: "lagged", count }` when so many were dropped because the script was too slow.
    #[rhai_fn(name = "recv", return_raw, pure)]
    pub fn subscription_recv(subscription: &mut Subscription) -> ScriptResult<Map> {
        subscription.receive(None)
    }

    /// As `recv()`, for at most `limit` (seconds, or a text such as `"1s"`), then `#{ kind: "timeout" }`.
    #[rhai_fn(name = "recv", return_raw, pure)]
    pub fn subscription_recv_limited(subscription: &mut Subscription, limit: Dynamic) -> ScriptResult<Map> {
        subscription.receive(limit_of(&limit)?)
    }

    /// Sends a text, a blob, or data as JSON. Throws a `HostError` where there is no connection now.
    #[rhai_fn(name = "send", return_raw, pure)]
    pub fn subscription_send(subscription: &mut Subscription, message: Dynamic) -> ScriptResult<()> {
        let Shared { subscription, head } = &*subscription.0;
        let sent = Call::current()?.wait(subscription.send(frame_of(&message)?))?;
        Ok(sent.map_err(|cause| head.mask.error(cause))?)
    }

    /// Whether the connection is open now; while it is not, it is being made again.
    #[rhai_fn(get = "connected", pure)]
    pub fn subscription_connected(subscription: &mut Subscription) -> bool {
        subscription.0.subscription.is_open()
    }
}
