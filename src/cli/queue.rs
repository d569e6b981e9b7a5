use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::output::{self, text};
use super::{CliError, Global};

/// A backend may have thousands; `--json` has them all.
const MODELS_IN_A_ROW: usize = 3;
const MODELS_OF_ONE: usize = 50;

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// How many jobs are in each state: in all, by service, and by the pool they ask for.
    Stats,
    /// Kinds of requirement with their jobs, and what holds them back.
    Classes,
    /// Workers and what they can do; with a name, what it could run and why not the rest.
    Workers {
        /// MACHINE/WORKER
        name: Option<String>,
    },
    /// Accounts that machines share: jobs that run with them, their limits, and what holds them.
    Accounts,
    /// Start no more jobs of a scope.
    Pause { scope: String },
    /// Start jobs of a paused scope again; of an account also what holds it is over.
    Resume { scope: String },
    /// Pause a scope and wait until none of its jobs runs.
    Drain { scope: String },
    /// Limit how many jobs of a scope run or start; without numbers: list limits, or lift one.
    Limit(LimitArgs),
    /// Dead letters: jobs that failed for good.
    Dead {
        #[arg(short = 'n', long, default_value_t = 50)]
        limit: u32,
    },
    /// Drop jobs of a state.
    Purge(PurgeArgs),
    /// Print every job, one per line.
    Export,
    /// Queue the jobs of an export that were not over; those that are known are left as they are.
    Import {
        /// - for standard input.
        file: std::path::PathBuf,
    },
    /// Check every invariant of what is stored; exit code 0 when all hold.
    Verify {
        /// Mend what is wrong.
        #[arg(long)]
        repair: bool,
    },
    /// Jobs that are submitted again and again.
    #[command(subcommand)]
    Schedules(SchedulesCommand),
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// service:NAME, pool:NAME, customer:NAME or account:NAME.
    scope: Option<String>,
    /// So many run at once at most.
    #[arg(long)]
    max_running: Option<u32>,
    /// So many start per second at most.
    #[arg(long)]
    per_second: Option<f64>,
    /// So many may start at once.
    #[arg(long)]
    burst: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// completed, failed or cancelled; delayed, pending and blocked jobs are cancelled first.
    state: String,
    #[arg(long)]
    service: Option<String>,
    /// Only those that ended longer ago, e.g. 2h.
    #[arg(long)]
    older_than: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchedulesCommand {
    List,
    /// Submit a job whenever the time comes.
    Put {
        name: String,
        /// Minute, hour, day of month, month, weekday.
        cron: String,
        /// The job as JSON.
        job: String,
    },
    Remove {
        name: String,
    },
}

