use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Entries of directories that are looked at.
const MAX_ENTRIES: u32 = 50_000;

/// Tells when the content of any of a set of files changes.
///
/// A directory stands for everything below it, by names, sizes and times.
///
/// Events of the file system only say when to look: the directories are watched, since editors rename and Kubernetes swaps
/// links; kinds of events are ignored; contents are compared after `debounce` of quiet, and every `poll` in any case, for
/// file systems that report nothing.
#[derive(Debug)]
pub struct FileWatcher {
    files: watch::Sender<BTreeSet<PathBuf>>,
    changes: mpsc::Receiver<()>,
}

impl FileWatcher {
    pub fn start(files: BTreeSet<PathBuf>, debounce: Duration, poll: Duration, stop: CancellationToken) -> Self {
        // Taken before this returns, so that no change after it is missed.
        let known = fingerprint(&files);
        let (files, receiver) = watch::channel(files);
        let (sender, changes) = mpsc::channel(1);
        tokio::spawn(run(known, receiver, sender, debounce, poll, stop));
        Self { files, changes }
    }

    /// Names the files to watch from now on. Their present content counts as known.
    pub fn set_files(&self, files: BTreeSet<PathBuf>) {
        self.files.send_if_modified(|current| {
            let changed = *current != files;
            *current = files;
            changed
        });
    }

    /// Waits for the next change; pending forever once the watcher has stopped. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

async fn run(
    mut known: u64,
    mut files: watch::Receiver<BTreeSet<PathBuf>>,
    changes: mpsc::Sender<()>,
    debounce: Duration,
    poll: Duration,
    stop: CancellationToken,
) {
    let (hint, mut hints) = mpsc::channel(1);
    let mut watched = files.borrow_and_update().clone();
    let mut watcher = watch_directories(&watched, hint.clone());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = files.changed() => {
                if changed.is_err() {
                    return;
                }
                let added = files.borrow_and_update().clone();
                let changed_before = fingerprint(&watched) != known;
                watched = added;
                watcher = watch_directories(&watched, hint.clone());
                known = fingerprint(&watched);
                if changed_before {
                    let _ = changes.try_send(());
                }
                continue;
            }
            Some(()) = hints.recv() => {
                // The trailing edge: quiet for `debounce`, but never put off for ever by a busy directory.
                let latest = tokio::time::Instant::now() + debounce * 10;
                while tokio::time::Instant::now() < latest {
                    match tokio::time::timeout(debounce, hints.recv()).await {
                        Ok(Some(())) => {}
                        Ok(None) | Err(_) => break,
                    }
                }
            }
            () = tokio::time::sleep(poll) => {}
        }
        let now = fingerprint(&watched);
        if now != known {
            known = now;
            // One that waits already stands for this change too.
            let _ = changes.try_send(());
        }
        // Kept alive to here: dropping the watcher ends the hints.
        let _ = &watcher;
    }
}

fn watch_directories(files: &BTreeSet<PathBuf>, hint: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is reported too, and comparing contents reads them.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = hint.try_send(());
        }
    })
    .inspect_err(|cause| tracing::warn!("file changes are found by polling only: {cause}"))
    .ok()?;
    let mut directories: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    let targets: Vec<PathBuf> = files.iter().filter_map(|file| file.canonicalize().ok()).collect();
    directories.extend(targets.iter().filter_map(|file| file.parent()));
    let whole =
        files.iter().filter(|file| file.is_dir()).map(|directory| (directory.as_path(), RecursiveMode::Recursive));
    for (directory, mode) in directories.into_iter().map(|path| (path, RecursiveMode::NonRecursive)).chain(whole) {
        if let Err(cause) = watcher.watch(directory, mode) {
            tracing::warn!("changes in {} are found by polling only: {cause}", directory.display());
        }
    }
    Some(watcher)
}

/// A number that differs when any content does; missing files count as empty of another kind.
fn fingerprint(files: &BTreeSet<PathBuf>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        if file.is_dir() {
            hash_directory(file, &mut hasher, &mut MAX_ENTRIES.clone());
        } else {
            std::fs::read(file).ok().hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Names, sizes and times; the contents of whole trees would be too much to read.
fn hash_directory(directory: &Path, hasher: &mut DefaultHasher, left: &mut u32) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    for path in paths {
        *left = left.saturating_sub(1);
        let Some(metadata) = path.symlink_metadata().ok().filter(|_| *left > 0) else { return };
        path.hash(hasher);
        if metadata.is_dir() {
            hash_directory(&path, hasher, left);
        } else {
            (metadata.len(), metadata.modified().ok()).hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next_change(watcher: &mut FileWatcher) {
        tokio::time::timeout(Duration::from_secs(10), watcher.changed()).await.expect("a change is noticed");
    }

    #[tokio::test]
    async fn writes_renames_link_swaps_and_removals_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link) = (dir.path().join("plain"), dir.path().join("link"));
        std::fs::write(&plain, "1").unwrap();
        for (name, text) in [("a", "1"), ("b", "2")] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), text).unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("a"), &link).unwrap();
        let files = BTreeSet::from([plain.clone(), link.join("file")]);
        let (debounce, poll) = (Duration::from_millis(20), Duration::from_millis(500));
        let mut watcher = FileWatcher::start(files, debounce, poll, CancellationToken::new());
        std::fs::write(&plain, "2").unwrap();
        next_change(&mut watcher).await;
        std::fs::write(dir.path().join("new"), "3").unwrap();
        std::fs::rename(dir.path().join("new"), &plain).unwrap();
        next_change(&mut watcher).await;
        std::os::unix::fs::symlink(dir.path().join("b"), dir.path().join("swap")).unwrap();
        std::fs::rename(dir.path().join("swap"), &link).unwrap();
        next_change(&mut watcher).await;
        std::fs::remove_file(&plain).unwrap();
        next_change(&mut watcher).await;
    }
}
