//! `Subscription`: a script's share of a connection that all scripts of the machine use.

use std::sync::Arc;
use std::time::Duration;

use super::web_socket::{frame_of, kind_and, limit_of, message, timeout, within};
use crate::host::ws;
use crate::host::ws::Event;
use crate::script::api::Head;
use crate::script::call::{Call, ScriptResult};
use crate::script::prelude::*;
use crate::script::testing::MockedSocket;

#[derive(Clone)]
pub(in crate::script) struct Subscription(Arc<Shared>);

struct Shared {
    way: Way,
    head: Head,
}

enum Way {
    Open(ws::Subscription),
    Mocked(MockedSocket),
}

impl Subscription {
    /// No error shows a secret of `head`.
    pub fn new(subscription: ws::Subscription, head: Head) -> Self {
        Self(Arc::new(Shared { way: Way::Open(subscription), head }))
    }

    /// What a test made up.
    pub fn mocked(socket: MockedSocket, head: Head) -> Self {
        Self(Arc::new(Shared { way: Way::Mocked(socket), head }))
    }

    fn receive(&self, limit: Option<Duration>) -> ScriptResult<Map> {
        let next = match &self.0.way {
            Way::Open(subscription) => within(limit, subscription.next())?,
            Way::Mocked(socket) => socket.next_event(limit)?,
        };
        Ok(match next {
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
        let Shared { way, head } = &*subscription.0;
        let frame = frame_of(&message)?;
        let sent = match way {
            Way::Open(subscription) => Call::current()?.wait(subscription.send(frame))?,
            Way::Mocked(socket) => socket.send(&frame)?,
        };
        Ok(sent.map_err(|cause| head.mask.error(cause))?)
    }

    /// Whether the connection is open now; while it is not, it is being made again.
    #[rhai_fn(get = "connected", pure)]
    pub fn subscription_connected(subscription: &mut Subscription) -> bool {
        match &subscription.0.way {
            Way::Open(subscription) => subscription.is_open(),
            Way::Mocked(_) => true,
        }
    }
}
