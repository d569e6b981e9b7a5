//! What a backend has becomes what its worker can do: whole machines beside a backend that gains and loses models.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::backend::{Backend, answer};
use support::gpu::{Gpus, gpu};
use support::machine::{LIMIT, Machine};

const WORKERS: &str = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\", slots: 2, capabilities: #{ SAID } } ] }\n";
const CONNECTOR: &str = r#"
const CONFIG = #{ url: #{ type: "string", required: true } };
fn check(ctx) { http::get(`${ctx.vars.url}/check`, #{ retry: 0 }).json() }
fn capabilities(ctx) {
    if ctx.checked != #{ ready: true } { throw fatal(`the check gave ${ctx.checked}`); }
    http::get(`${ctx.vars.url}/models`, #{ retry: 0 }).json()
}
fn run(job, ctx) {
    let has = http::get(`${ctx.vars.url}/has`).json();
    if job.payload.model !in has { throw wrong_machine(`${job.payload.model} is not there`); }
    #{ model: job.payload.model }
}
"#;

/// What the backend answers from now on.
#[derive(Clone)]
struct Says(Arc<Mutex<(u16, Value, bool)>>);

impl Says {
    fn models(&self, models: &[&str]) {
        self.0.lock().unwrap().1 = json!({ "models": models });
        self.0.lock().unwrap().0 = 200;
    }

    fn inventory(&self, status: u16, inventory: Value) {
        let mut says = self.0.lock().unwrap();
        (says.0, says.1) = (status, inventory);
    }

    fn ready(&self, ready: bool) {
        self.0.lock().unwrap().2 = ready;
    }
}

struct Bench {
    machine: Machine,
    backend: Backend,
    says: Says,
}

impl Bench {
    async fn start(said: &str, inventory: (u16, Value)) -> Self {
        Self::start_with(said, inventory, |_| ()).await.0
    }

    /// `more` prepares the machine before its start.
    async fn start_with<T>(said: &str, inventory: (u16, Value), more: impl FnOnce(&mut Machine) -> T) -> (Self, T) {
        let says = Says(Arc::new(Mutex::new((inventory.0, inventory.1, true))));
        let saying = says.clone();
        let backend = Backend::start(move |asked, _| {
            let (status, inventory, ready) = saying.0.lock().unwrap().clone();
            match asked.what.as_str() {
                "GET /check" if ready => answer(200, &json!({ "ready": true })),
                "GET /models" => answer(status, &inventory),
                "GET /has" if ready => answer(200, &inventory["models"]),
                _ => answer(503, &json!({})),
            }
        })
        .await;
        let settings = format!("[connectors.mine.vars]\nurl = \"{}\"\n", backend.url());
        let mut machine = Machine::new(&WORKERS.replace("SAID", said), &settings);
        machine.write("connectors/mine.rhai", CONNECTOR);
        let prepared = more(&mut machine);
        machine.start();
        machine.wait("the worker to claim", |status| status["workers"]["w"]["state"] == "active");
        (Self { machine, backend, says }, prepared)
    }

    /// A job that asks for the model.
    fn submit(&self, model: &str) -> String {
        self.submit_with(model, &json!({ "models": [model] }))
    }

    fn submit_with(&self, model: &str, requirement: &Value) -> String {
        let job = json!({ "service": "mine", "payload": { "model": model }, "requirement": requirement }).to_string();
        let answer = self.machine.http(&format!(
            "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{job}",
            job.len()
        ));
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let answer: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        answer["jobs"][0]["id"].as_str().or(answer["id"].as_str()).unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn wait<T>(&self, what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(Instant::now() < deadline, "gave up waiting for {what}\n{}", self.machine.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn done(&self, job: &str, limit: Duration) {
        self.wait(&format!("job {job}"), limit, || {
            (self.machine.json(&["jobs", "get", job])["state"] == "completed").then_some(())
        });
    }

    /// No worker matches it: the reason.
    fn refused(&self, job: &str) -> String {
        self.wait("the refusal", LIMIT, || {
            let why = self.machine.json(&["jobs", "explain", job]);
            assert_eq!(why["state"], "pending", "{why}");
            why["workers"][0]["mismatch"].as_str().map(str::to_owned)
        })
    }

    fn asked(&self) -> usize {
        self.backend.asked("GET /models").len()
    }

    fn worker(&self) -> Value {
        self.machine.status().unwrap()["workers"]["w"].clone()
    }

    fn events(&self, kind: &str) -> Vec<Value> {
        let text = String::from_utf8(self.machine.cli(&["events", "--json"]).stdout).unwrap();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["kind"] == kind).collect()
    }

    /// What the queue matches jobs against.
    fn capabilities(&self) -> Value {
        let workers = self.machine.json(&["queue", "workers"])["workers"].clone();
        workers.as_object().and_then(|all| all.values().next().cloned()).unwrap_or_default()
    }

    /// Waits until jobs are matched against these models; the list may be some seconds old.
    fn has(&self, models: &[&str]) {
        self.wait(&format!("the models {models:?}"), LIMIT, || {
            (self.capabilities()["models"] == json!(models)).then_some(())
        });
    }

    /// Saves the connector once more, which has its backend asked.
    fn edit(&self, more: &str) {
        let before = self.asked();
        self.machine.write("connectors/mine.rhai", &format!("{CONNECTOR}\n// {more}\n"));
        self.wait("the question of the edited connector", LIMIT, || (self.asked() > before).then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_a_backend_gains_can_be_asked_for_a_minute_later_and_one_that_it_loses_no_more() {
    let bench = Bench::start("", (200, json!({ "models": ["old", "kept"] }))).await;
    let begun = Instant::now();
    bench.done(&bench.submit("old"), LIMIT);
    let new = bench.submit("new");
    assert_eq!(bench.refused(&new), "the worker has no model \"new\"");
    bench.says.models(&["new", "kept"]);
    bench.done(&new, Duration::from_secs(75));
    assert!(begun.elapsed() > Duration::from_secs(40), "nothing but the minute makes it ask");
    assert_eq!(bench.asked(), 2, "no job, check or claim has it asked");
    assert_eq!(bench.refused(&bench.submit("old")), "the worker has no model \"old\"");
    let status = bench.worker();
    assert_eq!((&status["models"], &status["inventory"]["models"]), (&json!(2), &json!(2)), "{status}");
    let events = bench.events("worker.capabilities_changed");
    assert_eq!(events.len(), 2, "{events:?}");
    let data = &events[1]["data"];
    assert_eq!((&data["added"], &data["removed"], &data["models"]), (&json!(1), &json!(1), &json!(2)), "{data}");
    assert_eq!((&data["some_added"], &data["some_removed"]), (&json!(["new"]), &json!(["old"])), "{data}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_known_where_the_hook_fails_and_that_is_said_once() {
    let bench =
        Bench::start("labels: #{ tier: 1 }", (200, json!({ "models": ["a"], "labels": { "tier": 2, "v": "1" } })))
            .await;
    bench.has(&["a"]);
    assert_eq!(bench.capabilities()["labels"], json!({ "tier": 1, "v": "1" }), "who runs the machine decides");
    bench.says.inventory(500, json!({ "models": ["a", "s"] }));
    bench.edit("first");
    // The script's part changes, and the backend's stays.
    bench.machine.write("machine.rhai", &WORKERS.replace("SAID", "models: [\"s\"]"));
    bench.has(&["a", "s"]);
    assert_eq!(bench.capabilities()["labels"], json!({ "tier": 2, "v": "1" }));
    for model in ["a", "s"] {
        bench.done(&bench.submit(model), LIMIT);
    }
    let status =
        bench.wait("the problem", LIMIT, || Some(bench.worker()).filter(|it| !it["inventory"]["problem"].is_null()));
    assert!(status["inventory"]["problem"].as_str().unwrap().contains("/models answered 500"), "{status}");
    assert_eq!(
        (&status["state"], &status["inventory"]["models"], &status["models"]),
        (&json!("active"), &json!(1), &json!(2))
    );
    let shown = String::from_utf8(bench.machine.cli(&["status"]).stdout).unwrap();
    assert!(shown.contains("does not tell what it has"), "{shown}");
    // It answers again: what the script says stays.
    bench.says.models(&["b"]);
    bench.edit("second");
    bench.has(&["b", "s"]);
    assert_eq!(bench.worker()["inventory"]["problem"], Value::Null);
    bench.refused(&bench.submit("a"));
    // A connector without the hook leaves nothing of it.
    let plain = CONNECTOR.replace("fn capabilities", "fn _unused");
    bench.machine.write("connectors/mine.rhai", &plain);
    bench.has(&["s"]);
    assert_eq!(bench.worker()["inventory"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_known_the_script_alone_counts_and_what_is_wrong_is_said() {
    let bench = Bench::start("models: [\"s\"]", (200, json!({ "model": ["a"], "models": ["s"] }))).await;
    bench.done(&bench.submit("s"), LIMIT);
    let failed = bench.events("worker.inventory_failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    let reason = failed[0]["data"]["reason"].as_str().unwrap();
    assert_eq!(reason, "capabilities(ctx): unknown key \"model\" (did you mean \"models\"?)");
    let many: Vec<String> = (0..5_001).map(|n| format!("m{n}")).collect();
    bench.says.inventory(200, json!({ "models": many }));
    bench.edit("many");
    let two = bench
        .wait("the other failure", LIMIT, || Some(bench.events("worker.inventory_failed")).filter(|it| it.len() == 2));
    assert!(two[1]["data"]["reason"].as_str().unwrap().contains("has 5001, at most 5000"), "{two:?}");
    bench.has(&["s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_was_gone_is_asked_before_anything_is_claimed() {
    let bench = Bench::start("", (200, json!({ "models": ["a"] }))).await;
    bench.says.ready(false);
    // A job that fails has the check made at once.
    let failing = bench.submit_with("b", &json!({}));
    bench.machine.wait("the check to fail", |status| status["workers"]["w"]["state"] == "not_ready");
    let (gone, asked) = (bench.submit("a"), bench.asked());
    bench.says.models(&["b"]);
    bench.says.ready(true);
    bench.machine.wait("the worker to claim", |status| status["workers"]["w"]["state"] == "active");
    assert_eq!(bench.asked(), asked + 1);
    bench.done(&bench.submit("b"), LIMIT);
    bench.done(&failing, LIMIT);
    bench.has(&["b"]);
    bench.refused(&gone);
    assert_eq!(
        bench.machine.json(&["jobs", "get", &gone])["claims"],
        0,
        "it was claimed for what is not there any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_finds_its_model_missing_has_the_backend_asked_sooner() {
    let bench = Bench::start("", (200, json!({ "models": ["a"] }))).await;
    let begun = Instant::now();
    bench.says.models(&["b"]);
    let job = bench.submit("a");
    bench.wait("the model to be gone", Duration::from_secs(40), || {
        (bench.capabilities()["models"] == json!(["b"])).then_some(())
    });
    assert!(begun.elapsed() >= Duration::from_secs(8), "at most every ten seconds");
    assert_eq!(bench.asked(), 2);
    assert_eq!(bench.machine.json(&["jobs", "get", &job])["attempts"], 0, "nobody is charged");
    bench.refused(&bench.submit("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_withdrawn_leaves_what_the_backend_has() {
    let two = |machine: &mut Machine| Gpus::of(machine, vec![gpu(0), gpu(1)]);
    let (bench, mut gpus) = Bench::start_with("", (200, json!({ "models": ["a"] })), two).await;
    let count = |count: u64| {
        bench.wait("the GPUs", LIMIT, || (bench.capabilities()["hardware"]["gpu_count"] == count).then_some(()));
        bench.has(&["a"]);
    };
    count(2);
    gpus.xid(0, 79);
    count(1);
    // And what the backend has changes without giving the GPU back.
    bench.says.models(&["b"]);
    bench.edit("again");
    bench.has(&["b"]);
    assert_eq!(bench.capabilities()["hardware"]["gpu_count"], 1);
}
