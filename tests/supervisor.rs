//! The supervisor with real processes.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use machinist::base::Name;
use machinist::host::process::Processes;
use machinist::spec::MachineSpec;
use machinist::supervisor::{
    LogFilter, ServiceState, ServiceStatus, StartMode, Supervisor, SupervisorConfig, SupervisorHandle,
};
use machinist::telemetry::EventLog;
use serde_json::{Value, json};
use support::{alive, free_port, processes_with, wait_until};

/// One process has one reaper.
static PROCESSES: OnceLock<Processes> = OnceLock::new();
static BENCHES: AtomicUsize = AtomicUsize::new(0);

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
        let processes = PROCESSES.get_or_init(|| Processes::start(&format!("test/{}", std::process::id())).unwrap());
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let config = SupervisorConfig {
            machine: Name::new(&format!("test-{number}")).unwrap(),
            engine_incarnation: u64::from(std::process::id()),
            processes: processes.clone(),
            events: EventLog::new(1000),
            log_dir: Some(dir.path().join("logs")),
            passthrough: None,
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
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.status(name);
            if let Some(status) = status.as_ref().filter(|status| status.state == state) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "gave up waiting for {name} to be {state}: {status:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
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
fn what_got_away_from_a_service_is_measured_with_it() {
    let bench = Bench::new();
    let stray = bench.marker("measured-stray");
    let away = format!("(env -i setsid sh -c 'sleep 61; : {stray}' &)");
    let tree =
        json!({ "name": "tree", "shell": format!("while [ ! -e go ]; do sleep 0.02; done; {away}; exec sleep 60") });
    let plain = |name: &str| json!({ "name": name, "command": ["sleep", "60"] });
    bench.apply(json!([tree, plain("before")]));
    bench.wait("tree", ServiceState::Ready);
    let usage = || bench.handle.usage(Duration::from_millis(100));
    // By now all that there is has been seen.
    wait_until("all trees", LIMIT, || usage().values().all(|usage| usage.processes > 0).then_some(()));
    std::fs::write(bench.dir.path().join("go"), "").unwrap();
    bench.apply(json!([tree, plain("before"), plain("after")]));
    let found = wait_until("the orphan, its child and a new service", LIMIT, || {
        let found = usage();
        let processes = |name: &str| found.get(name).map_or(0, |usage| usage.processes);
        (processes("tree") == 3 && processes("before") == 1 && processes("after") == 1).then_some(found)
    });
    assert_eq!(found["tree"].threads, 3);
    assert!(found["tree"].memory_bytes > 0 && found["tree"].open_files > 0, "{found:?}");
    let orphan = processes_with(&stray)[0];
    let pids = [orphan, 1].into();
    let (_, owners) = bench.handle.usage_and_owners(Duration::ZERO, &pids);
    assert_eq!(owners, [(orphan, Name::new("tree").unwrap())].into());
    bench.stop_all(Duration::from_secs(10));
    assert!(usage().is_empty() && processes_with(&stray).is_empty());
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

    // Removed and put back while it still stops: never two at a time.
    let script = "trap 'until [ -e let_go ]; do sleep 0.02; done; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let slow = || json!([{ "name": "slow", "shell": script, "ready": { "log": "^up$" } }]);
    bench.apply(slow());
    let first = bench.wait("slow", ServiceState::Ready).pid;
    bench.apply(json!([]));
    bench.apply(slow());
    std::fs::write(bench.dir.path().join("let_go"), "").unwrap();
    let back = wait_until("it is back", LIMIT, || {
        bench.status("slow").filter(|s| s.state == ServiceState::Ready && s.pid != first)
    });
    assert!(!alive(first.unwrap()));
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

#[test]
fn what_hangs_is_restarted_and_readiness_comes_and_goes() {
    let bench = Bench::with(json!([
        { "name": "web", "shell": "touch ok alive; exec sleep 60",
          "ready": { "exec": ["test", "-e", "ok"], "every": "20ms", "recheck": "20ms", "failures": 2 },
          "live": { "exec": ["test", "-e", "alive"], "every": "20ms", "failures": 2 } },
        { "name": "follower", "shell": "exec sleep 60", "needs": ["web"] },
    ]));
    let first = bench.wait("web", ServiceState::Ready);
    let follower = bench.wait("follower", ServiceState::Ready);
    std::fs::remove_file(bench.dir.path().join("ok")).unwrap();
    let unready = bench.wait("web", ServiceState::Unready);
    assert_eq!(unready.pid, first.pid, "unready is no reason to restart");
    assert_eq!(unready.reason.as_deref(), Some("is not ready: test: exit code 1"));
    std::fs::write(bench.dir.path().join("ok"), "").unwrap();
    bench.wait("web", ServiceState::Ready);
    std::fs::remove_file(bench.dir.path().join("alive")).unwrap();
    let second = wait_until("a new process", LIMIT, || {
        bench.status("web").filter(|s| s.state == ServiceState::Ready && s.pid != first.pid)
    });
    assert_eq!(second.restarts, 1);
    assert_eq!(bench.status("follower").unwrap().pid, follower.pid, "who needs it goes on");
    bench.stop_all(Duration::from_secs(10));
}

/// Speaks to the notify socket as `sd_notify` does: says what its arguments say, sleeping where one is a number.
const SD_NOTIFY: &str = r#"
import os, socket, sys, time
address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
for word in sys.argv[1:]:
    try: time.sleep(float(word))
    except ValueError:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(address); s.sendall(word.encode())
time.sleep(60)
"#;

#[test]
fn a_service_tells_how_it_is_on_its_notify_socket() {
    let bench = Bench::with(json!([
        { "name": "model", "command": ["python3", "-c", SD_NOTIFY, "STATUS=loading 1/2", "0.2", "READY=1\nSTATUS=serving"],
          "ready": { "notify": true } },
        { "name": "hangs", "command": ["python3", "-c", SD_NOTIFY, "READY=1", "WATCHDOG=1", "0.1", "WATCHDOG=1"],
          "ready": { "notify": true }, "live": { "notify": true, "every": "150ms", "failures": 2 } },
    ]));
    wait_until("its words", LIMIT, || bench.status("model").filter(|s| s.says.as_deref() == Some("loading 1/2")));
    let ready = bench.wait("model", ServiceState::Ready);
    wait_until("more words", LIMIT, || bench.status("model").filter(|s| s.says.as_deref() == Some("serving")));
    let again = wait_until("the silent one to start again", LIMIT, || bench.status("hangs").filter(|s| s.restarts > 0));
    assert!(again.incarnation >= 1);
    assert_eq!(bench.status("model").unwrap().pid, ready.pid);
    bench.stop_all(Duration::from_secs(10));
}

#[test]
fn a_drain_hook_runs_before_the_signal_and_orders_are_kept() {
    let trap = |name: &str| format!("trap 'echo {name} >> order; exit 0' TERM; echo up; while :; do sleep 0.02; done");
    let bench = Bench::with(json!([
        { "name": "late", "shell": trap("late"), "ready": { "log": "up" }, "stop": { "order": 5 } },
        { "name": "early", "shell": trap("early"), "ready": { "log": "up" },
          "stop": { "drain": { "exec": ["sh", "-c", "sleep 0.2; kill -0 $MACHINIST_PID && echo drained >> order"] } } },
    ]));
    bench.wait("late", ServiceState::Ready);
    bench.wait("early", ServiceState::Ready);
    bench.stop_all(Duration::from_secs(10));
    assert_eq!(bench.read("order"), "drained\nearly\nlate\n");
}

#[test]
fn a_process_that_gave_up_everything_is_still_found_and_one_that_may_go_is_not_touched() {
    let bench = Bench::new();
    let (stray, free) = (bench.marker("nothing-left"), bench.dir.path().join("freerunner"));
    std::fs::copy("/bin/sleep", &free).unwrap();
    // Of this test, not one that an earlier run left.
    let freely = format!("./freerunner 77.{}", std::process::id());
    // No environment, no session, no parent, no files of the service.
    let escape = format!("(env -i setsid sh -c 'exec 0<&- 1>&- 2>&-; sleep 61; : {stray}' &) ; (setsid {freely} &)");
    bench.apply(json!([{
        "name": "web", "shell": format!("{escape}; exec sleep 60"), "detach": ["freerunner"],
    }]));
    let first = bench.wait("web", ServiceState::Ready);
    // The shells that lead to it have its name in their arguments too.
    let has_become =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "freerunner");
    let runs = || processes_with(&freely).into_iter().filter(has_become).collect::<Vec<_>>();
    wait_until("the free one", LIMIT, || (!runs().is_empty()).then_some(()));
    // Before that, the shell that became it would count as a stray.
    let strays = wait_until("the stray", LIMIT, || Some(processes_with(&stray)).filter(|found| !found.is_empty()));
    kill(first.pid.unwrap());
    wait_until("a new process", LIMIT, || {
        bench.status("web").filter(|s| s.state == ServiceState::Ready && s.pid != first.pid)
    });
    assert!(strays.iter().all(|pid| !alive(*pid)), "the stray of the first life is gone");
    bench.stop_all(Duration::from_secs(10));
    assert_eq!(processes_with(&stray), Vec::<u32>::new());
    let left = runs();
    assert!(!left.is_empty(), "what is detached lives on");
    assert!(!bench.status("web").unwrap().detached.is_empty(), "and is shown");
    left.into_iter().for_each(kill);
}

#[test]
fn strays_have_the_grace_period_too() {
    let bench = Bench::new();
    let stray = bench.marker("gentle");
    let child = format!(
        "setsid sh -c \"trap 'echo saved >> order; exit 0' TERM; echo up; while :; do sleep 0.02; done; : {stray}\" &"
    );
    bench.apply(json!([{ "name": "web", "shell": format!("{child} exec sleep 60"), "ready": { "log": "up" } }]));
    bench.wait("web", ServiceState::Ready);
    bench.stop_all(Duration::from_secs(10));
    assert_eq!(bench.read("order"), "saved\n");
    assert_eq!(processes_with(&stray), Vec::<u32>::new());
}

#[test]
fn files_are_watched_and_read_into_the_environment() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path().join("common.env"), "# comment\nA=1\nB=\"two words\"\n").unwrap();
    bench.apply(json!([{
        "name": "web", "shell": "echo \"$A $B $C\" >> seen; exec sleep 60", "env": { "C": 3 }, "env_files": ["common.env"],
        "watch": ["common.env"],
    }]));
    let first = bench.wait("web", ServiceState::Ready);
    wait_until("its environment", LIMIT, || (bench.read("seen") == "1 two words 3\n").then_some(()));
    std::fs::write(bench.dir.path().join("common.env"), "A=9\n").unwrap();
    wait_until("a new process", LIMIT, || bench.status("web").filter(|s| s.pid.is_some() && s.pid != first.pid));
    wait_until("its new environment", LIMIT, || bench.read("seen").ends_with("\n9  3\n").then_some(()));
    std::fs::write(bench.dir.path().join("common.env"), "not an assignment\n").unwrap();
    let status = wait_until("the broken file is named", LIMIT, || {
        bench.status("web").filter(|s| s.reason.as_ref().is_some_and(|reason| reason.contains("common.env")))
    });
    assert_eq!(status.pid, None);
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn a_tree_over_its_limit_is_drained_and_restarted() {
    let hungry = "import time; held = bytearray(60_000_000); time.sleep(60)";
    let bench = Bench::with(json!([
        { "name": "hungry", "shell": format!("echo start >> starts; python3 -c '{hungry}' & wait"),
          "limits": { "memory": "40MiB", "period": "100ms", "cgroup": false } },
        { "name": "modest", "shell": "exec sleep 60", "limits": { "memory": "40MiB", "cgroup": false } },
    ]));
    let modest = bench.wait("modest", ServiceState::Ready);
    let status = wait_until("a restart", LIMIT, || bench.status("hungry").filter(|s| s.restarts > 0));
    assert!(status.restarts >= 1);
    assert_eq!(bench.status("modest").unwrap().pid, modest.pid);
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn a_oneshot_runs_when_its_schedule_says() {
    let bench = Bench::with(json!([
        { "name": "tick", "kind": "oneshot", "shell": "echo tick >> ticks", "schedule": "* * * * * *" },
    ]));
    let waiting = wait_until("its next time", LIMIT, || bench.status("tick").filter(|s| s.next_run.is_some()));
    assert_eq!((waiting.state, waiting.incarnation), (ServiceState::Stopped, 0), "not at the start of the machine");
    wait_until("two runs", LIMIT, || (bench.read("ticks").lines().count() >= 2).then_some(()));
    bench.stop_all(Duration::from_secs(5));
}

#[test]
fn who_was_given_up_starts_again_when_what_it_needs_recovers() {
    let bench = Bench::with(json!([
        { "name": "db", "shell": "exec sleep 60" },
        { "name": "app", "shell": "test -e works || exit 1; exec sleep 60", "needs": ["db"],
          "restart": { "initial": "1ms", "limit": 2 } },
    ]));
    bench.wait("app", ServiceState::Failed);
    std::fs::write(bench.dir.path().join("works"), "").unwrap();
    bench.handle.restart(&Name::new("db").unwrap()).unwrap();
    bench.wait("app", ServiceState::Ready);
    bench.stop_all(Duration::from_secs(5));
}

/// A tree of processes that leave in every way there is: plain children, new sessions, double forks, without environment,
/// with closed files, deaf to signals.
fn random_tree(depth: u32, tag: &str) -> String {
    let leaf = format!("sleep 60 # {tag}");
    if depth == 0 {
        return format!("sh -c '{}; :'", leaf.replace('#', "; : "));
    }
    let children: Vec<String> = (0..rand::random_range(1..=2))
        .map(|_| {
            let child = format!("sh -c {}", shell_quote(&format!("{} & wait", random_tree(depth - 1, tag))));
            match rand::random_range(0..6) {
                0 => format!("setsid {child} &"),
                1 => format!("({child} &)"),
                2 => format!("(setsid {child} &)"),
                3 => format!("(env -i setsid {child} </dev/null >/dev/null 2>&1 &)"),
                4 => format!("(trap '' TERM HUP INT; {child} &)"),
                _ => format!("{child} &"),
            }
        })
        .collect();
    format!("sh -c {}", shell_quote(&format!("{}\nwait", children.join("\n"))))
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn nothing_of_any_tree_survives_a_crash_a_stop_or_the_end() {
    // A thousand trees in a few minutes with STRAY_TREES=1000; a sample of them in every run.
    let trees: usize = std::env::var("STRAY_TREES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let at_once = 8;
    for round in 0..trees.div_ceil(at_once) {
        let bench = Bench::new();
        let tag = bench.marker(&format!("tree-{round}"));
        let service = |index: usize| {
            json!({ "name": format!("t{index}"), "shell": format!("{} & exec sleep 60", random_tree(3, &tag)),
                    "restart": { "initial": "1ms" }, "stop": { "grace": "200ms" } })
        };
        let services: Vec<Value> = (0..at_once).map(service).collect();
        bench.apply(json!(services));
        let name = |index: usize| format!("t{index}");
        let pids: Vec<u32> =
            (0..at_once).map(|index| bench.wait(&name(index), ServiceState::Ready).pid.unwrap()).collect();
        wait_until("the trees to grow", LIMIT, || (processes_with(&tag).len() > at_once * 4).then_some(()));
        for (index, pid) in pids.iter().enumerate() {
            // A third crashes, a third is stopped, the rest ends with the machine.
            match index % 3 {
                0 => kill(*pid),
                1 => bench.handle.stop(&Name::new(&name(index)).unwrap()).unwrap(),
                _ => {}
            }
        }
        for index in 0..at_once {
            match index % 3 {
                0 => drop(wait_until("it is back", LIMIT, || {
                    bench.status(&name(index)).filter(|s| s.state == ServiceState::Ready && s.incarnation == 2)
                })),
                1 => drop(bench.wait(&name(index), ServiceState::Stopped)),
                _ => {}
            }
        }
        bench.stop_all(Duration::from_secs(10));
        let left = processes_with(&tag);
        let story = |pid: &u32| {
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = |file: &str| String::from_utf8_lossy(&read(file)).replace('\0', " ");
            let locks = text("limits").lines().find(|line| line.contains("file locks")).map(str::to_owned);
            format!("{} {locks:?} {}\n", text("stat"), text("cmdline"))
        };
        assert!(left.is_empty(), "round {round}: left are\n{}", left.iter().map(story).collect::<String>());
    }
}

#[test]
fn orphans_do_not_become_zombies() {
    let bench = Bench::with(json!([
        { "name": "zed", "kind": "oneshot", "shell": "i=0; while [ $i -lt 500 ]; do (true &) ; i=$((i+1)); done; wait" },
    ]));
    bench.wait("zed", ServiceState::Completed);
    let me = std::process::id();
    let zombies = || {
        let rows = machinist::host::process::snapshot();
        rows.into_iter().filter(|row| row.parent == me && row.zombie).count()
    };
    wait_until("every orphan to be reaped", LIMIT, || (zombies() == 0).then_some(()));
    bench.stop_all(Duration::from_secs(5));
}
