//! What `docker/` ships for Prometheus and Grafana: held against a real Prometheus that scrapes a busy machine.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::gpu::{Gpus, gpu};
use support::machine::{Machine, repository};
use support::{free_port, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Two GPUs, two services, two workers, one of which has an account and says what its jobs cost; jobs that no worker matches go to the service `nobody`.
const BUSY: &str = r#"
fn services(m) { [
    #{ name: "plain", command: ["sleep", "1000"], restart: #{ initial: "10ms" } },
    #{ name: "other", command: ["sleep", "1000"] },
] }
fn workers(m) { [ #{ name: "w", connector: "command", slots: 2 }, #{ name: "paid", connector: "simulation" } ] }
"#;

/// Nobody takes its spans.
const SETTINGS: &str = r#"
[connectors.command.vars.programs]
sha256 = ["sha256sum"]
false = ["false"]
[connectors.simulation]
account = "key"
[resources]
every = "1s"
[telemetry]
otlp_endpoint = "http://127.0.0.1:1"
"#;

fn prometheus_dir() -> PathBuf {
    repository().join("docker/prometheus")
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        // Each of its tests has a database of its own, on a disk minutes in all.
        .env("TMPDIR", "/dev/shm")
        .current_dir(prometheus_dir())
        .output()
        .expect("promtool is installed by test.sh");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A Prometheus on a port of its own; ends with the test.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        let rules = prometheus_dir().join("alerts.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s }}\nrule_files: ['{}']\nscrape_configs:\n  - \
                 job_name: machinist\n    static_configs: [{{ targets: ['{target}'] }}]\n",
                rules.display()
            ),
        )
        .unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("prometheus is installed by test.sh");
        Self { child, port, _dir: dir }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, query: &str) -> Option<Value> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        self.get(&format!("/api/v1/query?query={encoded}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Panel and query of everything that the dashboard shows, as Grafana would send it.
fn dashboard_queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repository().join("docker/grafana/dashboards/machines.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap().replace("$instance", ".*").replace("$__rate_interval", "10s");
            assert!(!query.contains('$'), "a variable that the test does not know: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 20, "the dashboard has hardly any queries");
    queries
}

/// The names of the engine's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let pattern = regex::Regex::new(r"\b(machinist|process)_[a-z_]+").unwrap();
    pattern.find_iter(text).map(|found| found.as_str().trim_end_matches("_bucket").to_owned()).collect()
}

fn submit(machine: &Machine, job: &Value) {
    let file = machine.dir.path().join("job.ndjson");
    std::fs::write(&file, format!("{job}\n")).unwrap();
    let output = machine.cli(&["jobs", "submit", "--file", &file.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_alert_fires_when_it_should_and_not_otherwise() {
    promtool(&["test", "rules", "alerts_test.yml"]);
    let rules = std::fs::read_to_string(prometheus_dir().join("alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(prometheus_dir().join("alerts_test.yml")).unwrap();
    for line in rules.lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            for outcome in ["fires", "is silent"] {
                assert!(tests.contains(&format!("name: {alert} {outcome}\n")), "no test that {alert} {outcome}");
            }
        }
    }
}

#[test]
fn the_scrape_configurations_are_right() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "config", "prometheus-docker.yml"]);
    // Debian builds Prometheus without Kubernetes: all but the discovery itself is checked, with Docker's in its place.
    let text = std::fs::read_to_string(prometheus_dir().join("prometheus-kubernetes.yml")).unwrap();
    let (head, rest) = text.split_once("    kubernetes_sd_configs:\n").expect("it discovers pods");
    let (_, tail) = rest.split_once("    relabel_configs:\n").unwrap();
    let stand_in = "    docker_sd_configs: [{ host: unix:///var/run/docker.sock }]\n    relabel_configs:\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(prometheus_dir().join("alerts.yml"), dir.path().join("alerts.yml")).unwrap();
    let file = dir.path().join("prometheus.yml");
    std::fs::write(&file, format!("{head}{stand_in}{tail}")).unwrap();
    promtool(&["check", "config", file.to_str().unwrap()]);
}

#[test]
fn only_metrics_that_there_are_are_asked_for() {
    let known = names(&std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap());
    let ask = |path: &Path| names(&std::fs::read_to_string(path).unwrap());
    for file in ["docker/prometheus/alerts.yml", "docker/grafana/dashboards/machines.json"] {
        let unknown: Vec<_> = ask(&repository().join(file)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{file} asks for metrics that docs/metrics.md does not name: {unknown:?}");
    }
}

#[test]
fn a_prometheus_that_scrapes_a_busy_machine_fills_the_dashboard() {
    let mut machine = Machine::new(BUSY, SETTINGS);
    let _gpus = Gpus::of(&mut machine, vec![gpu(0), gpu(1)]);
    machine.start();
    machine.wait_healthy();
    let answer = machine.http("GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let prometheus = Prometheus::scraping(machine.url.trim_start_matches("http://"));
    wait_until("the first scrape", LIMIT, || {
        let found = prometheus.query("machinist_build_info")?;
        (!found["data"]["result"].as_array()?.is_empty()).then_some(())
    });
    submit(&machine, &json!({ "service": "nobody", "payload": {}, "requirement": { "pool": "heavy" } }));
    machine.write(
        "machine.rhai",
        &BUSY.replace(
            "name: \"other\", command: [\"sleep\", \"1000\"]",
            "name: \"other\", command: [\"sleep\", \"1001\"]",
        ),
    );
    submit(
        &machine,
        &json!({ "service": "command", "payload": { "program": "false" }, "retry": { "max_attempts": 1 } }),
    );
    let pid = machine.pid("plain").as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();

    let container = answer.contains("machinist_container_cpu_seconds_total");
    let mut open = dashboard_queries();
    open.retain(|(_, query)| container || !query.contains("machinist_container_"));
    wait_until("every query of the dashboard to have data", LIMIT, || {
        // Jobs go on, so that rates have something to show.
        submit(&machine, &json!({ "service": "command", "payload": { "program": "sha256", "stdin": "x" } }));
        let usage = json!({ "images": 2, "cost_usd": 0.25 });
        submit(&machine, &json!({ "service": "simulation", "payload": { "duration": 0, "steps": 1, "usage": usage } }));
        let before = open.len();
        open.retain(|(panel, query)| {
            let Some(found) = prometheus.query(query) else { return true };
            assert_eq!(found["status"], "success", "{panel}: {query}: {found}");
            found["data"]["result"].as_array().unwrap().iter().all(|series| series["value"][1] == "NaN")
        });
        if open.len() < before {
            eprintln!("still without data: {open:?}");
        }
        open.is_empty().then_some(())
    });
    let rules = wait_until("every alert to be evaluated", LIMIT, || {
        let found = prometheus.get("/api/v1/rules")?;
        let rules: Vec<Value> = found["data"]["groups"]
            .as_array()?
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert!(rules.len() > 20);
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}
