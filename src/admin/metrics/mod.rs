//! `/metrics`: what was counted, then what is read at the scrape, so that it ends with what it describes. `page` writes families
//! as the catalogue describes them, `openmetrics` turns the text into the newer format; the others each write what they know.

mod accounts;
mod backlog;
mod gpus;
mod host;
mod openmetrics;
mod page;
mod process;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

use self::host::HostReading;
use self::page::Page;
use super::server::AdminDeps;
use super::status::{MachineState, MachineStatus};
use crate::base::Name;
use crate::host::{Usage, host_name};
use crate::queue::BrokerError;
use crate::telemetry::script_metrics;

/// The time a scrape may spend on finding out shares of memory, which costs the kernel a walk over each process's pages;
/// what is left out keeps its last value and comes first the next time.
const PSS_BUDGET: Duration = Duration::from_millis(2);

/// What services and workers have counted begins so.
const SERVICES: &str = "machinist_service_";
const WORKERS: &str = "machinist_worker_";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn render(State(deps): State<AdminDeps>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = text(&deps).await;
    if openmetrics::is_wanted(accept) {
        ([(header::CONTENT_TYPE, OPENMETRICS)], openmetrics::convert(&text))
    } else {
        ([(header::CONTENT_TYPE, TEXT)], text)
    }
}

/// What the queue answers, as long as a scrape can wait for it.
async fn within<T>(answer: impl Future<Output = Result<T, BrokerError>>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(1), answer).await.ok()?.ok()
}

async fn text(deps: &AdminDeps) -> String {
    let mut page = Page::default();
    let broker = &deps.broker;
    // The first refreshes the gauges of all jobs by state. A queue that does not answer is waited for once.
    let asked = (within(broker.stats()), within(broker.backlog()), within(broker.accounts()));
    let (_, backlog, known) = tokio::join!(asked.0, asked.1, asked.2);
    if let Some(backlog) = backlog {
        backlog::backlog(&mut page, &backlog);
    }
    if let Some(known) = known {
        accounts::accounts(&mut page, &known);
    }
    accounts::used(&mut page);
    let status = deps.status.borrow().clone();
    let Page { text: queue } = page;
    let mut page = Page { text: living(&deps.metrics.render(), &status) };
    page.text.push_str(&queue);
    page.family("machinist_build_info").sample(&[("version", &status.machine.version)], 1.0);
    let mut family = page.family("machinist_machine_state");
    for state in MachineState::ALL {
        family.sample(&[("state", state.as_str())], f64::from(u8::from(status.state == state)));
    }
    page.text.push_str(&script_metrics::render());
    let gpu_status = deps.gpus.get();
    let pids = gpu_status.gpus.iter().filter_map(|gpu| gpu.sample.as_ref());
    let pids: BTreeSet<u32> = pids.flat_map(|sample| sample.processes.iter().map(|process| process.pid)).collect();
    let (reading, usages, owners) = look(deps, pids).await;
    services::services(&mut page, &status.services, &usages);
    gpus::gpus(&mut page, &gpu_status, &owners);
    if deps.dcgm_names {
        gpus::dcgm(&mut page, &gpu_status, &host_name());
    }
    reading.write(&mut page);
    process::process(&mut page);
    page.text
}

/// One look at `/proc`, off the async workers.
async fn look(deps: &AdminDeps, pids: BTreeSet<u32>) -> (HostReading, BTreeMap<Name, Usage>, BTreeMap<u32, Name>) {
    let (supervisor, state_dir) = (deps.supervisor.clone(), deps.state_dir.clone());
    let look = move || {
        let (usages, owners) = supervisor.usage_and_owners(PSS_BUDGET, &pids);
        (HostReading::take(&state_dir), usages, owners)
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// What was counted, without the series of services and workers that are gone.
fn living(text: &str, status: &MachineStatus) -> String {
    let named = |line: &str, label: &str| Some(line.split_once(label)?.1.split('"').next()?.to_owned());
    let gone = |line: &&str| {
        let service = line.starts_with(SERVICES).then(|| named(line, "service=\"")).flatten();
        let worker = line.starts_with(WORKERS).then(|| named(line, "worker=\"")).flatten();
        service.is_some_and(|name| !status.services.contains_key(name.as_str()))
            || worker.is_some_and(|name| !status.workers.contains_key(name.as_str()))
    };
    let mut kept = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !gone(line)) {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}
