//! Submissions: alone and together, with keys, workflows and jobs to wait for.

use std::collections::BTreeMap;

use super::Simulation;
use super::model::{Job, State};
use super::world::{Class, KINDS, name, profile};
use crate::queue::store::Reply;

/// What is handed in.
struct Order {
    id: String,
    kind: usize,
    level: u64,
    timeout: Option<u64>,
    not_before: u64,
    idempotency: String,
    unique: String,
    flow: String,
    runs_anyway: bool,
    depends_on: Vec<String>,
}

impl Order {
    fn words(&self) -> Vec<String> {
        let flags = if self.unique.is_empty() { "-" } else { "u" };
        let mut words = vec![
            self.id.clone(),
            self.level.to_string(),
            KINDS[self.kind].customer.to_owned(),
            Class::of(self.kind).id(),
            self.timeout.map_or("-".to_owned(), |timeout| timeout.to_string()),
            flags.to_owned(),
            self.not_before.to_string(),
            self.idempotency.clone(),
            self.unique.clone(),
            self.flow.clone(),
            if self.runs_anyway { "run" } else { "fail" }.to_owned(),
            self.depends_on.len().to_string(),
        ];
        words.extend(self.depends_on.iter().cloned());
        words.push("s 0  null".to_owned());
        words
    }
}

impl Simulation {
    fn order(&mut self, earlier: &[Order]) -> Order {
        let mut key = |one_in: usize, of: &str| {
            if self.one_in(one_in) { format!("{of}{}", self.below(4)) } else { String::new() }
        };
        let (idempotency, unique, flow) = (key(6, "i"), key(6, "u"), key(6, "f"));
        let id = match self.any_job(|_| true) {
            Some(known) if self.one_in(20) => known,
            _ => {
                self.ids += 1;
                // Not in the order of submission: ties are decided by something else.
                format!("{}j{}", self.below(3), self.ids)
            }
        };
        let mut depends_on = Vec::new();
        if self.one_in(3) {
            // The latest make chains, several a fan-in.
            for _ in 0..self.below(3) {
                let known = self.any_job(|_| true);
                depends_on.extend(known);
            }
            depends_on.extend(earlier.last().map(|order| order.id.clone()));
        }
        if self.one_in(60) {
            depends_on.push("nobody".to_owned());
        }
        depends_on.retain(|dependency| *dependency != id);
        depends_on.sort();
        depends_on.dedup();
        let later = self.one_in(6).then(|| self.below(3_000) as u64);
        Order {
            id,
            kind: self.below(KINDS.len()),
            level: 500 - self.below(3) as u64,
            timeout: self.one_in(3).then(|| 1 + self.below(8_000) as u64),
            not_before: later.map_or(0, |later| self.model.now + later),
            idempotency,
            unique,
            flow,
            runs_anyway: self.one_in(2),
            depends_on,
        }
    }

    pub(super) fn submit(&mut self) {
        let mut orders: Vec<Order> = Vec::new();
        // One alone may be assigned.
        let others = if self.one_in(2) { self.below(3) } else { 0 };
        for _ in 0..=others {
            let order = self.order(&orders);
            orders.push(order);
        }
        let mut words: Vec<String> = orders.iter().map(|order| Class::of(order.kind).id()).collect();
        words.sort();
        words.dedup();
        words.push(String::new());
        words.extend(orders.iter().flat_map(Order::words));
        let idle = self.ready_to_be_assigned();
        let mut answer = self.call("submit", &words).list().unwrap();
        if answer[0] == Reply::Text("NOCLASS".to_owned()) {
            for id in answer.remove(1).texts().unwrap() {
                self.add_class(&Class::parse(&id));
            }
            answer = self.call("submit", &words).list().unwrap();
        }
        let is_known = |index: usize, dependency: &String| {
            self.model.jobs.contains_key(dependency) || orders[..index].iter().any(|earlier| earlier.id == *dependency)
        };
        let stranger = orders.iter().enumerate().find_map(|(index, order)| {
            order.depends_on.iter().find(|dependency| !is_known(index, dependency)).map(|stranger| (index, stranger))
        });
        if let Some((index, stranger)) = stranger {
            let index = Reply::Int(i64::try_from(index).unwrap());
            assert_eq!(answer, [Reply::Text("NODEP".to_owned()), index, Reply::Text(stranger.clone())]);
            return;
        }
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
        let mut expected = Vec::new();
        let mut instead = BTreeMap::new();
        for order in orders {
            expected.extend(self.take_in(order, &mut instead));
        }
        let pending: Vec<usize> =
            (0..expected.len()).step_by(3).filter(|at| expected[at + 1..at + 3] == ["p", "0"]).collect();
        if let Some(id) = self.see_assigned(&idle, pending.len()) {
            assert_eq!(id, expected[pending[0]]);
            "r".clone_into(&mut expected[pending[0] + 1]);
        }
        assert_eq!(answer.remove(1).texts().unwrap(), expected);
    }

