use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, segment};
use super::output::{self, ago, text};
use super::{CliError, Global, machine};
use crate::base::ByteSize;

#[derive(Clone, Debug, Args)]
pub(crate) struct ServicesArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// List all services (the default).
    List {
        /// With the CPU time, memory, processes and open files of each.
        #[arg(short, long)]
        usage: bool,
    },
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
    /// Only what was written to `stdout` or `stderr`.
    #[arg(long, value_parser = ["stdout", "stderr"])]
    stream: Option<String>,
    /// Only lines that match this regular expression.
    #[arg(long, value_name = "PATTERN")]
    grep: Option<String>,
    /// Only lines not older than this, e.g. 10m or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

pub(super) async fn execute(args: ServicesArgs, global: &Global) -> Result<ExitCode, CliError> {
    let (name, verb) = match args.verb {
        verb @ (None | Some(Verb::List { .. })) => {
            let usage = matches!(verb, Some(Verb::List { usage: true }));
            let answer = Client::new(global)?.get(if usage { "/services?usage" } else { "/services" }).await?;
            if global.json {
                output::json(&answer);
            } else if usage {
                usage_table(&answer["services"]);
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

fn usage_table(services: &Value) {
    let row = |service: &Value| {
        let usage = &service["usage"];
        let bytes = usage["memory_bytes"].as_u64().map_or_else(String::new, |bytes| ByteSize(bytes).to_string());
        let cpu = usage["cpu_seconds"].as_f64().map_or_else(String::new, |seconds| format!("{seconds:.1} s"));
        let count = |key| text(usage, key);
        vec![
            text(service, "name"),
            text(service, "state"),
            cpu,
            bytes,
            count("processes"),
            count("threads"),
            count("open_files"),
            text(service, "restarts"),
            ago(service, "started"),
        ]
    };
    let rows: Vec<Vec<String>> = services.as_array().into_iter().flatten().map(row).collect();
    output::table(&["SERVICE", "STATE", "CPU", "MEMORY", "PROCESSES", "THREADS", "FILES", "RESTARTS", "UP"], &rows);
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
    let mut path = match &args.name {
        Some(name) => format!("/services/{}/logs?tail={}", segment(name), args.tail),
        None => format!("/logs?tail={}", args.tail),
    };
    for (key, value) in [("stream", &args.stream), ("grep", &args.grep), ("since", &args.since)] {
        if let Some(value) = value {
            path = format!("{path}&{key}={}", segment(value));
        }
    }
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
