use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use super::large::Prepared;
use super::{Client, Reply, codec, lock, show};
use crate::base::{Name, Schedule, Timestamp};
use crate::queue::lifecycle::Transition;
use crate::queue::matching::Class;
use crate::queue::validate::refuse;
use crate::queue::{
    BrokerError, Explanation, Failure, FailureClass, JobId, JobSchedule, JobState, Round, Submission, WorkerMatch,
};

type Result<T> = std::result::Result<T, BrokerError>;

/// Nobody looks later than this, whatever it was told.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const RETAIN_EVERY: Duration = Duration::from_secs(60);
/// Characters of a refused submission.
const MAX_REFUSED: usize = 10_000;
/// Workers that are named where a job waits for any.
const FEW: usize = 3;

impl Client {
    /// One round of what any process may do for all.
    pub(super) async fn keep(&self) -> Result<Round> {
        let known = lock(&self.shared.todo).take();
        let todo = match known {
            Some(todo) => todo,
            None => self.store.call("todo", Vec::new()).await?,
        };
        let mut parts = todo.list()?.into_iter();
        let mut part = || parts.next().unwrap_or(Reply::Nil);
        let (now, due, lease) = (codec::time(&part().text()?)?, part().text()?, part().text()?);
        self.shared.due.told(now, &due);
        let (expired, overdue) = (part().texts()?, part().texts()?);
        let (unsettled, outbox, schedule, inbox, garbage) =
            (part().number::<u64>()?, part().number::<u8>()?, part().text()?, part().number()?, part().number()?);
        let (inbox, garbage): (u64, u64) = (inbox, garbage);
        let stats = codec::stats(part())?;
        show(&stats);

        let mut more = expired.len() + overdue.len() > 60;
        for incarnation in &expired {
            self.end_incarnation(incarnation).await?;
        }
        self.end_overdue(&codec::ids(&overdue)).await?;
        if unsettled > 0 {
            more |= self.settle().await?;
        }
        if inbox > 0 {
            self.ingest().await?;
        }
        let mut next = (self.config.lease * 2 / 3).min(LONGEST_PAUSE);
        if !schedule.is_empty() {
            next = next.min(self.fire_schedules(codec::time(&schedule)?, now).await?);
        }
        // Whoever else is about to lose its lease.
        if !lease.is_empty() {
            next = next.min(codec::time(&lease)?.since(now) + Duration::from_millis(20));
        }
        let full = stats.completed + stats.failed + stats.cancelled > u64::from(self.config.max_finished);
        let retained = lock(&self.shared.retained).replace(Instant::now());
        if full || retained.is_none_or(|at| at.elapsed() >= RETAIN_EVERY) {
            self.retain().await?;
        } else {
            *lock(&self.shared.retained) = retained;
        }
        if garbage > 0 {
            self.collect().await?;
        }
        if outbox == 1 && self.config.webhooks.is_some() {
            self.deliver_webhooks().await?;
        }
        Ok(Round { next: if more { Duration::ZERO } else { next }, stats })
    }

    async fn end_overdue(&self, ids: &[JobId]) -> Result<()> {
        let (now, found) = self.stored(ids).await?;
        for (stored, run) in found {
            let Some(stored) = stored.filter(|_| !run.is_empty()) else { continue };
            let message = format!("it ran longer than {} and was not stopped", stored.job.submission.timeout);
            let failure = Failure::new(FailureClass::Timeout, message);
            let chance = rand::random();
            let end = Transition::failed(&stored.job, &failure, stored.cancelled, self.config.lease, chance, now);
            self.carry_out(&stored, codec::fence(&run), &end, now).await?;
        }
        Ok(())
    }

