//! A script host in a directory of its own, and jobs that its connectors run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use machinist::base::{Name, Problems, Timestamp};
use machinist::host::process::Processes;
use machinist::queue::{Failure, Job};
use machinist::script::{ConnectorContext, MachineContext, ScriptHost, ScriptHostConfig};
use machinist::telemetry::EventLog;
use machinist::worker::{Connector, JobContext, JobSink};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub struct Bench {
    pub dir: tempfile::TempDir,
    host: ScriptHost,
}

pub fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("machine")).unwrap();
    let host = ScriptHost::new(ScriptHostConfig {
        machine_dir: dir.path().join("machine"),
        scripts_dir: dir.path().join("scripts"),
        state_dir: dir.path().join("state"),
        processes: Processes::start("test/1").unwrap(),
        supervisor: None,
        mark_prefix: format!("script-test/{}", std::process::id()),
        runtime: tokio::runtime::Handle::current(),
        events: Some(EventLog::new(100)),
    });
    Bench { dir, host }
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
        let path = self.dir.path().join("machine").join(name);
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

    pub fn connector(&self, script: &str) -> Arc<dyn Connector> {
        let name = Name::new("c").unwrap();
        let program = self.host.load_connector(&name, &self.write("c.rhai", script)).unwrap();
        program.bind(ConnectorContext {
            connector: name.clone(),
            worker: name,
            vars: serde_json::Map::new(),
            machine: context(self.dir.path()),
            work_dir: self.dir.path().join("work"),
        })
    }

    /// Runs a job with this text as the body of `run(job, ctx)`.
    pub async fn run(&self, body: &str) -> Result<Value, Failure> {
        self.connector(&format!("fn run(job, ctx) {{ {body} }}")).run(job(), run_context(Duration::from_secs(60))).await
    }
}

struct Silent;

#[async_trait]
impl JobSink for Silent {
    fn progress(&self, _: f64, _: &str) {}
    fn log(&self, _: &str) {}
    fn partial(&self, _: Value) {}
    fn save(&self, _: Value) {}
}

pub fn job() -> Arc<Job> {
    let job = json!({
        "id": "j", "state": "running", "service": "c", "submitted": Timestamp::now(), "claims": 1, "attempts": 0, "losses": 0,
    });
    Arc::new(serde_json::from_value(job).unwrap())
}

pub fn run_context(limit: Duration) -> JobContext {
    JobContext { cancel: CancellationToken::new(), deadline: Instant::now() + limit, sink: Arc::new(Silent) }
}
