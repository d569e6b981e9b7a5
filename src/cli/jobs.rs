use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::client::{Client, segment};
use super::output::{self, ago, text};
use super::{CliError, Global};
use crate::base::{Timestamp, parse_duration};
use crate::queue::Submission;

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Queue a job, or many from a file of JSON lines.
    Submit(SubmitArgs),
    /// One job with its result and history.
    Get { id: String },
    /// The newest jobs.
    List(ListArgs),
    /// Follow a job to its end; exit code 0 when it completed.
    Watch { id: String },
    /// Cancel jobs, waiting or running.
    Cancel { ids: Vec<String> },
    /// Queue failed or cancelled jobs again.
    Retry { ids: Vec<String> },
    /// Print the JSON Schema of a job.
    Schema,
    /// Why a job does not run: worker by worker, the first reason.
    Explain { id: String },
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Which kind of work, usually a connector's name. Left out with --file.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    service: Option<String>,
    /// The payload as JSON.
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    /// A file with the payload as JSON; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    payload_file: Option<PathBuf>,
    /// -500 to 500, higher runs first.
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Submitting the same key again gives back the first job.
    #[arg(long)]
    key: Option<String>,
    /// The job's id, instead of a new one.
    #[arg(long)]
    id: Option<String>,
    /// Not before so long from now, e.g. 10s.
    #[arg(long)]
    delay: Option<String>,
    /// How long one attempt may take, e.g. 5m.
    #[arg(long)]
    timeout: Option<String>,
    /// How often it is tried in all.
    #[arg(long)]
    attempts: Option<u32>,
    /// A file with one job per line; - for standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Wait for the end; exit code 0 when all completed.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// blocked, delayed, pending, running, completed, failed or cancelled.
    #[arg(long)]
    state: Option<String>,
    #[arg(long)]
    service: Option<String>,
    /// Leave out so many: the next page.
    #[arg(long, value_name = "N")]
    offset: Option<String>,
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: u32,
}

/// Lines of a bulk file in one request.
const BATCH: usize = 2_000;

