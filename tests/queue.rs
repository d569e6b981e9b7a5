//! What every queue backend promises, shown on the embedded one; and that nothing is lost over kill -9.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::base::{Name, Timestamp};
use machinist::queue::{
    Broker, BrokerError, Claim, ClaimRequest, EmbeddedBroker, EmbeddedConfig, Failure, FailureClass, JobFilter, JobId,
    JobState, Registration, Submission,
};
use machinist::spec::Capabilities;
use serde_json::{Value, json};
use support::wait_until;

const LEASE: Duration = Duration::from_millis(400);

fn open(path: &Path) -> Arc<dyn Broker> {
    let config = EmbeddedConfig { lease: LEASE, max_losses: 2, ..EmbeddedConfig::default() };
    Arc::new(EmbeddedBroker::open(path, config).unwrap())
}

struct Queue {
    broker: Arc<dyn Broker>,
    _dir: tempfile::TempDir,
}

fn queue() -> Queue {
    let dir = tempfile::tempdir().unwrap();
    Queue { broker: open(&dir.path().join("queue.db")), _dir: dir }
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
    Registration { worker: worker.into(), incarnation: format!("{worker}-{incarnation}") }
}

impl Queue {
    async fn worker(&self, name: &str) -> Registration {
        let registration = who(name, "1");
        self.broker.register(&registration, &capabilities(name, json!({}))).await.unwrap();
        registration
    }

    async fn submit(&self, value: Value) -> JobId {
        self.broker.submit(vec![job(value)]).await.unwrap().remove(0).id
    }

    async fn claim(&self, registration: &Registration) -> Option<Claim> {
        let request = ClaimRequest { registration: registration.clone(), limit: 1 };
        self.broker.claim(&request).await.unwrap().pop()
    }

    async fn state(&self, id: &JobId) -> JobState {
        self.broker.get(id).await.unwrap().state
    }
}

