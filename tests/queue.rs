//! What every queue backend promises, shown on each: a file, and a Redis; and that nothing is lost over kill -9.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use machinist::base::{Name, Seconds, Timestamp};
use machinist::host::BlobStore;
use machinist::queue::{
    AccountStatus, Broker, BrokerError, Claim, ClaimRequest, Failure, FailureClass, HoldRequest, Job, JobEvent,
    JobFilter, JobId, JobSchedule, JobState, Limit, Presence, QueueConfig, Registration, Scope, Submission, Token,
    Usage, WebhookSender, Word, connect_redis, open_embedded,
};
use machinist::spec::{Capabilities, LabelTest};
use machinist::telemetry::{EventLog, Traces};
use machinist::worker::{Connector, JobContext, Readiness, Worker, WorkerConfig, WorkerHandle};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::proxy::Proxy;
use support::redis::RedisServer;
use support::wait_until;
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

/// Where a lease has to end; elsewhere it is longer than a slow machine takes for a test without heartbeats.
const LEASE: Duration = Duration::from_millis(1_500);

fn config() -> QueueConfig {
    QueueConfig { lease: Duration::from_secs(60), max_losses: 2, ..QueueConfig::default() }
}

fn short_lease() -> QueueConfig {
    QueueConfig { lease: LEASE, ..config() }
}

fn open(path: &Path) -> Arc<dyn Broker> {
    open_embedded(path, config()).unwrap()
}

struct Queue {
    broker: Arc<dyn Broker>,
    server: Option<RedisServer>,
    dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
enum Backend {
    Embedded,
    Redis,
}

impl Backend {
    fn open(self) -> Queue {
        self.open_with(config())
    }

    fn open_with(self, config: QueueConfig) -> Queue {
        let dir = tempfile::tempdir().unwrap();
        match self {
            Self::Embedded => {
                let broker = open_embedded(&dir.path().join("queue.db"), config).unwrap();
                Queue { broker, server: None, dir }
            }
            Self::Redis => {
                let server = RedisServer::start(&[]);
                let broker = connect_redis(server.url().parse().unwrap(), "test", config);
                Queue { broker, server: Some(server), dir }
            }
        }
    }
}

/// One test for each backend of every function named.
macro_rules! conformance {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Backend::Embedded).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Backend::Redis).await;
            })*
        }
    };
}

conformance! {
    jobs_are_claimed_by_priority_and_in_order_inside_one
    an_outcome_counts_only_for_whoever_holds_the_job
    failures_lead_where_their_class_says
    keys_and_ids_make_submission_idempotent
    a_waiting_worker_is_woken_by_what_it_can_run
    an_idle_worker_is_assigned_a_lone_job
    a_worker_that_rests_is_left_no_job
    a_worker_that_cannot_start_leaves_jobs_to_others
    who_claims_all_there_is_need_not_ask_again
    who_dies_gives_its_jobs_back_to_their_old_place
    cancelling_ends_what_waits_and_tells_who_runs
    only_workers_that_match_get_a_job_and_backlog_does_not_hide_it
    lists_page_in_order
    every_claim_is_the_best_of_a_brute_force_model
    claims_of_many_jobs_are_the_best_of_many_classes
    steps_wait_for_the_steps_before_them
    what_is_paused_or_limited_waits_and_holds_nothing_else_up
    customers_take_turns
    later_steps_of_a_workflow_inherit_its_place
    jobs_prefer_a_worker_that_has_their_model_loaded
    schedules_submit_each_time_once
    jobs_explain_why_they_wait
    events_are_ordered_bounded_and_followed
    webhooks_are_sent_signed_until_they_are_accepted
    an_inbox_takes_what_plain_clients_push
    finished_jobs_are_kept_as_long_as_they_should
    large_data_lie_in_the_blob_store_as_long_as_their_job
    many_jobs_of_almost_a_mebibyte_are_run_together
    numbers_are_told_by_service_and_pool_however_many_classes
    a_worker_is_told_what_it_waits_for
    verify_finds_nothing_wrong_after_everything
    customers_at_the_same_place_go_before_the_next_place
    room_is_given_to_whom_there_is_a_worker_for
    a_job_that_is_tried_again_has_its_unique_key_again
    submitting_again_costs_no_turn
    who_waits_for_a_job_that_was_there_waits_for_that_one
    who_waits_is_told_before_a_job_is_forgotten
    a_job_that_is_tried_again_still_waits
    hostile_submissions_are_refused_or_kept_unchanged
    hostile_inbox_entries_are_refused_or_taken_in
    workers_of_one_account_keep_its_limits_together
    a_held_account_is_tried_by_one_job_for_all
    an_account_that_nobody_has_is_forgotten
    a_trial_whose_worker_dies_is_followed_by_another
    a_rate_limit_costs_no_attempt_but_not_for_ever
    what_a_job_used_up_is_kept_with_it
    machines_are_listed_while_they_speak_and_remembered_after
    a_worker_runs_as_many_jobs_as_it_has_slots_and_leaves_none
}

fn job(value: Value) -> Submission {
    let mut job = json!({ "service": "work", "retry": { "backoff": { "initial": "1ms", "jitter": 0.0 } } });
    job.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    serde_json::from_value(job).unwrap()
}

fn capabilities(worker: &str, more: Value) -> Capabilities {
    let mut value =
        json!({ "services": ["work"], "machine_type": "gpu", "machine": "m", "worker": worker, "pool": "p" });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn who(worker: &str, incarnation: &str) -> Registration {
    Registration { worker: worker.into(), incarnation: format!("{worker}-{incarnation}"), assignable: false }
}

fn assignable(worker: &str) -> Registration {
    Registration { assignable: true, ..who(worker, "1") }
}

impl Queue {
    async fn worker(&self, name: &str) -> Registration {
        let registration = who(name, "1");
        self.broker.register(&registration, &capabilities(name, json!({}))).await.unwrap();
        registration
    }

    /// A worker as machines have it.
    fn start_worker(&self, slots: u32, connector: Arc<dyn Connector>) -> WorkerHandle {
        self.start_when_ready(slots, connector, watch::channel(Ok(())).1)
    }

    fn start_when_ready(
        &self,
        slots: u32,
        connector: Arc<dyn Connector>,
        ready: watch::Receiver<Readiness>,
    ) -> WorkerHandle {
        let config = WorkerConfig {
            name: Name::new("w").unwrap(),
            connector_name: Name::new("work").unwrap(),
            slots,
            registration: assignable("w"),
            capabilities: capabilities("w", json!({})),
            broker: Arc::clone(&self.broker),
            connector,
            lease: config().lease,
            ready,
            events: EventLog::new(100),
            traces: Traces::default(),
        };
        Worker::start(config, &TaskTracker::new())
    }

    /// A worker that shares the account "key".
    async fn sharing(&self, broker: &dyn Broker, name: &str, life: &str) -> Registration {
        let registration = who(name, life);
        broker.register(&registration, &capabilities(name, json!({ "account": "key" }))).await.unwrap();
        registration
    }

    /// A client of its own, as another machine has; of a file there is only one.
    fn second(&self, config: QueueConfig) -> Arc<dyn Broker> {
        match &self.server {
            Some(server) => connect_redis(server.url().parse().unwrap(), "test", config),
            None => Arc::clone(&self.broker),
        }
    }

    async fn account(&self) -> AccountStatus {
        self.broker.accounts().await.unwrap().into_iter().find(|status| status.account.as_str() == "key").unwrap()
    }

    async fn hold(&self, claim: &Claim, pause: Duration, longest: Option<Duration>) -> (Timestamp, bool) {
        let (account, token) = (Name::new("key").unwrap(), claim.token.clone());
        self.broker.hold(&HoldRequest { account, token, pause, longest, why: "down\nagain".to_owned() }).await.unwrap()
    }

    async fn submit(&self, value: Value) -> JobId {
        self.broker.submit(vec![job(value)]).await.unwrap().remove(0).id
    }

    async fn claim(&self, registration: &Registration) -> Option<Claim> {
        let request = up_to(registration, 1);
        self.broker.claim(&request).await.unwrap().pop()
    }

    async fn reap_until(&self, id: &JobId, done: impl Fn(JobState) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done(self.state(id).await) {
            assert!(Instant::now() < end, "{id} is still {}", self.state(id).await);
            let round = self.broker.reap().await.unwrap();
            self.broker.reap_wanted(round.next).await;
        }
    }

    /// Claims, waiting as a worker does.
    async fn wait_claim(&self, registration: &Registration) -> Claim {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(claim) = self.claim(registration).await {
                return claim;
            }
            assert!(Instant::now() < end, "nothing to claim");
            self.broker.wait(registration, Duration::from_secs(20)).await;
        }
    }

    /// Page by page.
    async fn all_events(&self, id: &JobId) -> Vec<JobEvent> {
        let mut all: Vec<JobEvent> = Vec::new();
        loop {
            let after = all.last().map_or(0, |event| event.seq);
            let page = self.broker.events(id, after).await.unwrap();
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }

    async fn state(&self, id: &JobId) -> JobState {
        self.broker.get(id).await.unwrap().state
    }
}

async fn jobs_are_claimed_by_priority_and_in_order_inside_one(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let mut expected = Vec::new();
    for (n, priority) in [0, 5, -3, 5, 0, 500, -500].into_iter().enumerate() {
        expected.push((-priority, n, queue.submit(json!({ "priority": priority })).await));
    }
    expected.sort();
    let request = up_to(&worker, 3);
    let mut claimed: Vec<JobId> = Vec::new();
    loop {
        let claims = queue.broker.claim(&request).await.unwrap();
        if claims.is_empty() {
            break;
        }
        claimed.extend(claims.into_iter().map(|claim| claim.job.id));
    }
    assert_eq!(claimed, expected.into_iter().map(|(_, _, id)| id).collect::<Vec<_>>());
}

async fn an_outcome_counts_only_for_whoever_holds_the_job(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({})).await;
    let first = queue.claim(&worker).await.unwrap().token;
    queue.broker.release(&first, "test").await.unwrap();
    let second = queue.claim(&worker).await.unwrap().token;
    assert_ne!(first, second);
    let stale = |result: Result<(), BrokerError>| assert!(matches!(result, Err(BrokerError::StaleToken(_))));
    stale(queue.broker.complete(&first, json!(1)).await);
    stale(queue.broker.fail(&first, Failure::new(FailureClass::Fatal, "x")).await.map(drop));
    stale(queue.broker.release(&first, "x").await);
    stale(queue.broker.save(&first, json!(1)).await);
    stale(queue.broker.log(&first, "x".into()).await);
    queue.broker.save(&second, json!({ "at": 3 })).await.unwrap();
    queue.broker.complete(&second, json!("right")).await.unwrap();
    queue.broker.complete(&second, json!("again")).await.unwrap();
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!((job.state, job.result, job.attempts), (JobState::Completed, Some(json!("right")), 1));
    stale(queue.broker.fail(&second, Failure::new(FailureClass::Fatal, "late")).await.map(drop));
    let kinds: Vec<String> = queue.broker.events(&id, 0).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["submitted", "claimed", "released", "claimed", "completed"]);
}

async fn failures_lead_where_their_class_says(backend: Backend) {
    let queue = backend.open_with(short_lease());
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({ "retry": { "max_attempts": 2, "backoff": { "initial": "1ms" } } })).await;
    let token = queue.claim(&worker).await.unwrap().token;
    let state = queue.broker.fail(&token, Failure::new(FailureClass::Retryable, "first")).await.unwrap();
    assert_eq!(state, JobState::Delayed);
    let token = queue.wait_claim(&worker).await.token;
    let state = queue.broker.fail(&token, Failure::new(FailureClass::Timeout, "second")).await.unwrap();
    assert_eq!(state, JobState::Failed);
    let dead = queue.broker.get(&id).await.unwrap();
    assert_eq!((dead.attempts, dead.history.len(), dead.failure.unwrap().message.as_str()), (2, 2, "second"));
    assert_eq!(queue.broker.retry(&id).await.unwrap(), JobState::Pending);
    let token = queue.claim(&worker).await.unwrap().token;
    assert_eq!(queue.broker.fail(&token, Failure::new(FailureClass::Fatal, "no")).await.unwrap(), JobState::Failed);

    // Wrong machine: never this worker again, another at once, no attempt charged.
    let id = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    queue.broker.fail(&token, Failure::new(FailureClass::WrongMachine, "no model")).await.unwrap();
    assert!(queue.claim(&worker).await.is_none());
    let other = queue.worker("other").await;
    let claim = queue.claim(&other).await.unwrap();
    assert_eq!((claim.job.id, claim.job.attempts), (id, 0));

    // Retried: rather by another worker.
    let id = queue.submit(json!({})).await;
    let token = queue.claim(&other).await.unwrap().token;
    queue.broker.fail(&token, Failure::new(FailureClass::Retryable, "again")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(queue.claim(&other).await.is_none(), "it failed here, and another worker matches");
    let token = queue.wait_claim(&worker).await.token;
    assert_eq!(token.job, id);
    // Nobody else takes it in time: the same again.
    queue.broker.fail(&token, Failure::new(FailureClass::Retryable, "again")).await.unwrap();
    let begun = Instant::now();
    assert_eq!(queue.wait_claim(&worker).await.job.id, id);
    assert!(begun.elapsed() >= LEASE / 2, "{:?}", begun.elapsed());
}

async fn keys_and_ids_make_submission_idempotent(backend: Backend) {
    let queue = backend.open();
    let first =
        queue.broker.submit(vec![job(json!({ "idempotency_key": "k" })), job(json!({ "id": "mine" }))]).await.unwrap();
    let again =
        queue.broker.submit(vec![job(json!({ "idempotency_key": "k" })), job(json!({ "id": "mine" }))]).await.unwrap();
    assert_eq!(first.iter().map(|s| &s.id).collect::<Vec<_>>(), again.iter().map(|s| &s.id).collect::<Vec<_>>());
    assert!(first.iter().all(|s| !s.duplicate) && again.iter().all(|s| s.duplicate));
    assert_eq!(queue.broker.stats().await.unwrap().pending, 2);
    let refused = queue.broker.submit(vec![job(json!({})), job(json!({ "timeout": "8d" }))]).await.unwrap_err();
    assert!(matches!(refused, BrokerError::Refused { index: 1, .. }), "{refused}");
    assert_eq!(queue.broker.stats().await.unwrap().pending, 2, "all or nothing");
}

