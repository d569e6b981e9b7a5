use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::{counter, histogram};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::EmbeddedConfig;
use super::rows::{self, COLUMNS, millis, state_number, time};
use crate::base::Timestamp;
use crate::queue::matching::{Class, ClassId};
use crate::queue::validate::refuse;
use crate::queue::{
    Attempt, BrokerError, Claim, ClaimRequest, Failure, FailureClass, HeartbeatReply, Job, JobEvent, JobFilter, JobId,
    JobState, Progress, QueueStats, Registration, Submission, Submitted, Token,
};
use crate::spec::Capabilities;

type Result<T> = std::result::Result<T, BrokerError>;

/// How many jobs one call promotes, gives back or drops at most.
const BATCH: u32 = 500;
const MAX_HISTORY: usize = 20;
const MAX_EVENTS: i64 = 1_000;
const MAX_AVOID: usize = 16;
/// The holder stops an attempt at its time; the reaper does when the holder has not so long after.
const TIMEOUT_GRACE: Duration = Duration::from_secs(15);

/// The database with what is worth keeping in memory of it. All methods run inside a transaction of the owner's.
pub(super) struct Store {
    pub connection: Connection,
    config: EmbeddedConfig,
    classes: BTreeMap<ClassId, Class>,
    workers: BTreeMap<String, Worker>,
    next_seq: i64,
}

struct Worker {
    name: String,
    capabilities: Capabilities,
    matched: BTreeSet<ClassId>,
}

/// A worker that is not to get a job again, for ever or until a time.
#[derive(Debug, Serialize, Deserialize)]
struct Avoid {
    worker: String,
    until: Option<i64>,
}

impl Store {
    pub fn open(connection: Connection, config: EmbeddedConfig) -> rusqlite::Result<Self> {
        let mut store = Self { connection, config, classes: BTreeMap::new(), workers: BTreeMap::new(), next_seq: 1 };
        store.load()?;
        Ok(store)
    }

