//! machinist for the queue harness (benches/queues/README.md): `produce one|bulk|paced N ARG`, `work CONCURRENCY`, and by itself `scale N`. The queue
//! and the worker are those of the engine, with every guarantee on; the connector only notes that it was called.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use machinist::base::Name;
use machinist::queue::{
    Broker, ClaimRequest, Failure, Job, JobFilter, QueueConfig, Registration, Submission, connect_redis, open_embedded,
};
use machinist::spec::{Capabilities, Hardware};
use machinist::telemetry::{EventLog, Traces};
use machinist::worker::{Connector, JobContext, Worker, WorkerConfig};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Jobs in one bulk call, and the classes they are spread over.
const BULK: usize = 200;

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn broker() -> Arc<dyn Broker> {
    let lease = if variable("BENCH_TUNED", 0) == 1 { Duration::from_secs(2) } else { QueueConfig::default().lease };
    let config = QueueConfig { lease, ..QueueConfig::default() };
    let url = std::env::var("REDIS_URL").unwrap();
    match url.strip_prefix("embedded:") {
        Some(path) => open_embedded(path.as_ref(), config).unwrap(),
        None => connect_redis(url.parse().unwrap(), "bench", config),
    }
}

fn job(number: usize) -> Submission {
    let mut payload = json!({ "n": number, "t": now_ns(), "p": "x".repeat(64) });
    let bytes: usize = variable("BENCH_PAYLOAD", 0);
    if bytes > 0 {
        let others = payload.to_string().len() - 64;
        payload["p"] = json!("x".repeat(bytes.saturating_sub(others)));
    }
    let mut job = Submission::new(Name::new("bench").unwrap(), payload);
    let classes = variable("BENCH_CLASSES", 1);
    if classes > 1 {
        job.requirement.models = BTreeSet::from([format!("m{}", number % classes)]);
    }
    job
}

async fn produce(mode: &str, count: usize, argument: usize) {
    let broker = broker();
    broker.stats().await.unwrap();
    let begun = Instant::now();
    match mode {
        "bulk" => {
            // Two calls under way, as a producer that does not wait for each.
            let mut calls = tokio::task::JoinSet::new();
            for first in (0..count).step_by(BULK) {
                let broker = Arc::clone(&broker);
                if calls.len() >= 2 {
                    calls.join_next().await;
                }
                calls.spawn(async move {
                    let jobs = (first..count.min(first + BULK)).map(job).collect();
                    broker.submit(jobs).await.unwrap();
                });
            }
            while calls.join_next().await.is_some() {}
        }
        _ => {
            for number in 0..count {
                if mode == "paced" {
                    tokio::time::sleep(Duration::from_micros(argument as u64)).await;
                }
                broker.submit(vec![job(number)]).await.unwrap();
            }
        }
    }
    println!("{}", json!({ "n": count, "secs": begun.elapsed().as_secs_f64() }));
}

struct Recorder {
    log: File,
    sleep: Duration,
}

