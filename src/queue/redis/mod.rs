//! The queue on a Redis or Valkey, shared by many machines.
//!
//! One connection carries calls, in a pipeline, another messages (RESP3): Redis ends those that hear messages when much waits for
//! them, as an answer may. One task keeps both: it finds the node that has the queue (asking sentinels or a cluster where
//! there are any), checks it, loads the functions, subscribes, and does so again when one of them ends or a call gets no answer
//! in time.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{AsyncConnectionConfig, Client, ErrorKind, PushInfo, PushKind, RedisError, ServerErrorKind, Value};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, broadcast, mpsc, watch};

use super::BrokerError;
use super::matching::short_hash;
use super::store::{FUNCTIONS, Message, Reply, Store, assigning};
use crate::base::{Backoff, Seconds};
use crate::settings::{RedisAddress, RedisNodes};

/// A call that has no answer for so long counts as lost, and its connection as broken.
const RESPONSE: Duration = Duration::from_millis(1_500);
const CONNECT: Duration = Duration::from_millis(1_500);
/// How long it is listened why a connection was refused.
const REFUSAL: Duration = Duration::from_millis(300);
/// How long replicas may take to have what was submitted, where that is asked for; other calls wait meanwhile.
const REPLICATION: Duration = Duration::from_millis(1_000);
/// How long a call waits for a connection.
const PATIENCE: Duration = Duration::from_secs(1);
const BACKOFF: Backoff =
    Backoff { initial: Seconds::from_millis(50), max: Seconds::from_millis(500), factor: 2.0, jitter: 0.5 };
const PAGE: usize = 1_000;

/// Functions that end or shorten what there is, or hold what is held: allowed when memory is short.
const SHRINKING: [&str; 17] = [
    "announce",
    "cancel",
    "collected",
    "complete",
    "delivered",
    "drop",
    "forget",
    "heartbeat",
    "hold",
    "lift",
    "limit",
    "move",
    "outbox",
    "promote",
    "retain",
    "settle",
    "todo",
];

/// The text as a library of Redis functions. Each is registered by name: while a library is loaded, Lua has no loops over
/// tables.
fn library(prefix: &str) -> String {
    let mut text = format!("#!lua name={}\n{FUNCTIONS}\n", prefix.trim_end_matches('_'));
    for line in FUNCTIONS.lines() {
        let Some(rest) = line.strip_prefix("function ") else { continue };
        let Some((table, name)) = rest.split_once('(').and_then(|(name, _)| name.split_once('.')) else { continue };
        let flags = match table {
            "reads" => "'no-writes'",
            _ if SHRINKING.contains(&name) => "'allow-oom'",
            _ => "",
        };
        let _ = writeln!(
            text,
            "redis.register_function{{ function_name = '{prefix}{name}', flags = {{ {flags} }}, \
             callback = function(keys, args) enter(keys[1] .. ':') return {table}.{name}(args) end }}"
        );
    }
    text
}

pub(super) struct RedisStore {
    shared: Arc<Shared>,
}

struct Shared {
    address: RedisAddress,
    /// `{name}`: the tag that puts all keys of the queue into one slot.
    tag: String,
    /// Of the names of functions: another text has another, so that two versions can share a server.
    prefix: String,
    own: String,
    link: watch::Sender<Link>,
    broken: Notify,
    messages: broadcast::Sender<Message>,
    subscribed: Mutex<HashSet<String>>,
}

#[derive(Clone, Default)]
struct Link {
    /// Counts connections, so that a late error of an old one does not end its successor.
    number: u64,
    connections: Option<Connections>,
    why: String,
}

/// To one node, of one age.
#[derive(Clone)]
struct Connections {
    calls: MultiplexedConnection,
    messages: MultiplexedConnection,
}

impl RedisStore {
    pub fn start(address: RedisAddress, name: &str) -> Arc<Self> {
        let why = format!("not connected to {address} yet");
        let (messages, _) = broadcast::channel(16_384);
        let shared = Arc::new(Shared {
            tag: format!("{{{name}}}"),
            prefix: format!("mq_{}_", short_hash(FUNCTIONS).replace('-', "_")),
            own: format!("p:{}", uuid::Uuid::new_v4().simple()),
            link: watch::Sender::new(Link { why, ..Link::default() }),
            broken: Notify::new(),
            messages,
            subscribed: Mutex::default(),
            address,
        });
        tokio::spawn(keep_connected(Arc::downgrade(&shared)));
        Arc::new(Self { shared })
    }
}