    /// Reads what is kept in memory again, after a transaction that was not committed.
    pub fn load(&mut self) -> rusqlite::Result<()> {
        self.next_seq = self.connection.query_row("SELECT ifnull(max(seq), 0) + 1 FROM jobs", [], |row| row.get(0))?;
        let mut classes = BTreeMap::new();
        let mut statement = self.connection.prepare("SELECT id, definition FROM classes")?;
        for row in statement.query_map([], |row| Ok((row.get::<_, String>(0)?, rows::json::<Class>(row, 1)?)))? {
            let (id, class) = row?;
            classes.insert(ClassId(id), class);
        }
        drop(statement);
        self.classes = classes;
        let mut workers = BTreeMap::new();
        let mut statement = self.connection.prepare("SELECT incarnation, worker, capabilities FROM workers")?;
        let read = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, rows::json::<Capabilities>(row, 2)?))
        })?;
        for row in read {
            let (incarnation, name, capabilities) = row?;
            let matched = self.matched(&capabilities);
            workers.insert(incarnation, Worker { name, capabilities, matched });
        }
        drop(statement);
        self.workers = workers;
        Ok(())
    }

    fn matched(&self, capabilities: &Capabilities) -> BTreeSet<ClassId> {
        let matching = self.classes.iter().filter(|(_, class)| class.matches(capabilities).is_ok());
        matching.map(|(id, _)| id.clone()).collect()
    }

    pub fn submit(&mut self, submissions: Vec<Submission>, now: Timestamp) -> Result<Vec<Submitted>> {
        for (index, submission) in submissions.iter().enumerate() {
            if let Some(why) = refuse(submission) {
                return Err(BrokerError::Refused { index, why });
            }
        }
        submissions.into_iter().map(|submission| self.submit_one(submission, now)).collect()
    }

    fn submit_one(&mut self, mut submission: Submission, now: Timestamp) -> Result<Submitted> {
        let given = submission.id.take();
        let known = self
            .connection
            .prepare_cached("SELECT id, state FROM jobs WHERE id = ?1 OR idempotency_key = ?2")?
            .query_row(params![given.as_ref().map(JobId::as_str), submission.idempotency_key], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        if let Some((id, state)) = known {
            let id = JobId::new(&id).map_err(|cause| damaged(&cause))?;
            let state = rows::state_of(state).ok_or_else(|| damaged(&"an unknown state"))?;
            return Ok(Submitted { id, state, duplicate: true });
        }
        let id = given.unwrap_or_else(JobId::random);
        let class = Class {
            service: submission.service.clone(),
            requirement: submission.requirement.clone(),
            customer: submission.customer.clone(),
        };
        let class = self.remember_class(class)?;
        let due = submission.not_before.filter(|due| *due > now);
        let state = if due.is_some() { JobState::Delayed } else { JobState::Pending };
        let seq = self.next_seq;
        self.next_seq += 1;
        let score = (i64::from(500 - submission.priority.get()) << 43) | seq;
        self.connection
            .prepare_cached(
                "INSERT INTO jobs (id, state, class, score, seq, service, idempotency_key, submission, submitted, due)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                id.as_str(),
                state_number(state),
                class.0,
                score,
                seq,
                submission.service.as_str(),
                submission.idempotency_key,
                to_text(&submission),
                millis(now),
                due.map(millis),
            ])?;
        self.event(&id, "submitted", &json!({ "service": submission.service }), now)?;
        counter!("machinist_jobs_submitted_total", "service" => submission.service.to_string()).increment(1);
        Ok(Submitted { id, state, duplicate: false })
    }

    fn remember_class(&mut self, class: Class) -> Result<ClassId> {
        let id = class.id();
        if !self.classes.contains_key(&id) {
            self.connection
                .prepare_cached("INSERT OR IGNORE INTO classes VALUES (?1, ?2)")?
                .execute(params![id.0, to_text(&class)])?;
            for worker in self.workers.values_mut() {
                if class.matches(&worker.capabilities).is_ok() {
                    worker.matched.insert(id.clone());
                }
            }
            self.classes.insert(id.clone(), class);
        }
        Ok(id)
    }

    pub fn register(&mut self, who: &Registration, capabilities: &Capabilities, now: Timestamp) -> Result<()> {
        let former: Vec<String> = self
            .workers
            .iter()
            .filter(|(incarnation, worker)| worker.name == who.worker && **incarnation != who.incarnation)
            .map(|(incarnation, _)| incarnation.clone())
            .collect();
        for incarnation in former {
            self.end_incarnation(&incarnation, now)?;
        }
        self.connection.prepare_cached("INSERT OR REPLACE INTO workers VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            who.incarnation,
            who.worker,
            self.lease_end(now),
            to_text(capabilities)
        ])?;
        let matched = self.matched(capabilities);
        let worker = Worker { name: who.worker.clone(), capabilities: capabilities.clone(), matched };
        self.workers.insert(who.incarnation.clone(), worker);
        Ok(())
    }

    pub fn deregister(&mut self, who: &Registration, now: Timestamp) -> Result<()> {
        for job in self.held_by(&who.incarnation)? {
            self.give_back(&job, "released", "its worker has left", now)?;
        }
        self.forget_worker(&who.incarnation)
    }

    fn forget_worker(&mut self, incarnation: &str) -> Result<()> {
        self.connection.prepare_cached("DELETE FROM workers WHERE incarnation = ?1")?.execute([incarnation])?;
        self.workers.remove(incarnation);
        Ok(())
    }

    fn lease_end(&self, now: Timestamp) -> i64 {
        millis(now.plus(self.config.lease))
    }

    /// Its jobs were lost with it.
    fn end_incarnation(&mut self, incarnation: &str, now: Timestamp) -> Result<()> {
        for job in self.held_by(incarnation)? {
            self.lose(&job, now)?;
        }
        self.forget_worker(incarnation)
    }

    fn held_by(&self, incarnation: &str) -> Result<Vec<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE state = 2 AND incarnation = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let jobs = statement.query_map([incarnation], |row| rows::job(row, true))?.collect::<rusqlite::Result<_>>();
        Ok(jobs?)
    }

    pub fn claim(&mut self, request: &ClaimRequest, now: Timestamp) -> Result<Vec<Claim>> {
        self.promote(now)?;
        let incarnation = &request.registration.incarnation;
        let Some(worker) = self.workers.get(incarnation) else {
            return Err(BrokerError::NotRegistered(request.registration.worker.clone()));
        };
        let limit = request.limit.clamp(1, 1_000) as usize;
        let mut best: BTreeMap<i64, String> = BTreeMap::new();
        {
            let mut heads = self.connection.prepare_cached(
                "SELECT score, id, avoid FROM jobs WHERE state = 1 AND class = ?1 AND score < ?2 ORDER BY score",
            )?;
            for class in &worker.matched {
                let worst = if best.len() < limit { i64::MAX } else { *best.last_key_value().map_or(&0, |(s, _)| s) };
                let mut rows = heads.query(params![class.0, worst])?;
                let mut taken = 0;
                while let Some(row) = rows.next()? {
                    let avoid: String = row.get(2)?;
                    if avoids(&avoid, &worker.name, now) {
                        continue;
                    }
                    best.insert(row.get(0)?, row.get(1)?);
                    taken += 1;
                    if taken == limit {
                        break;
                    }
                }
                while best.len() > limit {
                    best.pop_last();
                }
            }
        }
        let name = worker.name.clone();
        best.into_values().map(|id| self.claim_one(&id, &name, incarnation, now)).collect()
    }

    fn claim_one(&mut self, id: &str, worker: &str, incarnation: &str, now: Timestamp) -> Result<Claim> {
        let mut job = self.job_by_text(id)?;
        let deadline = now.plus(job.submission.timeout.get());
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 2, claims = claims + 1, claimed = ?2, deadline = ?3, worker = ?4,
                 incarnation = ?5, progress = NULL, failure = NULL WHERE id = ?1",
            )?
            .execute(params![id, millis(now), millis(deadline), worker, incarnation])?;
        if job.claims == 0 {
            let since = job.submission.not_before.map_or(job.submitted, |due| due.max(job.submitted));
            let service = job.submission.service.to_string();
            histogram!("machinist_job_wait_seconds", "service" => service).record(now.since(since).as_secs_f64());
        }
        job.state = JobState::Running;
        job.claims += 1;
        job.claimed = Some(now);
        job.worker = Some(worker.to_owned());
        job.progress = None;
        job.failure = None;
        self.event(&job.id, "claimed", &json!({ "worker": worker, "claim": job.claims }), now)?;
        Ok(Claim { token: Token { job: job.id.clone(), claim: job.claims }, job })
    }

    pub fn heartbeat(&mut self, who: &Registration, held: &[Token], now: Timestamp) -> Result<HeartbeatReply> {
        let renewed = self
            .connection
            .prepare_cached("UPDATE workers SET lease = ?2 WHERE incarnation = ?1")?
            .execute(params![who.incarnation, self.lease_end(now)])?;
        if renewed == 0 {
            return Err(BrokerError::NotRegistered(who.worker.clone()));
        }
        let mut reply = HeartbeatReply::default();
        let mut statement =
            self.connection.prepare_cached("SELECT cancelled FROM jobs WHERE id = ?1 AND state = 2 AND claims = ?2")?;
        for token in held {
            let row =
                statement.query_row(params![token.job.as_str(), claim_number(token)], |row| row.get::<_, bool>(0));
            match row.optional()? {
                None => reply.lost.push(token.job.clone()),
                Some(true) => reply.cancelled.push(token.job.clone()),
                Some(false) => {}
            }
        }
        Ok(reply)
    }

    /// The running job that the token holds.
    fn held(&self, token: &Token) -> Result<Job> {
        let job = self.job_by_text(token.job.as_str())?;
        if job.state == JobState::Running && job.claims == token.claim {
            Ok(job)
        } else {
            Err(BrokerError::StaleToken(token.clone()))
        }
    }

    pub fn progress(&mut self, token: &Token, progress: &Progress, now: Timestamp) -> Result<()> {
        let changed = self
            .connection
            .prepare_cached("UPDATE jobs SET progress = ?3 WHERE id = ?1 AND state = 2 AND claims = ?2")?
            .execute(params![token.job.as_str(), claim_number(token), to_text(progress)])?;
        self.fence(changed, token)?;
        self.event(&token.job, "progress", &json!({ "fraction": progress.fraction, "message": progress.message }), now)
    }

    pub fn log(&mut self, token: &Token, line: &str, now: Timestamp) -> Result<()> {
        self.held(token)?;
        self.event(&token.job, "log", &json!({ "line": line }), now)
    }

    pub fn save(&mut self, token: &Token, value: &Value) -> Result<()> {
        let changed = self
            .connection
            .prepare_cached("UPDATE jobs SET saved = ?3 WHERE id = ?1 AND state = 2 AND claims = ?2")?
            .execute(params![token.job.as_str(), claim_number(token), value.to_string()])?;
        self.fence(changed, token)
    }

    fn fence(&self, changed: usize, token: &Token) -> Result<()> {
        if changed == 0 {
            self.held(token)?;
        }
        Ok(())
    }

    pub fn complete(&mut self, token: &Token, result: &Value, now: Timestamp) -> Result<()> {
        let job = match self.held(token) {
            Ok(job) => job,
            Err(stale) => {
                // The answer to an earlier call may have been lost on the way.
                let job = self.job_by_text(token.job.as_str())?;
                let again = job.state == JobState::Completed && job.claims == token.claim;
                return if again { Ok(()) } else { Err(stale) };
            }
        };
        let history = history_with(&job, "completed", None, now);
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 3, finished = ?2, result = ?3, history = ?4, attempts = attempts + 1,
                 incarnation = NULL, deadline = NULL WHERE id = ?1",
            )?
            .execute(params![token.job.as_str(), millis(now), result.to_string(), to_text(&history)])?;
        self.event(&token.job, "completed", &Value::Null, now)?;
        count_finished(&job, "completed");
        Ok(())
    }

    pub fn fail(&mut self, token: &Token, failure: &Failure, now: Timestamp) -> Result<JobState> {
        let job = self.held(token)?;
        let cancelled: bool = self
            .connection
            .prepare_cached("SELECT cancelled FROM jobs WHERE id = ?1")?
            .query_row([job.id.as_str()], |row| row.get(0))?;
        match failure.class {
            FailureClass::Cancelled if cancelled => self.finish(&job, JobState::Cancelled, failure, 0, now),
            // Nobody cancelled the job itself: its worker was told to stop.
            FailureClass::Cancelled => {
                self.give_back(&job, "released", &failure.message, now)?;
                Ok(JobState::Pending)
            }
            FailureClass::Fatal => self.finish(&job, JobState::Failed, failure, 1, now),
            FailureClass::WrongMachine => {
                let worker = job.worker.clone().unwrap_or_default();
                self.avoid(&job, Avoid { worker, until: None }, now)?;
                self.give_back_failed(&job, failure, now)?;
                Ok(JobState::Pending)
            }
            FailureClass::Account => {
                self.give_back_failed(&job, failure, now)?;
                Ok(JobState::Pending)
            }
            FailureClass::Retryable | FailureClass::Timeout => self.retry_later(&job, failure, now),
        }
    }

    fn retry_later(&mut self, job: &Job, failure: &Failure, now: Timestamp) -> Result<JobState> {
        let attempts = job.attempts + 1;
        if attempts >= job.submission.retry.max_attempts {
            return self.finish(job, JobState::Failed, failure, 1, now);
        }
        let backoff = job.submission.retry.backoff.random_delay(attempts);
        let delay = failure.retry_after.map_or(backoff, |least| backoff.max(least.get()));
        let due = now.plus(delay);
        if let Some(worker) = job.worker.clone().filter(|worker| self.another_worker_matches(job, worker)) {
            let until = Some(millis(due.plus(self.config.lease)));
            self.avoid(job, Avoid { worker, until }, now)?;
        }
        let history = history_with(job, "failed", Some(failure), now);
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 0, due = ?2, attempts = ?3, failure = ?4, history = ?5, incarnation = NULL,
                 deadline = NULL WHERE id = ?1",
            )?
            .execute(params![job.id.as_str(), millis(due), attempts, to_text(failure), to_text(&history)])?;
        let data = json!({ "failure": failure, "attempt": attempts, "due": due });
        self.event(&job.id, "retried", &data, now)?;
        counter!("machinist_jobs_retried_total", "service" => job.submission.service.to_string()).increment(1);
        Ok(JobState::Delayed)
    }

    fn another_worker_matches(&self, job: &Job, than: &str) -> bool {
        let class = Class {
            service: job.submission.service.clone(),
            requirement: job.submission.requirement.clone(),
            customer: job.submission.customer.clone(),
        };
        let id = class.id();
        self.workers.values().any(|worker| worker.name != than && worker.matched.contains(&id))
    }

    fn avoid(&mut self, job: &Job, entry: Avoid, now: Timestamp) -> Result<()> {
        let text: String = self
            .connection
            .prepare_cached("SELECT avoid FROM jobs WHERE id = ?1")?
            .query_row([job.id.as_str()], |row| row.get(0))?;
        let mut list: Vec<Avoid> = serde_json::from_str(&text).unwrap_or_default();
        list.retain(|old| old.worker != entry.worker && old.until.is_none_or(|until| until > millis(now)));
        list.push(entry);
        let excess = list.len().saturating_sub(MAX_AVOID);
        list.drain(..excess);
        self.connection
            .prepare_cached("UPDATE jobs SET avoid = ?2 WHERE id = ?1")?
            .execute(params![job.id.as_str(), to_text(&list)])?;
        Ok(())
    }

    fn finish(
        &mut self,
        job: &Job,
        state: JobState,
        failure: &Failure,
        charged: u32,
        now: Timestamp,
    ) -> Result<JobState> {
        let outcome = if state == JobState::Cancelled { "cancelled" } else { "failed" };
        let history = history_with(job, outcome, Some(failure), now);
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = ?2, finished = ?3, failure = ?4, history = ?5, attempts = attempts + ?6,
                 incarnation = NULL, deadline = NULL, due = NULL WHERE id = ?1",
            )?
            .execute(params![
                job.id.as_str(),
                state_number(state),
                millis(now),
                to_text(failure),
                to_text(&history),
                charged
            ])?;
        self.event(&job.id, outcome, &json!({ "failure": failure }), now)?;
        count_finished(job, outcome);
        Ok(state)
    }

    pub fn release(&mut self, token: &Token, why: &str, now: Timestamp) -> Result<()> {
        let job = self.held(token)?;
        self.give_back(&job, "released", why, now)
    }

    /// Back to its old place; a job whose cancellation was asked for ends here.
    fn give_back(&mut self, job: &Job, outcome: &str, why: &str, now: Timestamp) -> Result<()> {
        let history = history_with(job, outcome, None, now);
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 1, history = ?2, incarnation = NULL, deadline = NULL, due = NULL WHERE id = ?1",
            )?
            .execute(params![job.id.as_str(), to_text(&history)])?;
        self.event(&job.id, outcome, &json!({ "why": why }), now)?;
        self.end_if_cancelled(&job.id, now)
    }

    fn give_back_failed(&mut self, job: &Job, failure: &Failure, now: Timestamp) -> Result<()> {
        self.give_back(job, "released", &failure.message, now)?;
        self.connection
            .prepare_cached("UPDATE jobs SET failure = ?2 WHERE id = ?1")?
            .execute(params![job.id.as_str(), to_text(failure)])?;
        Ok(())
    }

    fn lose(&mut self, job: &Job, now: Timestamp) -> Result<()> {
        let losses = job.losses + 1;
        self.connection
            .prepare_cached("UPDATE jobs SET losses = ?2 WHERE id = ?1")?
            .execute(params![job.id.as_str(), losses])?;
        if losses > self.config.max_losses {
            let message = format!("quarantined: {losses} workers died while they ran it");
            let failure = Failure::new(FailureClass::Fatal, message);
            return self.finish(job, JobState::Failed, &failure, 0, now).map(drop);
        }
        self.give_back(job, "lost", "its worker died", now)
    }

    fn end_if_cancelled(&mut self, id: &JobId, now: Timestamp) -> Result<()> {
        let cancelled: bool = self
            .connection
            .prepare_cached("SELECT cancelled FROM jobs WHERE id = ?1")?
            .query_row([id.as_str()], |row| row.get(0))?;
        if cancelled {
            let job = self.job_by_text(id.as_str())?;
            self.cancel_waiting(&job, now)?;
        }
        Ok(())
    }

    pub fn cancel(&mut self, id: &JobId, now: Timestamp) -> Result<JobState> {
        let job = self.get(id)?;
        match job.state {
            JobState::Delayed | JobState::Pending => self.cancel_waiting(&job, now),
            JobState::Running => {
                self.connection
                    .prepare_cached("UPDATE jobs SET cancelled = 1 WHERE id = ?1")?
                    .execute([id.as_str()])?;
                self.event(id, "cancelling", &Value::Null, now)?;
                Ok(JobState::Running)
            }
            JobState::Cancelled => Ok(JobState::Cancelled),
            state => Err(BrokerError::WrongState {
                job: id.clone(),
                state,
                why: "only a job that is not over can be cancelled",
            }),
        }
    }

    fn cancel_waiting(&mut self, job: &Job, now: Timestamp) -> Result<JobState> {
        self.connection
            .prepare_cached("UPDATE jobs SET state = 5, finished = ?2, due = NULL WHERE id = ?1")?
            .execute(params![job.id.as_str(), millis(now)])?;
        self.event(&job.id, "cancelled", &Value::Null, now)?;
        count_finished(job, "cancelled");
        Ok(JobState::Cancelled)
    }

    pub fn retry(&mut self, id: &JobId, now: Timestamp) -> Result<JobState> {
        let job = self.get(id)?;
        if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
            let why = "only a failed or cancelled job can be tried again";
            return Err(BrokerError::WrongState { job: id.clone(), state: job.state, why });
        }
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 1, attempts = 0, losses = 0, cancelled = 0, avoid = '[]', finished = NULL,
                 failure = NULL WHERE id = ?1",
            )?
            .execute([id.as_str()])?;
        self.event(id, "retried", &json!({ "by": "request" }), now)?;
        Ok(JobState::Pending)
    }

    pub fn get(&self, id: &JobId) -> Result<Job> {
        self.job_by_text(id.as_str())
    }

    fn job_by_text(&self, id: &str) -> Result<Job> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        let job = self.connection.prepare_cached(&sql)?.query_row([id], |row| rows::job(row, true)).optional()?;
        match job {
            Some(job) => Ok(job),
            None => Err(BrokerError::UnknownJob(JobId::new(id).map_err(|cause| damaged(&cause))?)),
        }
    }

    pub fn list(&self, filter: &JobFilter) -> Result<Vec<Job>> {
        let before: Option<i64> = match &filter.before {
            None => None,
            Some(id) => Some(
                self.connection
                    .query_row("SELECT seq FROM jobs WHERE id = ?1", [id.as_str()], |row| row.get(0))
                    .optional()?
                    .ok_or_else(|| BrokerError::UnknownJob(id.clone()))?,
            ),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR service = ?2)
             AND (?3 IS NULL OR seq < ?3) ORDER BY seq DESC LIMIT ?4"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let service = filter.service.as_ref().map(crate::base::Name::as_str);
        let limit = filter.limit.unwrap_or(100).clamp(1, 1_000);
        let rows = statement
            .query_map(params![filter.state.map(state_number), service, before, limit], |row| rows::job(row, false))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub fn events(&self, id: &JobId, after: u64) -> Result<Vec<JobEvent>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, at, kind, data FROM events WHERE job = ?1 AND seq > ?2 ORDER BY seq LIMIT 1000",
        )?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![id.as_str(), after], |row| {
            Ok(JobEvent {
                seq: row.get::<_, i64>(0)?.unsigned_abs(),
                at: time(row.get(1)?),
                kind: row.get(2)?,
                data: rows::json(row, 3)?,
            })
        })?;
        let events: Vec<JobEvent> = rows.collect::<rusqlite::Result<_>>()?;
        if events.is_empty() {
            self.get(id)?;
        }
        Ok(events)
    }

    /// Appends to the job's stream; beyond its bound the oldest entry that is no end goes.
    fn event(&self, id: &JobId, kind: &str, data: &Value, now: Timestamp) -> Result<()> {
        let (first, last): (Option<i64>, Option<i64>) = self
            .connection
            .prepare_cached("SELECT min(seq), max(seq) FROM events WHERE job = ?1")?
            .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let seq = last.unwrap_or(0) + 1;
        if let Some(first) = first.filter(|first| seq - first >= MAX_EVENTS) {
            self.connection
                .prepare_cached("DELETE FROM events WHERE job = ?1 AND seq = ?2")?
                .execute(params![id.as_str(), first])?;
        }
        self.connection.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            id.as_str(),
            seq,
            millis(now),
            kind,
            data.to_string()
        ])?;
        Ok(())
    }

    pub fn stats(&self) -> Result<QueueStats> {
        let mut stats = QueueStats::default();
        let mut statement = self.connection.prepare_cached("SELECT state, n FROM counts")?;
        for row in statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))? {
            let (state, n) = row?;
            let n = n.unsigned_abs();
            match rows::state_of(state) {
                Some(JobState::Delayed) => stats.delayed = n,
                Some(JobState::Pending) => stats.pending = n,
                Some(JobState::Running) => stats.running = n,
                Some(JobState::Completed) => stats.completed = n,
                Some(JobState::Failed) => stats.failed = n,
                Some(JobState::Cancelled) => stats.cancelled = n,
                None => {}
            }
        }
        let oldest: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(submitted) FROM jobs WHERE state = 1")?
            .query_row([], |row| row.get(0))?;
        stats.oldest_pending = oldest.map(time);
        Ok(stats)
    }

    /// When the next delayed job is due.
    pub fn next_due(&self) -> rusqlite::Result<Option<Timestamp>> {
        let due: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(due) FROM jobs WHERE state = 0")?
            .query_row([], |row| row.get(0))?;
        Ok(due.map(time))
    }

    fn promote(&mut self, now: Timestamp) -> Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE jobs SET state = 1, due = NULL WHERE id IN
                 (SELECT id FROM jobs WHERE state = 0 AND due <= ?1 ORDER BY due LIMIT ?2)",
            )?
            .execute(params![millis(now), BATCH])?;
        Ok(())
    }

    pub fn reap(&mut self, now: Timestamp) -> Result<()> {
        self.promote(now)?;
        let mut statement = self.connection.prepare_cached("SELECT incarnation FROM workers WHERE lease < ?1")?;
        let expired: Vec<String> =
            statement.query_map([millis(now)], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        for incarnation in expired {
            self.end_incarnation(&incarnation, now)?;
        }
        // Held by nobody who is known: the worker's entry went with an older file or a repair.
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE state = 2 AND (deadline < ?1 OR incarnation NOT IN
             (SELECT incarnation FROM workers)) LIMIT {BATCH}"
        );
        let late = i64::try_from(TIMEOUT_GRACE.as_millis()).unwrap_or(0);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let jobs: Vec<Job> = statement
            .query_map([millis(now).saturating_sub(late)], |row| rows::job(row, true))?
            .collect::<rusqlite::Result<_>>()?;
        drop(statement);
        for job in jobs {
            let timed_out =
                job.claimed.is_some_and(|at| now >= at.plus(job.submission.timeout.get()).plus(TIMEOUT_GRACE));
            if timed_out {
                let message = format!("it ran longer than {} and was not stopped", job.submission.timeout);
                self.retry_later(&job, &Failure::new(FailureClass::Timeout, message), now)?;
                self.end_if_cancelled(&job.id, now)?;
            } else {
                self.lose(&job, now)?;
            }
        }
        self.drop_old(now)
    }

    fn drop_old(&mut self, now: Timestamp) -> Result<()> {
        let before = |kept: Duration| millis(now).saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        self.connection
            .prepare_cached(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state > 2 AND finished <
                 CASE state WHEN 4 THEN ?1 ELSE ?2 END ORDER BY finished LIMIT ?3)",
            )?
            .execute(params![before(self.config.keep_failed), before(self.config.keep_finished), BATCH])?;
        let finished: i64 =
            self.connection.query_row("SELECT sum(n) FROM counts WHERE state > 2", [], |row| row.get(0))?;
        let excess = finished - i64::from(self.config.max_finished);
        if excess > 0 {
            self.connection
                .prepare_cached(
                    "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state > 2 ORDER BY finished LIMIT ?1)",
                )?
                .execute([excess.min(i64::from(BATCH))])?;
        }
        Ok(())
    }
}

