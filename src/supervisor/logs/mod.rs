//! What services write: read by one thread (`collector`), kept in a ring of recent lines per service, written to files by
//! another (`writer`). Neither can hold up the supervisor.

mod collector;
mod format;
mod ring;
mod writer;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(super) use collector::{Collector, Streams};
use format::Stamp;
use ring::Ring;
use writer::{Target, Writer};

use crate::base::{Name, Timestamp};
use crate::spec::{LogFileFormat, LogLimits};

/// The rate of lines is measured over so long.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// So many of the last lines on standard error, and so much of each, explain the end of a process.
const LAST_LINES: usize = 5;
const LAST_WORDS: usize = 500;

/// One line that a service wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogFilter {
    pub stream: Option<LogStream>,
    /// Lines that match.
    pub grep: Option<regex::bytes::Regex>,
    /// Lines not older than this.
    pub since: Option<Timestamp>,
}

/// Where lines go besides the rings. Cloning shares the threads.
#[derive(Clone)]
pub(super) struct LogSinks {
    files: Option<(Arc<Path>, Writer)>,
    stdout: Option<(LogFileFormat, Writer)>,
}

/// What is kept of one service's output.
#[derive(Clone)]
pub(super) struct ServiceLog {
    inner: Arc<Mutex<Inner>>,
    latest: watch::Sender<u64>,
    /// Lines that were not written or not kept.
    dropped: Arc<AtomicU64>,
}

struct Inner {
    service: Name,
    ring: Ring,
    limits: LogLimits,
    sinks: LogSinks,
    path: Option<Arc<Path>>,
    lost: Arc<dyn Fn(u64) + Send + Sync>,
    rate: Rate,
    watcher: Option<Watcher>,
    last_stderr: LastWords,
}

/// The newest lines on standard error of one incarnation. Their buffers are used again.
#[derive(Default)]
struct LastWords {
    incarnation: u64,
    lines: VecDeque<Vec<u8>>,
}

impl LastWords {
    fn push(&mut self, incarnation: u64, text: &[u8]) {
        if self.incarnation != incarnation {
            self.incarnation = incarnation;
            self.lines.clear();
        }
        let mut line = if self.lines.len() == LAST_LINES { self.lines.pop_front() } else { None }.unwrap_or_default();
        line.clear();
        line.extend_from_slice(&text[..text.len().min(LAST_WORDS)]);
        self.lines.push_back(line);
    }
}

/// Told of the first line that matches.
struct Watcher {
    incarnation: u64,
    pattern: regex::bytes::Regex,
    found: Box<dyn FnOnce() + Send>,
}

/// Counts lines in windows.
struct Rate {
    begun: Instant,
    lines: u64,
    dropped: u64,
}

impl LogStream {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl LogFilter {
    fn takes(&self, stream: LogStream, text: &[u8], at: Timestamp) -> bool {
        self.stream.is_none_or(|wanted| wanted == stream)
            && self.since.is_none_or(|since| at >= since)
            && self.grep.as_ref().is_none_or(|pattern| pattern.is_match(text))
    }
}

impl LogSinks {
    pub fn start(directory: Option<&Path>, passthrough: Option<LogFileFormat>) -> std::io::Result<Self> {
        let files =
            directory.map(|path| Ok::<_, std::io::Error>((path.into(), Writer::start("log-files")?))).transpose()?;
        let stdout =
            passthrough.map(|format| Ok::<_, std::io::Error>((format, Writer::start("log-stdout")?))).transpose()?;
        Ok(Self { files, stdout })
    }

    /// Returns when everything is written, at the latest after `patience`.
    pub fn flush(&self, patience: Duration) {
        let files = self.files.iter().map(|(_, writer)| writer);
        let writers = files.chain(self.stdout.iter().map(|(_, writer)| writer));
        writers.for_each(|writer| writer.flush(patience));
    }
}

impl ServiceLog {
    pub fn new(service: &Name, limits: LogLimits, sinks: LogSinks) -> Self {
        let path = sinks.files.as_ref().map(|(directory, _)| directory.join(format!("{service}.log")).into());
        let dropped = Arc::new(AtomicU64::new(0));
        let (count, name) = (Arc::clone(&dropped), service.to_string());
        let lost: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |lines| {
            count.fetch_add(lines, Ordering::Relaxed);
            metrics::counter!("machinist_service_log_dropped_lines_total", "service" => name.clone()).increment(lines);
        });
        let inner = Inner {
            service: service.clone(),
            ring: Ring::new(limits.ring.as_usize()),
            limits,
            sinks,
            path,
            lost,
            rate: Rate { begun: Instant::now(), lines: 0, dropped: 0 },
            watcher: None,
            last_stderr: LastWords::default(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), latest: watch::Sender::new(0), dropped }
    }

