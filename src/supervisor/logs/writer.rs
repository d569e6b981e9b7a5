use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait to be written, over all files: what is written soon is still in the CPU's cache.
const MAX_WAITING: usize = 256 * 1024;
/// How long a reader waits for a slow disk before lines are dropped; a disk that hangs delays nobody for longer.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    File(Arc<Path>),
    /// The engine's own standard output.
    Stdout,
}

/// Writes on a thread of its own, so that a disk or a terminal that hangs holds up nothing but itself.
#[derive(Clone)]
pub(super) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Chunk>,
    bytes: usize,
    /// A chunk is being written.
    busy: bool,
    /// The last wait for room was in vain, and nothing has been written since.
    stalled: bool,
    spare: Vec<Vec<u8>>,
}

struct Chunk {
    target: Target,
    text: Vec<u8>,
    lines: u64,
    limit: u64,
    /// Told how many lines were lost.
    lost: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Writer {
    pub fn start(name: &str) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || write_forever(&writer))?;
        Ok(Self { shared })
    }

    /// A buffer to fill, used before.
    pub fn buffer(&self) -> Vec<u8> {
        self.shared.lock().spare.pop().unwrap_or_default()
    }

    /// Writes `lines` lines. Waits while too much waits already, and drops the lines when that is in vain.
    pub fn submit(&self, target: Target, text: Vec<u8>, lines: u64, limit: u64, lost: &Arc<dyn Fn(u64) + Send + Sync>) {
        let mut queue = self.shared.lock();
        let deadline = Instant::now() + DISK_PATIENCE;
        while queue.bytes > 0 && queue.bytes + text.len() > MAX_WAITING {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.stalled {
                queue.stalled = true;
                drop(queue);
                return lost(lines);
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.bytes += text.len();
        queue.waiting.push_back(Chunk { target, text, lines, limit, lost: Arc::clone(lost) });
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Returns when everything is written, at the latest after `patience`.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.lock();
        while queue.busy || !queue.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_forever(shared: &Shared) {
    let mut files: HashMap<Arc<Path>, LogFile> = HashMap::new();
    loop {
        let mut queue = shared.lock();
        let chunk = loop {
            match queue.waiting.pop_front() {
                Some(chunk) => break chunk,
                None => queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        queue.busy = true;
        drop(queue);
        let outcome = match &chunk.target {
            Target::Stdout => io::stdout().lock().write_all(&chunk.text),
            Target::File(path) => {
                let file = files.entry(Arc::clone(path)).or_insert_with(|| LogFile::new(path));
                file.write(&chunk.text, chunk.limit)
            }
        };
        if let Err(cause) = outcome {
            if let Target::File(path) = &chunk.target {
                let file = files.entry(Arc::clone(path)).or_insert_with(|| LogFile::new(path));
                if !std::mem::replace(&mut file.failing, true) {
                    tracing::warn!("log lines are lost, {} cannot be written: {cause}", path.display());
                }
            }
            (chunk.lost)(chunk.lines);
        } else if let Target::File(path) = &chunk.target
            && let Some(file) = files.get_mut(path)
            && std::mem::take(&mut file.failing)
        {
            tracing::info!("{} can be written again", path.display());
        }
        let mut text = chunk.text;
        let mut queue = shared.lock();
        queue.bytes -= text.len();
        queue.busy = false;
        queue.stalled = false;
        if queue.spare.len() < 4 {
            text.clear();
            queue.spare.push(text);
        }
        drop(queue);
        shared.changed.notify_all();
    }
}

/// `NAME.log`, renamed to `NAME.log.1` when half of the allowed bytes are in it.
struct LogFile {
    path: PathBuf,
    open: Option<File>,
    bytes: u64,
    failing: bool,
}

impl LogFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, bytes: 0, failing: false }
    }

    /// Writes whole lines, rotating between them. On a full disk the older file gives way.
    fn write(&mut self, mut text: &[u8], limit: u64) -> io::Result<()> {
        let half = usize::try_from(limit / 2).unwrap_or(usize::MAX).max(1);
        while !text.is_empty() {
            self.open()?;
            let used = usize::try_from(self.bytes).unwrap_or(usize::MAX);
            let room = half.saturating_sub(used);
            let mut now = text.len();
            if now > room {
                // The lines that still fit; at least one into an empty file.
                now = memchr::memrchr(b'\n', &text[..room]).map_or(0, |end| end + 1);
                if now == 0 && used == 0 {
                    now = memchr::memchr(b'\n', text).map_or(text.len(), |end| end + 1);
                }
            }
            if now == 0 {
                self.rotate()?;
                continue;
            }
            self.append(&text[..now])?;
            text = &text[now..];
        }
        Ok(())
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        for full_before in [false, true] {
            let Some(file) = &mut self.open else { return Ok(()) };
            match file.write_all(text) {
                Ok(()) => {
                    self.bytes += text.len() as u64;
                    return Ok(());
                }
                Err(cause) if cause.kind() == io::ErrorKind::StorageFull && !full_before => {
                    // The oldest lines give way. A part of the text may be in the file already; the line that was cut is
                    // written again whole.
                    std::fs::remove_file(self.older())?;
                }
                Err(cause) => {
                    self.open = None;
                    return Err(cause);
                }
            }
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.open = Some(file);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        std::fs::rename(&self.path, self.older())?;
        self.bytes = 0;
        Ok(())
    }

    fn older(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        PathBuf::from(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_within_their_bytes_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path: Arc<Path> = dir.path().join("web.log").into();
        let writer = Writer::start("test").unwrap();
        let nobody: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(|_| panic!("nothing is lost"));
        for chunk in 0..50 {
            let lines: Vec<String> = (0..20).map(|n| format!("line {chunk}-{n}\n")).collect();
            let text = lines.concat();
            writer.submit(Target::File(Arc::clone(&path)), text.into_bytes(), 20, 2_000, &nobody);
        }
        writer.flush(Duration::from_secs(10));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let (new, old) = (read("web.log"), read("web.log.1"));
        assert!(new.len() <= 1_000 && old.len() <= 1_000 && old.len() > 900, "{} {}", new.len(), old.len());
        assert!(new.ends_with("line 49-19\n"));
        let all = format!("{old}{new}");
        let lines: Vec<&str> = all.lines().collect();
        let expected: Vec<String> = (0..50).flat_map(|c| (0..20).map(move |n| format!("line {c}-{n}"))).collect();
        assert_eq!(lines, expected[expected.len() - lines.len()..]);
    }

    #[test]
    fn a_target_that_cannot_be_written_loses_lines_and_says_how_many() {
        let lost = Arc::new(Mutex::new(0));
        let count = Arc::clone(&lost);
        let counter: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |lines| *count.lock().unwrap() += lines);
        let writer = Writer::start("test").unwrap();
        let path: Arc<Path> = Path::new("/proc/no/such/file.log").into();
        writer.submit(Target::File(path), b"a\nb\n".to_vec(), 2, 1_000, &counter);
        writer.flush(Duration::from_secs(10));
        assert_eq!(*lost.lock().unwrap(), 2);
    }
}
