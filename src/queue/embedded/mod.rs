//! The queue of one machine, in one `SQLite` file.
//!
//! One thread owns the file. It takes whatever operations wait, runs them in one transaction (each in a savepoint, so that
//! one that fails undoes only itself), commits once, and only then answers: many callers share one sync to disk, and what
//! was answered is durable. Who waits for jobs is woken by the commit that may have brought some.

mod rows;
mod store;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use metrics::gauge;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::Connection;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use self::store::Store;
use super::{
    Broker, BrokerError, Claim, ClaimRequest, Failure, HeartbeatReply, Job, JobEvent, JobFilter, JobId, JobState,
    Progress, QueueStats, Registration, Submission, Submitted, Token,
};
use crate::base::Timestamp;
use crate::spec::Capabilities;

const SCHEMA: &str = include_str!("schema.sql");
const SCHEMA_VERSION: i64 = 1;
/// Operations that share one commit at most.
const GROUP: usize = 256;
/// Nobody sleeps longer than this without looking at the queue.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// How long a silent worker keeps its jobs.
    pub lease: Duration,
    /// A job that so many workers died of is set aside.
    pub max_losses: u32,
    /// How long completed and cancelled jobs are kept.
    pub keep_finished: Duration,
    /// How long failed jobs are kept.
    pub keep_failed: Duration,
    /// At most so many finished jobs are kept, the newest.
    pub max_finished: u32,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            max_losses: 5,
            keep_finished: Duration::from_hours(7 * 24),
            keep_failed: Duration::from_hours(30 * 24),
            max_finished: 100_000,
        }
    }
}

/// A [`Broker`] on one file.
pub struct EmbeddedBroker {
    sender: Sender<Operation>,
    /// Counts commits that may have made a job claimable.
    jobs: watch::Receiver<u64>,
    /// Counts commits that may have added to a job's events.
    events: watch::Receiver<u64>,
    next_due: watch::Receiver<Option<Timestamp>>,
    /// What `jobs` was when each incarnation claimed last: what came after is worth another claim.
    seen: Mutex<HashMap<String, u64>>,
    _lock: Flock<File>,
}

/// Runs in the transaction; what it gives back runs after the commit, with its outcome.
type Operation = Box<dyn FnOnce(&mut Store) -> (Undo, Answer) + Send>;
/// What has to be taken back of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// It failed before it changed anything in memory.
    File,
    FileAndMemory,
}
type Answer = Box<dyn FnOnce(Result<(), BrokerError>) + Send>;

impl EmbeddedBroker {
    /// Opens or creates the queue in `path`.
    pub fn open(path: &Path, config: EmbeddedConfig) -> Result<Self, BrokerError> {
        let unavailable = |why: String| BrokerError::Unavailable { why: format!("{}: {why}", path.display()) };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|cause| unavailable(cause.to_string()))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|cause| unavailable(cause.to_string()))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| unavailable("another process has this queue open".to_owned()))?;
        let connection = prepare(path).map_err(|why| unavailable(why.to_string()))?;
        let store = Store::open(connection, config).map_err(|cause| unavailable(cause.to_string()))?;

        let (sender, receiver) = mpsc::channel();
        let (jobs, jobs_receiver) = watch::channel(0);
        let (events, events_receiver) = watch::channel(0);
        let (next_due, next_due_receiver) = watch::channel(store.next_due().ok().flatten());
        let owner = Owner { store, jobs, events, next_due };
        std::thread::Builder::new()
            .name("queue".to_owned())
            .spawn(move || owner.run(&receiver))
            .map_err(|cause| unavailable(cause.to_string()))?;
        Ok(Self {
            sender,
            jobs: jobs_receiver,
            events: events_receiver,
            next_due: next_due_receiver,
            seen: Mutex::default(),
            _lock: lock,
        })
    }

    /// Has the owner run `operation` and waits for the commit.
    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Store, Timestamp) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (reply, outcome) = oneshot::channel();
        let operation: Operation = Box::new(move |store| {
            let result = operation(store, Timestamp::now());
            let undo = match &result {
                Ok(_) => Undo::Nothing,
                Err(BrokerError::Unavailable { .. }) => Undo::FileAndMemory,
                Err(_) => Undo::File,
            };
            let answer: Answer = Box::new(move |committed| {
                // Nobody waits any more when the caller was cancelled.
                let _ = reply.send(committed.and(result));
            });
            (undo, answer)
        });
        let gone = || BrokerError::Unavailable { why: "the queue is closed".to_owned() };
        self.sender.send(operation).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
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
    connection.set_prepared_statement_cache_capacity(128);
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (version, tables) {
        (0, 0) => connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?,
        (SCHEMA_VERSION, _) => {}
        (0, _) => return Err("this is a database, but no machinist queue".into()),
        (newer, _) => {
            return Err(format!("this queue has version {newer}, this machinist knows {SCHEMA_VERSION}").into());
        }
    }
    let state: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if state != "ok" {
        return Err(format!("the file is damaged: {state}").into());
    }
    Ok(connection)
}

