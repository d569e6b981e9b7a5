//! Accounts: two whole machines on one Redis that share a key, and what people see of it.

mod support;

use std::time::{Duration, Instant};

use machinist::base::Timestamp;
use serde_json::{Value, json};
use support::machine::{LIMIT, Machine};
use support::redis::RedisServer;

const WORKERS: &str =
    "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"simulation\", slots: 4 } ] }\n";

fn machine(server: &RedisServer, id: &str, account: &str) -> Machine {
    let url = server.url();
    let mut machine = Machine::new(
        WORKERS,
        &format!(
            "[machine]\nid = \"{id}\"\n[queue]\nurl = \"{url}\"\nlease = \"3s\"\n[connectors.simulation]\n{account}\n"
        ),
    );
    machine.start();
    machine.wait_healthy();
    machine
}

fn submit(machine: &Machine, payload: &Value) -> String {
    let answer = machine.json(&["jobs", "submit", "simulation", "--payload", &payload.to_string()]);
    answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn account(machine: &Machine) -> Value {
    let answer = machine.json(&["queue", "accounts"]);
    answer["accounts"].as_array().unwrap().iter().find(|known| known["account"] == "key").cloned().unwrap_or_default()
}

fn wait<T>(what: &str, machine: &Machine, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}\n{}", machine.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn state(machine: &Machine, id: &str) -> Value {
    machine.json(&["jobs", "get", id])
}

fn events(machine: &Machine, kind: &str) -> Vec<Value> {
    let text = String::from_utf8(machine.cli(&["events", "--json"]).stdout).unwrap();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["kind"] == kind).collect()
}

