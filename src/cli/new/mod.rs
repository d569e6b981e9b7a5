//! `machinist new`: the first files of a machine or a connector, which pass `check` as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{CliError, output};
use crate::base::Name;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NewCommand {
    /// A directory with a machine's script, settings, test and README.
    Machine(NewMachine),
    /// A connector's script with its test, in a machine's directory.
    Connector(NewConnector),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NewMachine {
    /// The machine's name, which is its directory's and its type.
    name: String,
    /// Where its directory is made. Default: machines/, where there is one, else here.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NewConnector {
    /// The connector's name, by which workers and jobs know it.
    name: String,
    /// The machine's directory.
    #[arg(long, default_value = ".")]
    machine: PathBuf,
}

const MACHINE: [(&str, &str); 4] = [
    ("machine.rhai", include_str!("machine.rhai")),
    ("machine.toml", include_str!("machine.toml")),
    ("machine_test.rhai", include_str!("machine_test.rhai")),
    ("README.md", include_str!("machine.md")),
];

pub(super) fn execute(command: &NewCommand) -> Result<ExitCode, CliError> {
    match command {
        NewCommand::Machine(args) => {
            let name = checked(&args.name)?;
            let parent = args.dir.clone().unwrap_or_else(|| {
                let usual = PathBuf::from("machines");
                if usual.is_dir() { usual } else { PathBuf::from(".") }
            });
            let dir = parent.join(name.as_str());
            let files = MACHINE.map(|(file, text)| (dir.join(file), text));
            make(&name, &files)?;
            output::line(&format!("run it with `machinist run {}`", dir.display()));
        }
        NewCommand::Connector(args) => {
            let name = checked(&args.name)?;
            if !args.machine.join("machine.rhai").is_file() {
                let message = format!("{} is no machine's directory: it has no machine.rhai", args.machine.display());
                return Err(CliError::usage(format!(
                    "{message}; name one with --machine, or make one with `new machine`"
                )));
            }
            let dir = args.machine.join("connectors");
            let files = [
                (dir.join(format!("{name}.rhai")), include_str!("connector.rhai")),
                (dir.join(format!("{name}_test.rhai")), include_str!("connector_test.rhai")),
            ];
            make(&name, &files)?;
            output::line(&format!(
                "have a worker use it, in workers(m) of machine.rhai: #{{ name: \"{name}-0\", connector: \"{name}\" }}"
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn checked(name: &str) -> Result<Name, CliError> {
    Name::new(name).map_err(|cause| CliError::usage(cause.to_string()))
}

/// Writes the files, or none when one of them is there.
fn make(name: &Name, files: &[(PathBuf, &str)]) -> Result<(), CliError> {
    if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        return Err(CliError::failed(format!("{} is there already; nothing was written", path.display())));
    }
    for (path, text) in files {
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(path, text.replace("{{name}}", name.as_str())))
            .map_err(|cause| CliError::failed(format!("{}: {cause}", path.display())))?;
        output::line(&format!("made {}", path.display()));
    }
    Ok(())
}