    /// Tells jobs that waited for others; true when there is more to tell.
    pub(super) async fn settle(&self) -> Result<bool> {
        for _ in 0..1_000 {
            if self.store.call("settle", Vec::new()).await?.number::<u64>()? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn retain(&self) -> Result<()> {
        let millis = |kept: Duration| kept.as_millis().to_string();
        let arguments = vec![
            millis(self.config.keep_finished),
            millis(self.config.keep_failed),
            self.config.max_finished.to_string(),
        ];
        for _ in 0..2_000 {
            if self.store.call("retain", arguments.clone()).await?.number::<u64>()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Takes in what plain Redis clients pushed to the inbox: a JSON submission each.
    async fn ingest(&self) -> Result<()> {
        loop {
            let entries = self.store.call("inbox", Vec::new()).await?.pairs()?;
            let Some(first) = entries.first() else { return Ok(()) };
            let mut jobs = Vec::new();
            let mut refused = None;
            for (entry, digest) in &entries {
                match read_entry(entry, digest) {
                    Ok(submission) => jobs.push(submission),
                    Err(why) => {
                        refused = Some(why);
                        break;
                    }
                }
            }
            if jobs.is_empty() {
                if let Some(why) = refused {
                    self.refuse_entry(first, &why).await?;
                }
                continue;
            }
            let jobs: Vec<Prepared> = jobs
                .into_iter()
                .map(|mut job| Prepared {
                    id: job.id.take().unwrap_or_else(JobId::random),
                    submission: job,
                    payload: None,
                })
                .collect();
            let (submit, count, classes) = Self::encode(&jobs)?;
            let mut arguments = vec![count.to_string(), first.1.clone(), entries[count - 1].1.clone()];
            arguments.extend(submit);
            let answer = self.store.call("ingest", arguments).await?;
            if answer == Reply::List(vec![Reply::Text("GONE".to_owned())]) {
                // Somebody else takes them in.
                return Ok(());
            }
            match self.submitted(answer, &classes, 0).await {
                // They are queued; or a class was new, and they come again.
                Ok(_) => {}
                Err(BrokerError::Refused { index: 0, why }) => self.refuse_entry(first, &why).await?,
                // Those before it go first, by themselves.
                Err(BrokerError::Refused { index, .. }) => self.ingest_first(&entries, &jobs, index).await?,
                Err(cause) => return Err(cause),
            }
        }
    }

    async fn ingest_first(&self, entries: &[(String, String)], jobs: &[Prepared], count: usize) -> Result<()> {
        let (submit, _, classes) = Self::encode(&jobs[..count])?;
        let mut arguments = vec![count.to_string(), entries[0].1.clone(), entries[count - 1].1.clone()];
        arguments.extend(submit);
        let answer = self.store.call("ingest", arguments).await?;
        if answer != Reply::List(vec![Reply::Text("GONE".to_owned())]) {
            self.submitted(answer, &classes, 0).await?;
        }
        Ok(())
    }

    /// Refused submissions are kept in a list of their own, with the reason; of a long one the beginning.
    async fn refuse_entry(&self, (entry, digest): &(String, String), why: &str) -> Result<()> {
        tracing::warn!("a submission in the queue's inbox is refused: {why}");
        let entry: String = entry.chars().take(MAX_REFUSED).collect();
        let record = serde_json::json!({ "why": why, "entry": entry, "at": Timestamp::now() }).to_string();
        self.store.call("inbox_refuse", vec![digest.clone(), record]).await.map(drop)
    }

    // Schedules.

    pub(super) async fn store_schedule(&self, schedule: JobSchedule) -> Result<Timestamp> {
        let refused = |why: String| BrokerError::Refused { index: 0, why };
        if let Some(why) = refuse(&schedule.job, Submission::MAX_INLINE_BYTES) {
            return Err(refused(why));
        }
        let cron: Schedule = schedule.cron.parse().map_err(refused)?;
        let next = cron.next_after(Timestamp::now()).ok_or_else(|| refused("the schedule never comes".to_owned()))?;
        let text = serde_json::to_string(&JobSchedule { next: None, ..schedule.clone() })
            .map_err(|cause| BrokerError::damaged(&cause))?;
        let arguments = vec![schedule.name.to_string(), String::new(), next.as_millis().to_string(), text];
        self.store.call("schedule", arguments).await?;
        Ok(next)
    }

    pub(super) async fn read_schedules(&self) -> Result<Vec<JobSchedule>> {
        let mut schedules = Vec::new();
        for entry in self.store.call("schedules", Vec::new()).await?.list()? {
            let mut parts = entry.texts()?.into_iter();
            let (Some(_), Some(next), Some(text)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let schedule: JobSchedule = codec::json(&text)?;
            schedules.push(JobSchedule { next: Some(codec::time(&next)?), ..schedule });
        }
        Ok(schedules)
    }

    /// Submits what is due, each time once whoever does it; answers with the pause until the next.
    async fn fire_schedules(&self, first: Timestamp, now: Timestamp) -> Result<Duration> {
        if first > now {
            return Ok(first.since(now));
        }
        for schedule in self.read_schedules().await? {
            let Some(due) = schedule.next.filter(|due| *due <= now) else { continue };
            // A second process that fires the same time finds the key taken.
            let key = format!("schedule:{}:{}", schedule.name, due.as_millis());
            let job = Submission { idempotency_key: Some(key), ..schedule.job };
            if let Err(cause) = super::Broker::submit(self, vec![job]).await {
                if let BrokerError::Unavailable { .. } = cause {
                    return Err(cause);
                }
                tracing::warn!("the scheduled job {} is refused: {cause}", schedule.name);
            }
            let cron: std::result::Result<Schedule, _> = schedule.cron.parse();
            // Times that passed while nobody was there are one.
            let next = cron.ok().and_then(|cron| cron.next_after(now));
            let next = next.map(|next| next.as_millis().to_string()).unwrap_or_default();
            let arguments = vec![schedule.name.to_string(), due.as_millis().to_string(), next, String::new()];
            self.store.call("schedule", arguments).await?;
        }
        Ok(Duration::ZERO)
    }

    // Questions.

    pub(super) async fn explain_job(&self, id: &JobId) -> Result<Explanation> {
        let (now, stored, _) = self.one(id).await?;
        self.fresh_workers().await?;
        let job = stored.job;
        let mut class = Class::of(&job.submission);
        class.avoid.extend(stored.avoid);
        let mut accounts = Vec::new();
        let mut workers: Vec<WorkerMatch> = {
            let roster = self.roster();
            let fitting = roster.workers.iter().filter(|(name, worker)| class.admits(name, worker).is_ok());
            accounts.extend(fitting.map(|(_, worker)| worker.account.clone()));
            let judge = |(name, worker): (&String, _)| WorkerMatch {
                worker: name.clone(),
                mismatch: class.explain(name, worker),
                not_claiming: None,
            };
            roster.workers.iter().map(judge).collect()
        };
        let not_claiming =
            if job.state == JobState::Pending { self.not_claiming().await? } else { BTreeMap::default() };
        for worker in workers.iter_mut().filter(|worker| worker.mismatch.is_none()) {
            worker.not_claiming = not_claiming.get(&worker.worker).cloned();
        }
        let fitting = workers.iter().filter(|worker| worker.mismatch.is_none()).count();
        let claiming = fitting - workers.iter().filter(|worker| worker.not_claiming.is_some()).count();
        let reason = match job.state {
            JobState::Blocked => format!("it waits for {} other jobs", job.waits_for),
            JobState::Delayed => {
                let due = job.due.map_or(Duration::ZERO, |due| due.since(now));
                format!("it waits {} until its time", humantime::format_duration(Duration::from_secs(due.as_secs())))
            }
            JobState::Running => format!("it runs on {}", job.worker.as_deref().unwrap_or("a worker")),
            JobState::Pending if fitting == 0 => none_fits(&workers, &not_claiming),
            JobState::Pending => {
                let held = self.held_by(&class.id().0).await?;
                match held {
                    Some(scope) => format!("{scope} is paused or at its limit"),
                    None => self.closed_accounts(&accounts, now).await?.unwrap_or_else(|| match claiming {
                        0 => format!("none of the {fitting} workers that match it claims at present"),
                        some if some < fitting => {
                            format!("{some} of the {fitting} workers that match it claim; they have jobs that come first, or are busy")
                        }
                        all => format!("{all} workers match it; they have jobs that come first, or are busy"),
                    }),
                }
            }
            state => format!("it is {state}"),
        };
        Ok(Explanation { job: job.id, state: job.state, reason, workers })
    }

    /// Why none of these accounts lets a job be claimed; nothing where one does, or where a worker has none.
    pub(super) async fn closed_accounts(&self, accounts: &[Option<Name>], now: Timestamp) -> Result<Option<String>> {
        let Some(wanted) = accounts.iter().cloned().collect::<Option<BTreeSet<Name>>>() else { return Ok(None) };
        let known = super::Broker::accounts(self).await?;
        let used = known.iter().filter(|status| wanted.contains(&status.account));
        let closed: Option<Vec<String>> = used.map(|status| status.closed(now)).collect();
        Ok(closed.filter(|reasons| !reasons.is_empty()).map(|reasons| reasons.join("; ")))
    }

    async fn held_by(&self, class: &str) -> Result<Option<String>> {
        let answer = self.store.call("held_by", vec![class.to_owned()]).await?;
        Ok(match answer {
            Reply::Text(scope) => Some(scope),
            _ => None,
        })
    }

    pub(super) async fn audit(&self, repair: bool) -> Result<Vec<String>> {
        let flag = if repair { "1" } else { "0" };
        let mut problems = Vec::new();
        let mut cursor = None;
        loop {
            let (ids, next) = self.store.job_ids(cursor).await?;
            problems.extend(self.audit_all("audit", flag, &ids).await?);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        self.read_classes().await?;
        let classes: Vec<String> = self.roster().classes.keys().map(|id| id.0.clone()).collect();
        problems.extend(self.audit_all("audit_classes", flag, &classes).await?);
        // Limits first: what follows asks for them.
        for all in ["audit_limits", "audit_pending", "audit_running", "audit_accounts"] {
            problems.extend(self.store.call(all, vec![flag.to_owned()]).await?.texts()?);
        }
        problems.extend(self.audit_blobs(repair).await?);
        Ok(problems)
    }

    async fn audit_all(&self, function: &'static str, flag: &str, subjects: &[String]) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for chunk in subjects.chunks(50) {
            let mut arguments = vec![flag.to_owned()];
            arguments.extend_from_slice(chunk);
            problems.extend(self.store.call(function, arguments).await?.texts()?);
        }
        Ok(problems)
    }

    async fn deliver_webhooks(&self) -> Result<()> {
        let ids = self.store.call("outbox", Vec::new()).await?.texts()?;
        let (_, found) = self.stored(&codec::ids(&ids)).await?;
        for (stored, _) in found {
            if let (Some(stored), Some(sender)) = (stored, self.config.webhooks.clone()) {
                let store = std::sync::Arc::clone(&self.store);
                tokio::spawn(async move {
                    let tries = stored.webhook_tries + 1;
                    let pause = sender.send(&stored.job, tries).await;
                    let pause = pause.map(|pause| pause.as_millis().to_string()).unwrap_or_default();
                    let _ = store.call("delivered", vec![stored.job.id.to_string(), pause, tries.to_string()]).await;
                });
            }
        }
        Ok(())
    }
}

/// An entry of the inbox; the digest is that of its bytes, of which `entry` is what could be read as text.
fn read_entry(entry: &str, digest: &str) -> std::result::Result<Submission, String> {
    let own = Sha1::digest(entry.as_bytes()).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    if own != digest {
        return Err("it is no UTF-8 text, or larger than any job".to_owned());
    }
    let submission: Submission = serde_json::from_str(entry).map_err(|cause| cause.to_string())?;
    match refuse(&submission, Submission::MAX_INLINE_BYTES) {
        None => Ok(submission),
        Some(why) => Err(why),
    }
}

/// Why a job waits that none of the registered workers may run.
fn none_fits(workers: &[WorkerMatch], not_claiming: &BTreeMap<String, String>) -> String {
    let none = match workers.len() {
        0 => "no worker is registered".to_owned(),
        some => format!("none of the {some} registered workers matches it"),
    };
    // Whose first check fails has never registered: what it could do is not known, but why it does not.
    let known: BTreeSet<&str> = workers.iter().map(|worker| worker.worker.as_str()).collect();
    let others: Vec<_> = not_claiming.iter().filter(|(name, _)| !known.contains(name.as_str())).collect();
    let told: Vec<String> = others.iter().take(FEW).map(|(name, why)| format!("{name}: {why}")).collect();
    let told = told.join("; ");
    match others.len() {
        0 => none,
        n if n <= FEW => format!("{none}. Not registered: {told}"),
        n => format!("{none}. Not registered: {told}; and {} more", n - FEW),
    }
}
