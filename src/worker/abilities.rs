//! What a worker can do: what the machine's script says of it, and what its backend was found to have. Kept apart, so that either
//! changes without the other; jobs are matched against both together.
//!
//! ```text
//!   to be asked --ask--> asked --answer--> known --60 s, or 10 s after a doubt--> asked again, beside the jobs
//!        ^                                   |
//!        +---- its check fails, another connector, what it needs is down; what was known holds until it answers
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::InventoryStatus;
use crate::base::Timestamp;
use crate::spec::{Capabilities, Inventory};

/// How often a backend is asked what it has: the answer may be large, and takes a backend such as `ComfyUI` a second.
const EVERY: Duration = Duration::from_secs(60);
/// How soon after the last time where a job that was claimed for something found that it is not there.
const DOUBTED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Abilities {
    /// By the machine's script.
    said: Capabilities,
    /// By its backend.
    found: Inventory,
    all: Arc<Capabilities>,
    /// When the backend answered last.
    at: Option<Timestamp>,
    /// Why it did not the last time.
    problem: Option<String>,
    /// When it was asked last. Without it must be, before anything is claimed.
    asked: Option<Instant>,
    /// The connector has something to tell.
    tells: bool,
    doubted: bool,
    /// Counts questions: what answers to an older one is of another backend, or another time.
    question: u64,
    /// An answer to the latest is awaited.
    open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Before anything is claimed.
    First,
    /// Beside it.
    Again,
}

/// What another answer changed.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// What jobs may ask for; old and new.
    Changed(Arc<Capabilities>, Arc<Capabilities>),
    /// There was no answer, for the first time since there was one.
    Failed(String),
}

impl Abilities {
    pub fn new(said: Capabilities) -> Self {
        Self {
            all: Arc::new(said.clone()),
            said,
            found: Inventory::default(),
            at: None,
            problem: None,
            asked: None,
            tells: false,
            doubted: false,
            question: 0,
            open: false,
        }
    }

    pub fn all(&self) -> Arc<Capabilities> {
        Arc::clone(&self.all)
    }

    /// Whether anything that jobs may ask for is another.
    pub fn say(&mut self, said: Capabilities) -> bool {
        self.said = said;
        self.join()
    }

    fn join(&mut self) -> bool {
        let all = self.said.clone().with(&self.found);
        let changed = *self.all != all;
        if changed {
            self.all = Arc::new(all);
        }
        changed
    }

    pub fn due(&self, now: Instant) -> Option<Due> {
        match self.asked {
            None => Some(Due::First),
            Some(_) => self.wait(now).is_zero().then_some(Due::Again),
        }
    }

    /// How long until it is asked again, as far as is known.
    pub fn wait(&self, now: Instant) -> Duration {
        match self.asked {
            None => Duration::ZERO,
            Some(_) if !self.tells || self.open => Duration::MAX,
            Some(at) => (if self.doubted { DOUBTED } else { EVERY }).saturating_sub(now.saturating_duration_since(at)),
        }
    }

    /// Its number is handed in with the answer.
    pub fn ask(&mut self, now: Instant) -> u64 {
        self.asked = Some(now);
        self.doubted = false;
        self.open = true;
        self.question += 1;
        self.question
    }

    /// The backend is gone, or another one: what is known of it holds until it can be asked.
    pub fn is_gone(&mut self) {
        self.asked = None;
        self.open = false;
        self.question += 1;
    }

    /// There is another connector, which may answer where the one before it did not.
    pub fn is_replaced(&mut self) {
        self.is_gone();
        self.problem = None;
    }

    /// A job was claimed for something that is not there.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// `None` of a connector that does not tell what its backend has.
    pub fn answer(&mut self, question: u64, answer: Result<Option<Inventory>, String>, at: Timestamp) -> Option<News> {
        if question != self.question {
            return None;
        }
        self.open = false;
        let found = match answer {
            Err(why) => {
                self.tells = true;
                let first = self.problem.is_none();
                self.problem = Some(why.clone());
                return first.then_some(News::Failed(why));
            }
            Ok(found) => found,
        };
        self.problem = None;
        self.tells = found.is_some();
        self.at = found.is_some().then_some(at);
        self.found = found.unwrap_or_default();
        let before = self.all();
        self.join().then(|| News::Changed(before, self.all()))
    }

    pub fn status(&self) -> Option<InventoryStatus> {
        self.tells.then(|| InventoryStatus {
            at: self.at,
            models: self.found.models.len(),
            problem: self.problem.clone(),
        })
    }
}

