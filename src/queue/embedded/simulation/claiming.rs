//! Claims: each job that a worker is given is the one it must be given, and it is given as many as there are.

use super::Simulation;
use super::accounts::Gate;
use super::world::{Class, KINDS};
use crate::queue::store::Reply;

impl Simulation {
    /// The classes that a worker says to have the model of.
    fn warm(&self, worker: usize) -> Vec<Class> {
        let state = &self.model.workers[worker];
        let classes = (0..KINDS.len()).filter(|kind| state.loaded && KINDS[*kind].patience.is_some()).map(Class::of);
        classes.filter(|class| class.admits(worker, state.abilities)).collect()
    }

    /// The jobs of an answer, and their claims.
    pub(super) fn claims(answer: &mut Vec<Reply>) -> Vec<(String, String)> {
        let (jobs, before) = (answer.remove(5).list().unwrap(), answer[4].clone().number::<u64>().unwrap());
        let ids = jobs.chunks(3).map(|job| job[0].clone().text().unwrap());
        ids.zip(before + 1..).map(|(id, fence)| (id, fence.to_string())).collect()
    }

    /// Claims are numbered in their order.
    pub(super) fn count_claim(&mut self, fence: &str) {
        let number: u64 = fence.parse().unwrap();
        assert!(number > self.fence, "claim {number} after claim {}", self.fence);
        self.fence = number;
        self.claims += 1;
    }

    pub(super) fn claim(&mut self) {
        let worker = self.below(self.model.workers.len());
        let Some(incarnation) = self.model.workers[worker].incarnation.clone() else {
            let gone = format!("i{worker}-{}", self.model.workers[worker].lives);
            assert_eq!(self.words("claim", &[&gone, "1", "0", "0"]).texts().unwrap(), ["NOWORKER"]);
            return;
        };
        self.few_due();
        let mut most = 1 + self.below(5);
        let warm = self.warm(worker);
        let account = self.model.workers[worker].account;
        let gate = account.map(|account| self.gate(account));
        self.asks(&incarnation);
        let idle = if self.may_count_as_idle(worker) || self.one_in(2) { "1" } else { "0" };
        let mut words = vec![incarnation, most.to_string(), idle.to_owned(), self.heard(worker)];
        words.extend(warm.iter().map(Class::id));
        if let Some(missed) = self.speak(worker) {
            let mut answer = self.call("claim", &words).list().unwrap();
            self.model.promote();
            assert_eq!(answer.pop().unwrap().texts().unwrap(), ["assigned"]);
            assert_eq!(answer[3], Reply::Int(1));
            assert_eq!(Self::claims(&mut answer), [missed]);
            return;
        }
        let mut tried = false;
        match gate {
            Some(Gate::Held(until)) => return self.claim_in_vain(&words, until),
            Some(Gate::Open { most: room, trial }) => {
                most = most.min(usize::try_from(room).unwrap_or(usize::MAX));
                tried = trial;
            }
            None => {}
        }
        let mut given = 0;
        loop {
            let mut answer = self.call("claim", &words).list().unwrap();
            assert_eq!(answer[0], Reply::Text("OK".to_owned()));
            self.model.promote();
            let said = answer.pop().unwrap().texts().unwrap();
            for (id, fence) in Self::claims(&mut answer) {
                self.count_claim(&fence);
                self.model.give(worker, &warm, &id, &fence);
                given += 1;
                if let Some(account) = account {
                    self.model.limits.spend_of(account, 1, self.model.now);
                    if tried {
                        self.tried(account, &id, &fence);
                    }
                }
            }
            assert_eq!(said, [if tried && given > 0 { "trial" } else { "" }]);
            let again = answer.remove(3) == Reply::Int(1);
            if !again || given > 0 {
                assert!(given <= most);
                let left = self.model.best(worker, &warm);
                assert!(again || given == most || left.is_none(), "{given} of {most}, and {left:?} was left");
                return;
            }
        }
    }

    /// The account is held: there is nothing, and it is said why.
    fn claim_in_vain(&mut self, words: &[String], until: Option<u64>) {
        let mut answer = self.call("claim", words).list().unwrap();
        self.model.promote();
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
        let [held, til, _why] = <[String; 3]>::try_from(answer.pop().unwrap().texts().unwrap()).unwrap();
        assert_eq!(Self::claims(&mut answer), []);
        assert_eq!(held, "held");
        // Tokens are fractions there.
        let til = til.parse::<u64>().ok();
        assert!(til == until || til == until.map(|until| until + 1), "{til:?} {until:?}");
    }
}
