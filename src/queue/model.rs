use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::{Backoff, Name, Seconds, Timestamp, is_default};
use crate::host::BlobRef;
use crate::spec::{Capabilities, Requirement};
use crate::telemetry::Trace;

/// A job's id: 1 to 128 characters of ASCII letters, digits, `.`, `_`, `:` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid job id {given:?}: an id has 1 to 128 ASCII letters, digits, '.', '_', ':' or '-'")]
pub struct InvalidJobId {
    given: String,
}

impl JobId {
    /// # Errors
    /// When `text` is no valid id.
    pub fn new(text: &str) -> Result<Self, InvalidJobId> {
        let valid_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
        if (1..=128).contains(&text.len()) && text.chars().all(valid_char) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidJobId { given: text.chars().take(160).collect() })
        }
    }

    /// A new id that sorts by the time of its making.
    pub fn random() -> Self {
        // The time and 58 random bits in base 32: a waiting job keeps its id twice in memory, so it is kept short.
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let millis = u128::from(Timestamp::now().as_millis());
        let number = (millis << 58) | u128::from(rand::random::<u64>() >> 6);
        let digit = |at: u32| char::from(DIGITS[usize::try_from((number >> (5 * at)) & 31).unwrap_or(0)]);
        Self((0..20).rev().map(digit).collect::<String>().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidJobId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// Higher runs first; -500 to 500, default 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Priority(i16);

impl Priority {
    pub const MIN: i16 = -500;
    pub const MAX: i16 = 500;

    pub const fn get(self) -> i16 {
        self.0
    }
}

impl TryFrom<i32> for Priority {
    type Error = String;
    fn try_from(value: i32) -> Result<Self, Self::Error> {
        i16::try_from(value)
            .ok()
            .filter(|value| (Self::MIN..=Self::MAX).contains(value))
            .map(Self)
            .ok_or_else(|| format!("invalid priority {value}: it lies between {} and {}", Self::MIN, Self::MAX))
    }
}

impl From<Priority> for i32 {
    fn from(priority: Priority) -> Self {
        Self::from(priority.0)
    }
}

impl JsonSchema for JobId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JobId".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$" })
    }
}

impl JsonSchema for Priority {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Priority".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": Self::MIN, "maximum": Self::MAX })
    }
}

/// What a submitter hands in. Only `service` is required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Default: a new random id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// Which kind of work it is, usually a connector's name.
    pub service: Name,
    /// What the connector is given. Over 1 MiB of JSON it is kept in the blob store, at most 64 MiB.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    #[serde(default, skip_serializing_if = "is_default")]
    pub requirement: Requirement,
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<Workflow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// A second submission with the same key gives back the first one's job and changes nothing, as long as that job
    /// is kept. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// At most one job with this key waits or runs: a submission meanwhile gives back that one. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    /// Jobs that must have ended before this one can be claimed; at most 10,000. They are known already, or come
    /// earlier in the same call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<JobId>,
    /// What becomes of this job when one of those does not complete.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_dependency_failure: DependencyPolicy,
    /// Prefer a worker that has this model loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// An http(s) address that is sent the job's end: once it is committed, until it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// Not claimable before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// One attempt may take so long; then it is stopped and counts as failed. Default 1 h.
    #[serde(default = "default_timeout", skip_serializing_if = "is_default_timeout")]
    pub timeout: Seconds,
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry: RetryPolicy,
    /// W3C `traceparent` of who submitted it: its spans lie below that, and what it asks others carries it on. What is none
    /// is kept and means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// W3C `tracestate` to it, at most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

fn default_timeout() -> Seconds {
    Seconds::from_secs(3600)
}

fn is_default_timeout(timeout: &Seconds) -> bool {
    *timeout == default_timeout()
}

/// What becomes of a job when one that it waits for fails or is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DependencyPolicy {
    /// It fails too.
    #[default]
    Fail,
    /// It runs all the same.
    Run,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    pub model: String,
    /// While a worker that has the model loaded lives, others leave the job to it for so long; at most 5 min, default
    /// 2 s.
    #[serde(default = "default_wait")]
    pub wait: Seconds,
}

fn default_wait() -> Seconds {
    Seconds::from_secs(2)
}

impl Submission {
    /// Larger payloads and results, in bytes of JSON, go to the blob store.
    pub const MAX_INLINE_BYTES: usize = 1024 * 1024;
    /// The limit of what the blob store takes.
    pub const MAX_BLOB_BYTES: usize = 64 * 1024 * 1024;
    pub const MAX_KEY_BYTES: usize = 256;