async fn a_waiting_worker_is_woken_by_what_it_can_run(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    assert!(queue.claim(&worker).await.is_none());
    let (broker, begun) = (Arc::clone(&queue.broker), Instant::now());
    let submit = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        broker.submit(vec![job(json!({}))]).await.unwrap();
    });
    queue.broker.wait(&worker, Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "woken, not timed out");
    submit.await.unwrap();
    assert!(queue.claim(&worker).await.is_some());

    // Submitted between the claim that found nothing and the wait: not slept over.
    assert!(queue.claim(&worker).await.is_none());
    queue.submit(json!({})).await;
    let begun = Instant::now();
    queue.broker.wait(&worker, Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    queue.claim(&worker).await.unwrap();

    // A delayed job wakes when it is due.
    let due = Timestamp::now().plus(Duration::from_millis(300));
    let id = queue.submit(json!({ "not_before": due })).await;
    assert_eq!(queue.state(&id).await, JobState::Delayed);
    let claim = queue.wait_claim(&worker).await;
    assert_eq!(claim.job.id, id);
    assert!(Timestamp::now() >= due && begun.elapsed() < Duration::from_secs(10));
}

/// Whoever is idle has a lone job with its submission, as if it had claimed it.
async fn an_idle_worker_is_assigned_a_lone_job(backend: Backend) {
    let queue = backend.open();
    let worker = assignable("w");
    queue.broker.register(&worker, &capabilities("w", json!({}))).await.unwrap();
    let submit = async |value| queue.broker.submit(vec![job(value)]).await.unwrap().remove(0);
    let before = submit(json!({})).await;
    assert_eq!(before.state, JobState::Pending, "it has not claimed yet");
    let token = queue.claim(&worker).await.unwrap().token;
    queue.broker.complete(&token, json!(0)).await.unwrap();
    for n in 0..3 {
        assert!(queue.claim(&worker).await.is_none());
        let assigned = submit(json!({ "payload": n })).await;
        assert_eq!(assigned.state, JobState::Running);
        // It has one already.
        let next = submit(json!({})).await;
        assert_eq!(next.state, JobState::Pending);
        let begun = Instant::now();
        queue.broker.wait(&worker, Duration::from_secs(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "told, not timed out");
        let claim = queue.claim(&worker).await.unwrap();
        assert_eq!((&claim.job.id, &claim.job.submission.payload), (&assigned.id, &json!(n)));
        assert_eq!((claim.job.state, claim.job.worker.as_deref()), (JobState::Running, Some("w")));
        assert!(!queue.broker.is_idle(&worker));
        let other = queue.claim(&worker).await.unwrap();
        assert_eq!(other.job.id, next.id);
        for token in [claim.token, other.token] {
            queue.broker.complete(&token, json!(n)).await.unwrap();
        }
        let job = queue.broker.get(&assigned.id).await.unwrap();
        assert_eq!((job.state, job.result, job.losses), (JobState::Completed, Some(json!(n)), 0));
    }
    // What is paused waits, and is in nobody's way.
    assert!(queue.claim(&worker).await.is_none());
    let paused = Limit { paused: true, ..Limit::default() };
    queue.broker.set_limit(&"pool:p".parse().unwrap(), paused).await.unwrap();
    assert_eq!(submit(json!({ "requirement": { "pool": "p" } })).await.state, JobState::Pending);
    assert_eq!(submit(json!({ "requirement": { "pool": "p" } })).await.state, JobState::Pending);
    assert!(queue.claim(&worker).await.is_none());
    assert_eq!(submit(json!({})).await.state, JobState::Running);
    let stats = queue.broker.stats().await.unwrap();
    assert_eq!((stats.pending, stats.running), (2, 1));
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// It is told of nothing, assigned nothing, and what it was assigned goes to others at no charge.
async fn a_worker_that_rests_is_left_no_job(backend: Backend) {
    let queue = backend.open();
    let worker = assignable("w");
    queue.broker.register(&worker, &capabilities("w", json!({}))).await.unwrap();
    queue.broker.rest(&worker).await.unwrap();
    assert!(queue.claim(&worker).await.is_none());
    queue.broker.rest(&worker).await.unwrap();
    let left = queue.submit(json!({})).await;
    assert_eq!(queue.state(&left).await, JobState::Pending);
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, left);
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();

    assert!(queue.claim(&worker).await.is_none());
    let other = queue.worker("other").await;
    // Who has been idle longest is told by milliseconds.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(queue.claim(&other).await.is_none());
    let id = queue.submit(json!({})).await;
    assert_eq!(queue.state(&id).await, JobState::Running);
    queue.broker.rest(&worker).await.unwrap();
    let claim = queue.wait_claim(&other).await;
    assert_eq!((&claim.job.id, claim.job.attempts, claim.job.losses), (&id, 0, 0));
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    assert!(queue.claim(&worker).await.is_none());
    // Gone without a word: as with whatever it holds.
    let id = queue.submit(json!({})).await;
    assert_eq!(queue.state(&id).await, JobState::Running);
    queue.broker.deregister(&worker).await.unwrap();
    assert_eq!(queue.wait_claim(&other).await.job.id, id);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// One whose services are down, and one that is to end while a job of it runs.
async fn a_worker_that_cannot_start_leaves_jobs_to_others(backend: Backend) {
    let queue = backend.open();
    let (ready, gate) = watch::channel(Readiness::Ok(()));
    let slow = Arc::new(Gated::default());
    let worker = queue.start_when_ready(2, Arc::clone(&slow) as Arc<dyn Connector>, gate);
    let idle = async || queue.broker.is_idle(&assignable("w"));
    wait_until_async(idle).await;
    let first = queue.submit(json!({})).await;
    wait_until_async(async || slow.running.load(Ordering::SeqCst) == 1).await;
    wait_until_async(idle).await;
    let other = queue.worker("other").await;
    assert!(queue.claim(&other).await.is_none());
    ready.send(Err("down".to_owned())).unwrap();
    wait_until_async(async || !idle().await).await;
    let claim = async || {
        let id = queue.submit(json!({})).await;
        let claim = queue.wait_claim(&other).await;
        assert_eq!((&claim.job.id, claim.job.attempts, claim.job.losses), (&id, 0, 0));
        queue.broker.complete(&claim.token, json!(1)).await.unwrap();
        assert!(queue.claim(&other).await.is_none());
    };
    claim().await;
    ready.send(Ok(())).unwrap();
    wait_until_async(idle).await;
    worker.drain(Instant::now() + Duration::from_secs(60));
    wait_until_async(async || !idle().await).await;
    claim().await;
    assert_eq!(queue.state(&first).await, JobState::Running);
    slow.open.notify_one();
    worker.stopped().await;
    assert_eq!(queue.state(&first).await, JobState::Completed);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// Its jobs run until they are let go.
#[derive(Default)]
struct Gated {
    running: AtomicUsize,
    open: Notify,
}

#[async_trait]
impl Connector for Gated {
    async fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&self, _job: Arc<Job>, _context: JobContext) -> Result<Value, Failure> {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.open.notified().await;
        Ok(Value::Null)
    }
}

/// The connection breaks after the queue has written to it, and before that arrives: the worker has the job all the same, once.
#[tokio::test]
async fn an_assignment_that_is_lost_on_its_way_comes_with_the_next_claim() {
    let queue = Backend::Redis.open();
    let proxy = Proxy::start(queue.server.as_ref().unwrap().port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let far = connect_redis(url.parse().unwrap(), "test", config());
    let worker = assignable("w");
    far.register(&worker, &capabilities("w", json!({}))).await.unwrap();
    let request = up_to(&worker, 5);
    for round in 0..3 {
        assert_eq!(far.claim(&request).await.unwrap().len(), 0, "round {round}");
        proxy.stall(Duration::from_secs(30));
        let id = queue.submit(json!({})).await;
        assert_eq!(queue.state(&id).await, JobState::Running);
        proxy.break_all();
        proxy.stall(Duration::ZERO);
        // A second one meanwhile.
        let next = queue.submit(json!({})).await;
        let mut claims = Vec::new();
        let end = Instant::now() + Duration::from_secs(20);
        while claims.len() < 2 {
            assert!(Instant::now() < end, "{claims:?}");
            if let Ok(more) = far.claim(&request).await {
                claims.extend(more);
            }
        }
        let ids: Vec<&JobId> = claims.iter().map(|claim| &claim.job.id).collect();
        assert_eq!(ids, [&id, &next]);
        for claim in claims {
            assert_eq!((claim.job.attempts, claim.job.losses), (0, 0));
            far.complete(&claim.token, json!(1)).await.unwrap();
        }
    }
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn who_dies_gives_its_jobs_back_to_their_old_place(backend: Backend) {
    let queue = backend.open_with(short_lease());
    let old = queue.worker("w").await;
    let id = queue.submit(json!({})).await;
    queue.submit(json!({})).await;
    let token = queue.claim(&old).await.unwrap().token;
    // The same worker in a new life: at once.
    let new = who("w", "2");
    queue.broker.register(&new, &capabilities("w", json!({}))).await.unwrap();
    let claim = queue.claim(&new).await.unwrap();
    assert_eq!((&claim.job.id, claim.job.losses, claim.job.attempts), (&id, 1, 0));
    assert!(matches!(queue.broker.complete(&token, json!(1)).await, Err(BrokerError::StaleToken(_))));
    // A machine that vanishes: when its lease has ended.
    let reply = queue.broker.heartbeat(&new, &[claim.token.clone(), token], &BTreeSet::new()).await.unwrap();
    assert_eq!((reply.lost.len(), reply.cancelled.len()), (1, 0));
    queue.broker.reap().await.unwrap();
    assert_eq!(queue.state(&id).await, JobState::Running, "the lease holds");
    queue.reap_until(&id, |state| state != JobState::Running).await;
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!((job.state, job.losses), (JobState::Pending, 2));
    assert!(matches!(
        queue.broker.claim(&ClaimRequest { registration: new, limit: 1, loaded: BTreeSet::new() }).await,
        Err(BrokerError::NotRegistered(_))
    ));
    // One death too many: set aside.
    let third = queue.worker("third").await;
    queue.claim(&third).await.unwrap();
    queue.reap_until(&id, |state| state != JobState::Running).await;
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert!(job.failure.unwrap().message.contains("quarantined"));
}

async fn who_claims_all_there_is_need_not_ask_again(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    for _ in 0..3 {
        queue.submit(json!({})).await;
    }
    let claim = async |limit| {
        let request = up_to(&worker, limit);
        queue.broker.claim(&request).await.unwrap().len()
    };
    assert!(!queue.broker.is_idle(&worker), "it has not claimed yet");
    assert_eq!((claim(1).await, queue.broker.is_idle(&worker)), (1, false), "two are left");
    assert_eq!((claim(2).await, queue.broker.is_idle(&worker)), (2, false), "it asked for no more than there was");
    assert_eq!((claim(1).await, queue.broker.is_idle(&worker)), (0, true));
    queue.submit(json!({})).await;
    queue.broker.wait(&worker, Duration::from_secs(20)).await;
    assert_eq!((claim(2).await, queue.broker.is_idle(&worker)), (1, true), "one is no two");
    // It is woken for the next without having asked again.
    let begun = Instant::now();
    queue.submit(json!({})).await;
    queue.broker.wait(&worker, Duration::from_secs(20)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "woken, not timed out");
    assert_eq!(claim(1).await, 1);
}

async fn cancelling_ends_what_waits_and_tells_who_runs(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let waiting = queue.submit(json!({})).await;
    assert_eq!(queue.broker.cancel(&waiting).await.unwrap(), JobState::Cancelled);
    assert_eq!(queue.broker.cancel(&waiting).await.unwrap(), JobState::Cancelled);
    assert!(queue.claim(&worker).await.is_none());
    let running = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    assert_eq!(queue.broker.cancel(&running).await.unwrap(), JobState::Running);
    let reply = queue.broker.heartbeat(&worker, std::slice::from_ref(&token), &BTreeSet::new()).await.unwrap();
    assert_eq!(reply.cancelled, std::slice::from_ref(&running));
    queue.broker.fail(&token, Failure::new(FailureClass::Cancelled, "told to")).await.unwrap();
    assert_eq!(queue.state(&running).await, JobState::Cancelled);
    assert!(matches!(queue.broker.cancel(&JobId::new("none").unwrap()).await, Err(BrokerError::UnknownJob(_))));
    let done = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    queue.broker.complete(&token, json!(1)).await.unwrap();
    assert!(matches!(queue.broker.cancel(&done).await, Err(BrokerError::WrongState { .. })));
}

async fn only_workers_that_match_get_a_job_and_backlog_does_not_hide_it(backend: Backend) {
    let queue = backend.open();
    let small = queue.worker("small").await;
    let big = who("big", "1");
    queue.broker.register(&big, &capabilities("big", json!({ "models": ["sdxl"] }))).await.unwrap();
    for _ in 0..500 {
        queue.submit(json!({ "requirement": { "models": ["flux"] }, "priority": 9 })).await;
    }
    let id = queue.submit(json!({ "requirement": { "models": ["sdxl"] } })).await;
    assert!(queue.claim(&small).await.is_none());
    assert_eq!(queue.claim(&big).await.unwrap().job.id, id);
}

async fn lists_page_in_order(backend: Backend) {
    let queue = backend.open();
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(queue.submit(json!({ "payload": n })).await);
    }
    let mut filter = JobFilter { limit: Some(3), ..JobFilter::default() };
    let mut listed = Vec::new();
    loop {
        let page = queue.broker.list(&filter).await.unwrap();
        if page.is_empty() {
            break;
        }
        filter.offset = Some(filter.offset.unwrap_or(0) + 3);
        listed.extend(page.into_iter().map(|job| job.id));
    }
    assert_eq!(listed, ids);

    // Customers share places: each of these has the first, with the first job of all; then ids decide.
    for n in 0..50 {
        ids.push(queue.submit(json!({ "customer": format!("c{n}"), "service": format!("s{n}") })).await);
    }
    ids[1..].rotate_left(6);
    ids[..51].sort();
    let mut listed = Vec::new();
    for offset in (0..57).step_by(3) {
        let filter = JobFilter { limit: Some(3), offset: Some(offset), ..JobFilter::default() };
        listed.extend(queue.broker.list(&filter).await.unwrap().into_iter().map(|job| job.id));
    }
    assert_eq!(listed, ids);
    let none = JobFilter { service: Some(Name::new("other").unwrap()), ..JobFilter::default() };
    assert!(queue.broker.list(&none).await.unwrap().is_empty());
}

/// Random operations against a model that is plainly right: every claim is the best there is.
async fn every_claim_is_the_best_of_a_brute_force_model(backend: Backend) {
    let queue = backend.open();
    let profiles = [json!({}), json!({ "models": ["a"] }), json!({ "models": ["a", "b"] })];
    let mut workers = Vec::new();
    for (n, profile) in profiles.iter().enumerate() {
        let registration = who(&format!("w{n}"), "1");
        queue.broker.register(&registration, &capabilities(&format!("w{n}"), profile.clone())).await.unwrap();
        workers.push(registration);
    }
    let mut pending: BTreeMap<(i32, usize), (JobId, usize)> = BTreeMap::new();
    let mut held: Vec<(Claim, (i32, usize), usize)> = Vec::new();
    let mut seed = 42u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let needs = [json!([]), json!(["a"]), json!(["b", "a"])];
    for n in 0..1500 {
        match random(5) {
            0 | 1 => {
                let (need, priority) = (random(3), i32::try_from(random(4)).unwrap());
                let id = queue.submit(json!({ "requirement": { "models": needs[need] }, "priority": priority })).await;
                pending.insert((-priority, n), (id, need));
            }
            2 | 3 => {
                let worker = random(3);
                let claim = queue.claim(&workers[worker]).await;
                let best = pending.iter().find(|(_, (_, need))| *need <= worker).map(|(key, _)| *key);
                assert_eq!(claim.as_ref().map(|c| &c.job.id), best.map(|key| &pending[&key].0));
                if let (Some(claim), Some(key)) = (claim, best) {
                    let (_, need) = pending.remove(&key).unwrap();
                    held.push((claim, key, need));
                }
            }
            _ if !held.is_empty() => {
                let (claim, key, need) = held.swap_remove(random(held.len()));
                if random(2) == 0 {
                    queue.broker.release(&claim.token, "model").await.unwrap();
                    pending.insert(key, (claim.job.id, need));
                } else {
                    queue.broker.complete(&claim.token, json!(null)).await.unwrap();
                }
            }
            _ => {}
        }
    }
    let stats = queue.broker.stats().await.unwrap();
    assert_eq!((stats.pending, stats.running), (pending.len() as u64, held.len() as u64));
}

/// Up to 64 at once, of a hundred classes in two lanes.
async fn claims_of_many_jobs_are_the_best_of_many_classes(backend: Backend) {
    let queue = backend.open();
    let models = |end: usize| (0..end).map(|n| format!("m{n}")).collect::<Vec<_>>();
    let mut workers = Vec::new();
    for (name, known) in [("few", 50), ("all", 100)] {
        let registration = who(name, "1");
        queue.broker.register(&registration, &capabilities(name, json!({ "models": models(known) }))).await.unwrap();
        workers.push((registration, known));
    }
    let mut pending: BTreeMap<(i32, usize), (JobId, usize)> = BTreeMap::new();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..120 {
        let orders: Vec<_> = (0..random.random_range(0..60))
            .map(|n| {
                let (need, priority) = (random.random_range(0..100), random.random_range(0..3));
                let order = json!({ "requirement": { "models": [format!("m{need}")] }, "priority": priority });
                ((-priority, round * 100 + n), need, job(order))
            })
            .collect();
        let submitted = queue.broker.submit(orders.iter().map(|order| order.2.clone()).collect()).await.unwrap();
        pending.extend(orders.into_iter().zip(submitted).map(|((key, need, _), job)| (key, (job.id, need))));
        let (registration, known) = &workers[random.random_range(0..2)];
        let limit = random.random_range(1..=64);
        let request = up_to(registration, limit);
        let claims = queue.broker.claim(&request).await.unwrap();
        let fit = pending.iter().filter(|(_, (_, need))| need < known).take(limit as usize);
        let best: Vec<_> = fit.map(|(key, (id, _))| (*key, id.clone())).collect();
        let claimed: Vec<_> = claims.iter().map(|claim| &claim.job.id).collect();
        assert_eq!(claimed, best.iter().map(|(_, id)| id).collect::<Vec<_>>());
        pending.retain(|key, _| !best.iter().any(|(taken, _)| taken == key));
    }
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn steps_wait_for_the_steps_before_them(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let jobs = vec![
        job(json!({ "id": "one" })),
        job(json!({ "id": "two" })),
        job(json!({ "id": "both", "depends_on": ["one", "two"] })),
        job(json!({ "id": "after", "depends_on": ["both"] })),
        job(json!({ "id": "callback", "depends_on": ["one", "two", "both"], "on_dependency_failure": "run" })),
    ];
    let states: Vec<_> = queue.broker.submit(jobs).await.unwrap().into_iter().map(|job| job.state).collect();
    assert_eq!(states, [JobState::Pending, JobState::Pending, JobState::Blocked, JobState::Blocked, JobState::Blocked]);
    let id = |text: &str| JobId::new(text).unwrap();
    assert_eq!(queue.broker.get(&id("both")).await.unwrap().waits_for, 2);
    for _ in 0..2 {
        let claim = queue.claim(&worker).await.unwrap();
        queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    }
    queue.reap_until(&id("both"), |state| state == JobState::Pending).await;
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, id("both"));
    queue.broker.fail(&claim.token, Failure::new(FailureClass::Fatal, "no")).await.unwrap();
    queue.reap_until(&id("after"), JobState::is_final).await;
    let after = queue.broker.get(&id("after")).await.unwrap();
    assert_eq!(after.state, JobState::Failed);
    assert!(after.failure.unwrap().message.contains("both"));
    queue.reap_until(&id("callback"), |state| state == JobState::Pending).await;
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, id("callback"));
    // What has ended counts at once; what nobody knows is refused.
    let late = queue.broker.submit(vec![job(json!({ "depends_on": ["one"] }))]).await.unwrap();
    assert_eq!(late[0].state, JobState::Pending);
    let refused = queue.broker.submit(vec![job(json!({ "depends_on": ["nobody"] }))]).await.unwrap_err();
    assert!(refused.to_string().contains("nobody"), "{refused}");
}

async fn what_is_paused_or_limited_waits_and_holds_nothing_else_up(backend: Backend) {
    let queue = backend.open();
    let worker = who("w", "1");
    let both = json!({ "services": ["work", "other"] });
    queue.broker.register(&worker, &capabilities("w", both)).await.unwrap();
    let scope = Scope::Service(Name::new("work").unwrap());
    queue.broker.set_limit(&scope, Limit { paused: true, ..Limit::default() }).await.unwrap();
    let held = queue.submit(json!({})).await;
    let free = queue.submit(json!({ "service": "other" })).await;
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, free);
    assert!(queue.claim(&worker).await.is_none());
    let why = queue.broker.explain(&held).await.unwrap().reason;
    assert!(why.contains("service:work is paused"), "{why}");
    let waiting = tokio::spawn({
        let (broker, worker) = (Arc::clone(&queue.broker), worker.clone());
        async move { broker.wait(&worker, Duration::from_secs(20)).await }
    });
    let begun = Instant::now();
    queue.broker.set_limit(&scope, Limit::default()).await.unwrap();
    waiting.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "resuming wakes");
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, held);
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();

    // At most two of one customer at once.
    let scope = Scope::Customer("a b:c".to_owned());
    queue.broker.set_limit(&scope, Limit { max_running: Some(2), ..Limit::default() }).await.unwrap();
    for n in 0..4 {
        queue.submit(json!({ "customer": "a b:c", "payload": n })).await;
    }
    let (first, second) = (queue.claim(&worker).await.unwrap(), queue.claim(&worker).await.unwrap());
    assert!(queue.claim(&worker).await.is_none());
    assert_eq!(queue.broker.limits().await.unwrap()[0].2, 2);
    queue.broker.complete(&first.token, json!(1)).await.unwrap();
    let third = queue.claim(&worker).await.unwrap();
    assert!(queue.claim(&worker).await.is_none());
    queue.broker.release(&third.token, "x").await.unwrap();
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, third.job.id, "its old place");
    queue.broker.complete(&second.token, json!(1)).await.unwrap();
    queue.claim(&worker).await.unwrap();

    // Ten a second, two at once.
    let scope = Scope::Service(Name::new("other").unwrap());
    let limit = Limit { per_second: Some(10.0), burst: Some(2), ..Limit::default() };
    queue.broker.set_limit(&scope, limit).await.unwrap();
    for _ in 0..5 {
        queue.submit(json!({ "service": "other" })).await;
    }
    let begun = Instant::now();
    for _ in 0..5 {
        queue.wait_claim(&worker).await;
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

async fn customers_take_turns(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let many: Vec<Submission> = (0..50).map(|n| job(json!({ "customer": "big", "payload": n }))).collect();
    queue.broker.submit(many).await.unwrap();
    for n in 0..3 {
        queue.submit(json!({ "customer": "small", "payload": n })).await;
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let claim = queue.claim(&worker).await.unwrap();
        order.push((claim.job.submission.customer.unwrap(), claim.job.submission.payload.as_u64().unwrap()));
    }
    let of = |who: &str| order.iter().filter(|(name, _)| name == who).map(|(_, n)| *n).collect::<Vec<_>>();
    assert_eq!(of("small"), [0, 1, 2], "nobody waits for the whole backlog of another: {order:?}");
    assert_eq!(of("big"), [0, 1, 2, 3, 4], "first in, first out for each: {order:?}");
}

async fn later_steps_of_a_workflow_inherit_its_place(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    queue.submit(json!({ "workflow": { "id": "flow", "step": 1, "of": 2 } })).await;
    let claim = queue.claim(&worker).await.unwrap();
    for _ in 0..3 {
        queue.submit(json!({})).await;
    }
    let step = queue.submit(json!({ "workflow": { "id": "flow", "step": 2, "of": 2 } })).await;
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, step, "it began before those");
}

