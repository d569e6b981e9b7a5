//! What machines say of themselves on the queue: who listens hears the turns of their lives in order, who looks sees who is
//! there, and who was.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::{LIMIT, Machine, repository};
use support::redis::RedisServer;
use support::wait_until;

const SCRIPT: &str = r#"
fn services(m) { [ #{ name: "echo", shell: "echo up; exec sleep 1000", ready: #{ log: "up" } } ] }
fn workers(m) { [ #{ name: "w", connector: "nap", slots: 4 } ] }
fn startup(m) { step("first things", || { start("echo"); wait_ready("echo", "10s"); }); }
"#;
const NAP: &str = "fn run(job, ctx) { sleep(job.payload.seconds); 1 }";

fn settings(server: &RedisServer, id: &str) -> String {
    format!(
        "[machine]\nid = \"{id}\"\ntype = \"api\"\npool = \"fast\"\n[queue]\nurl = \"{}\"\n[shutdown]\ngrace = \"30s\"\n",
        server.url()
    )
}

fn machine(server: &RedisServer, id: &str) -> Machine {
    let machine = Machine::new(SCRIPT, &settings(server, id));
    machine.write("connectors/nap.rhai", NAP);
    machine
}

/// Somebody who listens to all machines with a plain client.
struct Ear {
    child: Child,
    messages: Receiver<Value>,
    schema: Value,
}

impl Ear {
    fn of(server: &RedisServer) -> Self {
        let mut child = Command::new("redis-cli")
            .args(["-p", &server.port.to_string(), "PSUBSCRIBE", "machine:status:*"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, messages) = channel();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Vec<String> = lines.by_ref().take(3).map(Result::unwrap).collect();
        assert_eq!(first[0], "psubscribe");
        std::thread::spawn(move || {
            let mut channel = String::new();
            for line in lines.map_while(Result::ok) {
                if line.starts_with('{') {
                    let message: Value = serde_json::from_str(&line).unwrap();
                    let id = message["machine"]["id"].as_str().unwrap();
                    assert_eq!(channel, format!("machine:status:{id}"));
                    if sender.send(message).is_err() {
                        return;
                    }
                }
                channel = line;
            }
        });
        let schema = std::fs::read_to_string(repository().join("docs/status.schema.json")).unwrap();
        Self { child, messages, schema: serde_json::from_str(&schema).unwrap() }
    }

    /// The next message, which is as its schema says.
    fn next(&self) -> Value {
        let message = self.messages.recv_timeout(LIMIT).expect("a machine says something");
        let validator = jsonschema::draft202012::new(&self.schema).unwrap();
        let wrong: Vec<String> = validator.iter_errors(&message).map(|error| error.to_string()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{message:#}");
        message
    }

    /// All messages until one of the kind, which is the last of them.
    fn until(&self, kind: &str) -> Vec<Value> {
        self.until_such(|message| message["kind"] == kind)
    }

    fn until_such(&self, such: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.next());
            if such(heard.last().unwrap()) {
                return heard;
            }
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn millis(message: &Value) -> u64 {
    message["at"].as_str().unwrap().parse::<machinist::base::Timestamp>().unwrap().as_millis()
}

fn ttl(server: &RedisServer, id: &str) -> i64 {
    server.command(&["PTTL", &format!("{{jobs}}:machine:{id}")]).trim().parse().unwrap()
}

fn listed(machine: &Machine, id: &str) -> Value {
    let machines = machine.json(&["machines"]);
    let found = machines["machines"].as_array().unwrap().iter().find(|machine| machine["id"] == id);
    found.cloned().unwrap_or(Value::Null)
}

#[test]
fn who_listens_hears_the_turns_of_a_life_in_order() {
    let server = RedisServer::start(&[]);
    let ear = Ear::of(&server);
    let mut machine = machine(&server, "m1");
    machine.start();
    let mut heard = ear.until("online");
    let kinds: Vec<&str> = heard.iter().map(|message| message["kind"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], &kinds[kinds.len() - 2..]), ("starting", &["startup_complete", "online"][..]));
    let complete = &heard[heard.len() - 2];
    let steps = complete["startup"]["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["name"] == "first things").unwrap_or_else(|| panic!("{complete:#}"));
    assert!(step["took_ms"].is_number() && step["state"] == "done", "{step}");
    assert!(complete["startup"]["took_ms"].as_u64() > Some(0));
    let online = heard.last().unwrap();
    assert_eq!((&online["state"], &online["machine"]["pool"]), (&json!("healthy"), &json!("fast")));
    assert_eq!(online["services"]["states"], json!({ "ready": 1 }));
    let life = ttl(&server, "m1");
    assert!((30_000..=45_000).contains(&life), "{life}");

    // Changes, many as few.
    for _ in 0..30 {
        let submitted = machine.cli(&["jobs", "submit", "nap", "--payload", "{\"seconds\": 0.01}"]);
        assert!(submitted.status.success(), "{submitted:?}");
    }
    let submitted = machine.cli(&["jobs", "submit", "nap", "--payload", "{\"seconds\": 6}", "--id", "long"]);
    assert!(submitted.status.success(), "{submitted:?}");
    let changes = ear.until_such(|message| message["workers"]["jobs"][0]["id"] == "long");
    assert!(changes.iter().all(|message| message["kind"] == "status"), "{changes:#?}");
    for pair in changes.windows(2) {
        assert!(millis(&pair[1]) >= millis(&pair[0]) + 400, "twice a second: {pair:#?}");
    }
    heard.extend(changes);
    machine.cli(&["services", "stop", "echo"]);
    heard.extend(ear.until_such(|message| message["services"]["states"] == json!({ "stopped": 1 })));

    // The end, with the job in between.
    assert_eq!(machine.drain(), Some(0));
    let last = ear.until("shutdown");
    assert_eq!(last.iter().filter(|message| message["kind"] == "draining").count(), 1);
    let draining = last.iter().find(|message| message["kind"] == "draining").unwrap();
    assert_eq!(draining["reason"], "stopped by request");
    let shutdown = last.last().unwrap();
    assert_eq!((&shutdown["exit_code"], &shutdown["reason"]), (&json!(0), &json!("stopped by request")));
    assert_eq!((&shutdown["state"], &shutdown["workers"]["running"]), (&json!("stopped"), &json!(0)));
    heard.extend(last);
    let numbers: Vec<u64> = heard.iter().map(|message| message["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=heard.len() as u64).collect::<Vec<_>>(), "none is missing");
    assert_eq!(ttl(&server, "m1"), -2, "its presence has ended with it");
}

#[test]
fn a_machine_that_fails_says_so_and_its_exit_code() {
    let server = RedisServer::start(&[]);
    let ear = Ear::of(&server);
    let script = r#"fn services(m) { [ #{ name: "core", shell: "sleep 0.3; exit 3", critical: true, restart: #{ limit: 1, initial: "10ms" } } ] }"#;
    let mut machine = Machine::new(script, &settings(&server, "failing"));
    machine.start();
    assert_eq!(machine.wait_exit(), Some(3));
    let heard = ear.until("shutdown");
    let failed = heard.iter().position(|message| message["kind"] == "failed").unwrap();
    assert_eq!(failed, heard.iter().rposition(|message| message["state"] != "failed").unwrap() + 1, "{heard:#?}");
    let reason = heard.last().unwrap()["reason"].as_str().unwrap();
    assert!(reason.contains("critical service core failed"), "{reason}");
    assert_eq!(heard.last().unwrap()["exit_code"], 3);

    // One whose files are of no use.
    machine.write("machine.rhai", "fn services(m) { [ #{ nam: 1 } ] }");
    machine.start();
    assert_eq!(machine.wait_exit(), Some(78));
    let heard = ear.until("shutdown");
    let (last, life) = (heard.last().unwrap(), &heard[0]["machine"]["incarnation"]);
    assert!(last["reason"].as_str().unwrap().starts_with("its files cannot be used: "), "{last:#}");
    assert_eq!((&last["state"], &last["exit_code"], life), (&json!("failed"), &Value::Null, &json!(2)));
}

#[test]
fn who_is_there_and_who_was_is_seen_from_each_machine() {
    let mut server = RedisServer::start(&[]);
    let (mut one, mut two, mut three) = (machine(&server, "one"), machine(&server, "two"), machine(&server, "three"));
    for machine in [&mut one, &mut two, &mut three] {
        machine.start();
    }
    for machine in [&one, &two, &three] {
        machine.wait_healthy();
    }
    for (reader, id) in [(&one, "two"), (&two, "one"), (&three, "three")] {
        let seen = wait_until("a healthy machine in the list", LIMIT, || {
            Some(listed(reader, id)).filter(|seen| seen["state"] == "healthy")
        });
        assert_eq!((&seen["presence"], &seen["pool"], &seen["slots"]), (&json!("present"), &json!("fast"), &json!(4)));
    }
    assert_eq!(three.stop(), Some(0));
    let left = listed(&one, "three");
    assert_eq!(
        (&left["presence"], &left["exit_code"], &left["reason"]),
        (&json!("left"), &json!(0), &json!("stopped by SIGTERM"))
    );

    // One that is killed is present until its time is over, which nobody makes longer.
    two.kill();
    let (until, first) = (listed(&one, "two")["until"].clone(), ttl(&server, "two"));
    assert!(until.is_string() && (1..=45_000).contains(&first), "{until} {first}");
    let mut latest = first;
    wait_until("its presence to run down", LIMIT, || {
        let now = ttl(&server, "two");
        assert!(now <= latest, "{now} after {latest}");
        latest = now;
        (now < first - 1_000).then_some(())
    });
    assert_eq!(listed(&one, "two")["until"], until);
    let table = String::from_utf8(one.cli(&["machines"]).stdout).unwrap();
    let line = |id: &str| table.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{table}"));
    assert!(table.starts_with("MACHINE  TYPE  POOL  STATE"), "{table}");
    assert!(line("three").contains("left, 0") && line("one").contains("healthy"), "{table}");

    // A Redis that has forgotten all hears of who is there at once.
    server.kill();
    one.wait("the loss to be noticed", |status| status["state"] == "reconnecting");
    server.restart();
    wait_until("it to be listed again", Duration::from_secs(5), || {
        (listed(&one, "one")["presence"] == "present").then_some(())
    });
    assert_eq!(listed(&one, "two"), Value::Null);
    one.wait_healthy();
    wait_until("its state to be known", LIMIT, || (listed(&one, "one")["state"] == "healthy").then_some(()));
}

#[test]
fn a_machine_with_a_queue_of_its_own_is_listed_there() {
    let mut machine = Machine::new(SCRIPT, "[machine]\nid = \"alone\"\n");
    machine.write("connectors/nap.rhai", NAP);
    machine.start();
    machine.wait_healthy();
    wait_until("itself", LIMIT, || (listed(&machine, "alone")["state"] == "healthy").then_some(()));
    let first = listed(&machine, "alone");
    assert_eq!((&first["presence"], &first["incarnation"]), (&json!("present"), &json!(1)));
    machine.kill();
    machine.start();
    machine.wait_healthy();
    wait_until("its second life", LIMIT, || (listed(&machine, "alone")["incarnation"] == 2).then_some(()));
}
