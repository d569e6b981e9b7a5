//! `fs::`: files below the machine's directory (read) and the call's work directory (read and write). A job's relative
//! paths begin in its work directory, others in the machine's.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rhai::Array;

use super::crypto::digest;
use crate::host::Rooted;
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
        let place = readable(path)?;
        let length = place.length().map_err(|cause| failed(&place, &cause))?;
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
        let place = readable(path)?;
        let mut names: Vec<String> = place.names().map_err(|cause| failed(&place, &cause))?.take(10_000).collect();
        names.sort_unstable();
        Ok(names.into_iter().map(Into::into).collect())
    }

    /// Makes the file `path` hold `text`, whatever it held before. Fails where its directory is not there.
    #[rhai_fn(return_raw)]
    pub fn write_text(path: &str, text: &str) -> ScriptResult<()> {
        let place = writable(path)?;
        place.write(text.as_bytes()).map_err(|cause| failed(&place, &cause))
    }

    /// Makes the directory `path` and those above it; one that is there is left as it is.
    #[rhai_fn(return_raw)]
    pub fn mkdir(path: &str) -> ScriptResult<()> {
        let place = writable(path)?;
        place.make_dirs().map_err(|cause| failed(&place, &cause))
    }

    /// Removes the file `path`, or the directory with all that is in it. What is not there is no error.
    #[rhai_fn(return_raw)]
    pub fn remove(path: &str) -> ScriptResult<()> {
        let place = writable(path)?;
        place.remove().map_err(|cause| failed(&place, &cause))
    }
}

fn read(path: &str) -> ScriptResult<Vec<u8>> {
    let place = readable(path)?;
    place.read(MAX_READ).map_err(|cause| failed(&place, &cause))
}

/// A path that may be read.
pub(in crate::script) fn readable(path: &str) -> ScriptResult<Rooted> {
    let call = Call::current()?;
    let machine_dir = call.machine_dir().to_owned();
    let base = call.work_dir.clone().unwrap_or_else(|| machine_dir.clone());
    let mut roots = vec![machine_dir];
    // The narrower one first: a work directory may lie below the machine's.
    roots.splice(0..0, call.work_dir);
    rooted(&base, path, &roots)
}

/// A path that may be written.
pub(in crate::script) fn writable(path: &str) -> ScriptResult<Rooted> {
    let call = Call::current()?;
    let root = call.scratch_dir();
    std::fs::create_dir_all(&root).map_err(|cause| error(format!("{}: {cause}", root.display())))?;
    rooted(&root, path, std::slice::from_ref(&root))
}

/// `path` from `base`, below one of `roots`.
fn rooted(base: &Path, path: &str, roots: &[PathBuf]) -> ScriptResult<Rooted> {
    let outside = || error(format!("{path:?} lies outside of the directories that scripts may use"));
    let full = base.join(path);
    if full.components().any(|part| matches!(part, Component::ParentDir)) || path.contains('\0') {
        return Err(outside());
    }
    // A root may be written as what it is, or by a link.
    let written = roots.iter().flat_map(|root| [Some(root.clone()), root.canonicalize().ok()]).flatten();
    let (root, below) = written
        .filter_map(|root| full.strip_prefix(&root).ok().map(|below| (root.clone(), below.to_owned())))
        .max_by_key(|(root, _)| root.components().count())
        .ok_or_else(outside)?;
    Rooted::new(&root, &below).map_err(|cause| error(format!("{}: {cause}", full.display())))
}

/// A directory that a program may begin in: `path` from `base`, when neither `..` nor a link takes it out of all `roots`. The
/// program itself may go wherever its user may.
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

fn failed(place: &Rooted, cause: &std::io::Error) -> Box<rhai::EvalAltResult> {
    error(format!("{}: {cause}", place.shown().display()))
}
