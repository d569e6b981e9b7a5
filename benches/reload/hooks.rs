//! What a call of a hook costs beyond what the script itself does: `cargo bench --bench hooks`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::base::Name;
use machinist::host::process::Processes;
use machinist::script::{ConnectorContext, MachineContext, ScriptHost, ScriptHostConfig};
use machinist::worker::Connector;

const CALLS: u32 = 5_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let dir = std::env::temp_dir().join(format!("hooks-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let host = ScriptHost::new(ScriptHostConfig {
        machine_dir: dir.clone(),
        scripts_dir: dir.clone(),
        state_dir: dir.clone(),
        processes: Processes::start("bench/1").unwrap(),
        supervisor: None,
        mark_prefix: "bench".to_owned(),
        runtime: tokio::runtime::Handle::current(),
        events: None,
        gpus: None,
    });
    let context = MachineContext {
        id: Name::new("m").unwrap(),
        machine_type: Name::new("t").unwrap(),
        pool: Name::new("p").unwrap(),
        labels: std::collections::BTreeMap::new(),
        vars: serde_json::Map::new(),
        workers: 2,
        gpus: Vec::new(),
        cpus: 2.0,
        memory_gb: 1.0,
        // What a container usually has.
        env: (0..40).map(|n| (format!("VARIABLE_{n}"), format!("value {n}"))).collect(),
        generation: 1,
        engine: "machinist".into(),
        dir: dir.clone(),
        state_dir: dir.clone(),
    };
    std::fs::write(dir.join("machine.rhai"), "fn services(m) { [] }\n").unwrap();
    std::fs::write(dir.join("c.rhai"), "fn check(ctx) { true }\nfn run(job, ctx) { 1 }\n").unwrap();
    let program = host.load_machine(&dir.join("machine.rhai")).unwrap();
    let connector = host.load_connector(&Name::new("c").unwrap(), &dir.join("c.rhai")).unwrap();
    let connector: Arc<dyn Connector> = connector.bind(ConnectorContext {
        connector: Name::new("c").unwrap(),
        worker: Name::new("w").unwrap(),
        vars: serde_json::Map::new(),
        machine: context.clone(),
        work_dir: dir.clone(),
    });
    let mut services = Vec::new();
    let mut checks = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        program.services(&context).await.unwrap();
        services.push(begun.elapsed());
        let begun = Instant::now();
        connector.check().await.unwrap();
        checks.push(begun.elapsed());
    }
    std::fs::remove_dir_all(&dir).unwrap();
    println!("| a hook that does nothing (us) | calls | median | p99 |\n|---|---|---|---|");
    show("services(m)", services);
    show("check(ctx)", checks);
}

fn show(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (took.len() as f64 * share) as usize;
        took[index.min(took.len() - 1)].as_micros()
    };
    println!("| {name} | {} | {} | {} |", took.len(), at(0.5), at(0.99));
}