    pub fn set_limits(&self, limits: LogLimits) {
        let mut inner = self.lock();
        inner.ring.set_capacity(limits.ring.as_usize());
        inner.limits = limits;
    }

    /// Lines that a limit or a disk took.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Calls `found` at the first line of this incarnation that matches; replaces an earlier request.
    pub fn watch_for(&self, incarnation: u64, pattern: regex::bytes::Regex, found: impl FnOnce() + Send + 'static) {
        self.lock().watcher = Some(Watcher { incarnation, pattern, found: Box::new(found) });
    }

    /// The last lines on standard error of this incarnation, oldest first.
    pub fn last_stderr(&self, incarnation: u64) -> Vec<String> {
        let inner = self.lock();
        let last = Some(&inner.last_stderr).filter(|last| last.incarnation == incarnation);
        last.into_iter().flat_map(|last| &last.lines).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    /// The newest `limit` lines after `after` that the filter takes, oldest first.
    pub fn lines(&self, after: u64, limit: usize, filter: &LogFilter) -> Vec<LogLine> {
        let inner = self.lock();
        inner.ring.lines(&inner.service, after, limit, &mut |stream, text, at| filter.takes(stream, text, at))
    }

    /// The sequence number of the newest line.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    pub async fn wait(&self, after: u64, timeout: Duration) {
        let mut latest = self.latest.subscribe();
        let _ = tokio::time::timeout(timeout, latest.wait_for(|seq| *seq > after)).await;
    }

    /// Takes what one read gave. `partial` is what came before it of the line that it begins with.
    fn append(&self, incarnation: u64, stream: LogStream, partial: &mut Vec<u8>, mut bytes: &[u8]) {
        let mut inner = self.lock();
        let mut batch = Batch::begin(&mut inner, incarnation, stream);
        if !partial.is_empty() {
            match memchr::memchr(b'\n', bytes) {
                None if partial.len() + bytes.len() < collector::MAX_LINE => {
                    partial.extend_from_slice(bytes);
                    return;
                }
                None => {
                    batch.line(partial);
                    partial.clear();
                }
                Some(end) => {
                    partial.extend_from_slice(&bytes[..end]);
                    batch.line(partial);
                    partial.clear();
                    bytes = &bytes[end + 1..];
                }
            }
        }
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            batch.line(&bytes[..end]);
            bytes = &bytes[end + 1..];
        }
        partial.extend_from_slice(bytes);
        let found = batch.end();
        self.published(inner, found);
    }

    /// The last line may lack its end.
    fn end_of_stream(&self, incarnation: u64, stream: LogStream, partial: &mut Vec<u8>) {
        if partial.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let mut batch = Batch::begin(&mut inner, incarnation, stream);
        batch.line(partial);
        partial.clear();
        let found = batch.end();
        self.published(inner, found);
    }

    fn published(&self, inner: MutexGuard<'_, Inner>, found: Option<Watcher>) {
        let latest = inner.ring.latest();
        drop(inner);
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

/// Lines that were read at once: they share their time, and one write.
struct Batch<'a> {
    inner: &'a mut Inner,
    at: Timestamp,
    incarnation: u64,
    stream: LogStream,
    file: Option<(Stamp, Vec<u8>)>,
    stdout: Option<(Stamp, Vec<u8>)>,
    lines: u64,
    /// How many more lines this window allows.
    allowed: u64,
    found: Option<Watcher>,
}

impl<'a> Batch<'a> {
    fn begin(inner: &'a mut Inner, incarnation: u64, stream: LogStream) -> Self {
        let at = Timestamp::now();
        let service = &inner.service;
        let file = inner.sinks.files.as_ref().filter(|_| inner.limits.file.bytes() > 0);
        let file = file
            .map(|(_, writer)| (Stamp::new(inner.limits.format, at, service, incarnation, stream), writer.buffer()));
        let stdout = inner.sinks.stdout.as_ref();
        let stdout = stdout.map(|(format, writer)| {
            let stamp = match format {
                LogFileFormat::Text => Stamp::passthrough(service),
                LogFileFormat::Json => Stamp::new(*format, at, service, incarnation, stream),
            };
            (stamp, writer.buffer())
        });
        let mut batch = Self { inner, at, incarnation, stream, file, stdout, lines: 0, allowed: u64::MAX, found: None };
        batch.meter();
        batch
    }

    /// Begins a new window when the last is over, and says what it had dropped.
    fn meter(&mut self) {
        let rate = u64::from(self.inner.limits.rate);
        if rate == 0 {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.inner.rate.begun) >= RATE_WINDOW {
            let dropped = self.inner.rate.dropped;
            self.inner.rate = Rate { begun: now, lines: 0, dropped: 0 };
            if dropped > 0 {
                self.put(format!("[machinist] {dropped} lines were over the limit of {rate} a second").as_bytes());
            }
        }
        self.allowed = (rate * RATE_WINDOW.as_secs()).saturating_sub(self.inner.rate.lines);
    }