    /// What the model makes of it: id, state and whether there was such a job.
    fn take_in(&mut self, order: Order, instead: &mut BTreeMap<String, String>) -> [String; 3] {
        let model = &mut self.model;
        let known = model.idempotency.get(&order.idempotency).or_else(|| model.unique.get(&order.unique)).cloned();
        let known = known.or_else(|| model.jobs.contains_key(&order.id).then(|| order.id.clone()));
        if let Some(known) = known {
            let letter = model.jobs[&known].letter();
            instead.insert(order.id, known.clone());
            return [known, letter.to_string(), "1".to_owned()];
        }
        let kind = &KINDS[order.kind];
        let place = model.turns.place(order.level, kind.customer, &order.flow, model.now);
        // Whoever waits for a job that was there already waits for that one.
        let depends_on: Vec<String> =
            order.depends_on.into_iter().map(|id| instead.get(&id).cloned().unwrap_or(id)).collect();
        let doomed = depends_on.iter().any(|id| model.ended(id) == Some(false)) && !order.runs_anyway;
        let waits = depends_on.into_iter().filter(|id| model.ended(id).is_none()).collect();
        let job = Job {
            place,
            kind: order.kind,
            submitted: model.now,
            timeout: order.timeout.unwrap_or(3_600_000),
            state: State::Pending,
            not_before: order.not_before,
            waits,
            runs_anyway: order.runs_anyway,
            unique: order.unique.clone(),
            idempotency: order.idempotency.clone(),
            cancelling: false,
            ended: 0,
            last_fence: None,
            banned: [].into(),
            shy: None,
            shy_until: None,
        };
        let state = if doomed {
            State::Over('f', model.now)
        } else if !job.waits.is_empty() {
            State::Blocked
        } else if order.not_before > model.now {
            State::Delayed(order.not_before)
        } else {
            State::Pending
        };
        if !order.idempotency.is_empty() {
            model.idempotency.insert(order.idempotency, order.id.clone());
        }
        if !order.unique.is_empty() && !doomed {
            model.unique.insert(order.unique, order.id.clone());
        }
        let job = Job { state, ..job };
        let letter = job.letter();
        model.jobs.insert(order.id.clone(), job);
        [order.id, letter.to_string(), "0".to_owned()]
    }

    /// As the client does: matched by the workers and profiles that the queue knows.
    pub(super) fn add_class(&self, class: &Class) {
        let epoch = self.words("epoch", &[]).text().unwrap();
        let mut words = vec![class.id(), "{}".to_owned(), class.scopes(), epoch];
        if class.is_personal() {
            let known = self.scan("workers");
            let admitted = (0..self.model.workers.len()).filter(|worker| {
                known.iter().any(|(known, abilities)| {
                    *known == name(*worker) && class.admits(*worker, abilities.parse().unwrap())
                })
            });
            words.extend(admitted.map(|worker| format!("w:{}", name(worker))));
        } else {
            let matching = self.scan("profiles").into_iter().filter(|(_, text)| {
                // A profile has no name: nothing of a class that is not personal asks for one.
                class.admits(usize::MAX, text.parse().unwrap())
            });
            words.extend(matching.map(|(id, _)| id));
        }
        assert_eq!(self.call("add_class", &words), Reply::Text("OK".to_owned()));
    }

    /// As the client does when a worker registers: all classes on record are matched against it.
    pub(super) fn subscribe(&self, worker: usize, general: bool, own: bool) {
        let abilities = self.model.workers[worker].abilities;
        let [mut fits, mut mine, mut others] = [const { Vec::new() }; 3];
        for id in self.class_ids() {
            let class = Class::parse(&id);
            match (class.is_personal(), class.admits(worker, abilities)) {
                (false, true) => fits.push(id),
                (false, false) => {}
                (true, true) => mine.push(id),
                (true, false) => others.push(id),
            }
        }
        let say = |profile: &str, how: &str, classes: &[String]| {
            let mut words = vec![profile.to_owned(), how.to_owned()];
            words.extend_from_slice(classes);
            self.call("subscribe", &words);
        };
        if !general {
            say(&profile(abilities), "add", &fits);
            say(&profile(abilities), "done", &[]);
        }
        if !own {
            let personal = format!("w:{}", name(worker));
            say(&personal, "add", &mine);
            say(&personal, "del", &others);
            say(&personal, "done", &[]);
        }
    }
}
