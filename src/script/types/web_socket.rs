//! `WebSocket`: a connection of one script. It is closed with the script.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::{Blob, HostError};
use crate::host::ws::{End, Frame, Link, LinkSender};
use crate::script::api::{Head, text_of};
use crate::script::call::{Call, ScriptResult, error};
use crate::script::options::duration;
use crate::script::prelude::*;
use crate::script::testing::MockedSocket;

/// Of what goes out.
const MAX_SENT: u64 = 64 * 1024 * 1024;

#[derive(Clone)]
pub(in crate::script) struct WebSocket(Arc<Shared>);

struct Shared {
    way: Way,
    head: Head,
}

enum Way {
    /// The link is held while somebody waits for a message.
    Open {
        sender: LinkSender,
        link: Mutex<Link>,
    },
    Mocked(MockedSocket),
}

impl WebSocket {
    /// Nothing that the other side says shows a secret of `head`.
    pub fn new(link: Link, head: Head) -> Self {
        Self(Arc::new(Shared { way: Way::Open { sender: link.sender(), link: Mutex::new(link) }, head }))
    }

    /// What a test made up.
    pub fn mocked(socket: MockedSocket, head: Head) -> Self {
        Self(Arc::new(Shared { way: Way::Mocked(socket), head }))
    }

    fn receive(&self, limit: Option<Duration>) -> ScriptResult<Map> {
        let next = match &self.0.way {
            Way::Open { link, .. } => within(limit, async { link.lock().await.next().await })?,
            Way::Mocked(socket) => socket.next(limit)?,
        };
        Ok(match next {
            None => timeout(),
            Some(Ok(frame)) => message(frame),
            Some(Err(End { code, reason })) => kind_and(
                "closed",
                [("code", i64::from(code).into()), ("reason", self.0.head.mask.text(&reason).into())],
            ),
        })
    }
}

/// What `next` gives, or nothing when it takes longer than `limit`.
pub(super) fn within<T>(limit: Option<Duration>, next: impl Future<Output = T>) -> ScriptResult<Option<T>> {
    let call = Call::current()?;
    match limit {
        None => call.wait(next).map(Some),
        Some(limit) => call.wait_for(limit, next),
    }
}

pub(super) fn kind_and<const N: usize>(kind: &'static str, fields: [(&str, Dynamic); N]) -> Map {
    let fields = fields.into_iter().map(|(name, value)| (name.into(), value));
    [("kind".into(), kind.into())].into_iter().chain(fields).collect()
}

pub(super) fn message(frame: Frame) -> Map {
    match frame {
        Frame::Text(text) => kind_and("text", [("text", text.as_str().into())]),
        Frame::Blob(bytes) => kind_and("blob", [("blob", Dynamic::from(Blob::new(bytes, None)))]),
    }
}

pub(super) fn timeout() -> Map {
    kind_and("timeout", [])
}

/// A text, a blob, or data, which become JSON.
pub(super) fn frame_of(value: &Dynamic) -> ScriptResult<Frame> {
    match value.read_lock::<Blob>() {
        Some(blob) => blob.bytes(MAX_SENT).map(Frame::Blob).map_err(|cause| error(format!("send: {cause}"))),
        None => text_of(value).map(Frame::text),
    }
}

pub(super) fn limit_of(limit: &Dynamic) -> ScriptResult<Option<Duration>> {
    duration(limit).map(Some).map_err(|why| error(format!("recv: {why}")))
}

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// A connection that `ws::connect` opened.
#[export_module]
mod functions {
    pub type WebSocket = super::WebSocket;

    /// Sends a text, a blob, or data as JSON; comes back when it is on its way. Throws a `HostError` of kind `"connect"`
    /// where the connection is closed.
    #[rhai_fn(name = "send", return_raw, pure)]
    pub fn socket_send(socket: &mut WebSocket, message: Dynamic) -> ScriptResult<()> {
        let frame = frame_of(&message)?;
        let sent = match &socket.0.way {
            Way::Open { sender, .. } => Call::current()?.wait(sender.send(frame))?,
            Way::Mocked(socket) => socket.send(&frame)?,
        };
        Ok(sent.map_err(HostError::from)?)
    }

    /// Waits for the next message: `#{ kind: "text", text }`, `#{ kind: "blob", blob }`, or at the end of the connection
    /// `#{ kind: "closed", code, reason }`, with code 1006 where it broke or fell silent.
    #[rhai_fn(name = "recv", return_raw, pure)]
    pub fn socket_recv(socket: &mut WebSocket) -> ScriptResult<Map> {
        socket.receive(None)
    }

    /// As `recv()`, for at most `limit` (seconds, or a text such as `"1s"`), then `#{ kind: "timeout" }`.
    #[rhai_fn(name = "recv", return_raw, pure)]
    pub fn socket_recv_limited(socket: &mut WebSocket, limit: Dynamic) -> ScriptResult<Map> {
        socket.receive(limit_of(&limit)?)
    }

    /// Says goodbye to the server; messages that came already can be taken still.
    #[rhai_fn(name = "close", return_raw, pure)]
    pub fn socket_close(socket: &mut WebSocket) -> ScriptResult<()> {
        match &socket.0.way {
            Way::Open { sender, .. } => Call::current()?.wait(sender.close()),
            Way::Mocked(socket) => {
                socket.close();
                Ok(())
            }
        }
    }
}
