//! Workers in several processes on one Redis, while processes are killed and frozen, Redis is killed, and connections break
//! and stall: every job's result counts exactly once, and none is lost.
//!
//! `CHAOS_JOBS` (default 2,000) and `CHAOS_SEED` set the size and the order of misfortunes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use machinist::base::Name;
use machinist::queue::{
    Failure, FailureClass, Job, JobId, JobState, QueueConfig, Registration, Submission, connect_redis,
};
use machinist::spec::{Capabilities, Hardware};
use machinist::telemetry::{EventLog, Traces};
use machinist::worker::{Connector, JobContext, Worker, WorkerConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::proxy::Proxy;
use support::redis::RedisServer;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

const LEASE: Duration = Duration::from_millis(1_000);
const PROCESSES: usize = 4;
const WORKERS: usize = 5;

fn config() -> QueueConfig {
    QueueConfig { lease: LEASE, max_losses: 1_000, ..QueueConfig::default() }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Takes a moment, sometimes fails, answers with the job's number.
struct Work;

#[async_trait]
impl Connector for Work {
    async fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&self, job: Arc<Job>, context: JobContext) -> Result<Value, Failure> {
        let pause = rand::random_range(0..100);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            () = context.cancel.cancelled() => return Err(Failure::new(FailureClass::Cancelled, "told to")),
        }
        if rand::random_range(0..20) == 0 {
            return Err(Failure::new(FailureClass::Retryable, "by chance"));
        }
        Ok(job.submission.payload.clone())
    }
}

/// Run as a child by the test below, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_works() {
    let Ok(url) = std::env::var("CHAOS_URL") else { return };
    let number = setting("CHAOS_NUMBER", 0);
    let broker = connect_redis(url.parse().unwrap(), "chaos", config());
    let name = |text: &str| Name::new(text).unwrap();
    let tracker = TaskTracker::new();
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let config = WorkerConfig {
            name: name(&format!("w{n}")),
            connector_name: name("work"),
            slots: 2,
            registration: Registration {
                worker: format!("m{number}/w{n}"),
                incarnation: format!("m{number}-w{n}-{}", rand::random::<u64>()),
                assignable: true,
            },
            capabilities: Capabilities {
                services: BTreeSet::from([name("work")]),
                machine_type: name("t"),
                machine: name(&format!("m{number}")),
                worker: name(&format!("w{n}")),
                pool: name("p"),
                hardware: Hardware::default(),
                models: BTreeSet::new(),
                labels: BTreeMap::new(),
                deny_customers: BTreeSet::new(),
                allow_customers: BTreeSet::new(),
                account: None,
            },
            broker: Arc::clone(&broker),
            connector: Arc::new(Work),
            lease: LEASE,
            ready: watch::channel(Ok(())).1,
            events: EventLog::new(100),
            traces: Traces::default(),
        };
        workers.push(Worker::start(config, &tracker));
    }
    loop {
        let next = broker.reap().await.map_or(Duration::from_millis(200), |round| round.next);
        broker.reap_wanted(next).await;
    }
}

fn start_child(number: usize, url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_works", "--nocapture"])
        .env("CHAOS_URL", url)
        .env("CHAOS_NUMBER", number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_result_counts_once_whatever_breaks() {
    let jobs = setting("CHAOS_JOBS", 2_000);
    let seed = setting("CHAOS_SEED", rand::random());
    println!("CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let proxy = Proxy::start(server.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let mut children: Vec<Child> = (0..PROCESSES).map(|number| start_child(number, &url)).collect();

    // Through the proxy as well: a submission whose answer was lost is made again with the same ids.
    let broker = connect_redis(url.parse().unwrap(), "chaos", config());
    let submitting = {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            for first in (0..jobs).step_by(50) {
                let batch: Vec<Submission> = (first..jobs.min(first + 50))
                    .map(|n| {
                        let retry = json!({ "max_attempts": 100, "backoff": { "initial": "5ms", "max": "50ms" } });
                        let job = json!({ "id": format!("job-{n}"), "service": "work", "payload": n, "retry": retry,
                                          "priority": n % 3 });
                        serde_json::from_value(job).unwrap()
                    })
                    .collect();
                while broker.submit(batch.clone()).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        })
    };

    let direct = connect_redis(server.url().parse().unwrap(), "chaos", config());
    let end = Instant::now() + Duration::from_secs(60 + jobs / 20);
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    loop {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..500))).await;
        let done = direct.stats().await.map_or(0, |stats| stats.completed);
        if done == jobs {
            break;
        }
        assert!(Instant::now() < end, "{done} of {jobs}: {:?}, {faults:?}", direct.stats().await);
        let child = random.random_range(0..children.len());
        let pid = Pid::from_raw(i32::try_from(children[child].id()).unwrap());
        let fault = match random.random_range(0..10) {
            0..=2 => {
                children[child].kill().unwrap();
                children[child].wait().unwrap();
                children[child] = start_child(child, &url);
                "killed"
            }
            3 | 4 => {
                // Longer than the lease: its jobs go to others while it believes that it holds them.
                kill(pid, Signal::SIGSTOP).unwrap();
                tokio::time::sleep(LEASE * 3 / 2).await;
                kill(pid, Signal::SIGCONT).unwrap();
                "frozen"
            }
            5 | 6 => {
                proxy.break_all();
                "connections broken"
            }
            7 | 8 => {
                proxy.stall(Duration::from_millis(random.random_range(200..2_500)));
                "connections stalled"
            }
            _ => {
                server.kill();
                tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
                server.restart();
                "Redis restarted"
            }
        };
        *faults.entry(fault).or_default() += 1;
    }
    submitting.await.unwrap();
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    println!("{faults:?}");
    let mut retried = 0;
    for n in 0..jobs {
        let job = direct.get(&JobId::new(&format!("job-{n}")).unwrap()).await.unwrap();
        let completed = job.history.iter().filter(|attempt| attempt.outcome == "completed").count();
        assert_eq!((job.state, completed, &job.result), (JobState::Completed, 1, &Some(json!(n))), "{job:?}");
        let events = direct.events(&job.id, 0).await.unwrap();
        let ends = events.iter().filter(|event| event.kind == "completed").count();
        assert_eq!((ends, events.last().unwrap().kind.as_str()), (1, "completed"), "{events:?}");
        retried += job.history.len() - 1;
    }
    println!("{retried} attempts more than jobs");
    let stats = direct.stats().await.unwrap();
    assert_eq!((stats.completed, stats.running, stats.pending, stats.delayed), (jobs, 0, 0, 0));
    assert_eq!(direct.verify(false).await.unwrap(), Vec::<String>::new());
}