impl Shared {
    async fn connections(&self) -> Result<(u64, Connections), BrokerError> {
        let mut link = self.link.subscribe();
        let found = tokio::time::timeout(PATIENCE, link.wait_for(|link| link.connections.is_some())).await;
        if let Ok(Ok(link)) = found
            && let Some(connections) = link.connections.clone()
        {
            return Ok((link.number, connections));
        }
        let why = self.link.borrow().why.clone();
        Err(BrokerError::Unavailable { why })
    }

    /// The connections are of no use any more.
    fn give_up(&self, number: u64, why: &str) {
        let changed = self.link.send_if_modified(|link| {
            let current = link.number == number && link.connections.is_some();
            if current {
                link.connections = None;
                link.why = format!("{}: {why}", self.address);
            }
            current
        });
        if changed {
            let _ = self.messages.send(Message::Disconnected);
            self.broken.notify_one();
        }
    }

    fn channel(&self, name: &str) -> String {
        format!("{}:{name}", self.tag)
    }

    async fn load_functions(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let loaded =
            redis::cmd("FUNCTION").arg("LOAD").arg(library(&self.prefix)).query_async::<Value>(connection).await;
        match loaded {
            // Somebody else was first.
            Err(cause) if cause.to_string().contains("already exists") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Finds the node, opens and prepares connections to it.
    async fn connect(&self, pushes: mpsc::UnboundedSender<PushInfo>) -> Result<Connections, String> {
        let address = match &self.address.nodes {
            RedisNodes::One(address) => address.clone(),
            RedisNodes::Sentinel { sentinels, master } => self.ask_sentinels(sentinels, master).await?,
            RedisNodes::Cluster(nodes) => self.ask_cluster(nodes).await?,
        };
        let mut calls = self.open(address.clone(), Some(pushes.clone())).await?;
        check(&mut calls).await?;
        let text = |cause: RedisError| cause.to_string();
        self.load_functions(&mut calls).await.map_err(text)?;
        let mut messages = self.open(address, Some(pushes)).await?;
        let always = [&self.own, &assigning(&self.own), "due", "wake"];
        let mut channels: Vec<String> = always.map(|name| self.channel(name)).to_vec();
        let watched = self.subscribed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        channels.extend(watched.iter().map(|name| self.channel(name)));
        messages.subscribe(channels).await.map_err(text)?;
        Ok(Connections { calls, messages })
    }

    async fn open(
        &self,
        address: redis::ConnectionAddr,
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> Result<MultiplexedConnection, String> {
        let text = |cause: RedisError| cause.to_string();
        // A peer that is gone without a word is found out by the kernel, at no cost to Redis.
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1)).with_retries(2);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive).set_user_timeout(RESPONSE);
        let info = self.address.info(address.clone()).map_err(text)?.set_tcp_settings(tcp);
        let client = Client::open(info).map_err(text)?;
        let mut config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(RESPONSE));
        if let Some(pushes) = pushes {
            config = config.set_push_sender(pushes);
        }
        match client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => Ok(connection),
            Err(cause) => Err(refusal(&address).await.unwrap_or_else(|| text(cause))),
        }
    }

    async fn ask_sentinels(&self, sentinels: &[(String, u16)], master: &str) -> Result<redis::ConnectionAddr, String> {
        let mut problems = Vec::new();
        for (host, port) in sentinels {
            let asked = async {
                let client = Client::open(redis::ConnectionAddr::Tcp(host.clone(), *port))?;
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT))
                    .set_response_timeout(Some(RESPONSE));
                let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                let mut question = redis::cmd("SENTINEL");
                question.arg("get-master-addr-by-name").arg(master);
                question.query_async::<Option<(String, u16)>>(&mut connection).await
            };
            match asked.await {
                Ok(Some((host, port))) => return Ok(self.address.node(&host, port)),
                Ok(None) => problems.push(format!("sentinel {host}:{port} knows no master {master:?}")),
                Err(cause) => problems.push(format!("sentinel {host}:{port}: {cause}")),
            }
        }
        Err(problems.join("; "))
    }

    /// The node that has the queue's slot.
    async fn ask_cluster(&self, nodes: &[(String, u16)]) -> Result<redis::ConnectionAddr, String> {
        let mut problems = Vec::new();
        for (host, port) in nodes {
            let asked = async {
                let mut connection = self.open(self.address.node(host, *port), None).await?;
                let text = |cause: RedisError| cause.to_string();
                let mut question = redis::cmd("CLUSTER");
                let slot: u16 =
                    question.arg("KEYSLOT").arg(&self.tag).query_async(&mut connection).await.map_err(text)?;
                let ranges: Vec<Vec<Value>> =
                    redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await.map_err(text)?;
                for range in ranges {
                    let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = range.as_slice() else {
                        continue;
                    };
                    if (*from..=*to).contains(&i64::from(slot))
                        && let [Value::BulkString(name), Value::Int(port), ..] = master.as_slice()
                        && let Ok(port) = u16::try_from(*port)
                    {
                        let name = String::from_utf8_lossy(name).into_owned();
                        let name = if name.is_empty() { host.clone() } else { name };
                        return Ok(self.address.node(&name, port));
                    }
                }
                Err(format!("no node has slot {slot}"))
            };
            match asked.await {
                Ok(address) => return Ok(address),
                Err(why) => problems.push(format!("{host}:{port}: {why}")),
            }
        }
        Err(problems.join("; "))
    }

    fn pass_on(&self, push: PushInfo) {
        if !matches!(push.kind, PushKind::Message) {
            return;
        }
        let mut texts = push.data.into_iter().map(|value| match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::SimpleString(text) => text,
            _ => String::new(),
        });
        if let (Some(channel), Some(text)) = (texts.next(), texts.next()) {
            let channel = channel[(self.tag.len() + 1).min(channel.len())..].to_owned();
            let _ = self.messages.send(Message::Published { channel, text });
        }
    }
}