async fn jobs_prefer_a_worker_that_has_their_model_loaded(backend: Backend) {
    let queue = backend.open();
    let (warm, cold) = (queue.worker("warm").await, queue.worker("cold").await);
    let loaded = BTreeSet::from(["sdxl".to_owned()]);
    queue.broker.heartbeat(&warm, &[], &loaded).await.unwrap();
    let affine = json!({ "affinity": { "model": "sdxl", "wait": "700ms" } });
    let id = queue.submit(affine.clone()).await;
    assert!(queue.claim(&cold).await.is_none(), "left to the worker that has it loaded");
    let request = ClaimRequest { registration: warm.clone(), limit: 1, loaded: loaded.clone() };
    let held = queue.broker.claim(&request).await.unwrap().remove(0);
    assert_eq!(held.job.id, id);
    // Bounded: when the wait is over, anybody takes it.
    let second = queue.submit(affine.clone()).await;
    let begun = Instant::now();
    assert_eq!(queue.wait_claim(&cold).await.job.id, second);
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    // Among equals the loaded model goes first, within bounds.
    queue.broker.heartbeat(&warm, &[held.token], &loaded).await.unwrap();
    queue.submit(json!({})).await;
    let third = queue.submit(affine).await;
    assert_eq!(queue.broker.claim(&request).await.unwrap()[0].job.id, third);
}

async fn schedules_submit_each_time_once(backend: Backend) {
    let queue = backend.open();
    let name = Name::new("tick").unwrap();
    let schedule = JobSchedule { name: name.clone(), cron: "* * * * * *".into(), job: job(json!({})), next: None };
    let bad = JobSchedule { cron: "whenever".into(), ..schedule.clone() };
    assert!(matches!(queue.broker.put_schedule(bad).await, Err(BrokerError::Refused { .. })));
    if queue.broker.put_schedule(schedule.clone()).await.is_err() {
        // The dialect has no seconds.
        let schedule = JobSchedule { cron: "* * * * *".into(), ..schedule };
        queue.broker.put_schedule(schedule).await.unwrap();
        assert_eq!(queue.broker.schedules().await.unwrap().len(), 1);
        assert!(queue.broker.drop_schedule(&name).await.unwrap());
        return;
    }
    let end = Instant::now() + Duration::from_secs(20);
    while queue.broker.stats().await.unwrap().pending < 2 {
        assert!(Instant::now() < end);
        let (one, two) = tokio::join!(queue.broker.reap(), queue.broker.reap());
        two.unwrap();
        queue.broker.reap_wanted(one.unwrap().next).await;
    }
    let jobs = queue.broker.list(&JobFilter::default()).await.unwrap();
    let keys: BTreeSet<_> = jobs.iter().map(|job| job.submission.idempotency_key.clone().unwrap()).collect();
    assert_eq!(keys.len(), jobs.len());
    assert!(queue.broker.drop_schedule(&name).await.unwrap());
    assert!(!queue.broker.drop_schedule(&name).await.unwrap());
}

async fn jobs_explain_why_they_wait(backend: Backend) {
    let queue = backend.open();
    let id = queue.submit(json!({ "requirement": { "models": ["flux"] } })).await;
    assert_eq!(queue.broker.explain(&id).await.unwrap().reason, "no worker is registered");
    let worker = queue.worker("w").await;
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    let explained = queue.broker.explain(&id).await.unwrap();
    assert!(explained.reason.contains("none of the 1"), "{explained:?}");
    assert!(explained.workers[0].mismatch.as_ref().unwrap().contains("flux"), "{explained:?}");
    queue.broker.register(&worker, &capabilities("w", json!({ "models": ["flux"] }))).await.unwrap();
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, id, "new capabilities count at once");
    assert!(queue.broker.explain(&id).await.unwrap().reason.contains("runs on w"));
    let classes = queue.broker.classes(0, 10).await.unwrap();
    assert_eq!((classes.len(), classes[0].pending, classes[0].live), (1, 0, 1));
}

async fn events_are_ordered_bounded_and_followed(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    for n in 0..1_005 {
        queue.broker.log(&token, format!("line {n}")).await.unwrap();
    }
    let (broker, followed) = (Arc::clone(&queue.broker), id.clone());
    let follower = tokio::spawn(async move {
        let mut after = 1_006;
        loop {
            let events = broker.events(&followed, after).await.unwrap();
            if let Some(end) = events.iter().find(|event| event.kind == "completed") {
                return end.seq;
            }
            after = events.last().map_or(after, |event| event.seq);
            broker.wait_events(&followed, after, Duration::from_secs(20)).await;
        }
    });
    queue.broker.partial(&token, json!({ "text": "half" })).await.unwrap();
    queue.broker.complete(&token, json!(1)).await.unwrap();
    let last = tokio::time::timeout(Duration::from_secs(10), follower).await.unwrap().unwrap();
    assert_eq!(last, 1_009, "submitted, claimed, 1,005 lines, partial, completed");
    let seen: Vec<_> = queue.all_events(&id).await.into_iter().map(|event| event.seq).collect();
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "in order");
    assert!(seen.len() <= 1_001 && *seen.last().unwrap() == 1_009, "{} kept", seen.len());
}

