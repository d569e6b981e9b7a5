use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::output::{self, ago, text};
use super::{CliError, Global};
use crate::base::ByteSize;

#[derive(Clone, Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on as events happen.
    #[arg(short, long)]
    follow: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Wait until the edit has passed its probation; fails when it is rolled back.
    #[arg(short, long)]
    wait: bool,
}

pub(super) async fn reload(args: &ReloadArgs, global: &Global) -> Result<ExitCode, CliError> {
    let path = if args.wait { "/reload?wait=true" } else { "/reload" };
    show(global, &Client::new(global)?.post_patiently(path).await?);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(global: &Global) -> Result<ExitCode, CliError> {
    let status = Client::new(global)?.get("/status").await?;
    if global.json {
        output::json(&status);
        return Ok(ExitCode::SUCCESS);
    }
    let (machine, generation, queue) = (&status["machine"], &status["generation"], &status["queue"]);
    output::line(&format!(
        "{} ({}, pool {}) is {} since {}{}",
        text(machine, "id"),
        text(machine, "type"),
        text(machine, "pool"),
        text(&status, "state"),
        ago(&status, "since"),
        status["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default(),
    ));
    output::line(&format!(
        "version {}, pid {}, up {}, life {}, generation {} ({})",
        text(machine, "version"),
        text(machine, "pid"),
        ago(machine, "started"),
        text(machine, "incarnation"),
        text(generation, "number"),
        text(generation, "hash"),
    ));
    if let Some(probation) = generation["probation"].as_object() {
        let until = probation["until"].as_str().unwrap_or("its end");
        let back_to = &probation["back_to"];
        output::line(&format!("on probation until {until}; else generation {back_to} runs again"));
    }
    if !queue.is_null() {
        let counts = ["pending", "running", "delayed", "completed", "failed", "cancelled"];
        let counts = counts.map(|state| format!("{} {state}", text(queue, state)));
        output::line(&format!("jobs: {}", counts.join(", ")));
    }
    if let Some(problems) = generation["rejection"]["problems"].as_array() {
        let rejection = &generation["rejection"];
        let what = if rejection["rolled_back"].is_null() { "refused" } else { "rolled back" };
        output::line(&format!("\nthe latest edit was {what} {} ago:", ago(rejection, "at")));
        let problems = problems.iter().filter_map(|problem| serde_json::from_value(problem.clone()).ok());
        let mut problems: Vec<crate::base::Problem> = problems.collect();
        // What it was refused for comes before what it is only warned of.
        problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
        for problem in problems {
            output::line(&problem.to_string());
        }
    }
    output::line("");
    super::services::table(&status["services"]);
    let workers: Vec<&Value> = status["workers"].as_object().into_iter().flat_map(|map| map.values()).collect();
    if !workers.is_empty() {
        let mut headings = vec!["WORKER", "CONNECTOR", "STATE", "BUSY", "DONE", "FAILED", "REASON"];
        let mut rows: Vec<Vec<String>> = workers.iter().map(|status| worker(status)).collect();
        // Jobs of most connectors ask for no model.
        if workers.iter().any(|worker| worker["models"].as_u64().is_some()) {
            headings.insert(headings.len() - 1, "MODELS");
            for (row, worker) in rows.iter_mut().zip(&workers) {
                row.insert(row.len() - 1, worker["models"].as_u64().unwrap_or(0).to_string());
            }
        }
        output::line("");
        output::table(&headings, &rows);
    }
    let gpus: Vec<Vec<String>> =
        status["gpus"]["gpus"].as_array().map(|gpus| gpus.iter().map(gpu).collect()).unwrap_or_default();
    if !gpus.is_empty() {
        output::line("");
        output::table(&["GPU", "NAME", "STATE", "BUSY", "MEMORY", "TEMP", "POWER", "REASON"], &gpus);
    }
    if let (Some(silent), true) = (status["gpus"]["silent"].as_str(), status["gpus"]["sampling"] == true) {
        output::line(silent);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a GPU does not tell is left open.
fn gpu(gpu: &Value) -> Vec<String> {
    let sample = &gpu["sample"];
    let number = |key: &str, unit: &str, factor: f64| {
        sample[key].as_f64().map(|value| format!("{:.0}{unit}", value * factor)).unwrap_or_default()
    };
    let bytes = |key: &str| sample[key].as_u64().map(|bytes| ByteSize(bytes).to_string());
    let memory = bytes("memory_used_bytes").zip(bytes("memory_total_bytes"));
    vec![
        text(gpu, "index"),
        text(gpu, "name"),
        text(gpu, "state"),
        number("utilization", " %", 100.0),
        memory.map(|(used, total)| format!("{used} of {total}")).unwrap_or_default(),
        number("temperature_celsius", " °C", 1.0),
        number("power_watts", " W", 1.0),
        gpu["reason"].as_str().unwrap_or_default().to_owned(),
    ]
}

fn worker(worker: &Value) -> Vec<String> {
    let busy = worker["running"].as_array().map_or(0, Vec::len);
    // It claims all the same.
    let untold = worker["inventory"]["problem"].as_str();
    let untold = untold.map(|why| format!("its backend does not tell what it has: {why}"));
    vec![
        text(worker, "name"),
        text(worker, "connector"),
        text(worker, "state"),
        format!("{busy}/{}", text(worker, "slots")),
        text(worker, "completed"),
        text(worker, "failed"),
        worker["reason"].as_str().map(str::to_owned).or(untold).unwrap_or_default(),
    ]
}

pub(super) async fn health(global: &Global) -> Result<ExitCode, CliError> {
    let (_, health) = Client::new(global)?.get_any("/health").await?;
    let healthy = health["healthy"] == true;
    if global.json {
        output::json(&health);
    } else {
        let reason = health["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        output::line(&format!("{}{reason}", text(&health, "state")));
        for (name, check) in health["checks"].as_object().into_iter().flatten().filter(|(_, check)| check["ok"] != true)
        {
            output::line(&format!("  {name}: {}", text(check, "reason")));
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

pub(super) async fn events(args: &EventsArgs, global: &Global) -> Result<ExitCode, CliError> {
    let client = Client::new(global)?;
    let show = |event: &Value| {
        if global.json {
            output::line(&event.to_string());
        } else {
            output::line(&format!("{} {:5} {}", text(event, "at"), text(event, "level"), text(event, "message")));
        }
    };
    if args.follow {
        client
            .follow("/events", None, |_, event| {
                show(&event);
                false
            })
            .await?;
    } else {
        let answer = client.get("/events").await?;
        answer["events"].as_array().into_iter().flatten().for_each(show);
    }
    Ok(ExitCode::SUCCESS)
}

/// For requests that answer with a sentence.
pub(super) async fn post(global: &Global, path: &str) -> Result<ExitCode, CliError> {
    show(global, &Client::new(global)?.post(path, None).await?);
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, answer: &Value) {
    if global.json {
        output::json(answer);
    } else {
        output::line(&text(answer, "message"));
    }
}