/// What a Redis says to whom it refuses before anything is asked, as in protected mode or with too many clients: it closes the
/// connection at once, and whoever writes to it meanwhile only learns of a broken pipe.
async fn refusal(address: &redis::ConnectionAddr) -> Option<String> {
    let redis::ConnectionAddr::Tcp(host, port) = address else { return None };
    let heard = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
        let mut buffer = [0; 512];
        let length = stream.read(&mut buffer).await.ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let said = text.strip_prefix('-')?.lines().next()?;
        Some(said.split_once(". ").map_or(said, |(first, _)| first).to_owned())
    };
    tokio::time::timeout(REFUSAL, heard).await.ok().flatten()
}

/// Refuses what would lose jobs.
async fn check(connection: &mut MultiplexedConnection) -> Result<(), String> {
    let info: String = redis::cmd("INFO").query_async(connection).await.map_err(|cause| cause.to_string())?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    if field("role") == Some("slave") {
        return Err("it is a replica, which takes no jobs; name the master, or sentinels".to_owned());
    }
    let version = field("redis_version").unwrap_or("0");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 7 {
        return Err(format!("its version is {version}, at least 7.0 is needed"));
    }
    let policy = field("maxmemory_policy").unwrap_or("noeviction");
    if field("maxmemory") != Some("0") && policy != "noeviction" {
        return Err(format!(
            "it drops keys when memory is short (maxmemory-policy {policy}), which would lose jobs; set it to noeviction"
        ));
    }
    if field("loading") == Some("1") {
        return Err("it is loading its data".to_owned());
    }
    Ok(())
}

async fn keep_connected(shared: Weak<Shared>) {
    let (mut failures, mut number) = (0, 0);
    loop {
        let Some(this) = shared.upgrade() else { return };
        let (sender, mut pushes) = mpsc::unbounded_channel();
        match this.connect(sender).await {
            Ok(connections) => {
                number += 1;
                if failures > 0 || number > 1 {
                    tracing::info!("connected to the queue at {}", this.address);
                }
                failures = 0;
                this.link.send_replace(Link { number, connections: Some(connections), why: String::new() });
                let _ = this.messages.send(Message::Reconnected);
                loop {
                    tokio::select! {
                        push = pushes.recv() => match push {
                            Some(push) if push.kind == PushKind::Disconnection => {
                                this.give_up(number, "the connection ended");
                            }
                            Some(push) => this.pass_on(push),
                            None => this.give_up(number, "the connection ended"),
                        },
                        () = this.broken.notified() => {}
                        // Ends with the last owner.
                        () = tokio::time::sleep(Duration::from_secs(5)) => {}
                    }
                    if this.link.borrow().connections.is_none() || Arc::strong_count(&this) == 1 {
                        break;
                    }
                }
            }
            Err(why) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!("the queue at {} cannot be used: {why}", this.address);
                }
                this.link.send_modify(|link| link.why = format!("{}: {why}", this.address));
                drop(this);
                tokio::time::sleep(BACKOFF.random_delay(failures)).await;
            }
        }
    }
}

/// What is wrong with the connection or the node, rather than with the call.
fn is_nodes_fault(cause: &RedisError) -> bool {
    use ServerErrorKind as Server;
    cause.is_io_error()
        || cause.is_timeout()
        || cause.is_connection_dropped()
        || cause.is_unrecoverable_error()
        || matches!(
            cause.kind(),
            ErrorKind::Server(
                Server::ReadOnly
                    | Server::Moved
                    | Server::Ask
                    | Server::MasterDown
                    | Server::ClusterDown
                    | Server::BusyLoading
            )
        )
}

