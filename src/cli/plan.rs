use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::client::{Client, segment};
use super::{CliError, Global, check, output};
use crate::admin::ReloadPlan;
use crate::cli::run::SettingFlags;
use crate::spec::{PlannedService, StartPlan, Step};

#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArgs {
    /// The machine's directory; with --running the one that the machine runs.
    dir: Option<PathBuf>,
    /// Ask the machine that runs what a reload would do.
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

/// A reload would change something.
const CHANGES: u8 = 5;

pub(super) async fn execute(args: PlanArgs, global: &Global) -> Result<ExitCode, CliError> {
    if args.running || global.url_given {
        return against_running(&args, global).await;
    }
    let dir = args.dir.unwrap_or_else(|| ".".into());
    let generation = check::check(&dir, &args.flags).await?;
    let generation = generation.map_err(|problems| CliError::configuration(problems.to_string()))?;
    let plan = StartPlan::of(&generation.spec);
    if global.json {
        output::json(&plan);
    } else {
        for warning in &generation.warnings.0 {
            output::line(&format!("{warning}\n"));
        }
        show(&plan);
    }
    Ok(ExitCode::SUCCESS)
}

async fn against_running(args: &PlanArgs, global: &Global) -> Result<ExitCode, CliError> {
    let mut path = "/plan".to_owned();
    if let Some(dir) = &args.dir {
        let real = dir.canonicalize();
        let real = real.map_err(|cause| CliError::configuration(format!("{}: {cause}", dir.display())))?;
        path = format!("/plan?dir={}", segment(&real.to_string_lossy()));
    }
    let answer = Client::new(global)?.post(&path, None).await?;
    let plan: ReloadPlan = serde_json::from_value(answer)
        .map_err(|cause| CliError::internal(format!("the answer is no plan: {cause}")))?;
    if global.json {
        output::json(&plan);
    } else {
        show_changes(&plan);
    }
    Ok(if plan.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}

fn show(plan: &StartPlan) {
    let services: usize = plan.waves.iter().map(Vec::len).sum();
    output::line(&format!("{services} services in {} waves, {} workers", plan.waves.len(), plan.workers.len()));
    for (number, wave) in plan.waves.iter().enumerate() {
        output::line(&format!("\nwave {}", number + 1));
        wave.iter().for_each(service);
    }
    if !plan.workers.is_empty() {
        output::line("\nworkers");
    }
    for worker in &plan.workers {
        output::line(&format!("  {}: connector {}, {} slots", worker.name, worker.connector, worker.slots));
        let needs: Vec<String> = worker.needs.iter().map(ToString::to_string).collect();
        detail("needs", &needs.join(", "));
        for (name, value) in &worker.capabilities {
            detail(name, &value.to_string());
        }
    }
}

fn service(service: &PlannedService) {
    let kind = if service.kind == "service" { String::new() } else { format!(" ({})", service.kind) };
    let critical = if service.critical { ", critical" } else { "" };
    output::line(&format!("  {}{kind}{critical}: {}", service.name, words(&service.command)));
    detail("in", service.cwd.as_deref().unwrap_or(""));
    detail("needs", &service.needs.join(", "));
    let env: Vec<String> = service.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    detail("environment", &env.join(" "));
    let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    detail("ports", &ports.join(", "));
    for (kind, probe) in &service.probes {
        detail(kind, probe);
    }
    detail("schedule", service.schedule.as_deref().unwrap_or(""));
}

fn detail(name: &str, text: &str) {
    if !text.is_empty() {
        output::line(&format!("      {name}: {text}"));
    }
}

/// As one would type it, more or less.
fn words(command: &[String]) -> String {
    let quoted = command.iter().map(|word| {
        let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "\"'$`\\".contains(c));
        if plain { word.clone() } else { format!("{word:?}") }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn show_changes(plan: &ReloadPlan) {
    for warning in &plan.warnings.0 {
        output::line(&format!("{warning}\n"));
    }
    if plan.is_empty() {
        return output::line(&format!("generation {} runs, and nothing differs from it", plan.generation));
    }
    output::line(&format!("what a reload would change of generation {}:", plan.generation));
    for file in &plan.files {
        output::line(&format!("file {}", file.display()));
    }
    for setting in &plan.settings {
        output::line(&format!("setting {setting}"));
    }
    let show = |what: &str, step: &Step| {
        output::line(&format!("{what}{step}"));
        for field in &step.fields {
            output::line(&format!("    {field}"));
        }
    };
    plan.changes.services.iter().for_each(|step| show("", step));
    plan.changes.workers.iter().for_each(|step| show("worker: ", step));
}
