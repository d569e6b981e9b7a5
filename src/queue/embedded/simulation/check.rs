//! The queue and the model agree about everything: what lies where, what is counted, and the queue's own audits.

use std::collections::{BTreeMap, BTreeSet};

use super::Simulation;
use super::model::State;
use super::turns::BEFORE;
use super::world::KINDS;

impl Simulation {
    pub(super) fn check(&self) {
        self.check_places();
        self.check_counts();
        let mut ids = vec!["0".to_owned()];
        // Of those that are over the audit finds nothing that the comparison does not; it takes them in now and then.
        let all = self.steps.is_multiple_of(10);
        ids.extend(self.model.jobs.iter().filter(|(_, job)| all || !job.is_over()).map(|(id, _)| id.clone()));
        assert_eq!(self.call("audit", &ids).texts().unwrap(), Vec::<String>::new());
        let mut classes = vec!["0".to_owned()];
        classes.extend(self.class_ids());
        assert_eq!(self.call("audit_classes", &classes).texts().unwrap(), Vec::<String>::new());
        assert_eq!(self.words("audit_pending", &["0"]).texts().unwrap(), Vec::<String>::new());
    }

    /// Each job lies where the model has it, and nowhere else.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "places and times are whole, and no more than 2^53"
    )]
    fn check_places(&self) {
        let data = self.functions.data.borrow();
        let mut expected: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        let mut runs: BTreeMap<String, String> = BTreeMap::new();
        let mut completed: BTreeMap<String, String> = BTreeMap::new();
        for (id, job) in &self.model.jobs {
            let (key, score) = match &job.state {
                State::Pending => (format!("c:{}", job.class().id()), Some(job.place)),
                State::Delayed(due) => ("d".to_owned(), Some(*due)),
                State::Blocked => ("b".to_owned(), None),
                State::Running { deadline, incarnation, fence, beaten, .. } => {
                    runs.insert(id.clone(), format!("{fence} {incarnation}"));
                    if !beaten {
                        continue;
                    }
                    ("r".to_owned(), Some(*deadline))
                }
                State::Over('c', at) => {
                    completed.insert(id.clone(), at.to_string());
                    continue;
                }
                State::Over(how, at) => (format!("f:{how}"), Some(*at)),
            };
            // When a job was blocked is told by nobody.
            let score = score.unwrap_or_else(|| data.score(&key, id).map_or(0, |score| score as u64));
            expected.entry(key).or_default().insert(id.clone(), score);
        }
        let mut keys: BTreeSet<String> = ["d", "b", "r", "f:f", "f:x"].map(str::to_owned).into();
        keys.extend(data.keys_with_prefix("c:").iter().map(ToString::to_string));
        keys.extend(expected.keys().cloned());
        for key in keys {
            let before = if key.starts_with("c:") { BEFORE as f64 } else { 0.0 };
            let found: BTreeMap<String, u64> =
                data.sorted_iter(&key, false).map(|(id, score)| (id.to_string(), (score + before) as u64)).collect();
            assert_eq!(found, expected.remove(&key).unwrap_or_default(), "{key}");
        }
        let held = data.hash("R").into_iter().flatten().map(|(id, run)| {
            let words: Vec<&str> = run.split(' ').collect();
            (id.to_string(), format!("{} {}", words[0], words[2]))
        });
        assert_eq!(held.collect::<BTreeMap<_, _>>(), runs);
        // That the list of the completed has each at its place, so that none is kept for ever, the audit looks at.
        let ends = data.hash("C").into_iter().flatten();
        let ends = ends.map(|(id, end)| (id.to_string(), end.split(' ').nth(1).unwrap_or_default().to_owned()));
        assert_eq!(ends.collect::<BTreeMap<_, _>>(), completed);
        let records = data.keys_with_prefix("j:").iter().map(|key| key[2..].to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(records, self.model.jobs.keys().cloned().collect());
    }

    fn check_counts(&self) {
        let data = self.functions.data.borrow();
        let number = |key: &str, field: &str| -> u64 {
            data.hash(key).and_then(|hash| hash.get(field)).map_or(0, |text| text.parse().unwrap())
        };
        let mut live: BTreeMap<String, u64> = BTreeMap::new();
        for job in self.model.jobs.values().filter(|job| !job.is_over()) {
            *live.entry(job.class().id()).or_default() += 1;
        }
        // A class is kept for those that will come back to it.
        for (_, job) in self.model.jobs.iter().filter(|(_, job)| job.shy_until.is_some()) {
            *live.entry(format!("c{}", job.kind)).or_default() += 1;
        }
        for class in data.hash("cn").into_iter().flat_map(|counts| counts.keys()) {
            assert_eq!(number("cn", class), live.remove(&**class).unwrap_or(0), "live jobs of {class}");
        }
        assert!(live.is_empty(), "{live:?} are counted nowhere");
        for scope in KINDS.iter().flat_map(super::world::Kind::scopes).collect::<BTreeSet<_>>() {
            assert_eq!(number("run", &scope), self.model.running_in(&scope), "{scope}");
        }
        let keys = |name: &str| -> BTreeMap<String, String> {
            data.hash(name).into_iter().flatten().map(|(key, id)| (key.to_string(), id.to_string())).collect()
        };
        assert_eq!(keys("uq"), self.model.unique);
        assert_eq!(keys("ik"), self.model.idempotency);
        let untold = self.model.untold();
        assert!(
            untold.is_empty() || data.list("sl").is_some_and(|list| !list.is_empty()),
            "nobody tells of {untold:?}"
        );
        for (scope, class) in data.keys_with_prefix("pk:").iter().flat_map(|key| {
            data.sorted_iter(key, false).map(move |(class, _)| (key[3..].to_owned(), class.to_string()))
        }) {
            assert_eq!(data.hash("pb").and_then(|held| held.get(&*class)).map(ToString::to_string), Some(scope));
        }
    }
}
