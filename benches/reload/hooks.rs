//! What a call of a hook costs beyond what the script itself does, and what one takes that waits: `cargo bench --bench hooks`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::base::Name;
use machinist::host::process::Processes;
use machinist::script::{ConnectorContext, MachineContext, MachineProgram, ScriptHost, ScriptHostConfig};
use machinist::worker::Connector;

const CALLS: u32 = 5_000;
/// Scripts that wait at once.
const BLOCKED: usize = 1_000;

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
    std::fs::write(dir.join("machine.rhai"), "fn services(m) { [] }\nfn blocked(m, s) { sleep(600); }\n").unwrap();
    std::fs::write(dir.join("c.rhai"), "fn check(ctx) { true }\nfn run(job, ctx) { 1 }\n").unwrap();
    let program = host.load_machine(&dir.join("machine.rhai")).unwrap();
    let connector = host.load_connector(&Name::new("c").unwrap(), &dir.join("c.rhai")).unwrap();
    let connector: Arc<dyn Connector> = connector.bind(ConnectorContext {
        connector: Name::new("c").unwrap(),
        worker: Name::new("w").unwrap(),
        vars: serde_json::Map::new(),
        machine: context.clone(),
        work_dir: dir.clone(),
        checked: serde_json::Value::Null,
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
    let program = Arc::new(program);
    let blocked = blocked(&program, &context).await;
    std::fs::remove_dir_all(&dir).unwrap();
    println!("| a hook that does nothing (us) | calls | median | p99 |\n|---|---|---|---|");
    show("services(m)", services);
    show("check(ctx)", checks);
    println!("\n{blocked}");
}

/// What scripts take that wait, all at once.
async fn blocked(program: &Arc<MachineProgram>, context: &MachineContext) -> String {
    let before = Held::now();
    let begun = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..BLOCKED {
        let (program, context) = (Arc::clone(program), context.clone());
        calls.spawn(async move {
            let service = Name::new("s").unwrap();
            program.service_function(&context, "blocked", &service, Duration::from_secs(600)).await
        });
    }
    // A thread that waits for its time has done all before that.
    while waiting() < BLOCKED {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} of {BLOCKED} wait", waiting());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (all, during) = (begun.elapsed(), Held::now());
    let begun = Instant::now();
    program.services(context).await.unwrap();
    let another = begun.elapsed();
    let begun = Instant::now();
    calls.abort_all();
    while let Some(ended) = calls.join_next().await {
        assert!(ended.is_err(), "none ended by itself");
    }
    while threads().count() > before.threads + 8 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let kib = |bytes: u64| bytes / 1024 / BLOCKED as u64;
    format!(
        "{BLOCKED} scripts wait after {} ms; each takes {} KiB of memory (RSS) and {} KiB of page tables, {} MiB of addresses; \
         another hook takes {} us meanwhile; all are cancelled and gone after {} ms",
        all.as_millis(),
        kib(during.resident - before.resident),
        kib(during.tables - before.tables),
        kib(during.addresses - before.addresses) / 1024,
        another.as_micros(),
        begun.elapsed().as_millis()
    )
}

struct Held {
    resident: u64,
    tables: u64,
    addresses: u64,
    threads: usize,
}

impl Held {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            resident: kib("VmRSS:") * 1024,
            tables: kib("VmPTE:") * 1024,
            addresses: kib("VmSize:") * 1024,
            threads: threads().count(),
        }
    }
}

/// The directories of this process's threads.
fn threads() -> impl Iterator<Item = std::path::PathBuf> {
    std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|entry| entry.path())
}

/// Threads of scripts that sleep.
fn waiting() -> usize {
    let sleeps = |path: &std::path::PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        stat.contains("(script:blocked)") && stat.split(") ").nth(1).is_some_and(|rest| rest.starts_with('S'))
    };
    threads().filter(sleeps).count()
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
