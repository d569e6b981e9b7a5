use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::large::{self, Prepared};
use crate::base::{Name, Timestamp};
use crate::queue::matching::ClassId;
use crate::queue::store::Reply;
use crate::queue::{
    AccountStatus, Attempt, BrokerError, DependencyPolicy, Hold, Job, JobEvent, JobId, JobState, Limit, Priority,
    QueueStats, Submission,
};

type Result<T> = std::result::Result<T, BrokerError>;

/// The letters of states in the functions.
pub(super) const fn letter(state: JobState) -> &'static str {
    match state {
        JobState::Blocked => "b",
        JobState::Delayed => "d",
        JobState::Pending => "p",
        JobState::Running => "r",
        JobState::Completed => "c",
        JobState::Failed => "f",
        JobState::Cancelled => "x",
    }
}

pub(super) fn state(letter: &str) -> Result<JobState> {
    let found = JobState::ALL.into_iter().find(|state| self::letter(*state) == letter);
    found.ok_or_else(|| BrokerError::damaged(&format!("{letter:?} is no state")))
}

/// Job ids of an answer; what is none is left out.
pub(super) fn ids(texts: &[String]) -> Vec<JobId> {
    texts.iter().filter_map(|text| JobId::new(text).ok()).collect()
}

pub(super) fn time(text: &str) -> Result<Timestamp> {
    let millis: f64 = text.parse().map_err(|_| BrokerError::damaged(&format!("{text:?} is no time")))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds since 1970")]
    Ok(Timestamp::from_millis(millis as u64))
}

pub(super) fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|cause| BrokerError::damaged(&cause))
}

/// The priority's place in scores: 0 goes first.
pub(super) fn level(submission: &Submission) -> String {
    (Priority::MAX - submission.priority.get()).to_string()
}

fn text(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|cause| BrokerError::damaged(&cause))
}

/// What one job's arguments to `submit` are.
pub(super) fn submission(class: &ClassId, job: &Prepared, out: &mut Vec<String>) -> Result<()> {
    let Prepared { id, submission, payload } = job;
    let default = Submission::new(submission.service.clone(), Value::Null);
    let millis = |duration: std::time::Duration| duration.as_millis().to_string();
    let flag = |letter, set| if set { letter } else { "" };
    let unique = flag("u", submission.unique_key.is_some());
    let flags = format!("{unique}{}{}", flag("w", submission.webhook.is_some()), flag("l", payload.is_some()));
    let flags = if flags.is_empty() { "-".to_owned() } else { flags };
    let mut depends_on = submission.depends_on.clone();
    depends_on.sort();
    depends_on.dedup();
    let run = submission.on_dependency_failure == DependencyPolicy::Run;
    out.extend([
        id.to_string(),
        level(submission),
        submission.customer.clone().unwrap_or_default(),
        class.0.clone(),
        if submission.timeout == default.timeout { "-".to_owned() } else { millis(submission.timeout.get()) },
        flags,
        submission.not_before.map_or(0, Timestamp::as_millis).to_string(),
        submission.idempotency_key.clone().unwrap_or_default(),
        submission.unique_key.clone().unwrap_or_default(),
        submission.workflow.as_ref().map(|flow| flow.id.clone()).unwrap_or_default(),
        if run { "run" } else { "fail" }.to_owned(),
        depends_on.len().to_string(),
    ]);
    out.extend(depends_on.iter().map(JobId::to_string));
    // What there is beside service and payload, which most jobs are.
    let rest = Submission { payload: Value::Null, ..submission.clone() };
    let rest = if rest == default { String::new() } else { text(&rest)? };
    let payload = payload.as_ref().map_or_else(|| text(&submission.payload), large::text)?;
    out.push(format!("{} {} {rest}{payload}", submission.service, rest.len()));
    Ok(())
}

/// A job as the functions give it: its record, what changed since, and where it is.
pub(super) struct Stored {
    pub job: Job,
    /// Somebody asked for its cancellation.
    pub cancelled: bool,
    /// Workers that never get it again.
    pub avoid: Vec<String>,
    /// How often its webhook was tried.
    pub webhook_tries: u32,
}

