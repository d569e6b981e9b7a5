//! The one [`Broker`]: it speaks the queue's functions to whichever [`Store`] holds the data.
//!
//! What the functions cannot do is done here: validation, matching (once per class and profile, never per job), the
//! decision what a failed attempt leads to, and everything that takes more than one step.

mod assigned;
mod backlog;
mod batch;
mod codec;
mod due;
mod keeper;
mod large;
mod presence;
mod roster;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::{counter, gauge, histogram};
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast, watch};

use self::assigned::Assigned;
use self::batch::Batcher;
use self::codec::Stored;
use self::due::Due;
use self::large::Prepared;
use self::roster::Roster;
use super::lifecycle::{Avoid, Target, Transition};
use super::matching::{Class, ClassId};
use super::model::plain;
use super::store::{Message, Reply, Store, assigning};
use super::validate::refuse;
use super::{
    AccountStatus, Backlog, Broker, BrokerError, Claim, ClaimRequest, ClassStatus, Explanation, Failure, FailureClass,
    HeartbeatReply, HoldRequest, Job, JobEvent, JobFilter, JobId, JobSchedule, JobState, KnownMachine, Limit, Progress,
    QueueConfig, QueueStats, Registration, Round, Scope, Submission, Submitted, Token, Usage, Word, WorkerExplanation,
};
use crate::base::{Name, Timestamp};
use crate::spec::Capabilities;
use crate::telemetry::label;

type Result<T> = std::result::Result<T, BrokerError>;

/// Jobs of one call: about a millisecond of a store's time.
const SUBMIT_CHUNK: usize = 64;
/// Bytes of one call, unless one job has more: a slow network has to carry them before the call counts as lost. Answers have the same
/// bound, in the functions.
const CALL_BYTES: usize = 4 * 1024 * 1024;
const SUBMIT_CLASSES: usize = 16;
const LONGEST_WATCH: Duration = Duration::from_secs(60);
const SUBMIT_TRIES: u32 = 3;
const GET_CHUNK: usize = 40;
/// Fields of a hash on a page: short ones, and capabilities, which may have a thousand names each.
const SCAN_PAGE: usize = 200;
const SCAN_LONG: usize = 8;
/// Jobs and heads that one call reads.
const PENDING_PAGE: usize = 250;
const HEADS_PAGE: usize = 100;
const COMPLETE_CHUNK: usize = 64;
/// A job that ran into something holds its account so long at most; the next one tells if it is not over.
const LONGEST_HOLD: Duration = Duration::from_mins(15);
/// Heartbeats of one process fall together; so long the first waits for the others.
const BEAT_LINGER: Duration = Duration::from_millis(2);
/// In the place of a record that a claim's answer has no room for.
const LEFT_OUT: &str = "+";
/// What a claim says is to be done after it.
const CLAIM_AGAIN: u8 = 1;
const CLAIM_IDLE: u8 = 2;
/// So long after a new connection idle workers are left asleep.
const HOLDERS_FIRST: Duration = Duration::from_millis(20);
/// How often a decision is made again because the job moved meanwhile.
const TRIES: usize = 10;

pub(super) struct Client {
    store: Arc<dyn Store>,
    config: QueueConfig,
    roster: Mutex<Roster>,
    shared: Arc<Shared>,
    completions: Batcher<(Token, String), String>,
    beats: Batcher<Beat, (bool, HeartbeatReply, Vec<Token>)>,
    cancellations: broadcast::Sender<JobId>,
    /// The latest look at all classes, and when it need not be taken again yet.
    backlog: tokio::sync::Mutex<Option<(Instant, Arc<Backlog>)>>,
}

type Beat = (Registration, Vec<Token>, BTreeSet<String>);

/// What messages and timers act on.
#[derive(Default)]
struct Shared {
    workers: Mutex<HashMap<String, Known>>,
    reconnections: watch::Sender<u64>,
    due: Arc<Due>,
    /// The keeper has something to do.
    keep: Notify,
    /// What the last heartbeat said there is to do.
    todo: Mutex<Option<Reply>>,
    watched: Mutex<HashMap<String, (usize, Arc<Notify>)>>,
    retained: Mutex<Option<Instant>>,
}

struct Known {
    registration: Registration,
    wake: Arc<Notify>,
    capabilities: Capabilities,
    /// Registered as idle, it may be: by its last claim, or by one whose answer is not there.
    idle: bool,
    assigned: Assigned,
}

