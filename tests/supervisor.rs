//! The supervisor with real processes.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machinist::base::Name;
use machinist::host::process::Processes;
use machinist::spec::MachineSpec;
use machinist::supervisor::{
    LogFilter, ServiceState, ServiceStatus, StartMode, Supervisor, SupervisorConfig, SupervisorHandle,
};
use machinist::telemetry::EventLog;
use serde_json::{Value, json};
use support::{free_port, processes_with, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    handle: SupervisorHandle,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let life = format!("test/{}", std::process::id());
        let config = SupervisorConfig {
            machine: Name::new("test").unwrap(),
            engine_incarnation: u64::from(std::process::id()),
            processes: Processes::start(&life).unwrap(),
            events: EventLog::new(1000),
            log_dir: Some(dir.path().join("logs")),
            passthrough: false,
            default_cwd: dir.path().to_owned(),
            base_env: std::env::vars_os().collect(),
            runtime: runtime.handle().clone(),
        };
        Self { handle: Supervisor::start(config).unwrap(), runtime, dir }
    }

    fn with(services: Value) -> Self {
        let bench = Self::new();
        bench.apply(services);
        bench
    }

    fn apply(&self, services: Value) {
        let spec = MachineSpec::check(services.as_array().unwrap(), &[], &[]).unwrap();
        self.handle.apply(Arc::new(spec), StartMode::All);
    }

    fn status(&self, name: &str) -> Option<ServiceStatus> {
        self.handle.status().services.get(name).map(|status| status.as_ref().clone())
    }

    fn wait(&self, name: &str, state: ServiceState) -> ServiceStatus {
        wait_until(&format!("{name} to be {state}"), LIMIT, || self.status(name).filter(|s| s.state == state))
    }

    fn stop_all(&self, within: Duration) -> Duration {
        let begun = Instant::now();
        self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, self.handle.stop_all(Instant::now() + within)).await.expect("it ends");
        });
        begun.elapsed()
    }

    fn marker(&self, name: &str) -> String {
        format!("{}/{name}", self.dir.path().display())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn kill(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn services_start_in_order_gated_by_readiness() {
    let port = free_port();
    let bench = Bench::with(json!([
        { "name": "last", "command": ["sh", "-c", "echo last >> order; exec sleep 60"], "needs": ["middle", "once"] },
        { "name": "middle", "shell": "echo middle >> order; sleep 0.2; echo now ready; exec sleep 60",
          "needs": ["first:started"], "ready": { "log": "^now ready$" } },
        { "name": "first", "shell": "echo first >> order; exec sleep 60" },
        { "name": "once", "kind": "oneshot", "shell": "echo once >> order", "needs": ["first"] },
        { "name": "never", "shell": "exec sleep 60", "ready": { "tcp": port } },
        { "name": "after-never", "shell": "exec sleep 60", "needs": ["never"] },
        { "name": "prepare", "kind": "setup", "shell": "sleep 0.1; echo prepare >> order" },
    ]));
    // Without a probe a service is ready before its first instruction, so its line may come later.
    let order = wait_until("the last line", LIMIT, || Some(bench.read("order")).filter(|order| order.contains("last")));
    let place = |name: &str| order.lines().position(|line| line == name).unwrap_or_else(|| panic!("{name} in {order}"));
    assert_eq!(place("prepare"), 0);
    assert!(place("last") > place("middle") && place("last") > place("once"));
    assert_eq!(bench.wait("once", ServiceState::Completed).pid, None);
    let never = bench.wait("never", ServiceState::Starting);
    assert!(never.pid.is_some());
    let waiting = bench.wait("after-never", ServiceState::Waiting);
    assert_eq!(waiting.reason.as_deref(), Some("waits for never to be ready; never is starting"));

    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    bench.wait("after-never", ServiceState::Ready);
    drop(listener);
    bench.stop_all(Duration::from_secs(10));
}

#[test]
fn http_and_exec_probes_tell_readiness() {
    let port = free_port();
    let bench = Bench::with(json!([
        { "name": "web", "command": ["python3", "-m", "http.server", port.to_string(), "--bind", "127.0.0.1"],
          "ready": { "http": format!("http://127.0.0.1:{port}/"), "within": "15s" } },
        { "name": "missing", "command": ["python3", "-c", "import time; time.sleep(60)"],
          "ready": { "http": format!("http://127.0.0.1:{port}/no-such-page") }, "needs": ["web"] },
        { "name": "file", "shell": "sleep 0.3; touch ready; exec sleep 60", "ready": { "exec": ["test", "-e", "ready"] } },
    ]));
    bench.wait("web", ServiceState::Ready);
    bench.wait("file", ServiceState::Ready);
    wait_until("the probe's word", LIMIT, || {
        bench.status("missing")?.reason.filter(|reason| reason.contains("status 404"))
    });
    bench.stop_all(Duration::from_secs(10));
}

#[test]
fn a_killed_service_is_back_with_its_strays_gone() {
    let bench = Bench::new();
    let stray = bench.marker("stray-of-crash");
    bench.apply(json!([{
        "name": "web", "shell": format!("setsid sh -c 'sleep 61; : {stray}' & (setsid sh -c 'sleep 62; : {stray}' &) ; exec sleep 60"),
        "restart": { "initial": "10ms" },
    }]));
    let first = bench.wait("web", ServiceState::Ready);
    let before = wait_until("two strays", LIMIT, || Some(processes_with(&stray)).filter(|found| found.len() >= 2));
    kill(first.pid.unwrap());
    let second = wait_until("a new process", LIMIT, || {
        bench.status("web").filter(|s| s.state == ServiceState::Ready && s.pid != first.pid)
    });
    assert_eq!((second.incarnation, second.restarts), (2, 1));
    assert!(before.iter().all(|pid| !alive(*pid)), "the strays of the first life are gone before the second begins");
    bench.stop_all(Duration::from_secs(10));
    assert_eq!(processes_with(&stray), Vec::<u32>::new());
    assert!(!alive(second.pid.unwrap()));
}

#[test]
fn a_service_that_keeps_failing_is_given_up_and_says_why() {
    let bench = Bench::with(json!([
        { "name": "bad", "shell": "echo no such device >&2; exit 3", "restart": { "initial": "1ms", "limit": 3 } },
        { "name": "gone", "command": ["no-such-program-here"], "restart": { "initial": "1ms", "limit": 1 } },
        { "name": "once", "kind": "oneshot", "shell": "echo half way; echo broken >&2; exit 4" },
        { "name": "follower", "shell": "exec sleep 60", "needs": ["once"] },
    ]));
    let bad = bench.wait("bad", ServiceState::Failed);
    assert_eq!((bad.incarnation, bad.restarts), (4, 3));
    let reason = bad.reason.unwrap();
    assert_eq!(reason, "failed more than 3 times in 10m; last: exit code 3: no such device");
    let gone = bench.wait("gone", ServiceState::Failed).reason.unwrap();
    assert!(gone.contains("the program \"no-such-program-here\" is not there"), "{gone}");
    assert_eq!(bench.wait("once", ServiceState::Failed).reason.as_deref(), Some("exit code 4: broken"));
    let follower = bench.wait("follower", ServiceState::Waiting);
    assert_eq!(follower.reason.as_deref(), Some("waits for once to complete; once is failed"));
    bench.handle.start(&Name::new("bad").unwrap()).unwrap();
    wait_until("another try by hand", LIMIT, || bench.status("bad").filter(|s| s.incarnation > 4));
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn a_service_deaf_to_the_stop_signal_is_killed_after_its_grace() {
    let bench = Bench::with(json!([{
        "name": "deaf", "shell": "trap '' TERM; echo up; while :; do sleep 0.1; done", "stop": { "grace": "300ms" },
        "ready": { "log": "up" },
    }]));
    let deaf = bench.wait("deaf", ServiceState::Ready);
    let begun = Instant::now();
    bench.handle.stop(&Name::new("deaf").unwrap()).unwrap();
    bench.wait("deaf", ServiceState::Stopped);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(!alive(deaf.pid.unwrap()));
}

#[test]
fn stopping_all_goes_backwards_and_ends_at_the_deadline() {
    let trap = |name: &str, delay: &str| {
        format!("trap 'sleep {delay}; echo {name} >> order; exit 0' TERM; echo up; while :; do sleep 0.02; done")
    };
    let bench = Bench::with(json!([
        { "name": "db", "shell": trap("db", "0"), "ready": { "log": "up" } },
        { "name": "app", "shell": trap("app", "0.3"), "needs": ["db"], "ready": { "log": "up" } },
    ]));
    bench.wait("app", ServiceState::Ready);
    let took = bench.stop_all(Duration::from_secs(10));
    assert_eq!(bench.read("order"), "app\ndb\n");
    assert!(took < Duration::from_secs(5), "it ends when the last is gone, after {took:?}");

    let bench = Bench::with(json!([
        { "name": "deaf", "shell": "trap '' TERM; echo up; while :; do sleep 0.05; done", "ready": { "log": "up" } },
    ]));
    bench.wait("deaf", ServiceState::Ready);
    let took = bench.stop_all(Duration::from_millis(400));
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn applying_a_new_spec_touches_only_what_differs() {
    let service = |name: &str, seconds: u32| json!({ "name": name, "command": ["sleep", seconds.to_string()] });
    let bench = Bench::with(json!([service("same", 60), service("changed", 60), service("gone", 60)]));
    let before: Vec<_> = ["same", "changed", "gone"].map(|name| bench.wait(name, ServiceState::Ready).pid).into();
    let mut patient = service("same", 60);
    patient["stop"] = json!({ "grace": "1s" });
    bench.apply(json!([service("new", 60), service("changed", 61), patient]));
    bench.wait("new", ServiceState::Ready);
    let changed = wait_until("the changed one", LIMIT, || {
        bench.status("changed").filter(|s| s.state == ServiceState::Ready && s.pid != before[1])
    });
    wait_until("the removed one to go", LIMIT, || bench.status("gone").is_none().then_some(()));
    assert_eq!(bench.status("same").unwrap().pid, before[0]);
    assert_eq!(changed.restarts, 0, "nobody asked, nobody failed");
    assert!(!alive(before[2].unwrap()));

    // Removed and put back at once: never two at a time.
    bench.apply(json!([]));
    bench.apply(json!([service("same", 60)]));
    let back = wait_until("it is back", LIMIT, || {
        bench.status("same").filter(|s| s.state == ServiceState::Ready && s.pid != before[0])
    });
    assert_eq!(back.incarnation, 2);
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn a_taken_port_is_waited_for_and_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = Bench::with(json!([
        { "name": "web", "command": ["sleep", "60"], "ports": [port], "restart": { "initial": "20ms", "max": "50ms", "limit": 100 } },
    ]));
    let status = bench.wait("web", ServiceState::Backoff);
    assert_eq!(status.reason.as_deref(), Some(&*format!("port {port} is taken by another process")));
    drop(listener);
    bench.wait("web", ServiceState::Ready);
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn output_is_kept_stamped_and_readable_by_cursor() {
    let bench = Bench::with(json!([
        { "name": "talk", "kind": "oneshot", "shell": "echo one; echo two >&2; printf 'no end'" },
    ]));
    bench.wait("talk", ServiceState::Completed);
    let name = Name::new("talk").unwrap();
    let lines = wait_until("three lines", LIMIT, || {
        Some(bench.handle.logs(Some(&name), 0, 10, &LogFilter::default()).unwrap()).filter(|lines| lines.len() == 3)
    });
    let mut texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["no end", "one", "two"]);
    assert_eq!(bench.handle.logs(Some(&name), lines[1].seq, 10, &LogFilter::default()).unwrap().len(), 1);
    assert_eq!(bench.read("logs/talk.log").lines().count(), 3);
    assert!(bench.handle.logs(Some(&Name::new("other").unwrap()), 0, 1, &LogFilter::default()).is_err());
}
