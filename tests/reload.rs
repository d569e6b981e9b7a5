//! Edits of a machine that runs: what goes live, what is refused, what is rolled back, and that nothing else is touched.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::machine::{LIMIT, Machine};
use support::wait_until;

const QUICK: &str = "[shutdown]\ngrace = \"10s\"\n[reload]\ndebounce = \"20ms\"\n";

fn rejection(status: &Value) -> String {
    let problems = status["generation"]["rejection"]["problems"].clone();
    serde_json::from_value::<machinist::base::Problems>(problems)
        .map(|problems| problems.to_string())
        .unwrap_or_default()
}

fn metric(machine: &Machine, name: &str) -> Option<f64> {
    let text = machine.get("/metrics");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn an_edit_that_does_not_come_up_is_rolled_back_and_says_why() {
    let script = |command: &str, more: &str| {
        format!(
            "fn services(m) {{ [\n  #{{ name: \"keep\", command: [\"sleep\", \"1000\"] }},\n  #{{ name: \"web\", shell: `{command}`, critical: true, \
             restart: #{{ initial: \"10ms\", limit: 100 }}{more} }},\n] }}\n"
        )
    };
    let machine = Machine::started(&script("exec sleep 1001", ""), QUICK);
    let kept = machine.pid("keep");
    machine.write("machine.rhai", &script("echo no such model >&2; exit 7", ""));
    let output = machine.cli(&["reload", "--wait"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{told}{}\n{}", String::from_utf8_lossy(&output.stdout), machine.log());
    for words in
        ["service web crashes in a loop", "web wrote: no such model", "the edit: restart web", "exec sleep 1001"]
    {
        assert!(told.contains(words), "{words} in {told}");
    }
    let status = machine.wait("the good generation", |status| status["services"]["web"]["state"] == "ready");
    assert_eq!(status["generation"]["number"], 1);
    assert_eq!(status["generation"]["rejection"]["rolled_back"], 2);
    assert!(rejection(&status).contains("no such model"));
    assert_eq!(machine.pid("keep"), kept);
    let events = String::from_utf8_lossy(&machine.cli(&["events", "--json"]).stdout).into_owned();
    assert!(events.contains("reload.rolled_back"), "{events}");
    assert_eq!(metric(&machine, "machinist_reloads_total{result=\"rolled_back\"}"), Some(1.0));
    assert_eq!(metric(&machine, "machinist_last_reload_success "), Some(0.0));
    assert_eq!(metric(&machine, "machinist_generation "), Some(1.0));
    let text = String::from_utf8_lossy(&machine.cli(&["status"]).stdout).into_owned();
    assert!(text.contains("the latest edit was rolled back"), "{text}");

    // The same files are not tried again; what they were does not count as what runs.
    let web = machine.pid("web");
    let again = machine.cli(&["reload"]);
    assert_eq!(again.status.code(), Some(4), "{}", String::from_utf8_lossy(&again.stdout));
    assert_eq!(machine.pid("web"), web);
    machine.write("machine.rhai", &script("exec sleep 1001", ""));
    machine.wait("the remedy", |status| status["generation"]["rejection"].is_null());
    assert_eq!((machine.pid("web"), machine.pid("keep")), (web, kept.clone()));

    // Not ready within its own time, and a critical service all the same.
    machine.write(
        "machine.rhai",
        &script("exec sleep 1001", ", ready: #{ exec: [\"false\"], every: \"20ms\" }, env: #{ A: 1 }"),
    );
    machine.wait("the edit to be on probation", |status| status["generation"]["probation"]["back_to"].is_number());
    let ready = ", ready: #{ exec: [\"false\"], every: \"20ms\", within: \"200ms\" }, env: #{ A: 2 }";
    machine.write("machine.rhai", &script("exec sleep 1001", ready));
    let status = machine.wait("the roll back", |status| rejection(status).contains("was not ready in time"));
    assert!(status["generation"]["probation"].is_null());
    let status = machine.wait("all to be up", |status| status["state"] == "healthy");
    assert_eq!(status["services"]["keep"]["pid"], kept);
}

#[test]
fn a_setup_step_and_an_in_place_update_that_fail_are_rolled_back() {
    let script = |step: &str, probe: &str| {
        format!(
            "fn services(m) {{ [\n  #{{ name: \"prepare\", kind: \"setup\", shell: `{step}` }},\n  \
             #{{ name: \"web\", command: [\"sleep\", \"1000\"], ready: #{{ exec: [\"{probe}\"], every: \"20ms\", recheck: \"20ms\" }} }},\n] }}\n"
        )
    };
    let settings = format!("{QUICK}probation = \"1s\"\n");
    let machine = Machine::started(&script("true", "true"), &settings);
    let web = machine.pid("web");
    machine.write("machine.rhai", &script("echo disk is full; exit 9", "true"));
    machine.wait("the roll back of the step", |status| rejection(status).contains("disk is full"));
    machine.wait("all to be up", |status| status["state"] == "healthy");
    // A probe that an edit changes is asked at once, and the process lives on.
    machine.write("machine.rhai", &script("true", "false"));
    machine.wait("the roll back of the probe", |status| rejection(status).contains("web is unready"));
    machine.wait("all to be up", |status| status["state"] == "healthy");
    assert_eq!(machine.pid("web"), web);
    machine.write("machine.rhai", &script("true # again", "true"));
    let output = machine.cli(&["reload", "--wait"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("has passed its probation"), "{told}");
    assert_eq!(machine.pid("web"), web);
}

#[test]
fn a_connector_whose_check_fails_is_rolled_back_and_jobs_go_on() {
    let script = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\", slots: 2 } ] }\n";
    let connector = |version: u32, check: &str| {
        format!(
            "fn check(ctx) {{ {check} }}\nfn run(job, ctx) {{ sleep(job.payload.seconds); #{{ version: {version} }} }}\n"
        )
    };
    let mut machine = Machine::new(script, &format!("{QUICK}probation = \"1s\"\n"));
    machine.write("connectors/mine.rhai", &connector(1, "true"));
    machine.start();
    machine.wait("the worker to claim", |status| status["workers"]["w"]["state"] == "active");
    let long = machine.json(&["jobs", "submit", "mine", "--payload", "{\"seconds\": 3}"])["id"].clone();
    machine.wait("the long job to run", |status| status["queue"]["running"] == 1);
    machine.write("connectors/mine.rhai", &connector(2, "throw \"wrong port\""));
    let status = machine.wait("the roll back", |status| rejection(status).contains("worker w"));
    assert!(rejection(&status).contains("wrong port"), "{}", rejection(&status));
    let short = machine.cli(&["jobs", "submit", "mine", "--wait", "--payload", "{\"seconds\": 0.01}"]);
    assert_eq!(serde_json::from_slice::<Value>(&short.stdout).unwrap()["version"], 1);
    let long = machine.cli(&["jobs", "watch", long.as_str().unwrap()]);
    assert_eq!(serde_json::from_slice::<Value>(&long.stdout).unwrap()["version"], 1);
}

/// A service that is renamed keeps its port: the new one starts when the old one, which takes its time, has left it.
#[test]
fn a_port_is_handed_over_without_a_failed_start() {
    let port = support::free_port();
    let script = |name: &str| {
        let listen = "import signal, socket, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.7), sys.exit(0)))\n\
                      s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
                      s.bind((\"127.0.0.1\", int(sys.argv[1])))\ns.listen()\nwhile True: signal.pause()";
        format!(
            "fn services(m) {{ [ #{{ name: \"{name}\", command: [\"python3\", \"-c\", `{listen}`, \"{port}\"], ports: [{port}], ready: #{{ tcp: {port} }} }} ] }}\n"
        )
    };
    let machine = Machine::started(&script("old"), QUICK);
    machine.write("machine.rhai", &script("new"));
    machine.wait("the old one to be waited for", |status| {
        status["services"]["new"]["reason"].to_string().contains("waits for old to leave port")
    });
    let status = machine.wait("the new one", |status| status["services"]["new"]["state"] == "ready");
    let new = &status["services"]["new"];
    assert_eq!((&new["restarts"], &new["incarnation"]), (&json!(0), &json!(1)), "{new:#}");
    assert!(status["services"]["old"].is_null());
}

#[test]
fn an_edit_during_a_probation_leads_back_to_what_passed() {
    let script = |a: u32, b: &str| {
        format!(
            "fn services(m) {{ [ #{{ name: \"a\", command: [\"sleep\", \"{a}\"] }}, #{{ name: \"b\", shell: `{b}`, restart: #{{ initial: \"5ms\" }} }} ] }}\n"
        )
    };
    let machine = Machine::started(&script(1001, "exec sleep 1000"), QUICK);
    machine.write("machine.rhai", &script(1002, "exec sleep 1000"));
    machine.wait("the first edit", |status| status["generation"]["number"] == 2);
    machine.write("machine.rhai", &script(1002, "exit 1"));
    machine.wait("the roll back", |status| status["generation"]["rejection"]["rolled_back"] == 3);
    let status = machine.wait("all to be up", |status| status["state"] == "healthy");
    assert_eq!(status["generation"]["number"], 1, "generation 2 had not passed");
    let pid = status["services"]["a"]["pid"].as_u64().unwrap();
    assert!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("1001"));
    // Numbers are not used twice.
    machine.write("machine.rhai", &script(1004, "exec sleep 1000"));
    machine.wait("the next edit", |status| status["generation"]["number"] == 4);
}

#[test]
fn missing_files_swapped_links_and_other_formats_are_noticed() {
    let script = "import \"lib/values\" as values;\nfn services(m) { [ #{ name: \"a\", command: [\"sleep\", values::seconds()] } ] }\n\
                  fn workers(m) { [ #{ name: \"w\", connector: \"mine\" } ] }\n";
    let mut machine = Machine::new("fn services(m) { [] }\n", QUICK);
    machine.start();
    machine.wait_healthy();
    machine.write("machine.rhai", script);
    machine.wait("the missing import", |status| rejection(status).contains("lib/values"));
    machine.write("lib/values.rhai", "fn seconds() { \"1001\" }\n");
    machine.wait("the missing connector", |status| rejection(status).contains("has no script"));
    machine.write("connectors/mine.rhai", "fn run(job, ctx) { 1 }\n");
    machine.wait("all that was missing", |status| {
        status["generation"]["rejection"].is_null() && status["services"]["a"]["state"] == "ready"
    });
    // A module of a module that is added and goes again.
    machine.write("lib/deep.rhai", "fn n() { 1002 }\n");
    machine.write("lib/values.rhai", "import \"lib/deep\" as deep;\nfn seconds() { `${global::deep::n()}` }\n");
    let command = |machine: &Machine| {
        let pid = machine.pid("a");
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
    };
    let module = wait_until("the module", LIMIT, || {
        let refused = rejection(&machine.status().unwrap());
        (command(&machine).contains("1002") || !refused.is_empty()).then_some(refused)
    });
    if !module.is_empty() {
        machine.write(
            "lib/values.rhai",
            "import \"lib/deep\" as deep;\nfn seconds() { import \"lib/deep\" as deep; `${deep::n()}` }\n",
        );
        wait_until("the module", LIMIT, || command(&machine).contains("1002").then_some(()));
    }
    machine.write("lib/deep.rhai", "fn n() { 1003 }\n");
    wait_until("the changed module", LIMIT, || command(&machine).contains("1003").then_some(()));
    // Two settings files are one too many; then the other format counts.
    machine.write("machine.yaml", "reload:\n  debounce: 20ms\nvars:\n  a: 1\n");
    machine.wait("the second settings file", |status| rejection(status).contains("several settings files"));
    fs::remove_file(machine.path("machine.toml")).unwrap();
    machine.wait("the other format", |status| status["generation"]["rejection"].is_null());
    assert!(machine.status().unwrap()["generation"]["files"].to_string().contains("machine.yaml"));
    let number = machine.status().unwrap()["generation"]["number"].as_u64();
    // Kubernetes swaps a link.
    let publish = |version: &str| {
        let versioned = machine.path(&format!("..{version}"));
        fs::create_dir(&versioned).unwrap();
        let text = format!("fn seconds() {{ \"{version}\" }}\n");
        fs::write(versioned.join("values.rhai"), text).unwrap();
        let _ = fs::remove_file(machine.path("..tmp"));
        symlink(format!("..{version}"), machine.path("..tmp")).unwrap();
        fs::rename(machine.path("..tmp"), machine.path("..data")).unwrap();
    };
    publish("1004");
    fs::remove_file(machine.path("lib/values.rhai")).unwrap();
    symlink("../..data/values.rhai", machine.path("lib/values.rhai")).unwrap();
    wait_until("the link", LIMIT, || command(&machine).contains("1004").then_some(()));
    publish("1005");
    wait_until("the swapped link", LIMIT, || command(&machine).contains("1005").then_some(()));
    assert!(machine.status().unwrap()["generation"]["number"].as_u64() > number);
    // SIGHUP with nothing to do is no new generation.
    let before = machine.status().unwrap()["generation"]["number"].clone();
    let pid = nix::unistd::Pid::from_raw(machine.engine.as_ref().unwrap().id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    assert!(machine.cli(&["reload"]).status.success());
    assert_eq!(machine.status().unwrap()["generation"]["number"], before);
}

#[test]
fn settings_that_can_are_taken_over_live() {
    let script = "fn services(m) { [] }\nfn workers(m) { [ #{ name: \"w\", connector: \"mine\" } ] }\n";
    let mut machine = Machine::new(script, QUICK);
    machine.write("connectors/mine.rhai", "fn run(job, ctx) { log::info(\"seen\"); ctx.vars.answer }\n");
    machine.start();
    machine.wait("the worker to claim", |status| status["workers"]["w"]["state"] == "active");
    let job = ["jobs", "submit", "mine", "--requirement", "{\"labels\": {\"zone\": {\"equals\": \"b\"}}}"];
    let _ = job;
    let more = "[machine]\npool = \"heavy\"\nlabels = { zone = \"b\" }\n[log]\nlevel = \"debug\"\n[connectors.mine.vars]\nanswer = 42\n";
    machine.write("machine.toml", &format!("{QUICK}{more}"));
    let status = machine.wait("the labels", |status| status["machine"]["labels"]["zone"] == "b");
    assert_eq!(status["machine"]["pool"], "heavy");
    let id = format!("{}/w", status["machine"]["id"].as_str().unwrap());
    wait_until("the queue to know the labels", LIMIT, || {
        let workers = machine.get("/queue/workers");
        (workers.contains(&id) && workers.contains("\"zone\":\"b\"")).then_some(())
    });
    let output = machine.cli(&["jobs", "submit", "mine", "--wait"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
    machine.cli(&["reload"]);
    wait_until("the log level", LIMIT, || machine.log().contains("reading the machine's files again").then_some(()));
}

#[test]
fn a_plan_tells_what_would_happen_and_does_nothing() {
    let script = |grace: &str, key: &str, more: &str| {
        format!(
            "fn services(m) {{ [\n  #{{ name: \"db\", command: [\"sleep\", \"1000\"], env: #{{ API_KEY: \"{key}\", A: 1 }}, ports: [1] }},\n  \
             #{{ name: \"web\", command: [\"sleep\", \"1001\"], needs: [\"db\"], stop: #{{ grace: \"{grace}\" }} }},\n{more}] }}\n\
             fn workers(m) {{ [ #{{ name: \"w\", connector: \"simulation\", slots: 2 }} ] }}\n"
        )
    };
    let mut machine = Machine::new(&script("5s", "s3cret", ""), QUICK);
    let dir = machine.path("").display().to_string();
    let output = machine.cli(&["plan", &dir]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("s3cret"), "{text}");
    for words in ["2 services in 2 waves, 1 workers", "wave 2\n  web: sleep 1001", "ports: 1", "A=1 API_KEY=[redacted]"]
    {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(machine.json(&["plan", &dir])["waves"][1][0]["name"], "web");
    machine.start();
    machine.wait_healthy();
    assert_eq!(machine.cli(&["plan", "--running"]).status.code(), Some(0));
    // Another directory, as the machine would read it.
    let other = machine.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("machine.toml"), format!("{QUICK}[vars]\na = 1\n")).unwrap();
    let more = "  #{ name: \"new\", command: [\"sleep\", \"1\"], needs: [\"web\"] },\n";
    fs::write(other.join("machine.rhai"), script("6s", "s3cret too", more)).unwrap();
    let output = machine.cli(&["plan", other.to_str().unwrap(), "--running"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("s3cret"), "{text}");
    for words in [
        "file machine.rhai",
        "setting vars.a: null -> 1",
        "restart db (wave 1), because of env\n    env.API_KEY: \"[redacted]\" -> \"[redacted]\"",
        "update web (wave 2)\n    stop.grace: \"5s\" -> \"6s\"",
        "add new (wave 3)",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let status = machine.status().unwrap();
    assert_eq!((&status["generation"]["number"], status["generation"]["rejection"].is_null()), (&json!(1), true));
    fs::write(other.join("machine.toml"), "[queue]\nlease = \"7s\"\n").unwrap();
    let output = machine.cli(&["plan", other.to_str().unwrap(), "--url", &machine.url]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("queue.lease cannot be changed"));
}

/// What the machine is meant to be; written out as its files.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    services: BTreeMap<String, Service>,
    connector: u32,
    slots: u32,
    var: u32,
    module: Option<u32>,
    log_level: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
struct Service {
    /// Where it differs a new process is due.
    variant: u32,
    grace: u32,
    port: Option<u16>,
    needs: Option<String>,
}

/// What becomes of an edit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Live,
    Refused,
    RolledBack,
}

const RECORD: &str = "record";

impl Model {
    fn new() -> Self {
        let service = |variant| Service { variant, grace: 5, port: None, needs: None };
        let services = [("base", 1), ("one", 2), ("two", 3)].map(|(name, n)| (name.to_owned(), service(n)));
        Self { services: services.into(), connector: 1, slots: 3, var: 0, module: None, log_level: "info" }
    }

    fn files(&self, extra: &str) -> BTreeMap<&'static str, String> {
        let mut script = String::new();
        if self.module.is_some() {
            script.push_str("import \"lib/module\" as lib;\n");
        }
        script.push_str("fn services(m) { [\n");
        for (name, service) in &self.services {
            let ports = service.port.map(|port| format!(", ports: [{port}]")).unwrap_or_default();
            let needs = service.needs.iter().filter(|need| self.services.contains_key(*need));
            let needs = needs.map(|need| format!(", needs: [\"{need}\"]")).collect::<Vec<_>>().concat();
            let module = if self.module.is_some() && name == "base" { "lib::value()" } else { "0" };
            let (variant, grace) = (80_000 + service.variant, service.grace);
            let _ = writeln!(
                script,
                "  #{{ name: \"{name}\", command: [\"sleep\", \"{variant}\"], env: #{{ M: {module} }}, stop: #{{ grace: \"{grace}s\" }}{ports}{needs} }},"
            );
        }
        let slots = self.slots;
        let _ = write!(
            script,
            "{extra}] }}\nfn workers(m) {{ [ #{{ name: \"w\", connector: \"record\", slots: {slots}, vars: #{{ v: m.vars.v }} }} ] }}\n"
        );
        let (var, level) = (self.var, self.log_level);
        let settings = format!(
            "[shutdown]\ngrace = \"10s\"\n[reload]\ndebounce = \"20ms\"\nprobation = \"500ms\"\n[log]\nlevel = \"{level}\"\n[vars]\nv = {var}\n"
        );
        let connector = format!(
            "fn check(ctx) {{ true }}\nfn run(job, ctx) {{\n  process::run(#{{ argv: [\"sh\", \"-c\", `echo ${{job.id}} >> ${{ctx.machine.dir}}/{RECORD}`] }});\n  \
             sleep(job.payload.seconds);\n  {}\n}}\n",
            self.connector
        );
        let mut files = BTreeMap::from([
            ("machine.rhai", script),
            ("machine.toml", settings),
            ("connectors/record.rhai", connector),
        ]);
        if let Some(value) = self.module {
            files.insert("lib/module.rhai", format!("fn value() {{ {value} }}\n"));
        }
        files
    }

    /// Two machines with the same of it share the process.
    fn process_of(&self, name: &str) -> Option<(u32, Option<u16>, Option<u32>)> {
        let module = self.module.filter(|_| name == "base");
        self.services.get(name).map(|service| (service.variant, service.port, module))
    }
}

/// A random edit: the machine that is meant, its files, what has to become of it.
fn edit(
    model: &Model,
    chance: &mut SmallRng,
    fates: &[Fate],
) -> (&'static str, Model, BTreeMap<&'static str, String>, Fate) {
    let fate = *fates.choose(chance).unwrap();
    let mut new = model.clone();
    let names: Vec<String> = new.services.keys().cloned().collect();
    let name = names.choose(chance).unwrap().clone();
    let number: u32 = chance.random_range(10..10_000);
    let broken = "  #{ name: \"broken\", ";
    let mut extra = String::new();
    let what = match fate {
        Fate::Live => match chance.random_range(0..10) {
            0 | 1 if names.len() < 7 => {
                let needs = chance.random_bool(0.5).then(|| "base".to_owned());
                let service = Service { variant: number, grace: 5, port: None, needs };
                new.services.insert(format!("s{number}"), service);
                "a service is added"
            }
            2 if name != "base" => {
                new.services.remove(&name);
                "a service is removed"
            }
            3 if name != "base" => {
                let service = new.services.remove(&name).unwrap();
                let port = service.port.or_else(|| Some(support::free_port()));
                new.services.insert(format!("r{number}"), Service { port, ..service });
                "a service is renamed"
            }
            4 => {
                new.services.get_mut(&name).unwrap().grace += 1;
                "a service is updated in place"
            }
            5 | 6 => {
                new.services.get_mut(&name).unwrap().variant = number;
                "a service takes a new process"
            }
            7 => {
                new.connector += 1;
                new.slots = chance.random_range(1..5);
                "the connector changes"
            }
            8 => {
                new.var += 1;
                new.log_level = if new.log_level == "info" { "warn" } else { "info" };
                "settings change"
            }
            _ => {
                new.module = if new.module.is_some() && chance.random_bool(0.5) { None } else { Some(number) };
                "the imported module changes"
            }
        },
        Fate::Refused => "refused",
        Fate::RolledBack => match chance.random_range(0..4) {
            0 => {
                extra = format!(
                    "{broken}command: [\"sleep\", \"1\"], ready: #{{ exec: [\"false\"], every: \"10ms\", within: \"100ms\" }} }},\n"
                );
                "a service is never ready"
            }
            1 => {
                extra = format!("{broken}shell: \"exit 3\", restart: #{{ initial: \"5ms\", max: \"10ms\" }} }},\n");
                "a service crashes"
            }
            2 => {
                extra = format!("{broken}kind: \"oneshot\", shell: \"exit {}\" }},\n", number % 250 + 1);
                "a oneshot fails"
            }
            _ => "a check fails",
        },
    };
    let mut files = new.files(&extra);
    let script = files["machine.rhai"].clone();
    let what = match (fate, what) {
        (Fate::Refused, _) => match chance.random_range(0..9) {
            0 => {
                files.insert("machine.rhai", script.replace("] }", "] "));
                "a syntax error"
            }
            1 if chance.random_bool(0.3) => {
                files.insert("machine.rhai", script.replace("fn services(m) {", "fn services(m) { loop { }"));
                "an endless loop"
            }
            2 => {
                files.insert("machine.rhai", script.replace("grace: \"", "grace: \"x"));
                "a wrong type"
            }
            3 => {
                let clash = |n: u32| format!("  #{{ name: \"clash{n}\", command: [\"sleep\", \"1\"], ports: [9] }},\n");
                files.insert("machine.rhai", new.files(&format!("{}{}", clash(1), clash(2)))["machine.rhai"].clone());
                "a port clash"
            }
            4 => {
                let settings = files["machine.toml"].clone();
                files.insert("machine.toml", format!("{settings}[queue]\nlease = \"7s\"\n"));
                "a fixed setting"
            }
            5 => {
                files.insert("machine.toml", "[machine\n".to_owned());
                "a syntax error in the settings"
            }
            6 => {
                files.insert("connectors/record.rhai", "fn run(job, ctx) { no_such(1) }\n".to_owned());
                "an unknown function in the connector"
            }
            7 => {
                files.insert("machine.rhai", format!("import \"lib/none{number}\" as none;\n{script}"));
                "a missing import"
            }
            _ => {
                files.insert("machine.rhai", script.replace("command:", "comand:"));
                "an unknown key"
            }
        },
        (_, "a check fails") => {
            let connector =
                files["connectors/record.rhai"].replace("{ true }", &format!("{{ throw \"no {number}\" }}"));
            files.insert("connectors/record.rhai", connector);
            "a check fails"
        }
        (_, what) => what,
    };
    (what, new, files, fate)
}

/// Saves a file in one of the ways of editors.
fn save(path: &Path, text: &str, chance: &mut SmallRng) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match chance.random_range(0..4) {
        0 => fs::write(path, text).unwrap(),
        1 => {
            let half = text.len() / 2;
            let mut file = fs::File::create(path).unwrap();
            file.write_all(&text.as_bytes()[..half]).unwrap();
            std::thread::sleep(Duration::from_millis(chance.random_range(0..40)));
            file.write_all(&text.as_bytes()[half..]).unwrap();
        }
        2 => {
            let _ = fs::rename(path, path.with_extension("bak"));
            std::thread::sleep(Duration::from_millis(chance.random_range(0..60)));
            fs::write(path, text).unwrap();
        }
        _ => {
            fs::write(path.with_extension("new"), text).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }
    }
}

struct Run {
    machine: Machine,
    chance: SmallRng,
    written: BTreeMap<&'static str, String>,
    jobs: BTreeSet<String>,
    seed: u64,
}

impl Run {
    fn save(&mut self, files: &BTreeMap<&'static str, String>) {
        let mut names: Vec<&'static str> = files.keys().copied().collect();
        names.shuffle(&mut self.chance);
        for name in names {
            if self.written.get(name) != files.get(name) {
                save(&self.machine.path(name), &files[name], &mut self.chance);
            }
        }
        self.written.clone_from(files);
    }

    fn submit(&mut self, count: usize) {
        let jobs: Vec<Value> = (0..count)
            .map(|_| {
                let id = format!("job-{}", self.jobs.len());
                self.jobs.insert(id.clone());
                let seconds = f64::from(self.chance.random_range(0..400u32)) / 1000.0;
                json!({ "id": id, "service": "record", "payload": { "seconds": seconds } })
            })
            .collect();
        let body = Value::from(jobs).to_string();
        let answer = self.machine.http(&format!(
            "POST /jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    }

    fn status(&self) -> Value {
        let answer = self.machine.get("/status");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        // A long answer comes in chunks.
        let text = body.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Waits until the services are those of `model`, all ready, each with the command of its variant.
    fn settle(&self, model: &Model, what: &str) -> BTreeMap<String, u64> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.status();
            let services = status["services"].as_object().cloned().unwrap_or_default();
            let right = |(name, service): (&String, &Service)| {
                let pid = services.get(name)?.get("pid")?.as_u64()?;
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
                let ready = services[name]["state"] == "ready";
                (ready && command.contains(&(80_000 + service.variant).to_string())).then(|| (name.clone(), pid))
            };
            let pids: BTreeMap<String, u64> = model.services.iter().filter_map(right).collect();
            // An edit may only be blamed for a check that held before.
            let claims = status["workers"]["w"]["state"] == "active";
            if pids.len() == model.services.len() && services.len() == pids.len() && claims {
                return pids;
            }
            assert!(
                Instant::now() < deadline,
                "seed {}: {what}: expected {:#?}\nfound {services:#?}\n{}",
                self.seed,
                model.services,
                self.machine.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The names of the engine's threads and the number of its descriptors. Asking it would keep its pools busy.
fn held(machine: &Machine) -> (Vec<String>, usize) {
    let engine = format!("/proc/{}", machine.engine.as_ref().unwrap().id());
    let tasks = fs::read_dir(format!("{engine}/task")).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    (names.map(|name| name.trim().to_owned()).collect(), fs::read_dir(format!("{engine}/fd")).unwrap().count())
}

/// Random edits at random instants, while services run and jobs flow.
#[test]
fn whatever_is_edited_the_last_good_machine_runs_and_nothing_else_is_touched() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let edits = number("RELOAD_EDITS").unwrap_or(40);
    let seed = number("RELOAD_SEED").unwrap_or_else(rand::random);
    let again = format!("RELOAD_SEED={seed} RELOAD_EDITS={edits} cargo nextest run --test reload whatever_is_edited");
    eprintln!("seed {seed}; again: {again}");
    let mut machine = Machine::new("", "");
    let first = Model::new();
    let written = first.files("");
    for (name, text) in &written {
        machine.write(name, text);
    }
    machine.start();
    machine.wait_healthy();
    let mut run = Run { machine, chance: SmallRng::seed_from_u64(seed), written, jobs: BTreeSet::new(), seed };
    let mut model = first.clone();
    let mut pids = run.settle(&model, "the start");
    let (threads, files) = held(&run.machine);
    let mut fates: BTreeMap<&'static str, u32> = BTreeMap::new();
    let all = [Fate::Live, Fate::Live, Fate::Live, Fate::Refused, Fate::RolledBack];
    for turn in 0..edits {
        run.submit(3);
        let mut touched: BTreeSet<String> = BTreeSet::new();
        let mut whats = Vec::new();
        // Now and then several edits before anybody looks; the last one is right then.
        let hasty = if run.chance.random_bool(0.25) { run.chance.random_range(1..4) } else { 0 };
        let mut step = |run: &mut Run, base: &Model, allowed: &[Fate]| {
            let (what, new, files, fate) = edit(base, &mut run.chance, allowed);
            let names = model.services.keys().chain(new.services.keys());
            touched.extend(names.filter(|name| model.process_of(name) != new.process_of(name)).cloned());
            *fates.entry(what).or_default() += 1;
            whats.push(what);
            run.save(&files);
            (new, fate)
        };
        for _ in 0..hasty {
            step(&mut run, &model, &all);
            let pause = run.chance.random_range(0..150);
            std::thread::sleep(Duration::from_millis(pause));
        }
        let (new, fate) = step(&mut run, &model, if hasty > 0 { &[Fate::Live] } else { &all });
        let pause = run.chance.random_range(0..60);
        std::thread::sleep(Duration::from_millis(pause));
        let verdict = run.machine.cli(&["reload", "--wait"]);
        let told = format!("{}{}", String::from_utf8_lossy(&verdict.stdout), String::from_utf8_lossy(&verdict.stderr));
        let what = format!("edit {turn}, {whats:?}: {told}\nagain: {again}");
        assert_eq!(verdict.status.success(), fate == Fate::Live, "{what}\n{}", run.machine.log());
        if fate == Fate::Live {
            model = new;
        }
        let now = run.settle(&model, &what);
        for (name, pid) in &pids {
            if !touched.contains(name) {
                assert_eq!(now.get(name), Some(pid), "{name} keeps its process; {what}\n{}", run.machine.log());
            }
        }
        pids = now;
    }
    // Back to where it began, so that what is left can be compared.
    run.save(&first.files(""));
    let verdict = run.machine.cli(&["reload", "--wait"]);
    assert!(verdict.status.success(), "{again}: {}", String::from_utf8_lossy(&verdict.stderr));
    run.settle(&first, "the end");
    wait_until("all jobs to be done", LIMIT * 4, || {
        (run.status()["queue"]["completed"].as_u64() == Some(run.jobs.len() as u64)).then_some(())
    });
    let record = fs::read_to_string(run.machine.path(RECORD)).unwrap();
    let mut ran: Vec<&str> = record.lines().collect();
    ran.sort_unstable();
    let jobs: Vec<&str> = run.jobs.iter().map(String::as_str).collect();
    assert_eq!(ran, jobs, "every job once; {again}");
    // Threads of the pools end ten seconds after their last work; one or two are made when they are first wanted.
    let mut left = held(&run.machine);
    let deadline = Instant::now() + LIMIT;
    while (left.0.len() > threads.len() + 2 || left.1 > files + 2) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        left = held(&run.machine);
    }
    eprintln!("threads {} -> {}, descriptors {files} -> {}, edits {fates:#?}", threads.len(), left.0.len(), left.1);
    assert!(left.0.len() <= threads.len() + 2, "threads left over: {:?}, before: {threads:?}; {again}", left.0);
    assert!(left.1 <= files + 2, "descriptors left over: {}, before: {files}; {again}", left.1);
    assert_eq!(run.machine.stop(), Some(0));
}
