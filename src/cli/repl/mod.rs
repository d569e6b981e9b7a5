//! `machinist repl`: a console on a running machine, or on the script of a machine that does not run.

mod editor;
mod here;
mod remote;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::editor::{Editor, Entered};
use self::here::Here;
use self::remote::Remote;
use super::run::SettingFlags;
use super::{CliError, Global, output};
use crate::script::{Said, Shown, describe};

#[derive(Clone, Debug, Args)]
pub(crate) struct ReplArgs {
    /// The directory of a machine whose script is taken, in this process; without it the machine that runs is asked.
    dir: Option<PathBuf>,
    /// Evaluate CODE and exit; `-` stands for the standard input, which is taken too when it is no terminal.
    #[arg(short, long, value_name = "CODE")]
    eval: Option<String>,
    /// How long an input may take.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = crate::base::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    flags: SettingFlags,
}

/// A larger script belongs into a file of the machine.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

const HELP: &str = "\
An input is a script: it ends when its brackets are closed, and its variables, functions and imports stay. `m` is what hooks get,
and the functions of the machine's script can be called.

  :help NAME    what the reference says of NAME: http, http::get, retry, save
  :names [PART] what there is with PART in its name
  :vars         the variables
  :timeout TIME how long an input may take from now on
  :reset        begin anew, with the script that is live now
  :quit         leave, as Ctrl-D does; Ctrl-C stops what is being evaluated";

/// Where inputs are evaluated.
enum Ground {
    Remote(Remote),
    Here(Box<Here>),
}

impl Ground {
    async fn open(args: &ReplArgs, global: &Global) -> Result<Self, CliError> {
        Ok(match &args.dir {
            Some(dir) => Self::Here(Box::new(Here::open(dir, &args.flags).await?)),
            None => Self::Remote(Remote::open(global).await?),
        })
    }

    fn names(&self) -> &[String] {
        match self {
            Self::Remote(remote) => &remote.names,
            Self::Here(here) => here.console.names(),
        }
    }

    fn greeting(&self) -> &str {
        match self {
            Self::Remote(remote) => &remote.greeting,
            Self::Here(here) => &here.greeting,
        }
    }

    async fn evaluate(
        &self,
        code: &str,
        limit: Duration,
        cancel: CancellationToken,
        told: mpsc::Sender<Said>,
    ) -> Result<(), CliError> {
        match self {
            Self::Remote(remote) => remote.evaluate(code, limit, cancel, told).await,
            Self::Here(here) => here.evaluate(code, limit, cancel, told).await,
        }
    }

    async fn close(&self) {
        if let Self::Remote(remote) = self {
            remote.close().await;
        }
    }
}

pub(super) async fn execute(args: ReplArgs, global: &Global) -> Result<ExitCode, CliError> {
    let code = match args.eval.as_deref() {
        Some("-") => Some(standard_input()?),
        Some(code) => Some(code.to_owned()),
        None if std::io::stdin().is_terminal() => None,
        None => Some(standard_input()?),
    };
    let mut ground = Ground::open(&args, global).await?;
    let outcome = match code {
        Some(code) => once(&ground, &code, args.timeout, global.json).await,
        None => talk(&mut ground, &args, global).await,
    };
    ground.close().await;
    outcome
}

fn standard_input() -> Result<String, CliError> {
    let mut code = String::new();
    let read = std::io::stdin().take(MAX_INPUT + 1).read_to_string(&mut code);
    read.map_err(|cause| CliError::failed(format!("the standard input: {cause}")))?;
    if code.len() as u64 > MAX_INPUT {
        return Err(CliError::usage("the script has more than 4 MiB"));
    }
    Ok(code)
}

/// One input; a problem is the command's failure.
async fn once(ground: &Ground, code: &str, limit: Duration, json: bool) -> Result<ExitCode, CliError> {
    match evaluate(ground, code, limit, json).await? {
        Some(Said::Value(_)) => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::from(1)),
    }
}

/// Evaluates an input and shows what is said of it as it comes; gives back how it ended. Ctrl-C cancels it.
async fn evaluate(ground: &Ground, code: &str, limit: Duration, json: bool) -> Result<Option<Said>, CliError> {
    let cancel = CancellationToken::new();
    let (told, mut heard) = mpsc::channel(16);
    let listen = async {
        let mut end = None;
        while let Some(said) = heard.recv().await {
            show(&said, json);
            end = Some(said);
        }
        end
    };
    let watch = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            cancel.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // The evaluation gives its end of the channel back when it is over.
        (outcome, end) = async { tokio::join!(ground.evaluate(code, limit, cancel.clone(), told), listen) } => {
            outcome.map(|()| end)
        }
        () = watch => Ok(None),
    }
}

fn show(said: &Said, json: bool) {
    match said {
        said if json => output::line(&serde_json::to_string(said).unwrap_or_default()),
        Said::Printed(text) => output::line(text),
        Said::Value(Shown { kind, text, .. }) if kind != "()" => output::line(text),
        Said::Value(_) => {}
        Said::Problem(problem) => eprintln!("{problem}"),
    }
}

/// Reads, evaluates and prints until the reader has had enough.
async fn talk(ground: &mut Ground, args: &ReplArgs, global: &Global) -> Result<ExitCode, CliError> {
    let mut editor = Editor::new(ground.names())?;
    let mut limit = args.timeout;
    output::line(ground.greeting());
    loop {
        let (given_back, entered) = tokio::task::spawn_blocking(move || {
            let entered = editor.read();
            (editor, entered)
        })
        .await
        .map_err(|cause| CliError::internal(format!("the line editor: {cause}")))?;
        editor = given_back;
        let input = match entered? {
            Entered::Input(input) => input,
            Entered::Nothing => continue,
            Entered::End => return Ok(ExitCode::SUCCESS),
        };
        match command(&input) {
            Some((":quit" | ":exit" | ":q", _)) => return Ok(ExitCode::SUCCESS),
            Some((":help" | ":h" | ":?", "")) => output::line(HELP),
            Some((":help" | ":h" | ":?", name)) => help(name),
            Some((":names", part)) => {
                let names = ground.names().iter().filter(|name| name.contains(part));
                output::line(&names.map(String::as_str).collect::<Vec<_>>().join(" "));
            }
            Some((":vars", _)) => output::line(&editor.variables().join(" ")),
            Some((":timeout", text)) => match crate::base::parse_duration(text) {
                Ok(given) => limit = given,
                Err(why) => eprintln!("error: {why}"),
            },
            Some((":reset", _)) => {
                ground.close().await;
                *ground = Ground::open(args, global).await?;
                editor.set_names(ground.names());
                output::line(ground.greeting());
            }
            Some((word, _)) => eprintln!("error: there is no {word}; :help lists what there is"),
            None => {
                match evaluate(ground, &input, limit, global.json).await {
                    Ok(Some(Said::Value(shown))) => editor.set_variables(shown.variables),
                    Ok(_) => {}
                    // The machine may be back in a moment; what was written is in the history.
                    Err(error) => eprintln!("{error}"),
                }
            }
        }
    }
}

/// `:word rest`, for the console itself.
fn command(input: &str) -> Option<(&str, &str)> {
    let input = input.trim();
    if !input.starts_with(':') {
        return None;
    }
    let (word, rest) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    Some((word, rest.trim()))
}

fn help(name: &str) {
    let found = describe(name);
    if found.is_empty() {
        eprintln!("error: the reference has no {name}; `:names PART` looks for a part of a name");
    } else {
        output::line(&found.join("\n\n"));
    }
}
