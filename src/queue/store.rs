use async_trait::async_trait;
use tokio::sync::broadcast;

use super::BrokerError;

/// The queue's state machine, in Lua: the same text runs in Redis and in the engine.
pub(super) const FUNCTIONS: &str = include_str!("script/queue.lua");

/// Where the queue's data lie and its functions run.
#[async_trait]
pub(super) trait Store: Send + Sync + 'static {
    /// Runs one function; what it changed is atomic, and durable when this returns.
    async fn call(&self, function: &'static str, arguments: Vec<String>) -> Result<Reply, BrokerError>;

    /// What functions publish on the channels that were subscribed.
    fn messages(&self) -> broadcast::Receiver<Message>;

    /// `channel` is a key without the queue's prefix.
    async fn subscribe(&self, channel: String) -> Result<(), BrokerError>;
    async fn unsubscribe(&self, channel: String);

    /// The ids of jobs, a page at a time; `None` begins, and ends.
    async fn job_ids(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), BrokerError>;

    /// What this process's own channel is called. It listens on the one [`assigning`] as well.
    fn own_channel(&self) -> &str;
}

/// The channel, beside a process's own, of its workers that jobs may be assigned to: the name says so to the functions.
pub(super) fn assigning(own: &str) -> String {
    format!("{own}:a")
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Published {
        channel: String,
        text: String,
    },
    /// Nothing can be called or heard until `Reconnected`.
    Disconnected,
    /// The connection is new: what was published meanwhile is lost.
    Reconnected,
}

/// What a function answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Nil,
    Int(i64),
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(self) -> Result<String, BrokerError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Int(number) => Ok(number.to_string()),
            other => Err(unexpected(&other)),
        }
    }

    pub fn list(self) -> Result<Vec<Self>, BrokerError> {
        match self {
            Self::List(items) => Ok(items),
            Self::Nil => Ok(Vec::new()),
            other => Err(unexpected(&other)),
        }
    }

    pub fn texts(self) -> Result<Vec<String>, BrokerError> {
        self.list()?.into_iter().map(Self::text).collect()
    }

    pub fn number<T: std::str::FromStr>(self) -> Result<T, BrokerError> {
        let text = self.text()?;
        text.parse().map_err(|_| BrokerError::damaged(&format!("{text:?} is no number")))
    }

    /// A flat list of keys and values.
    pub fn pairs(self) -> Result<Vec<(String, String)>, BrokerError> {
        let mut items = self.texts()?.into_iter();
        let mut pairs = Vec::new();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}

fn unexpected(reply: &Reply) -> BrokerError {
    BrokerError::damaged(&format!("a function answered {reply:?}"))
}