pub(super) async fn execute(command: QueueCommand, global: &Global) -> Result<ExitCode, CliError> {
    let client = Client::new(global)?;
    let scoped = |verb: &str, scope: &str| format!("/queue/{verb}?scope={}", segment(scope));
    match command {
        QueueCommand::Stats => show(global, &client.get("/queue").await?, stats),
        QueueCommand::Classes => show(global, &client.get("/queue/classes?count=1000").await?, classes),
        QueueCommand::Workers { name: None } => show(global, &client.get("/queue/workers").await?, workers),
        QueueCommand::Workers { name: Some(name) } => {
            let path: Vec<String> = name.split('/').map(segment).collect();
            show(global, &client.get(&format!("/queue/workers/{}", path.join("/"))).await?, explain_worker);
        }
        QueueCommand::Accounts => show(global, &client.get("/queue/accounts").await?, accounts),
        QueueCommand::Pause { scope } => limit(global, &client.post(&scoped("pause", &scope), None).await?),
        QueueCommand::Resume { scope } => limit(global, &client.post(&scoped("resume", &scope), None).await?),
        QueueCommand::Drain { scope } => limit(global, &client.post(&scoped("drain", &scope), None).await?),
        QueueCommand::Limit(args) => match &args.scope {
            None => show(global, &client.get("/queue/limits").await?, |answer| {
                for entry in answer["limits"].as_array().into_iter().flatten() {
                    output::line(&describe(entry));
                }
            }),
            Some(scope) => {
                let mut body = serde_json::Map::new();
                let fields = [
                    ("max_running", args.max_running.map(Value::from)),
                    ("per_second", args.per_second.map(Value::from)),
                    ("burst", args.burst.map(Value::from)),
                ];
                body.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
                let body = (Value::Object(body).to_string(), "application/json");
                limit(global, &client.post(&scoped("limits", scope), Some(body)).await?);
            }
        },
        QueueCommand::Dead { limit } => {
            show(global, &client.get(&format!("/jobs?state=failed&limit={limit}")).await?, dead);
        }
        QueueCommand::Purge(args) => {
            let mut path = format!("/queue/purge?state={}", segment(&args.state));
            for (name, value) in [("service", &args.service), ("older_than", &args.older_than)] {
                if let Some(value) = value {
                    path = format!("{path}&{name}={}", segment(value));
                }
            }
            show(global, &client.post(&path, None).await?, |answer| {
                output::line(&format!("{} jobs dropped", text(answer, "dropped")));
            });
        }
        QueueCommand::Export => client.copy("/queue/export", output::print).await?,
        QueueCommand::Import { file } => return import(&client, &file, global).await,
        QueueCommand::Verify { repair } => {
            let answer = client.post(&format!("/queue/verify?repair={repair}"), None).await?;
            let problems = answer["problems"].as_array().cloned().unwrap_or_default();
            show(global, &answer, |_| {
                for problem in &problems {
                    output::line(problem.as_str().unwrap_or_default());
                }
                let end = if problems.is_empty() { "nothing is wrong" } else { "see above" };
                output::line(end);
            });
            return Ok(ExitCode::from(u8::from(!problems.is_empty() && !repair)));
        }
        QueueCommand::Schedules(command) => schedules(&client, command, global).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, answer: &Value, human: impl FnOnce(&Value)) {
    if global.json { output::json(answer) } else { human(answer) }
}

fn stats(answer: &Value) {
    let fields = answer.as_object().into_iter().flatten();
    for (name, _) in fields.filter(|(_, value)| !value.is_object()) {
        output::line(&format!("{name:<15} {}", text(answer, name)));
    }
    for (field, heading) in [("services", "SERVICE"), ("pools", "POOL")] {
        let loads = answer[field].as_object().into_iter().flatten();
        let row = |(name, load): (&String, &Value)| {
            let count = |field| text(load, field);
            vec![name.clone(), count("pending"), count("running"), count("later"), output::ago(load, "oldest")]
        };
        let rows: Vec<Vec<String>> = loads.map(row).collect();
        if !rows.is_empty() {
            output::line("");
            output::table(&[heading, "PENDING", "RUNNING", "LATER", "OLDEST"], &rows);
        }
    }
}

fn limit(global: &Global, answer: &Value) {
    show(global, answer, |answer| output::line(&describe(answer)));
}

fn describe(entry: &Value) -> String {
    let mut parts = restrictions(&entry["limit"]);
    if parts.is_empty() {
        parts.push("no limit".to_owned());
    }
    let lifted = if entry["lifted"] == true { "; its hold is lifted" } else { "" };
    format!("{}: {}; {} running{lifted}", text(entry, "scope"), parts.join(", "), text(entry, "running"))
}

fn accounts(answer: &Value) {
    let rows: Vec<Vec<String>> = answer["accounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|account| {
            let hold = &account["hold"];
            let held = match (hold["why"].as_str(), hold["job"].as_str()) {
                (None, _) => String::new(),
                (Some(why), Some(job)) => format!("while job {job} is tried: {why}"),
                (Some(why), None) => format!("until {}: {why}", text(hold, "until")),
            };
            let limit = restrictions(&account["limit"]).join(", ");
            vec![text(account, "account"), text(account, "running"), text(account, "waiting"), limit, held]
        })
        .collect();
    output::table(&["ACCOUNT", "RUNNING", "WORKERS WAITING", "LIMIT", "HELD"], &rows);
}

fn restrictions(limit: &Value) -> Vec<String> {
    let mut parts = Vec::new();
    if limit["paused"].as_bool() == Some(true) {
        parts.push("paused".to_owned());
    }
    if let Some(max) = limit["max_running"].as_u64() {
        parts.push(format!("at most {max} running"));
    }
    if let Some(rate) = limit["per_second"].as_f64() {
        parts.push(format!("at most {rate} starts per second, {} at once", text(limit, "burst")));
    }
    parts
}

fn classes(answer: &Value) {
    let rows: Vec<Vec<String>> = answer["classes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|class| {
            let mut cells: Vec<String> = ["class", "service", "pending", "live", "profiles", "held_by"]
                .iter()
                .map(|name| text(class, name))
                .collect();
            cells.push(class["requirement"].to_string());
            cells
        })
        .collect();
    output::table(&["CLASS", "SERVICE", "PENDING", "LIVE", "PROFILES", "HELD BY", "REQUIREMENT"], &rows);
}

fn workers(answer: &Value) {
    let rows: Vec<Vec<String>> = answer["workers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, can)| {
            let list = |field: &str| few(&can[field], MODELS_IN_A_ROW);
            vec![name.clone(), text(can, "machine_type"), text(can, "pool"), list("services"), list("models")]
        })
        .collect();
    output::table(&["WORKER", "TYPE", "POOL", "SERVICES", "MODELS"], &rows);
}

/// The first of a list of texts, and how many more there are.
fn few(list: &Value, most: usize) -> String {
    let items: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let shown = items[..items.len().min(most)].join(", ");
    if items.len() > most { format!("{shown} and {} more", items.len() - most) } else { shown }
}