async fn webhooks_are_sent_signed_until_they_are_accepted(backend: Backend) {
    let receiver = support::http::Receiver::start(&[500, 200]);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sender = WebhookSender::new(reqwest::Client::new(), Some(b"secret".to_vec()));
    let queue = backend.open_with(QueueConfig { webhooks: Some(Arc::new(sender)), ..config() });
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({ "webhook": receiver.url() })).await;
    let token = queue.claim(&worker).await.unwrap().token;
    queue.broker.complete(&token, json!({ "answer": 42 })).await.unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while receiver.requests().len() < 2 || queue.broker.stats().await.unwrap().webhooks > 0 {
        assert!(Instant::now() < end, "{:?}", receiver.requests());
        queue.broker.reap().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let requests = receiver.requests();
    let header = |n: usize, name: &str| {
        let line = requests[n].lines().find(|line| line.to_lowercase().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name}")).split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(header(0, "webhook-id"), header(1, "webhook-id"), "the same for every try");
    assert!(header(1, "webhook-signature").starts_with("v1,"));
    assert!(requests[1].contains("\"answer\":42") && requests[1].contains(id.as_str()));
}

async fn an_inbox_takes_what_plain_clients_push(backend: Backend) {
    let Backend::Redis = backend else { return };
    let queue = backend.open();
    let server = queue.server.as_ref().unwrap();
    let worker = queue.worker("w").await;
    for entry in ["{\"service\":\"work\",\"id\":\"a\"}", "no json", "{\"service\":\"work\",\"id\":\"b\"}"] {
        server.command(&["RPUSH", "{test}:inbox", entry]);
    }
    server.command(&["PUBLISH", "{test}:wake", "inbox"]);
    queue.broker.reap_wanted(Duration::from_secs(5)).await;
    queue.broker.reap().await.unwrap();
    assert_eq!(queue.claim(&worker).await.unwrap().job.id.as_str(), "a");
    assert_eq!(queue.claim(&worker).await.unwrap().job.id.as_str(), "b");
    assert!(server.command(&["LRANGE", "{test}:refused", "0", "-1"]).contains("no json"));
}

async fn finished_jobs_are_kept_as_long_as_they_should(backend: Backend) {
    let queue = backend.open_with(QueueConfig { max_finished: 5, ..config() });
    let worker = queue.worker("w").await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(queue.submit(json!({ "idempotency_key": format!("k{n}") })).await);
        let token = queue.claim(&worker).await.unwrap().token;
        queue.broker.complete(&token, json!(n)).await.unwrap();
    }
    queue.broker.reap().await.unwrap();
    assert_eq!(queue.broker.stats().await.unwrap().completed, 5);
    assert!(matches!(queue.broker.get(&ids[0]).await, Err(BrokerError::UnknownJob(_))));
    assert!(queue.broker.get(&ids[11]).await.is_ok());
    // The key of what is no longer kept is free again.
    let again =
        queue.broker.submit(vec![job(json!({ "idempotency_key": "k0" })), job(json!({ "idempotency_key": "k11" }))]);
    let again = again.await.unwrap();
    assert_eq!((again[0].duplicate, again[1].duplicate), (false, true));
    queue.broker.drop_job(&ids[11]).await.unwrap();
    assert!(matches!(queue.broker.drop_job(&again[0].id).await, Err(BrokerError::WrongState { .. })));
}

fn files_below(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

async fn large_data_lie_in_the_blob_store_as_long_as_their_job(backend: Backend) {
    let store = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(store.path().to_str().unwrap(), []).unwrap().within("test");
    let config = QueueConfig { blobs: Some(blobs), keep_finished: Duration::ZERO, ..config() };
    let queue = backend.open_with(config.clone());
    let worker = queue.worker("w").await;
    let large = |with: &str| json!({ "text": with.repeat(2 * 1024 * 1024) });
    let value = json!({ "payload": large("a"), "idempotency_key": "k" });
    let id = queue.submit(value.clone()).await;
    assert_eq!(files_below(store.path()), 1);
    assert_eq!(queue.submit(value).await, id);
    assert_eq!(files_below(store.path()), 1, "nothing of the second is left");

    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.submission.payload, Value::Null, "it is read when it is needed");
    assert_eq!(queue.broker.load(claim.job).await.unwrap().submission.payload, large("a"));
    queue.broker.complete(&claim.token, large("b")).await.unwrap();
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!((&job.result, job.result_blob.as_ref().map(|blob| blob.bytes > 1 << 21)), (&None, Some(true)));
    let whole = queue.broker.load(job.clone()).await.unwrap();
    assert_eq!((whole.result, whole.submission.payload), (Some(large("b")), large("a")));
    if let Some(server) = &queue.server {
        let used: String = server.command(&["MEMORY", "USAGE", &format!("{{test}}:j:{id}")]);
        assert!(used.trim().parse::<u32>().unwrap() < 1_000, "{used}");
    }
    // Damage is noticed, not handed on.
    let of_result = files_of(store.path(), "result").remove(0);
    std::fs::write(&of_result, "[]").unwrap();
    let damaged = queue.broker.load(job).await.unwrap_err();
    assert!(damaged.to_string().contains("SHA-256"), "{damaged}");

    // What is kept no longer is kept nowhere.
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
    let end = Instant::now() + Duration::from_secs(20);
    while files_below(store.path()) > 0 {
        assert!(Instant::now() < end, "the blobs of a job that is gone are still there");
        queue.broker.reap().await.unwrap();
    }
    assert!(matches!(queue.broker.get(&id).await, Err(BrokerError::UnknownJob(_))));

    // A process that was killed before it queued the job leaves a payload behind, which `verify` finds after a day.
    let orphan = config.blobs.unwrap().put("lost", "payload", b"{}".to_vec()).await.unwrap();
    assert_eq!(queue.broker.verify(true).await.unwrap(), Vec::<String>::new(), "it may be about to be queued");
    let file = std::fs::File::options().write(true).open(store.path().join("test").join(orphan.key)).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_hours(25)).unwrap();
    let found = queue.broker.verify(true).await.unwrap();
    assert!(found.len() == 1 && found[0].contains("job lost"), "{found:?}");
    assert_eq!(files_below(store.path()), 0);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// Files whose name begins so, anywhere below.
fn files_of(dir: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_of(&path, name));
        } else if entry.file_name().to_string_lossy().starts_with(name) {
            found.push(path);
        }
    }
    found
}

/// What is not large enough for the blob store may be much together, and Redis ends connections that have too much to take.
async fn many_jobs_of_almost_a_mebibyte_are_run_together(backend: Backend) {
    const JOBS: usize = 64;
    let queue = backend.open();
    let worker = queue.worker("w").await;
    if let Some(server) = &queue.server {
        // No call and no answer has much more than 4 MiB.
        for (limit, most) in [("client-output-buffer-limit", "normal 8mb 0 0"), ("client-query-buffer-limit", "8mb")] {
            assert_eq!(server.command(&["CONFIG", "SET", limit, most]).trim(), "OK");
        }
    }
    let (payload, result) = ("x".repeat(1_000_000), "y".repeat(900_000));
    queue.broker.submit((0..JOBS).map(|_| job(json!({ "payload": payload }))).collect()).await.unwrap();
    let claims = queue.broker.claim(&up_to(&worker, 64)).await.unwrap();
    assert_eq!(claims.len(), JOBS);
    let whole = |text: &Value, of: &str| assert_eq!(text.as_str().map(str::len), Some(of.len()));
    for claim in &claims {
        whole(&claim.job.submission.payload, &payload);
    }
    for claim in &claims[..8] {
        queue.broker.partial(&claims[0].token, json!(result)).await.unwrap();
        queue.broker.save(&claim.token, json!(result)).await.unwrap();
    }
    let events = queue.all_events(&claims[0].job.id).await;
    assert_eq!(events.iter().filter(|event| event.kind == "partial").count(), 8);
    let outcomes = claims.iter().map(|claim| queue.broker.complete(&claim.token, json!(result)));
    futures_util::future::try_join_all(outcomes).await.unwrap();
    let (mut cursor, mut seen) = (None, 0);
    loop {
        let (jobs, next) = queue.broker.scan(cursor).await.unwrap();
        seen += jobs.len();
        for job in jobs {
            whole(&job.submission.payload, &payload);
            whole(&job.result.unwrap(), &result);
        }
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, JOBS);
}

/// Reports more parts than are kept.
struct Talkative;

#[async_trait]
impl Connector for Talkative {
    async fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&self, _job: Arc<Job>, context: JobContext) -> Result<Value, Failure> {
        context.sink.partial(json!("x".repeat(2_000_000)));
        for _ in 0..20 {
            context.sink.partial(json!("x".repeat(1_000_000)));
        }
        context.sink.partial(json!("small"));
        Ok(Value::Null)
    }
}

#[tokio::test]
async fn parts_of_a_result_are_kept_within_bounds() {
    let queue = Backend::Embedded.open();
    queue.start_worker(1, Arc::new(Talkative));
    let id = queue.submit(json!({})).await;
    wait_until_async(async || queue.state(&id).await == JobState::Completed).await;
    let events = queue.all_events(&id).await;
    let logs: Vec<_> =
        events.iter().filter(|event| event.kind == "log").map(|event| event.data["line"].to_string()).collect();
    let parts = events.iter().filter(|event| event.kind == "partial").count();
    assert_eq!(parts, 17, "16 of a megabyte and the small one");
    assert!(logs.len() == 1 && logs[0].contains("with 2000002 bytes is not kept"), "{logs:?}");
}

#[tokio::test]
async fn without_a_blob_store_large_data_are_refused_with_the_setting_that_helps() {
    let queue = Backend::Embedded.open();
    let worker = queue.worker("w").await;
    let refused = queue.broker.submit(vec![job(json!({ "payload": "x".repeat(1_100_000) }))]).await.unwrap_err();
    assert!(refused.to_string().contains("blobs.url"), "{refused}");
    queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    let refused = queue.broker.complete(&token, json!("x".repeat(1_100_000))).await.unwrap_err();
    assert!(matches!(&refused, BrokerError::TooLarge(why) if why.contains("blobs.url")), "{refused}");
    queue.broker.complete(&token, json!("small")).await.unwrap();
}