struct Owner {
    store: Store,
    jobs: watch::Sender<u64>,
    events: watch::Sender<u64>,
    next_due: watch::Sender<Option<Timestamp>>,
}

impl Owner {
    fn run(mut self, receiver: &Receiver<Operation>) {
        while let Ok(first) = receiver.recv() {
            let mut answers = Vec::new();
            let changes = self.store.connection.total_changes();
            let outcome = self.transaction(first, receiver, &mut answers);
            if let Err(cause) = &outcome {
                tracing::error!("the queue could not be written: {cause}");
                let _ = self.store.connection.execute_batch("ROLLBACK");
                // What is in memory may be ahead of the file now.
                if let Err(cause) = self.store.load() {
                    tracing::error!("the queue could not be read: {cause}");
                }
            }
            for answer in answers {
                let failed = outcome.as_ref().err().map(|cause| BrokerError::Unavailable { why: cause.to_string() });
                answer(failed.map_or(Ok(()), Err));
            }
            if self.store.connection.total_changes() != changes {
                self.wake();
            }
        }
    }

    fn transaction(
        &mut self,
        first: Operation,
        receiver: &Receiver<Operation>,
        answers: &mut Vec<Answer>,
    ) -> rusqlite::Result<()> {
        self.store.connection.execute_batch("BEGIN")?;
        let mut next = Some(first);
        while let Some(operation) = next {
            self.store.connection.execute_batch("SAVEPOINT operation")?;
            let (undo, answer) = operation(&mut self.store);
            answers.push(answer);
            if undo != Undo::Nothing {
                self.store.connection.execute_batch("ROLLBACK TO operation")?;
            }
            self.store.connection.execute_batch("RELEASE operation")?;
            if undo == Undo::FileAndMemory {
                self.store.load()?;
            }
            next = if answers.len() < GROUP { receiver.try_recv().ok() } else { None };
        }
        self.store.connection.execute_batch("COMMIT")
    }

    fn wake(&self) {
        self.jobs.send_modify(|count| *count += 1);
        self.events.send_modify(|count| *count += 1);
        if let Ok(due) = self.store.next_due() {
            self.next_due.send_if_modified(|current| std::mem::replace(current, due) != due);
        }
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, BrokerError> {
        self.call(move |store, now| store.submit(submissions, now)).await
    }

    async fn register(&self, registration: &Registration, capabilities: &Capabilities) -> Result<(), BrokerError> {
        let (registration, capabilities) = (registration.clone(), capabilities.clone());
        self.call(move |store, now| store.register(&registration, &capabilities, now)).await
    }

    async fn deregister(&self, registration: &Registration) -> Result<(), BrokerError> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&registration.incarnation);
        let registration = registration.clone();
        self.call(move |store, now| store.deregister(&registration, now)).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claim>, BrokerError> {
        // Noted before the claim looks: a commit in between is worth another look.
        let version = *self.jobs.borrow();
        let incarnation = request.registration.incarnation.clone();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(incarnation, version);
        let request = request.clone();
        self.call(move |store, now| store.claim(&request, now)).await
    }