#[async_trait]
impl Connector for Recorder {
    async fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&self, job: Arc<Job>, _context: JobContext) -> Result<Value, Failure> {
        let payload = &job.submission.payload;
        let number = |name: &str| payload[name].as_u64().unwrap_or(0);
        let mut record = Vec::with_capacity(24);
        record.extend_from_slice(&u32::try_from(number("n")).unwrap_or(0).to_le_bytes());
        record.extend_from_slice(&std::process::id().to_le_bytes());
        record.extend_from_slice(&number("t").to_le_bytes());
        record.extend_from_slice(&now_ns().to_le_bytes());
        (&self.log).write_all(&record).unwrap();
        if !self.sleep.is_zero() {
            tokio::time::sleep(self.sleep).await;
        }
        Ok(Value::Null)
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn capabilities(models: BTreeSet<String>) -> Capabilities {
    Capabilities {
        services: BTreeSet::from([name("bench")]),
        machine_type: name("bench"),
        machine: name("m"),
        worker: name("w"),
        pool: name("standard"),
        hardware: Hardware::default(),
        models,
        labels: BTreeMap::new(),
        deny_customers: BTreeSet::new(),
        allow_customers: BTreeSet::new(),
        account: None,
    }
}

async fn work(slots: u32) {
    let broker = broker();
    let log = OpenOptions::new().create(true).append(true).open(std::env::var("BENCH_LOG").unwrap()).unwrap();
    let connector = Arc::new(Recorder { log, sleep: Duration::from_millis(variable("BENCH_SLEEP_MS", 0)) });
    let classes = variable("BENCH_CLASSES", 1);
    let life = std::process::id();
    let config = WorkerConfig {
        name: name("w"),
        connector_name: name("bench"),
        slots,
        registration: Registration {
            worker: format!("m{life}/w"),
            incarnation: format!("{life}-{}", now_ns()),
            assignable: true,
        },
        capabilities: capabilities(if classes > 1 {
            (0..classes).map(|n| format!("m{n}")).collect()
        } else {
            BTreeSet::new()
        }),
        broker: Arc::clone(&broker),
        connector,
        lease: if variable("BENCH_TUNED", 0) == 1 { Duration::from_secs(2) } else { QueueConfig::default().lease },
        ready: watch::channel(Ok(())).1,
        events: EventLog::new(1_000),
        traces: Traces::default(),
    };
    let tracker = TaskTracker::new();
    let _worker = Worker::start(config, &tracker);
    // What the engine does beside its workers.
    loop {
        let next = broker.reap().await.map_or(Duration::from_millis(500), |round| round.next);
        broker.reap_wanted(next).await;
    }
}

/// What Redis notes of calls that take long.
struct SlowLog(redis::aio::MultiplexedConnection);

impl SlowLog {
    /// `None` where the queue is no Redis. Everything over half a millisecond is noted.
    async fn start() -> Option<Self> {
        let url = std::env::var("REDIS_URL").unwrap();
        // The log may be long.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let client = redis::Client::open(url).ok()?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.expect("Redis answers");
        for (name, value) in [("slowlog-log-slower-than", "500"), ("slowlog-max-len", "1000000")] {
            redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec_async(&mut connection).await.unwrap();
        }
        redis::cmd("SLOWLOG").arg("RESET").exec_async(&mut connection).await.unwrap();
        Some(Self(connection))
    }

    /// What this machine makes of calls that do the same each time, and touch nothing: whatever takes long here waited for the
    /// processor.
    async fn floor(&mut self) {
        let script = "local x = 0 for i = 1, tonumber(ARGV[1]) do x = x + i end return x";
        let spin = async |connection: &mut redis::aio::MultiplexedConnection, turns: usize| {
            redis::cmd("EVAL").arg(script).arg(0).arg(turns).exec_async(connection).await.unwrap();
        };
        let mut turns = 1_000;
        loop {
            let begun = Instant::now();
            spin(&mut self.0, turns).await;
            if begun.elapsed() > Duration::from_micros(700) {
                break;
            }
            turns += turns / 8;
        }
        redis::cmd("SLOWLOG").arg("RESET").exec_async(&mut self.0).await.unwrap();
        for _ in 0..20_000 {
            spin(&mut self.0, turns).await;
        }
        self.report("floor, 20,000 equal calls").await;
    }

    /// By function: how many calls took longer than half, 1 and 2 ms, the longest, and how many arguments that had. What is
    /// no function is what one command of Redis took by itself: where that is long, something else had the processor.
    async fn report(&mut self, what: &str) {
        type Entry = (u64, u64, u64, Vec<String>, String, String);
        let entries: Vec<Entry> =
            redis::cmd("SLOWLOG").arg("GET").arg(1_000_000).query_async(&mut self.0).await.unwrap();
        let mut by: BTreeMap<String, (Vec<u64>, (u64, usize))> = BTreeMap::new();
        for (_, _, micros, words, ..) in entries {
            let name = match words.as_slice() {
                // After "mq_", a hash of 11 characters and "_".
                [call, function, ..] if call.eq_ignore_ascii_case("fcall") => {
                    function.get(15..).unwrap_or(function).to_owned()
                }
                [command, ..] => command.to_uppercase(),
                [] => continue,
            };
            // Redis keeps 32 words of a command, the last saying how many more there were.
            let more = words.last().and_then(|word| word.strip_prefix("... (")?.split(' ').next()?.parse().ok());
            let arguments = words.len() + more.map_or(0, |more: usize| more - 1);
            let entry = by.entry(name).or_default();
            entry.0.push(micros);
            entry.1 = entry.1.max((micros, arguments));
        }
        for (name, (times, (longest, arguments))) in by {
            let over = |limit: u64| times.iter().filter(|time| **time > limit).count();
            println!(
                "{what}: {name}: {} over 0.5 ms, {} over 1 ms, {} over 2 ms; longest {longest} us, of {arguments} words",
                times.len(),
                over(1_000),
                over(2_000)
            );
        }
        redis::cmd("SLOWLOG").arg("RESET").exec_async(&mut self.0).await.unwrap();
    }
}

/// Claims one by one, by each of the workers in turn, each completed: the time of each in microseconds, sorted.
async fn claim_times(broker: &Arc<dyn Broker>, workers: &[Registration], count: usize) -> Vec<u128> {
    let mut times = Vec::with_capacity(count);
    for who in workers.iter().cycle().take(count) {
        let request = ClaimRequest { registration: who.clone(), limit: 1, loaded: BTreeSet::new() };
        let begun = Instant::now();
        let claims = broker.claim(&request).await.unwrap();
        times.push(begun.elapsed().as_micros());
        for claim in claims {
            broker.complete(&claim.token, Value::Null).await.unwrap();
        }
    }
    times.sort_unstable();
    times
}

/// The time of a claim with COUNT jobs of 1,000 classes waiting and 64 profiles, beside that with 100 jobs; with a tenth of
/// COUNT delayed jobs coming due at once; and of `explain` and `stats`.
async fn scale(count: usize) {
    let broker = broker();
    let model = |n: usize| format!("m{n}");
    // Each profile has about half of the models.
    let models = |n: usize| -> BTreeSet<String> {
        (0..1_000).filter(|m| ((m * 2_654_435_761usize) >> (n % 16)) & 1 == 1 || m % 64 == n).map(model).collect()
    };
    let who = |n: usize| Registration {
        worker: format!("m{n}/w"),
        incarnation: format!("{n}-{}", now_ns()),
        assignable: false,
    };
    let workers: Vec<Registration> = (0..64).map(who).collect();
    let mut slow = SlowLog::start().await;
    if let Some(slow) = &mut slow {
        slow.floor().await;
    }
    let begun = Instant::now();
    for (n, worker) in workers.iter().enumerate() {
        broker.register(worker, &capabilities(models(n))).await.unwrap();
    }
    let job = |n: usize, delay: Duration| {
        let mut job = job(n);
        job.requirement.models = BTreeSet::from([model(n % 1_000)]);
        job.not_before = (!delay.is_zero()).then(|| machinist::base::Timestamp::now().plus(delay));
        job
    };
    let submit = async |from: usize, to: usize, delay: Duration| {
        for first in (from..to).step_by(BULK) {
            broker.submit((first..to.min(first + BULK)).map(|n| job(n, delay)).collect()).await.unwrap();
        }
    };
    submit(0, 2_000, Duration::ZERO).await;
    println!("64 profiles, 1,000 classes: {:?}", begun.elapsed());
    if let Some(slow) = &mut slow {
        slow.report("slow calls, classes and profiles").await;
    }
    let quantile = |times: &[u128], q: usize| times[times.len() * q / 100];
    let report = |what: &str, times: &[u128]| {
        println!(
            "{what}: p50 {} us, p99 {} us, max {} us",
            quantile(times, 50),
            quantile(times, 99),
            times[times.len() - 1]
        );
    };
    claim_times(&broker, &workers, 640).await;
    report("claim, 2,000 jobs", &claim_times(&broker, &workers, 1_000).await);
    let begun = Instant::now();
    submit(2_000, count, Duration::ZERO).await;
    println!("{count} jobs in {:?}", begun.elapsed());
    if let Some(slow) = &mut slow {
        slow.report("slow calls, submission").await;
    }
    report(&format!("claim, {count} jobs"), &claim_times(&broker, &workers, 4_000).await);
    // Whoever is alone meets ever more lanes before its own that nobody else takes from.
    report(&format!("claim, {count} jobs, one profile"), &claim_times(&broker, &workers[2..3], 2_000).await);
    submit(count, count + count / 10, Duration::from_secs(20)).await;
    let begun = Instant::now();
    broker.explain(&broker.list(&JobFilter::default()).await.unwrap()[0].id).await.unwrap();
    println!("list and explain: {:?}", begun.elapsed());
    let begun = Instant::now();
    let stats = broker.stats().await.unwrap();
    println!("stats: {:?}, {} delayed", begun.elapsed(), stats.delayed);
    while broker.stats().await.unwrap().delayed == stats.delayed {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let begun = Instant::now();
    report("claim while delayed jobs come due", &claim_times(&broker, &workers, 4_000).await);
    while broker.stats().await.unwrap().delayed > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{} delayed jobs promoted in {:?}", stats.delayed, begun.elapsed());
    if let Some(slow) = &mut slow {
        slow.report("slow calls, claims and promotion").await;
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    let number = |text: &str| text.parse::<usize>().unwrap();
    // On a thread of the runtime, as what serves a request is in the engine.
    let produce = |mode: &str, count, argument| {
        let mode = mode.to_owned();
        runtime.block_on(runtime.spawn(async move { produce(&mode, count, argument).await })).unwrap();
    };
    match words.as_slice() {
        [_, "produce", mode, count] => produce(mode, number(count), 0),
        [_, "produce", mode, count, argument] => produce(mode, number(count), number(argument)),
        [_, "work", slots] => runtime.block_on(work(u32::try_from(number(slots)).unwrap())),
        [_, "scale", count] => runtime.block_on(scale(number(count))),
        _ => eprintln!("produce one|bulk|paced N [ARG] work CONCURRENCY, or scale N; see benches/queues/README.md"),
    }
}