    fn line(&mut self, text: &[u8]) {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if self.inner.watcher.as_ref().is_some_and(|w| w.incarnation == self.incarnation && w.pattern.is_match(text)) {
            self.found = self.inner.watcher.take();
        }
        if self.stream == LogStream::Stderr && !text.is_empty() {
            self.inner.last_stderr.push(self.incarnation, text);
        }
        if self.allowed == 0 {
            self.inner.rate.dropped += 1;
            return (self.inner.lost)(1);
        }
        self.allowed -= 1;
        self.inner.rate.lines += 1;
        self.put(text);
    }

    fn put(&mut self, text: &[u8]) {
        self.lines += 1;
        self.inner.ring.push(self.at, self.incarnation, self.stream, text);
        if let Some((stamp, buffer)) = &mut self.file {
            stamp.line(text, buffer);
        }
        if let Some((stamp, buffer)) = &mut self.stdout {
            stamp.line(text, buffer);
        }
    }

    fn end(self) -> Option<Watcher> {
        let Self { inner, file, stdout, lines, found, .. } = self;
        if lines > 0 {
            if let (Some((_, writer)), Some((_, text)), Some(path)) = (&inner.sinks.files, file, &inner.path) {
                writer.submit(Target::File(Arc::clone(path)), text, lines, inner.limits.file.bytes(), &inner.lost);
            }
            if let (Some((_, writer)), Some((_, text))) = (&inner.sinks.stdout, stdout) {
                writer.submit(Target::Stdout, text, lines, 0, &inner.lost);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ByteSize;

    fn log(limits: LogLimits) -> ServiceLog {
        ServiceLog::new(&Name::new("web").unwrap(), limits, LogSinks { files: None, stdout: None })
    }

    fn texts(log: &ServiceLog, filter: &LogFilter) -> Vec<String> {
        log.lines(0, 10_000, filter).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn lines_are_split_whatever_the_chunks() {
        let text = b"one\ntwo\r\n\nlast without end";
        for size in 1..=text.len() {
            let log = log(LogLimits::default());
            let mut partial = Vec::new();
            text.chunks(size).for_each(|chunk| log.append(1, LogStream::Stdout, &mut partial, chunk));
            assert_eq!(texts(&log, &LogFilter::default()), ["one", "two", ""], "{size}");
            log.end_of_stream(1, LogStream::Stdout, &mut partial);
            assert_eq!(texts(&log, &LogFilter::default()), ["one", "two", "", "last without end"], "{size}");
        }
    }

    #[test]
    fn an_endless_line_is_cut() {
        let log = log(LogLimits { ring: ByteSize::mib(1), ..LogLimits::default() });
        let mut partial = Vec::new();
        for _ in 0..40 {
            log.append(1, LogStream::Stdout, &mut partial, &[b'x'; 4096]);
        }
        let lines = texts(&log, &LogFilter::default());
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() <= collector::MAX_LINE), "{}", lines.len());
        assert_eq!(lines.iter().map(String::len).sum::<usize>() + partial.len(), 40 * 4096);
    }

    #[test]
    fn filters_choose_and_the_last_words_are_kept() {
        let log = log(LogLimits::default());
        log.append(1, LogStream::Stdout, &mut Vec::new(), b"ready\nworking\n");
        log.append(1, LogStream::Stderr, &mut Vec::new(), b"no memory\n\n");
        let stderr = LogFilter { stream: Some(LogStream::Stderr), ..LogFilter::default() };
        assert_eq!(texts(&log, &stderr), ["no memory", ""]);
        let grep = LogFilter { grep: Some(regex::bytes::Regex::new("^w").unwrap()), ..LogFilter::default() };
        assert_eq!(texts(&log, &grep), ["working"]);
        let later = LogFilter { since: Some(Timestamp::now().plus(Duration::from_secs(9))), ..LogFilter::default() };
        assert!(texts(&log, &later).is_empty());
        assert_eq!(log.last_stderr(1), ["no memory"]);
        for number in 0..10 {
            log.append(2, LogStream::Stderr, &mut Vec::new(), format!("{number}\n").as_bytes());
        }
        assert_eq!(log.last_stderr(2), ["5", "6", "7", "8", "9"]);
        assert!(log.last_stderr(1).is_empty());
    }

    #[test]
    fn lines_over_the_rate_are_dropped_and_counted() {
        let log = log(LogLimits { rate: 2, ..LogLimits::default() });
        for number in 0..50 {
            log.append(1, LogStream::Stdout, &mut Vec::new(), format!("{number}\n").as_bytes());
        }
        assert_eq!(texts(&log, &LogFilter::default()).len(), 20);
        assert_eq!(log.dropped(), 30);
    }
}
