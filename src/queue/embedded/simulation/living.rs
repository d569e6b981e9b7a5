//! What happens to workers and time, and what is kept: leases, deaths, new lives, limits, retention.

use std::collections::BTreeSet;

use super::Simulation;
use super::limits::Limit;
use super::model::{LEASE, State};
use super::world::{ABILITIES, ACCOUNTS, MODEL, SCOPES, name, profile};
use crate::queue::store::Reply;

const HOUR: u64 = 3_600_000;

impl Simulation {
    /// A life begins, with or without the former being known as dead.
    pub(super) fn register(&mut self, worker: usize) {
        self.model.workers[worker].lives += 1;
        self.model.workers[worker].heard = None;
        let incarnation = format!("i{worker}-{}", self.model.workers[worker].lives);
        self.register_as(worker, &incarnation);
    }

    fn register_as(&mut self, worker: usize, incarnation: &str) {
        let abilities = self.model.workers[worker].abilities;
        let text = abilities.to_string();
        let account = self.model.workers[worker].account.unwrap_or_default();
        // Some are of an engine that only claims.
        let own = if self.model.workers[worker].lives.is_multiple_of(4) { "own" } else { "own:a" };
        let words = [incarnation, &name(worker), own, &profile(abilities), &text, &text, &LEASE.to_string(), account];
        let mut answer = self.words("register", &words).list().unwrap();
        if answer[0] != Reply::Text("OK".to_owned()) {
            // Its former life ends first, and what that held goes back.
            let former = answer.remove(1).text().unwrap();
            assert_eq!(Some(&former), self.model.workers[worker].incarnation.as_ref());
            self.end(&former);
            answer = self.words("register", &words).list().unwrap();
        }
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
        self.model.workers[worker].incarnation = Some(incarnation.to_owned());
        self.model.workers[worker].lease = self.model.now + LEASE;
        self.subscribe(worker, answer[1] == Reply::Int(1), answer[2] == Reply::Int(1));
    }

    /// A new life, or new abilities in this one.
    pub(super) fn live_anew(&mut self) {
        let worker = self.below(self.model.workers.len());
        if self.one_in(2) {
            let abilities = self.below(ABILITIES.len());
            self.model.workers[worker].abilities = ABILITIES[abilities];
        }
        if self.one_in(3) {
            self.model.workers[worker].account = ACCOUNTS.get(self.below(ACCOUNTS.len() + 1)).copied();
        }
        match self.model.workers[worker].incarnation.clone() {
            Some(incarnation) if self.one_in(2) => self.register_as(worker, &incarnation),
            _ => self.register(worker),
        }
    }

    /// What the reaper does with a life that has ended.
    fn end(&mut self, incarnation: &str) {
        let holds =
            |state: &State| matches!(state, State::Running { incarnation: holder, .. } if holder == incarnation);
        let held: BTreeSet<String> =
            self.model.jobs.iter().filter(|(_, job)| holds(&job.state)).map(|(id, _)| id.clone()).collect();
        assert_eq!(self.words("held", &[incarnation]).texts().unwrap().into_iter().collect::<BTreeSet<_>>(), held);
        if !held.is_empty() {
            assert_eq!(self.words("forget", &[incarnation]), Reply::Int(i64::try_from(held.len()).unwrap()));
        }
        for id in held {
            let fence = self.model.jobs[&id].fence().unwrap().to_owned();
            // Too many deaths are its own fault.
            let to = if self.one_in(5) { State::Over('f', self.model.now) } else { State::Pending };
            self.go(&id, &fence, to, "lost", &["lo", "+1"]);
        }
        assert_eq!(self.words("forget", &[incarnation]), Reply::Int(0));
        for worker in &mut self.model.workers {
            if worker.incarnation.as_deref() == Some(incarnation) {
                worker.incarnation = None;
                worker.assigned = None;
            }
        }
    }

    pub(super) fn pass_time(&mut self) {
        self.model.now += match self.below(40) {
            0 => 40_000,
            1 => [HOUR / 2, HOUR + 1, 8 * 24 * HOUR][self.below(3)],
            _ => self.below(1_500) as u64,
        };
        // Who lives beats; who dies does not, and nobody tells.
        for worker in 0..self.model.workers.len() {
            if let Some(incarnation) = self.model.workers[worker].incarnation.clone()
                && !self.one_in(5)
            {
                self.beat(worker, &incarnation);
            }
        }
        if self.one_in(2) {
            self.few_due();
            self.words("promote", &[]);
            self.model.promote();
        }
    }

    /// The model makes claimable all that is due, a call of the queue's only some, a claim three: so there are no more than those.
    pub(super) fn few_due(&self) {
        let due = |job: &&super::model::Job| matches!(job.state, State::Delayed(due) if due <= self.model.now);
        let due = self.model.jobs.values().filter(due).count();
        for _ in 2..due {
            self.words("promote", &[]);
        }
    }

