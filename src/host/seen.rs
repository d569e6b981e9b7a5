use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Tells contents apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(u64);

impl Mark {
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The files that a load has read, with what it found, and those that it looked for in vain: what to watch from then on.
/// Cloning shares the list.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    files: Arc<Mutex<BTreeMap<PathBuf, Option<Mark>>>>,
}

impl Seen {
    /// Reads a text and remembers it.
    pub fn read(&self, path: &Path) -> io::Result<String> {
        let content = fs::read(path);
        self.remember(path, content.as_ref().ok().map(|content| Mark::of(content)));
        String::from_utf8(content?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
    }

    /// Remembers a file as it is, for somebody else to read after this.
    pub fn note(&self, path: &Path) {
        self.remember(path, fs::read(path).ok().map(|content| Mark::of(&content)));
    }

    /// Whether there is such a file; one that is not there is remembered, for it may come.
    pub fn is_file(&self, path: &Path) -> bool {
        let there = path.is_file();
        if !there {
            self.remember(path, None);
        }
        there
    }

    pub fn files(&self) -> BTreeMap<PathBuf, Option<Mark>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was found first counts: whatever was built is built of it.
    fn remember(&self, path: &Path, mark: Option<Mark>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_insert(mark);
    }
}
