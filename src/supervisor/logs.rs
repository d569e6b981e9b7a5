use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::base::{Name, Timestamp};
use crate::spec::LogLimits;

/// A longer line is cut into several.
const MAX_LINE: usize = 64 * 1024;

/// One line that a service wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Grows within a service; the cursor for following.
    pub seq: u64,
    pub at: Timestamp,
    pub service: Name,
    pub incarnation: u64,
    pub stream: LogStream,
    /// Without its line end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// What is kept of one service's output: a ring of recent lines in memory and a file with one predecessor.
#[derive(Clone)]
pub(super) struct ServiceLog {
    inner: Arc<Mutex<Inner>>,
    latest: watch::Sender<u64>,
}

struct Inner {
    service: Name,
    ring: VecDeque<LogLine>,
    ring_bytes: usize,
    limits: LogLimits,
    next_seq: u64,
    file: LogFile,
    passthrough: bool,
    watcher: Option<Watcher>,
    /// The newest line on stderr of each incarnation explains its end.
    last_stderr: Option<(u64, String)>,
}

/// Told of the first line that matches.
struct Watcher {
    incarnation: u64,
    pattern: regex::Regex,
    found: Box<dyn FnOnce() + Send>,
}

impl ServiceLog {
    pub fn new(service: &Name, limits: LogLimits, directory: Option<&Path>, passthrough: bool) -> Self {
        let path = directory.map(|directory| directory.join(format!("{service}.log")));
        let inner = Inner {
            service: service.clone(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            limits,
            next_seq: 1,
            file: LogFile { path, open: None, bytes: 0, lost: 0 },
            passthrough,
            watcher: None,
            last_stderr: None,
        };
        Self { inner: Arc::new(Mutex::new(inner)), latest: watch::Sender::new(0) }
    }

    pub fn set_limits(&self, limits: LogLimits) {
        self.lock().limits = limits;
    }

    /// Calls `found` at the first line of this incarnation that matches; replaces an earlier request.
    pub fn watch_for(&self, incarnation: u64, pattern: regex::Regex, found: impl FnOnce() + Send + 'static) {
        self.lock().watcher = Some(Watcher { incarnation, pattern, found: Box::new(found) });
    }

    pub fn last_stderr(&self, incarnation: u64) -> Option<String> {
        let inner = self.lock();
        inner.last_stderr.as_ref().filter(|(of, _)| *of == incarnation).map(|(_, text)| text.clone())
    }

    /// The newest `limit` lines after `after`, oldest first.
    pub fn lines(&self, after: u64, limit: usize) -> Vec<LogLine> {
        let inner = self.lock();
        let newer = inner.ring.iter().rev().take_while(|line| line.seq > after).take(limit);
        let mut lines: Vec<LogLine> = newer.cloned().collect();
        lines.reverse();
        lines
    }

    pub async fn wait(&self, after: u64, timeout: Duration) {
        let mut latest = self.latest.subscribe();
        let _ = tokio::time::timeout(timeout, latest.wait_for(|seq| *seq > after)).await;
    }

    fn append(&self, incarnation: u64, stream: LogStream, lines: &mut Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let at = Timestamp::now();
        let mut found = None;
        let mut passed = String::new();
        for text in lines.drain(..) {
            if inner.watcher.as_ref().is_some_and(|w| w.incarnation == incarnation && w.pattern.is_match(&text)) {
                found = inner.watcher.take();
            }
            if stream == LogStream::Stderr && !text.is_empty() {
                inner.last_stderr = Some((incarnation, text.chars().take(500).collect()));
            }
            if inner.passthrough {
                let _ = writeln!(passed, "{} | {text}", inner.service);
            }
            let (seq, service) = (inner.next_seq, inner.service.clone());
            inner.push(LogLine { seq, at, service, incarnation, stream, text });
        }
        inner.file.flush();
        let latest = inner.next_seq - 1;
        drop(inner);
        if !passed.is_empty() {
            // Nobody is left to tell when the engine's own output is gone.
            let _ = io::stdout().lock().write_all(passed.as_bytes());
        }
        self.latest.send_replace(latest);
        if let Some(watcher) = found {
            (watcher.found)();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing between lock and unlock can leave the ring half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, line: LogLine) {
        self.next_seq += 1;
        self.file.write(&line, self.limits.file.bytes());
        self.ring_bytes += cost(&line);
        self.ring.push_back(line);
        while self.ring_bytes > self.limits.ring.as_usize() && self.ring.len() > 1 {
            if let Some(old) = self.ring.pop_front() {
                self.ring_bytes -= cost(&old);
            }
        }
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + size_of::<LogLine>()
}

/// `NAME.log`, renamed to `NAME.log.1` when half of the allowed bytes are in it.
struct LogFile {
    path: Option<PathBuf>,
    open: Option<BufWriter<File>>,
    bytes: u64,
    /// Lines that could not be written since the last that could.
    lost: u64,
}

impl LogFile {
    fn write(&mut self, line: &LogLine, limit: u64) {
        if limit == 0 || self.path.is_none() {
            return;
        }
        let stream = match line.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        let text = format!("{} {}#{} {stream} | {}\n", line.at, line.service, line.incarnation, line.text);
        match self.try_write(&text, limit) {
            Ok(()) if self.lost > 0 => {
                let lost = std::mem::take(&mut self.lost);
                let note = format!("{} {} engine | {lost} lines could not be written here\n", line.at, line.service);
                let _ = self.try_write(&note, limit);
            }
            Ok(()) => {}
            Err(cause) => {
                if self.lost == 0 {
                    tracing::warn!(service = %line.service, "log lines are lost, the log file cannot be written: {cause}");
                }
                self.lost += 1;
                metrics::counter!("machinist_service_log_dropped_lines_total", "service" => line.service.to_string())
                    .increment(1);
                self.open = None;
            }
        }
    }

    fn try_write(&mut self, text: &str, limit: u64) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.open.is_some() && self.bytes + text.len() as u64 > limit / 2 {
            if let Some(mut full) = self.open.take() {
                full.flush()?;
            }
            std::fs::rename(path, path.with_extension("log.1"))?;
        }
        if self.open.is_none() {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            self.bytes = file.metadata()?.len();
            self.open = Some(BufWriter::new(file));
        }
        if let Some(file) = &mut self.open {
            file.write_all(text.as_bytes())?;
            self.bytes += text.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.open
            && file.flush().is_err()
        {
            self.open = None;
        }
    }
}

/// Reads one stream of one process until every holder of its other end is gone.
pub(super) async fn pump(fd: OwnedFd, log: ServiceLog, incarnation: u64, stream: LogStream) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(fd) else { return };
    let mut pending: Vec<u8> = Vec::new();
    let mut lines = Vec::new();
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => split(&buffer[..count], &mut pending, &mut lines),
        }
        log.append(incarnation, stream, &mut lines);
    }
    if !pending.is_empty() {
        lines.push(to_text(&pending));
    }
    log.append(incarnation, stream, &mut lines);
}

