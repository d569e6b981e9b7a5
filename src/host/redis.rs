//! Commands to a Redis for data of scripts: one connection for each address, which many commands share and which is made
//! again when it breaks.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisError, ServerErrorKind, Value};

const CONNECT: Duration = Duration::from_secs(5);
/// Redis servers that are in use at one time; more than people have.
const MAX_CONNECTIONS: usize = 32;

/// Clones share the connections.
#[derive(Clone, Default)]
pub struct RedisConnections(Arc<Mutex<HashMap<String, RedisConnection>>>);

#[derive(Clone)]
pub struct RedisConnection {
    manager: ConnectionManager,
    shown: Arc<str>,
}

/// Why a command has no usable answer.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RedisFault {
    pub kind: RedisFaultKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisFaultKind {
    /// There is no connection, or it broke: whether the command was carried out is not known.
    Connect,
    Timeout,
    /// It cannot be done now.
    Busy,
    /// The credentials are wrong or allow less.
    Denied,
    /// The server says no.
    Refused,
    /// The address or the command makes no sense.
    Invalid,
}

/// What needs a connection of its own, or would change the one that all share.
const NOT_SHARED: [&str; 27] = [
    "AUTH",
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "CLIENT",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "QUIT",
    "RESET",
    "SELECT",
    "SHUTDOWN",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SYNC",
    "WAIT",
    "WAITAOF",
    "WATCH",
];

impl RedisFault {
    pub fn new(kind: RedisFaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn of(shown: &str, cause: &RedisError) -> Self {
        let kind = match cause.kind() {
            _ if cause.is_timeout() => RedisFaultKind::Timeout,
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => RedisFaultKind::Denied,
            ErrorKind::InvalidClientConfig => RedisFaultKind::Invalid,
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly,
            ) => RedisFaultKind::Busy,
            ErrorKind::Server(_) | ErrorKind::Extension => match cause.code() {
                Some("NOAUTH" | "WRONGPASS" | "NOPERM") => RedisFaultKind::Denied,
                Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS") => RedisFaultKind::Busy,
                _ => RedisFaultKind::Refused,
            },
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => RedisFaultKind::Refused,
            _ => RedisFaultKind::Connect,
        };
        Self::new(kind, format!("{shown}: {cause}"))
    }
}

impl RedisConnections {
    /// The connection to `url` (`redis://`, `rediss://` or `unix://`). It is opened by the first command.
    pub fn get(&self, url: &str) -> Result<RedisConnection, RedisFault> {
        // Nothing between lock and unlock can leave the map half changed.
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connections.get(url) {
            return Ok(connection.clone());
        }
        // Fails where one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shown: Arc<str> = shown(url).into();
        let invalid = |why: &dyn fmt::Display| RedisFault::new(RedisFaultKind::Invalid, format!("{shown}: {why}"));
        let info = url.into_connection_info().map_err(|_| {
            invalid(&"it is no address such as redis://[user:password@]host[:port][/database]; one server only")
        })?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(|cause| invalid(&cause))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            // Each command has its own limit.
            .set_response_timeout(None)
            .set_min_delay(Duration::from_millis(50))
            .set_max_delay(Duration::from_secs(2));
        let manager =
            ConnectionManager::new_lazy_with_config(client, config).map_err(|cause| RedisFault::of(&shown, &cause))?;
        let connection = RedisConnection { manager, shown };
        if connections.len() >= MAX_CONNECTIONS {
            connections.clear();
        }
        connections.insert(url.to_owned(), connection.clone());
        Ok(connection)
    }
}

impl RedisConnection {
    /// Sends a command, once, and waits for its answer for at most `limit`.
    pub async fn command(&self, words: &[Vec<u8>], limit: Duration) -> Result<Value, RedisFault> {
        let name = words.first().map(|word| String::from_utf8_lossy(word).to_ascii_uppercase()).unwrap_or_default();
        let blocks = name.starts_with("XREAD") && words.iter().any(|word| word.eq_ignore_ascii_case(b"BLOCK"));
        if name.is_empty() || blocks || NOT_SHARED.contains(&name.as_str()) {
            let message = format!("{}: {name:?} is no command for a connection that all scripts share", self.shown);
            return Err(RedisFault::new(RedisFaultKind::Invalid, message));
        }
        let mut command = Cmd::new();
        for word in words {
            command.arg(word.as_slice());
        }
        let mut manager = self.manager.clone();
        match tokio::time::timeout(limit, command.query_async::<Value>(&mut manager)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => {
                let fault = RedisFault::of(&self.shown, &cause);
                Err(RedisFault { message: format!("{}: {name}: {cause}", self.shown), ..fault })
            }
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let message = format!("{}: {name}: no answer within {limit}", self.shown);
                Err(RedisFault::new(RedisFaultKind::Timeout, message))
            }
        }
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The address without its login and what follows the database.
fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    if scheme.is_empty() { "redis".to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_shown_without_their_login_and_shared() {
        assert_eq!(shown("redis://me:p@ss@host:7/3?x=y"), "redis://host:7/3");
        assert_eq!(shown("secret words"), "redis");
        let connections = RedisConnections::default();
        for url in ["", "http://host", "redis+cluster://a,b", "redis://:secret@"] {
            let fault = connections.get(url).unwrap_err();
            assert!(fault.kind == RedisFaultKind::Invalid && !fault.message.contains("secret"), "{url}: {fault}");
        }
        connections.get("redis://127.0.0.1:9/").unwrap();
        connections.get("redis://127.0.0.1:9/").unwrap();
        assert_eq!(connections.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_would_disturb_others_is_refused() {
        let connection = RedisConnections::default().get("redis://127.0.0.1:9/").unwrap();
        for words in [&["blpop", "a", "0"][..], &["MULTI"], &["xread", "block", "0", "streams", "a", "$"], &[], &[""]] {
            let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            let fault = connection.command(&words, Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(fault.kind, RedisFaultKind::Invalid, "{fault}");
        }
    }
}