async fn numbers_are_told_by_service_and_pool_however_many_classes(backend: Backend) {
    const CLASSES: u64 = 1_200;
    let queue = backend.open();
    let registration = queue.worker("w").await;
    // A class each, none of which the worker matches.
    let each =
        |n: u64| job(json!({ "service": format!("s{}", n % 3), "requirement": { "models": [format!("m{n}")] } }));
    queue.broker.submit((0..CLASSES).map(each).collect()).await.unwrap();
    // Of one class, at several priorities: the oldest is not the first.
    let mut ids = Vec::new();
    for priority in [0, 5, 9] {
        ids.push(queue.submit(json!({ "priority": priority, "requirement": { "pool": "p" } })).await);
        // Another millisecond has come.
        let now = Timestamp::now();
        while Timestamp::now() == now {
            tokio::task::yield_now().await;
        }
    }
    queue.submit(json!({ "not_before": "2099-01-01T00:00:00Z" })).await;
    let first = queue.claim(&registration).await.unwrap();
    if let Some(server) = &queue.server {
        server.command(&["CONFIG", "RESETSTAT"]);
    }
    let backlog = queue.broker.backlog().await.unwrap();
    if let Some(server) = queue.server.as_ref().filter(|_| std::env::var_os("QUEUE_TOPOLOGY").is_none()) {
        // Not the time of all of them in one.
        let stats = server.command(&["INFO", "commandstats"]);
        let number = |line: &str, name: &str| {
            let value = line.split([':', ',']).find_map(|part| part.strip_prefix(name)?.parse::<f64>().ok());
            value.unwrap_or(0.0)
        };
        let calls: Vec<&str> = stats.lines().filter(|line| line.starts_with("cmdstat_fcall")).collect();
        let count: f64 = calls.iter().map(|line| number(line, "calls=")).sum();
        let micros: f64 = calls.iter().map(|line| number(line, "usec=")).sum();
        println!("{count} calls for {CLASSES} classes took {} us each", micros / count);
        assert!(count > 10.0 && micros / count < 2_000.0, "{stats}");
    }
    let service = |name: &str| backlog.services[&Name::new(name).unwrap()].clone();
    assert_eq!((service("s0").pending, service("s1").pending, service("s2").pending), (400, 400, 400));
    let work = service("work");
    assert_eq!((work.pending, work.running, work.later), (2, 1, 1), "{first:?}");
    let pool = &backlog.pools[&Name::new("p").unwrap()];
    assert_eq!((pool.pending, pool.running, pool.later), (2, 1, 0));
    assert_eq!(pool.oldest, Some(queue.broker.get(&ids[0]).await.unwrap().submitted));
    assert_eq!(backlog.unmatched_jobs(), CLASSES, "those of the worker's own are matched");
    // Who comes is heard of, who goes too.
    let rich = who("rich", "1");
    let models: Vec<String> = (0..CLASSES).map(|n| format!("m{n}")).collect();
    let all = capabilities("rich", json!({ "services": ["s0", "s1", "s2"], "models": models }));
    queue.broker.register(&rich, &all).await.unwrap();
    let until = |jobs: u64| {
        let broker = Arc::clone(&queue.broker);
        async move {
            let deadline = Instant::now() + Duration::from_secs(30);
            while broker.backlog().await.unwrap().unmatched_jobs() != jobs {
                assert!(Instant::now() < deadline, "{jobs} unmatched");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    until(0).await;
    queue.broker.deregister(&rich).await.unwrap();
    until(CLASSES).await;
}

async fn a_worker_is_told_what_it_waits_for(backend: Backend) {
    let queue = backend.open();
    let registration = queue.worker("w").await;
    let told = || async { queue.broker.explain_worker("w").await.unwrap().unwrap() };
    assert_eq!(queue.broker.explain_worker("nobody").await.unwrap(), None);
    assert_eq!(told().await.reason, "no job waits");
    // More classes than one answer of the store has; the last matters.
    let each = |n: u32| job(json!({ "requirement": { "models": [format!("m{n}")] } }));
    queue.broker.submit((0..1_050).map(each).collect()).await.unwrap();
    let explained = told().await;
    assert_eq!((explained.runs.len(), explained.refuses.len()), (0, 1_050));
    assert_eq!(explained.reason, "1050 jobs wait, none of them may run on it");
    queue.submit(json!({})).await;
    assert_eq!(told().await.reason, "1 jobs wait that it takes when it has a free slot");
    let scope: Scope = "service:work".parse().unwrap();
    queue.broker.set_limit(&scope, Limit { paused: true, ..Limit::default() }).await.unwrap();
    assert!(queue.claim(&registration).await.is_none());
    assert_eq!(told().await.reason, "1 jobs wait that it may run, held by service:work");
    queue.broker.set_limit(&scope, Limit::default()).await.unwrap();
    queue.claim(&registration).await.unwrap();

    // A job that is left to another, which has its model loaded.
    let warm = queue.worker("warm").await;
    queue.broker.heartbeat(&warm, &[], &BTreeSet::from(["sdxl".to_owned()])).await.unwrap();
    queue.submit(json!({ "affinity": { "model": "sdxl", "wait": "60s" } })).await;
    let explained = told().await;
    assert_eq!(
        explained.reason,
        "1 jobs wait that it may run, held by a worker that has their model loaded for 1m (warm)"
    );
    assert_eq!(explained.runs.iter().find(|run| run.class.pending == 1).unwrap().left_to, ["warm"]);
    let other = queue.broker.explain_worker("warm").await.unwrap().unwrap();
    assert_eq!(other.reason, "1 jobs wait that it takes when it has a free slot");
    // It failed here: others first.
    let loaded = BTreeSet::from(["sdxl".to_owned()]);
    let request = ClaimRequest { registration: warm.clone(), limit: 1, loaded };
    let claim = queue.broker.claim(&request).await.unwrap().remove(0);
    queue.broker.fail(&claim.token, Failure::new(FailureClass::WrongMachine, "not here")).await.unwrap();
    let other = queue.broker.explain_worker("warm").await.unwrap().unwrap();
    assert!(other.refuses.iter().any(|refused| refused.why == "the job failed here before"), "{other:?}");
}

async fn verify_finds_nothing_wrong_after_everything(backend: Backend) {
    let queue = backend.open();
    let workers = [queue.worker("a").await, queue.worker("b").await];
    let mut seed = 7u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut held: Vec<Token> = Vec::new();
    let mut known: Vec<JobId> = Vec::new();
    for n in 0..600 {
        match random(9) {
            0..=2 => {
                let customer = ["x", "y"][random(2)];
                let mut value = json!({ "priority": random(3), "customer": customer });
                if random(4) == 0 && !known.is_empty() {
                    value["depends_on"] = json!([known[random(known.len())]]);
                }
                if random(5) == 0 {
                    value["unique_key"] = json!(format!("u{}", random(3)));
                }
                if random(6) == 0 {
                    value["not_before"] = json!(Timestamp::now().plus(Duration::from_millis(30)));
                }
                known.push(queue.submit(value).await);
            }
            3 | 4 => held.extend(queue.claim(&workers[random(2)]).await.map(|claim| claim.token)),
            5 if !held.is_empty() => {
                let _ = queue.broker.complete(&held.swap_remove(random(held.len())), json!(n)).await;
            }
            6 if !held.is_empty() => {
                let class = [FailureClass::Retryable, FailureClass::Fatal, FailureClass::WrongMachine][random(3)];
                let _ = queue.broker.fail(&held.swap_remove(random(held.len())), Failure::new(class, "x")).await;
            }
            7 if !known.is_empty() => {
                let id = &known[random(known.len())];
                let _ = if random(2) == 0 { queue.broker.cancel(id).await } else { queue.broker.retry(id).await };
            }
            _ => {
                let scope = Scope::Customer("x".into());
                let limit = Limit { max_running: Some(2), paused: random(4) == 0, ..Limit::default() };
                queue.broker.set_limit(&scope, limit).await.unwrap();
                queue.broker.reap().await.unwrap();
            }
        }
    }
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
    let mut cursor = None;
    let mut scanned = BTreeSet::new();
    loop {
        let (page, next) = queue.broker.scan(cursor).await.unwrap();
        scanned.extend(page.into_iter().map(|job| job.id));
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(scanned, known.iter().cloned().collect());
    // Damage is found and mended.
    if let Some(server) = &queue.server {
        let id = queue.submit(json!({})).await;
        server.command(&["SET", "{test}:np", "99"]);
        server.command(&["ZADD", "{test}:f:f", "1", id.as_str()]);
        let other = queue.submit(json!({})).await;
        server.command(&["HSET", &format!("{{test}}:m:{other}"), "at", "1"]);
        assert!(queue.broker.verify(false).await.unwrap().len() >= 3);
        queue.broker.verify(true).await.unwrap();
        queue.broker.verify(true).await.unwrap();
        assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
    }
    drop(queue.dir);
}

/// Of what is kept twice, so that the functions find it fast, one half is taken away or changed.
#[tokio::test]
async fn verify_finds_each_half_that_is_missing() {
    let queue = Backend::Redis.open();
    let server = queue.server.as_ref().unwrap();
    let worker = queue.worker("w").await;
    for n in 0..2 {
        queue.submit(json!({})).await;
        let claim = queue.claim(&worker).await.unwrap();
        queue.broker.complete(&claim.token, json!(n)).await.unwrap();
    }
    let tried = queue.submit(json!({})).await;
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.release(&claim.token, "not now").await.unwrap();
    let running = queue.submit(json!({ "priority": 1 })).await;
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, running);
    queue.broker.log(&claim.token, "half of it".to_owned()).await.unwrap();
    let first = queue.submit(json!({})).await;
    queue.submit(json!({ "depends_on": [first.as_str()] })).await;
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());

    let run = server.command(&["HGET", "{test}:R", running.as_str()]);
    let words: Vec<&str> = run.trim().splitn(7, ' ').collect();
    let [claimed @ .., flags, scopes] = words.as_slice() else { panic!("{run}") };
    let silent = format!("{} {} {scopes}", claimed.join(" "), flags.strip_suffix('h').unwrap());
    for (damage, found) in [
        (vec!["DEL", "{test}:fc"], "would be kept for ever"),
        (vec!["SET", "{test}:fp", "7"], "would be kept for ever"),
        (vec!["DEL", "{test}:ds"], "would not be told"),
        (vec!["DEL", "{test}:ch"], "would not be seen"),
        (vec!["ZADD", "{test}:r", "1", tried.as_str()], "does not run"),
        (vec!["HSET", "{test}:R", running.as_str(), silent.as_str()], "would be no event"),
        (vec!["HSET", "{test}:run", "service:work", "7"], "service:work counts 7 running jobs and has 1"),
        (vec!["DEL", "{test}:run"], "service:work counts 0 running jobs and has 1"),
        (vec!["HSET", "{test}:lim", "service:work", "many - - 0"], "limit of service:work cannot be read"),
        (vec!["HSET", "{test}:al", "account:a", "- 3 - 0"], "limit of account:a cannot be read"),
        (vec!["HSET", "{test}:ah", "a", "soon"], "hold of account a cannot be read"),
        (vec!["HSET", "{test}:as", "nobody", "job 1"], "nobody was assigned a job and is gone"),
    ] {
        server.command(&damage);
        let problems = queue.broker.verify(false).await.unwrap();
        assert!(
            !problems.is_empty() && problems.iter().all(|problem| problem.contains(found)),
            "{damage:?}: {problems:?}"
        );
        queue.broker.verify(true).await.unwrap();
        assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new(), "{damage:?}");
    }
    // Engines before this one did not write down what a running job counts for.
    let other = queue.claim(&worker).await.unwrap();
    for id in [&running, &other.token.job] {
        let run = server.command(&["HGET", "{test}:R", id.as_str()]);
        server.command(&["HSET", "{test}:R", id.as_str(), run.trim().strip_suffix(" service:work").unwrap()]);
    }
    queue.broker.complete(&claim.token, json!(2)).await.unwrap();
    queue.broker.release(&other.token, "not now").await.unwrap();
    assert_eq!(server.command(&["HLEN", "{test}:run"]).trim(), "0");
    let filter = JobFilter { state: Some(JobState::Completed), ..JobFilter::default() };
    assert_eq!(queue.broker.list(&filter).await.unwrap().len(), 3);
}

/// How many jobs ran at once at most, and how often each ran.
#[derive(Default)]
struct Counting {
    running: AtomicUsize,
    most: AtomicUsize,
    runs: Mutex<BTreeMap<JobId, u32>>,
}

#[async_trait]
impl Connector for Counting {
    async fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&self, job: Arc<Job>, _context: JobContext) -> Result<Value, Failure> {
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..3))).await;
        *self.runs.lock().unwrap().entry(job.id.clone()).or_default() += 1;
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
}

