use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::server::AdminDeps;
use super::status::MachineState;
use crate::base::{Name, Timestamp};
use crate::host::Usage;
use crate::queue::Load;
use crate::supervisor::ServiceStatus;
use crate::telemetry::script_metrics;

/// The time a scrape may spend on finding out shares of memory, which costs the kernel a walk over each process's pages;
/// what is left out keeps its last value and comes first the next time.
const PSS_BUDGET: Duration = Duration::from_millis(2);

/// Everything counted, then what is read at the scrape: the machine's state and the engine's own process.
pub(super) async fn render(State(deps): State<AdminDeps>) -> impl IntoResponse {
    let queue = backlog(&deps).await;
    let mut text = deps.metrics.render();
    let status = deps.status.borrow().clone();
    family(&mut text, "machinist_build_info", "gauge", "The version of the engine; always 1.");
    let _ = writeln!(text, "machinist_build_info{{version=\"{}\"}} 1", status.machine.version);
    family(&mut text, "machinist_machine_state", "gauge", "1 for the state that the machine is in.");
    for state in MachineState::ALL {
        let _ = writeln!(text, "machinist_machine_state{{state=\"{state}\"}} {}", u8::from(status.state == state));
    }
    text.push_str(&queue);
    text.push_str(&script_metrics::render());
    services(&mut text, &deps, &status.services).await;
    process(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Services and pools are named by whoever submits jobs: those with the most jobs have series of their own.
const MOST_SERIES: usize = 200;

/// What the queue holds for each service and pool, written at the scrape, so that a series ends with what it describes.
async fn backlog(deps: &AdminDeps) -> String {
    let mut text = String::new();
    // Refreshes the gauges of all jobs by state.
    let _ = tokio::time::timeout(Duration::from_secs(1), deps.broker.stats()).await;
    let Ok(Ok(backlog)) = tokio::time::timeout(Duration::from_secs(1), deps.broker.backlog()).await else {
        return text;
    };
    loads(&mut text, "service", &backlog.services);
    loads(&mut text, "pool", &backlog.pools);
    let name = "machinist_queue_unmatched_jobs";
    family(&mut text, name, "gauge", "Jobs that wait although no worker matches them.");
    let _ = writeln!(text, "{name} {}", backlog.unmatched_jobs());
    text
}

fn loads(text: &mut String, label: &str, loads: &BTreeMap<Name, Load>) {
    let loads = bounded(loads, MOST_SERIES);
    let name = format!("machinist_queue_{label}_jobs");
    family(
        text,
        &name,
        "gauge",
        &format!("Jobs that are not over, by {label} and state; later is delayed or blocked."),
    );
    for (value, load) in &loads {
        for (state, count) in [("pending", load.pending), ("running", load.running), ("later", load.later)] {
            let _ = writeln!(text, "{name}{{{label}=\"{value}\",state=\"{state}\"}} {count}");
        }
    }
    let name =
        if label == "service" { "machinist_queue_oldest_seconds" } else { "machinist_queue_pool_oldest_seconds" };
    family(text, name, "gauge", &format!("The age of the pending job that waits longest, by {label}."));
    let now = Timestamp::now();
    for (value, load) in &loads {
        let age = load.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64());
        let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {age}");
    }
}

/// Those with the most jobs, the others as one.
fn bounded(loads: &BTreeMap<Name, Load>, most: usize) -> BTreeMap<&str, Load> {
    let mut order: Vec<(&Name, &Load)> = loads.iter().collect();
    order.sort_by_key(|(_, load)| std::cmp::Reverse(load.pending + load.running + load.later));
    let mut shown: BTreeMap<&str, Load> = BTreeMap::new();
    for (index, (name, load)) in order.into_iter().enumerate() {
        let entry = shown.entry(if index < most { name.as_str() } else { "other" }).or_default();
        entry.pending += load.pending;
        entry.running += load.running;
        entry.later += load.later;
        entry.oldest = entry.oldest.into_iter().chain(load.oldest).min();
    }
    shown
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_nothing_is_left_out() {
        let load =
            |pending| Load { pending, later: 1, oldest: Some(Timestamp::from_millis(pending)), ..Load::default() };
        let loads = (1..=5u64).map(|n| (Name::new(&format!("s{n}")).unwrap(), load(n))).collect();
        let shown = bounded(&loads, 3);
        assert_eq!(shown.keys().copied().collect::<Vec<_>>(), ["other", "s3", "s4", "s5"]);
        let other = Load { pending: 3, running: 0, later: 2, oldest: Some(Timestamp::from_millis(1)) };
        assert_eq!(shown["other"], other);
        assert_eq!(bounded(&loads, 5).len(), 5);
    }
}
