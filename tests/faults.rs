//! Machines that are hurt at random instants, and machines that set themselves up.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};
use support::machine::{LIMIT, Machine};
use support::wait_until;

/// A service that holds a lock as long as anything of it lives: a second incarnation beside the first would not get it.
fn service(name: &str, variant: u32, needs: &str) -> String {
    let body = format!(
        "exec 9>>{name}.lock; flock -n 9; [ $? = 1 ] && echo {name} >> duplicates; : {variant}; \
         (setsid sleep 97 &) ; env -i setsid sleep 98 & exec sleep 99"
    );
    format!(
        "#{{ name: \"{name}\", shell: `{body}`, needs: [{needs}], restart: #{{ initial: \"5ms\", max: \"20ms\", limit: 100000 }}, \
         stop: #{{ grace: \"1s\" }} }}"
    )
}

fn script(variant: u32) -> String {
    format!(
        "fn services(m) {{ [\n  {},\n  {},\n  {},\n] }}\n",
        service("a", 0, ""),
        service("b", variant, "\"a\""),
        service("c", variant / 2, "")
    )
}

/// The processes of this machine: by the mark that all carry, or by the directory they run in when they cleared it.
fn processes_of(dir: &Path) -> BTreeSet<u32> {
    let dir = dir.display().to_string();
    let mut found = BTreeSet::new();
    for row in machinist::host::process::snapshot().into_iter().filter(|row| !row.zombie) {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", row.pid)).unwrap_or_default();
        if cwd.starts_with(&dir) && row.pid != std::process::id() {
            found.insert(row.pid);
        }
    }
    found
}

fn signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
}

/// One life with misfortunes: services, descendants and the engine are killed, the script is edited and broken, and at some
/// instant, start-up and drain included, the machine is told to end.
fn misfortunes(seed: u64) {
    let mut chance = SmallRng::seed_from_u64(seed);
    let mut machine = Machine::new(&script(0), "[shutdown]\ngrace = \"4s\"\n[reload]\ndebounce = \"20ms\"\n");
    let dir = machine.path("");
    machine.start();
    let pause = |chance: &mut SmallRng, most: u64| {
        std::thread::sleep(Duration::from_millis(chance.random_range(0..most)));
    };
    let mut broken = false;
    let steps = chance.random_range(0..6);
    for _ in 0..steps {
        pause(&mut chance, 250);
        match chance.random_range(0..6) {
            0..3 => {
                let engine = machine.engine.as_ref().unwrap().id();
                let victims: Vec<u32> = processes_of(&dir).into_iter().filter(|pid| *pid != engine).collect();
                if !victims.is_empty() {
                    signal(victims[chance.random_range(0..victims.len())], Signal::SIGKILL);
                }
            }
            3 => machine.write("machine.rhai", &script(chance.random_range(0..4))),
            4 => {
                machine.write("machine.rhai", "fn services(m) { [ #{ name: \"a\" ");
                broken = true;
            }
            _ => {
                machine.kill();
                machine.start();
            }
        }
    }
    pause(&mut chance, 250);
    let begun = Instant::now();
    let engine = machine.engine.as_ref().unwrap().id();
    signal(engine, Signal::SIGTERM);
    if chance.random_bool(0.2) {
        pause(&mut chance, 50);
        signal(engine, Signal::SIGTERM);
    }
    let code = machine.wait_exit();
    // Signalled before its handlers stood, a process dies of the signal: that is a right end as well. A script that was
    // broken when an engine read it first is the other one.
    let right = matches!(code, Some(0) | None) || (broken && code == Some(78));
    assert!(right, "seed {seed}: exit code {code:?}\n{}", machine.log());
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "seed {seed}: out after {:?}\n{}",
        begun.elapsed(),
        machine.log()
    );
    if code == Some(0) {
        let left = processes_of(&dir);
        assert!(left.is_empty(), "seed {seed}: {left:?} are left\n{}", machine.log());
    }
    for pid in processes_of(&dir) {
        signal(pid, Signal::SIGKILL);
    }
    let duplicates = std::fs::read_to_string(machine.path("duplicates")).unwrap_or_default();
    assert_eq!(duplicates, "", "seed {seed}: two incarnations at one time\n{}", machine.log());
}