/// Claims are under way while the jobs of others run, and while the worker is told to end.
async fn a_worker_runs_as_many_jobs_as_it_has_slots_and_leaves_none(backend: Backend) {
    const JOBS: u64 = 4_000;
    const SLOTS: u32 = 40;
    let queue = backend.open();
    queue.broker.submit((0..JOBS).map(|_| job(json!({}))).collect()).await.unwrap();
    let counting = Arc::new(Counting::default());
    let worker = queue.start_worker(SLOTS, Arc::clone(&counting) as Arc<dyn Connector>);
    let ran = || counting.runs.lock().unwrap().len() as u64;
    let end = Instant::now() + Duration::from_secs(60);
    while ran() < JOBS / 2 {
        assert!(Instant::now() < end, "{} jobs have run", ran());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    worker.drain(Instant::now() + Duration::from_secs(60));
    worker.stopped().await;
    assert_eq!(counting.most.load(Ordering::SeqCst), usize::try_from(SLOTS).unwrap());
    assert!(counting.runs.lock().unwrap().values().all(|times| *times == 1));
    let stats = queue.broker.stats().await.unwrap();
    assert_eq!((stats.running, stats.completed, stats.pending), (0, ran(), JOBS - ran()));
    assert!(stats.pending > 0, "it was to end before that");
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn customers_at_the_same_place_go_before_the_next_place(backend: Backend) {
    let queue = backend.open();
    queue.worker("small").await;
    let big = who("big", "1");
    queue.broker.register(&big, &capabilities("big", json!({ "models": ["a"] }))).await.unwrap();
    // Of different lanes: one may run on both workers, the other on one.
    for n in 0..3 {
        queue.submit(json!({ "customer": "x", "payload": n })).await;
        queue.submit(json!({ "customer": "y", "payload": n, "requirement": { "models": ["a"] } })).await;
    }
    for turn in 0..3 {
        let request = up_to(&big, 2);
        let claims = queue.broker.claim(&request).await.unwrap();
        let customers: BTreeSet<_> =
            claims.iter().map(|claim| claim.job.submission.customer.clone().unwrap()).collect();
        assert_eq!(customers, ["x".to_owned(), "y".to_owned()].into());
        assert!(claims.iter().all(|claim| claim.job.submission.payload == json!(turn)));
    }
}

async fn room_is_given_to_whom_there_is_a_worker_for(backend: Backend) {
    let queue = backend.open();
    let small = queue.worker("small").await;
    let big = who("big", "1");
    queue.broker.register(&big, &capabilities("big", json!({ "models": ["a"] }))).await.unwrap();
    let scope = Scope::Service(Name::new("work").unwrap());
    queue.broker.set_limit(&scope, Limit { max_running: Some(1), ..Limit::default() }).await.unwrap();
    queue.submit(json!({})).await;
    let running = queue.claim(&big).await.unwrap();
    queue.submit(json!({ "priority": 9, "requirement": { "models": ["a"] } })).await;
    let possible = queue.submit(json!({})).await;
    // Both are held back, as they are looked at.
    assert!(queue.claim(&big).await.is_none());
    queue.broker.complete(&running.token, json!(1)).await.unwrap();
    // The better one waits for its worker, and holds nothing else up.
    assert_eq!(queue.claim(&small).await.unwrap().job.id, possible);
}

async fn a_job_that_is_tried_again_has_its_unique_key_again(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let unique = json!({ "unique_key": "k" });
    let fail = async |id: &JobId| {
        let claim = queue.claim(&worker).await.unwrap();
        assert_eq!(claim.job.id, *id);
        queue.broker.fail(&claim.token, Failure::new(FailureClass::Fatal, "no")).await.unwrap();
    };
    let first = queue.submit(unique.clone()).await;
    fail(&first).await;
    queue.broker.retry(&first).await.unwrap();
    assert_eq!(queue.submit(unique.clone()).await, first, "one with this key waits");
    // Taken meanwhile: it runs without, and its end frees nothing.
    fail(&first).await;
    let second = queue.submit(unique.clone()).await;
    assert_ne!(first, second);
    queue.broker.retry(&first).await.unwrap();
    fail(&first).await;
    assert_eq!(queue.submit(unique).await, second);
}

async fn submitting_again_costs_no_turn(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    for _ in 0..5 {
        queue.submit(json!({ "customer": "careful", "id": "same" })).await;
    }
    let second = queue.submit(json!({ "customer": "careful" })).await;
    for n in 0..4 {
        queue.submit(json!({ "customer": "other", "payload": n })).await;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(queue.claim(&worker).await.unwrap().job.id);
    }
    assert!(order.contains(&second), "it has the second turn of its customer: {order:?}");
}

async fn who_waits_for_a_job_that_was_there_waits_for_that_one(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let flow = |attempt: &str| {
        let first = json!({ "id": format!("first-{attempt}"), "idempotency_key": "flow" });
        let second = json!({ "id": format!("second-{attempt}"), "depends_on": [format!("first-{attempt}")] });
        vec![job(first), job(second)]
    };
    queue.broker.submit(flow("a")).await.unwrap();
    let again = queue.broker.submit(flow("b")).await.unwrap();
    assert_eq!((again[0].id.as_str(), again[1].state), ("first-a", JobState::Blocked));
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    queue.reap_until(&again[1].id, |state| state == JobState::Pending).await;
}

async fn who_waits_is_told_before_a_job_is_forgotten(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let first = queue.submit(json!({})).await;
    let after = queue.submit(json!({ "depends_on": [first.as_str()] })).await;
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    queue.broker.drop_job(&first).await.unwrap();
    queue.reap_until(&after, |state| state != JobState::Blocked).await;
    assert_eq!(queue.state(&after).await, JobState::Pending, "what it waited for completed");
    queue.claim(&worker).await.unwrap();

    // Tried again before anybody was told: there is nothing to tell yet.
    let first = queue.submit(json!({})).await;
    let after = queue.submit(json!({ "depends_on": [first.as_str()] })).await;
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.fail(&claim.token, Failure::new(FailureClass::Fatal, "no")).await.unwrap();
    queue.broker.retry(&first).await.unwrap();
    queue.broker.reap().await.unwrap();
    assert_eq!(queue.state(&after).await, JobState::Blocked);
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    queue.reap_until(&after, |state| state == JobState::Pending).await;
}

async fn a_job_that_is_tried_again_still_waits(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let (bad, slow) = (queue.submit(json!({ "priority": 1 })).await, queue.submit(json!({})).await);
    let after = queue.submit(json!({ "depends_on": [bad.as_str(), slow.as_str()] })).await;
    let claim = queue.claim(&worker).await.unwrap();
    queue.broker.fail(&claim.token, Failure::new(FailureClass::Fatal, "no")).await.unwrap();
    queue.reap_until(&after, JobState::is_final).await;
    assert_eq!(queue.broker.retry(&after).await.unwrap(), JobState::Blocked, "the other has not ended");
    assert_eq!(queue.broker.get(&after).await.unwrap().waits_for, 1);
    queue.broker.cancel(&after).await.unwrap();
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, slow);
    queue.broker.complete(&claim.token, json!(1)).await.unwrap();
    queue.broker.reap().await.unwrap();
    assert_eq!(queue.broker.retry(&after).await.unwrap(), JobState::Pending);
    assert_eq!(queue.claim(&worker).await.unwrap().job.id, after);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// Texts that break what is put together from words, lines, braces, patterns or formats.
const ODD: [&str; 16] = [
    "a b",
    "a\nb",
    "\r\n",
    "\0",
    "{queue}:np",
    "}{",
    "*",
    "%s%d",
    "%20",
    "':'",
    "\"",
    "\\",
    "\u{202e}\u{feff}",
    "🦀",
    "-",
    " ",
];

/// What a payload may be: given back to the bit.
fn odd_payloads() -> Vec<Value> {
    let mut deep = json!(1);
    for level in 0..63 {
        deep = if level % 2 == 0 { json!([deep]) } else { json!({ "\0 \n": deep }) };
    }
    let wide: serde_json::Map<String, Value> = (0..20_000).map(|n| (format!("k{n}"), json!(n))).collect();
    let mut payloads = vec![
        deep,
        Value::Object(wide),
        json!("x".repeat(1024 * 1024 - 2)),
        json!([u64::MAX, i64::MIN, 1.797_693_134_862_315_7e308, 5e-324, -0.0, 0.1, 1e23, 9_007_199_254_740_993_u64]),
        json!({ "": { "": [[], {}, null, ""] } }),
        json!(vec![0; 500_000]),
    ];
    payloads.extend(ODD.iter().map(|odd| json!({ *odd: odd })));
    payloads
}

/// Afterwards everything is in order and a normal job runs.
async fn still_works(queue: &Queue) {
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
    let worker = queue.worker("afterwards").await;
    let id = queue.submit(json!({ "service": "work", "priority": 500, "payload": "normal" })).await;
    let claim = queue.claim(&worker).await.unwrap();
    assert_eq!(claim.job.id, id);
    queue.broker.complete(&claim.token, json!("done")).await.unwrap();
    assert_eq!(queue.broker.get(&id).await.unwrap().result, Some(json!("done")));
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn hostile_submissions_are_refused_or_kept_unchanged(backend: Backend) {
    let queue = backend.open();
    let mut kept: Vec<Submission> =
        odd_payloads().into_iter().map(|payload| job(json!({ "payload": payload }))).collect();
    for odd in ODD {
        for field in ["customer", "idempotency_key", "unique_key", "trace"] {
            kept.push(job(json!({ field: odd })));
        }
        kept.push(job(json!({ "workflow": { "id": odd } })));
        kept.push(job(json!({ "affinity": { "model": odd } })));
        kept.push(job(json!({ "requirement": { "models": [odd] } })));
        kept.push(job(
            json!({ "requirement": { "labels": { odd: { "equals": odd } }, "exclude": { odd: { "any_of": [odd] } } } }),
        ));
    }
    kept.push(job(json!({ "id": "-:._-", "timeout": "1ms", "not_before": Timestamp::from_millis(1) })));
    kept.push(job(json!({ "id": "j".repeat(128), "customer": "c".repeat(256), "priority": -500 })));
    // One that nobody will ever claim, and one later than any clock.
    kept.push(job(json!({ "not_before": Timestamp::from_millis(u64::from(u32::MAX) * 1_000) })));
    let mut ids = Vec::new();
    for submission in &kept {
        let submitted = queue.broker.submit(vec![submission.clone()]).await;
        let submitted = submitted.unwrap_or_else(|cause| panic!("{cause}: {}", json!(submission)));
        assert!(!submitted[0].duplicate, "{}", json!(submission));
        ids.push(submitted[0].id.clone());
    }
    for (id, submission) in ids.iter().zip(&kept) {
        let expected = Submission { id: None, ..submission.clone() };
        assert!(queue.broker.get(id).await.unwrap().submission == expected, "{id}");
    }
    // The same keys again are the same jobs, for each of them.
    for (id, submission) in ids.iter().zip(&kept) {
        if submission.idempotency_key.is_some() || submission.unique_key.is_some() {
            let again = queue.broker.submit(vec![submission.clone()]).await.unwrap();
            assert_eq!((&again[0].id, again[0].duplicate), (id, true));
        }
    }
    let before = queue.broker.stats().await.unwrap();
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let hostile = [
        json!({ "payload": deep }),
        json!({ "payload": "x".repeat(1024 * 1024) }),
        json!({ "payload": "\0".repeat(200_000) }),
        json!({ "requirement": { "labels": { "l": { "equals": deep } } } }),
        json!({ "requirement": { "models": (0..200).map(|n| n.to_string()).collect::<Vec<_>>() } }),
        json!({ "requirement": { "when": "(".repeat(900) } }),
        json!({ "requirement": { "when": "while true {}" } }),
        json!({ "requirement": { "labels": { "": { "exists": true } } } }),
        json!({ "idempotency_key": "k".repeat(257) }),
        json!({ "unique_key": "" }),
        json!({ "customer": "" }),
        json!({ "workflow": { "id": "w".repeat(1_000) } }),
        json!({ "timeout": "1000000d" }),
        json!({ "webhook": "javascript:alert(1)" }),
        json!({ "webhook": "http://" }),
        json!({ "affinity": { "model": "m", "wait": "1h" } }),
        json!({ "depends_on": ["never:heard:of"] }),
        json!({ "id": "me", "depends_on": ["me"] }),
    ];
    for value in hostile {
        let submission = job(value.clone());
        let refused = queue.broker.submit(vec![job(json!({ "id": "first" })), submission]).await;
        match refused {
            Err(BrokerError::Refused { index: 1, why }) => assert!(why.len() > 10 && why.len() < 2_000, "{why}"),
            other => panic!("{other:?}: {}", value.to_string().chars().take(200).collect::<String>()),
        }
    }
    assert_eq!(queue.broker.stats().await.unwrap(), before, "what is refused leaves nothing");
    // Numbers that only a caller inside the process can make.
    for label in [f64::NAN, f64::INFINITY] {
        let mut submission = job(json!({ "requirement": { "labels": { "l": { "at_least": 1 } } } }));
        for test in submission.requirement.labels.values_mut() {
            *test = LabelTest::AtLeast(label);
        }
        assert!(matches!(queue.broker.submit(vec![submission]).await, Err(BrokerError::Refused { .. })));
        let mut submission = job(json!({}));
        submission.requirement.hardware.ram_gb = label;
        assert!(matches!(queue.broker.submit(vec![submission]).await, Err(BrokerError::Refused { .. })));
    }
    // Whoever fits one of them gets it whole, over Redis and back.
    let odd = who("odd", "1");
    let more = json!({ "models": ODD, "labels": ODD.iter().map(|odd| (*odd, *odd)).collect::<BTreeMap<_, _>>() });
    queue.broker.register(&odd, &capabilities("odd", more)).await.unwrap();
    let mut claimed = BTreeMap::new();
    let request = ClaimRequest { registration: odd, limit: 1_000, loaded: ODD.map(str::to_owned).into() };
    loop {
        let claims = queue.broker.claim(&request).await.unwrap();
        if claims.is_empty() {
            break;
        }
        for claim in claims {
            claimed.insert(claim.job.id.clone(), claim.job.submission);
            queue.broker.complete(&claim.token, json!(ODD)).await.unwrap();
        }
    }
    assert!(claimed.len() > kept.len() / 2, "{} of {}", claimed.len(), kept.len());
    for (id, submission) in ids.iter().zip(&kept) {
        let expected = Submission { id: None, ..submission.clone() };
        assert!(claimed.get(id).is_none_or(|claimed| *claimed == expected), "{id}");
    }
    still_works(&queue).await;
}

async fn hostile_inbox_entries_are_refused_or_taken_in(backend: Backend) {
    // Only Redis has plain clients: what comes as text is read in one place, whatever the store.
    let Backend::Redis = backend else { return };
    let queue = backend.open();
    let server = queue.server.as_ref().unwrap();
    let deep = format!("{{\"service\":\"work\",\"payload\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let refused = [
        "",
        " ",
        "null",
        "[]",
        "7",
        "\"work\"",
        "{}",
        "{\"service\":\"work\"",
        "{\"service\":\"work\"}{\"service\":\"work\"}",
        "{\"service\":\"a b\"}",
        "{\"service\":\"\"}",
        "{\"service\":\"../x\"}",
        "{\"service\":\"wo{rk}\"}",
        "{\"service\":\"work\\u0000\"}",
        "{\"service\":[\"work\"]}",
        "{\"service\":\"work\",\"unknown\":1}",
        "{\"service\":\"work\",\"service\":\"work\"}",
        "{\"service\":\"work\",\"id\":\"a b\"}",
        "{\"service\":\"work\",\"id\":\"\"}",
        "{\"service\":\"work\",\"id\":\"\\u0000\"}",
        "{\"service\":\"work\",\"id\":7}",
        "{\"service\":\"work\",\"id\":\"é\"}",
        "{\"service\":\"work\",\"priority\":1e999}",
        "{\"service\":\"work\",\"priority\":501}",
        "{\"service\":\"work\",\"priority\":99999999999999999999}",
        "{\"service\":\"work\",\"priority\":\"high\"}",
        "{\"service\":\"work\",\"payload\":1e999}",
        "{\"service\":\"work\",\"payload\":NaN}",
        "{\"service\":\"work\",\"payload\":\"\\ud800\"}",
        "{\"service\":\"work\",\"customer\":\"\\udc00x\"}",
        "{\"service\":\"work\",\"timeout\":-1}",
        "{\"service\":\"work\",\"not_before\":-1}",
        "{\"service\":\"work\",\"depends_on\":[\"nobody\"]}",
        "{\"service\":\"work\",\"depends_on\":\"nobody\"}",
        "{\"service\":\"work\",\"requirement\":{\"labels\":{\"l\":{\"at_least\":null}}}}",
        "{\"service\":\"work\",\"requirement\":{\"hardware\":{\"gpu_count\":-1}}}",
        &deep,
    ];
    let wanted = ["{queue}:np", "a\nb", "*", "🦀"];
    for (n, entry) in refused.iter().enumerate() {
        server.push("{test}:inbox", entry.as_bytes());
        if let Some(odd) = wanted.get(n) {
            let good = json!({ "service": "work", "id": format!("good{n}"), "customer": odd, "payload": odd });
            server.push("{test}:inbox", good.to_string().as_bytes());
        }
    }
    // No text at all.
    server.push("{test}:inbox", b"{\"service\":\"work\",\"payload\":\"\xff\xfe\"}");
    server.push("{test}:inbox", b"\x00\xc0\x80");
    server.push("{test}:inbox", b"{\"service\":\"work\",\"id\":\"last\"}");
    let last = JobId::new("last").unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while queue.broker.get(&last).await.is_err() {
        assert!(Instant::now() < end, "the inbox stands still: {:?}", queue.broker.stats().await);
        let round = queue.broker.reap().await.unwrap();
        queue.broker.reap_wanted(round.next.min(Duration::from_millis(50))).await;
    }
    assert_eq!(queue.broker.stats().await.unwrap().inbox, 0);
    for (n, odd) in wanted.iter().enumerate() {
        let job = queue.broker.get(&JobId::new(&format!("good{n}")).unwrap()).await.unwrap();
        assert_eq!((job.submission.customer.as_deref(), job.submission.payload), (Some(*odd), json!(odd)));
    }
    assert_eq!(queue.broker.stats().await.unwrap().pending, wanted.len() as u64 + 1);
    assert_eq!(server.command(&["LLEN", "{test}:refused"]).trim(), (refused.len() + 2).to_string());
    still_works(&queue).await;
}

#[tokio::test]
async fn a_failover_ends_with_claims_on_the_new_master() {
    let mut sentinels = support::redis::Sentinels::start();
    let broker = connect_redis(format!("{}?replicas=1", sentinels.url()).parse().unwrap(), "test", config());
    let server = None;
    let queue = Queue { broker, server, dir: tempfile::tempdir().unwrap() };
    let worker = queue.worker("w").await;
    for n in 0..3 {
        queue.submit(json!({ "id": format!("j{n}") })).await;
    }
    let held = queue.claim(&worker).await.unwrap();
    // It waits for the replica, which then has the claim too.
    queue.submit(json!({ "id": "last" })).await;
    sentinels.master.kill();
    let end = Instant::now() + Duration::from_secs(30);
    let request = up_to(&worker, 1);
    let next = loop {
        match queue.broker.claim(&request).await {
            Ok(mut claims) => break claims.pop().unwrap(),
            // Its lease ended meanwhile.
            Err(BrokerError::NotRegistered(_)) => {
                queue.broker.register(&worker, &capabilities("w", json!({}))).await.unwrap();
            }
            Err(cause) => assert!(Instant::now() < end, "{cause}"),
        }
    };
    assert_eq!(next.job.id.as_str(), "j1");
    queue.broker.complete(&held.token, json!(1)).await.unwrap();
    queue.broker.complete(&next.token, json!(1)).await.unwrap();
    assert_eq!(queue.broker.stats().await.unwrap().completed, 2);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_claim_that_redis_has_forgotten_stays_with_its_holder() {
    let mut server = RedisServer::start(&[]);
    let broker = connect_redis(server.url().parse().unwrap(), "test", config());
    let workers = [who("a", "1"), who("b", "1")];
    for worker in &workers {
        broker.register(worker, &capabilities(&worker.worker, json!({}))).await.unwrap();
    }
    let claim = async |worker: &Registration| {
        let request = up_to(worker, 1);
        broker.claim(&request).await
    };
    for id in ["kept", "lost", "limited"] {
        broker.submit(vec![job(json!({ "id": id, "customer": id }))]).await.unwrap();
    }
    let limit = Limit { max_running: Some(1), ..Limit::default() };
    broker.set_limit(&Scope::Customer("limited".to_owned()), limit).await.unwrap();
    server.command(&["SAVE"]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(claim(&workers[0]).await.unwrap().remove(0).token);
    }
    // As after a failover to a replica that was behind.
    server.kill();
    server.restart();
    let mut reconnections = broker.reconnections();
    let end = Instant::now() + Duration::from_secs(20);
    let other = loop {
        match claim(&workers[1]).await {
            Ok(mut claims) => break claims.remove(0).token,
            Err(cause) => assert!(Instant::now() < end, "{cause}"),
        }
    };
    assert!(reconnections.has_changed().unwrap(), "workers are told to say what they hold");
    reconnections.mark_unchanged();
    assert_eq!(other.job, held[0].job, "Redis thinks that nobody has it");
    assert!(other.claim > held.iter().map(|token| token.claim).max().unwrap(), "no claim is given out twice");
    let reply = broker.heartbeat(&workers[0], &held, &BTreeSet::new()).await.unwrap();
    assert_eq!(reply.lost, [held[0].job.clone()], "another has it by now; the others stay");
    assert!(claim(&workers[1]).await.unwrap().is_empty());
    broker.submit(vec![job(json!({ "customer": "limited" }))]).await.unwrap();
    assert!(claim(&workers[1]).await.unwrap().is_empty(), "it counts as running");
    assert_eq!(broker.stats().await.unwrap().running, 3);
    assert_eq!(broker.verify(false).await.unwrap(), Vec::<String>::new());
    let stale = broker.complete(&held[0], json!(1)).await;
    assert!(matches!(stale, Err(BrokerError::StaleToken(_))));
    for token in [&other, &held[1], &held[2]] {
        broker.complete(token, json!(1)).await.unwrap();
    }
    assert_eq!(claim(&workers[1]).await.unwrap().len(), 1, "the limit has room again");
    // What has ended is not taken up again by who held it once.
    let reply = broker.heartbeat(&workers[0], &held, &BTreeSet::new()).await.unwrap();
    assert_eq!(reply.lost.len(), 3);
    assert_eq!(broker.verify(false).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn submissions_can_wait_for_replicas() {
    let master = RedisServer::start(&[]);
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    wait_until("the replica", Duration::from_secs(30), || {
        replica.command(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    });
    let address = format!("{}?replicas=1", master.url());
    let broker = connect_redis(address.parse().unwrap(), "test", config());
    broker.submit(vec![job(json!({ "id": "first" }))]).await.unwrap();
    assert!(replica.command(&["EXISTS", "{test}:j:first"]).starts_with('1'), "it has it when the call returns");
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &replica.pid().to_string()]).status().unwrap().success());
    };
    signal("-STOP");
    let refused = broker.submit(vec![job(json!({ "id": "second" }))]).await.unwrap_err();
    signal("-CONT");
    assert!(refused.to_string().contains("0 of 1 replicas"), "{refused}");
    wait_until_async(async || broker.submit(vec![job(json!({ "id": "second" }))]).await.is_ok()).await;
    assert_eq!(broker.stats().await.unwrap().pending, 2);
}

async fn wait_until_async(condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < end, "it does not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_redis_that_would_lose_jobs_is_refused() {
    let server = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let broker = connect_redis(server.url().parse().unwrap(), "test", config());
    let why = broker.stats().await.unwrap_err().to_string();
    assert!(why.contains("noeviction"), "{why}");
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    let broker = connect_redis(replica.url().parse().unwrap(), "test", config());
    let why = broker.stats().await.unwrap_err().to_string();
    assert!(why.contains("replica"), "{why}");
    // Mended, it is taken without a restart of anything.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let broker = connect_redis(server.url().parse().unwrap(), "test", config());
    assert_eq!(broker.stats().await.unwrap().pending, 0);
}

#[tokio::test]
async fn what_a_redis_says_when_it_refuses_a_connection_is_passed_on() {
    let server = RedisServer::start(&["--maxclients", "2"]);
    let held: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap()).collect();
    let refused = || {
        let mut said = String::new();
        let mut third = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        third.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = std::io::Read::read_to_string(&mut third, &mut said);
        said.contains("max number").then_some(())
    };
    support::wait_until("the server to be full", Duration::from_secs(20), refused);
    let broker = connect_redis(server.url().parse().unwrap(), "test", config());
    let why = broker.stats().await.unwrap_err().to_string();
    assert!(why.contains("max number of clients reached"), "{why}");
    drop(held);
    wait_until_async(async || broker.stats().await.is_ok()).await;
}

#[tokio::test]
async fn when_memory_is_full_jobs_still_end() {
    let server = RedisServer::start(&["--maxmemory", "20mb"]);
    let broker = connect_redis(server.url().parse().unwrap(), "test", config());
    let queue = Queue { broker, server: Some(server), dir: tempfile::tempdir().unwrap() };
    let worker = queue.worker("w").await;
    queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    let mut refused = None;
    for n in 0..200 {
        let big = job(json!({ "payload": "x".repeat(500_000), "id": format!("big{n}") }));
        if let Err(cause) = queue.broker.submit(vec![big]).await {
            refused = Some(cause.to_string());
            break;
        }
    }
    assert!(refused.unwrap().contains("OOM"));
    // Nor is anybody kept from stopping what fills it.
    let scope = Scope::Service(Name::new("work").unwrap());
    queue.broker.set_limit(&scope, Limit { paused: true, ..Limit::default() }).await.unwrap();
    queue.broker.set_limit(&scope, Limit::default()).await.unwrap();
    queue.broker.complete(&token, json!(1)).await.unwrap();
    assert_eq!(queue.broker.stats().await.unwrap().completed, 1);
    queue.server.as_ref().unwrap().command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// The examples of docs/queue.md, with the clients that the distribution has.
#[tokio::test]
async fn plain_clients_submit_as_the_examples_do() {
    let queue = Backend::Redis.open();
    let worker = who("w", "1");
    queue.broker.register(&worker, &capabilities("w", json!({ "services": ["simulation"] }))).await.unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let url = queue.server.as_ref().unwrap().url();
    for (program, file) in [("/usr/bin/python3", "producer.py"), ("node", "producer.cjs")] {
        let output = Command::new(program)
            .arg(examples.join(file))
            .args([&url, "test"])
            // Where Debian puts the packages of Node, which a Node from elsewhere does not know.
            .env("NODE_PATH", "/usr/share/nodejs")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        queue.broker.reap_wanted(Duration::from_secs(5)).await;
        queue.broker.reap().await.unwrap();
        let claim = queue.wait_claim(&worker).await;
        assert_eq!((claim.job.id.as_str(), claim.job.submission.priority.get()), (id.as_str(), 5));
    }
}

/// Run as a child by the test below, which tells it whom to trust.
#[tokio::test]
async fn child_over_tls() {
    let Ok(url) = std::env::var("QUEUE_TLS_URL") else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let broker = connect_redis(url.parse().unwrap(), "test", config());
    broker.submit(vec![job(json!({ "id": "sealed" }))]).await.unwrap();
}

#[tokio::test]
async fn tls_is_spoken_and_its_certificate_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = support::free_port().to_string();
    let (cert, key) = (cert.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
    let server = RedisServer::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ]);
    let child = |trusted: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_over_tls", "--nocapture"])
            .env("QUEUE_TLS_URL", format!("rediss://127.0.0.1:{port}"))
            .env("SSL_CERT_FILE", trusted)
            .output()
            .unwrap()
    };
    let output = child(&cert);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let queue = connect_redis(server.url().parse().unwrap(), "test", config());
    assert_eq!(queue.get(&JobId::new("sealed").unwrap()).await.unwrap().state, JobState::Pending);
    // A certificate that nobody vouches for is refused.
    let refused = child("/dev/null");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).to_lowercase().contains("certificate"), "{refused:?}");
}

