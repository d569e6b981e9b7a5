use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Event, Level, Observed};
use crate::base::Timestamp;

/// The machine's recent events, bounded, readable by cursor. Cloning gives another handle on the same log; writing never
/// waits for a reader.
#[derive(Clone)]
pub struct EventLog {
    ring: Arc<Mutex<Ring>>,
    latest: watch::Sender<u64>,
}

struct Ring {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
    next_seq: u64,
}

/// The reader's cursor lies before the oldest event still kept; `missed` events are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged {
    pub missed: u64,
}

impl EventLog {
    pub fn new(capacity: usize) -> Self {
        let ring = Ring { events: VecDeque::with_capacity(capacity.min(4096)), capacity: capacity.max(1), next_seq: 1 };
        Self { ring: Arc::new(Mutex::new(ring)), latest: watch::Sender::new(0) }
    }

    /// Writes the log line, counts the metric and appends the entry.
    pub fn emit<E: Observed>(&self, event: &E) {
        event.record();
        let subject = event.subject();
        let message = event.message();
        log_line(E::KIND, event.level(), subject.as_deref(), &message);
        let data = serde_json::to_value(event).unwrap_or(serde_json::Value::Null);
        self.append(E::KIND.to_owned(), event.level(), subject, message, data);
    }

    /// The same for what a script tells, whose kind only the script knows.
    pub fn say(&self, kind: String, level: Level, subject: Option<String>, message: String, data: serde_json::Value) {
        log_line(&kind, level, subject.as_deref(), &message);
        self.append(kind, level, subject, message, data);
    }

    /// The latest events, the oldest first.
    pub fn recent(&self, most: usize) -> Vec<Arc<Event>> {
        let ring = self.lock();
        ring.events.iter().skip(ring.events.len().saturating_sub(most)).cloned().collect()
    }

    fn append(&self, kind: String, level: Level, subject: Option<String>, message: String, data: serde_json::Value) {
        let mut ring = self.lock();
        let seq = ring.next_seq;
        ring.next_seq += 1;
        if ring.events.len() == ring.capacity {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::new(Event { seq, at: Timestamp::now(), level, kind, subject, message, data }));
        drop(ring);
        // Two writers may get here in either order; the cursor only ever grows.
        self.latest.send_if_modified(|latest| {
            let newer = seq > *latest;
            *latest = (*latest).max(seq);
            newer
        });
    }

    /// A reader that begins after event `cursor`; 0 begins with the oldest kept.
    pub fn reader(&self, cursor: u64) -> EventLogReader {
        EventLogReader { log: self.clone(), latest: self.latest.subscribe(), cursor }
    }

    /// The sequence number of the newest event, 0 when there is none.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        // Nothing between lock and unlock can leave the ring half changed.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_line(kind: &str, level: Level, subject: Option<&str>, message: &str) {
    let subject = subject.unwrap_or("");
    match level {
        Level::Info => tracing::info!(kind, subject, "{message}"),
        Level::Warn => tracing::warn!(kind, subject, "{message}"),
        Level::Error => tracing::error!(kind, subject, "{message}"),
    }
}

/// Reads events in order from a cursor.
pub struct EventLogReader {
    log: EventLog,
    latest: watch::Receiver<u64>,
    cursor: u64,
}

impl EventLogReader {
    /// The events after the cursor that are there now, at most `limit`, and how many were lost before them.
    pub fn take(&mut self, limit: usize) -> (Vec<Arc<Event>>, Option<Lagged>) {
        let ring = self.log.lock();
        let oldest = ring.events.front().map_or(ring.next_seq, |event| event.seq);
        let next = self.cursor.saturating_add(1);
        let missed = oldest.saturating_sub(next);
        let lagged = (self.cursor > 0 && missed > 0).then_some(Lagged { missed });
        let skip = usize::try_from(next.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let events: Vec<_> = ring.events.iter().skip(skip).take(limit).cloned().collect();
        drop(ring);
        if let Some(last) = events.last() {
            self.cursor = last.seq;
        }
        (events, lagged)
    }

    /// Waits until there is an event after the cursor. Cancel-safe.
    pub async fn ready(&mut self) {
        let cursor = self.cursor;
        // The log keeps a sender, and this reader keeps the log, so the channel is never closed.
        let _ = self.latest.wait_for(|latest| *latest > cursor).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Tick(u32);
    impl Observed for Tick {
        const KIND: &'static str = "test.tick";
        fn message(&self) -> String {
            format!("tick {}", self.0)
        }
    }

    #[tokio::test]
    async fn a_reader_resumes_at_its_cursor_and_learns_what_it_missed() {
        let log = EventLog::new(3);
        for n in 1..=5 {
            log.emit(&Tick(n));
        }
        let (events, lagged) = log.reader(1).take(10);
        assert_eq!(lagged, Some(Lagged { missed: 1 }));
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4, 5]);

        assert_eq!(log.reader(u64::MAX).take(10).1, None, "a cursor from nowhere gets nothing");

        let mut reader = log.reader(5);
        assert!(reader.take(10).0.is_empty());
        log.emit(&Tick(6));
        reader.ready().await;
        let (events, lagged) = reader.take(10);
        assert_eq!((events.len(), lagged), (1, None));
        assert_eq!(events[0].message, "tick 6");
    }
}