    pub fn new(service: Name, payload: Value) -> Self {
        Self {
            id: None,
            service,
            payload,
            requirement: Requirement::default(),
            priority: Priority::default(),
            workflow: None,
            customer: None,
            idempotency_key: None,
            unique_key: None,
            depends_on: Vec::new(),
            on_dependency_failure: DependencyPolicy::default(),
            affinity: None,
            webhook: None,
            not_before: None,
            timeout: default_timeout(),
            retry: RetryPolicy::default(),
            trace: None,
            tracestate: None,
        }
    }
}

impl Submission {
    /// The trace that it was submitted in.
    pub fn trace(&self) -> Trace {
        Trace::read(self.trace.as_deref(), self.tracestate.as_deref())
    }

    /// The same in another trace, or in none.
    #[must_use]
    pub fn in_trace(self, trace: &Trace) -> Self {
        Self { trace: trace.parent(), tracestate: trace.state(), ..self }
    }
}

/// The larger piece of work that a job is a step of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    pub id: String,
    #[serde(default)]
    pub step: u32,
    #[serde(default)]
    pub of: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// How often the job is tried in all; 1 to 100, default 3.
    pub max_attempts: u32,
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff = Backoff { initial: Seconds::from_secs(1), max: Seconds::from_secs(300), ..Backoff::default() };
        Self { max_attempts: 3, backoff }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for other jobs to end.
    Blocked,
    /// Waits for its time, or for the end of a backoff.
    Delayed,
    /// Waits for a worker.
    Pending,
    Running,
    Completed,
    /// A dead letter: out of attempts, failed for good, or lost too often.
    Failed,
    Cancelled,
}

impl JobState {
    pub const ALL: [Self; 7] =
        [Self::Running, Self::Pending, Self::Delayed, Self::Blocked, Self::Failed, Self::Cancelled, Self::Completed];

    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Delayed => "delayed",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an attempt did not succeed; decides what happens to the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Try again after the backoff, while attempts are left.
    Retryable,
    /// Trying again cannot help.
    Fatal,
    /// This worker cannot do it: back to the queue for another one, no attempt charged.
    WrongMachine,
    /// The connector's account is at fault (no credit, key refused): back to the queue, no attempt charged. Where the
    /// connector has an account, all workers that use it stop claiming until one job that is tried for all has shown that
    /// it works; else this worker does, until its check passes and one job that is tried after a pause (1 s, doubling, up
    /// to 5 min) is done.
    Account,
    /// The backend says to come again later: back to the queue until then, no attempt charged the first ten times, and
    /// nothing more is claimed for this connector's account meanwhile.
    RateLimited,
    /// The attempt ran past its time. Retried like `Retryable`.
    Timeout,
    /// Somebody cancelled the job.
    Cancelled,
}

impl FailureClass {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retryable => "retryable",
            Self::Fatal => "fatal",
            Self::WrongMachine => "wrong_machine",
            Self::Account => "account",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    pub class: FailureClass,
    pub message: String,
    /// Wait at least so long before the next try.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after: Option<Seconds>,
}

impl Failure {
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), retry_after: None }
    }

    /// How long a backend wants to be left alone that limits the rate; 10 s where it does not say.
    pub fn rate_pause(&self) -> std::time::Duration {
        self.retry_after.map_or(std::time::Duration::from_secs(10), Seconds::get)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Proof of holding a job: the claim's number. Whoever holds an older one holds nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    pub job: JobId,
    pub claim: u64,
}

/// The latest that a running job said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// 0 to 1.
    pub fraction: f64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub at: Timestamp,
}

/// One try of a job that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    pub worker: String,
    pub started: Timestamp,
    pub ended: Timestamp,
    /// What came of it: `completed`, `failed`, `released`, `lost`, `cancelled`.
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<Failure>,
}

/// A job as the queue keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    pub id: JobId,
    pub state: JobState,
    #[serde(flatten)]
    pub submission: Submission,
    pub submitted: Timestamp,
    /// When it becomes claimable, while `Delayed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub due: Option<Timestamp>,
    /// When the latest claim was made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub claimed: Option<Timestamp>,
    /// When it reached its final state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished: Option<Timestamp>,
    /// The worker that holds it or held it last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker: Option<String>,
    /// The number of its latest claim, which grows over the whole queue; 0 when it was never claimed.
    pub claims: u64,
    /// Attempts that count against `retry.max_attempts`.
    pub attempts: u32,
    /// How often its worker died.
    pub losses: u32,
    /// How many jobs it still waits for, while `Blocked`.
    #[serde(skip_serializing_if = "is_default", default)]
    pub waits_for: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<Value>,
    /// Where the payload is kept, when it is too large for the queue; then `payload` is null until it is loaded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub payload_blob: Option<BlobRef>,
    /// The same of the result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result_blob: Option<BlobRef>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<Failure>,
    /// What the connector saved so that a later attempt can resume.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub saved: Option<Value>,
    /// The latest attempts, oldest first, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<Attempt>,
    /// What its attempts used up in all, as its connector reported it.
    #[serde(skip_serializing_if = "Usage::is_empty", default)]
    pub usage: Usage,
}

