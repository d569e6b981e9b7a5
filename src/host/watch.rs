use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::seen::Mark;

/// Entries of directories that are looked at.
const MAX_ENTRIES: u32 = 50_000;
/// A file that was there and is gone may be on its way back, as when an editor saves by renaming.
const ABSENCE: Duration = Duration::from_secs(1);
/// Between two looks for it.
const ABSENCE_LOOK: Duration = Duration::from_millis(50);

/// What counts as the known state of a watched path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A file with this content, or none, as somebody found it who read it.
    Content(Option<Mark>),
    /// As it was when it was looked at last, or as it is now. A directory stands for everything below it, by names, sizes
    /// and times.
    Now,
}

/// The paths to watch.
pub type Watched = BTreeMap<PathBuf, Known>;

/// Tells when the content of any of a set of files changes.
///
/// Events of the file system only say when to look: the directories are watched, since editors rename and Kubernetes swaps
/// links; kinds of events are ignored; contents are compared after `debounce` of quiet, and every `poll` in any case, for
/// file systems that report nothing. A file that goes is waited for a moment before its going counts.
#[derive(Debug)]
pub struct FileWatcher {
    orders: watch::Sender<Orders>,
    changes: mpsc::Receiver<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Orders {
    files: Watched,
    debounce: Duration,
    poll: Duration,
}

impl FileWatcher {
    pub fn start(files: Watched, debounce: Duration, poll: Duration, stop: CancellationToken) -> Self {
        // Taken before this returns, so that no change after it is missed.
        let mut looks = Looks::default();
        looks.take_over(&files);
        let (orders, receiver) = watch::channel(Orders { files, debounce, poll });
        let (changes, receiver_of_changes) = mpsc::channel(1);
        tokio::spawn(run(looks, receiver, changes, stop));
        Self { orders, changes: receiver_of_changes }
    }

    /// Names the files to watch from now on. One that differs from what is known of it has changed.
    pub fn set_files(&self, files: Watched) {
        self.orders.send_modify(|orders| orders.files = files);
    }

    pub fn set_timing(&self, debounce: Duration, poll: Duration) {
        self.orders.send_if_modified(|orders| {
            let differs = (orders.debounce, orders.poll) != (debounce, poll);
            (orders.debounce, orders.poll) = (debounce, poll);
            differs
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
    mut looks: Looks,
    mut orders: watch::Receiver<Orders>,
    changes: mpsc::Sender<()>,
    stop: CancellationToken,
) {
    let (hint, mut hints) = mpsc::channel(1);
    let mut directories = Directories::new(hint);
    let mut current = orders.borrow_and_update().clone();
    let mut look_now = true;
    loop {
        // What came between the reading and a watch that only begins now is found by a look.
        look_now |= directories.renew(&looks);
        if look_now {
            looks = looks.look().await;
        }
        look_now = false;
        if !looks.differ() {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    current = orders.borrow_and_update().clone();
                    looks.take_over(&current.files);
                    look_now = true;
                    continue;
                }
                Some(()) = hints.recv() => {}
                () = tokio::time::sleep(current.poll) => {
                    look_now = true;
                    continue;
                }
            }
        }
        // The trailing edge: quiet for `debounce`, but never put off for ever by a busy directory.
        let latest = Instant::now() + current.debounce * 10;
        while Instant::now() < latest {
            match tokio::time::timeout(current.debounce, hints.recv()).await {
                Ok(Some(())) => {}
                Err(_) => break,
                // Nobody gives hints here.
                Ok(None) => {
                    tokio::time::sleep(current.debounce).await;
                    break;
                }
            }
        }
        let patience = Instant::now() + ABSENCE;
        looks = looks.look().await;
        while looks.lack_one() && Instant::now() < patience {
            tokio::time::sleep(ABSENCE_LOOK).await;
            looks = looks.look().await;
        }
        if looks.differ() {
            looks.accept();
            // One that waits already stands for this change too.
            let _ = changes.try_send(());
        }
    }
}

/// What is known of each path, and what the latest look found.
#[derive(Clone, Debug, Default)]
struct Looks {
    known: BTreeMap<PathBuf, Found>,
    found: BTreeMap<PathBuf, Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Never looked at as a directory: somebody wants to read it as a text.
    Text(Option<Mark>),
    File(Option<Mark>),
    Tree(u64),
}

impl Looks {
    /// Makes `files` the paths that are known.
    fn take_over(&mut self, files: &Watched) {
        let state = |path: &PathBuf, known: &Known| match known {
            Known::Content(mark) => Found::Text(*mark),
            Known::Now => self.known.get(path).copied().unwrap_or_else(|| Found::of(path)),
        };
        self.known = files.iter().map(|(path, known)| (path.clone(), state(path, known))).collect();
        self.found.clone_from(&self.known);
    }

