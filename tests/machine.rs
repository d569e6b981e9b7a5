//! Whole machines: the real binary, real processes, real jobs, as a user runs them.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::machine::{LIMIT, Machine, repository};
use support::{free_port, processes_with, wait_until};

const COMMAND: &str = "[shutdown]\ngrace = \"10s\"\n[connectors.command.vars.programs]\nsha256 = [\"sha256sum\"]\nsh = [\"sh\", \"-c\"]\n";
const WORKERS: &str =
    "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"command\", slots: 4 } ] }\n";

#[test]
fn quickstart_survives_kill_9_with_every_result_right_and_counted_once() {
    let mut machine = Machine::new("", "");
    for name in ["machine.rhai", "machine.toml", "www/index.html"] {
        let text = std::fs::read_to_string(repository().join("machines/quickstart").join(name)).unwrap();
        machine.write(name, &text.replace("8321", &free_port().to_string()));
    }
    // The port must be the same in all files.
    let port = free_port();
    let settings = std::fs::read_to_string(repository().join("machines/quickstart/machine.toml")).unwrap();
    machine.write("machine.toml", &settings.replace("8321", &port.to_string()));
    machine.start();
    machine.wait_healthy();
    assert!(machine.cli(&["health"]).status.success());

    let bulk = machine.dir.path().join("bulk.ndjson");
    let mut lines = String::new();
    let mut expected = BTreeMap::new();
    for n in 0..1000 {
        let text = format!("{n}{}", "x".repeat(n));
        let digest = Sha256::digest(text.as_bytes()).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        expected.insert(format!("job-{n}"), format!("{digest}  -\n"));
        let job = json!({ "id": format!("job-{n}"), "service": "command", "payload": { "program": "sha256", "stdin": text } });
        lines.push_str(job.to_string().as_str());
        lines.push('\n');
    }
    std::fs::write(&bulk, lines).unwrap();
    let bulk = bulk.display().to_string();
    assert!(machine.cli(&["jobs", "submit", "--file", &bulk]).status.success());
    machine.wait("some jobs to be done", |status| status["queue"]["completed"].as_u64() > Some(100));
    let served = machine.dir.path().join("state/site").display().to_string();
    machine.kill();
    let strays = processes_with(&served);
    assert!(!strays.is_empty(), "services outlive an engine that is killed");

    machine.start();
    machine.wait_healthy();
    assert!(strays.iter().all(|pid| !processes_with(&served).contains(pid)), "the strays are gone");
    // Submitting again changes nothing: the ids are known.
    let output = machine.cli(&["jobs", "submit", "--file", &bulk, "--wait"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stats = machine.status().unwrap()["queue"].clone();
    assert_eq!((stats["completed"].clone(), stats["failed"].clone()), (json!(1000), json!(0)));
    for (id, digest) in expected {
        let answer = machine.get(&format!("/jobs/{id}"));
        let job: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(job["result"]["stdout"], json!(digest), "{id}");
        let completions = job["history"].as_array().unwrap().iter().filter(|attempt| attempt["outcome"] == "completed");
        assert_eq!(completions.count(), 1, "{id}");
    }
    assert_eq!(machine.stop(), Some(0));
    assert_eq!(processes_with(&served), Vec::<u32>::new());
}

#[test]
fn edits_go_live_and_touch_only_what_differs_and_wrong_ones_change_nothing() {
    let script = |services: &str| format!("fn services(m) {{ [ {services} ] }}\n{}", WORKERS.lines().nth(1).unwrap());
    let keep = "#{ name: \"keep\", command: [\"sleep\", \"1000\"] }";
    let change = |n: u32| format!("#{{ name: \"change\", command: [\"sleep\", \"{n}\"] }}");
    let machine = Machine::started(&script(&format!("{keep}, {}", change(1001))), COMMAND);
    let (kept, changed) = (machine.pid("keep"), machine.pid("change"));
    let job = json!({ "program": "sh", "args": ["sleep 3; echo done"] }).to_string();
    let id = machine.json(&["jobs", "submit", "command", "--payload", &job])["id"].as_str().unwrap().to_owned();
    machine.wait("the job to run", |status| status["queue"]["running"] == 1);

    // Added.
    let added = "#{ name: \"added\", command: [\"sleep\", \"1002\"] }";
    machine.write("machine.rhai", &script(&format!("{keep}, {}, {added}", change(1001))));
    machine.wait("the added service", |status| status["services"]["added"]["state"] == "ready");
    assert_eq!((machine.pid("keep"), machine.pid("change")), (kept.clone(), changed.clone()));
    // Changed.
    machine.write("machine.rhai", &script(&format!("{keep}, {}, {added}", change(1003))));
    machine.wait("the changed service", |status| {
        let service = &status["services"]["change"];
        service["state"] == "ready" && service["pid"] != changed
    });
    // Removed.
    machine.write("machine.rhai", &script(&format!("{keep}, {}", change(1003))));
    let status = machine.wait("the removed service to go", |status| status["services"]["added"].is_null());
    assert_eq!(status["services"]["keep"]["pid"], kept);
    let number = status["generation"]["number"].clone();

    // Broken syntax, an unknown function, an unknown key: refused with the place, and nothing changes.
    for (wrong, place, message) in [
        ("fn services(m) {\n  [ #{ name: \"keep\" \n", "machine.rhai:3", "syntax"),
        (
            "fn services(m) {\n  [ mak_service(m) ]\n}\nfn make_service(m) { #{} }",
            "machine.rhai:2:5",
            "did you mean make_service",
        ),
        (
            "fn services(m) {\n  [ #{ name: \"keep\",\n  comand: [\"x\"] } ]\n}",
            "machine.rhai:3:3",
            "did you mean \"command\"",
        ),
        ("fn services(m) {\n  m.no_such.thing\n}", "machine.rhai:2:5", "no property no_such"),
        ("fn services(m) {\n  loop { }\n}", "machine.rhai:1", "too long"),
    ] {
        machine.write("machine.rhai", wrong);
        let status = machine.wait("the refusal", |status| {
            let shown = status["generation"]["rejection"]["problems"].to_string().replace("\\\"", "\"");
            shown.contains(message)
        });
        let problems = status["generation"]["rejection"]["problems"].clone();
        let problems: machinist::base::Problems = serde_json::from_value(problems).unwrap();
        let shown = problems.to_string();
        assert!(shown.contains(place), "{place} in {shown}");
        assert_eq!(status["generation"]["number"], number);
        assert_eq!(machine.pid("keep"), kept);
        let told = machine.cli(&["reload"]);
        assert_eq!(told.status.code(), Some(4), "a reload by hand is refused too");
    }
    // A setting that a running machine cannot take.
    machine.write("machine.rhai", &script(&format!("{keep}, {}", change(1003))));
    machine.write("machine.toml", &format!("{COMMAND}\n[queue]\nlease = \"7s\"\n"));
    machine.wait("the refusal of the setting", |status| {
        status["generation"]["rejection"]["problems"].to_string().contains("queue.lease cannot be changed")
    });
    machine.write("machine.toml", COMMAND);
    machine.wait("the remedy", |status| status["generation"]["rejection"].is_null());
    assert_eq!(machine.pid("keep"), kept);

    let output = machine.cli(&["jobs", "watch", &id]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["stdout"], "done\n", "the job lived through all of it");
}

#[test]
fn a_connector_is_replaced_live_and_jobs_in_flight_finish_on_the_old() {
    let settings = "[shutdown]\ngrace = \"10s\"\n";
    let script = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\", slots: 2 } ] }\n";
    let connector =
        |version: u32| format!("fn run(job, ctx) {{ sleep(job.payload.seconds); #{{ version: {version} }} }}\n");
    let mut machine = Machine::new(script, settings);
    machine.write("connectors/mine.rhai", &connector(1));
    machine.start();
    machine.wait_healthy();
    let long = machine.json(&["jobs", "submit", "mine", "--payload", "{\"seconds\": 3}"])["id"].clone();
    machine.wait("the long job to run", |status| status["queue"]["running"] == 1);
    machine.write("connectors/mine.rhai", &connector(2));
    machine.wait("the new generation", |status| status["generation"]["number"] == 2);
    let short = machine.cli(&["jobs", "submit", "mine", "--wait", "--payload", "{\"seconds\": 0.01}"]);
    assert_eq!(serde_json::from_slice::<Value>(&short.stdout).unwrap()["version"], 2);
    let long = machine.cli(&["jobs", "watch", long.as_str().unwrap()]);
    assert_eq!(serde_json::from_slice::<Value>(&long.stdout).unwrap()["version"], 1);
}

#[test]
fn a_job_says_that_no_worker_has_registered_and_why() {
    let script = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\", slots: 2 } ] }\n";
    let mut machine = Machine::new(script, "");
    machine.write("connectors/mine.rhai", "fn check(ctx) { throw retryable(\"not up\"); }\nfn run(job, ctx) { 1 }\n");
    machine.start();
    machine.wait("its check to fail", |status| status["workers"]["w"]["state"] == "not_ready");
    let job = machine.json(&["jobs", "submit", "mine"])["id"].clone();
    wait_until("the job to say why it waits", LIMIT, || {
        let why = machine.json(&["jobs", "explain", job.as_str().unwrap()]);
        let reason = why["reason"].as_str().unwrap();
        let told = reason.starts_with("no worker is registered. Not registered: ")
            && reason.ends_with("/w: not ready: not up");
        told.then_some(())
    });
}

#[test]
fn a_backend_that_is_gone_costs_no_job_its_attempts() {
    let script = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\", slots: 2 } ] }\n";
    let run = "fn run(job, ctx) { if !fs::exists(`${ctx.machine.dir}/up`) { throw retryable(\"it is gone\"); } sleep(0.05); 1 }\n";
    let check = "fn check(ctx) { if !fs::exists(`${ctx.machine.dir}/up`) { throw retryable(\"not up\"); } true }\n";
    // Its check knows; it has none, and the jobs that fail tell: five in a row, of which four may have gone before a job that
    // began earlier was done, the one in the other slot, and whoever was tried.
    for (connector, reason, most) in
        [(format!("{check}{run}"), "not up", 4), (run.to_owned(), "jobs in a row failed", 12)]
    {
        let mut machine = Machine::new(script, "");
        machine.write("connectors/mine.rhai", &connector);
        machine.write("up", "");
        machine.start();
        machine.wait_healthy();
        let job = json!({ "service": "mine", "retry": { "max_attempts": 5, "backoff": { "initial": "300ms" } } });
        let lines = vec![job.to_string(); 200].join("\n");
        std::fs::write(machine.path("jobs.ndjson"), lines).unwrap();
        let bulk = machine.path("jobs.ndjson").display().to_string();
        assert!(machine.cli(&["jobs", "submit", "--file", &bulk]).status.success());
        machine.wait("some to be done", |status| status["workers"]["w"]["completed"].as_u64() > Some(5));
        std::fs::remove_file(machine.path("up")).unwrap();
        machine.wait("the worker to claim no more", |status| {
            status["workers"]["w"]["state"] == "not_ready"
                && status["workers"]["w"]["reason"].to_string().contains(reason)
        });
        let waiting = machine.json(&["jobs", "list", "--state", "pending", "-n", "1"])["jobs"][0]["id"].clone();
        wait_until("the job to say why it waits", Duration::from_secs(20), || {
            let why = machine.json(&["jobs", "explain", waiting.as_str().unwrap()]);
            let worker = &why["workers"][0];
            let told = worker["mismatch"].is_null()
                && worker["not_claiming"].to_string().starts_with("\"not ready: ")
                && worker["not_claiming"].to_string().contains(reason)
                && why["reason"] == "none of the 1 workers that match it claims at present";
            told.then_some(())
        });
        machine.write("up", "");
        machine.wait("all to be done", |status| status["workers"]["w"]["completed"] == 200);
        let jobs = machine.json(&["jobs", "list", "-n", "300"]);
        let attempts = jobs["jobs"].as_array().unwrap().iter().map(|job| job["attempts"].as_u64().unwrap());
        let failed = attempts.sum::<u64>() - 200;
        assert!((1..=most).contains(&failed), "{failed} attempts failed: {reason}");
    }
}

#[test]
fn blocked_scripts_do_not_hold_up_probes() {
    let slots = std::thread::available_parallelism().unwrap().get() + 4;
    let script = format!(
        "fn services(m) {{ [] }}\nfn workers(m) {{ [ #{{ name: \"w\", connector: \"stuck\", slots: {slots} }} ] }}\n"
    );
    let mut machine = Machine::new(&script, "[shutdown]\ngrace = \"2s\"\n");
    machine.write("connectors/stuck.rhai", "fn run(job, ctx) { if job.payload.spin { loop { } } sleep(600); }\n");
    machine.start();
    machine.wait_healthy();
    for _ in 0..slots {
        assert!(machine.cli(&["jobs", "submit", "stuck", "--payload", "{\"spin\": false}"]).status.success());
    }
    machine.wait("all to be blocked", |status| status["queue"]["running"].as_u64() == Some(slots as u64));
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        assert!(machine.get("/livez").starts_with("HTTP/1.1 200"));
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    // They are stopped with the machine and go back to the queue, no attempt charged.
    assert_eq!(machine.stop(), Some(0));
    machine.start();
    machine.wait("them to run again", |status| status["queue"]["running"].as_u64() == Some(slots as u64));
    let jobs = machine.json(&["jobs", "list"]);
    assert!(jobs["jobs"].as_array().unwrap().iter().all(|job| job["attempts"] == 0), "{jobs:#}");
}

#[test]
fn jobs_end_as_they_should() {
    let machine = Machine::started(WORKERS, COMMAND);
    let submit = |payload: Value, more: &[&str]| {
        let payload = payload.to_string();
        let mut arguments = vec!["jobs", "submit", "command", "--wait", "--payload", &payload];
        arguments.extend(more);
        let output = machine.cli(&arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = submit(json!({ "program": "rm" }), &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("the program \"rm\" is not allowed here"), "{text}");
    let (_, text) = submit(json!({ "program": "sh", "args": ["echo oops >&2; exit 3"] }), &[]);
    assert!(text.contains("sh ended with exit code 3: oops"), "{text}");
    let (_, text) = submit(json!({ "program": "sh", "argz": [] }), &[]);
    assert!(text.contains("unknown key \"argz\""), "{text}");

    // A time-out kills the whole group, the grandchild in a session of its own too.
    let marker = format!("{}/late", machine.dir.path().display());
    let payload =
        json!({ "program": "sh", "args": [format!("setsid sh -c 'sleep 77; : {marker}' & sleep 78; : {marker}")] });
    let (code, text) = submit(payload, &["--timeout", "500ms", "--attempts", "1"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("500ms"), "{text}");
    assert_eq!(processes_with(&marker), Vec::<u32>::new());

    // Artifacts come back, the directory goes.
    let payload = json!({ "program": "sh", "args": ["printf hello > out.txt"], "artifacts": ["out.txt"] }).to_string();
    let output = machine.cli(&["jobs", "submit", "command", "--wait", "--payload", &payload]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["artifacts"][0]["text"], "hello");
    let left = std::fs::read_dir(machine.dir.path().join("state/work/w")).map_or(0, Iterator::count);
    assert_eq!(left, 0);

    // Cancel, waiting and running.
    let sleep = json!({ "program": "sh", "args": ["sleep 79"] }).to_string();
    let running = machine.json(&["jobs", "submit", "command", "--payload", &sleep])["id"].as_str().unwrap().to_owned();
    machine.wait("it to run", |status| status["queue"]["running"] == 1);
    let delayed = machine.json(&["jobs", "submit", "command", "--delay", "1h"])["id"].as_str().unwrap().to_owned();
    assert!(machine.cli(&["jobs", "cancel", &running, &delayed]).status.success());
    for id in [&running, &delayed] {
        let output = machine.cli(&["jobs", "watch", id]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("cancelled"));
    }
    assert_eq!(machine.cli(&["jobs", "cancel", "no-such-job"]).status.code(), Some(4));
    assert_eq!(machine.cli(&["jobs", "retry", &delayed]).status.code(), Some(0));
}

#[test]
fn garbage_is_answered_and_loses_nothing() {
    let machine = Machine::started(WORKERS, COMMAND);
    let post = |path: &str, headers: &str, body: &str| {
        machine.http(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let json = "Content-Type: application/json\r\n";
    for (path, headers, body, status, words) in [
        ("/jobs", json, "{", "400", "EOF"),
        ("/jobs", json, "{\"service\": \"command\", \"prioritty\": 1}", "400", "prioritty"),
        ("/jobs", json, "{\"service\": \"no good\"}", "400", "invalid name"),
        ("/jobs", json, "{\"service\": \"command\", \"priority\": 9999}", "400", "invalid priority"),
        ("/jobs", "Content-Type: application/x-ndjson\r\n", "{\"service\": \"command\"}\nnonsense\n", "400", "line 2"),
        ("/jobs/none/cancel", json, "", "404", "unknown_job"),
        ("/services/none/restart", json, "", "404", "there is no service"),
        ("/no/such/path", json, "", "404", "there is no such path"),
        ("/status", json, "", "405", "method"),
        ("/reload", "Origin: http://evil.example\r\n", "", "403", "loopback"),
    ] {
        let answer = post(path, headers, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words), "{path} {body}: {answer}");
    }
    let large = format!("{{\"service\": \"command\", \"payload\": \"{}\"}}", "x".repeat(65 << 20));
    assert!(post("/jobs", json, &large).starts_with("HTTP/1.1 413"));
    let rebound = machine.http("POST /drain HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
    for path in ["/jobs", "/services/none/logs", "/status", "/livez"] {
        let rebound =
            machine.http(&format!("GET {path} HTTP/1.1\r\nHost: evil.example:9090\r\nConnection: close\r\n\r\n"));
        assert!(rebound.starts_with("HTTP/1.1 403"), "{path}: {rebound}");
    }
    assert!(machine.http("GET /livez HTTP/1.0\r\n\r\n").contains(" 200 "));
    machine.http("NONSENSE\r\n\r\n");
    let status = machine.status().unwrap();
    assert_eq!((status["state"].clone(), status["queue"]["pending"].clone()), (json!("healthy"), json!(0)));
}

#[test]
fn a_token_guards_what_changes_something() {
    let mut machine = Machine::new(WORKERS, &format!("{COMMAND}[http]\ntoken = \"${{SECRET}}\"\n"));
    machine.environment.push(("SECRET".into(), "hunter2".into()));
    machine.start();
    machine.wait_healthy();
    assert_eq!(machine.cli(&["jobs", "submit", "command"]).status.code(), Some(4));
    assert_eq!(machine.cli(&["--token", "wrong", "reload"]).status.code(), Some(4));
    assert_eq!(machine.cli(&["--token", "hunter2", "reload"]).status.code(), Some(0));
    // Whoever has it may use any name, as a proxy does.
    let as_proxy = |token: &str| {
        let head = format!("Host: machine.example\r\nAuthorization: Bearer {token}\r\nConnection: close");
        machine.http(&format!("GET /jobs HTTP/1.1\r\n{head}\r\n\r\n"))
    };
    assert!(as_proxy("hunter2").contains(" 200 ") && as_proxy("wrong").contains(" 403 "));
    let config = machine.cli(&["config", &machine.path("").display().to_string()]);
    let shown = String::from_utf8_lossy(&config.stdout).into_owned();
    assert!(shown.contains("[redacted]") && !shown.contains("hunter2"), "{shown}");
    assert!(!machine.log().contains("hunter2"));
}

#[test]
fn a_critical_service_ends_the_machine_with_its_exit_code() {
    let script = "fn services(m) { [\n  #{ name: \"core\", shell: \"sleep 1; exit 42\", critical: true, restart: #{ limit: 1, initial: \"10ms\" } },\n  #{ name: \"other\", command: [\"sleep\", \"1000\"] },\n] }";
    let mut machine = Machine::new(script, "");
    machine.start();
    assert_eq!(machine.wait_exit(), Some(42));
    assert!(machine.log().contains("critical service core failed"), "{}", machine.log());

    let mut machine = Machine::new(
        "fn services(m) { [ #{ name: \"prepare\", kind: \"setup\", shell: \"echo no disk >&2; exit 5\" } ] }",
        "",
    );
    machine.start();
    assert_eq!(machine.wait_exit(), Some(5));
    assert!(machine.log().contains("no disk"), "{}", machine.log());
}

#[test]
fn a_startup_sequence_is_followed_and_its_steps_are_seen() {
    let script = r#"
fn services(m) { [
    #{ name: "b", command: ["sleep", "1000"] },
    #{ name: "a", shell: "echo up; exec sleep 1000", ready: #{ log: "up" } },
    #{ name: "rest", command: ["sleep", "1000"] },
] }
fn startup(m) {
    step("first a", || { start("a"); wait_ready("a", "10s"); });
    step("then b", || { run(["true"]); process::run(#{ argv: ["true"] }); start("b"); wait_ready("b"); });
}
fn on_event(m, event) {
    if event.kind == "machine.startup_complete" { log::info("the hook saw it"); }
}
"#;
    let machine = Machine::started(script, "");
    let status = machine.status().unwrap();
    let steps: Vec<&str> =
        status["startup"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert!(steps.ends_with(&["startup(m)", "first a", "then b"]), "{steps:?}");
    assert_eq!(status["services"]["rest"]["state"], "ready", "what the sequence does not name comes after it");
    wait_until("the hook", LIMIT, || machine.log().contains("the hook saw it").then_some(()));
}

#[test]
fn a_machine_has_not_started_before_what_the_sequence_did_not_name_is_up() {
    let mut machine = Machine::new("", "");
    let go = machine.dir.path().join("go");
    let probe = format!("#{{ exec: [\"test\", \"-e\", \"{}\"], every: \"20ms\" }}", go.display());
    let service = format!("#{{ name: \"slow\", command: [\"sleep\", \"1000\"], ready: {probe} }}");
    machine.write("machine.rhai", &format!("fn services(m) {{ [ {service} ] }}\nfn startup(m) {{ }}\n"));
    machine.start();
    let status = machine.wait("the service to start", |status| status["services"]["slow"]["state"] == "starting");
    assert_eq!((&status["started"], &status["state"]), (&json!(false), &json!("starting")), "{status:#}");
    std::fs::write(go, "").unwrap();
    machine.wait_healthy();
}

#[test]
fn check_names_every_problem_and_its_place() {
    let machine = Machine::new(
        "fn services(m) { [\n  #{ name: \"web\", command: [\"no-such-program\"] },\n  #{ name: \"api\", command: [\"sleep\"], needs: [\"wep\"] },\n] }\nfn workers(m) { [ #{ name: \"w\", connector: \"commnd\" } ] }\n",
        "",
    );
    let directory = machine.path("").display().to_string();
    let output = machine.cli(&["check", &directory]);
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in ["needs \"wep\"", "did you mean \"web\"?", "machine.rhai:3:"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    machine.write(
        "machine.rhai",
        "fn services(m) { [ #{ name: \"web\", command: [\"no-such-program\"] } ] }\nfn workers(m) { [ #{ name: \"w\", connector: \"commnd\" } ] }\n",
    );
    let text = String::from_utf8_lossy(&machine.cli(&["check", &directory]).stdout).into_owned();
    assert!(text.contains("no-such-program") && text.contains("connector \"commnd\" has no script"), "{text}");
    let json = machine.json(&["check", &directory]);
    assert_eq!((json[0]["ok"].clone(), json[0]["problems"].as_array().unwrap().len()), (json!(false), 2));
}

#[test]
fn metrics_pass_promtool() {
    let machine = Machine::started(WORKERS, COMMAND);
    let payload = json!({ "program": "sha256", "stdin": "x" }).to_string();
    assert!(machine.cli(&["jobs", "submit", "command", "--wait", "--payload", &payload]).status.success());
    let answer = machine.get("/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    // A long answer comes in chunks; promtool reads the text alone.
    let text: String = body
        .lines()
        .filter(|line| !line.trim().chars().all(|c| c.is_ascii_hexdigit()) || line.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    assert!(text.contains("machinist_jobs_finished_total{") && text.contains("process_open_fds"), "{text}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed by test.sh");
    promtool.stdin.take().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn nobody_home_is_said_plainly() {
    let machine = Machine::new("", "");
    let output = machine.cli(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no machine answers at http://127.0.0.1:"));
}
