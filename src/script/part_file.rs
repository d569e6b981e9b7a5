//! A file that is written while its content comes: under another name, until it is whole.

use std::fs::File;
use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::call::{ScriptResult, error};
use super::types::HostError;
use crate::host::Rooted;
use crate::queue::FailureClass;

/// Removed again unless it is finished.
pub(super) struct PartFile {
    target: Rooted,
    part: Rooted,
    file: File,
    written: u64,
    hasher: Sha256,
    finished: bool,
}

impl PartFile {
    /// Begins the file at `target`, whose directory is there.
    pub fn create(target: Rooted) -> ScriptResult<Self> {
        let part = target.beside(&format!(".{}.part", uuid::Uuid::new_v4().simple()));
        let file = part.create_new().map_err(|cause| failed(&target, &cause))?;
        Ok(Self { target, part, file, written: 0, hasher: Sha256::new(), finished: false })
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn write(&mut self, bytes: &[u8]) -> ScriptResult<()> {
        self.file.write_all(bytes).map_err(|cause| failed(&self.target, &cause))?;
        self.written += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Puts the file in its place, when its SHA-256 is the one that is wanted; gives back how many bytes it has.
    /// `what` is where they came from.
    pub fn finish(mut self, what: &str, wanted: Option<&str>) -> ScriptResult<i64> {
        if let Some(wanted) = wanted {
            let sum = self.hasher.finalize_reset();
            let sum = sum.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            if !wanted.eq_ignore_ascii_case(&sum) {
                let message = format!("{what}: the SHA-256 of what came is {sum}, wanted is {wanted}");
                return Err(HostError::new("data", FailureClass::Retryable, message).into());
            }
        }
        self.part.rename_to(&self.target).map_err(|cause| failed(&self.target, &cause))?;
        self.finished = true;
        Ok(i64::try_from(self.written).unwrap_or(i64::MAX))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.finished {
            // The job's directory is removed with all that is in it.
            let _ = self.part.remove();
        }
    }
}

fn failed(place: &Rooted, cause: &io::Error) -> Box<rhai::EvalAltResult> {
    error(format!("{}: {cause}", place.shown().display()))
}
