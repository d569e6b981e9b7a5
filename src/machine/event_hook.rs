use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::events::{EventsSkipped, HookFailed};
use super::generation::Generation;
use crate::base::Allowance;
use crate::telemetry::{Event, EventLog, Observed};

/// Calls `on_event` for every event, one after the other. What comes faster than it is called, and what comes again and again,
/// is skipped, as an event tells: a hook that restarts a service whenever a service starts makes no storm.
pub(super) async fn call_on_event(
    events: EventLog,
    program: watch::Receiver<Arc<Generation>>,
    stop: CancellationToken,
) {
    let mut reader = events.reader(events.latest());
    let mut failures: BTreeMap<String, u32> = BTreeMap::new();
    let mut repeats = Repeats::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = reader.ready() => {}
        }
        let (batch, lagged) = reader.take(100);
        if let Some(lagged) = lagged {
            let reason = "on_event is too slow".to_owned();
            events.emit(&EventsSkipped { skipped: lagged.missed, reason });
        }
        for event in batch {
            let generation = program.borrow().clone();
            // What the engine says of the hook must not call the hook again.
            let of_hook = event.kind == HookFailed::KIND || event.kind == EventsSkipped::KIND;
            if !generation.program.has_on_event() || of_hook {
                continue;
            }
            match repeats.admit(&event, Instant::now()) {
                Admitted::Yes => {}
                Admitted::No => continue,
                Admitted::SkippedBefore(skipped) => {
                    let reason = format!("{} came more often than once a second", event.kind);
                    events.emit(&EventsSkipped { skipped, reason });
                }
            }
            let outcome = generation.program.on_event(&generation.context, &event, stop.clone()).await;
            if let Err(problem) = outcome {
                let count = failures.entry(generation.hash.clone()).or_default();
                *count += 1;
                // A hook that always fails says so now and then, not at every event.
                if count.is_power_of_two() {
                    events.emit(&HookFailed { hook: "on_event", problem: problem.to_string() });
                }
            }
        }
    }
}

/// How often events of one kind about one subject have come.
#[derive(Default)]
struct Repeats(BTreeMap<(String, Option<String>), Repeat>);

struct Repeat {
    allowance: Allowance,
    skipped: u64,
}

#[derive(Debug, PartialEq)]
enum Admitted {
    Yes,
    /// So many of its like were skipped before it.
    SkippedBefore(u64),
    No,
}

impl Repeats {
    /// Of one kind and subject so many at once, then one a second.
    const AT_ONCE: u32 = 30;
    /// Those that come seldom are forgotten when there are so many.
    const KEPT: usize = 1_000;

    fn admit(&mut self, event: &Event, now: Instant) -> Admitted {
        if self.0.len() >= Self::KEPT {
            self.0.retain(|_, repeat| !repeat.allowance.is_full(now) || repeat.skipped > 0);
        }
        let key = (event.kind.clone(), event.subject.clone());
        let new = || Repeat { allowance: Allowance::new(Self::AT_ONCE, 1.0, now), skipped: 0 };
        let repeat = self.0.entry(key).or_insert_with(new);
        if !repeat.allowance.take(now) {
            repeat.skipped += 1;
            return Admitted::No;
        }
        match std::mem::take(&mut repeat.skipped) {
            0 => Admitted::Yes,
            skipped => Admitted::SkippedBefore(skipped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::telemetry::Level;
    use std::time::Duration;

    #[test]
    fn what_comes_again_and_again_is_skipped_and_counted() {
        let event = |subject: &str| Event {
            seq: 1,
            at: Timestamp::now(),
            level: Level::Info,
            kind: "service.started".to_owned(),
            subject: Some(subject.to_owned()),
            message: String::new(),
            data: serde_json::Value::Null,
        };
        let (mut repeats, begun) = (Repeats::default(), Instant::now());
        let admitted = (0..100).filter(|_| repeats.admit(&event("a"), begun) == Admitted::Yes).count();
        assert_eq!(admitted, 30);
        assert_eq!(repeats.admit(&event("b"), begun), Admitted::Yes, "others are not held up");
        let later = begun + Duration::from_secs(1);
        assert_eq!(repeats.admit(&event("a"), later), Admitted::SkippedBefore(70));
        assert_eq!(repeats.admit(&event("a"), later), Admitted::No);
        for n in 0..5_000 {
            repeats.admit(&event(&n.to_string()), later + Duration::from_secs(2 * n));
        }
        assert!(repeats.0.len() <= Repeats::KEPT);
    }
}
