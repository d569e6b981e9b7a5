//! `/metrics`: what was counted, then what is read at the scrape, so that it ends with what it describes. `look` looks, `page` writes families
//! as the catalogue describes them, `openmetrics` turns the text into the newer format; the others each write what they know.

mod accounts;
mod backlog;
mod gpus;
mod host;
mod look;
mod openmetrics;
mod page;
mod process;
mod services;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

use self::host::HostReading;
use self::look::Look;
pub use self::look::Looks;
use self::page::Page;
use super::server::AdminDeps;
use super::status::{MachineState, MachineStatus};
use crate::host::host_name;
use crate::queue::{AccountStatus, Backlog, BrokerError};
use crate::telemetry::script_metrics;

/// What services and workers have counted begins so.
const SERVICES: &str = "machinist_service_";
const WORKERS: &str = "machinist_worker_";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn render(State(deps): State<AdminDeps>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted = openmetrics::is_wanted(accept);
    let beside = async {
        let (queue, deps) = (Queue::ask(&deps).await, deps.clone());
        off(move || known(&deps, &queue)).await
    };
    let (look, page) = tokio::join!(deps.looks.take(look::look(&deps)), beside);
    let (kind, text) = off(move || {
        let text = with_processes(page, &deps, &look);
        if wanted { (OPENMETRICS, openmetrics::convert(&text)) } else { (TEXT, text) }
    })
    .await;
    ([(header::CONTENT_TYPE, kind)], text)
}

/// There are thousands of lines to be written: no worker of the runtime is to be kept from jobs by them.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
}

/// What the queue answers, as far as a scrape can wait for it.
struct Queue {
    backlog: Option<Arc<Backlog>>,
    accounts: Option<Vec<AccountStatus>>,
}

impl Queue {
    async fn ask(deps: &AdminDeps) -> Self {
        let broker = &deps.broker;
        // The first refreshes the gauges of all jobs by state. A queue that does not answer is waited for once.
        let (_, backlog, accounts) =
            tokio::join!(within(broker.stats()), within(broker.backlog()), within(broker.accounts()));
        Self { backlog, accounts }
    }
}

async fn within<T>(answer: impl Future<Output = Result<T, BrokerError>>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(1), answer).await.ok()?.ok()
}

/// All that is told without a look at the services' processes, which takes longest.
fn known(deps: &AdminDeps, queue: &Queue) -> Page {
    let status = deps.status.borrow().clone();
    let mut page = Page { text: living(&deps.metrics.render(), &status) };
    if let Some(backlog) = &queue.backlog {
        backlog::backlog(&mut page, backlog);
    }
    if let Some(accounts) = &queue.accounts {
        accounts::accounts(&mut page, accounts);
    }
    accounts::used(&mut page);
    page.family("machinist_build_info").sample(&[("version", &status.machine.version)], 1.0);
    let mut family = page.family("machinist_machine_state");
    for state in MachineState::ALL {
        family.sample(&[("state", state.as_str())], f64::from(u8::from(status.state == state)));
    }
    page.text.push_str(&script_metrics::render());
    HostReading::take(&deps.state_dir).write(&mut page);
    process::process(&mut page);
    page
}

fn with_processes(mut page: Page, deps: &AdminDeps, look: &Look) -> String {
    let status = deps.status.borrow().clone();
    services::services(&mut page, &status.services, &look.usages);
    gpus::gpus(&mut page, &look.gpus, &look.owners);
    if deps.dcgm_names {
        gpus::dcgm(&mut page, &look.gpus, &host_name());
    }
    page.text
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