#[tokio::test]
async fn jobs_are_claimed_by_priority_and_in_order_inside_one() {
    let queue = queue();
    let worker = queue.worker("w").await;
    let mut expected = Vec::new();
    for (n, priority) in [0, 5, -3, 5, 0, 500, -500].into_iter().enumerate() {
        expected.push((-priority, n, queue.submit(json!({ "priority": priority })).await));
    }
    expected.sort();
    let request = ClaimRequest { registration: worker.clone(), limit: 3 };
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

#[tokio::test]
async fn an_outcome_counts_only_for_whoever_holds_the_job() {
    let queue = queue();
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

#[tokio::test]
async fn failures_lead_where_their_class_says() {
    let queue = queue();
    let worker = queue.worker("w").await;
    let id = queue.submit(json!({ "retry": { "max_attempts": 2, "backoff": { "initial": "1ms" } } })).await;
    let token = queue.claim(&worker).await.unwrap().token;
    let state = queue.broker.fail(&token, Failure::new(FailureClass::Retryable, "first")).await.unwrap();
    assert_eq!(state, JobState::Delayed);
    queue.broker.wait(&worker, Duration::from_secs(5)).await;
    let token = loop {
        if let Some(claim) = queue.claim(&worker).await {
            break claim.token;
        }
        queue.broker.wait(&worker, Duration::from_secs(1)).await;
    };
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
    let token = claim.token;
    queue.broker.fail(&token, Failure::new(FailureClass::Retryable, "again")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(queue.claim(&other).await.is_none(), "it failed here, and another worker matches");
}

#[tokio::test]
async fn keys_and_ids_make_submission_idempotent() {
    let queue = queue();
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

#[tokio::test]
async fn a_waiting_worker_is_woken_by_what_it_can_run() {
    let queue = queue();
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
    let claim = loop {
        if let Some(claim) = queue.claim(&worker).await {
            break claim;
        }
        queue.broker.wait(&worker, Duration::from_secs(20)).await;
    };
    assert_eq!(claim.job.id, id);
    assert!(Timestamp::now() >= due && begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn who_dies_gives_its_jobs_back_to_their_old_place() {
    let queue = queue();
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
    let reply = queue.broker.heartbeat(&new, &[claim.token.clone(), token]).await.unwrap();
    assert_eq!((reply.lost.len(), reply.cancelled.len()), (1, 0));
    queue.broker.reap(Timestamp::now()).await.unwrap();
    assert_eq!(queue.state(&id).await, JobState::Running, "the lease holds");
    queue.broker.reap(Timestamp::now().plus(LEASE * 2)).await.unwrap();
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!((job.state, job.losses), (JobState::Pending, 2));
    assert!(matches!(
        queue.broker.claim(&ClaimRequest { registration: new, limit: 1 }).await,
        Err(BrokerError::NotRegistered(_))
    ));
    // One death too many: set aside.
    let third = queue.worker("third").await;
    queue.claim(&third).await.unwrap();
    queue.broker.reap(Timestamp::now().plus(LEASE * 2)).await.unwrap();
    let job = queue.broker.get(&id).await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert!(job.failure.unwrap().message.contains("quarantined"));
}

#[tokio::test]
async fn cancelling_ends_what_waits_and_tells_who_runs() {
    let queue = queue();
    let worker = queue.worker("w").await;
    let waiting = queue.submit(json!({})).await;
    assert_eq!(queue.broker.cancel(&waiting).await.unwrap(), JobState::Cancelled);
    assert_eq!(queue.broker.cancel(&waiting).await.unwrap(), JobState::Cancelled);
    assert!(queue.claim(&worker).await.is_none());
    let running = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    assert_eq!(queue.broker.cancel(&running).await.unwrap(), JobState::Running);
    let reply = queue.broker.heartbeat(&worker, std::slice::from_ref(&token)).await.unwrap();
    assert_eq!(reply.cancelled, std::slice::from_ref(&running));
    queue.broker.fail(&token, Failure::new(FailureClass::Cancelled, "told to")).await.unwrap();
    assert_eq!(queue.state(&running).await, JobState::Cancelled);
    assert!(matches!(queue.broker.cancel(&JobId::new("none").unwrap()).await, Err(BrokerError::UnknownJob(_))));
    let done = queue.submit(json!({})).await;
    let token = queue.claim(&worker).await.unwrap().token;
    queue.broker.complete(&token, json!(1)).await.unwrap();
    assert!(matches!(queue.broker.cancel(&done).await, Err(BrokerError::WrongState { .. })));
}

#[tokio::test]
async fn only_workers_that_match_get_a_job_and_backlog_does_not_hide_it() {
    let queue = queue();
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

#[tokio::test]
async fn lists_page_from_the_newest() {
    let queue = queue();
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(queue.submit(json!({ "payload": n })).await);
    }
    ids.reverse();
    let mut filter = JobFilter { limit: Some(3), ..JobFilter::default() };
    let mut listed = Vec::new();
    loop {
        let page = queue.broker.list(&filter).await.unwrap();
        let Some(last) = page.last() else { break };
        filter.before = Some(last.id.clone());
        listed.extend(page.into_iter().map(|job| job.id));
    }
    assert_eq!(listed, ids);
    let none = JobFilter { service: Some(Name::new("other").unwrap()), ..JobFilter::default() };
    assert!(queue.broker.list(&none).await.unwrap().is_empty());
}

/// Random operations against a model that is plainly right: every claim is the best there is.
#[tokio::test]
async fn every_claim_is_the_best_of_a_brute_force_model() {
    let queue = queue();
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
        let request = ClaimRequest { registration: registration.clone(), limit: 1 };
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

#[test]
fn what_is_no_queue_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    std::fs::write(&path, "this is no database, but long enough to look like one".repeat(100)).unwrap();
    let error = |path: &Path| EmbeddedBroker::open(path, EmbeddedConfig::default()).err().unwrap().to_string();
    assert!(error(&path).contains("queue.db"), "{}", error(&path));
    let path = dir.path().join("held.db");
    let _held = open(&path);
    assert!(error(&path).contains("another process"), "{}", error(&path));
}