impl Known {
    /// The job was assigned to it with this claim; the message may be one that no function wrote.
    fn take_in(&mut self, words: &[&str; 4]) -> Result<()> {
        let [now, fence, id, raw] = words;
        let fence = fence.parse().map_err(|cause| BrokerError::damaged(&cause))?;
        if !self.assigned.is_known(fence) {
            self.assigned.arrived(claimed(id, fence, raw, Reply::Nil, &self.registration, codec::time(now)?)?);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock here is held over a panic that leaves its value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Must be called in a Tokio runtime.
    pub fn start(store: Arc<dyn Store>, config: QueueConfig) -> Self {
        let shared = Arc::new(Shared::default());
        let (cancellations, _) = broadcast::channel(256);
        tokio::spawn(listen(
            store.messages(),
            store.own_channel().to_owned(),
            Arc::downgrade(&shared),
            cancellations.clone(),
        ));
        tokio::spawn(Due::promote(Arc::downgrade(&shared.due), Arc::clone(&store)));
        let completing = Arc::clone(&store);
        let size = |(_, result): &(Token, String)| result.len();
        let completions = Batcher::start(COMPLETE_CHUNK, Duration::ZERO, size, move |batch: Vec<(Token, String)>| {
            let store = Arc::clone(&completing);
            async move {
                let mut arguments = Vec::with_capacity(batch.len() * 3);
                for (token, result) in batch {
                    arguments.extend([token.job.to_string(), token.claim.to_string(), result]);
                }
                store.call("complete", arguments).await?.texts()
            }
        });
        let (beating, todo, lease) = (Arc::clone(&store), Arc::downgrade(&shared), config.lease);
        let beats = Batcher::start(
            1_000,
            BEAT_LINGER,
            |_| 0,
            move |batch: Vec<Beat>| {
                let (store, shared) = (Arc::clone(&beating), todo.clone());
                async move { beat(store.as_ref(), &shared, lease, &batch).await }
            },
        );
        Self {
            store,
            config,
            roster: Mutex::default(),
            shared,
            completions,
            beats,
            cancellations,
            backlog: tokio::sync::Mutex::default(),
        }
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        lock(&self.roster)
    }

    async fn stored(&self, ids: &[JobId]) -> Result<(Timestamp, Vec<(Option<Stored>, String)>)> {
        let mut found = Vec::with_capacity(ids.len());
        let mut now = Timestamp::now();
        while found.len() < ids.len() {
            let left = &ids[found.len()..];
            let chunk = &left[..left.len().min(GET_CHUNK)];
            let arguments = chunk.iter().map(JobId::to_string).collect();
            let mut parts = self.store.call("get", arguments).await?.list()?.into_iter();
            now = codec::time(&parts.next().unwrap_or(Reply::Nil).text()?)?;
            let jobs = parts.next().unwrap_or(Reply::Nil).list()?;
            if jobs.is_empty() {
                return Err(BrokerError::damaged(&"nothing was answered of a job"));
            }
            for (id, job) in chunk.iter().zip(jobs) {
                let mut parts = job.list()?.into_iter();
                let mut part = || parts.next().unwrap_or(Reply::Nil);
                match part() {
                    Reply::Text(raw) => {
                        let (run, due, changes) = (part().text()?, part().text()?, part());
                        found.push((Some(codec::stored(id.as_str(), &raw, &run, &due, changes)?), run));
                    }
                    _ => found.push((None, String::new())),
                }
            }
        }
        Ok((now, found))
    }

    /// Reads the records that a claim's answer had no room for.
    async fn read_left_out(&self, jobs: &mut [(String, String, Reply)]) -> Result<()> {
        let mut left: Vec<_> = jobs.iter_mut().filter(|(_, raw, _)| raw == LEFT_OUT).collect();
        while !left.is_empty() {
            let ids = left.iter().map(|(id, ..)| id.clone()).collect();
            let records = self.store.call("records", ids).await?.texts()?;
            if records.is_empty() {
                return Err(BrokerError::damaged(&"nothing was answered of a job"));
            }
            let read = records.len().min(left.len());
            for (job, record) in left.drain(..read).zip(records) {
                job.1 = record;
            }
        }
        Ok(())
    }

    async fn one(&self, id: &JobId) -> Result<(Timestamp, Stored, String)> {
        let (now, mut found) = self.stored(std::slice::from_ref(id)).await?;
        match found.pop() {
            Some((Some(stored), run)) => Ok((now, stored, run)),
            _ => Err(BrokerError::UnknownJob(id.clone())),
        }
    }

    async fn jobs(&self, ids: &[JobId], full: bool) -> Result<Vec<Job>> {
        let (_, found) = self.stored(ids).await?;
        let jobs = found.into_iter().filter_map(|(stored, _)| stored).map(|stored| stored.job);
        Ok(jobs.map(|job| if full { job } else { without_data(job) }).collect())
    }

    /// Carries out a decision about a job that was read, unless it moved meanwhile: then `None`.
    async fn carry_out(
        &self,
        stored: &Stored,
        expected: &str,
        transition: &Transition,
        now: Timestamp,
    ) -> Result<Option<JobState>> {
        let job = &stored.job;
        let mut class = Class::of(&job.submission);
        let mut avoid = stored.avoid.clone();
        let mut until = None;
        match (&transition.avoid, &job.worker) {
            (Avoid::ForGood, Some(worker)) if !avoid.contains(worker) => avoid.push(worker.clone()),
            (Avoid::Until(time), Some(worker)) if avoid.is_empty() && self.others_match(&class, worker).await => {
                class.avoid.insert(worker.clone());
                until = Some(*time);
            }
            _ => {}
        }
        class.avoid.extend(avoid.iter().cloned());
        let target = match transition.target {
            Target::Pending => "p",
            Target::Delayed(_) => "d",
            Target::Failed => "f",
            Target::Cancelled => "x",
        };
        let due = if let Target::Delayed(due) = transition.target { due.as_millis() } else { 0 };
        let text = |value: &Value| value.to_string();
        let history = serde_json::to_string(&transition.history(job, now)).unwrap_or_default();
        let mut arguments: Vec<String> = [
            job.id.as_str(),
            expected,
            target,
            &class.id().0,
            &due.to_string(),
            transition.kind,
            &text(&transition.data),
            "h",
            &history,
        ]
        .map(str::to_owned)
        .to_vec();
        let mut set = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if transition.charged {
            set("at", "+1".to_owned());
        }
        if transition.lost {
            set("lo", "+1".to_owned());
        }
        set("pr", String::new());
        set("fail", transition.failure.as_ref().map_or(String::new(), |failure| text(&json!(failure))));
        if avoid.len() != stored.avoid.len() {
            set("av", text(&json!(avoid)));
        }
        let Some(state) = self.shift(arguments, &class).await? else { return Ok(None) };
        if let (Some(until), JobState::Delayed | JobState::Pending) = (until, state) {
            let arguments = vec![job.id.to_string(), until.as_millis().to_string()];
            self.store.call("avoid_until", arguments).await?;
        }
        let service = job.submission.service.to_string();
        match state {
            JobState::Failed => {
                let service = label("machinist_jobs_finished_total", &service);
                counter!("machinist_jobs_finished_total", "service" => service, "outcome" => "failed").increment(1);
            }
            JobState::Cancelled => {
                let service = label("machinist_jobs_finished_total", &service);
                counter!("machinist_jobs_finished_total", "service" => service, "outcome" => "cancelled").increment(1);
            }
            JobState::Delayed => {
                let service = label("machinist_jobs_retried_total", &service);
                counter!("machinist_jobs_retried_total", "service" => service).increment(1);
            }
            _ => {}
        }
        Ok(Some(state))
    }

    /// Calls `move`; `None` when the job was not where it was expected.
    async fn shift(&self, arguments: Vec<String>, class: &Class) -> Result<Option<JobState>> {
        loop {
            let mut answer = self.store.call("move", arguments.clone()).await?.texts()?.into_iter();
            match answer.next().as_deref() {
                Some("OK") => return codec::state(&answer.next().unwrap_or_default()).map(Some),
                Some("NOCLASS") => self.add_class(class).await?,
                Some("UNKNOWN") => {
                    let id = JobId::new(&arguments[0]).map_err(|cause| BrokerError::damaged(&cause))?;
                    return Err(BrokerError::UnknownJob(id));
                }
                _ => return Ok(None),
            }
        }
    }

    async fn others_match(&self, class: &Class, than: &str) -> bool {
        if self.fresh_workers().await.is_err() {
            return false;
        }
        let roster = self.roster();
        roster.workers.iter().any(|(name, worker)| name != than && class.admits(name, worker).is_ok())
    }

    /// Ends an attempt that `token` must hold.
    async fn end(
        &self,
        token: &Token,
        decide: impl Fn(&Stored, Timestamp) -> Transition + Send + Sync,
    ) -> Result<JobState> {
        let stale = || BrokerError::StaleToken(token.clone());
        let (now, stored, run) = self.one(&token.job).await?;
        let fence = token.claim.to_string();
        if run.is_empty() || codec::fence(&run) != fence {
            return Err(stale());
        }
        let transition = decide(&stored, now);
        self.carry_out(&stored, &fence, &transition, now).await?.ok_or_else(stale)
    }

    /// Gives back what an incarnation held, as lost with it, and forgets it.
    async fn end_incarnation(&self, incarnation: &str) -> Result<()> {
        self.empty(incarnation, |stored| Transition::lost(&stored.job, self.config.max_losses)).await
    }

    async fn empty(&self, incarnation: &str, decide: impl Fn(&Stored) -> Transition + Send + Sync) -> Result<()> {
        for _ in 0..1_000 {
            if self.store.call("forget", vec![incarnation.to_owned()]).await?.number::<u64>()? == 0 {
                return Ok(());
            }
            let ids = self.store.call("held", vec![incarnation.to_owned()]).await?.texts()?;
            let (now, found) = self.stored(&codec::ids(&ids)).await?;
            for (stored, run) in found {
                let Some(stored) = stored else { continue };
                if run.split(' ').nth(2) == Some(incarnation) {
                    let transition = decide(&stored);
                    self.carry_out(&stored, codec::fence(&run), &transition, now).await?;
                }
            }
        }
        Err(BrokerError::damaged(&format!("{incarnation} cannot be emptied; run `machinist queue verify`")))
    }

    async fn report(&self, token: &Token, kind: &str, data: String, changes: Vec<String>) -> Result<()> {
        let mut arguments = vec![token.job.to_string(), token.claim.to_string(), kind.to_owned(), data];
        arguments.extend(changes);
        match self.store.call("report", arguments).await?.text()?.as_str() {
            "OK" => Ok(()),
            "UNKNOWN" => Err(BrokerError::UnknownJob(token.job.clone())),
            _ => Err(BrokerError::StaleToken(token.clone())),
        }
    }

    /// Arguments of `submit` for the first of `jobs`, as many as one call should take; how many, and the classes they
    /// need.
    fn encode(jobs: &[Prepared]) -> Result<(Vec<String>, usize, BTreeMap<ClassId, Class>)> {
        let mut classes = BTreeMap::new();
        let mut rest = Vec::with_capacity(jobs.len().min(SUBMIT_CHUNK) * 13);
        let (mut taken, mut bytes) = (0, 0);
        for job in jobs {
            let class = Class::of(&job.submission);
            let class_id = class.id();
            let full = classes.len() == SUBMIT_CLASSES && !classes.contains_key(&class_id);
            if full || taken == SUBMIT_CHUNK {
                break;
            }
            let before = rest.len();
            codec::submission(&class_id, job, &mut rest)?;
            bytes += rest[before..].iter().map(String::len).sum::<usize>();
            if taken > 0 && bytes > CALL_BYTES {
                rest.truncate(before);
                break;
            }
            taken += 1;
            classes.entry(class_id).or_insert(class);
        }
        let mut arguments: Vec<String> = classes.keys().map(|id| id.0.clone()).collect();
        arguments.push(String::new());
        arguments.append(&mut rest);
        Ok((arguments, taken, classes))
    }

    /// Reads the answer of `submit`; `None` after adding classes: call again.
    async fn submitted(
        &self,
        answer: Reply,
        classes: &BTreeMap<ClassId, Class>,
        offset: usize,
    ) -> Result<Option<Vec<Submitted>>> {
        let mut parts = answer.list()?.into_iter();
        let mut part = || parts.next().unwrap_or(Reply::Nil);
        match part().text()?.as_str() {
            "OK" => {
                let mut texts = part().texts()?.into_iter();
                let mut submitted = Vec::new();
                while let (Some(id), Some(state), Some(duplicate)) = (texts.next(), texts.next(), texts.next()) {
                    submitted.push(Submitted {
                        id: JobId::new(&id).map_err(|cause| BrokerError::damaged(&cause))?,
                        state: codec::state(&state)?,
                        duplicate: duplicate == "1",
                    });
                }
                Ok(Some(submitted))
            }
            "NODEP" => {
                let (index, id) = (part().number::<usize>()?, part().text()?);
                let why = format!("it waits for job {id}, which is not known");
                Err(BrokerError::Refused { index: offset + index, why })
            }
            "NOCLASS" => {
                for id in part().texts()? {
                    if let Some(class) = classes.get(&ClassId(id)) {
                        self.add_class(class).await?;
                    }
                }
                Ok(None)
            }
            other => Err(BrokerError::damaged(&format!("submit answered {other}"))),
        }
    }

    /// Hears of the job's events until what is returned is dropped.
    async fn watch(&self, id: &JobId) -> Result<Watch> {
        let channel = format!("e:{id}");
        let (first, notify) = {
            let mut watched = lock(&self.shared.watched);
            let entry = watched.entry(channel.clone()).or_default();
            entry.0 += 1;
            (entry.0 == 1, Arc::clone(&entry.1))
        };
        let (shared, store) = (Arc::clone(&self.shared), Arc::clone(&self.store));
        let watch = Watch { channel: channel.clone(), notify, shared, store };
        if first {
            self.store.subscribe(channel).await?;
        }
        Ok(watch)
    }

    /// All fields of one of the store's hashes that grow with classes and workers, page by page.
    async fn scan(&self, hash: &str, page: usize) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        let mut from = String::new();
        loop {
            let arguments = vec![hash.to_owned(), from, page.to_string()];
            let mut parts = self.store.call("scan", arguments).await?.list()?.into_iter();
            let mut part = || parts.next().unwrap_or(Reply::Nil);
            from = part().text()?;
            all.extend(part().pairs()?);
            if from.is_empty() {
                return Ok(all);
            }
        }
    }

    /// All classes on record, in order.
    async fn class_ids(&self) -> Result<Vec<String>> {
        Ok(self.scan("cn", SCAN_PAGE).await?.into_keys().collect())
    }

    /// The best of all classes, class by class: no call looks at many.
    async fn pending_ids(&self, offset: usize, count: usize) -> Result<Vec<JobId>> {
        let classes = self.class_ids().await?;
        let most = offset + count;
        let mut heads = Vec::new();
        for chunk in classes.chunks(HEADS_PAGE) {
            let found = self.store.call("heads", chunk.to_vec()).await?.texts()?;
            heads.extend(found.iter().zip(chunk).filter_map(|(head, class)| Some((head.parse::<i64>().ok()?, class))));
        }
        heads.sort_unstable();
        // Where so many classes have a job up to here, none goes before those that comes after; customers share places.
        let bound = heads.get(most.saturating_sub(1)).map_or(i64::MAX, |(head, _)| *head);
        heads.retain(|(head, _)| *head <= bound);
        let bound = if bound == i64::MAX { "+inf".to_owned() } else { bound.to_string() };
        let mut best: BTreeSet<(i64, String)> = BTreeSet::new();
        for chunk in heads.chunks((PENDING_PAGE / most.max(1)).clamp(1, HEADS_PAGE)) {
            let mut arguments = vec![most.to_string(), bound.clone()];
            arguments.extend(chunk.iter().map(|(_, class)| (*class).clone()));
            for (id, score) in self.store.call("pending", arguments).await?.pairs()? {
                best.insert((score.parse().unwrap_or(i64::MAX), id));
                if best.len() > most {
                    best.pop_last();
                }
            }
        }
        Ok(best.iter().skip(offset).filter_map(|(_, id)| JobId::new(id).ok()).collect())
    }

    /// A page, and how many places it covers: some may be empty.
    async fn ids(&self, state: JobState, offset: usize, count: usize) -> Result<(Vec<JobId>, usize)> {
        if state == JobState::Pending {
            let ids = self.pending_ids(offset, count).await?;
            let covered = ids.len();
            return Ok((ids, covered));
        }
        let arguments = vec![codec::letter(state).to_owned(), offset.to_string(), count.to_string()];
        let ids = self.store.call("list", arguments).await?.texts()?;
        Ok((codec::ids(&ids), ids.len()))
    }
}

/// Somebody who waits for events of a job; most go away while they wait.
struct Watch {
    channel: String,
    notify: Arc<Notify>,
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = lock(&self.shared.watched);
        let Some(entry) = watched.get_mut(&self.channel) else { return };
        entry.0 -= 1;
        if entry.0 > 0 {
            return;
        }
        watched.remove(&self.channel);
        drop(watched);
        let (channel, shared, store) = (self.channel.clone(), Arc::clone(&self.shared), Arc::clone(&self.store));
        // Not where the runtime has ended: then the connection has, too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // The next may have come already.
                if !lock(&shared.watched).contains_key(&channel) {
                    store.unsubscribe(channel).await;
                }
            });
        }
    }
}