/// What work used up, by unit: `input_tokens`, `seconds`, `images`, `cost_usd` ...
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Usage(pub BTreeMap<String, f64>);

impl Usage {
    /// Units of one job at most.
    pub const MAX_UNITS: usize = 16;
    const MAX_UNIT_BYTES: usize = 40;

    /// # Errors
    /// A sentence for whoever reports it, when a unit or a number is none.
    pub fn new(amounts: BTreeMap<String, f64>) -> Result<Self, String> {
        if amounts.len() > Self::MAX_UNITS {
            return Err(format!("usage has {} units, at most {} are counted", amounts.len(), Self::MAX_UNITS));
        }
        for (unit, amount) in &amounts {
            let good = unit.starts_with(|c: char| c.is_ascii_lowercase())
                && unit.len() <= Self::MAX_UNIT_BYTES
                && unit.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if !good {
                let most = Self::MAX_UNIT_BYTES;
                return Err(format!("{unit:?} cannot name a unit of usage: write 1 to {most} of a-z, 0-9 and _"));
            }
            if !amount.is_finite() || *amount < 0.0 {
                return Err(format!("the usage of {unit} is {amount}: it must be a number of at least 0"));
            }
        }
        Ok(Self(amounts))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With what `more` says; units beyond [`Self::MAX_UNITS`] are left out.
    pub fn add(&mut self, more: &Self) {
        for (unit, amount) in &more.0 {
            if self.0.contains_key(unit) || self.0.len() < Self::MAX_UNITS {
                *self.0.entry(unit.clone()).or_default() += amount;
            }
        }
    }
}

/// One entry of a job's durable event stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobEvent {
    /// Grows within a job; the cursor.
    pub seq: u64,
    pub at: Timestamp,
    /// `submitted`, `unblocked`, `claimed`, `progress`, `log`, `partial`, `usage`, `retried`, `released`, `lost`,
    /// `cancelling`, `completed`, `failed`, `cancelled`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// Numbers of the whole queue.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct QueueStats {
    pub blocked: u64,
    pub delayed: u64,
    pub pending: u64,
    pub running: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Workers whose lease holds.
    pub workers: u64,
    /// Submissions of plain Redis clients that nobody has read yet.
    pub inbox: u64,
    /// Webhooks that have not been accepted yet.
    pub webhooks: u64,
    /// Kinds of requirement.
    pub classes: u64,
    /// Since when the longest waiting waits, of the jobs that come next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_pending: Option<Timestamp>,
}

/// What one pauses or limits: all jobs of a service, of a pool that is asked for, or of a customer; or all workers that
/// share an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Service(Name),
    Pool(Name),
    Customer(String),
    Account(Name),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Pool(name) => write!(f, "pool:{name}"),
            Self::Customer(name) => write!(f, "customer:{}", plain(name)),
            Self::Account(name) => write!(f, "account:{name}"),
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no scope: write service:NAME, pool:NAME, customer:NAME or account:NAME");
        let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "service" => Ok(Self::Service(Name::new(name).map_err(|_| wrong())?)),
            "pool" => Ok(Self::Pool(Name::new(name).map_err(|_| wrong())?)),
            "customer" if !name.is_empty() => Ok(Self::Customer(unplain(name))),
            "account" => Ok(Self::Account(Name::new(name).map_err(|_| wrong())?)),
            _ => Err(wrong()),
        }
    }
}

/// Bytes other than letters, digits, `.`, `_` and `-` as `%XX`.
pub(super) fn plain(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn unplain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What holds the jobs of a [`Scope`] back. The default holds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// So many run at once at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// So many start per second at most, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// So many may start at once when none has for a while; default 1, or one second's worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// None starts.
    #[serde(skip_serializing_if = "is_default")]
    pub paused: bool,
}

/// What workers share that use one key at one provider, as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AccountStatus {
    pub account: Name,
    /// Jobs that run with it, on all machines.
    pub running: u64,
    /// Workers that would claim and wait for it.
    pub waiting: u64,
    #[serde(skip_serializing_if = "is_default", default)]
    pub limit: Limit,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold: Option<Hold>,
}

