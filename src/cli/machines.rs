use std::process::ExitCode;

use serde_json::Value;

use super::client::Client;
use super::output::{self, ago, text};
use super::{CliError, Global};

pub(super) async fn execute(global: &Global) -> Result<ExitCode, CliError> {
    let answer = Client::new(global)?.get("/machines").await?;
    if global.json {
        output::json(&answer);
    } else {
        let rows: Vec<Vec<String>> = answer["machines"].as_array().into_iter().flatten().map(row).collect();
        output::table(&["MACHINE", "TYPE", "POOL", "STATE", "SINCE", "JOBS", "DOWN", "SAID", "REASON"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(machine: &Value) -> Vec<String> {
    let state = text(machine, "state");
    let (state, since) = match machine["presence"].as_str() {
        Some("present") => (state, "since"),
        Some("left") => {
            (machine["exit_code"].as_u64().map_or(format!("left, {state}"), |code| format!("left, {code}")), "said")
        }
        _ => (format!("lost, was {state}"), "until"),
    };
    vec![
        text(machine, "id"),
        text(machine, "type"),
        text(machine, "pool"),
        state,
        ago(machine, since),
        format!("{}/{}", text(machine, "jobs"), text(machine, "slots")),
        text(machine, "services_down"),
        ago(machine, "said"),
        machine["reason"].as_str().unwrap_or_default().to_owned(),
    ]
}
