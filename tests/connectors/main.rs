//! The connectors that come along, each against a server of this process that speaks its backend's states, errors and delays.

#[path = "../support/mod.rs"]
mod support;

mod a1111;
mod comfyui;
mod gemini;
mod ollama;
mod openai;
mod replicate;
mod rest;
mod runpod;

use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::queue::{Failure, FailureClass};
use machinist::spec::Inventory;
use machinist::telemetry::TraceScope;
use machinist::worker::JobContext;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use support::script::{Recorded, bench_with_scripts, job_with};

const LIMIT: Duration = Duration::from_secs(60);
/// An environment variable that every test has, as the name of a key.
const KEY_NAME: &str = "CARGO_PKG_LICENSE";
const KEY: &str = env!("CARGO_PKG_LICENSE");

/// One attempt of a job, and what it reported.
struct Attempt {
    outcome: Result<Value, Failure>,
    reported: Arc<Recorded>,
}

impl Attempt {
    fn result(&self) -> &Value {
        self.outcome.as_ref().unwrap_or_else(|failure| panic!("{failure}"))
    }

    fn failure(&self) -> &Failure {
        self.outcome.as_ref().expect_err("the job fails")
    }

    fn partials(&self) -> Vec<Value> {
        self.reported.partials.lock().unwrap().clone()
    }

    fn saved(&self) -> Vec<Value> {
        self.reported.saved.lock().unwrap().clone()
    }

    /// What it used up, by unit.
    fn usage(&self) -> Value {
        json!(*self.reported.usage.lock().unwrap())
    }

    fn progress(&self) -> Vec<(f64, String)> {
        self.reported.progress.lock().unwrap().clone()
    }

    /// Class and how long to wait.
    fn fate(&self) -> (FailureClass, Option<f64>) {
        let failure = self.failure();
        (failure.class, failure.retry_after.map(|wait| wait.get().as_secs_f64()))
    }
}

/// Runs a job of the connector `name` with these `vars`; `keys` are the job's own: `payload`, `saved`, `attempts`.
async fn attempt(name: &str, vars: &Value, keys: &Value) -> Attempt {
    attempt_until(name, vars, keys, CancellationToken::new(), LIMIT).await
}

async fn attempt_until(name: &str, vars: &Value, keys: &Value, cancel: CancellationToken, limit: Duration) -> Attempt {
    let bench = bench_with_scripts();
    let reported = Arc::new(Recorded::default());
    let context = JobContext {
        cancel,
        deadline: Instant::now() + limit,
        sink: Arc::clone(&reported) as _,
        trace: TraceScope::default(),
    };
    let outcome = bench.shipped(name, vars).run(job_with(keys), context).await;
    Attempt { outcome, reported }
}

/// Cancels the job as soon as `started` says so.
async fn cancelled(name: &str, vars: &Value, keys: &Value, started: impl Fn() -> bool) -> Attempt {
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let (attempt, ()) = tokio::join!(attempt_until(name, vars, keys, cancel, LIMIT), async {
        let deadline = Instant::now() + LIMIT;
        while !started() {
            assert!(Instant::now() < deadline, "the job did not come so far");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    });
    assert_eq!(attempt.failure().class, FailureClass::Cancelled);
    attempt
}

async fn check(name: &str, vars: &Value) -> Result<(), Failure> {
    bench_with_scripts().shipped(name, vars).check().await
}

/// What the backend has, asked for as a worker does.
async fn capabilities(name: &str, vars: &Value) -> Result<Option<Inventory>, Failure> {
    let bench = bench_with_scripts();
    let connector = bench.shipped(name, vars);
    connector.check().await?;
    connector.capabilities().await
}

/// A request that the connector refuses before it asks anybody.
async fn refuses(name: &str, vars: &Value, payload: Value, why: &str) {
    let attempt = attempt(name, vars, &json!({ "payload": payload })).await;
    assert_eq!(attempt.failure().class, FailureClass::Fatal, "{}", attempt.failure());
    assert!(attempt.failure().message.contains(why), "{}", attempt.failure());
}