    fn beat(&mut self, worker: usize, incarnation: &str) {
        self.few_due();
        if self.one_in(6) {
            self.model.workers[worker].loaded = !self.model.workers[worker].loaded;
        }
        let mut words = vec![LEASE.to_string(), incarnation.to_owned()];
        if self.model.workers[worker].loaded {
            words.extend(["1".to_owned(), MODEL.to_owned()]);
            self.model.loaded_until = self.model.now + LEASE;
        } else {
            words.push("0".to_owned());
        }
        // What it holds, and something that it does not.
        let (mut held, mut cancelled) = (Vec::new(), Vec::new());
        for (id, job) in &mut self.model.jobs {
            if let State::Running { incarnation: holder, fence, beaten, .. } = &mut job.state
                && holder == incarnation
            {
                *beaten = true;
                held.extend([id.clone(), fence.clone()]);
                cancelled.extend(job.cancelling.then(|| id.clone()));
            }
        }
        let other = self.any_job(|job| job.letter() != 'r');
        let fence = other.as_ref().and_then(|id| self.model.jobs[id].last_fence.clone()).unwrap_or("1".to_owned());
        held.extend(other.iter().flat_map(|id| [id.clone(), fence.clone()]));
        words.push((held.len() / 2).to_string());
        words.extend(held);
        let mut answers = self.call("heartbeat", &words).list().unwrap().remove(1).list().unwrap();
        let [known, gone, stopped, extra] = <[Reply; 4]>::try_from(answers.remove(0).list().unwrap()).unwrap();
        assert_eq!(known, Reply::Int(1));
        let lost = other.filter(|id| !self.model.adopt(worker, id, &fence));
        assert_eq!(gone.texts().unwrap(), lost.into_iter().collect::<Vec<_>>());
        assert_eq!(stopped.texts().unwrap(), cancelled);
        assert_eq!(extra, Reply::List(Vec::new()));
        self.model.workers[worker].lease = self.model.now + LEASE;
        self.model.promote();
    }

    /// One round of what any process does for all.
    pub(super) fn look_after(&mut self) {
        self.few_due();
        let todo = self.words("todo", &[]).list().unwrap();
        self.model.promote();
        let ended = |worker: &&super::Worker| worker.incarnation.is_some() && worker.lease <= self.model.now;
        let expired: BTreeSet<String> =
            self.model.workers.iter().filter(ended).filter_map(|worker| worker.incarnation.clone()).collect();
        assert_eq!(todo[3].clone().texts().unwrap().into_iter().collect::<BTreeSet<_>>(), expired);
        assert_eq!(todo[4].clone().texts().unwrap().into_iter().collect::<BTreeSet<_>>(), self.model.overdue());
        for incarnation in expired {
            self.end(&incarnation);
        }
        for id in self.model.overdue() {
            let fence = self.model.jobs[&id].fence().unwrap().to_owned();
            let due = self.model.now + self.below(500) as u64;
            let to = if self.one_in(2) { State::Delayed(due) } else { State::Over('f', self.model.now) };
            self.go(&id, &fence, to, "retried", &["at", "+1"]);
        }
        if self.one_in(2) {
            self.settle();
        }
    }

    pub(super) fn settle(&mut self) {
        let mut calls = 0;
        while self.words("settle", &[]) != Reply::Int(0) {
            calls += 1;
            assert!(calls < 1_000, "there is no end to what has to be told");
        }
        self.model.settle();
    }

    pub(super) fn limit(&mut self) {
        let scope = SCOPES[self.below(SCOPES.len())];
        let limit = (!self.one_in(3)).then(|| Limit {
            max_running: self.one_in(2).then(|| self.below(3) as u64),
            rate: self.one_in(2).then(|| ([1, 2, 5, 10][self.below(4)], 1 + self.below(3) as u64)),
            paused: self.one_in(4),
        });
        let text = limit.map_or(String::new(), |limit| limit.text());
        self.words("limit", &[scope, &text]);
        self.model.limits.set(scope, limit);
    }

    pub(super) fn retain(&mut self) {
        let keep = [1_000, 60_000, HOUR][self.below(3)];
        let most = [3, 10, 1_000][self.below(3)];
        let mut calls = 0;
        while self.words("retain", &[&keep.to_string(), &(keep * 2).to_string(), &most.to_string()]) != Reply::Int(0) {
            calls += 1;
            assert!(calls < 1_000, "there is no end to what has to be dropped");
        }
        self.model.retain(keep, keep * 2, most);
        self.model.turns.forget(self.model.now);
    }

    /// By hand. What somebody waits for is not dropped before that one has been told.
    pub(super) fn drop_one(&mut self) {
        let Some(id) = self.any_job(|_| true) else { return };
        let job = &self.model.jobs[&id];
        let expected = match job.letter() {
            _ if job.is_over() && self.model.untold().contains(&id) => "WAITED".to_owned(),
            _ if job.is_over() => "OK".to_owned(),
            letter => letter.to_string(),
        };
        assert_eq!(self.words("drop", &[&id]), Reply::Text(expected.clone()));
        if expected == "OK" {
            self.model.forget(&id);
        }
    }
}