/// What is in the first and not in the second.
pub(super) fn without<'a>(these: &'a BTreeSet<String>, those: &'a BTreeSet<String>) -> Vec<&'a str> {
    these.difference(those).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::{Abilities, DOUBTED, Due, EVERY, News};
    use crate::base::Timestamp;
    use crate::spec::{Capabilities, Inventory};

    fn said(more: &Value) -> Capabilities {
        let mut said = json!({ "services": ["s"], "machine_type": "t", "machine": "m", "worker": "w", "pool": "p" });
        said.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(said).unwrap()
    }

    fn found(models: &[&str]) -> Inventory {
        Inventory::read(&json!({ "models": models })).unwrap()
    }

    fn models(abilities: &Abilities) -> Vec<&str> {
        abilities.all.models.iter().map(String::as_str).collect()
    }

    fn ask(abilities: &mut Abilities, now: Instant, answer: Result<Option<Inventory>, String>) -> Option<News> {
        let question = abilities.ask(now);
        abilities.answer(question, answer, Timestamp::now())
    }

    #[test]
    fn either_side_changes_without_the_other() {
        let (mut abilities, now) = (Abilities::new(said(&json!({ "models": ["a"] }))), Instant::now());
        assert!(matches!(ask(&mut abilities, now, Ok(Some(found(&["b"])))), Some(News::Changed(..))));
        assert_eq!(models(&abilities), ["a", "b"]);
        // A GPU is withdrawn, an edit names another model.
        assert!(abilities.say(said(&json!({ "models": ["c"], "hardware": { "gpu_count": 1 } }))));
        assert_eq!(models(&abilities), ["b", "c"]);
        assert!(ask(&mut abilities, now, Ok(Some(found(&["d"])))).is_some());
        assert_eq!((models(&abilities), abilities.all.hardware.gpu_count), (vec!["c", "d"], 1));
        // What is known already is no news, whoever says it.
        assert_eq!(ask(&mut abilities, now, Ok(Some(found(&["c", "d"])))), None);
        assert!(!abilities.say(said(&json!({ "models": ["c", "d"], "hardware": { "gpu_count": 1 } }))));
    }

    #[test]
    fn it_is_asked_first_then_every_minute_and_sooner_where_it_is_doubted() {
        let (mut abilities, mut now) = (Abilities::new(said(&json!({}))), Instant::now());
        assert_eq!(abilities.due(now), Some(Due::First));
        let question = abilities.ask(now);
        assert_eq!(abilities.due(now + 2 * EVERY), None, "one at a time");
        abilities.answer(question, Ok(Some(found(&["a"]))), Timestamp::now());
        assert_eq!((abilities.due(now + EVERY / 2), abilities.wait(now + EVERY / 2)), (None, EVERY / 2));
        now += EVERY;
        assert_eq!(abilities.due(now), Some(Due::Again));
        ask(&mut abilities, now, Ok(Some(found(&["a"]))));
        abilities.doubt();
        assert_eq!(abilities.due(now + DOUBTED / 2), None, "a hundred doubts are one");
        assert_eq!(abilities.due(now + DOUBTED), Some(Due::Again));
        ask(&mut abilities, now + DOUBTED, Ok(Some(found(&["a"]))));
        assert_eq!(abilities.due(now + 2 * DOUBTED), None);
    }

    #[test]
    fn a_backend_that_was_gone_is_asked_before_the_next_claim_and_answers_of_before_count_no_more() {
        let (mut abilities, now) = (Abilities::new(said(&json!({}))), Instant::now());
        ask(&mut abilities, now, Ok(Some(found(&["a"]))));
        let late = abilities.ask(now + EVERY);
        abilities.is_gone();
        assert_eq!(
            (abilities.due(now + EVERY), models(&abilities)),
            (Some(Due::First), vec!["a"]),
            "it holds until then"
        );
        assert_eq!(abilities.answer(late, Ok(Some(found(&["b"]))), Timestamp::now()), None);
        assert_eq!(models(&abilities), ["a"]);
        let question = abilities.ask(now + EVERY);
        assert_eq!(
            abilities.answer(late, Ok(Some(found(&["b"]))), Timestamp::now()),
            None,
            "the new one is still awaited"
        );
        abilities.answer(question, Ok(Some(found(&["c"]))), Timestamp::now());
        assert_eq!(models(&abilities), ["c"]);
    }

    #[test]
    fn where_it_does_not_answer_what_was_known_holds_and_that_is_said_once() {
        let (mut abilities, now) = (Abilities::new(said(&json!({}))), Instant::now());
        assert_eq!(ask(&mut abilities, now, Err("no".to_owned())), Some(News::Failed("no".to_owned())));
        assert_eq!(abilities.due(now + EVERY), Some(Due::Again), "it goes on with what the script says");
        ask(&mut abilities, now, Ok(Some(found(&["a"]))));
        assert!(ask(&mut abilities, now, Err("no".to_owned())).is_some());
        assert_eq!(ask(&mut abilities, now, Err("still not".to_owned())), None);
        assert_eq!(models(&abilities), ["a"]);
        let status = abilities.status().unwrap();
        assert_eq!((status.problem.as_deref(), status.models, status.at.is_some()), (Some("still not"), 1, true));
        abilities.is_gone();
        assert_eq!(ask(&mut abilities, now, Err("no".to_owned())), None);
        abilities.is_replaced();
        assert!(ask(&mut abilities, now, Err("no".to_owned())).is_some(), "of another connector it is news");
    }

    #[test]
    fn a_connector_that_tells_nothing_is_asked_no_more_and_leaves_nothing_of_the_one_before() {
        let (mut abilities, now) = (Abilities::new(said(&json!({}))), Instant::now());
        ask(&mut abilities, now, Ok(Some(found(&["a"]))));
        abilities.is_gone();
        assert!(ask(&mut abilities, now, Ok(None)).is_some());
        assert_eq!((models(&abilities), abilities.status()), (vec![], None));
        assert_eq!((abilities.due(now + EVERY), abilities.wait(now)), (None, Duration::MAX));
    }
}