/// `run` and `due` are empty where the job does not run or is not delayed.
pub(super) fn stored(id: &str, raw: &str, run: &str, due: &str, changes: Reply) -> Result<Stored> {
    let id = JobId::new(id).map_err(|cause| BrokerError::damaged(&cause))?;
    let damaged = || BrokerError::damaged(&"the record of a job is cut short");
    let mut parts = raw.splitn(8, ' ');
    let mut part = || parts.next().ok_or_else(damaged);
    let (_score, _class, _timeout, submitted, _flags) = (part()?, part()?, part()?, part()?, part()?);
    let (service, length, data) = (part()?, part()?, part()?);
    let length: usize = length.parse().map_err(|_| damaged())?;
    let (rest, payload) = data.split_at_checked(length).ok_or_else(damaged)?;
    let submission = if rest.is_empty() {
        let service = Name::new(service).map_err(|cause| BrokerError::damaged(&cause))?;
        Submission::new(service, Value::Null)
    } else {
        json(rest)?
    };
    let (payload, payload_blob) = large::read(payload.trim_start())?;
    let submission = Submission { payload, ..submission };
    let submitted = u64::from_str_radix(submitted, 36).map_err(|_| damaged())?;
    let changes: HashMap<String, String> = changes.pairs()?.into_iter().collect();
    let change = |name: &str| changes.get(name).map(String::as_str);
    let number = |name: &str| change(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let mut job = Job {
        state: change("st").map_or(Ok(JobState::Pending), state)?,
        submitted: Timestamp::from_millis(submitted),
        due: None,
        claimed: change("cl").map(time).transpose()?,
        finished: change("fin").map(time).transpose()?,
        worker: change("w").map(str::to_owned),
        claims: change("n").and_then(|text| text.parse().ok()).unwrap_or(0),
        attempts: number("at"),
        losses: number("lo"),
        waits_for: 0,
        progress: change("pr").map(json).transpose()?,
        result: None,
        payload_blob,
        result_blob: None,
        failure: change("fail").map(json).transpose()?,
        saved: change("sv").map(json).transpose()?,
        history: change("h").map(json).transpose()?.unwrap_or_default(),
        usage: change("us").map(json).transpose()?.unwrap_or_default(),
        submission: Submission { id: None, ..submission },
        id,
    };
    if let Some(text) = change("res") {
        let (result, blob) = large::read(text)?;
        job.result = blob.is_none().then_some(result);
        job.result_blob = blob;
    }
    if !due.is_empty() {
        job.state = JobState::Delayed;
        job.due = Some(time(due)?);
    } else if job.state == JobState::Blocked {
        job.due = change("due").map(time).transpose()?;
        job.waits_for = number("need");
    }
    if !run.is_empty() {
        let mut parts = run.split(' ');
        let mut part = || parts.next().unwrap_or_default();
        let (fence, claimed, _incarnation, worker) = (part(), part(), part(), part());
        job.state = JobState::Running;
        job.claims = fence.parse().map_err(|_| damaged())?;
        job.claimed = Some(time(claimed)?);
        job.worker = Some(worker.to_owned());
        job.failure = None;
    }
    if job.state == JobState::Completed {
        job.attempts += 1;
        job.failure = None;
        job.history.push(Attempt {
            worker: job.worker.clone().unwrap_or_default(),
            started: job.claimed.unwrap_or(job.submitted),
            ended: job.finished.unwrap_or(job.submitted),
            outcome: "completed".to_owned(),
            failure: None,
        });
    }
    Ok(Stored {
        cancelled: changes.contains_key("x"),
        avoid: change("av").map(json).transpose()?.unwrap_or_default(),
        webhook_tries: number("wh"),
        job,
    })
}

/// What holds a scope back, as it is stored.
pub(super) fn limit(text: &str) -> Limit {
    let mut parts = text.split(' ');
    let mut part = || parts.next().unwrap_or("-");
    let (max, rate, burst, paused) = (part(), part(), part(), part());
    Limit {
        max_running: max.parse().ok(),
        per_second: rate.parse().ok(),
        burst: if rate == "-" { None } else { burst.parse().ok() },
        paused: paused == "1",
    }
}

/// An account as the functions give it.
pub(super) fn account(parts: Vec<String>, now: Timestamp) -> Result<AccountStatus> {
    let [account, hold, limit, running, waiting] = <[String; 5]>::try_from(parts)
        .map_err(|_| BrokerError::damaged(&"what is known of an account is incomplete"))?;
    let number = |text: &str| text.parse().unwrap_or(0);
    let hold = match hold.splitn(5, ' ').collect::<Vec<_>>().as_slice() {
        [until, pauses, id, fence, why] => Some(Hold {
            until: time(until)?,
            why: (*why).to_owned(),
            trial: *pauses != "0",
            job: JobId::new(id).ok().filter(|_| *fence != "0"),
        }),
        _ => None,
    };
    Ok(AccountStatus {
        account: Name::new(&account).map_err(|cause| BrokerError::damaged(&cause))?,
        running: number(&running),
        waiting: number(&waiting),
        limit: self::limit(&limit),
        // One that is over is forgotten when somebody looks.
        hold: hold.filter(|hold| hold.trial || hold.until > now),
    })
}

/// The running job's holder and token, of its entry.
pub(super) fn fence(run: &str) -> &str {
    run.split(' ').next().unwrap_or_default()
}

pub(super) fn events(id: &JobId, reply: Reply, after: u64) -> Result<Vec<JobEvent>> {
    let mut parts = reply.list()?.into_iter();
    let Some(submitted) = parts.next() else { return Err(BrokerError::UnknownJob(id.clone())) };
    let mut part = || parts.next().unwrap_or(Reply::Nil);
    let submitted = time(&submitted.text()?)?;
    let (trimmed, from): (u64, u64) = (part().number()?, part().number()?);
    let mut events = Vec::new();
    if after == 0 {
        events.push(JobEvent { seq: 1, at: submitted, kind: "submitted".to_owned(), data: Value::Null });
    }
    for (index, text) in (0u64..).zip(part().texts()?) {
        let mut parts = text.splitn(3, ' ');
        let (at, kind, data) =
            (parts.next().unwrap_or("0"), parts.next().unwrap_or(""), parts.next().unwrap_or("null"));
        let seq = 2 + trimmed + from + index;
        if seq > after {
            let data = serde_json::from_str(data).unwrap_or(Value::Null);
            events.push(JobEvent { seq, at: time(at)?, kind: kind.to_owned(), data });
        }
    }
    Ok(events)
}

pub(super) fn stats(reply: Reply) -> Result<QueueStats> {
    let numbers = reply.texts()?;
    let number = |at: usize| numbers.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
    let oldest = numbers.get(7).filter(|text| !text.is_empty());
    Ok(QueueStats {
        delayed: number(0),
        pending: number(1),
        running: number(2),
        completed: number(3),
        failed: number(4),
        cancelled: number(5),
        blocked: number(6),
        oldest_pending: oldest.map(|text| time(text)).transpose()?,
        workers: number(8),
        inbox: number(9),
        webhooks: number(10),
        classes: number(11),
    })
}

#[cfg(test)]
mod tests {
    /// 2^43 places within one priority, as in `queue.lua`.
    const LEVEL: i64 = 1 << 43;

    /// The priority that a score stands for.
    fn priority_of(score: i64) -> i64 {
        -score.div_euclid(LEVEL)
    }

    #[test]
    fn scores_are_exact_at_every_priority() {
        for priority in [-500i64, -1, 0, 1, 500] {
            for place in [1, LEVEL / 2, LEVEL - 1] {
                let score = -priority * LEVEL + place;
                #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
                let through_a_double = score as f64 as i64;
                assert_eq!((through_a_double, priority_of(score)), (score, priority));
            }
        }
    }
}
