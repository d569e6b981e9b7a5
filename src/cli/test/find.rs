use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cli::CliError;

/// A file of tests, the script that it tests, and the directory that imports begin in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub file: PathBuf,
    pub subject: PathBuf,
    pub machine_dir: PathBuf,
}

const END: &str = "_test.rhai";
/// Directories are nested less deeply than this, and links may go in circles.
const MAX_DEPTH: usize = 16;

/// The tests below the directories and in the files given, each once.
pub(super) fn tests_in(paths: &[PathBuf]) -> Result<Vec<Found>, CliError> {
    let mut files = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            search(path, 0, &mut files);
        } else if path.is_file() && path.to_string_lossy().ends_with(END) {
            files.insert(path.clone());
        } else if path.is_file() {
            return Err(CliError::usage(format!("{} is no file of tests: it does not end with {END}", path.display())));
        } else {
            return Err(CliError::usage(format!("{} is not there", path.display())));
        }
    }
    Ok(files.into_iter().map(found).collect())
}

fn search(dir: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            let skipped = name.starts_with('.') || matches!(name, "target" | "node_modules");
            if !skipped && depth < MAX_DEPTH {
                search(&path, depth + 1, files);
            }
        } else if name.ends_with(END) {
            // As people would write it.
            files.insert(path.strip_prefix(".").map(Path::to_owned).unwrap_or(path));
        }
    }
}

fn found(file: PathBuf) -> Found {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let subject = file.with_file_name(format!("{}.rhai", name.trim_end_matches(END)));
    let absolute = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
    let machine = absolute.ancestors().skip(1).find(|dir| dir.join("machine.rhai").is_file());
    // What is shared by machines lies in directories named for what they hold.
    let parent = absolute.parent().unwrap_or(Path::new("/"));
    let shared = if parent.ends_with("connectors") || parent.ends_with("lib") { parent.parent() } else { Some(parent) };
    let machine_dir = machine.or(shared).unwrap_or(parent).to_owned();
    Found { file, subject, machine_dir }
}
