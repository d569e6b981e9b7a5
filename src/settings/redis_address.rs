use std::fmt;
use std::str::FromStr;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use serde::{Serialize, Serializer};

/// Where a Redis or Valkey is.
///
/// * `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, `unix:///path`
/// * `redis+sentinel://[user:password@]host[:port],host.../master[/database]`: whichever the sentinels say is the master
/// * `redis+cluster://[user:password@]host[:port],host...`: the node that has the queue's slot
///
/// `?replicas=N` at the end: what is submitted counts as queued when so many replicas have it too.
///
/// With `rediss+sentinel` and `rediss+cluster` all nodes are spoken to in TLS; sentinels themselves never are.
#[derive(Clone, PartialEq)]
pub struct RedisAddress {
    pub nodes: RedisNodes,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    tls: bool,
    /// So many replicas must have what is submitted.
    pub replicas: u32,
    /// Without its password.
    shown: String,
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Serialize for RedisAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq)]
pub enum RedisNodes {
    One(ConnectionAddr),
    Sentinel { sentinels: Vec<(String, u16)>, master: String },
    Cluster(Vec<(String, u16)>),
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl FromStr for RedisAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, replicas) = match text.split_once("?replicas=") {
            None => (text, 0),
            Some((text, number)) => {
                let wrong = || format!("?replicas={number} is no number of replicas");
                (text, number.parse().map_err(|_| wrong())?)
            }
        };
        let (scheme, rest) = text.split_once("://").ok_or("a Redis address begins with redis://")?;
        let tls = scheme.starts_with("rediss");
        let shown = format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest));
        if matches!(scheme, "redis" | "rediss" | "unix" | "redis+unix") {
            let info = text.into_connection_info().map_err(|cause| format!("{shown}: {cause}"))?;
            let settings = info.redis_settings();
            return Ok(Self {
                nodes: RedisNodes::One(info.addr().clone()),
                user: settings.username().map(str::to_owned),
                password: settings.password().map(str::to_owned),
                database: settings.db(),
                tls,
                replicas,
                shown,
            });
        }
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
            Some((user, password)) => (Some(user).filter(|user| !user.is_empty()), Some(password)),
            None => (None, None),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default_port = if scheme.ends_with("sentinel") { 26379 } else { 6379 };
        let hosts: Vec<(String, u16)> = hosts
            .split(',')
            .map(|host| match host.rsplit_once(':') {
                Some((name, port)) => {
                    let port = port.parse().map_err(|_| format!("{shown}: {port:?} is no port"))?;
                    Ok((name.to_owned(), port))
                }
                None => Ok((host.to_owned(), default_port)),
            })
            .collect::<Result<_, String>>()?;
        if hosts.iter().any(|(name, _)| name.is_empty()) {
            return Err(format!("{shown}: a host is missing"));
        }
        let (master, database) = path.split_once('/').unwrap_or((path, "0"));
        let database = database.parse().map_err(|_| format!("{shown}: {database:?} is no database"))?;
        let nodes = match scheme {
            "redis+sentinel" | "rediss+sentinel" if master.is_empty() => {
                return Err(format!("{shown}: the name of the master is missing: redis+sentinel://host/NAME"));
            }
            "redis+sentinel" | "rediss+sentinel" => {
                RedisNodes::Sentinel { sentinels: hosts, master: master.to_owned() }
            }
            "redis+cluster" | "rediss+cluster" => RedisNodes::Cluster(hosts),
            _ => return Err(format!("{scheme}:// is none of redis, rediss, unix, redis+sentinel, redis+cluster")),
        };
        let (user, password) = (user.map(str::to_owned), password.map(str::to_owned));
        Ok(Self { nodes, user, password, database, tls, replicas, shown })
    }
}

impl RedisAddress {
    /// How to connect to one of its nodes.
    pub fn node(&self, host: &str, port: u16) -> ConnectionAddr {
        if self.tls {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.to_owned(), port)
        }
    }

    pub fn info(&self, address: ConnectionAddr) -> redis::RedisResult<ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default().set_db(self.database).set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_their_password() {
        let one: RedisAddress = "redis://me:secret@host:7000/3".parse().unwrap();
        assert_eq!((one.to_string().as_str(), one.database), ("redis://host:7000/3", 3));
        assert_eq!((one.user.as_deref(), one.password.as_deref()), (Some("me"), Some("secret")));
        let sentinel: RedisAddress = "redis+sentinel://:p@a,b:5/main/2".parse().unwrap();
        let sentinels = vec![("a".to_owned(), 26379), ("b".to_owned(), 5)];
        assert_eq!(sentinel.nodes, RedisNodes::Sentinel { sentinels, master: "main".to_owned() });
        assert_eq!((sentinel.password.as_deref(), sentinel.database), (Some("p"), 2));
        let cluster: RedisAddress = "rediss+cluster://a:1,b".parse().unwrap();
        assert_eq!(cluster.nodes, RedisNodes::Cluster(vec![("a".to_owned(), 1), ("b".to_owned(), 6379)]));
        assert!(cluster.tls);
        let careful: RedisAddress = "redis://host?replicas=2".parse().unwrap();
        assert_eq!((careful.replicas, careful.to_string().as_str()), (2, "redis://host"));
        for bad in [
            "host:1",
            "amqp://x",
            "redis+sentinel://a",
            "redis+cluster://a:x",
            "redis+cluster://,",
            "redis://a?replicas=x",
        ] {
            assert!(bad.parse::<RedisAddress>().is_err(), "{bad}");
        }
    }
}
