use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, segment};
use super::output::{self, ago, text};
use super::{CliError, Global, machine};

#[derive(Clone, Debug, Args)]
pub(crate) struct ServicesArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// List all services (the default).
    List,
    /// Start a service.
    Start { name: String },
    /// Stop a service.
    Stop { name: String },
    /// Stop and start a service.
    Restart { name: String },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct LogsArgs {
    /// The service; all of them when left out.
    name: Option<String>,
    /// Go on as lines are written.
    #[arg(short, long, requires = "name")]
    follow: bool,
    /// How many of the newest lines.
    #[arg(short = 'n', long, default_value_t = 100)]
    tail: usize,
}

pub(super) async fn execute(args: ServicesArgs, global: &Global) -> Result<ExitCode, CliError> {
    let (name, verb) = match args.verb {
        None | Some(Verb::List) => {
            let answer = Client::new(global)?.get("/services").await?;
            if global.json {
                output::json(&answer);
            } else {
                table(&answer["services"]);
            }
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verb::Start { name }) => (name, "start"),
        Some(Verb::Stop { name }) => (name, "stop"),
        Some(Verb::Restart { name }) => (name, "restart"),
    };
    machine::post(global, &format!("/services/{}/{verb}", segment(&name))).await
}

/// Services from an array or a map of them.
pub(super) fn table(services: &Value) {
    let list: Vec<&Value> = match services {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    let rows: Vec<Vec<String>> = list.into_iter().map(row).collect();
    output::table(&["SERVICE", "KIND", "STATE", "PID", "RESTARTS", "SINCE", "REASON"], &rows);
}

fn row(service: &Value) -> Vec<String> {
    vec![
        text(service, "name"),
        text(service, "kind"),
        text(service, "state"),
        text(service, "pid"),
        text(service, "restarts"),
        ago(service, "since"),
        service["reason"].as_str().unwrap_or("").replace('\n', " "),
    ]
}

pub(super) async fn logs(args: LogsArgs, global: &Global) -> Result<ExitCode, CliError> {
    let client = Client::new(global)?;
    let show = |line: &Value| {
        if global.json {
            output::line(&line.to_string());
        } else {
            output::line(&format!("{} {} | {}", text(line, "at"), text(line, "service"), text(line, "text")));
        }
    };
    let path = match &args.name {
        Some(name) => format!("/services/{}/logs?tail={}", segment(name), args.tail),
        None => format!("/logs?tail={}", args.tail),
    };
    if args.follow {
        client
            .follow(&path, None, |_, line| {
                show(&line);
                false
            })
            .await?;
    } else {
        let answer = client.get(&path).await?;
        answer["lines"].as_array().into_iter().flatten().for_each(show);
    }
    Ok(ExitCode::SUCCESS)
}
