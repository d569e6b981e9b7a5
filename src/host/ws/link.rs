use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::WsOptions;
use crate::host::http::{HttpError, HttpErrorKind};

/// Messages that wait for the script; the server waits when there are more.
const WAITING: usize = 32;
/// How long the other side may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// The code of a connection that ended without one.
const BROKEN: u16 = 1006;

/// A message. Clones share its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Text(Utf8Bytes),
    Blob(Bytes),
}

/// How a connection ended: the code and the reason that the other side gave, or 1006 and what went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub code: u16,
    pub reason: String,
}

/// An open connection. A task of its own reads, writes, pings and watches it; it is closed with the last handle.
pub struct Link {
    sender: LinkSender,
    incoming: mpsc::Receiver<Frame>,
    end: Arc<OnceLock<End>>,
}

/// Sends through a connection.
#[derive(Clone)]
pub struct LinkSender {
    what: Arc<str>,
    outgoing: mpsc::Sender<Outgoing>,
}

enum Outgoing {
    /// Answered when it is written.
    Frame(Frame, oneshot::Sender<()>),
    Close,
}

impl End {
    fn broken(reason: impl Into<String>) -> Self {
        Self { code: BROKEN, reason: reason.into() }
    }
}

impl Frame {
    pub fn text(text: String) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn byte_count(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        }
    }
}

impl Link {
    /// Takes over `socket`. To be called on a runtime.
    pub fn start<S>(socket: WebSocketStream<S>, what: &str, options: &WsOptions) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (frames, incoming) = mpsc::channel(WAITING);
        let (outgoing, orders) = mpsc::channel(1);
        let end: Arc<OnceLock<End>> = Arc::default();
        let (sink, stream) = socket.split();
        let (ping, idle) = (options.ping, options.idle);
        let ended = Arc::clone(&end);
        tokio::spawn(async move {
            let end = tokio::select! {
                end = read(stream, &frames, idle) => end,
                end = write(sink, orders, ping, idle) => end,
            };
            let _ = ended.set(end);
            // Only now: whoever sees the end of the messages finds why.
            drop(frames);
        });
        Self { sender: LinkSender { what: what.into(), outgoing }, incoming, end }
    }

    /// The next message; messages that came before the end are handed out first.
    pub async fn next(&mut self) -> Result<Frame, End> {
        match self.incoming.recv().await {
            Some(frame) => Ok(frame),
            None => Err(self.end.get().cloned().unwrap_or_else(|| End::broken("the connection is gone"))),
        }
    }

    pub fn sender(&self) -> LinkSender {
        self.sender.clone()
    }
}

impl LinkSender {
    /// Comes back when the message is on its way.
    pub async fn send(&self, frame: Frame) -> Result<(), HttpError> {
        let closed = || HttpError::new(HttpErrorKind::Connect, format!("{}: the connection is closed", self.what));
        let (done, written) = oneshot::channel();
        self.outgoing.send(Outgoing::Frame(frame, done)).await.map_err(|_| closed())?;
        written.await.map_err(|_| closed())
    }

    /// Says goodbye. What the other side answers is the end that [`Link::next`] tells.
    pub async fn close(&self) {
        // A connection that is gone is closed.
        let _ = self.outgoing.send(Outgoing::Close).await;
    }
}

async fn read<S>(mut stream: SplitStream<WebSocketStream<S>>, frames: &mpsc::Sender<Frame>, idle: Duration) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        // Nothing is read that nobody has room for, and a silence that is our own does not count.
        let Ok(room) = frames.reserve().await else { return std::future::pending().await };
        let Ok(message) = timeout(idle, stream.next()).await else {
            return End::broken(format!(
                "nothing came for {}, no answer to pings either",
                humantime::format_duration(idle)
            ));
        };
        match message {
            Some(Ok(Message::Text(text))) => room.send(Frame::Text(text)),
            Some(Ok(Message::Binary(bytes))) => room.send(Frame::Blob(bytes)),
            Some(Ok(Message::Close(said))) => {
                // Sends the answer that the other side waits for.
                let _ = timeout(GOODBYE, stream.next()).await;
                return said.map_or(End { code: 1005, reason: String::new() }, |CloseFrame { code, reason }| End {
                    code: code.into(),
                    reason: reason.as_str().to_owned(),
                });
            }
            Some(Ok(_)) => {}
            Some(Err(cause)) => return End::broken(broken(&cause)),
            None => return End::broken("the connection broke"),
        }
    }
}

fn broken(cause: &Error) -> String {
    match cause {
        Error::Capacity(cause) => cause.to_string(),
        Error::Protocol(cause) => format!("the server breaks the protocol: {cause}"),
        Error::ConnectionClosed | Error::AlreadyClosed => "the connection broke".to_owned(),
        cause => format!("the connection broke: {cause}"),
    }
}

async fn write<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut orders: mpsc::Receiver<Outgoing>,
    ping: Duration,
    idle: Duration,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(tokio::time::Instant::now() + ping, ping);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (message, done) = tokio::select! {
            order = orders.recv() => match order {
                Some(Outgoing::Frame(Frame::Text(text), done)) => (Message::Text(text), Some(done)),
                Some(Outgoing::Frame(Frame::Blob(bytes), done)) => (Message::Binary(bytes), Some(done)),
                Some(Outgoing::Close) | None => break,
            },
            _ = pings.tick() => (Message::Ping(Bytes::new()), None),
        };
        match timeout(idle, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => return End::broken(broken(&cause)),
            Err(_) => {
                return End::broken(format!("the server took nothing for {}", humantime::format_duration(idle)));
            }
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
    let goodbye = Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
    let _ = timeout(GOODBYE, sink.send(goodbye)).await;
    // The answer is read meanwhile, and ends this.
    tokio::time::sleep(GOODBYE).await;
    End { code: 1000, reason: String::new() }
}