#[test]
fn what_one_machine_runs_into_holds_the_other_until_one_job_shows_that_it_works() {
    let server = RedisServer::start(&[]);
    let one = machine(&server, "one", "account = \"key\"");
    let two = machine(&server, "two", "account = \"key\"");
    // The key is refused, three times; whoever runs it says so for both.
    let refused = submit(&one, &json!({ "duration": 0, "steps": 1, "fail": "account", "usage": { "cost_usd": 0.25 } }));
    for machine in [&one, &two] {
        machine.wait("the account to be held", |status| {
            status["workers"]["w"]["state"] == "held"
                && status["workers"]["w"]["reason"].as_str().unwrap_or_default().contains("account key is held until")
        });
        // Which is no fault of the machine.
        assert!(machine.cli(&["health"]).status.success());
    }
    let held = account(&one);
    assert!(held["hold"]["why"].as_str().unwrap().contains("told to fail"), "{held}");
    assert_eq!((&held["hold"]["trial"], &held["running"], &held["waiting"]), (&json!(true), &json!(0), &json!(2)));
    let all = events(&one, "account.held").len() + events(&two, "account.held").len();
    assert_eq!(all, 1, "one says it for all");
    assert_eq!(state(&one, &refused)["attempts"], 0, "nobody is charged");
    let waiting = submit(&one, &json!({ "duration": 0, "steps": 1 }));
    let reason = wait("the reason", &one, || {
        let reason = one.json(&["jobs", "explain", &waiting])["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("account key").then_some(reason)
    });
    assert!(reason.contains("is held for") && reason.contains("told to fail"), "{reason}");
    // By hand, as whoever has put in another key does; the job that is refused is taken out of the way.
    assert!(one.cli(&["jobs", "cancel", &refused]).status.success());
    let said = String::from_utf8(two.cli(&["queue", "resume", "account:key"]).stdout).unwrap();
    assert!(said.contains("its hold is lifted"), "{said}");
    wait("the job to be done", &one, || (state(&one, &waiting)["state"] == "completed").then_some(()));
    assert!(account(&one)["hold"].is_null());
    for machine in [&one, &two] {
        machine.wait("the workers to go on", |status| status["workers"]["w"]["state"] == "active");
    }
    let metrics = format!("{}{}", one.get("/metrics"), two.get("/metrics"));
    for line in [
        "machinist_connector_cost_dollars_total{connector=\"simulation\"} 0.25",
        "machinist_account_holds_total{account=\"key\",cause=\"account\"} 1",
        "machinist_account_held{account=\"key\"} 0",
        "machinist_account_running_jobs{account=\"key\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert_eq!(state(&one, &refused)["usage"]["cost_usd"], 0.25);
}

#[test]
fn five_jobs_in_a_row_hold_both_machines_and_the_one_that_is_tried_lifts_it() {
    let server = RedisServer::start(&[]);
    let one = machine(&server, "one", "account = \"key\"");
    let two = machine(&server, "two", "account = \"key\"");
    for _ in 0..12 {
        submit(&one, &json!({ "duration": 0, "steps": 1, "fail": "retryable", "fail_times": 1 }));
    }
    wait("the account to be held", &one, || (!account(&one)["hold"].is_null()).then_some(()));
    wait("all jobs to be done", &one, || (one.status()?["queue"]["completed"] == 12).then_some(()));
    wait("the hold to be lifted", &one, || account(&one)["hold"].is_null().then_some(()));
    let lifted: usize = [&one, &two].iter().map(|machine| events(machine, "account.lifted").len()).sum();
    assert!(lifted >= 1, "{}\n{}", one.log(), two.log());
    assert_eq!(one.json(&["queue", "verify"])["problems"], json!([]));
}

#[test]
fn a_rate_limit_holds_a_worker_without_an_account_alone() {
    let server = RedisServer::start(&[]);
    let alone = machine(&server, "alone", "");
    let limited = submit(&alone, &json!({ "duration": 0, "steps": 1, "fail": "rate_limited", "wait": "2s" }));
    let status = alone.wait("the worker to rest", |status| status["workers"]["w"]["state"] == "not_ready");
    assert!(status["workers"]["w"]["reason"].as_str().unwrap().contains("told to fail"), "{status}");
    let job = state(&alone, &limited);
    assert_eq!((&job["attempts"], &job["state"]), (&json!(0), &json!("delayed")), "{job}");
    assert!(alone.cli(&["jobs", "cancel", &limited]).status.success());
    alone.wait("the worker to go on", |status| status["workers"]["w"]["state"] == "active");
    assert_eq!(alone.json(&["queue", "accounts"])["accounts"], json!([]));
}

/// Its check holds, and what it asks for is refused while the file is there: a day's quota that is spent.
const SPENT: &str = r#"
const CONFIG = #{ spent: #{ type: "string" } };
fn check(ctx) { true }
fn run(job, ctx) {
    if fs::exists(ctx.vars.spent) { throw account("429 the day's quota is spent"); }
    #{ done: true }
}
"#;

fn claims(machine: &Machine, job: &str) -> Vec<Timestamp> {
    let answer = machine.get(&format!("/jobs/{job}/events"));
    let body = answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body);
    let answer: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    let events = answer["events"].as_array().unwrap();
    let claims = events.iter().filter(|event| event["kind"] == "claimed");
    claims.map(|event| serde_json::from_value(event["at"].clone()).unwrap()).collect()
}

#[test]
fn a_worker_without_an_account_rests_longer_and_longer_while_its_check_holds_and_its_account_is_refused() {
    let server = RedisServer::start(&[]);
    let script = WORKERS.replace("simulation", "spent");
    let mut alone = Machine::new(&script, "");
    let spent = alone.path("spent");
    std::fs::write(&spent, "").unwrap();
    let settings =
        format!("[queue]\nurl = \"{}\"\n[connectors.spent.vars]\nspent = \"{}\"\n", server.url(), spent.display());
    alone.write("machine.toml", &settings);
    alone.write("connectors/spent.rhai", SPENT);
    alone.start();
    alone.wait_healthy();
    let job = alone.json(&["jobs", "submit", "spent"])["id"].as_str().unwrap().to_owned();
    let status = alone.wait("the worker to rest", |status| status["workers"]["w"]["state"] == "not_ready");
    let reason = status["workers"]["w"]["reason"].as_str().unwrap();
    assert!(reason.contains("its account is refused although the check holds"), "{reason}");
    assert!(reason.ends_with("429 the day's quota is spent"), "{reason}");
    let third = wait("the third claim", &alone, || claims(&alone, &job).get(2).copied());
    let claimed = claims(&alone, &job);
    assert!(third.since(claimed[0]) >= Duration::from_secs(3), "1 s, then 2 s: {claimed:?}");
    assert_eq!(state(&alone, &job)["attempts"], 0, "nobody is charged");
    // Paid for: the next one that is tried is done, and all slots claim again.
    std::fs::remove_file(&spent).unwrap();
    wait("the job to be done", &alone, || (state(&alone, &job)["state"] == "completed").then_some(()));
    alone.wait("the worker to go on", |status| status["workers"]["w"]["state"] == "active");
    assert!(claims(&alone, &job).len() <= 4, "{:?}", claims(&alone, &job));
    assert_eq!(alone.json(&["queue", "accounts"])["accounts"], json!([]));
}

#[test]
fn a_job_that_began_with_an_account_says_nothing_of_the_one_that_an_edit_put_in_since() {
    let server = RedisServer::start(&[]);
    let one = machine(&server, "one", "account = \"key\"");
    let old = submit(&one, &json!({ "duration": 6, "steps": 1, "fail": "account" }));
    wait("the job to run", &one, || (state(&one, &old)["state"] == "running").then_some(()));
    one.write(
        "machine.toml",
        &std::fs::read_to_string(one.path("machine.toml")).unwrap().replace("\"key\"", "\"new\""),
    );
    assert!(one.cli(&["reload"]).status.success());
    one.wait("the edit to be live", |status| status["workers"]["w"]["account"] == "new");
    assert_eq!(state(&one, &old)["state"], "running", "it still runs with the old one");
    // It goes back, and the new one finds out for itself, which is a hold that says so.
    wait("the old one to be held", &one, || (!account(&one)["hold"].is_null()).then_some(()));
    assert!(events(&one, "account.held").iter().any(|event| event["subject"] == "key"), "{}", one.log());
    let other = submit(&one, &json!({ "duration": 0, "steps": 1 }));
    assert!(one.cli(&["jobs", "cancel", &old]).status.success());
    wait("the new one to be used", &one, || (state(&one, &other)["state"] == "completed").then_some(()));
    assert_eq!(one.json(&["queue", "verify"])["problems"], json!([]));
}
