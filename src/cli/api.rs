use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{CliError, output};
use crate::script::{definitions, reference};
use crate::telemetry::{EventKind, metrics_page};
use crate::{admin, machine, supervisor, worker};

#[derive(Clone, Debug, Args)]
pub(crate) struct ApiArgs {
    /// Write docs/script-api.md, docs/metrics.md, docs/status.schema.json and scripts/definitions/ below DIR instead of printing
    /// the page.
    #[arg(long)]
    write: bool,
    /// Tell whether the files below DIR are what would be written; exit code 1 when they are not.
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// The source tree.
    #[arg(default_value = ".")]
    dir: PathBuf,
}

const PAGE: &str = "docs/script-api.md";
const METRICS: &str = "docs/metrics.md";
const STATUS: &str = "docs/status.schema.json";
const DEFINITIONS: &str = "scripts/definitions";

pub(super) fn execute(args: &ApiArgs) -> Result<ExitCode, CliError> {
    if args.write {
        for (name, text) in files() {
            write(&args.dir.join(&name), &text)?;
        }
        for path in stale(&args.dir) {
            fs::remove_file(&path).map_err(|cause| CliError::failed(format!("{}: {cause}", path.display())))?;
        }
    } else if args.check {
        let changed = changed(&args.dir);
        if !changed.is_empty() {
            let names: Vec<String> = changed.iter().map(|path| path.display().to_string()).collect();
            let message = format!("not as the source says: {}; run `machinist api --write`", names.join(", "));
            return Err(CliError::failed(message));
        }
    } else {
        output::print(&page());
    }
    Ok(ExitCode::SUCCESS)
}

fn page() -> String {
    let kinds = [machine::event_kinds(), supervisor::event_kinds(), worker::event_kinds(), admin::event_kinds()];
    reference(&kinds.into_iter().flatten().collect::<Vec<EventKind>>())
}

/// What is written, by its path in the source tree.
fn files() -> Vec<(PathBuf, String)> {
    let definitions = definitions().into_iter().map(|(name, text)| (Path::new(DEFINITIONS).join(name), text));
    let status = serde_json::to_string_pretty(&schemars::schema_for!(machine::Announcement)).unwrap_or_default();
    let pages = [(PAGE, page()), (METRICS, metrics_page()), (STATUS, format!("{status}\n"))];
    let pages = pages.map(|(name, text)| (PathBuf::from(name), text));
    pages.into_iter().chain(definitions).collect()
}

/// What below `dir` is not as it would be written.
fn changed(dir: &Path) -> Vec<PathBuf> {
    let differs = |path: &Path, text: &str| fs::read_to_string(path).ok().as_deref() != Some(text);
    let changed = files().into_iter().map(|(name, text)| (dir.join(name), text));
    let changed = changed.filter(|(path, text)| differs(path, text)).map(|(path, _)| path);
    changed.chain(stale(dir)).collect()
}

/// Definitions of what is no more.
fn stale(dir: &Path) -> Vec<PathBuf> {
    let known: Vec<PathBuf> = files().into_iter().map(|(name, _)| dir.join(name)).collect();
    let found = fs::read_dir(dir.join(DEFINITIONS)).into_iter().flatten().flatten().map(|entry| entry.path());
    found.filter(|path| path.to_string_lossy().ends_with(".d.rhai") && !known.contains(path)).collect()
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, text))
        .map_err(|cause| CliError::failed(format!("{}: {cause}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{changed, page};

    #[test]
    fn the_reference_is_as_the_source_says() {
        let changed = changed(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(changed.is_empty(), "run `machinist api --write`: {changed:?}");
    }

    #[test]
    fn every_kind_of_event_is_in_the_reference() {
        let page = page();
        let mut seen = 0;
        let mut missing = Vec::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for module in ["machine", "supervisor", "worker", "queue", "admin", "script"] {
            for file in fs::read_dir(source.join(module)).unwrap() {
                let Ok(text) = fs::read_to_string(file.unwrap().path()) else { continue };
                for kind in
                    text.split("const KIND: &'static str = \"").skip(1).filter_map(|rest| rest.split('"').next())
                {
                    seen += 1;
                    if !page.contains(&format!("| `{kind}` | ")) {
                        missing.push(kind.to_owned());
                    }
                }
            }
        }
        assert!(seen > 20, "the kinds are found");
        assert!(missing.is_empty(), "name these in `event_kinds()` of their module: {missing:?}");
    }
}