    /// Reads everything again. File systems may hang, and the async workers must not.
    async fn look(self) -> Self {
        let before = self.clone();
        let look = tokio::task::spawn_blocking(move || {
            let again = |(path, known): (&PathBuf, &Found)| {
                let text = matches!(known, Found::Text(_));
                (path.clone(), if text { Found::Text(mark_of(path)) } else { Found::of(path) })
            };
            Self { found: self.known.iter().map(again).collect(), known: self.known }
        });
        look.await.unwrap_or(before)
    }

    fn differ(&self) -> bool {
        self.found != self.known
    }

    fn lack_one(&self) -> bool {
        let there = |found: &Found| matches!(found, Found::Text(Some(_)) | Found::File(Some(_)));
        let gone = |found: &Found| matches!(found, Found::Text(None) | Found::File(None));
        self.known.iter().any(|(path, known)| there(known) && self.found.get(path).is_some_and(gone))
    }

    fn accept(&mut self) {
        self.known.clone_from(&self.found);
    }
}

impl Found {
    fn of(path: &Path) -> Self {
        if !path.is_dir() {
            return Self::File(mark_of(path));
        }
        let mut hasher = DefaultHasher::new();
        hash_directory(path, &mut hasher, &mut MAX_ENTRIES.clone());
        Self::Tree(hasher.finish())
    }
}

fn mark_of(path: &Path) -> Option<Mark> {
    std::fs::read(path).ok().map(|content| Mark::of(&content))
}

/// The directories whose events are hints.
struct Directories {
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<(PathBuf, bool)>,
}

impl Directories {
    fn new(hint: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is reported too, and comparing contents reads them.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = hint.try_send(());
            }
        });
        let watcher =
            watcher.inspect_err(|cause| tracing::warn!("file changes are found by polling only: {cause}")).ok();
        Self { watcher, watched: BTreeSet::new() }
    }

    /// Watches what there is to watch now: links may lead elsewhere, directories may have come. One that was removed and
    /// made again takes a new watch under the old name, so all are asked for again. True when one is new.
    fn renew(&mut self, looks: &Looks) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let mut wanted = BTreeSet::new();
        for (path, found) in &looks.known {
            wanted.extend(path.parent().and_then(nearest).map(|directory| (directory, false)));
            if let Ok(target) = path.canonicalize() {
                wanted.extend(target.parent().map(|directory| (directory.to_owned(), false)));
            }
            if matches!(found, Found::Tree(_)) {
                wanted.insert((path.clone(), true));
            }
        }
        for (directory, _) in self.watched.difference(&wanted) {
            // One that is gone is watched no more anyway.
            let _ = watcher.unwatch(directory);
        }
        for (directory, recursive) in &wanted {
            let mode = if *recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            let outcome = watcher.watch(directory, mode);
            if let Err(cause) = outcome
                && directory.exists()
                && !self.watched.contains(&(directory.clone(), *recursive))
            {
                tracing::warn!("changes in {} are found by polling only: {cause}", directory.display());
            }
        }
        let new = wanted.difference(&self.watched).next().is_some();
        self.watched = wanted;
        new
    }
}