fn explain_worker(answer: &Value) {
    output::line(&format!("{}: {}", text(answer, "worker"), text(answer, "reason")));
    let can = &answer["capabilities"];
    for field in ["services", "models"] {
        let names = few(&can[field], MODELS_OF_ONE);
        if !names.is_empty() {
            output::line(&format!("  {field}: {names}"));
        }
    }
    if can["labels"].as_object().is_some_and(|labels| !labels.is_empty()) {
        output::line(&format!("  labels: {}", can["labels"]));
    }
    for class in answer["runs"].as_array().into_iter().flatten() {
        let held = class["held_by"].as_str().map(|scope| format!(", held by {scope}")).unwrap_or_default();
        let others: Vec<&str> = class["left_to"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let left = if others.is_empty() { String::new() } else { format!(", left to {}", others.join(", ")) };
        let count = text(class, "pending");
        output::line(&format!(
            "  runs {} {} ({count} pending{held}{left})",
            text(class, "service"),
            class["requirement"]
        ));
    }
    for refused in answer["refuses"].as_array().into_iter().flatten() {
        let class = &refused["class"];
        output::line(&format!("  not {} {}: {}", text(class, "service"), class["requirement"], text(refused, "why")));
    }
}

fn dead(answer: &Value) {
    let rows: Vec<Vec<String>> = answer["jobs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|job| {
            let why = job["failure"]["message"].as_str().unwrap_or("").replace('\n', " ");
            vec![text(job, "id"), text(job, "service"), text(job, "attempts"), output::ago(job, "finished"), why]
        })
        .collect();
    output::table(&["JOB", "SERVICE", "TRIES", "FAILED", "FAILURE"], &rows);
}

/// Jobs that were not over become submissions with the same id.
async fn import(client: &Client, file: &std::path::Path, global: &Global) -> Result<ExitCode, CliError> {
    const FIELDS: [&str; 18] = [
        "id",
        "service",
        "payload",
        "requirement",
        "priority",
        "workflow",
        "customer",
        "idempotency_key",
        "unique_key",
        "depends_on",
        "on_dependency_failure",
        "affinity",
        "webhook",
        "not_before",
        "timeout",
        "retry",
        "trace",
        "tracestate",
    ];
    let text = super::jobs::read_all(file)?;
    let (mut queued, mut known, mut over) = (0u64, 0u64, 0u64);
    let mut batch = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for (number, line) in lines.iter().enumerate() {
        let job: Value = serde_json::from_str(line)
            .map_err(|cause| CliError::usage(format!("{}:{}: {cause}", file.display(), number + 1)))?;
        if matches!(job["state"].as_str(), Some("completed" | "failed" | "cancelled")) {
            over += 1;
        } else {
            let fields = job.as_object().into_iter().flatten().filter(|(name, _)| FIELDS.contains(&name.as_str()));
            batch.push(Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect()));
        }
        if batch.len() >= 200 || (number + 1 == lines.len() && !batch.is_empty()) {
            let body = Value::Array(std::mem::take(&mut batch)).to_string();
            let answer = client.post("/jobs", Some((body, "application/json"))).await?;
            for job in answer["jobs"].as_array().into_iter().flatten() {
                if job["duplicate"].as_bool() == Some(true) { known += 1 } else { queued += 1 }
            }
        }
    }
    let answer = json!({ "queued": queued, "known": known, "over": over });
    show(global, &answer, |_| {
        output::line(&format!("{queued} jobs queued, {known} were known, {over} were over and are left out"));
    });
    Ok(ExitCode::SUCCESS)
}

async fn schedules(client: &Client, command: SchedulesCommand, global: &Global) -> Result<(), CliError> {
    match command {
        SchedulesCommand::List => show(global, &client.get("/queue/schedules").await?, |answer| {
            let rows: Vec<Vec<String>> = answer["schedules"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| vec![text(one, "name"), text(one, "cron"), text(one, "next"), text(&one["job"], "service")])
                .collect();
            output::table(&["NAME", "CRON", "NEXT", "SERVICE"], &rows);
        }),
        SchedulesCommand::Put { name, cron, job } => {
            let job: Value =
                serde_json::from_str(&job).map_err(|cause| CliError::usage(format!("the job is no JSON: {cause}")))?;
            let body = json!({ "name": name, "cron": cron, "job": job }).to_string();
            let answer = client.post("/queue/schedules", Some((body, "application/json"))).await?;
            show(global, &answer, |answer| output::line(&format!("{name}: next at {}", text(answer, "next"))));
        }
        SchedulesCommand::Remove { name } => {
            let answer = client.delete(&format!("/queue/schedules/{}", segment(&name))).await?;
            show(global, &answer, |_| output::line(&format!("{name} is removed")));
        }
    }
    Ok(())
}