    async fn wait(&self, registration: &Registration, timeout: Duration) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&registration.incarnation).copied();
        let Some(seen) = seen else { return };
        let (mut jobs, mut next_due) = (self.jobs.clone(), self.next_due.clone());
        let end = tokio::time::Instant::now() + timeout.min(LONGEST_WAIT);
        loop {
            let due = next_due.borrow_and_update().map(|due| due.since(Timestamp::now()));
            let due = due.map_or(end, |until| end.min(tokio::time::Instant::now() + until));
            tokio::select! {
                _ = jobs.wait_for(|version| *version > seen) => return,
                () = tokio::time::sleep_until(due) => return,
                changed = next_due.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn heartbeat(&self, registration: &Registration, held: &[Token]) -> Result<HeartbeatReply, BrokerError> {
        let (registration, held) = (registration.clone(), held.to_vec());
        self.call(move |store, now| store.heartbeat(&registration, &held, now)).await
    }

    async fn progress(&self, token: &Token, progress: Progress) -> Result<(), BrokerError> {
        let token = token.clone();
        self.call(move |store, now| store.progress(&token, &progress, now)).await
    }

    async fn log(&self, token: &Token, line: String) -> Result<(), BrokerError> {
        let token = token.clone();
        self.call(move |store, now| store.log(&token, &line, now)).await
    }

    async fn save(&self, token: &Token, value: Value) -> Result<(), BrokerError> {
        let token = token.clone();
        self.call(move |store, _| store.save(&token, &value)).await
    }

    async fn complete(&self, token: &Token, result: Value) -> Result<(), BrokerError> {
        let token = token.clone();
        self.call(move |store, now| store.complete(&token, &result, now)).await
    }

    async fn fail(&self, token: &Token, failure: Failure) -> Result<JobState, BrokerError> {
        let token = token.clone();
        self.call(move |store, now| store.fail(&token, &failure, now)).await
    }

    async fn release(&self, token: &Token, why: &str) -> Result<(), BrokerError> {
        let (token, why) = (token.clone(), why.to_owned());
        self.call(move |store, now| store.release(&token, &why, now)).await
    }

    async fn cancel(&self, id: &JobId) -> Result<JobState, BrokerError> {
        let id = id.clone();
        self.call(move |store, now| store.cancel(&id, now)).await
    }

    async fn retry(&self, id: &JobId) -> Result<JobState, BrokerError> {
        let id = id.clone();
        self.call(move |store, now| store.retry(&id, now)).await
    }

    async fn get(&self, id: &JobId) -> Result<Job, BrokerError> {
        let id = id.clone();
        self.call(move |store, _| store.get(&id)).await
    }

    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, BrokerError> {
        let filter = filter.clone();
        self.call(move |store, _| store.list(&filter)).await
    }

    async fn events(&self, id: &JobId, after: u64) -> Result<Vec<JobEvent>, BrokerError> {
        let id = id.clone();
        self.call(move |store, _| store.events(&id, after)).await
    }

    async fn wait_events(&self, id: &JobId, after: u64, timeout: Duration) {
        let mut events = self.events.clone();
        let until_some = async {
            loop {
                events.borrow_and_update();
                match self.events(id, after).await {
                    Ok(found) if found.is_empty() => {}
                    _ => return,
                }
                if events.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(timeout.min(LONGEST_WAIT), until_some).await;
    }

    async fn stats(&self) -> Result<QueueStats, BrokerError> {
        let stats = self.call(|store, _| store.stats()).await?;
        let counts = [
            (JobState::Delayed, stats.delayed),
            (JobState::Pending, stats.pending),
            (JobState::Running, stats.running),
            (JobState::Completed, stats.completed),
            (JobState::Failed, stats.failed),
            (JobState::Cancelled, stats.cancelled),
        ];
        for (state, count) in counts {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
            gauge!("machinist_queue_jobs", "state" => state.as_str()).set(count as f64);
        }
        Ok(stats)
    }

    async fn reap(&self, now: Timestamp) -> Result<Duration, BrokerError> {
        self.call(move |store, _| store.reap(now)).await?;
        Ok(Duration::from_secs(1))
    }
}