#[test]
fn whatever_is_killed_whenever_nothing_is_left_and_nothing_runs_twice() {
    // All five hundred with FAULT_SEEDS=500; a sample of them in every run.
    let seeds: u64 = std::env::var("FAULT_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let first: u64 = std::env::var("FAULT_FIRST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if index >= seeds {
                        return;
                    }
                    misfortunes(first + index);
                }
            });
        }
    });
}

#[test]
fn a_process_is_set_up_as_its_spec_says() {
    let mut machine = Machine::new(
        r#"
fn services(m) { [
    #{ name: "set", kind: "oneshot", umask: "027", nice: 5, oom_score_adj: 300, rlimits: #{ nofile: 333, core: 0 }, user: "nobody",
       env: #{ A: "b c" },
       shell: `exec > /tmp/machinist-setup-$PPID; umask; nice; cat /proc/self/oom_score_adj; ulimit -n; id -un; id -gn; echo $HOME; echo "$A"; echo $0 "$@"` },
    #{ name: "unknown", shell: "exec sleep 60", user: "no-such-user-here", restart: #{ limit: 1, initial: "1ms" } },
] }
"#,
        "",
    );
    machine.start();
    machine.wait("the oneshot", |status| status["services"]["set"]["state"] == "completed");
    let path = format!("/tmp/machinist-setup-{}", machine.engine.as_ref().unwrap().id());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let group = Command::new("id").args(["-gn", "nobody"]).output().unwrap().stdout;
    let group = String::from_utf8(group).unwrap();
    assert_eq!(text, format!("0027\n5\n300\n333\nnobody\n{group}/nonexistent\nb c\n/bin/sh\n"));
    let status = machine.wait("the unknown user", |status| status["services"]["unknown"]["state"] == "failed");
    let reason = status["services"]["unknown"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("exit code 126: machinist: there is no user \"no-such-user-here\""), "{reason}");
}