#[async_trait]
impl Store for RedisStore {
    async fn call(&self, function: &'static str, arguments: Vec<String>) -> Result<Reply, BrokerError> {
        let shared = &self.shared;
        let mut command = redis::cmd("FCALL");
        command.arg(format!("{}{function}", shared.prefix)).arg(1).arg(&shared.tag);
        for argument in &arguments {
            command.arg(argument);
        }
        let (number, Connections { calls: mut connection, .. }) = shared.connections().await?;
        let mut answer = command.query_async::<Value>(&mut connection).await;
        if let Err(cause) = &answer
            && cause.to_string().contains("Function not found")
        {
            // The server was emptied.
            answer = match shared.load_functions(&mut connection).await {
                Ok(()) => command.query_async::<Value>(&mut connection).await,
                Err(cause) => Err(cause),
            };
        }
        if answer.is_ok() && shared.address.replicas > 0 && matches!(function, "submit" | "ingest") {
            let wanted = shared.address.replicas;
            let mut wait = redis::cmd("WAIT");
            wait.arg(wanted).arg(REPLICATION.as_millis().to_string());
            match wait.query_async::<u32>(&mut connection).await {
                Ok(have) if have < wanted => {
                    // Said as a failure that may pass: the same call again changes nothing but waits again.
                    let why = format!("{}: {have} of {wanted} replicas have the jobs", shared.address);
                    return Err(BrokerError::Unavailable { why });
                }
                Ok(_) => {}
                Err(cause) => answer = Err(cause),
            }
        }
        match answer {
            Ok(value) => reply(value),
            Err(cause) => {
                let why = format!("{}: {cause}", shared.address);
                if is_nodes_fault(&cause) {
                    shared.give_up(number, &cause.to_string());
                    return Err(BrokerError::Unavailable { why });
                }
                // Out of memory, no permission, a disk that fails: all may pass.
                match cause.code() {
                    Some("ERR") | None => Err(BrokerError::Damaged { why }),
                    Some(_) => Err(BrokerError::Unavailable { why }),
                }
            }
        }
    }

    fn messages(&self) -> broadcast::Receiver<Message> {
        self.shared.messages.subscribe()
    }

    async fn subscribe(&self, channel: String) -> Result<(), BrokerError> {
        self.shared.subscribed.lock().unwrap_or_else(PoisonError::into_inner).insert(channel.clone());
        let (number, Connections { mut messages, .. }) = self.shared.connections().await?;
        messages.subscribe(self.shared.channel(&channel)).await.map_err(|cause| {
            self.shared.give_up(number, &cause.to_string());
            BrokerError::Unavailable { why: cause.to_string() }
        })
    }

    async fn unsubscribe(&self, channel: String) {
        self.shared.subscribed.lock().unwrap_or_else(PoisonError::into_inner).remove(&channel);
        let connections = self.shared.link.borrow().connections.clone();
        if let Some(Connections { mut messages, .. }) = connections {
            let _ = messages.unsubscribe(self.shared.channel(&channel)).await;
        }
    }

    async fn job_ids(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), BrokerError> {
        let prefix = format!("{}:j:", self.shared.tag);
        let (number, Connections { calls: mut connection, .. }) = self.shared.connections().await?;
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor.as_deref().unwrap_or("0")).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(PAGE);
        let answer = scan.query_async::<(String, Vec<String>)>(&mut connection).await;
        let (next, keys) = answer.map_err(|cause| {
            if is_nodes_fault(&cause) {
                self.shared.give_up(number, &cause.to_string());
            }
            BrokerError::Unavailable { why: cause.to_string() }
        })?;
        let ids = keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect();
        Ok((ids, if next == "0" { None } else { Some(next) }))
    }

    fn own_channel(&self) -> &str {
        &self.shared.own
    }
}

fn reply(value: Value) -> Result<Reply, BrokerError> {
    Ok(match value {
        Value::Nil => Reply::Nil,
        Value::Int(number) => Reply::Int(number),
        Value::Boolean(truth) => Reply::Int(i64::from(truth)),
        Value::BulkString(bytes) => {
            // One text that is none must not make the whole answer unreadable.
            Reply::Text(
                String::from_utf8(bytes).unwrap_or_else(|cause| String::from_utf8_lossy(cause.as_bytes()).into_owned()),
            )
        }
        Value::SimpleString(text) => Reply::Text(text),
        Value::Okay => Reply::Text("OK".to_owned()),
        Value::Array(items) | Value::Set(items) => Reply::List(items.into_iter().map(reply).collect::<Result<_, _>>()?),
        other => return Err(BrokerError::damaged(&format!("a function answered {other:?}"))),
    })
}
