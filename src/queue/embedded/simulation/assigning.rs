//! Jobs that a worker is given at their submission, whose message may be lost; and workers that want none.

use super::Simulation;
use super::model::State;
use super::world::profile;

impl Simulation {
    pub(super) fn is_idle(&self, worker: usize) -> bool {
        let state = &self.model.workers[worker];
        let idle = format!("z:{}", profile(state.abilities));
        state.incarnation.as_ref().is_some_and(|own| self.functions.data.borrow().score(&idle, own).is_some())
    }

    /// What the worker's process does not know to be wrong: it may count as idle, or has not said what it heard.
    pub(super) fn may_count_as_idle(&self, worker: usize) -> bool {
        self.is_idle(worker) || self.model.workers[worker].assigned.is_some()
    }

    /// The claim of the last job that the worker heard it was assigned.
    pub(super) fn heard(&self, worker: usize) -> String {
        self.model.workers[worker].heard.clone().unwrap_or("0".to_owned())
    }

    /// Before a submission: whoever is idle, to whom jobs may be assigned. The queue looks first at what is due then.
    pub(super) fn ready_to_be_assigned(&mut self) -> Vec<usize> {
        let any = self.functions.data.borrow().set("zp").is_some_and(|idle| !idle.is_empty());
        if any {
            self.few_due();
            self.words("promote", &[]);
            self.model.promote();
        }
        (0..self.model.workers.len()).filter(|worker| self.is_idle(*worker)).collect()
    }

    /// After a submission that put so many jobs among those that wait, all of which the model has there. Which was assigned instead.
    pub(super) fn see_assigned(&mut self, idle: &[usize], pending: usize) -> Option<String> {
        let published = std::mem::take(&mut *self.published.borrow_mut());
        let (assigned, others): (Vec<_>, Vec<_>) = published.into_iter().partition(|(_, text)| text.starts_with("a "));
        self.published.borrow_mut().extend(others);
        let (channel, text) = assigned.first()?;
        assert_eq!((assigned.len(), pending, &**channel), (1, 1, "own:a"));
        let words: Vec<&str> = text.splitn(6, ' ').collect();
        let [_, incarnation, now, fence, id, record] = words.try_into().unwrap();
        assert_eq!(now, self.model.now.to_string());
        self.count_claim(fence);
        self.assigned += 1;
        let holds = |worker: &usize| self.model.workers[*worker].incarnation.as_deref() == Some(incarnation);
        let worker = *idle.iter().find(|worker| holds(worker)).unwrap_or_else(|| panic!("{incarnation} is not idle"));
        assert_eq!(self.model.workers[worker].account, None);
        assert!(self.model.workers[worker].lease > self.model.now, "{incarnation} may be gone");
        assert!(!self.is_idle(worker), "{incarnation} got a job and counts as idle");
        let kept = self.functions.data.borrow().text(&format!("j:{id}")).map(ToString::to_string);
        assert_eq!(Some(record), kept.as_deref());
        // As if it had claimed it.
        self.model.give(worker, &[], id, fence);
        let (id, fence) = (id.to_owned(), fence.to_owned());
        let heard = !self.one_in(3);
        let state = &mut self.model.workers[worker];
        state.assigned = Some((id.clone(), fence.clone()));
        if heard {
            state.heard = Some(fence);
        }
        Some(id)
    }

    /// The worker tells what it heard. What it was assigned, has not heard of, and still is to run, it hears of now.
    pub(super) fn speak(&mut self, worker: usize) -> Option<(String, String)> {
        let state = &mut self.model.workers[worker];
        let (id, fence) = state.assigned.take()?;
        let missed = state.heard.as_ref() != Some(&fence);
        state.heard = Some(fence.clone());
        let runs = self.model.jobs.get(&id).is_some_and(|job| job.runs_as(&fence));
        (missed && runs).then_some((id, fence))
    }

    /// It is not ready for jobs any more.
    pub(super) fn rest(&mut self) {
        let worker = self.below(self.model.workers.len());
        let Some(incarnation) = self.model.workers[worker].incarnation.clone() else { return };
        let heard = self.heard(worker);
        let answer = self.words("rest", &[&incarnation, &heard]).texts().unwrap();
        let missed = self.speak(worker);
        assert_eq!(answer, missed.iter().flat_map(|(id, fence)| [id.clone(), fence.clone()]).collect::<Vec<_>>());
        assert!(!self.is_idle(worker));
        if let Some((id, fence)) = missed {
            self.go(&id, &fence, State::Pending, "released", &[]);
        }
    }
}