fn without_data(job: Job) -> Job {
    let submission = Submission { payload: Value::Null, ..job.submission };
    Job { result: None, saved: None, submission, ..job }
}

/// Renews leases and hears what became of the jobs that are held.
async fn beat(
    store: &dyn Store,
    shared: &Weak<Shared>,
    lease: Duration,
    batch: &[Beat],
) -> Result<Vec<(bool, HeartbeatReply, Vec<Token>)>> {
    let mut arguments = vec![lease.as_millis().to_string()];
    for (who, held, loaded) in batch {
        arguments.extend([who.incarnation.clone(), loaded.len().to_string()]);
        arguments.extend(loaded.iter().map(|model| plain(model)));
        arguments.push(held.len().to_string());
        for token in held {
            arguments.extend([token.job.to_string(), token.claim.to_string()]);
        }
    }
    let mut parts = store.call("heartbeat", arguments).await?.list()?.into_iter();
    let mut part = || parts.next().unwrap_or(Reply::Nil);
    let (_now, answers, todo) = (part(), part().list()?, part());
    if let Some(shared) = shared.upgrade() {
        *lock(&shared.todo) = Some(todo);
        shared.keep.notify_one();
    }
    let ids = |reply: Reply| reply.texts().map(|texts| codec::ids(&texts));
    answers
        .into_iter()
        .map(|answer| {
            let mut parts = answer.list()?.into_iter();
            let mut part = || parts.next().unwrap_or(Reply::Nil);
            let known = part().number::<u8>()? == 1;
            let reply = HeartbeatReply { lost: ids(part())?, cancelled: ids(part())? };
            let mut extra = Vec::new();
            for (id, claim) in part().pairs()? {
                if let (Ok(job), Ok(claim)) = (JobId::new(&id), claim.parse()) {
                    extra.push(Token { job, claim });
                }
            }
            Ok((known, reply, extra))
        })
        .collect()
}

