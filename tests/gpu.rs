//! Machines with GPUs: the real binary on a driver that the tests make up.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::gpu::{GIB, Gpus, gpu};
use support::machine::{LIMIT, Machine};
use support::{alive, wait_until};

/// A service and a worker for every GPU, and a worker that jobs for several GPUs go to.
const PER_GPU: &str = r#"
fn services(m) { [
    #{ name: "comfy", instances: "per_gpu", shell: "sleep 1000 & wait", ports: [], restart: #{ initial: "10ms" } },
    #{ name: "plain", command: ["sleep", "1000"] },
] }
fn workers(m) {
    let workers = [ #{ name: "all", connector: "simulation", capabilities: #{ services: ["several"] } } ];
    for gpu in m.gpus {
        let name = `comfy-${gpu.index}`;
        workers.push(#{ name: `on-${gpu.index}`, connector: "simulation", needs: [name], capabilities: #{ services: [name] } });
    }
    workers
}
"#;

fn machine(count: u64) -> (Machine, Gpus) {
    let mut machine = Machine::new(PER_GPU, "[connectors.simulation]\n[gpu]\nxid_hold = \"10m\"\n");
    let gpus = Gpus::of(&mut machine, (0..count).map(gpu).collect());
    machine.start();
    machine.wait_healthy();
    (machine, gpus)
}

/// An answer of HTTP/1.0 comes in one piece.
fn metrics(machine: &Machine) -> String {
    let answer = machine.http("GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|found| found == line)
}

/// The newest event of this kind.
fn event(machine: &Machine, kind: &str) -> Option<Value> {
    let answer = machine.http("GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let events: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    events["events"].as_array().unwrap().iter().rev().find(|event| event["kind"] == kind).cloned()
}

fn wait_event(machine: &Machine, kind: &str) -> Value {
    wait_until(kind, LIMIT, || event(machine, kind))
}

fn submit(machine: &Machine, job: &Value) -> String {
    let file = machine.dir.path().join("job.ndjson");
    std::fs::write(&file, format!("{job}\n")).unwrap();
    let output = machine.cli(&["jobs", "submit", "--file", &file.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    job["id"].as_str().unwrap().to_owned()
}

fn job_state(machine: &Machine, id: &str) -> Value {
    let answer = machine.http(&format!("GET /jobs/{id} HTTP/1.0\r\nHost: localhost\r\n\r\n"));
    let job: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    job["state"].clone()
}

fn wait_job(machine: &Machine, id: &str) {
    wait_until("the job to be done", LIMIT, || (job_state(machine, id) == "completed").then_some(()));
}

#[test]
fn what_gpus_say_is_seen_and_what_they_do_not_say_is_not() {
    let (machine, mut gpus) = machine(2);
    let silent = ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetUtilizationRates"];
    gpus.set(1, "unsupported", json!(silent));
    let status =
        machine.wait("GPU 1 to say less", |status| status["gpus"]["gpus"][1]["sample"]["power_watts"].is_null());
    let (first, second) = (&status["gpus"]["gpus"][0], &status["gpus"]["gpus"][1]);
    assert_eq!((&first["uuid"], &first["state"]), (&json!("GPU-00000000-aaaa"), &json!("ok")));
    let sample = &first["sample"];
    for (key, value) in [
        ("utilization", json!(0.5)),
        ("memory_utilization", json!(0.25)),
        ("memory_used_bytes", json!(GIB)),
        ("memory_total_bytes", json!(40 * GIB)),
        ("temperature_celsius", json!(60.0)),
        ("power_watts", json!(250.5)),
        ("power_limit_watts", json!(400.0)),
        ("energy_joules", json!(1234.5)),
        ("sm_clock_hertz", json!(1.41e9)),
        ("memory_clock_hertz", json!(1.593e9)),
        ("throttle", json!(["power_cap"])),
        ("ecc", json!({ "corrected": 5, "uncorrected": 1 })),
        ("ecc_lifetime", json!({ "corrected": 50, "uncorrected": 2 })),
    ] {
        assert_eq!(sample[key], value, "{key}");
    }
    assert_eq!(second["state"], "ok", "a GPU that does not tell everything is well");
    assert_eq!(second["sample"]["temperature_celsius"], 61.0);
    assert!(second["sample"]["ecc"].is_null() && second["sample"]["utilization"].is_null());
    assert_eq!(
        (&status["machine"]["hardware"]["gpu_count"], &status["machine"]["hardware"]["gpu_memory_gb"]),
        (&json!(2), &json!(40.0))
    );
    assert_ne!(machine.pid("comfy-1"), Value::Null);
    // What only computes sees them too.
    let checked = machine.cli(&["check", &machine.path("").display().to_string()]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("3 services, 3 workers"), "{checked:?}");
}

#[test]
fn a_lost_gpu_takes_its_service_and_worker_with_it_and_brings_them_back() {
    let (machine, mut gpus) = machine(2);
    let (kept, plain, lost) = (machine.pid("comfy-0"), machine.pid("plain"), machine.pid("comfy-1"));
    gpus.set(1, "lost", true);
    let told = wait_event(&machine, "gpu.lost");
    assert_eq!((&told["level"], &told["data"]["uuid"]), (&json!("error"), &json!("GPU-10000000-aaaa")));
    let status = machine.wait("the service to be held", |status| {
        let service = &status["services"]["comfy-1"];
        service["state"] == "waiting" && service["pid"].is_null() && status["state"] == "service_failure"
    });
    let why = "held until its GPU is back: GPU 1 is lost: it has fallen off the bus, or cannot be reached otherwise";
    assert_eq!(
        (&status["services"]["comfy-1"]["held"], &status["services"]["comfy-1"]["reason"]),
        (&json!(why), &json!(why))
    );
    assert!(status["reason"].as_str().unwrap().contains("GPU 1 is lost"), "{}", status["reason"]);
    assert_eq!(
        (&status["gpus"]["gpus"][1]["state"], &status["gpus"]["gpus"][1]["sample"]),
        (&json!("lost"), &Value::Null)
    );
    assert_eq!(wait_event(&machine, "service.held")["subject"], "comfy-1");
    machine.wait("its worker to wait", |status| {
        let worker = &status["workers"]["on-1"];
        worker["state"] == "waiting" && worker["reason"].as_str().is_some_and(|why| why.contains("GPU 1 is lost"))
    });
    // What needs the other GPU, or none, goes on; what needs both waits.
    let pair = json!({ "id": "pair", "service": "several", "payload": { "duration": 0 }, "requirement": { "hardware": { "gpu_count": 2 } } });
    submit(&machine, &pair);
    submit(&machine, &json!({ "id": "other", "service": "comfy-1", "payload": { "duration": 0 } }));
    for id in ["single", "alone"] {
        let service = if id == "single" { "several" } else { "comfy-0" };
        let job = json!({ "id": id, "service": service, "payload": { "duration": 0 }, "requirement": { "hardware": { "gpu_count": 1 } } });
        wait_job(&machine, &submit(&machine, &job));
    }
    assert_eq!((job_state(&machine, "pair"), job_state(&machine, "other")), (json!("pending"), json!("pending")));
    assert_eq!((machine.pid("comfy-0"), machine.pid("plain")), (kept, plain), "others are left alone");

    gpus.set(1, "lost", false);
    wait_event(&machine, "gpu.back");
    machine.wait_healthy();
    assert!(![Value::Null, lost].contains(&machine.pid("comfy-1")), "it runs anew");
    wait_job(&machine, "pair");
    wait_job(&machine, "other");
    assert!(machine.status().unwrap()["services"]["comfy-1"]["held"].is_null());
}

#[test]
fn a_gpu_that_the_driver_lists_no_more_is_lost_and_a_machine_starts_without_it() {
    let (mut machine, mut gpus) = machine(2);
    gpus.set(1, "absent", true);
    let told = wait_event(&machine, "gpu.lost");
    assert_eq!(told["data"]["why"], "the driver does not list it any more");
    // Held services do not hold up the end, nor the next start.
    assert_eq!(machine.stop(), Some(0));
    machine.start();
    machine.wait_healthy();
    let status = machine.status().unwrap();
    assert_eq!(status["gpus"]["gpus"].as_array().unwrap().len(), 1);
    assert!(status["services"]["comfy-1"].is_null());
}

#[test]
fn an_error_of_a_gpu_withholds_it_from_jobs_unless_a_program_made_it() {
    let (machine, mut gpus) = machine(2);
    let running = machine.pid("comfy-0");
    gpus.xid(0, 31);
    let told = wait_event(&machine, "gpu.xid");
    assert_eq!(
        (&told["level"], &told["data"]["code"], &told["data"]["withheld"]),
        (&json!("warn"), &json!(31), &json!(false))
    );
    assert_eq!(machine.status().unwrap()["gpus"]["gpus"][0]["state"], "ok");

    gpus.xid(0, 48);
    let status = machine.wait("the worker to wait", |status| status["workers"]["on-0"]["state"] == "waiting");
    let why = "comfy-0: GPU 0 is withheld after Xid 48: an uncorrectable memory error (ECC)";
    assert_eq!(status["workers"]["on-0"]["reason"], why);
    assert_eq!((&status["workers"]["on-1"]["state"], &status["state"]), (&json!("active"), &json!("healthy")));
    let gpu = &status["gpus"]["gpus"][0];
    assert_eq!(
        (&gpu["state"], &gpu["last_xid"], &gpu["xids"]),
        (&json!("withheld"), &json!(48), &json!({ "31": 1, "48": 1 }))
    );
    assert_eq!(machine.pid("comfy-0"), running, "its own probes judge what runs on it");

    // A shorter hold counts for what is withheld already.
    machine.write("machine.toml", "[connectors.simulation]\n[gpu]\nxid_hold = \"0s\"\n");
    wait_event(&machine, "gpu.released");
    machine.wait("the worker to claim again", |status| status["workers"]["on-0"]["state"] == "active");
}

#[test]
fn a_driver_that_hangs_holds_nobody_up_and_its_values_end() {
    let (mut machine, mut gpus) = machine(1);
    gpus.state["hang"] = json!("nvmlDeviceGetTemperature");
    gpus.say();
    let told = wait_event(&machine, "gpu.sampling_stalled");
    assert_eq!(told["level"], "warn");
    let begun = std::time::Instant::now();
    assert!(machine.get("/livez").contains("200 OK"));
    let status = machine.status().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(status["gpus"]["silent"].as_str().unwrap().contains("has not answered"), "{}", status["gpus"]);
    assert!(status["gpus"]["gpus"][0]["sample"].is_null());
    assert_eq!(status["state"], "healthy");
    submit(&machine, &json!({ "id": "meanwhile", "service": "comfy-0", "payload": { "duration": 0 } }));
    wait_job(&machine, "meanwhile");

    gpus.state["hang"] = Value::Null;
    gpus.say();
    wait_event(&machine, "gpu.sampling_resumed");
    machine.wait("values again", |status| status["gpus"]["gpus"][0]["sample"]["temperature_celsius"] == 60.0);

    // Nor does one that hangs hold up the end.
    gpus.state["hang"] = json!("nvmlDeviceGetTemperature");
    gpus.say();
    assert_eq!(machine.stop(), Some(0));
}

/// The start of an answer, and how long it took.
fn answer(machine: &Machine, path: &str) -> (String, Duration) {
    let begun = std::time::Instant::now();
    (machine.get(path), begun.elapsed())
}

#[test]
fn a_driver_that_hangs_at_the_start_delays_scripts_and_nothing_else() {
    const SOON: Duration = Duration::from_secs(3);
    let begun = std::time::Instant::now();
    let (mut machine, mut gpus) = hanging();
    let status = machine.wait("HTTP", |status| status["state"] == "starting");
    assert!(begun.elapsed() < Duration::from_secs(10), "long before the driver is given up: {:?}", begun.elapsed());
    assert!(status["reason"].as_str().unwrap().contains("NVIDIA driver"), "{}", status["reason"]);
    assert_eq!(
        (&status["startup"].as_array().unwrap().last().unwrap()["name"], &status["services"]),
        (&json!("hardware"), &json!({}))
    );
    for (path, code, text) in [
        ("/livez", "200 OK", "ok"),
        ("/startupz", "503", "hardware running"),
        ("/readyz", "503", "startup failed: waits for"),
    ] {
        let (answer, took) = answer(&machine, path);
        assert!(answer.contains(code) && answer.contains(text) && took < SOON, "{path} after {took:?}: {answer}");
    }

    // Scripts are evaluated with the GPUs that there are, as soon as they are known.
    gpus.state["hang"] = Value::Null;
    gpus.say();
    machine.wait_healthy();
    let status = machine.status().unwrap();
    assert_eq!(
        (&status["services"]["comfy-0"]["state"], &status["machine"]["hardware"]["gpu_count"]),
        (&json!("ready"), &json!(1))
    );

    // Whoever stops a machine that waits does not wait with it.
    assert_eq!(machine.stop(), Some(0));
    for stop in [Machine::stop, Machine::drain] {
        gpus.state["hang"] = json!("nvmlInit_v2");
        gpus.say();
        machine.start();
        machine.wait("HTTP", |status| status["state"] == "starting");
        let begun = std::time::Instant::now();
        assert_eq!(stop(&mut machine), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        gpus.state["hang"] = Value::Null;
        gpus.say();
    }

    // Nor is anything left of an earlier life that was killed.
    machine.start();
    machine.wait_healthy();
    let pid = machine.status().unwrap()["services"]["plain"]["pid"].as_u64().unwrap();
    let pid = u32::try_from(pid).unwrap();
    machine.kill();
    gpus.state["hang"] = json!("nvmlInit_v2");
    gpus.say();
    machine.start();
    machine.wait("HTTP", |status| status["state"] == "starting");
    assert!(alive(pid), "the service outlives its engine");
    assert_eq!(machine.stop(), Some(0));
    assert!(!alive(pid), "{}", machine.log());
}

#[test]
fn a_driver_that_never_answers_is_given_up_and_the_machine_starts_without_gpus() {
    let (machine, _gpus) = hanging();
    machine.wait_healthy();
    let status = machine.status().unwrap();
    assert_eq!(
        (&status["services"]["comfy-0"], &status["services"]["plain"]["state"]),
        (&Value::Null, &json!("ready"))
    );
    let step = status["startup"].as_array().unwrap().iter().find(|step| step["name"] == "hardware").unwrap();
    assert!(step["error"].as_str().unwrap().contains("has not answered for 15s"), "{step}");
    assert_eq!(wait_event(&machine, "gpu.sampling_stalled")["level"], "warn");
}

/// A machine that is started while its driver does not open.
fn hanging() -> (Machine, Gpus) {
    let mut machine = Machine::new(PER_GPU, "[connectors.simulation]\n");
    let mut gpus = Gpus::of(&mut machine, vec![gpu(0)]);
    gpus.state["hang"] = json!("nvmlInit_v2");
    gpus.say();
    machine.start();
    (machine, gpus)
}

#[test]
fn without_a_driver_there_are_no_gpus_and_nothing_is_wrong() {
    let machine = Machine::started(PER_GPU, "[connectors.simulation]\n");
    let status = machine.status().unwrap();
    assert_eq!((&status["gpus"]["gpus"], &status["gpus"]["sampling"]), (&json!([]), &json!(false)));
    assert!(event(&machine, "gpu.unavailable").is_none());
    assert!(!metrics(&machine).contains("machinist_gpu_utilization"));
    drop(machine);
    // A library that was asked for is missed, and the machine runs.
    let machine = Machine::started(PER_GPU, "[connectors.simulation]\n[gpu]\nlibrary = \"/nowhere/libnvidia-ml.so\"\n");
    let told = wait_event(&machine, "gpu.unavailable");
    assert!(told["data"]["why"].as_str().unwrap().contains("/nowhere/libnvidia-ml.so"), "{told}");
}

/// The child of a service's shell.
fn child_of(pid: &Value) -> u64 {
    let pid = pid.as_u64().unwrap();
    wait_until("the service's child", LIMIT, || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_ascii_whitespace().next()?.parse().ok()
    })
}

#[test]
fn metrics_show_gpus_their_services_and_nothing_that_is_gone() {
    let (machine, mut gpus) = machine(2);
    let child = child_of(&machine.pid("comfy-0"));
    let main = machine.pid("comfy-0");
    gpus.set(0, "processes", json!([[main, GIB], [child, 2 * GIB], [1, 4 * GIB]]));
    gpus.set(1, "unsupported", json!(["nvmlDeviceGetPowerUsage"]));
    gpus.xid(0, 31);
    wait_event(&machine, "gpu.xid");
    let first = "uuid=\"GPU-00000000-aaaa\",index=\"0\"";
    let text = wait_until("the memory of the service's tree", LIMIT, || {
        let line = format!("machinist_service_gpu_memory_bytes{{service=\"comfy-0\",{first}}} {}", 3 * GIB);
        Some(metrics(&machine)).filter(|text| has(text, &line))
    });
    for line in [
        format!("machinist_gpu_info{{{first},name=\"Fake A100\"}} 1"),
        format!("machinist_gpu_up{{{first}}} 1"),
        format!("machinist_gpu_utilization_ratio{{{first}}} 0.5"),
        format!("machinist_gpu_memory_used_bytes{{{first}}} {GIB}"),
        format!("machinist_gpu_power_watts{{{first}}} 250.5"),
        format!("machinist_gpu_energy_joules_total{{{first}}} 1234.5"),
        format!("machinist_gpu_throttle_active{{{first},reason=\"power_cap\"}} 1"),
        format!("machinist_gpu_throttle_active{{{first},reason=\"thermal\"}} 0"),
        format!("machinist_gpu_ecc_errors_total{{{first},type=\"uncorrected\",since=\"load\"}} 1"),
        format!("machinist_gpu_xid_errors_total{{{first},xid=\"31\"}} 1"),
        "machinist_gpu_sampler_up 1".to_owned(),
    ] {
        assert!(has(&text, &line), "{line}\n{text}");
    }
    assert!(
        !text.contains("machinist_gpu_power_watts{uuid=\"GPU-10000000-aaaa\""),
        "what it does not tell has no series"
    );
    assert!(!text.contains("DCGM_"), "only where the settings ask for it");

    // A lost GPU is down, and has no values.
    gpus.set(0, "lost", true);
    wait_event(&machine, "gpu.lost");
    let text = metrics(&machine);
    assert!(has(&text, &format!("machinist_gpu_up{{{first}}} 0")), "{text}");
    assert!(has(&text, "machinist_gpu_losses_total 1"), "{text}");
    assert!(!text.contains(&format!("machinist_gpu_utilization_ratio{{{first}")), "{text}");
    assert!(!text.contains("machinist_service_gpu_memory_bytes"), "{text}");
    // So have a service and a worker that are gone.
    assert!(text.contains("service=\"plain\"") && text.contains("worker=\"all\""));
    machine.write("machine.rhai", "fn services(m) { [] }\nfn workers(m) { [] }\n");
    machine.wait("the services to be gone", |status| status["services"] == json!({}));
    let text = metrics(&machine);
    assert!(!text.contains("service=\"plain\"") && !text.contains("worker=\"all\""), "{text}");
}

#[test]
fn dashboards_for_dcgm_exporter_find_their_names_and_units() {
    let mut machine = Machine::new(PER_GPU, "[connectors.simulation]\n[gpu]\ndcgm_names = true\n");
    let _gpus = Gpus::of(&mut machine, vec![gpu(0)]);
    machine.start();
    machine.wait_healthy();
    let text = metrics(&machine);
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_default().to_owned();
    let labels = "gpu=\"0\",UUID=\"GPU-00000000-aaaa\",device=\"nvidia0\",modelName=\"Fake A100\",Hostname=\"";
    for (name, value) in [
        ("DCGM_FI_DEV_GPU_UTIL", "50"),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", "25"),
        ("DCGM_FI_DEV_FB_USED", "1024"),
        ("DCGM_FI_DEV_FB_FREE", "39936"),
        ("DCGM_FI_DEV_GPU_TEMP", "60"),
        ("DCGM_FI_DEV_POWER_USAGE", "250.5"),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "1234500"),
        ("DCGM_FI_DEV_SM_CLOCK", "1410"),
        ("DCGM_FI_DEV_XID_ERRORS", "0"),
        ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "2"),
    ] {
        let found = line(name);
        assert!(found.contains(labels) && found.ends_with(&format!("}} {value}")), "{name}: {found}");
    }
}

/// Whatever is shown is listed, with no labels but those that are listed.
#[test]
fn every_metric_is_as_the_catalogue_says() {
    let mut machine = Machine::new(PER_GPU, "[connectors.simulation]\n[gpu]\ndcgm_names = true\n");
    let mut gpus = Gpus::of(&mut machine, vec![gpu(0)]);
    gpus.set(0, "processes", json!([[std::process::id(), GIB]]));
    machine.start();
    machine.wait_healthy();
    submit(&machine, &json!({ "id": "a", "service": "several", "payload": { "duration": 0 } }));
    wait_job(&machine, "a");
    let text = metrics(&machine);
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let metric = machinist::telemetry::metric(family).or_else(|| machinist::telemetry::metric(name));
        let metric = metric.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        let kind = format!("# TYPE {} {}", metric.name, metric.kind.as_str());
        assert!(has(&text, &kind) && has(&text, &format!("# HELP {} {}", metric.name, metric.help)), "{kind}");
        if let Some((labels, _)) = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')) {
            for label in labels.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(label, _)| label) {
                assert!(metric.labels.contains(&label) || label == "le", "{name} has a label {label}");
            }
        }
        seen.insert(metric.name);
    }
    for begin in ["machinist_host_", "machinist_gpu_", "DCGM_", "machinist_queue_", "machinist_job_", "process_"] {
        assert!(seen.iter().any(|name| name.starts_with(begin)), "nothing of {begin} is shown");
    }
}

#[test]
fn openmetrics_is_given_to_whoever_prefers_it() {
    let machine = Machine::started(PER_GPU, "[connectors.simulation]\n");
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
    let answer = machine.http(&format!("GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n") && !body.contains("\n\n"), "{body}");
    assert!(has(body, "# TYPE machinist_service_starts counter"), "{body}");
    assert!(body.contains("\nmachinist_service_starts_total{"), "{body}");
}

#[test]
fn scripts_read_gpus_and_tests_make_them_up() {
    let script = format!(
        "{PER_GPU}\nfn on_event(m, event) {{\n    if event.kind != \"gpu.xid\" {{ return; }}\n    let gpu = gpu::get(event.data.uuid);\n    \
         metrics::gauge(\"temperature\", gpu.temperature, #{{ index: `${{gpu.index}}`, all: `${{gpu::list().len()}}` }});\n}}\n"
    );
    let mut machine = Machine::new(&script, "[connectors.simulation]\n");
    let mut gpus = Gpus::of(&mut machine, vec![gpu(0), gpu(1)]);
    machine.start();
    machine.wait_healthy();
    gpus.xid(1, 31);
    wait_until("the hook to count", LIMIT, || {
        has(&metrics(&machine), "machinist_script_temperature{all=\"2\",index=\"1\"} 61").then_some(())
    });
    machine.write(
        "machine_test.rhai",
        "fn test_hot() {\n    mock::gpus([#{ uuid: \"GPU-a\", temperature: 91.0 }, #{ state: \"lost\" }]);\n    \
         invoke(\"on_event\", [machine(#{}), #{ kind: \"gpu.xid\", data: #{ uuid: \"GPU-a\" } }]);\n    assert_eq(mock::calls(\"metrics\").len(), 1);\n}\n\
         fn test_unsaid() {\n    invoke(\"on_event\", [machine(#{}), #{ kind: \"gpu.xid\", data: #{ uuid: \"GPU-a\" } }]);\n}\n\
         fn test_wrong() {\n    mock::gpus([#{ temprature: 91.0 }]);\n}\n",
    );
    let output = machine.cli(&["test", &machine.path("").display().to_string()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("the test does not say what gpu:: gives") && text.contains("did you mean temperature?"),
        "{text}"
    );
    assert!(text.contains("1 passed") && text.contains("2 failed"), "{text}");
}
