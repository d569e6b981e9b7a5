use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::base::{Name, lock_file};

/// The one directory the engine writes to, held by one engine at a time.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Released by the kernel when the process ends, however it ends.
    _lock: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error(
        "the state directory {} cannot be used: {cause}; name a writable one with state_dir or MACHINIST_STATE_DIR",
        path.display()
    )]
    Unusable { path: PathBuf, cause: io::Error },
    #[error(
        "the state directory {} is in use by another machinist; give this one its own with MACHINIST_STATE_DIR",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("{} is damaged: {cause}; remove it to give this machine a new identity", path.display())]
    Damaged { path: PathBuf, cause: serde_json::Error },
}

/// Who this machine is, over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: Name,
    /// Counts the lives of the engine.
    pub incarnation: u64,
}

impl StateDir {
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let unusable = |cause| StateDirError::Unusable { path: path.to_owned(), cause };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"));
        match lock_file(file.map_err(unusable)?) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(nix::errno::Errno::EWOULDBLOCK) => Err(StateDirError::InUse { path: path.to_owned() }),
            Err(errno) => Err(unusable(errno.into())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a new life: the kept identity with its next incarnation, written down before it is used. `configured`
    /// takes the place of the kept id.
    pub fn begin_life(&self, configured: Option<&Name>) -> Result<Identity, StateDirError> {
        let path = self.path.join("identity.json");
        let unusable = |cause| StateDirError::Unusable { path: path.clone(), cause };
        let kept: Option<Identity> = match std::fs::read(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice(&bytes).map_err(|cause| StateDirError::Damaged { path: path.clone(), cause })?,
            ),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(unusable(cause)),
        };
        let id = configured.cloned().or_else(|| kept.as_ref().map(|kept| kept.id.clone())).unwrap_or_else(new_id);
        let incarnation = kept.map_or(0, |kept| kept.incarnation) + 1;
        let identity = Identity { id, incarnation };
        let text = serde_json::to_vec_pretty(&identity).expect("UNWRAP: an identity is plain data");
        write_by_rename(&path, &text).map_err(unusable)?;
        Ok(identity)
    }
}

fn new_id() -> Name {
    let id = format!("{}-{:06x}", super::host_name(), rand::random::<u32>() & 0xff_ffff);
    Name::new(&id).expect("UNWRAP: a host name of ours with a hexadecimal suffix is a valid name")
}

/// Whoever reads the file sees the old text or the new one, also after a crash.
fn write_by_rename(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_kept_and_lives_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap().begin_life(None).unwrap();
        let second = StateDir::open(dir.path()).unwrap().begin_life(None).unwrap();
        assert_eq!((second.id.clone(), first.incarnation, second.incarnation), (first.id, 1, 2));
        let named = Name::new("gpu-7").unwrap();
        let third = StateDir::open(dir.path()).unwrap().begin_life(Some(&named)).unwrap();
        assert_eq!((third.id, third.incarnation), (named, 3));
    }

    #[test]
    fn one_engine_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateDirError::InUse { .. })));
        drop(held);
        assert!(StateDir::open(dir.path()).is_ok());
    }
}