impl AccountStatus {
    /// Why no job can be claimed with it now, as a sentence.
    pub fn closed(&self, now: Timestamp) -> Option<String> {
        let account = &self.account;
        let hold = self.hold.as_ref();
        if self.limit.paused {
            return Some(format!("account {account} is paused"));
        }
        if let Some(hold) = hold.filter(|hold| hold.until > now) {
            let left = humantime::format_duration(std::time::Duration::from_secs(hold.until.since(now).as_secs() + 1));
            return Some(format!("account {account} is held for {left}: {}", hold.why));
        }
        if let Some((hold, job)) = hold.and_then(|hold| Some((hold, hold.job.as_ref()?))) {
            return Some(format!("account {account} is held while job {job} is tried: {}", hold.why));
        }
        if let Some(max) = self.limit.max_running.filter(|max| self.running >= u64::from(*max)) {
            return Some(format!("account {account} runs {} jobs, and may run {max}", self.running));
        }
        let rate = self.limit.per_second.filter(|_| self.waiting > 0)?;
        Some(format!("account {account} may start {rate} jobs per second, for which {} workers wait", self.waiting))
    }
}

/// Why nothing is claimed with an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    pub until: Timestamp,
    pub why: String,
    /// When the time is over one job is tried, and the others wait for how it ends.
    pub trial: bool,
    /// The job that is tried now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub job: Option<JobId>,
}

/// A job that is submitted again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSchedule {
    pub name: Name,
    /// When, as in a service's `schedule`.
    pub cron: String,
    pub job: Submission,
    /// Set by the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
}

/// Which workers may run a job, and the first reason of each that may not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub job: JobId,
    pub state: JobState,
    /// Why it does not run now, as one sentence.
    pub reason: String,
    pub workers: Vec<WorkerMatch>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerMatch {
    pub worker: String,
    /// Missing when the worker may run the job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mismatch: Option<String>,
    /// Why the worker claims nothing at present, as its machine said last. Missing when it claims, or may not run the job.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_claiming: Option<String>,
}

/// What waits and runs of one service, or of one pool that jobs ask for.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    pub pending: u64,
    pub running: u64,
    /// Delayed and blocked.
    pub later: u64,
    /// When the pending job that waits longest was submitted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest: Option<Timestamp>,
}

impl Load {
    pub(super) fn add(&mut self, class: &ClassStatus) {
        self.pending += class.pending;
        self.later += class.live.saturating_sub(class.pending);
        self.oldest = self.oldest.into_iter().chain(class.oldest).min();
    }

    /// Jobs that run were counted as later until it was known how many there are.
    pub(super) fn tell_running(&mut self, running: u64) {
        self.running = running;
        self.later = self.later.saturating_sub(running);
    }
}

/// Where the jobs are that are not over. Taken class by class, so that its numbers may be apart by what happened meanwhile.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Backlog {
    pub services: BTreeMap<Name, Load>,
    /// By the pool that jobs ask for.
    pub pools: BTreeMap<Name, Load>,
    /// Kinds of requirement with jobs that wait, and that no worker matches.
    pub unmatched: Vec<ClassStatus>,
}

impl Backlog {
    pub fn unmatched_jobs(&self) -> u64 {
        self.unmatched.iter().map(|class| class.pending).sum()
    }
}

/// What a worker may run, and why not the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerExplanation {
    pub worker: String,
    pub capabilities: Capabilities,
    /// Jobs that wait and that it may run.
    pub pending: u64,
    /// What it waits for, as one sentence.
    pub reason: String,
    pub runs: Vec<ClassForWorker>,
    pub refuses: Vec<ClassRefused>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassForWorker {
    #[serde(flatten)]
    pub class: ClassStatus,
    /// Workers that have its model loaded, to which others leave its jobs for a while.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub left_to: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassRefused {
    pub class: ClassStatus,
    pub why: String,
}

/// A kind of requirement and its jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassStatus {
    pub class: String,
    pub service: Name,
    pub requirement: Requirement,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub customer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<Affinity>,
    /// Workers that are not to have its jobs: they failed there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub avoid: BTreeSet<String>,
    pub pending: u64,
    /// Pending, delayed, blocked and running.
    pub live: u64,
    /// Kinds of worker that may run it, those of an hour ago counted too.
    pub profiles: u64,
    /// When the pending job that waits longest was submitted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest: Option<Timestamp>,
    /// The paused or exhausted scope that holds it back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_by: Option<String>,
}
