//! One file per subcommand; errors become exit codes here and nowhere else.

mod api;
mod check;
mod client;
mod config;
mod exit;
mod file_server;
mod jobs;
mod machine;
mod machines;
mod new;
mod openapi;
mod output;
mod plan;
mod queue;
mod repl;
mod run;
mod services;
mod step;
mod test;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use exit::CliError;

use crate::host::process::{EXEC_NAME, exec_main};
use crate::host::reserve_descriptors;

/// Turns a container or a workstation into a machine.
#[derive(Debug, Parser)]
#[command(name = "machinist", version, about, after_help = exit::HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand knows.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Where the machine answers.
    #[arg(long, global = true, env = "MACHINIST_URL", default_value = "http://127.0.0.1:9090")]
    url: String,
    /// `url` stands on the command line.
    #[arg(skip)]
    url_given: bool,
    /// The machine's token, for what changes something.
    #[arg(long, global = true, env = "MACHINIST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print JSON for programs.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the machine in DIR until it is told to stop.
    Run(run::RunArgs),
    /// Tell everything that is wrong with machines, without starting anything.
    Check(check::CheckArgs),
    /// Tell what would start, or what a reload would change on a running machine, without doing it.
    Plan(plan::PlanArgs),
    /// Print the merged settings and where each value comes from.
    Config(config::ConfigArgs),
    /// Submit jobs, look at them, wait for them.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// The queue as a whole: numbers, limits, dead letters, schedules, repair.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// The machine on one screen.
    Status,
    /// All machines on the queue, and those that were there within a day.
    Machines,
    /// List services, or start, stop, restart one.
    Services(services::ServicesArgs),
    /// What services write.
    Logs(services::LogsArgs),
    /// Whether the machine is healthy; exit code 0 when it is.
    Health,
    /// What happened on the machine.
    Events(machine::EventsArgs),
    /// Read the machine's files again now.
    Reload(machine::ReloadArgs),
    /// Finish running jobs, stop services, exit.
    Drain,
    /// Make the first files of a machine or a connector.
    #[command(subcommand)]
    New(new::NewCommand),
    /// Run the tests of scripts, `*_test.rhai`, in a world that they make up.
    Test(test::TestArgs),
    /// Evaluate scripts on a running machine, line by line.
    Repl(repl::ReplArgs),
    /// Print the reference of what scripts can use, or write it with definitions for editors.
    Api(api::ApiArgs),
    /// Print a description of the HTTP API for programs.
    Openapi,
    /// Serve a directory over HTTP.
    FileServer(file_server::FileServerArgs),
    #[command(hide = true)]
    Step(step::StepArgs),
}

/// Enough for a thousand services with their logs.
const DESCRIPTORS: i32 = 4096;

/// Parses the command line and runs what it asks for.
pub fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == EXEC_NAME) {
        return exec_main();
    }
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).map(|mut cli| {
        let given = |matches: &ArgMatches| matches.value_source("url") == Some(ValueSource::CommandLine);
        cli.global.url_given = given(&matches) || matches.subcommand().is_some_and(|(_, inner)| given(inner));
        cli
    });
    match execute(cli.unwrap_or_else(|error| error.exit())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            error.exit_code()
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode, CliError> {
    if matches!(cli.command, Command::Run(_)) {
        reserve_descriptors(DESCRIPTORS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .enable_all()
        .build()
        .map_err(|cause| CliError::internal(format!("no async runtime: {cause}")))?;
    let global = cli.global;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::execute(args).await,
            Command::Check(args) => check::execute(args, &global).await,
            Command::Plan(args) => plan::execute(args, &global).await,
            Command::Config(args) => config::execute(&args, &global),
            Command::Jobs(command) => jobs::execute(command, &global).await,
            Command::Queue(command) => queue::execute(command, &global).await,
            Command::Status => machine::status(&global).await,
            Command::Machines => machines::execute(&global).await,
            Command::Services(args) => services::execute(args, &global).await,
            Command::Logs(args) => services::logs(args, &global).await,
            Command::Health => machine::health(&global).await,
            Command::Events(args) => machine::events(&args, &global).await,
            Command::Reload(args) => machine::reload(&args, &global).await,
            Command::Drain => machine::post(&global, "/drain").await,
            Command::New(command) => new::execute(&command),
            Command::Test(args) => test::execute(args, &global).await,
            Command::Repl(args) => repl::execute(args, &global).await,
            Command::Api(args) => api::execute(&args),
            Command::Openapi => openapi::execute(),
            Command::FileServer(args) => file_server::execute(args).await,
            Command::Step(args) => step::execute(args).await,
        }
    });
    // Threads of scripts that hang do not keep the process.
    runtime.shutdown_background();
    outcome
}
