//! A script host in a directory of its own, and jobs that its connectors run.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use machinist::base::{Name, Problems, Timestamp};
use machinist::host::process::Processes;
use machinist::queue::{Failure, FailureClass, Job, Usage};
use machinist::script::{ConnectorContext, MachineContext, ScriptHost, ScriptHostConfig};
use machinist::telemetry::EventLog;
use machinist::telemetry::TraceScope;
use machinist::worker::{Connector, JobContext, JobSink};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub struct Bench {
    pub dir: tempfile::TempDir,
    machine_dir: PathBuf,
    host: ScriptHost,
}

pub fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let scripts_dir = dir.path().join("scripts");
    bench_of(dir, scripts_dir)
}

/// With the scripts that come along.
pub fn bench_with_scripts() -> Bench {
    bench_of(tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts"))
}

fn bench_of(dir: tempfile::TempDir, scripts_dir: PathBuf) -> Bench {
    bench_in(dir, "machine", scripts_dir)
}

/// With the machine in this directory below `dir`, which may have files already.
pub fn bench_in(dir: tempfile::TempDir, machine: &str, scripts_dir: PathBuf) -> Bench {
    let machine_dir = dir.path().join(machine);
    std::fs::create_dir_all(&machine_dir).unwrap();
    let host = ScriptHost::new(ScriptHostConfig {
        machine_dir: machine_dir.clone(),
        scripts_dir,
        state_dir: dir.path().join("state"),
        processes: Processes::start("test/1").unwrap(),
        supervisor: None,
        mark_prefix: format!("script-test/{}", std::process::id()),
        runtime: tokio::runtime::Handle::current(),
        events: Some(EventLog::new(100)),
        gpus: None,
    });
    Bench { dir, machine_dir, host }
}

fn context(dir: &Path) -> MachineContext {
    MachineContext {
        id: Name::new("m").unwrap(),
        machine_type: Name::new("t").unwrap(),
        pool: Name::new("p").unwrap(),
        labels: std::collections::BTreeMap::new(),
        vars: serde_json::Map::new(),
        workers: 2,
        gpus: Vec::new(),
        cpus: 2.0,
        memory_gb: 1.0,
        env: std::collections::BTreeMap::new(),
        generation: 1,
        engine: "machinist".into(),
        dir: dir.to_owned(),
        state_dir: dir.to_owned(),
    }
}

impl Bench {
    pub fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.machine_dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub async fn services(&self, script: &str) -> Result<Vec<Value>, Problems> {
        let program = self.host.load_machine(&self.write("machine.rhai", script))?;
        program.services(&context(self.dir.path())).await
    }

    pub async fn mistake(&self, script: &str) -> String {
        let problems = self.services(script).await.unwrap_err().to_string();
        problems.replace(&self.dir.path().display().to_string(), "")
    }

    /// One with this text as the body of `run(job, ctx)`.
    pub fn running(&self, body: &str) -> Arc<dyn Connector> {
        self.connector(&format!("fn run(job, ctx) {{ {body} }}"))
    }

    pub fn connector(&self, script: &str) -> Arc<dyn Connector> {
        self.bound(&self.write("c.rhai", script), &json!({}))
    }

    /// A connector that comes along.
    pub fn shipped(&self, name: &str, vars: &Value) -> Arc<dyn Connector> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scripts/connectors/{name}.rhai"));
        self.bound(&path, vars)
    }

    fn bound(&self, path: &Path, vars: &Value) -> Arc<dyn Connector> {
        let name = Name::new("c").unwrap();
        let program = self.host.load_connector(&name, path).unwrap();
        let vars = vars.as_object().unwrap().clone();
        assert_eq!(program.check_vars(&vars), []);
        program.bind(ConnectorContext {
            connector: name.clone(),
            worker: name,
            vars,
            machine: context(self.dir.path()),
            work_dir: self.dir.path().join("work"),
            checked: Value::Null,
        })
    }

    /// Runs a job with this text as the body of `run(job, ctx)`.
    pub async fn run(&self, body: &str) -> Result<Value, Failure> {
        self.running(body).run(job(), run_context(Duration::from_secs(60))).await
    }
}

/// Cancels a job while it is blocked in `connector`, whose `run` is `body`; how long it took to end.
pub async fn time_to_cancel(connector: &Arc<dyn Connector>, body: &str) -> Duration {
    let context = run_context(Duration::from_secs(60));
    let cancel = context.cancel.clone();
    let running = Arc::clone(connector);
    let run = tokio::spawn(async move { running.run(job(), context).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!run.is_finished(), "{body}");
    let begun = Instant::now();
    cancel.cancel();
    let failure = run.await.unwrap().unwrap_err();
    let took = begun.elapsed();
    println!("cancel took {took:?}: {body}");
    assert_eq!(failure.class, FailureClass::Cancelled, "{body}: {failure}");
    took
}

struct Silent;

#[async_trait]
impl JobSink for Silent {
    fn progress(&self, _: f64, _: &str) {}
    fn log(&self, _: &str) {}
    fn partial(&self, _: Value) {}
    fn save(&self, _: Value) {}
    fn usage(&self, _: Usage) {}
}

/// What a job reported.
#[derive(Default)]
pub struct Recorded {
    pub progress: Mutex<Vec<(f64, String)>>,
    pub logs: Mutex<Vec<String>>,
    pub partials: Mutex<Vec<Value>>,
    pub saved: Mutex<Vec<Value>>,
    pub usage: Mutex<Usage>,
}

impl JobSink for Recorded {
    fn progress(&self, fraction: f64, message: &str) {
        self.progress.lock().unwrap().push((fraction, message.to_owned()));
    }

    fn log(&self, line: &str) {
        self.logs.lock().unwrap().push(line.to_owned());
    }

    fn partial(&self, value: Value) {
        self.partials.lock().unwrap().push(value);
    }

    fn save(&self, value: Value) {
        self.saved.lock().unwrap().push(value);
    }

    fn usage(&self, used: Usage) {
        self.usage.lock().unwrap().add(&used);
    }
}

pub fn job() -> Arc<Job> {
    job_with(&json!({}))
}

/// With more of a job's keys: `payload`, `saved`, `attempts`.
pub fn job_with(more: &Value) -> Arc<Job> {
    let mut job = json!({
        "id": "j", "state": "running", "service": "c", "submitted": Timestamp::now(), "claims": 1, "attempts": 0, "losses": 0,
    });
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Arc::new(serde_json::from_value(job).unwrap())
}

pub fn run_context(limit: Duration) -> JobContext {
    JobContext {
        cancel: CancellationToken::new(),
        deadline: Instant::now() + limit,
        sink: Arc::new(Silent),
        trace: TraceScope::default(),
    }
}