fn avoids(list: &str, worker: &str, now: Timestamp) -> bool {
    if list == "[]" {
        return false;
    }
    let list: Vec<Avoid> = serde_json::from_str(list).unwrap_or_default();
    list.iter().any(|avoid| avoid.worker == worker && avoid.until.is_none_or(|until| until > millis(now)))
}

fn history_with(job: &Job, outcome: &str, failure: Option<&Failure>, now: Timestamp) -> Vec<Attempt> {
    let mut history = job.history.clone();
    history.push(Attempt {
        worker: job.worker.clone().unwrap_or_default(),
        started: job.claimed.unwrap_or(job.submitted),
        ended: now,
        outcome: outcome.to_owned(),
        failure: failure.cloned(),
    });
    let excess = history.len().saturating_sub(MAX_HISTORY);
    history.drain(..excess);
    history
}

fn count_finished(job: &Job, outcome: &'static str) {
    let service = job.submission.service.to_string();
    counter!("machinist_jobs_finished_total", "service" => service, "outcome" => outcome).increment(1);
}

fn claim_number(token: &Token) -> i64 {
    i64::try_from(token.claim).unwrap_or(i64::MAX)
}

fn to_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("UNWRAP: the queue's own types are plain data with text keys")
}

fn damaged(what: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unavailable { why: format!("the queue's file is damaged: {what}") }
}

impl From<rusqlite::Error> for BrokerError {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Unavailable { why: cause.to_string() }
    }
}
