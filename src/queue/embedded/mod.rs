//! The queue of one machine, in one `SQLite` file.
//!
//! One thread owns the data. It takes whatever calls wait, runs each (one that fails undoes only itself), writes what
//! they changed in one transaction, and only then answers: many callers share one sync to disk, and what was answered is
//! durable. Messages that calls publish are passed on after the commit.

mod data;
mod lua;
#[cfg(test)]
mod simulation;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::fcntl::Flock;
use rusqlite::Connection;
use tokio::sync::{broadcast, oneshot};

use self::data::Data;
use self::lua::Functions;
use super::BrokerError;
use super::store::{Message, Reply, Store, assigning};
use crate::base::lock_file;

const SCHEMA: &str = include_str!("schema.sql");
const SCHEMA_VERSION: i64 = 2;
/// Calls that share one commit at most.
const GROUP: usize = 256;
const OWN_CHANNEL: &str = "own";
const PAGE: usize = 1_000;

/// A [`Store`] on one file.
pub(super) struct EmbeddedStore {
    sender: Sender<Task>,
    messages: broadcast::Sender<Message>,
    subscribed: Arc<Mutex<HashSet<String>>>,
    _lock: Flock<File>,
}

enum Task {
    Call { function: &'static str, arguments: Vec<String>, answer: oneshot::Sender<Result<Reply, BrokerError>> },
    Ids { after: Option<String>, answer: oneshot::Sender<Vec<String>> },
}

impl EmbeddedStore {
    /// Opens or creates the queue in `path`.
    pub fn open(path: &Path) -> Result<Self, BrokerError> {
        let unavailable = |why: String| BrokerError::Unavailable { why: format!("{}: {why}", path.display()) };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|cause| unavailable(cause.to_string()))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|cause| unavailable(cause.to_string()))?;
        let lock = lock_file(lock).map_err(|_| unavailable("another process has this queue open".to_owned()))?;
        let connection = prepare(path).map_err(|why| unavailable(why.to_string()))?;
        let data = Data::read(&connection).map_err(|why| unavailable(why.to_string()))?;

        let (sender, receiver) = mpsc::channel();
        let (messages, _) = broadcast::channel(4_096);
        let always = [OWN_CHANNEL.to_owned(), assigning(OWN_CHANNEL), "due".to_owned(), "wake".to_owned()];
        let subscribed = Arc::new(Mutex::new(HashSet::from(always)));
        let (passed_on, filter) = (messages.clone(), Arc::clone(&subscribed));
        std::thread::Builder::new()
            .name("queue".to_owned())
            .spawn(move || match Functions::load(data) {
                Ok(functions) => {
                    Owner { functions, connection, messages: passed_on, subscribed: filter }.run(&receiver);
                }
                Err(cause) => tracing::error!("the queue's functions do not load: {cause}"),
            })
            .map_err(|cause| unavailable(cause.to_string()))?;
        Ok(Self { sender, messages, subscribed, _lock: lock })
    }

    async fn ask<T>(&self, task: impl FnOnce(oneshot::Sender<T>) -> Task) -> Result<T, BrokerError> {
        let gone = || BrokerError::Unavailable { why: "the queue is closed".to_owned() };
        let (answer, outcome) = oneshot::channel();
        self.sender.send(task(answer)).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn call(&self, function: &'static str, arguments: Vec<String>) -> Result<Reply, BrokerError> {
        self.ask(|answer| Task::Call { function, arguments, answer }).await?
    }

    fn messages(&self) -> broadcast::Receiver<Message> {
        self.messages.subscribe()
    }

    async fn subscribe(&self, channel: String) -> Result<(), BrokerError> {
        self.subscribed.lock().unwrap_or_else(PoisonError::into_inner).insert(channel);
        Ok(())
    }

    async fn unsubscribe(&self, channel: String) {
        self.subscribed.lock().unwrap_or_else(PoisonError::into_inner).remove(&channel);
    }

    async fn job_ids(&self, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), BrokerError> {
        let ids = self.ask(|answer| Task::Ids { after: cursor, answer }).await?;
        let next = if ids.len() < PAGE { None } else { ids.last().cloned() };
        Ok((ids, next))
    }

    fn own_channel(&self) -> &'static str {
        OWN_CHANNEL
    }
}

/// Opens the file, checks that it is ours, and makes it durable.
fn prepare(path: &Path) -> Result<Connection, Box<dyn std::error::Error>> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Every commit is on disk before it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (version, tables) {
        (0, 0) => connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?,
        (SCHEMA_VERSION, _) => {}
        (0, _) => return Err("this is a database, but no machinist queue".into()),
        (other, _) => {
            return Err(format!("this queue has version {other}, this machinist knows {SCHEMA_VERSION}").into());
        }
    }
    let state: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if state != "ok" {
        return Err(format!("the file is damaged: {state}").into());
    }
    Ok(connection)
}

struct Owner {
    functions: Functions,
    connection: Connection,
    messages: broadcast::Sender<Message>,
    subscribed: Arc<Mutex<HashSet<String>>>,
}

type Answers = Vec<(oneshot::Sender<Result<Reply, BrokerError>>, Result<Reply, BrokerError>)>;

impl Owner {
    fn run(self, receiver: &Receiver<Task>) {
        while let Ok(first) = receiver.recv() {
            let (mut answers, mut published): (Answers, _) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(task) = next {
                match task {
                    Task::Call { function, arguments, answer } => {
                        let outcome = self.functions.call(function, &arguments);
                        published.extend(self.functions.data.borrow_mut().keep_call());
                        answers.push((answer, outcome.map_err(|why| BrokerError::damaged(&why))));
                    }
                    Task::Ids { after, answer } => drop(answer.send(self.ids(after.as_deref()))),
                }
                next = if answers.len() < GROUP { receiver.try_recv().ok() } else { None };
            }
            let committed = self.commit();
            if let Err(cause) = &committed {
                tracing::error!("the queue could not be written: {cause}");
                let _ = self.connection.execute_batch("ROLLBACK");
                // What is in memory is ahead of the file.
                match Data::read(&self.connection) {
                    Ok(data) => *self.functions.data.borrow_mut() = data,
                    Err(cause) => tracing::error!("the queue could not be read: {cause}"),
                }
                published.clear();
            }
            for (answer, outcome) in answers {
                let failed = committed.as_ref().err().map(|cause| BrokerError::Unavailable { why: cause.to_string() });
                // Nobody waits any more when the caller was cancelled.
                let _ = answer.send(failed.map_or(outcome, Err));
            }
            let subscribed = self.subscribed.lock().unwrap_or_else(PoisonError::into_inner);
            for (channel, text) in published {
                if subscribed.contains(&*channel) {
                    let message = Message::Published { channel: channel.to_string(), text: text.to_string() };
                    let _ = self.messages.send(message);
                }
            }
        }
    }

    fn commit(&self) -> rusqlite::Result<()> {
        let mut data = self.functions.data.borrow_mut();
        if !data.is_dirty() {
            return Ok(());
        }
        self.connection.execute_batch("BEGIN")?;
        data.write(&self.connection)?;
        self.connection.execute_batch("COMMIT")
    }

    fn ids(&self, after: Option<&str>) -> Vec<String> {
        let keys = self.functions.data.borrow().keys_with_prefix("j:");
        let ids = keys.iter().map(|key| &key[2..]);
        ids.filter(|id| after.is_none_or(|after| *id > after)).take(PAGE).map(str::to_owned).collect()
    }
}
