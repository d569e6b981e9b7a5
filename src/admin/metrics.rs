use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::server::AdminDeps;
use super::status::MachineState;
use crate::base::Name;
use crate::host::Usage;
use crate::supervisor::ServiceStatus;

/// The time a scrape may spend on finding out shares of memory, which costs the kernel a walk over each process's pages;
/// what is left out keeps its last value and comes first the next time.
const PSS_BUDGET: Duration = Duration::from_millis(2);

/// Everything counted, then what is read at the scrape: the machine's state and the engine's own process.
pub(super) async fn render(State(deps): State<AdminDeps>) -> impl IntoResponse {
    // Refreshes the queue's gauges.
    let _ = tokio::time::timeout(Duration::from_secs(1), deps.broker.stats()).await;
    let mut text = deps.metrics.render();
    let status = deps.status.borrow().clone();
    family(&mut text, "machinist_build_info", "gauge", "The version of the engine; always 1.");
    let _ = writeln!(text, "machinist_build_info{{version=\"{}\"}} 1", status.machine.version);
    family(&mut text, "machinist_machine_state", "gauge", "1 for the state that the machine is in.");
    for state in MachineState::ALL {
        let _ = writeln!(text, "machinist_machine_state{{state=\"{state}\"}} {}", u8::from(status.state == state));
    }
    services(&mut text, &deps, &status.services).await;
    process(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

type ReadUsage = fn(&Usage) -> f64;

/// What the services' process trees use now: one pass over `/proc`, off the async workers.
async fn services(text: &mut String, deps: &AdminDeps, services: &BTreeMap<Name, Arc<ServiceStatus>>) {
    let supervisor = deps.supervisor.clone();
    let Ok(usages) = tokio::task::spawn_blocking(move || supervisor.usage(PSS_BUDGET)).await else { return };
    #[expect(clippy::cast_precision_loss, reason = "a sample is a double")]
    let families: [(&str, &str, &str, ReadUsage); 7] = [
        ("cpu_seconds_total", "counter", "CPU time of the service's process tree.", |usage| usage.cpu_seconds),
        ("memory_bytes", "gauge", "Memory of the tree, shared pages divided (PSS).", |usage| usage.memory_bytes as f64),
        ("processes", "gauge", "Processes of the tree.", |usage| f64::from(usage.processes)),
        ("threads", "gauge", "Threads of the tree.", |usage| f64::from(usage.threads)),
        ("open_fds", "gauge", "Open file descriptors of the tree.", |usage| usage.open_files as f64),
        ("read_bytes_total", "counter", "Read from storage by the tree.", |usage| usage.read_bytes as f64),
        ("written_bytes_total", "counter", "Written to storage by the tree.", |usage| usage.written_bytes as f64),
    ];
    for (name, kind, help, read) in families {
        let name = format!("machinist_service_{name}");
        family(text, &name, kind, help);
        for (service, usage) in &usages {
            let _ = writeln!(text, "{name}{{service=\"{service}\"}} {}", read(usage));
        }
    }
    let name = "machinist_service_start_time_seconds";
    family(text, name, "gauge", "When the service's process started, since the epoch.");
    for (service, status) in services {
        if let Some(started) = status.started {
            #[expect(clippy::cast_precision_loss, reason = "a sample is a double")]
            let seconds = started.as_millis() as f64 / 1000.0;
            let _ = writeln!(text, "{name}{{service=\"{service}\"}} {seconds}");
        }
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The standard `process_*` metrics, as the client libraries of Prometheus name them.
fn process(text: &mut String) {
    let mut gauge = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            family(text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // Numbered from the state, the third field of proc(5).
    let field = |number: usize| fields.get(number - 3).copied();
    let ticks = 100.0; // USER_HZ, fixed on Linux.
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks);
    gauge("process_cpu_seconds_total", "counter", "User and system CPU time of the engine.", cpu);
    gauge("process_virtual_memory_bytes", "gauge", "Virtual memory of the engine.", field(23));
    gauge(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory of the engine.",
        field(24).map(|pages| pages * 4096.0),
    );
    gauge("process_threads", "gauge", "Threads of the engine.", field(20));
    let boot = std::fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok());
    let start = field(22).zip(boot).map(|(since_boot, boot)| boot + since_boot / ticks);
    gauge("process_start_time_seconds", "gauge", "When the engine started, since the epoch.", start);
    let open = std::fs::read_dir("/proc/self/fd").ok().and_then(|fds| u32::try_from(fds.count()).ok());
    gauge("process_open_fds", "gauge", "Open file descriptors of the engine.", open.map(f64::from));
    let max = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
    let max = max.map(|(soft, _)| soft as f64);
    gauge("process_max_fds", "gauge", "The limit of open file descriptors.", max);
}