fn says(machine: &str, presence: Duration, state: &str) -> Word {
    let summary = json!({ "state": state }).to_string();
    Word { machine: Name::new(machine).unwrap(), presence, message: format!("{machine} {state}"), summary }
}

async fn machines_are_listed_while_they_speak_and_remembered_after(backend: Backend) {
    let queue = backend.open();
    assert_eq!(queue.broker.machines().await.unwrap(), []);
    let (long, short) = (Duration::from_secs(600), Duration::from_millis(200));
    for n in 0..250 {
        queue.broker.announce(&says(&format!("m{n:03}"), long, "healthy")).await.unwrap();
    }
    queue.broker.announce(&says("m003", short, "with a \"word\" more")).await.unwrap();
    queue.broker.announce(&says("m001", Duration::ZERO, "stopped")).await.unwrap();
    wait_until_async(async || queue.broker.machines().await.unwrap()[3].presence == Presence::Lost).await;
    let machines = queue.broker.machines().await.unwrap();
    let ids: Vec<String> = machines.iter().map(|machine| machine.id.to_string()).collect();
    assert_eq!(ids, (0..250).map(|n| format!("m{n:03}")).collect::<Vec<_>>(), "each once, page by page");
    let of = |n: usize| (machines[n].presence, machines[n].summary["state"].as_str().unwrap());
    assert_eq!(of(0), (Presence::Present, "healthy"));
    assert_eq!(of(1), (Presence::Left, "stopped"));
    assert_eq!(of(3), (Presence::Lost, "with a \"word\" more"));
    assert_eq!(machines[3].until.since(machines[3].said), short);
    // One that comes back is present again.
    queue.broker.announce(&says("m001", long, "starting")).await.unwrap();
    let again = queue.broker.machines().await.unwrap();
    assert_eq!((again.len(), again[1].presence), (250, Presence::Present));
    let Some(server) = &queue.server else { return };
    // What cannot be read hides no other.
    for entry in ["junk", "1 2 {no json"] {
        server.command(&["HSET", "{test}:mw", "zz", entry]);
        assert_eq!(queue.broker.machines().await.unwrap().len(), 250);
    }
    server.command(&["HDEL", "{test}:mw", "zz"]);
    // For others to see: a key that ends with the presence.
    let ttl = |machine: &str| -> i64 {
        server.command(&["PTTL", &format!("{{test}}:machine:{machine}")]).trim().parse().unwrap()
    };
    assert!((1..=600_000).contains(&ttl("m000")), "{}", ttl("m000"));
    assert_eq!(ttl("m003"), -2, "it has ended");
    assert_eq!(server.command(&["GET", "{test}:machine:m000"]), "m000 healthy\n");
    // A day later nobody speaks of them; whoever says something next clears up.
    let yesterday = (Timestamp::now().as_millis() - 86_400_000).to_string();
    for n in 0..200 {
        server.command(&["ZADD", "{test}:ms", &yesterday, &format!("m{n:03}")]);
    }
    for _ in 0..5 {
        queue.broker.announce(&says("m000", long, "healthy")).await.unwrap();
    }
    assert_eq!(queue.broker.machines().await.unwrap().len(), 51);
}

/// A user that may touch this queue only, as docs/queue.md has it; and functions that vanish with a flush.
#[tokio::test]
async fn a_user_with_rights_on_one_queue_is_enough() {
    let server = RedisServer::start(&[]);
    let rights = "+@read +@write +fcall +function +info +scan +subscribe +unsubscribe +publish +hello +client +ping +select +time";
    let mut words =
        vec!["ACL", "SETUSER", "me", "on", ">secret", "~{test}:*", "~{test}", "&{test}:*", "&machine:status:*"];
    words.extend(rights.split(' '));
    assert_eq!(server.command(&words), "OK\n");
    let url = server.url().replace("redis://", "redis://me:secret@");
    let broker = connect_redis(url.parse().unwrap(), "test", config());
    let queue = Queue { broker, server: Some(server), dir: tempfile::tempdir().unwrap() };
    let worker = queue.worker("w").await;
    queue.submit(json!({})).await;
    assert!(queue.claim(&worker).await.is_some());
    queue.server.as_ref().unwrap().command(&["FLUSHALL"]);
    queue.server.as_ref().unwrap().command(&["FUNCTION", "FLUSH"]);
    queue.submit(json!({})).await;
    assert_eq!(queue.broker.stats().await.unwrap().pending, 1);
    queue.broker.announce(&says("m", Duration::from_secs(60), "healthy")).await.unwrap();
    // Without the channel nothing is heard, and it is listed all the same.
    let server = queue.server.as_ref().unwrap();
    server.command(&["ACL", "SETUSER", "me", "resetchannels", "&{test}:*"]);
    wait_until_refused(&queue, "m2").await;
    assert_eq!(queue.broker.machines().await.unwrap().len(), 2);
}