fn split(bytes: &[u8], pending: &mut Vec<u8>, lines: &mut Vec<String>) {
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        pending.extend_from_slice(&rest[..end]);
        lines.push(to_text(pending));
        pending.clear();
        rest = &rest[end + 1..];
    }
    pending.extend_from_slice(rest);
    while pending.len() >= MAX_LINE {
        let kept = pending.split_off(MAX_LINE);
        lines.push(to_text(pending));
        *pending = kept;
    }
}

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ByteSize;

    #[test]
    fn lines_are_split_whatever_the_chunks() {
        let text = b"one\ntwo\r\n\nlast without end";
        for size in 1..text.len() {
            let (mut pending, mut lines) = (Vec::new(), Vec::new());
            text.chunks(size).for_each(|chunk| split(chunk, &mut pending, &mut lines));
            assert_eq!(lines, ["one", "two", ""]);
            assert_eq!(pending, b"last without end");
        }
        let (mut pending, mut lines) = (Vec::new(), Vec::new());
        split(&vec![b'x'; MAX_LINE * 2 + 1], &mut pending, &mut lines);
        assert_eq!((lines.len(), pending.len()), (2, 1));
    }

    #[test]
    fn the_ring_and_the_file_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::new("web").unwrap();
        let limits = LogLimits { ring: ByteSize(2_000), file: ByteSize(4_000) };
        let log = ServiceLog::new(&name, limits, Some(dir.path()), false);
        for n in 0..1_000 {
            log.append(1, LogStream::Stdout, &mut vec![format!("line {n}")]);
        }
        let lines = log.lines(0, 10_000);
        assert!((2..30).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines.last().unwrap().text, "line 999");
        assert_eq!(log.lines(lines.last().unwrap().seq - 2, 10).len(), 2);
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("web.log") <= 2_000 && size("web.log.1") <= 2_000);
    }
}
