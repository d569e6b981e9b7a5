use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::base::Name;
use crate::queue::{Broker, ClassStatus, QueueStats};
use crate::spec::Requirement;
use crate::telemetry::{EventLog, Level, Observed};

/// Workers come and go; what nobody matches for so long is worth a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Jobs wait, and no worker matches them.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobsUnmatched {
    service: Name,
    class: String,
    requirement: Requirement,
    pending: u64,
}

impl Observed for JobsUnmatched {
    const KIND: &'static str = "queue.unmatched";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn subject(&self) -> Option<String> {
        Some(self.service.to_string())
    }
    fn message(&self) -> String {
        let requirement = serde_json::to_string(&self.requirement).unwrap_or_default();
        format!(
            "{} jobs of {} wait and no worker matches them: {requirement}; `machinist jobs explain ID` says why of each",
            self.pending, self.service
        )
    }
}

/// Which classes nobody matches, since when, and whether that was told.
#[derive(Default)]
struct Unmatched {
    known: HashMap<String, (Instant, bool)>,
}

impl Unmatched {
    /// Takes a look; answers with what is to be told: each class once until somebody matches it.
    fn look<'a>(&mut self, unmatched: &'a [ClassStatus], now: Instant) -> Vec<&'a ClassStatus> {
        self.known.retain(|id, _| unmatched.iter().any(|class| class.class == *id));
        let mut news = Vec::new();
        for class in unmatched {
            let (since, told) = self.known.entry(class.class.clone()).or_insert((now, false));
            if !*told && now.duration_since(*since) >= PATIENCE {
                *told = true;
                news.push(class);
            }
        }
        news
    }
}

/// Looks every few seconds while jobs wait; sleeps while none does.
pub(super) async fn watch_unmatched(
    broker: Arc<dyn Broker>,
    events: EventLog,
    mut stats: watch::Receiver<Option<QueueStats>>,
    stop: CancellationToken,
) {
    let mut seen = Unmatched::default();
    let looking = async {
        loop {
            let waiting = stats.wait_for(|stats| stats.as_ref().is_some_and(|stats| stats.pending > 0)).await.is_ok();
            if !waiting {
                return;
            }
            // A queue that is away says nothing of workers.
            if let Ok(backlog) = broker.backlog().await {
                for class in seen.look(&backlog.unmatched, Instant::now()) {
                    events.emit(&JobsUnmatched {
                        service: class.service.clone(),
                        class: class.class.clone(),
                        requirement: class.requirement.clone(),
                        pending: class.pending,
                    });
                }
            }
            tokio::time::sleep(PATIENCE).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looking => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_told_once_until_somebody_matches_it() {
        let class = |id: &str| -> ClassStatus {
            let value = serde_json::json!({
                "class": id, "service": "s", "requirement": {}, "pending": 1, "live": 1, "profiles": 0,
            });
            serde_json::from_value(value).unwrap()
        };
        let (a, b) = (class("a"), class("b"));
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut unmatched = Unmatched::default();
        let mut told = |classes: &[ClassStatus], seconds| -> Vec<String> {
            unmatched.look(classes, at(seconds)).iter().map(|class| class.class.clone()).collect()
        };
        let none: [String; 0] = [];
        assert_eq!(told(std::slice::from_ref(&a), 0), none, "a worker may come yet");
        assert_eq!(told(std::slice::from_ref(&a), 4), none);
        assert_eq!(told(&[a.clone(), b.clone()], 5), ["a"]);
        assert_eq!(told(&[a.clone(), b.clone()], 10), ["b"], "each once");
        assert_eq!(told(std::slice::from_ref(&b), 15), none);
        assert_eq!(told(&[a.clone(), b.clone()], 20), none, "somebody matched it meanwhile");
        assert_eq!(told(&[a, b], 25), ["a"]);
    }
}