/// The directory itself, or the one above it where it may come to be. The root would tell of everything.
fn nearest(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().find(|path| path.is_dir()).filter(|path| path.parent().is_some()).map(Path::to_owned)
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
    use std::fs;
    use std::os::unix::fs::symlink;

    const QUIET: Duration = Duration::from_millis(20);

    fn watch(files: &[&Path], poll: Duration) -> FileWatcher {
        let files = files.iter().map(|path| (path.to_path_buf(), Known::Now)).collect();
        FileWatcher::start(files, QUIET, poll, CancellationToken::new())
    }

    async fn next_change(watcher: &mut FileWatcher) {
        tokio::time::timeout(Duration::from_secs(10), watcher.changed()).await.expect("a change is noticed");
    }

    #[tokio::test]
    async fn writes_renames_link_swaps_and_removals_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link) = (dir.path().join("plain"), dir.path().join("link"));
        fs::write(&plain, "1").unwrap();
        for (name, text) in [("a", "1"), ("b", "2")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), text).unwrap();
        }
        symlink(dir.path().join("a"), &link).unwrap();
        let mut watcher = watch(&[&plain, &link.join("file")], Duration::from_hours(1));
        fs::write(&plain, "2").unwrap();
        next_change(&mut watcher).await;
        fs::write(dir.path().join("new"), "3").unwrap();
        fs::rename(dir.path().join("new"), &plain).unwrap();
        next_change(&mut watcher).await;
        symlink(dir.path().join("b"), dir.path().join("swap")).unwrap();
        fs::rename(dir.path().join("swap"), &link).unwrap();
        next_change(&mut watcher).await;
        // Where the link leads now.
        fs::write(dir.path().join("b/file"), "4").unwrap();
        next_change(&mut watcher).await;
        fs::remove_file(&plain).unwrap();
        next_change(&mut watcher).await;
    }

    /// As Kubernetes mounts its configuration: the file links into `..data`, which links to a directory that is replaced.
    #[tokio::test]
    async fn a_config_map_that_is_swapped_twice_is_noticed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let publish = |version: &str| {
            let versioned = dir.path().join(format!("..{version}"));
            fs::create_dir(&versioned).unwrap();
            fs::write(versioned.join("machine.rhai"), version).unwrap();
            symlink(format!("..{version}"), dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        };
        publish("1");
        symlink("..data/machine.rhai", dir.path().join("machine.rhai")).unwrap();
        let mut watcher = watch(&[&dir.path().join("machine.rhai")], Duration::from_hours(1));
        for (version, old) in [("2", "1"), ("3", "2")] {
            publish(version);
            fs::remove_dir_all(dir.path().join(format!("..{old}"))).unwrap();
            next_change(&mut watcher).await;
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_removed_and_made_again_goes_on_being_watched() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("connectors/deep/one.rhai");
        // Not there at first: it is waited for.
        let mut watcher = watch(&[&file], Duration::from_hours(1));
        for text in ["1", "2", "3"] {
            let _ = fs::remove_dir_all(dir.path().join("connectors"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            next_change(&mut watcher).await;
            fs::write(&file, format!("{text} and more")).unwrap();
            next_change(&mut watcher).await;
        }
    }

    /// A change through a hard link elsewhere is reported to nobody here, as on a network file system.
    #[tokio::test]
    async fn what_is_not_reported_is_found_by_polling() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (file, other) = (dir.path().join("file"), elsewhere.path().join("file"));
        fs::write(&file, "1").unwrap();
        fs::hard_link(&file, &other).unwrap();
        let mut watcher = watch(&[&file], Duration::from_millis(100));
        fs::write(&other, "2").unwrap();
        next_change(&mut watcher).await;
    }

    #[tokio::test]
    async fn a_file_that_is_away_for_a_moment_has_changed_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "1").unwrap();
        let mut watcher = watch(&[&file], Duration::from_hours(1));
        fs::rename(&file, dir.path().join("file~")).unwrap();
        // Longer than the quiet time, shorter than an absence that counts.
        tokio::time::sleep(QUIET * 10).await;
        fs::write(&file, "2").unwrap();
        next_change(&mut watcher).await;
        let second = tokio::time::timeout(ABSENCE + QUIET * 10, watcher.changed()).await;
        assert!(second.is_err(), "its absence alone is no change");
    }

    #[tokio::test]
    async fn what_changed_between_the_reading_and_the_watching_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "1").unwrap();
        let read = Known::Content(Some(Mark::of(b"1")));
        fs::write(&file, "2").unwrap();
        let files = Watched::from([(file.clone(), read)]);
        let poll = Duration::from_hours(1);
        let mut watcher = FileWatcher::start(files.clone(), QUIET, poll, CancellationToken::new());
        next_change(&mut watcher).await;
        watcher.set_files(files);
        next_change(&mut watcher).await;
    }
}