#[test]
fn functions_of_the_script_probe_and_drain() {
    let script = r#"
fn services(m) { [
    #{ name: "web", shell: "exec sleep 60", ready: #{ script: "is_ready", every: "20ms" }, stop: #{ drain: #{ script: "say_goodbye" } } },
] }
fn is_ready(m, service) { fs::exists("ready-" + service) }
fn say_goodbye(m, service) { process::run(#{ argv: ["sh", "-c", `printf "%s" "${service} of ${m.id}" > goodbye`] }); }
"#;
    let mut machine = Machine::new(script, "[machine]\nid = \"m1\"\n");
    machine.start();
    machine.wait("the probe to say no", |status| {
        status["services"]["web"]["reason"] == "not ready yet: is_ready returned false"
    });
    machine.write("ready-web", "");
    machine.wait_healthy();
    assert_eq!(machine.stop(), Some(0), "{}", machine.log());
    assert_eq!(std::fs::read_to_string(machine.path("goodbye")).unwrap_or_else(|_| machine.log()), "web of m1");

    machine.write("machine.rhai", &script.replace("script: \"is_ready\"", "script: \"is_redy\""));
    let output = machine.cli(&["check", &machine.path("").display().to_string()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &*String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no function is_redy") && text.contains("did you mean is_ready?"), "{text}");
}

#[test]
fn limits_are_kept_by_a_control_group_where_there_is_one() {
    if machinist::host::Cgroups::detect("probe-of-tests").is_none() {
        println!("no control group can be made here, nothing to show");
        return;
    }
    let mut machine = Machine::new(
        r#"
fn services(m) { [
    #{ name: "hungry", shell: "sleep 0.2; exec python3 -c 'x = bytearray(200_000_000)'", limits: #{ memory: "60MiB" },
       restart: #{ limit: 0 } },
] }
"#,
        "",
    );
    machine.start();
    let status = machine.wait("the end of the hungry one", |status| status["services"]["hungry"]["state"] == "failed");
    let reason = status["services"]["hungry"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("for want of memory") || reason.contains("MemoryError"), "{reason}");
}

/// A server of one file that breaks off every connection after some bytes, and counts.
struct FlakyServer {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FlakyServer {
    fn new(body: Vec<u8>, breaks_after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (body, seen) = (body.clone(), Arc::clone(&seen));
                std::thread::spawn(move || answer(stream, &body, breaks_after, &seen));
            }
        });
        Self { address, requests }
    }
}

fn answer(mut stream: TcpStream, body: &[u8], breaks_after: usize, seen: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let from: usize = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    seen.lock().unwrap().push(format!("{from}"));
    let rest = &body[from..];
    let head = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let _ = write!(
        stream,
        "HTTP/1.1 {head}\r\netag: \"v1\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        rest.len()
    );
    let _ = stream.write_all(&rest[..rest.len().min(breaks_after)]);
}

#[test]
fn setup_steps_resume_check_and_are_not_repeated() {
    let body: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let sum = Sha256::digest(&body).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let server = FlakyServer::new(body.clone(), 120_000);
    let sources = tempfile::tempdir().unwrap();
    let repository = sources.path().join("nodes");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(&repository).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    std::fs::create_dir(&repository).unwrap();
    git(&["init", "--quiet", "--initial-branch", "main"]);
    std::fs::write(repository.join("node.py"), "print('one')\n").unwrap();
    git(&["add", "."]);
    git(&["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "one"]);
    let commit = git(&["rev-parse", "HEAD"]);
    let wheel = make_wheel(sources.path());

    let script = format!(
        r#"
fn services(m) {{ [
    #{{ name: "prepare", kind: "setup", directories: ["models/vae"], retries: 5,
        download: #{{ url: "http://{}/model.bin", to: "models/model.bin", sha256: "{sum}", mode: "640" }},
        git: #{{ url: "file://{}", to: "nodes", ref: "{commit}" }},
        pip: #{{ venv: "venv", packages: ["{}"], args: ["--no-index"] }} }},
    #{{ name: "web", command: ["venv/bin/python", "-c", "import greeting, time; print(greeting.WORD, flush=True); time.sleep(60)"],
        ready: #{{ log: "^hello$" }} }},
] }}
"#,
        server.address,
        repository.display(),
        wheel.display(),
    );
    let mut machine = Machine::new(&script, "");
    machine.start();
    // Making a Python environment is tens of seconds of computing on a busy machine.
    machine.wait_within(4 * LIMIT, "everything to be set up", |status| status["state"] == "healthy");
    assert_eq!(std::fs::read(machine.path("models/model.bin")).unwrap(), body);
    assert_eq!(std::fs::read_to_string(machine.path("nodes/node.py")).unwrap(), "print('one')\n");
    assert!(machine.path("models/vae").is_dir());
    assert_eq!(
        server.requests.lock().unwrap().as_slice(),
        ["0", "120000", "240000"],
        "each try goes on where the last broke off"
    );

    // A second boot finds everything in place.
    assert_eq!(machine.stop(), Some(0));
    let begun = Instant::now();
    machine.start();
    machine.wait("the second start", |status| status["state"] == "healthy");
    assert!(begun.elapsed() < LIMIT);
    assert_eq!(server.requests.lock().unwrap().len(), 3, "nothing was asked for again");
    let text = String::from_utf8(machine.cli(&["logs", "prepare"]).stdout).unwrap();
    assert!(
        text.contains("model.bin: is there") && text.contains("nodes: is there") && text.contains("venv: is installed"),
        "{text}"
    );

    // A wrong checksum fails the boot with its reason.
    assert_eq!(machine.stop(), Some(0));
    let steady = FlakyServer::new(body.clone(), usize::MAX);
    let wrong = script.replace(&sum, &"0".repeat(64)).replace(&server.address, &steady.address);
    machine.write("machine.rhai", &wrong);
    machine.start();
    assert_eq!(machine.wait_exit(), Some(1), "{}", machine.log());
    assert!(machine.log().contains(&format!("its SHA-256 is {sum}, wanted is 0000")), "{}", machine.log());
}

/// The smallest wheel there is, so that pip has something to install without an index.
fn make_wheel(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("greeting-1.0-py3-none-any.whl");
    let code = format!(
        "import zipfile\nz = zipfile.ZipFile({:?}, 'w')\nz.writestr('greeting.py', 'WORD = \"hello\"\\n')\n\
         z.writestr('greeting-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n')\n\
         z.writestr('greeting-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
         z.writestr('greeting-1.0.dist-info/RECORD', '')\nz.close()\n",
        path.display().to_string()
    );
    assert!(Command::new("python3").args(["-c", &code]).status().unwrap().success());
    path
}

#[test]
fn a_shortage_calls_the_hook_and_holds_the_workers() {
    let script = r#"
fn services(m) { [] }
fn workers(m) { [ #{ name: "w", connector: "simulation" } ] }
fn recover(m, shortage) { process::run(#{ argv: ["sh", "-c", `printf ${shortage.resource} > recovered`] }); }
"#;
    // A mark that any disk is above.
    let settings = "[resources]\nevery = \"50ms\"\nsamples = 2\ndisk = 0.000001\nhysteresis = 0.0\n";
    let mut machine = Machine::new(script, settings);
    machine.start();
    let status = machine.wait("the shortage", |status| status["state"] == "resource_recovery");
    assert!(status["reason"].as_str().unwrap().contains("short of disk"), "{status:#}");
    machine.wait("the worker to be held", |status| {
        status["workers"]["w"]["reason"].as_str().is_some_and(|reason| reason.contains("short of disk"))
    });
    wait_until("the hook", LIMIT, || {
        std::fs::read_to_string(machine.path("recovered")).ok().filter(|text| text == "disk")
    });
    let health = machine.get("/health");
    assert!(health.contains("\"resources\":{\"ok\":false"), "{health}");
    assert_eq!(machine.stop(), Some(0));
}

/// Containers run as PID 1, with a read-only root, as a user that has no name.
#[test]
fn it_runs_as_pid_1_as_any_user_and_on_a_read_only_root() {
    let script = r#"
fn services(m) { [
    #{ name: "web", shell: "(sleep 0.1 &) ; exec sleep 60" },
    #{ name: "once", kind: "oneshot", shell: "id -u; echo $$" },
] }
"#;
    let inside = |prefix: &[&str]| {
        let mut machine = Machine::new(script, "[shutdown]\ngrace = \"5s\"\n");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(machine.dir.path(), open).unwrap();
        machine.prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        machine.start();
        machine.wait_healthy();
        let status = machine.status().unwrap();
        assert_eq!(machine.drain(), Some(0), "{prefix:?}: {}", machine.log());
        status
    };
    if !nix::unistd::Uid::effective().is_root()
        || !Command::new("unshare").args(["--pid", "--fork", "true"]).status().unwrap().success()
    {
        println!("namespaces need rights that are not there, nothing to show");
        return;
    }
    let as_pid_1 = inside(&["unshare", "--fork", "--pid", "--mount-proc"]);
    assert_eq!(as_pid_1["machine"]["pid"], 1);
    inside(&["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]);
    let read_only = "mount --make-rprivate / && mount --bind \"$MACHINIST_STATE_DIR\" \"$MACHINIST_STATE_DIR\" && \
                     mount -o remount,bind,ro / && ! touch /no 2>/dev/null && exec \"$@\"";
    inside(&["unshare", "--mount", "sh", "-c", &format!("mkdir -p \"$MACHINIST_STATE_DIR\" && {read_only}"), "sh"]);
}
