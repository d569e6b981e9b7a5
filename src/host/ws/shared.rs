use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::filter::Candidate;
use super::queue::Queue;
use super::{Event, Filter, Frame, Link, LinkSender, WsOptions, WsRequest, open};
use crate::base::{Backoff, Seconds};
use crate::host::http::{ClientOptions, HttpError, HttpErrorKind};

/// More backends than a machine has; scripts that make addresses up end here.
const MAX_CONNECTIONS: usize = 500;
/// A connection that lasted this long was a good one: the next try comes soon.
const STABLE: Duration = Duration::from_secs(10);

/// One connection for each backend, shared by whoever subscribes to it. Clones share the connections.
#[derive(Clone, Default)]
pub struct SharedSockets(Arc<Mutex<HashMap<Key, Arc<Hub>>>>);

/// Subscribers that ask for the same share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    way: ClientOptions,
    options: WsOptions,
    hello: Option<String>,
    linger: Duration,
}

/// What is to be shared.
#[derive(Clone)]
pub struct SharedRequest {
    pub request: WsRequest,
    pub client: Client,
    /// What the client was made for.
    pub way: ClientOptions,
    /// Sent first on every connection.
    pub hello: Option<String>,
    /// How long the connection outlives its last subscriber.
    pub linger: Duration,
}

struct Hub {
    what: String,
    state: watch::Sender<State>,
    subscribers: Mutex<Subscribers>,
    changed: Notify,
}

#[derive(Clone)]
enum State {
    Connecting,
    Open(LinkSender),
    /// It is made again after a pause.
    Down(HttpError),
}

struct Subscribers {
    queues: Vec<Arc<Queue>>,
    since: Instant,
}

/// A share of a connection; ends when it is dropped.
pub struct Subscription {
    hub: Arc<Hub>,
    queue: Arc<Queue>,
}

impl SharedSockets {
    /// Subscribes, and begins to connect where nobody else has. Keeps at most `capacity` messages that are not taken.
    pub fn subscribe(
        &self,
        runtime: &Handle,
        shared: SharedRequest,
        filter: Filter,
        capacity: usize,
    ) -> Result<Subscription, HttpError> {
        let mut headers: Vec<_> = shared
            .request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect();
        headers.sort_unstable();
        let key = Key {
            url: shared.request.url.to_string(),
            headers,
            way: shared.way.clone(),
            options: shared.request.options.clone(),
            hello: shared.hello.clone(),
            linger: shared.linger,
        };
        let queue = Arc::new(Queue::new(filter, capacity));
        // Subscribed under the lock of the connections, so that none is retired in between, and before the connection is
        // begun, so that no message is missed.
        let mut hubs = self.hubs();
        let hub = match hubs.get(&key) {
            Some(hub) => {
                hub.subscribers().queues.push(Arc::clone(&queue));
                Arc::clone(hub)
            }
            None if hubs.len() >= MAX_CONNECTIONS => {
                let message = format!("{}: {MAX_CONNECTIONS} connections are shared already", shared.request.what());
                return Err(HttpError::new(HttpErrorKind::Limit, message));
            }
            None => {
                let hub = Arc::new(Hub::new(shared.request.what(), Arc::clone(&queue)));
                hubs.insert(key.clone(), Arc::clone(&hub));
                let (sockets, running) = (self.clone(), Arc::clone(&hub));
                runtime.spawn(async move {
                    running.run(&shared, || sockets.retire(&key)).await;
                });
                hub
            }
        };
        drop(hubs);
        hub.changed.notify_one();
        Ok(Subscription { hub, queue })
    }

    fn hubs(&self) -> MutexGuard<'_, HashMap<Key, Arc<Hub>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection off the list, unless somebody has subscribed to it.
    fn retire(&self, key: &Key) -> bool {
        let mut hubs = self.hubs();
        let unused = hubs.get(key).is_none_or(|hub| hub.subscribers().queues.is_empty());
        if unused {
            hubs.remove(key);
        }
        unused
    }
}

