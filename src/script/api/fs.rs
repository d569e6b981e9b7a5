//! `fs::`: files below the machine's directory (read) and the call's work directory (read and write). A job's relative
//! paths begin in its work directory, others in the machine's.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhai::Array;

use super::crypto::digest;
use crate::script::call::{Call, ScriptResult, error};
use crate::script::prelude::*;

/// What a script may read at once.
const MAX_READ: u64 = 8 * 1024 * 1024;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// Files. Read are those below the machine's directory and the job's work directory, written those below the work
/// directory (outside of a job `work` below the state directory) only; neither `..` nor a link leads out. A job's relative
/// paths begin in its work directory, others in the machine's. Everything fails where a path leads elsewhere.
#[export_module]
mod functions {
    /// Whether there is a file or directory `path`.
    #[rhai_fn(return_raw)]
    pub fn exists(path: &str) -> ScriptResult<bool> {
        Ok(readable(path)?.exists())
    }

    /// The length of the file `path` in bytes. Fails where it is not there.
    #[rhai_fn(return_raw)]
    pub fn size(path: &str) -> ScriptResult<i64> {
        let path = readable(path)?;
        let length = std::fs::metadata(&path).map_err(|cause| failed(&path, &cause))?.len();
        Ok(i64::try_from(length).unwrap_or(i64::MAX))
    }

    /// The text of the file `path`. Fails where it is not there, is no UTF-8 text or has more than 8 MiB.
    #[rhai_fn(return_raw)]
    pub fn read_text(path: &str) -> ScriptResult<String> {
        let bytes = read(path)?;
        String::from_utf8(bytes).map_err(|_| error(format!("{path:?} is no UTF-8 text")))
    }

    /// The bytes of the file `path` in base64. Fails where it is not there or has more than 8 MiB.
    #[rhai_fn(return_raw)]
    pub fn read_base64(path: &str) -> ScriptResult<String> {
        Ok(BASE64_STANDARD.encode(read(path)?))
    }

    /// Whether the file `path` is UTF-8 text. Fails where it is not there or has more than 8 MiB.
    #[rhai_fn(return_raw)]
    pub fn is_text(path: &str) -> ScriptResult<bool> {
        Ok(String::from_utf8(read(path)?).is_ok())
    }

    /// The SHA-256 of the file `path`, as 64 hexadecimal digits. Fails where it is not there or has more than 8 MiB.
    #[rhai_fn(return_raw)]
    pub fn sha256(path: &str) -> ScriptResult<String> {
        Ok(digest(&read(path)?))
    }

    /// The names in the directory `path`, sorted, 10,000 at most. Fails where it is not there.
    #[rhai_fn(return_raw)]
    pub fn list(path: &str) -> ScriptResult<Array> {
        let path = readable(path)?;
        let entries = std::fs::read_dir(&path).map_err(|cause| failed(&path, &cause))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).take(10_000).collect();
        names.sort_unstable();
        Ok(names.into_iter().map(Into::into).collect())
    }

    /// Makes the file `path` hold `text`, whatever it held before. Fails where its directory is not there.
    #[rhai_fn(return_raw)]
    pub fn write_text(path: &str, text: &str) -> ScriptResult<()> {
        let path = writable(path)?;
        std::fs::write(&path, text).map_err(|cause| failed(&path, &cause))
    }

    /// Makes the directory `path` and those above it; one that is there is left as it is.
    #[rhai_fn(return_raw)]
    pub fn mkdir(path: &str) -> ScriptResult<()> {
        let path = writable(path)?;
        std::fs::create_dir_all(&path).map_err(|cause| failed(&path, &cause))
    }

    /// Removes the file `path`, or the directory with all that is in it. What is not there is no error.
    #[rhai_fn(return_raw)]
    pub fn remove(path: &str) -> ScriptResult<()> {
        let path = writable(path)?;
        let outcome = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match outcome {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, &cause)),
            _ => Ok(()),
        }
    }
}

fn read(path: &str) -> ScriptResult<Vec<u8>> {
    let path = readable(path)?;
    let length = std::fs::metadata(&path).map_err(|cause| failed(&path, &cause))?.len();
    if length > MAX_READ {
        return Err(error(format!("{} has {length} bytes, a script reads at most {MAX_READ}", path.display())));
    }
    std::fs::read(&path).map_err(|cause| failed(&path, &cause))
}

pub(in crate::script) fn readable(path: &str) -> ScriptResult<PathBuf> {
    let call = Call::current()?;
    let machine_dir = call.machine_dir().to_owned();
    let base = call.work_dir.clone().unwrap_or_else(|| machine_dir.clone());
    let mut roots = vec![machine_dir];
    roots.extend(call.work_dir);
    inside(&base, path, &roots)
}

pub(in crate::script) fn writable(path: &str) -> ScriptResult<PathBuf> {
    let call = Call::current()?;
    let root = call.scratch_dir();
    std::fs::create_dir_all(&root).map_err(|cause| failed(&root, &cause))?;
    inside(&root, path, std::slice::from_ref(&root))
}

/// `path` from `base`, when neither `..` nor a link takes it out of all `roots`.
pub(super) fn inside(base: &Path, path: &str, roots: &[PathBuf]) -> ScriptResult<PathBuf> {
    let full = base.join(path);
    let outside = || error(format!("{path:?} lies outside of the directories that scripts may use"));
    if full.components().any(|part| matches!(part, Component::ParentDir)) || path.contains('\0') {
        return Err(outside());
    }
    // What is there already decides where the path leads; the rest of it is plain.
    let there = full.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()).ok_or_else(outside)?;
    let real = there.canonicalize().map_err(|_| outside())?;
    let allowed = roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| {
        // A root that is not there yet can only be met above it.
        real.starts_with(&root)
    });
    let below_missing_root = roots.iter().any(|root| !root.exists() && full.starts_with(root));
    if allowed || below_missing_root { Ok(full) } else { Err(outside()) }
}

fn failed(path: &Path, cause: &std::io::Error) -> Box<rhai::EvalAltResult> {
    error(format!("{}: {cause}", path.display()))
}
