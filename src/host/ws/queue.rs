use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Filter, Frame};

/// Of what waits for one subscriber.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What a subscriber of a shared connection hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Frame(Frame),
    /// The connection broke and is there again: messages may be missing.
    Reconnected,
    /// So many messages were dropped, the oldest first, because the subscriber did not take them in time.
    Lagged(u64),
}

/// What waits for one subscriber. Full, it forgets the oldest and counts: nobody else has to wait.
pub(super) struct Queue {
    pub filter: Filter,
    capacity: usize,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Frames, and that the connection was made again in between.
    events: VecDeque<Option<Frame>>,
    bytes: usize,
    dropped: u64,
}

impl Queue {
    pub fn new(filter: Filter, capacity: usize) -> Self {
        Self { filter, capacity: capacity.max(1), waiting: Mutex::default(), changed: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Whatever panicked in between, a queue is whole after each of its steps.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, frame: Frame) {
        let mut waiting = self.waiting();
        waiting.bytes += frame.byte_count();
        waiting.events.push_back(Some(frame));
        while waiting.events.len() > self.capacity || (waiting.bytes > MAX_BYTES && waiting.events.len() > 1) {
            if let Some(Some(oldest)) = waiting.events.pop_front() {
                waiting.bytes -= oldest.byte_count();
                waiting.dropped += 1;
            }
        }
        drop(waiting);
        self.changed.notify_one();
    }

    pub fn reconnected(&self) {
        let mut waiting = self.waiting();
        // Twice in a row says nothing more than once.
        if waiting.events.back().is_none_or(Option::is_some) {
            waiting.events.push_back(None);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Event> {
        let mut waiting = self.waiting();
        if waiting.dropped > 0 {
            return Some(Event::Lagged(std::mem::take(&mut waiting.dropped)));
        }
        let event = waiting.events.pop_front()?;
        Some(match event {
            Some(frame) => {
                waiting.bytes -= frame.byte_count();
                Event::Frame(frame)
            }
            None => Event::Reconnected,
        })
    }

    pub async fn next(&self) -> Event {
        loop {
            // A notice that comes before the wait is kept.
            if let Some(event) = self.pop() {
                return event;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(capacity: usize) -> Queue {
        Queue::new(Filter { wanted: Vec::new(), blobs: true }, capacity)
    }

    #[test]
    fn a_full_queue_forgets_the_oldest_and_says_how_many() {
        let queue = queue(2);
        let frame = |n: u32| Frame::text(n.to_string());
        (1..=5).for_each(|n| queue.push(frame(n)));
        let events: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(events, [Event::Lagged(3), Event::Frame(frame(4)), Event::Frame(frame(5))]);
        queue.push(frame(6));
        queue.reconnected();
        queue.reconnected();
        let events: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(events, [Event::Frame(frame(6)), Event::Reconnected]);
        assert_eq!(queue.waiting().bytes, 0);
    }

    #[test]
    fn large_messages_are_bounded_by_their_bytes() {
        let queue = queue(1000);
        let big = Frame::Blob(vec![0; MAX_BYTES / 2].into());
        (0..4).for_each(|_| queue.push(big.clone()));
        let events: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(events, [Event::Lagged(2), Event::Frame(big.clone()), Event::Frame(big)]);
        let huge = Frame::Blob(vec![0; MAX_BYTES + 1].into());
        queue.push(huge.clone());
        assert_eq!(queue.pop(), Some(Event::Frame(huge)), "one is always kept");
    }
}