impl Hub {
    fn new(what: String, first: Arc<Queue>) -> Self {
        let subscribers = Subscribers { queues: vec![first], since: Instant::now() };
        Self {
            what,
            state: watch::Sender::new(State::Connecting),
            subscribers: Mutex::new(subscribers),
            changed: Notify::new(),
        }
    }

    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, hands messages out, connects again; until nobody has wanted it for `linger` and `retire` agrees.
    async fn run(&self, shared: &SharedRequest, retire: impl Fn() -> bool) {
        let (initial, max) = (Seconds::from_millis(250), Seconds::from_secs(15));
        let backoff = Backoff { initial, max, factor: 2.0, jitter: 0.5 };
        let (mut failures, mut opened) = (0, false);
        loop {
            let begun = Instant::now();
            let socket = tokio::select! {
                socket = open(&shared.client, &shared.request) => socket,
                () = self.unused(shared.linger, &retire) => return,
            };
            let cause = match socket {
                Ok(socket) => {
                    let link = Link::start(socket, &self.what, &shared.request.options);
                    if std::mem::replace(&mut opened, true) {
                        self.subscribers().queues.iter().for_each(|queue| queue.reconnected());
                    }
                    match self.serve(link, shared, &retire).await {
                        Some(cause) => cause,
                        None => return,
                    }
                }
                Err(cause) => cause,
            };
            self.state.send_replace(State::Down(cause));
            failures = if begun.elapsed() > STABLE { 1 } else { failures + 1 };
            tokio::select! {
                () = tokio::time::sleep(backoff.random_delay(failures)) => {}
                () = self.unused(shared.linger, &retire) => return,
            }
        }
    }

    /// Hands out what comes; the error that ended it, or none when nobody wants it any more.
    async fn serve(&self, mut link: Link, shared: &SharedRequest, retire: &impl Fn() -> bool) -> Option<HttpError> {
        if let Some(hello) = &shared.hello
            && let Err(cause) = link.sender().send(Frame::text(hello.clone())).await
        {
            return Some(cause);
        }
        self.state.send_replace(State::Open(link.sender()));
        loop {
            tokio::select! {
                frame = link.next() => match frame {
                    Ok(frame) => self.hand_out(&frame),
                    Err(end) => {
                        let message = format!("{}: closed with {}: {}", self.what, end.code, end.reason);
                        return Some(HttpError::new(HttpErrorKind::Connect, message));
                    }
                },
                () = self.unused(shared.linger, retire) => {
                    link.sender().close().await;
                    return None;
                }
            }
        }
    }

    fn hand_out(&self, frame: &Frame) {
        let candidate = Candidate::new(frame);
        for queue in &self.subscribers().queues {
            if queue.filter.passes(&candidate) {
                queue.push(candidate.frame.clone());
            }
        }
    }

    /// Ends when nobody has subscribed for `linger` and the connection is off the list.
    async fn unused(&self, linger: Duration, retire: &impl Fn() -> bool) {
        loop {
            let left = {
                let subscribers = self.subscribers();
                subscribers.queues.is_empty().then(|| linger.saturating_sub(subscribers.since.elapsed()))
            };
            match left {
                None => self.changed.notified().await,
                Some(left) if left.is_zero() => {
                    if retire() {
                        return;
                    }
                }
                Some(left) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep(left) => {}
                },
            }
        }
    }
}

impl Subscription {
    /// Waits until the connection is open, for `limit`. What another try cannot mend is an error at once.
    pub async fn opened(&self, limit: Duration) -> Result<(), HttpError> {
        let mut state = self.hub.state.subscribe();
        let settled = |state: &State| match state {
            State::Connecting => false,
            State::Open(_) => true,
            State::Down(cause) => matches!(cause.kind, HttpErrorKind::Status | HttpErrorKind::Invalid),
        };
        let found = tokio::time::timeout(limit, state.wait_for(settled)).await.ok();
        let found = found.and_then(Result::ok).map(|state| state.clone());
        match found.unwrap_or_else(|| self.hub.state.borrow().clone()) {
            State::Open(_) => Ok(()),
            State::Down(cause) => Err(cause),
            State::Connecting => {
                let limit = humantime::format_duration(limit);
                let message = format!("{}: no connection within {limit}", self.hub.what);
                Err(HttpError::new(HttpErrorKind::Timeout, message))
            }
        }
    }

    /// Whether the connection is open now.
    pub fn is_open(&self) -> bool {
        matches!(*self.hub.state.borrow(), State::Open(_))
    }

    pub async fn next(&self) -> Event {
        self.queue.next().await
    }

    pub async fn send(&self, frame: Frame) -> Result<(), HttpError> {
        let state = self.hub.state.borrow().clone();
        match state {
            State::Open(sender) => sender.send(frame).await,
            State::Down(cause) => Err(cause),
            State::Connecting => {
                let message = format!("{}: there is no connection yet", self.hub.what);
                Err(HttpError::new(HttpErrorKind::Connect, message))
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.hub.subscribers();
        subscribers.queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        subscribers.since = Instant::now();
        drop(subscribers);
        self.hub.changed.notify_one();
    }
}
