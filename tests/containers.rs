//! The examples under `docker/`: what they set, mount and ask for is held against what the engine has.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use regex::Regex;
use serde_json::Value;
use support::gpu::{Gpus, gpu};
use support::machine::{Machine, repository};

const EXAMPLES: [&str; 3] = ["docker/kubernetes/gpu.yaml", "docker/nomad/gpu.nomad.hcl", "docker/compose.yaml"];

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// What the first group of the pattern finds.
fn found(text: &str, pattern: &str) -> BTreeSet<String> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The indented lines after `head`, without their indentation.
fn block(text: &str, head: &str) -> String {
    let (_, rest) = text.split_once(&format!("{head}\n")).unwrap_or_else(|| panic!("{head} is not there"));
    let indent = rest.len() - rest.trim_start_matches(' ').len();
    let lines = rest
        .lines()
        .map_while(|line| line.get(..indent).filter(|head| head.trim().is_empty()).map(|_| &line[indent..]));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// All files below a directory.
fn files(directory: PathBuf) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() { all.extend(files(entry.path())) } else { all.push(entry.path()) }
    }
    all
}

/// Whether the engine takes a setting from this variable.
fn is_setting(machine: &Machine, name: &str) -> bool {
    let value = match name {
        "REDIS_URL" => "redis://redis:6379",
        "MACHINIST_HTTP__LISTEN" => "0.0.0.0:9090",
        _ => "a",
    };
    let output = machine
        .command(&["config", &machine.path("").display().to_string(), "--json"])
        .env_remove("MACHINIST_STATE_DIR")
        .env_remove("MACHINIST_SCRIPTS_DIR")
        .env(name, value)
        .output()
        .unwrap();
    let told = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
    let origin = format!("environment {name}");
    told.as_object().is_some_and(|all| all.values().any(|setting| setting["origin"] == origin.as_str()))
}

#[test]
fn what_the_examples_set_are_settings() {
    let machine = Machine::new("fn services(m) { [] }\n", "");
    assert!(!is_setting(&machine, "MACHINIST_HTTP__LISTENS") && !is_setting(&machine, "MACHIN_ID"));
    let mut names = BTreeSet::new();
    for path in files(repository().join("docker")) {
        // Pictures and the like have none.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        names.extend(found(&text, r"\b(MACHINIST_[A-Z_]+)\b"));
    }
    assert!(names.len() >= 4, "{names:?}");
    // What stands without the prefix: all that the examples give a machine.
    names.extend(found(&read(EXAMPLES[0]), r"- \{ name: ([A-Z_]+), valueFrom"));
    names.extend(found(&block(&read(EXAMPLES[1]), "      env {"), r"(?m)^([A-Z_]+) +="));
    names.extend(found(&read(EXAMPLES[2]), r"(?m)\b((?:MACHIN|REDIS)[A-Z_]+):"));
    for name in ["REDIS_URL", "MACHINE_ID", "MACHINIST_TOKEN", "MACHINIST_STATE_DIR"] {
        assert!(names.contains(name), "{name} is not found any more: {names:?}");
    }
    for name in names {
        assert!(is_setting(&machine, &name), "{name} is no setting");
    }
}

#[test]
fn the_machines_of_the_examples_can_be_started() {
    let (kubernetes, nomad) = (read(EXAMPLES[0]), read(EXAMPLES[1]));
    for (what, settings, script) in [
        ("Kubernetes", block(&kubernetes, "  machine.toml: |"), block(&kubernetes, "  machine.rhai: |")),
        ("Nomad", block(&nomad, "<<-TOML"), block(&nomad, "<<-RHAI")),
    ] {
        let mut machine = Machine::new(&script, &settings);
        let _gpus = Gpus::of(&mut machine, vec![gpu(0)]);
        let output = machine.cli(&["check", &machine.path("").display().to_string()]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 workers"), "{what}: {text}\n{settings}{script}");
        // It says what the machine of the image says, but for its time to drain, and how outputs are found.
        let grace = found(&settings, "grace = \"([0-9]+)m\"")
            .pop_first()
            .and_then(|minutes| minutes.parse::<u64>().ok())
            .unwrap();
        let killed = if what == "Nomad" {
            found(&nomad, "kill_timeout = \"([0-9]+)m\"")
                .pop_first()
                .and_then(|minutes| minutes.parse::<u64>().ok())
                .map(|minutes| minutes * 60)
        } else {
            found(&kubernetes, "terminationGracePeriodSeconds: ([0-9]+)")
                .pop_first()
                .and_then(|seconds| seconds.parse().ok())
        };
        assert!(killed.unwrap() > grace * 60, "{what} kills before the machine has drained");
    }
}

#[test]
fn the_examples_ask_for_routes_and_ports_that_there_are() {
    let routes: Value = serde_json::from_slice(&Machine::new("", "").cli(&["openapi"]).stdout).unwrap();
    let image = read("docker/Dockerfile");
    let listens = found(&image, r"MACHINIST_HTTP__LISTEN=0\.0\.0\.0:([0-9]+)");
    assert_eq!((listens.len(), &found(&image, "EXPOSE ([0-9]+)")), (1, &listens));
    for example in EXAMPLES {
        let text = read(example);
        let asked = found(&text, r#"path(?:: | += ")(/[a-z]+)"#);
        assert!(example.contains("compose") || !asked.is_empty(), "{example} has no probe");
        for path in asked {
            assert!(routes["paths"][&path]["get"].is_object(), "{example} asks for {path}");
        }
        // Prometheus listens there, too.
        let ports = found(&text, r"(?:containerPort: |\bto = |127\.0\.0\.1:909[12]:)([0-9]+)");
        assert_eq!(ports, listens, "{example}");
    }
    // Where the examples mount is where the image looks.
    for (name, path) in [("STATE_DIR", "/var/lib/machinist"), ("SCRIPTS_DIR", "/etc/machinist/scripts")] {
        assert!(image.contains(&format!("MACHINIST_{name}={path}")), "{path}");
        assert!(read(EXAMPLES[2]).contains(path), "{path}");
    }
    assert!(read(EXAMPLES[0]).contains("mountPath: /var/lib/machinist"));
}