/// Passes on what functions publish.
async fn listen(
    mut messages: broadcast::Receiver<Message>,
    own: String,
    shared: Weak<Shared>,
    cancellations: broadcast::Sender<JobId>,
) {
    let assigns = assigning(&own);
    loop {
        let message = match messages.recv().await {
            Ok(message) => message,
            // Whatever was missed may concern anybody.
            Err(broadcast::error::RecvError::Lagged(_)) => Message::Reconnected,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let Some(shared) = shared.upgrade() else { return };
        match message {
            Message::Published { channel, text } if channel == own || channel == assigns => {
                match text.split_once(' ') {
                    Some(("w", incarnation)) => {
                        if let Some(known) = lock(&shared.workers).get(incarnation) {
                            known.wake.notify_one();
                        }
                    }
                    Some(("a", job)) => {
                        let mut words = job.splitn(5, ' ');
                        let mut word = || words.next().unwrap_or_default();
                        if let Some(known) = lock(&shared.workers).get_mut(word()) {
                            // One that cannot be read comes again with the next claim, which deals with it.
                            let _ = known.take_in(&[word(), word(), word(), word()]);
                            known.wake.notify_one();
                        }
                    }
                    Some(("c", id)) => drop(JobId::new(id).map(|id| cancellations.send(id))),
                    _ => {}
                }
            }
            Message::Published { channel, text } if channel == "due" => {
                if shared.due.published(&text) {
                    shared.keep.notify_one();
                }
            }
            Message::Published { channel, .. } if channel == "wake" => shared.keep.notify_one(),
            Message::Published { channel, .. } => {
                if let Some((_, notify)) = lock(&shared.watched).get(&channel) {
                    notify.notify_waiters();
                }
            }
            // A round of the keeper finds out, and tells the machine.
            Message::Disconnected => shared.keep.notify_one(),
            Message::Reconnected => {
                // Who holds jobs says so first; then others may claim what nobody holds.
                shared.reconnections.send_modify(|number| *number += 1);
                tokio::time::sleep(HOLDERS_FIRST).await;
                for known in lock(&shared.workers).values() {
                    known.wake.notify_one();
                }
                for (_, notify) in lock(&shared.watched).values() {
                    notify.notify_waiters();
                }
                shared.keep.notify_one();
            }
        }
    }
}

#[async_trait]
impl Broker for Client {
    async fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>> {
        for (index, submission) in submissions.iter().enumerate() {
            if let Some(why) = refuse(submission, self.most_bytes()) {
                return Err(BrokerError::Refused { index, why });
            }
        }
        let mut jobs: Vec<Prepared> = Vec::with_capacity(submissions.len());
        for submission in submissions {
            jobs.push(self.prepare(submission).await?);
        }
        let mut all = Vec::with_capacity(jobs.len());
        while all.len() < jobs.len() {
            let (arguments, taken, classes) = Self::encode(&jobs[all.len()..])?;
            let chunk = &jobs[all.len()..all.len() + taken];
            // The ids are set: a call whose answer was lost can be made again.
            let mut failures = 0;
            let submitted = loop {
                let answer = match self.store.call("submit", arguments.clone()).await {
                    Err(BrokerError::Unavailable { .. }) if failures < SUBMIT_TRIES => {
                        failures += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    answer => answer?,
                };
                if let Some(submitted) = self.submitted(answer, &classes, all.len()).await? {
                    break submitted;
                }
            };
            for (job, submitted) in chunk.iter().zip(&submitted) {
                if !submitted.duplicate {
                    let service = label("machinist_jobs_submitted_total", job.submission.service.as_str());
                    counter!("machinist_jobs_submitted_total", "service" => service).increment(1);
                } else if submitted.id != job.id {
                    self.drop_prepared(job).await;
                }
            }
            all.extend(submitted);
        }
        Ok(all)
    }

    async fn register(&self, registration: &Registration, capabilities: &Capabilities) -> Result<()> {
        {
            let mut workers = lock(&self.shared.workers);
            let known = workers.entry(registration.incarnation.clone()).or_insert_with(|| Known {
                registration: registration.clone(),
                wake: Arc::default(),
                capabilities: capabilities.clone(),
                idle: false,
                assigned: Assigned::default(),
            });
            known.capabilities = capabilities.clone();
        }
        self.add_worker(registration, capabilities).await
    }

    async fn deregister(&self, registration: &Registration) -> Result<()> {
        lock(&self.shared.workers).remove(&registration.incarnation);
        self.empty(&registration.incarnation, |_| Transition::released("its worker has left")).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Claim>> {
        let incarnation = &request.registration.incarnation;
        let not_registered = || BrokerError::NotRegistered(request.registration.worker.clone());
        let (was_idle, capabilities, account, latest) = {
            let mut workers = lock(&self.shared.workers);
            let known = workers.get_mut(incarnation).ok_or_else(not_registered)?;
            if let Some(claim) = known.assigned.take() {
                known.idle = false;
                return Ok(vec![claim]);
            }
            let capabilities = (!request.loaded.is_empty()).then(|| known.capabilities.clone());
            let was_idle = std::mem::replace(&mut known.idle, true) || known.assigned.is_unsaid();
            (was_idle, capabilities, known.capabilities.account.clone(), known.assigned.latest())
        };
        let limit = request.limit.clamp(1, 1_000).to_string();
        let was_idle = if was_idle { "1" } else { "0" }.to_owned();
        let mut arguments = vec![incarnation.clone(), limit, was_idle, latest.to_string()];
        if let Some(capabilities) = capabilities {
            arguments.extend(self.warm_classes(&request.loaded, &capabilities).await?);
        }
        let mut claims = Vec::new();
        loop {
            let mut parts = self.store.call("claim", arguments.clone()).await?.list()?.into_iter();
            let mut part = || parts.next().unwrap_or(Reply::Nil);
            if part().text()? != "OK" {
                return Err(not_registered());
            }
            let (now, due, then) = (codec::time(&part().text()?)?, part().text()?, part().number::<u8>()?);
            self.shared.due.told(now, &due);
            let mut fence = part().number::<u64>()?;
            let (jobs, also) = (part().list()?, part().texts()?);
            let says = |what: &str| also.first().is_some_and(|said| said == what);
            let trial = says("trial");
            let begun = lock(&self.shared.workers).get_mut(incarnation).is_some_and(|known| {
                known.assigned.said(latest);
                says("assigned") && !known.assigned.answered(fence + 1)
            });
            if begun {
                continue;
            }
            if let ([said, until, why], Some(account)) = (also.as_slice(), &account)
                && said == "held"
            {
                return Err(BrokerError::Held {
                    account: account.clone(),
                    until: codec::time(until).ok(),
                    why: why.clone(),
                });
            }
            let mut parts = jobs.into_iter();
            let mut taken = Vec::with_capacity(parts.len() / 3);
            while let (Some(id), Some(raw), Some(changes)) = (parts.next(), parts.next(), parts.next()) {
                taken.push((id.text()?, raw.text()?, changes));
            }
            // Where that fails, the rest is given back as jobs whose claim had no answer.
            if let Err(cause) = self.read_left_out(&mut taken).await {
                tracing::warn!("jobs that were claimed cannot be read: {cause}");
                taken.retain(|(_, raw, _)| raw != LEFT_OUT);
            }
            for (id, raw, changes) in taken {
                fence += 1;
                match claimed(&id, fence, &raw, changes, &request.registration, now) {
                    Ok(claim) => claims.push(Claim { trial, ..claim }),
                    Err(cause) => {
                        // Nobody could run it: out of the way, with the reason.
                        let failure = json!(Failure::new(FailureClass::Fatal, cause.to_string())).to_string();
                        let data = json!({ "failure": { "class": "fatal", "message": cause.to_string() } });
                        let arguments =
                            [&id, &fence.to_string(), "f", "", "0", "failed", &data.to_string(), "fail", &failure];
                        self.store.call("move", arguments.map(str::to_owned).to_vec()).await?;
                    }
                }
            }
            if then != CLAIM_AGAIN || !claims.is_empty() {
                if let Some(known) = lock(&self.shared.workers).get_mut(incarnation) {
                    known.idle = then == CLAIM_IDLE;
                }
                return Ok(claims);
            }
        }
    }

    async fn rest(&self, registration: &Registration) -> Result<()> {
        let incarnation = &registration.incarnation;
        let (waiting, latest) = {
            let mut workers = lock(&self.shared.workers);
            let Some(known) = workers.get_mut(incarnation) else { return Ok(()) };
            let waiting = known.assigned.take();
            if waiting.is_none() && !known.idle && !known.assigned.is_unsaid() {
                return Ok(());
            }
            (waiting.map(|claim| claim.token), known.assigned.latest())
        };
        let missed = self.store.call("rest", vec![incarnation.clone(), latest.to_string()]).await?.texts()?;
        let mut unwanted: Vec<Token> = waiting.into_iter().collect();
        if let Some(known) = lock(&self.shared.workers).get_mut(incarnation) {
            known.idle = false;
            known.assigned.said(latest);
            if let [id, fence] = missed.as_slice()
                && let (Ok(job), Ok(claim)) = (JobId::new(id), fence.parse())
                && known.assigned.answered(claim)
            {
                unwanted.push(Token { job, claim });
            }
        }
        for token in unwanted {
            match self.release(&token, "its worker was not ready for it").await {
                Ok(()) | Err(BrokerError::StaleToken(_) | BrokerError::UnknownJob(_)) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn is_idle(&self, registration: &Registration) -> bool {
        lock(&self.shared.workers).get(&registration.incarnation).is_some_and(|known| known.idle)
    }

    async fn wait(&self, registration: &Registration, timeout: Duration) {
        let wake = lock(&self.shared.workers).get(&registration.incarnation).map(|known| Arc::clone(&known.wake));
        if let Some(wake) = wake {
            let _ = tokio::time::timeout(timeout, wake.notified()).await;
        }
    }

    async fn heartbeat(
        &self,
        registration: &Registration,
        held: &[Token],
        loaded: &BTreeSet<String>,
    ) -> Result<HeartbeatReply> {
        let (known, reply, extra) = self.beats.ask((registration.clone(), held.to_vec(), loaded.clone())).await?;
        if !known {
            return Err(BrokerError::NotRegistered(registration.worker.clone()));
        }
        for token in extra {
            if let Some(known) = lock(&self.shared.workers).get_mut(&registration.incarnation) {
                known.assigned.lost(&token);
            }
            let _ = self.release(&token, "the answer to its claim was lost").await;
        }
        Ok(reply)
    }

    fn cancellations(&self) -> broadcast::Receiver<JobId> {
        self.cancellations.subscribe()
    }

    fn reconnections(&self) -> watch::Receiver<u64> {
        self.shared.reconnections.subscribe()
    }

    async fn progress(&self, token: &Token, progress: Progress) -> Result<()> {
        let data = json!({ "fraction": progress.fraction, "message": progress.message }).to_string();
        let latest = serde_json::to_string(&progress).map_err(|cause| BrokerError::damaged(&cause))?;
        self.report(token, "progress", data, vec!["pr".to_owned(), latest]).await
    }

    async fn log(&self, token: &Token, line: String) -> Result<()> {
        self.report(token, "log", json!({ "line": line }).to_string(), Vec::new()).await
    }

    async fn partial(&self, token: &Token, value: Value) -> Result<()> {
        self.report(token, "partial", value.to_string(), Vec::new()).await
    }

    async fn usage(&self, token: &Token, used: Usage, total: Usage) -> Result<()> {
        let text = |usage: &Usage| serde_json::to_string(usage).map_err(|cause| BrokerError::damaged(&cause));
        self.report(token, "usage", text(&used)?, vec!["us".to_owned(), text(&total)?]).await
    }

    async fn save(&self, token: &Token, value: Value) -> Result<()> {
        self.report(token, "", String::new(), vec!["sv".to_owned(), value.to_string()]).await
    }

    async fn complete(&self, token: &Token, result: Value) -> Result<()> {
        let result = self.place_result(&token.job, result.to_string()).await?;
        match self.completions.ask((token.clone(), result)).await?.as_str() {
            "OK" => Ok(()),
            "UNKNOWN" => Err(BrokerError::UnknownJob(token.job.clone())),
            _ => Err(BrokerError::StaleToken(token.clone())),
        }
    }

    async fn fail(&self, token: &Token, failure: Failure) -> Result<JobState> {
        let chance = rand::random();
        let patience = self.config.lease;
        self.end(token, |stored, now| {
            Transition::failed(&stored.job, &failure, stored.cancelled, patience, chance, now)
        })
        .await
    }

    async fn release(&self, token: &Token, why: &str) -> Result<()> {
        self.end(token, |_, _| Transition::released(why)).await.map(drop)
    }

    async fn cancel(&self, id: &JobId) -> Result<JobState> {
        for _ in 0..TRIES {
            let letter = self.store.call("cancel", vec![id.to_string()]).await?.text()?;
            if letter == "UNKNOWN" {
                return Err(BrokerError::UnknownJob(id.clone()));
            }
            match codec::state(&letter)? {
                state @ (JobState::Running | JobState::Cancelled) => return Ok(state),
                state if state.is_final() => {
                    let why = "only a job that is not over can be cancelled";
                    return Err(BrokerError::WrongState { job: id.clone(), state, why });
                }
                _ => {
                    let arguments = [id.as_str(), &letter, "x", "", "0", "cancelled", "null"];
                    let class =
                        Class::of(&Submission::new(Name::new("any").expect("UNWRAP: a valid name"), Value::Null));
                    if let Some(state) = self.shift(arguments.map(str::to_owned).to_vec(), &class).await? {
                        return Ok(state);
                    }
                }
            }
        }
        Err(BrokerError::Unavailable { why: format!("job {id} keeps moving") })
    }

    async fn retry(&self, id: &JobId) -> Result<JobState> {
        let (_, stored, _) = self.one(id).await?;
        let state = stored.job.state;
        let wrong = |state| BrokerError::WrongState {
            job: id.clone(),
            state,
            why: "only a failed or cancelled job can be tried again",
        };
        if !matches!(state, JobState::Failed | JobState::Cancelled) {
            return Err(wrong(state));
        }
        let class = Class::of(&stored.job.submission);
        let data = json!({ "by": "request" }).to_string();
        let mut arguments: Vec<String> =
            [id.as_str(), codec::letter(state), "p", &class.id().0, "0", "retried", &data].map(str::to_owned).to_vec();
        for (name, value) in [("at", "0"), ("lo", "0"), ("x", ""), ("fail", ""), ("av", ""), ("pr", ""), ("wh", "")] {
            arguments.extend([name.to_owned(), value.to_owned()]);
        }
        self.shift(arguments, &class).await?.ok_or_else(|| wrong(JobState::Pending))
    }

    async fn get(&self, id: &JobId) -> Result<Job> {
        Ok(self.one(id).await?.1.job)
    }

    async fn load(&self, job: Job) -> Result<Job> {
        self.loaded(job).await
    }

    async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>> {
        let limit = filter.limit.unwrap_or(100).clamp(1, 1_000) as usize;
        let mut skip = filter.offset.unwrap_or(0) as usize;
        let states: Vec<JobState> = filter.state.map_or_else(|| JobState::ALL.to_vec(), |state| vec![state]);
        let mut jobs: Vec<Job> = Vec::new();
        for state in states {
            let mut offset = 0;
            // A service is found by looking: so far and no further.
            while jobs.len() < limit && offset < 100_000 {
                let (page, read) = self.ids(state, offset, GET_CHUNK.max(limit)).await?;
                offset += read;
                let page = self.jobs(&page, false).await?;
                let service = filter.service.as_ref();
                for job in page.into_iter().filter(|job| service.is_none_or(|name| *name == job.submission.service)) {
                    if job.state != state {
                        continue;
                    }
                    if skip > 0 {
                        skip -= 1;
                    } else if jobs.len() < limit {
                        jobs.push(job);
                    }
                }
                if read < GET_CHUNK.max(limit) {
                    break;
                }
            }
        }
        Ok(jobs)
    }

    async fn scan(&self, cursor: Option<String>) -> Result<(Vec<Job>, Option<String>)> {
        let (ids, next) = self.store.job_ids(cursor).await?;
        Ok((self.jobs(&codec::ids(&ids), true).await?, next))
    }

    async fn events(&self, id: &JobId, after: u64) -> Result<Vec<JobEvent>> {
        // No job has more events than a double counts.
        let from = after.min(1 << 53);
        let reply = self.store.call("events", vec![id.to_string(), from.to_string()]).await?;
        codec::events(id, reply, after)
    }

    async fn wait_events(&self, id: &JobId, after: u64, timeout: Duration) {
        let timeout = timeout.min(LONGEST_WATCH);
        let watched = self.store.call("watch", vec![id.to_string(), (timeout.as_millis() + 1_000).to_string()]);
        if watched.await.is_err() {
            return tokio::time::sleep(timeout.min(Duration::from_secs(1))).await;
        }
        let Ok(watch) = self.watch(id).await else { return };
        let until_some = async {
            loop {
                let news = watch.notify.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                match self.events(id, after).await {
                    Ok(found) if found.is_empty() => {}
                    _ => return,
                }
                news.await;
            }
        };
        let _ = tokio::time::timeout(timeout, until_some).await;
    }

    async fn stats(&self) -> Result<QueueStats> {
        let stats = codec::stats(self.store.call("stats", Vec::new()).await?)?;
        show(&stats);
        Ok(stats)
    }

    async fn explain(&self, id: &JobId) -> Result<Explanation> {
        self.explain_job(id).await
    }

    async fn backlog(&self) -> Result<Arc<Backlog>> {
        self.recent_backlog().await
    }

    async fn explain_worker(&self, worker: &str) -> Result<Option<WorkerExplanation>> {
        self.explain_who(worker).await
    }

    async fn classes(&self, offset: usize, count: usize) -> Result<Vec<ClassStatus>> {
        let ids = self.class_ids().await?;
        let page: Vec<String> = ids.into_iter().skip(offset).take(count).collect();
        self.classes_of(&page).await
    }

    async fn workers(&self) -> Result<BTreeMap<String, Capabilities>> {
        self.fresh_workers().await?;
        Ok(self.roster().workers.clone())
    }

    async fn announce(&self, word: &Word) -> Result<()> {
        self.say(word).await
    }

    async fn machines(&self) -> Result<Vec<KnownMachine>> {
        self.known_machines().await
    }

    async fn set_limit(&self, scope: &Scope, limit: Limit) -> Result<()> {
        let rate = limit.per_second.filter(|rate| rate.is_finite() && *rate > 0.0);
        let text = if limit == Limit::default() {
            String::new()
        } else {
            let burst = limit.burst.map_or_else(|| rate.map_or(1.0, f64::ceil), f64::from).max(1.0);
            let max = limit.max_running.map_or("-".to_owned(), |max| max.to_string());
            let rate = rate.map_or("-".to_owned(), |rate| rate.to_string());
            format!("{max} {rate} {burst} {}", u8::from(limit.paused))
        };
        self.store.call("limit", vec![scope.to_string(), text]).await.map(drop)
    }

    async fn limits(&self) -> Result<Vec<(Scope, Limit, u64)>> {
        let mut parts = self.store.call("limits", Vec::new()).await?.list()?.into_iter();
        let limits = parts.next().unwrap_or(Reply::Nil).pairs()?;
        let running: HashMap<String, String> = parts.next().unwrap_or(Reply::Nil).pairs()?.into_iter().collect();
        let mut all = Vec::new();
        for (scope, text) in limits {
            let limit = codec::limit(&text);
            let count = running.get(&scope).and_then(|count| count.parse().ok()).unwrap_or(0);
            let scope: Scope = scope.parse().map_err(|why: String| BrokerError::damaged(&why))?;
            all.push((scope, limit, count));
        }
        all.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(all)
    }

    async fn hold(&self, request: &HoldRequest) -> Result<(Timestamp, bool)> {
        // What holds all must end, whatever a backend says; and a line of it is enough.
        let pause = request.pause.clamp(Duration::from_millis(1), LONGEST_HOLD);
        let why: String = request.why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        let arguments = vec![
            request.account.to_string(),
            pause.as_millis().to_string(),
            request.longest.unwrap_or(pause).as_millis().to_string(),
            u8::from(request.longest.is_some()).to_string(),
            request.token.job.to_string(),
            request.token.claim.to_string(),
            why,
        ];
        let [until, news] = <[String; 2]>::try_from(self.store.call("hold", arguments).await?.texts()?)
            .map_err(|_| BrokerError::damaged(&"what a hold is answered with is no pair"))?;
        Ok((codec::time(&until)?, news == "1"))
    }

    async fn lift(&self, account: &Name) -> Result<bool> {
        Ok(self.store.call("lift", vec![account.to_string()]).await?.number::<u8>()? == 1)
    }

    async fn accounts(&self) -> Result<Vec<AccountStatus>> {
        let mut parts = self.store.call("accounts", Vec::new()).await?.list()?.into_iter();
        let now = codec::time(&parts.next().unwrap_or(Reply::Nil).text()?)?;
        let mut all = Vec::new();
        for entry in parts.next().unwrap_or(Reply::Nil).list()? {
            all.push(codec::account(entry.texts()?, now)?);
        }
        all.sort_by(|one, other| one.account.cmp(&other.account));
        Ok(all)
    }

    async fn put_schedule(&self, schedule: JobSchedule) -> Result<Timestamp> {
        self.store_schedule(schedule).await
    }

    async fn drop_schedule(&self, name: &Name) -> Result<bool> {
        let arguments = vec![name.to_string(), String::new(), String::new(), String::new()];
        Ok(self.store.call("schedule", arguments).await?.number::<u8>()? == 1)
    }

    async fn schedules(&self) -> Result<Vec<JobSchedule>> {
        self.read_schedules().await
    }

    async fn drop_job(&self, id: &JobId) -> Result<()> {
        let drop = || self.store.call("drop", vec![id.to_string()]);
        let mut answer = drop().await?.text()?;
        for _ in 0..TRIES {
            if answer != "WAITED" {
                break;
            }
            self.settle().await?;
            answer = drop().await?.text()?;
        }
        match answer.as_str() {
            "OK" => Ok(()),
            "WAITED" => Err(BrokerError::Unavailable { why: format!("others wait for job {id} and are not told yet") }),
            "UNKNOWN" => Err(BrokerError::UnknownJob(id.clone())),
            letter => Err(BrokerError::WrongState {
                job: id.clone(),
                state: codec::state(letter)?,
                why: "only a job that is over can be dropped; cancel it first",
            }),
        }
    }

    async fn verify(&self, repair: bool) -> Result<Vec<String>> {
        self.audit(repair).await
    }

    async fn reap(&self) -> Result<Round> {
        self.keep().await
    }

    async fn reap_wanted(&self, timeout: Duration) {
        let _ = tokio::time::timeout(timeout, self.shared.keep.notified()).await;
    }
}

fn claimed(id: &str, fence: u64, raw: &str, changes: Reply, who: &Registration, now: Timestamp) -> Result<Claim> {
    let run = format!("{fence} {} {} {}", now.as_millis(), who.incarnation, who.worker);
    // An empty text stands for no changes.
    let changes = if let Reply::Text(_) = changes { Reply::Nil } else { changes };
    let stored = codec::stored(id, raw, &run, "", changes)?;
    let job = Job { progress: None, ..stored.job };
    if job.history.is_empty() {
        let since = job.submission.not_before.map_or(job.submitted, |due| due.max(job.submitted));
        let service = label("machinist_job_wait_seconds", job.submission.service.as_str());
        histogram!("machinist_job_wait_seconds", "service" => service).record(now.since(since).as_secs_f64());
    }
    Ok(Claim { token: Token { job: job.id.clone(), claim: job.claims }, job, trial: false })
}

fn show(stats: &QueueStats) {
    let counts = [
        (JobState::Blocked, stats.blocked),
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
}
