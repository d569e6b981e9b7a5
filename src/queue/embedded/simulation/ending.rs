//! Ends of attempts and of jobs: outcomes that count once and only for the holder, cancelling, trying again.

use super::Simulation;
use super::model::{LEASE, State};
use super::world::Class;
use crate::queue::store::Reply;

impl Simulation {
    pub(super) fn finish(&mut self) {
        let Some(id) = self.any_job(|job| job.letter() == 'r') else { return };
        let fence = self.model.jobs[&id].fence().unwrap().to_owned();
        let now = self.model.now;
        match self.below(12) {
            0..=5 => {
                assert_eq!(self.words("complete", &[&id, &fence, "1"]).texts().unwrap(), ["OK"]);
                // Said twice, counted once.
                assert_eq!(self.words("complete", &[&id, &fence, "2"]).texts().unwrap(), ["OK"]);
                self.account_works(&id, &fence);
                self.model.go(&id, State::Over('c', now));
            }
            6 => {
                // Somebody who held it before, or never.
                let stale = (fence.parse::<u64>().unwrap() - 1).to_string();
                assert_eq!(self.words("complete", &[&id, &stale, "2"]).texts().unwrap(), ["STALE"]);
                assert_eq!(self.words("report", &[&id, &stale, "log", "null"]), Reply::Text("STALE".to_owned()));
                let moved = self.words("move", &[&id, &stale, "p", "", "0", "released", "null"]);
                assert_eq!(moved.texts().unwrap(), ["STATE", "r"]);
            }
            7 => self.retry_later(&id, &fence),
            8 => {
                // Not this worker again.
                let State::Running { worker, .. } = self.model.jobs[&id].state else { return };
                self.model.jobs.get_mut(&id).unwrap().banned.insert(worker);
                self.go(&id, &fence, State::Pending, "released", &["av", "[]"]);
            }
            9 => drop(self.go(&id, &fence, State::Pending, "released", &[])),
            10 => drop(self.go(&id, &fence, State::Over('f', now), "failed", &["at", "+1"])),
            // It was told to stop, and did; or a job that nobody cancelled says so.
            _ if self.model.jobs[&id].cancelling => {
                self.go(&id, &fence, State::Over('x', now), "cancelled", &[]);
            }
            _ => assert_eq!(self.words("report", &[&id, &fence, "log", "null"]), Reply::Text("OK".to_owned())),
        }
    }

    /// After a pause, and rather by another worker.
    fn retry_later(&mut self, id: &str, fence: &str) {
        let due = self.model.now + 1 + self.below(2_000) as u64;
        let alone = self.one_in(3);
        let job = &self.model.jobs[id];
        let State::Running { worker, .. } = job.state else { return };
        if !job.banned.is_empty() || alone {
            self.go(id, fence, State::Delayed(due), "retried", &["at", "+1"]);
            return;
        }
        let class = Class { kind: job.kind, avoid: [worker].into() };
        self.go_to_class(id, fence, ("d", due), &class, "retried", &["at", "+1"]);
        if self.model.go(id, State::Delayed(due)) == 'd' {
            let until = due + LEASE;
            self.words("avoid_until", &[id, &until.to_string()]);
            let job = self.model.jobs.get_mut(id).unwrap();
            (job.shy, job.shy_until) = (Some(worker), Some(until));
        }
    }

    pub(super) fn cancel(&mut self) {
        let Some(id) = self.any_job(|_| true) else { return };
        let letter = self.model.jobs[&id].letter();
        assert_eq!(self.words("cancel", &[&id]), Reply::Text(letter.to_string()));
        match letter {
            'r' => self.model.jobs.get_mut(&id).unwrap().cancelling = true,
            'c' | 'f' | 'x' => {
                let moved = self.words("move", &[&id, "pdb", "x", "", "0", "cancelled", "null"]);
                assert_eq!(moved.texts().unwrap(), ["STATE", &letter.to_string()]);
            }
            _ => drop(self.go(&id, "pdb", State::Over('x', self.model.now), "cancelled", &[])),
        }
    }

    /// By hand, of a dead letter or a cancelled job.
    pub(super) fn retry(&mut self) {
        let Some(id) = self.any_job(|job| matches!(job.letter(), 'f' | 'x')) else { return };
        let job = self.model.jobs.get_mut(&id).unwrap();
        job.cancelling = false;
        job.banned.clear();
        self.go(&id, "fx", State::Pending, "retried", &["at", "0", "lo", "0", "x", "", "av", ""]);
    }
}