/// Changing a user's channels ends its connection first.
async fn wait_until_refused(queue: &Queue, machine: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match queue.broker.announce(&says(machine, Duration::from_secs(60), "healthy")).await {
            Err(cause) if cause.to_string().contains("channel") => return,
            outcome => assert!(Instant::now() < deadline, "{outcome:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Run as a child by the test below: works the queue until it is killed, writing down what it was promised.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(path) = std::env::var("QUEUE_CHILD") else { return };
    let broker = open(Path::new(&path));
    let life = std::env::var("QUEUE_LIFE").unwrap();
    let registration = who("w", &life);
    broker.register(&registration, &capabilities("w", json!({}))).await.unwrap();
    for n in 0u64.. {
        let id = format!("{life}-{n}");
        broker.submit(vec![job(json!({ "id": id }))]).await.unwrap();
        println!("PROMISED submitted {id}");
        let request = up_to(&registration, 1);
        let claim = broker.claim(&request).await.unwrap().remove(0);
        if n % 3 != 0 {
            broker.complete(&claim.token, json!(life)).await.unwrap();
            println!("PROMISED completed {}", claim.job.id);
        }
    }
}

#[tokio::test]
async fn kill_9_at_any_instant_loses_nothing_that_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let mut submitted = BTreeSet::new();
    let mut completed = BTreeSet::new();
    for life in 0..12u64 {
        let output = dir.path().join(format!("out{life}"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env("QUEUE_CHILD", &path)
            .env("QUEUE_LIFE", life.to_string())
            .stdout(std::fs::File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let promises = || std::fs::read_to_string(&output).unwrap_or_default();
        wait_until("the first promises", Duration::from_secs(30), || {
            (promises().matches("PROMISED").count() > 3).then_some(())
        });
        tokio::time::sleep(Duration::from_millis(life * 7)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        // The last line may be cut short.
        let text = promises();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().filter_map(|line| line.split_once("PROMISED ").map(|(_, rest)| rest)) {
            let (what, id) = line.split_once(' ').unwrap();
            if what == "submitted" {
                submitted.insert(id.to_owned())
            } else {
                completed.insert(id.to_owned())
            };
        }
    }
    let broker = open(&path);
    for id in &submitted {
        let job = broker.get(&JobId::new(id).unwrap()).await.unwrap();
        if completed.contains(id) {
            assert_eq!(job.state, JobState::Completed, "{id}");
            assert_eq!(job.history.iter().filter(|attempt| attempt.outcome == "completed").count(), 1);
        } else {
            // Held when its worker died, set aside after too many deaths, or ended without our having heard of it.
            assert!(
                matches!(job.state, JobState::Running | JobState::Pending | JobState::Completed | JobState::Failed),
                "{job:?}"
            );
        }
    }
    let stats = broker.stats().await.unwrap();
    assert!(stats.completed >= completed.len() as u64 && !completed.is_empty());
}

#[tokio::test]
async fn what_is_no_queue_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    std::fs::write(&path, "this is no database, but long enough to look like one".repeat(100)).unwrap();
    let error = |path: &Path| open_embedded(path, QueueConfig::default()).err().unwrap().to_string();
    assert!(error(&path).contains("queue.db"), "{}", error(&path));
    let path = dir.path().join("held.db");
    let _held = open(&path);
    assert!(error(&path).contains("another process"), "{}", error(&path));
}

fn account_scope() -> Scope {
    "account:key".parse().unwrap()
}

fn up_to(registration: &Registration, limit: u32) -> ClaimRequest {
    ClaimRequest { registration: registration.clone(), limit, loaded: BTreeSet::new() }
}

/// Claims until `until`, ending each job at once, waiting as a worker does; how many it had.
async fn work(broker: Arc<dyn Broker>, worker: Registration, until: Instant) -> usize {
    let mut done = 0;
    while Instant::now() < until {
        match broker.claim(&up_to(&worker, 4)).await {
            Ok(claims) if !claims.is_empty() => {
                for claim in claims {
                    broker.complete(&claim.token, Value::Null).await.unwrap();
                    done += 1;
                }
            }
            Ok(_) | Err(BrokerError::Held { .. }) => {
                broker.wait(&worker, until.saturating_duration_since(Instant::now())).await;
            }
            Err(cause) => panic!("{cause}"),
        }
    }
    done
}

async fn workers_of_one_account_keep_its_limits_together(backend: Backend) {
    let queue = backend.open();
    let other = queue.second(config());
    let (a, b) = (queue.sharing(&*queue.broker, "a", "1").await, queue.sharing(&*other, "b", "1").await);
    let free = queue.worker("free").await;
    for _ in 0..120 {
        queue.submit(json!({})).await;
    }
    // Slots.
    let limit = Limit { max_running: Some(3), ..Limit::default() };
    queue.broker.set_limit(&account_scope(), limit).await.unwrap();
    let mut first = queue.broker.claim(&up_to(&a, 2)).await.unwrap();
    let second = other.claim(&up_to(&b, 10)).await.unwrap();
    assert_eq!((first.len(), second.len()), (2, 1));
    let Err(BrokerError::Held { account, until, why }) = other.claim(&up_to(&b, 1)).await else { panic!() };
    assert_eq!((account.as_str(), until, why.as_str()), ("key", None, ""));
    assert_eq!(queue.broker.claim(&up_to(&free, 2)).await.unwrap().len(), 2, "others are not held up");
    assert_eq!((queue.account().await.running, queue.account().await.waiting), (3, 1));
    // Who waits is told when a job ends on the other machine.
    let (told, ()) = tokio::join!(other.wait(&b, Duration::from_secs(20)), async {
        queue.broker.complete(&first.pop().unwrap().token, Value::Null).await.unwrap();
    });
    let () = told;
    let third = other.claim(&up_to(&b, 10)).await.unwrap();
    assert_eq!(third.len(), 1);
    for claim in first.iter().chain(&second).chain(&third) {
        queue.broker.release(&claim.token, "enough").await.unwrap();
    }
    assert_eq!(queue.account().await.running, 0);
    // The rate is that of both together.
    let limit = Limit { per_second: Some(10.0), burst: Some(1), ..Limit::default() };
    queue.broker.set_limit(&account_scope(), limit).await.unwrap();
    let begun = Instant::now();
    let until = begun + Duration::from_secs(3);
    let one = tokio::spawn(work(Arc::clone(&queue.broker), a.clone(), until));
    let two = tokio::spawn(work(Arc::clone(&other), b.clone(), until));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    let (together, most) = (one + two, begun.elapsed().as_secs_f64().mul_add(10.0, 1.5));
    #[expect(clippy::cast_precision_loss)]
    let within = (together as f64) <= most;
    assert!(within && together >= 15, "{one} and {two} in {:?}", begun.elapsed());
    assert!(one > 0 && two > 0, "{one} and {two}");
    // Paused nothing starts; resumed it does, without anybody asking.
    queue.broker.set_limit(&account_scope(), Limit { paused: true, ..Limit::default() }).await.unwrap();
    assert!(matches!(queue.broker.claim(&up_to(&a, 1)).await, Err(BrokerError::Held { until: None, .. })));
    let explained = queue.broker.explain_worker("a").await.unwrap().unwrap();
    assert!(explained.reason.contains("account key is paused"), "{}", explained.reason);
    tokio::join!(queue.broker.wait(&a, Duration::from_secs(20)), async {
        queue.broker.set_limit(&account_scope(), Limit::default()).await.unwrap();
    });
    assert_eq!(queue.broker.claim(&up_to(&a, 1)).await.unwrap().len(), 1);
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn a_held_account_is_tried_by_one_job_for_all(backend: Backend) {
    let queue = backend.open();
    let other = queue.second(config());
    let (a, b) = (queue.sharing(&*queue.broker, "a", "1").await, queue.sharing(&*other, "b", "1").await);
    for _ in 0..10 {
        queue.submit(json!({})).await;
    }
    let pause = Duration::from_millis(400);
    let longest = Some(Duration::from_secs(3));
    let failing = queue.broker.claim(&up_to(&a, 2)).await.unwrap();
    assert!(failing.iter().all(|claim| !claim.trial));
    let (until, news) = queue.hold(&failing[0], pause, longest).await;
    assert!(news);
    // Another that ran before says nothing new.
    assert!(!queue.hold(&failing[1], Duration::from_millis(1), longest).await.1);
    for claim in &failing {
        queue.broker.fail(&claim.token, Failure::new(FailureClass::Retryable, "down")).await.unwrap();
    }
    for (broker, worker) in [(&queue.broker, &a), (&other, &b)] {
        let Err(BrokerError::Held { until: said, why, .. }) = broker.claim(&up_to(worker, 5)).await else { panic!() };
        assert_eq!((said, why.as_str()), (Some(until), "down again"));
    }
    let waiting = queue.submit(json!({ "priority": -1 })).await;
    let reason = queue.broker.explain(&waiting).await.unwrap().reason;
    assert!(reason.contains("account key is held for") && reason.ends_with("down again"), "{reason}");
    // One of them is told when the time is over, and gets one job.
    let (one, two) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(3), trial(&queue.broker, &a)),
        tokio::time::timeout(Duration::from_secs(3), trial(&other, &b)),
    );
    let tried: Vec<Claim> = one.into_iter().chain(two).collect();
    assert_eq!(tried.len(), 1, "one is tried for all");
    assert!(Timestamp::now() >= until);
    let status = queue.account().await;
    assert_eq!(status.hold.unwrap().job.as_ref(), Some(&tried[0].token.job));
    // It fails: twice as long, and again one.
    let asked = Timestamp::now();
    let (until, news) = queue.hold(&tried[0], pause, longest).await;
    assert!(news && until.since(asked) >= pause * 2, "{:?}", until.since(asked));
    queue.broker.fail(&tried[0].token, Failure::new(FailureClass::Retryable, "still down")).await.unwrap();
    let next = trial(&other, &b).await;
    assert!(Timestamp::now() >= until);
    // It is done: all go on, told.
    assert!(matches!(queue.broker.claim(&up_to(&a, 5)).await, Err(BrokerError::Held { until: None, .. })));
    tokio::join!(queue.broker.wait(&a, Duration::from_secs(20)), async {
        other.complete(&next.token, Value::Null).await.unwrap();
    });
    assert!(queue.account().await.hold.is_none());
    let claims = queue.broker.claim(&up_to(&a, 5)).await.unwrap();
    assert!(claims.len() > 1 && claims.iter().all(|claim| !claim.trial));
    // What is said of a rate opens by itself, and can be lifted.
    let (until, _) = queue.hold(&claims[0], Duration::from_millis(300), None).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        while queue.broker.claim(&up_to(&a, 1)).await.is_err() {
            queue.broker.wait(&a, Duration::from_secs(20)).await;
        }
    })
    .await
    .unwrap();
    assert!(Timestamp::now() >= until);
    queue.hold(&claims[0], Duration::from_secs(600), None).await;
    assert!(queue.broker.claim(&up_to(&a, 1)).await.is_err());
    assert!(queue.broker.lift(&Name::new("key").unwrap()).await.unwrap());
    assert!(queue.broker.claim(&up_to(&a, 1)).await.is_ok());
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

/// Claims, waiting as a worker does, until it has a job on trial.
async fn trial(broker: &Arc<dyn Broker>, worker: &Registration) -> Claim {
    loop {
        match broker.claim(&up_to(worker, 5)).await {
            Ok(mut claims) if !claims.is_empty() => {
                assert_eq!(claims.len(), 1);
                assert!(claims[0].trial);
                return claims.remove(0);
            }
            Ok(_) | Err(BrokerError::Held { .. }) => broker.wait(worker, Duration::from_secs(20)).await,
            Err(cause) => panic!("{cause}"),
        }
    }
}

async fn a_trial_whose_worker_dies_is_followed_by_another(backend: Backend) {
    let queue = backend.open_with(short_lease());
    let (a, b) = (queue.sharing(&*queue.broker, "a", "1").await, queue.sharing(&*queue.broker, "b", "1").await);
    for _ in 0..3 {
        queue.submit(json!({})).await;
    }
    let claim = queue.broker.claim(&up_to(&a, 1)).await.unwrap().remove(0);
    queue.hold(&claim, Duration::from_millis(1), Some(Duration::from_secs(1))).await;
    queue.broker.release(&claim.token, "it failed").await.unwrap();
    let tried = trial(&queue.broker, &a).await;
    // From here on nothing is heard of it.
    assert!(matches!(queue.broker.claim(&up_to(&b, 1)).await, Err(BrokerError::Held { .. })));
    let reaping = async {
        loop {
            let round = queue.broker.reap().await.unwrap();
            queue.broker.reap_wanted(round.next).await;
        }
    };
    let living = async {
        loop {
            queue.broker.heartbeat(&b, &[], &BTreeSet::new()).await.unwrap();
            tokio::time::sleep(LEASE / 5).await;
        }
    };
    let next = tokio::select! {
        next = trial(&queue.broker, &b) => next,
        () = reaping => unreachable!(),
        () = living => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("a worker that died holds the account for ever"),
    };
    assert!(queue.broker.complete(&tried.token, Value::Null).await.is_err());
    assert!(queue.account().await.hold.is_some(), "what a dead worker says lifts nothing");
    queue.broker.complete(&next.token, Value::Null).await.unwrap();
    let status = queue.account().await;
    assert_eq!((status.hold, status.running), (None, 0));
    assert_eq!(queue.broker.verify(false).await.unwrap(), Vec::<String>::new());
}

async fn an_account_that_nobody_has_is_forgotten(backend: Backend) {
    let queue = backend.open();
    let broker = queue.broker.as_ref();
    let known = || async {
        assert_eq!(broker.verify(false).await.unwrap(), Vec::<String>::new());
        let all = broker.accounts().await.unwrap();
        all.into_iter().map(|status| status.account.to_string()).collect::<Vec<_>>()
    };
    let (a, b) = (queue.sharing(broker, "a", "1").await, queue.sharing(broker, "b", "1").await);
    broker.deregister(&a).await.unwrap();
    assert_eq!(known().await, ["key"], "one still has it");
    broker.deregister(&b).await.unwrap();
    assert_eq!(known().await, [""; 0]);
    // An edit puts in another one, and then none.
    let a = queue.sharing(broker, "a", "2").await;
    broker.register(&a, &capabilities("a", json!({ "account": "other" }))).await.unwrap();
    assert_eq!(known().await, ["other"]);
    broker.register(&a, &capabilities("a", json!({}))).await.unwrap();
    assert_eq!(known().await, [""; 0]);
    broker.deregister(&a).await.unwrap();
    // A limit is kept for whoever comes, and forgotten when it is lifted.
    broker.set_limit(&account_scope(), Limit { max_running: Some(3), ..Limit::default() }).await.unwrap();
    broker.deregister(&queue.sharing(broker, "a", "3").await).await.unwrap();
    assert_eq!(known().await, ["key"]);
    broker.set_limit(&account_scope(), Limit::default()).await.unwrap();
    assert_eq!(known().await, [""; 0]);
    // So is a hold: a machine that starts again must not make it shorter.
    let a = queue.sharing(broker, "a", "4").await;
    queue.submit(json!({})).await;
    let claim = queue.claim(&a).await.unwrap();
    // Its job fails when its worker has another one already.
    broker.register(&a, &capabilities("a", json!({ "account": "other" }))).await.unwrap();
    queue.hold(&claim, Duration::from_millis(1), Some(Duration::from_secs(1))).await;
    broker.release(&claim.token, "it failed").await.unwrap();
    broker.deregister(&a).await.unwrap();
    assert_eq!(known().await, ["key"]);
    assert!(queue.account().await.hold.is_some());
    assert!(broker.lift(&Name::new("key").unwrap()).await.unwrap());
    assert_eq!(known().await, [""; 0]);
}

async fn a_rate_limit_costs_no_attempt_but_not_for_ever(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let id =
        queue.submit(json!({ "retry": { "max_attempts": 2, "backoff": { "initial": "1ms", "jitter": 0.0 } } })).await;
    let pause = Duration::from_millis(20);
    let mut tries = 0;
    loop {
        let claim = queue.wait_claim(&worker).await;
        tries += 1;
        let failure =
            Failure { retry_after: Some(Seconds::new(pause)), ..Failure::new(FailureClass::RateLimited, "slow down") };
        let asked = Timestamp::now();
        if queue.broker.fail(&claim.token, failure).await.unwrap() == JobState::Failed {
            break;
        }
        let job = queue.broker.get(&id).await.unwrap();
        assert!(job.state != JobState::Delayed || job.due.unwrap().since(asked) + Duration::from_millis(2) >= pause);
        assert_eq!(job.attempts, u32::from(tries > 10), "try {tries}");
        assert!(tries < 20, "it goes round for ever");
    }
    assert_eq!(tries, 12, "ten are free, two are charged");
}

async fn what_a_job_used_up_is_kept_with_it(backend: Backend) {
    let queue = backend.open();
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({})).await;
    let usage = |amounts: Value| -> Usage { serde_json::from_value(amounts).unwrap() };
    let claim = queue.wait_claim(&worker).await;
    let first = usage(json!({ "input_tokens": 26.0, "cost_usd": 0.002 }));
    queue.broker.usage(&claim.token, first.clone(), first.clone()).await.unwrap();
    queue.broker.fail(&claim.token, Failure::new(FailureClass::Retryable, "cut off")).await.unwrap();
    let claim = queue.wait_claim(&worker).await;
    assert_eq!(claim.job.usage, first, "the next attempt adds to it");
    let mut total = claim.job.usage.clone();
    let second = usage(json!({ "input_tokens": 4.0, "output_tokens": 2.0 }));
    total.add(&second);
    queue.broker.usage(&claim.token, second.clone(), total).await.unwrap();
    queue.broker.complete(&claim.token, json!("done")).await.unwrap();
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!(json!(job.usage), json!({ "input_tokens": 30.0, "output_tokens": 2.0, "cost_usd": 0.002 }));
    let events = queue.broker.events(&id, 0).await.unwrap();
    let told: Vec<&Value> = events.iter().filter(|event| event.kind == "usage").map(|event| &event.data).collect();
    assert_eq!(told, [&json!(first), &json!(second)]);
}