pub(super) async fn execute(command: JobsCommand, global: &Global) -> Result<ExitCode, CliError> {
    if matches!(command, JobsCommand::Schema) {
        output::json(&schemars::schema_for!(Submission));
        return Ok(ExitCode::SUCCESS);
    }
    let client = Client::new(global)?;
    match command {
        JobsCommand::Schema => Ok(ExitCode::SUCCESS),
        JobsCommand::Submit(args) => match &args.file {
            Some(file) => submit_file(&client, file, &args, global).await,
            None => submit_one(&client, &args, global).await,
        },
        JobsCommand::Get { id } => {
            let job = client.get(&format!("/jobs/{}", segment(&id))).await?;
            output::json(&job);
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::List(args) => list(&client, &args, global).await,
        JobsCommand::Watch { id } => watch(&client, &id, global).await,
        JobsCommand::Explain { id } => explain(&client, &id, global).await,
        JobsCommand::Cancel { ids } => each(&client, &ids, "cancel", global).await,
        JobsCommand::Retry { ids } => each(&client, &ids, "retry", global).await,
    }
}

async fn submit_one(client: &Client, args: &SubmitArgs, global: &Global) -> Result<ExitCode, CliError> {
    let payload = match (&args.payload, &args.payload_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(read_all(path)?),
        (None, None) => None,
    };
    let mut job = Map::new();
    job.insert("service".to_owned(), json!(args.service));
    if let Some(text) = payload {
        let payload: Value =
            serde_json::from_str(&text).map_err(|cause| CliError::usage(format!("the payload is no JSON: {cause}")))?;
        job.insert("payload".to_owned(), payload);
    }
    let fields = [
        ("priority", args.priority.map(Value::from)),
        ("idempotency_key", args.key.clone().map(Value::from)),
        ("id", args.id.clone().map(Value::from)),
        ("timeout", args.timeout.clone().map(Value::from)),
        ("retry", args.attempts.map(|attempts| json!({ "max_attempts": attempts }))),
    ];
    job.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    if let Some(delay) = &args.delay {
        let delay = parse_duration(delay).map_err(CliError::usage)?;
        job.insert("not_before".to_owned(), json!(Timestamp::now().plus(delay)));
    }
    let answer = client.post("/jobs", Some((Value::Object(job).to_string(), "application/json"))).await?;
    let submitted = &answer["jobs"][0];
    if args.wait {
        return watch(client, &text(submitted, "id"), global).await;
    }
    if global.json {
        output::json(submitted);
    } else {
        output::line(&text(submitted, "id"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn submit_file(client: &Client, file: &Path, args: &SubmitArgs, global: &Global) -> Result<ExitCode, CliError> {
    let bar = spinner("queued {pos} jobs {elapsed}");
    let mut ids: Vec<String> = Vec::new();
    let mut batch = String::new();
    let mut lines = open(file)?.lines();
    loop {
        let line =
            lines.next().transpose().map_err(|cause| CliError::failed(format!("{}: {cause}", file.display())))?;
        let end = line.is_none();
        if let Some(line) = line.filter(|line| !line.trim().is_empty()) {
            batch.push_str(&line);
            batch.push('\n');
        }
        if (end || batch.lines().count() >= BATCH) && !batch.is_empty() {
            let body = (std::mem::take(&mut batch), "application/x-ndjson");
            let answer = client.post("/jobs", Some(body)).await.map_err(|error| {
                bar.abandon();
                CliError::refused(format!("{error}\n = note: {} jobs of the file are queued", ids.len()))
            })?;
            ids.extend(answer["jobs"].as_array().into_iter().flatten().map(|job| text(job, "id")));
            bar.set_position(ids.len() as u64);
        }
        if end {
            break;
        }
    }
    bar.finish_and_clear();
    if args.wait {
        return wait_for_all(client, &ids, global).await;
    }
    if global.json {
        output::json(&json!({ "submitted": ids.len(), "ids": ids }));
    } else {
        output::line(&format!("{} jobs queued", ids.len()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Polls the jobs in turn: each has ended before the next is asked for, so the last answer comes when all have.
async fn wait_for_all(client: &Client, ids: &[String], global: &Global) -> Result<ExitCode, CliError> {
    let bar = ProgressBar::new(ids.len() as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(style("{bar:40} {pos}/{len} jobs {elapsed}"));
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for id in ids {
        let mut pause = Duration::from_millis(10);
        let state = loop {
            let job = client.get(&format!("/jobs/{}", segment(id))).await?;
            let state = text(&job, "state");
            if matches!(state.as_str(), "completed" | "failed" | "cancelled") {
                break state;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        };
        *states.entry(state).or_default() += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let completed = states.get("completed").copied().unwrap_or(0);
    if global.json {
        output::json(&json!({ "submitted": ids.len(), "states": states }));
    } else {
        let parts: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        output::line(&format!("{} jobs: {}", ids.len(), parts.join(", ")));
    }
    Ok(if completed == ids.len() as u64 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Shows a job's progress to its end, then its result.
async fn watch(client: &Client, id: &str, global: &Global) -> Result<ExitCode, CliError> {
    let path = format!("/jobs/{}/events", segment(id));
    let terminal = std::io::stderr().is_terminal() && !global.json;
    let bar = ProgressBar::new(100);
    if !terminal {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(style("{bar:40} {pos:>3} % {msg} {elapsed}"));
    let mut end = Value::Null;
    client
        .follow(&path, None, |kind, event| {
            if kind == "end" {
                end = event;
                return true;
            }
            let data = &event["data"];
            if global.json {
                output::line(&event.to_string());
            } else if kind == "progress" && terminal {
                let fraction = data["fraction"].as_f64().unwrap_or(0.0);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
                bar.set_position((fraction.clamp(0.0, 1.0) * 100.0) as u64);
                bar.set_message(text(data, "message"));
            } else {
                let detail = ["message", "line", "why"].iter().find_map(|key| data[*key].as_str());
                let detail = detail.or_else(|| data["failure"]["message"].as_str()).unwrap_or("");
                bar.suspend(|| eprintln!("{} {kind} {detail}", text(&event, "at")));
            }
            false
        })
        .await?;
    bar.finish_and_clear();
    let state = text(&end, "state");
    if global.json {
        output::line(
            &json!({ "id": id, "state": state, "result": end["result"], "failure": end["failure"] }).to_string(),
        );
    } else if state == "completed" {
        output::json(&end["result"]);
    } else {
        let why = end["failure"]["message"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(CliError::failed(format!("job {id} {state}{why}")));
    }
    Ok(if state == "completed" { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

async fn list(client: &Client, args: &ListArgs, global: &Global) -> Result<ExitCode, CliError> {
    let mut path = format!("/jobs?limit={}", args.limit);
    for (name, value) in [("state", &args.state), ("service", &args.service), ("offset", &args.offset)] {
        if let Some(value) = value {
            path = format!("{path}&{name}={}", segment(value));
        }
    }
    let answer = client.get(&path).await?;
    if global.json {
        output::json(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let jobs = answer["jobs"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = jobs
        .map(|job| {
            vec![
                text(job, "id"),
                text(job, "service"),
                text(job, "state"),
                text(job, "attempts"),
                ago(job, "submitted"),
                text(job, "worker"),
                job["failure"]["message"].as_str().unwrap_or("").replace('\n', " "),
            ]
        })
        .collect();
    output::table(&["JOB", "SERVICE", "STATE", "TRIES", "AGE", "WORKER", "FAILURE"], &rows);
    Ok(ExitCode::SUCCESS)
}

async fn explain(client: &Client, id: &str, global: &Global) -> Result<ExitCode, CliError> {
    let answer = client.get(&format!("/jobs/{}/explain", segment(id))).await?;
    if global.json {
        output::json(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("{} is {}: {}", text(&answer, "job"), text(&answer, "state"), text(&answer, "reason")));
    for worker in answer["workers"].as_array().into_iter().flatten() {
        let why = match (worker["mismatch"].as_str(), worker["not_claiming"].as_str()) {
            (Some(mismatch), _) => mismatch.to_owned(),
            (None, Some(why)) => format!("could run it, but claims nothing: {why}"),
            (None, None) => "could run it".to_owned(),
        };
        output::line(&format!("  {}: {why}", text(worker, "worker")));
    }
    Ok(ExitCode::SUCCESS)
}

async fn each(client: &Client, ids: &[String], verb: &str, global: &Global) -> Result<ExitCode, CliError> {
    if ids.is_empty() {
        return Err(CliError::usage(format!("name the jobs to {verb}")));
    }
    for id in ids {
        let answer = client.post(&format!("/jobs/{}/{verb}", segment(id)), None).await?;
        if global.json {
            output::line(&answer.to_string());
        } else {
            output::line(&format!("{} is {}", text(&answer, "id"), text(&answer, "state")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, CliError> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = std::fs::File::open(path).map_err(|cause| CliError::usage(format!("{}: {cause}", path.display())))?;
    Ok(Box::new(BufReader::new(file)))
}

pub(super) fn read_all(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).map_err(|cause| CliError::usage(format!("{}: {cause}", path.display())))?;
    Ok(text)
}

fn spinner(template: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(style(template));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
