use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::codec;
use crate::base::Timestamp;
use crate::queue::BrokerError;
use crate::queue::store::Store;

/// When the next delayed job is due, by the store's clock: this machine's own may be wrong.
#[derive(Default)]
pub(super) struct Due {
    next: watch::Sender<Option<Timestamp>>,
    /// Milliseconds by which the store's clock is ahead.
    ahead: AtomicI64,
}

impl Due {
    pub fn now(&self) -> Timestamp {
        let local = Timestamp::now().as_millis();
        Timestamp::from_millis(local.saturating_add_signed(self.ahead.load(Ordering::Relaxed)))
    }

    /// The store's time, and when it has something due, as a function answered: `next` is empty where nothing is delayed.
    pub fn told(&self, now: Timestamp, next: &str) {
        // An answer takes its time: it is never earlier there than we think, so nobody asks too early.
        let ahead = i64::try_from(i128::from(now.as_millis()) - i128::from(Timestamp::now().as_millis()));
        self.ahead.store(ahead.unwrap_or(0), Ordering::Relaxed);
        let next = codec::time(next).ok();
        self.next.send_if_modified(|current| std::mem::replace(current, next) != next);
    }

    /// Something is due at this time; true when that is now.
    pub fn published(&self, at: &str) -> bool {
        let Ok(at) = codec::time(at) else { return false };
        self.next.send_if_modified(|current| {
            let sooner = current.is_none_or(|current| at < current);
            if sooner {
                *current = Some(at);
            }
            sooner
        });
        at <= self.now()
    }

    /// Makes delayed jobs claimable at their time; whoever can run them is woken by that. Ends with `self`.
    pub async fn promote(due: Weak<Self>, store: Arc<dyn Store>) {
        let Some(mut next) = due.upgrade().map(|due| due.next.subscribe()) else { return };
        loop {
            let pause = {
                let Some(due) = due.upgrade() else { return };
                let now = due.now();
                // Of many that are due at once each call takes a few, so that no claim waits for more than those.
                let pause =
                    |at: Timestamp| if at < now { Duration::ZERO } else { at.since(now) + Duration::from_millis(1) };
                next.borrow_and_update().map(pause)
            };
            tokio::select! {
                changed = next.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {
                    let answer = store.call("promote", Vec::new()).await.and_then(|answer| {
                        let [now, next] = <[String; 2]>::try_from(answer.texts()?)
                            .map_err(|_| BrokerError::damaged(&"what is due next is no pair"))?;
                        Ok((codec::time(&now)?, next))
                    });
                    match answer {
                        Ok((now, at)) => match due.upgrade() {
                            Some(due) => due.told(now, &at),
                            None => return,
                        },
                        Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use async_trait::async_trait;
    use tokio::sync::broadcast;

    use super::*;
    use crate::queue::store::{Message, Reply};

    /// A store whose clock is wrong by so much, with one job due a second after it was made.
    struct Skewed {
        by: i64,
        due: Timestamp,
        calls: AtomicUsize,
    }

    impl Skewed {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(Timestamp::now().as_millis().saturating_add_signed(self.by))
        }
    }

    #[async_trait]
    impl Store for Skewed {
        async fn call(&self, _: &'static str, _: Vec<String>) -> Result<Reply, BrokerError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let now = self.now();
            let next = if now < self.due { self.due.as_millis().to_string() } else { String::new() };
            Ok(Reply::List(vec![Reply::Text(now.as_millis().to_string()), Reply::Text(next)]))
        }

        fn messages(&self) -> broadcast::Receiver<Message> {
            broadcast::channel(1).1
        }

        async fn subscribe(&self, _: String) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn unsubscribe(&self, _: String) {}

        async fn job_ids(&self, _: Option<String>) -> Result<(Vec<String>, Option<String>), BrokerError> {
            Ok((Vec::new(), None))
        }

        fn own_channel(&self) -> &'static str {
            "p"
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_makes_nobody_ask_without_end_or_too_late() {
        for by in [-3_600_000, -700, 0, 3_600_000] {
            let mut store = Skewed { by, due: Timestamp::now(), calls: AtomicUsize::new(0) };
            store.due = store.now().plus(Duration::from_secs(1));
            let (store, due) = (Arc::new(store), Arc::new(Due::default()));
            due.told(store.now(), &store.due.as_millis().to_string());
            let promoting = tokio::spawn(Due::promote(Arc::downgrade(&due), Arc::clone(&store) as Arc<dyn Store>));
            let deadline = Timestamp::now().plus(Duration::from_secs(60));
            while due.next.borrow().is_some() {
                assert!(Timestamp::now() < deadline, "{by}: it is never asked for");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // One, or two where the clock goes by whole milliseconds.
            assert!(store.calls.load(Ordering::Relaxed) <= 3, "{by}: {:?}", store.calls);
            assert!(store.now() >= store.due);
            promoting.abort();
        }
    }
}
