//! What the queue promises, as plainly as it can be said: every question looks at every job.

use std::collections::{BTreeMap, BTreeSet};

use super::accounts::Accounts;
use super::limits::Limits;
use super::turns::{LEVEL, Turns};
use super::world::{Class, KINDS};

pub(super) const LEASE: u64 = 5_000;
/// The holder stops an attempt at its time, the queue so much later.
pub(super) const GRACE: u64 = 15_000;
/// A job whose model is loaded may overtake by so many places.
const SLACK: u64 = 50;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    Pending,
    Delayed(u64),
    Blocked,
    Running {
        worker: usize,
        incarnation: String,
        fence: String,
        deadline: u64,
        /// It has run for a heartbeat: from then on somebody looks whether it ends in time.
        beaten: bool,
    },
    /// The letter says how it ended.
    Over(char, u64),
}

#[derive(Debug)]
pub(super) struct Job {
    pub place: u64,
    pub kind: usize,
    pub submitted: u64,
    pub timeout: u64,
    pub state: State,
    pub not_before: u64,
    /// The jobs whose end it waits for; told of, while it is blocked, by `settle`.
    pub waits: BTreeSet<String>,
    pub runs_anyway: bool,
    pub unique: String,
    pub idempotency: String,
    pub cancelling: bool,
    /// Of those that are over, which ended before which.
    pub ended: u64,
    /// The latest claim that ended.
    pub last_fence: Option<String>,
    /// Workers that never get it again.
    pub banned: BTreeSet<usize>,
    /// A worker that others go before, and until when.
    pub shy: Option<usize>,
    pub shy_until: Option<u64>,
}

#[derive(Default)]
pub(super) struct Worker {
    pub incarnation: Option<String>,
    pub lease: u64,
    pub abilities: u8,
    pub loaded: bool,
    pub lives: u32,
    pub account: Option<&'static str>,
    /// The last job that this life was assigned and has not said to know of, and its claim.
    pub assigned: Option<(String, String)>,
    /// The claim of the last such that it heard of.
    pub heard: Option<String>,
}

#[derive(Default)]
pub(super) struct Model {
    pub now: u64,
    pub jobs: BTreeMap<String, Job>,
    pub workers: Vec<Worker>,
    pub turns: Turns,
    pub limits: Limits,
    pub accounts: Accounts,
    /// Jobs by idempotency key, while they are kept; by unique key, while they live.
    pub idempotency: BTreeMap<String, String>,
    pub unique: BTreeMap<String, String>,
    /// Until when some worker said to have the model loaded.
    pub loaded_until: u64,
    /// How many jobs ended.
    pub ends: u64,
    /// What jobs waited for that have been dropped since.
    pub dropped_waits: BTreeSet<String>,
}

impl Job {
    pub fn class(&self) -> Class {
        Class { kind: self.kind, avoid: self.banned.iter().copied().chain(self.shy).collect() }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over(..))
    }

    pub fn letter(&self) -> char {
        match self.state {
            State::Pending => 'p',
            State::Delayed(_) => 'd',
            State::Blocked => 'b',
            State::Running { .. } => 'r',
            State::Over(letter, _) => letter,
        }
    }

    pub fn runs_as(&self, claim: &str) -> bool {
        self.fence() == Some(claim)
    }

    pub fn fence(&self) -> Option<&str> {
        if let State::Running { fence, .. } = &self.state { Some(fence) } else { None }
    }
}

impl Model {
    pub fn running_in(&self, scope: &str) -> u64 {
        let runs = |job: &&Job| job.letter() == 'r' && KINDS[job.kind].scopes().iter().any(|own| own == scope);
        self.jobs.values().filter(runs).count() as u64
    }

    /// Whether the job runs with the account.
    pub fn uses(&self, job: &Job, account: &str) -> bool {
        matches!(job.state, State::Running { worker, .. } if self.workers[worker].account == Some(account))
    }

    fn loaded(&self) -> bool {
        self.loaded_until >= self.now
    }

    // What may be claimed.

    /// Jobs that the worker may run now, were it not for models that others have loaded.
    fn open_to(&self, worker: usize) -> impl Iterator<Item = (&String, &Job)> {
        let abilities = self.workers[worker].abilities;
        self.jobs.iter().filter(move |(_, job)| {
            let class = job.class();
            job.state == State::Pending
                && class.admits(worker, abilities)
                && self.limits.room(&class, self.now, |scope| self.running_in(scope))
        })
    }

    /// Whether the job may still be left to others: no longer than its patience after the latest of its kind came, and
    /// only when somebody had the model in that time.
    fn may_be_left(&self, job: &Job) -> bool {
        let Some(patience) = KINDS[job.kind].patience else { return false };
        let newest = self.jobs.values().filter(|other| other.kind == job.kind).map(|other| other.submitted).max();
        newest.is_some_and(|newest| newest + patience > self.now) && self.loaded_until + patience > self.now
    }

    /// The best place that the worker must be given, when it asks; `warm`: the classes whose model it has loaded.
    pub fn best(&self, worker: usize, warm: &[Class]) -> Option<u64> {
        let must = self.open_to(worker).filter(|(_, job)| warm.contains(&job.class()) || !self.may_be_left(job));
        must.map(|(_, job)| job.place).min()
    }

    /// Checks that the job is what the worker must be given next, and gives it.
    pub fn give(&mut self, worker: usize, warm: &[Class], id: &str, fence: &str) {
        let open: Vec<(&String, &Job)> = self.open_to(worker).collect();
        let job = open.iter().find(|(open, _)| *open == id).map(|(_, job)| *job);
        let job = job.unwrap_or_else(|| panic!("{id} is not open to worker {worker}: {:?}", self.jobs.get(id)));
        let class = job.class();
        let first_of_class =
            open.iter().filter(|(_, other)| other.class() == class).map(|(_, other)| other.place).min();
        assert_eq!(first_of_class, Some(job.place), "{id} overtakes its own class");
        let best_warm =
            open.iter().filter(|(_, other)| warm.contains(&other.class())).map(|(_, other)| other.place).min();
        let best_cold = open
            .iter()
            .filter(|(_, other)| !warm.contains(&other.class()) && !self.may_be_left(other))
            .map(|(_, other)| other.place)
            .min();
        let within = |place: u64, of: u64| place <= of + SLACK && place / LEVEL <= of / LEVEL;
        if warm.contains(&class) {
            assert_eq!(best_warm, Some(job.place), "{id} is loaded, and another that is goes before it");
            assert!(best_cold.is_none_or(|best| within(job.place, best)), "{id} overtakes {best_cold:?} by too much");
        } else {
            assert!(best_cold.is_none_or(|best| job.place <= best), "{id} at {} overtakes {best_cold:?}", job.place);
            assert!(best_warm.is_none_or(|best| !within(best, job.place)), "{id} is not loaded, {best_warm:?} is");
            let left = class.kind().patience.is_some_and(|patience| job.submitted + patience > self.now);
            assert!(!left || !self.loaded(), "{id} is left to a worker that has its model");
        }
        let place = job.place;
        self.turns.claimed(place);
        self.limits.spend(&class, self.now);
        let incarnation = self.workers[worker].incarnation.clone().unwrap();
        let now = self.now;
        let job = self.jobs.get_mut(id).unwrap();
        let deadline = now + job.timeout;
        job.state = State::Running { worker, incarnation, fence: fence.to_owned(), deadline, beaten: false };
    }

    /// A claim that the store has forgotten counts again, unless the job went on without it.
    pub fn adopt(&mut self, worker: usize, id: &str, fence: &str) -> bool {
        let incarnation = self.workers[worker].incarnation.clone().unwrap();
        let deadline = self.now + self.jobs[id].timeout;
        let job = self.jobs.get_mut(id).unwrap();
        let forgotten = matches!(job.state, State::Pending | State::Delayed(_)) && job.last_fence.is_none();
        if forgotten {
            job.shy_until = None;
            job.state = State::Running { worker, incarnation, fence: fence.to_owned(), deadline, beaten: true };
        }
        forgotten
    }

    // What time does.

    pub fn promote(&mut self) {
        for job in self.jobs.values_mut() {
            if matches!(job.state, State::Delayed(due) if due <= self.now) {
                job.state = State::Pending;
            }
            if job.shy_until.is_some_and(|until| until <= self.now) {
                job.shy_until = None;
                if job.state == State::Pending {
                    job.shy = None;
                }
            }
        }
    }

    pub fn overdue(&self) -> BTreeSet<String> {
        let late = |job: &Job| matches!(job.state, State::Running { deadline, beaten: true, .. } if deadline + GRACE <= self.now);
        self.jobs.iter().filter(|(_, job)| late(job)).map(|(id, _)| id.clone()).collect()
    }

    // Ends.

    /// Where the job goes from wherever it is; a cancellation that was asked for takes the place of going back. Answers
    /// with the letter of where it came to.
    pub fn go(&mut self, id: &str, to: State) -> char {
        let now = self.now;
        let job = self.jobs.get_mut(id).unwrap();
        let was_over = job.is_over();
        job.last_fence = job.fence().map(str::to_owned).or(job.last_fence.take());
        // One that completes is not looked at any further, nor forgotten sooner.
        if !matches!(to, State::Over('c', _)) {
            job.shy = None;
            job.shy_until = None;
        }
        job.state = match to {
            State::Pending | State::Delayed(_) if job.cancelling => State::Over('x', now),
            // It still waits for others, which it did not when it was cancelled or failed with one of them.
            State::Pending if was_over && !job.waits.is_empty() => State::Blocked,
            to => to,
        };
        if job.is_over() {
            self.ends += 1;
            job.ended = self.ends;
        }
        let (unique, over, letter) = (job.unique.clone(), job.is_over(), job.letter());
        if over && self.unique.get(&unique).is_some_and(|holder| holder == id) {
            self.unique.remove(&unique);
        }
        if was_over && !over && !unique.is_empty() {
            self.unique.entry(unique).or_insert_with(|| id.to_owned());
        }
        letter
    }

    /// How a job that is waited for ended, or `None`.
    pub fn ended(&self, id: &str) -> Option<bool> {
        self.jobs.get(id).and_then(|job| if let State::Over(how, _) = job.state { Some(how == 'c') } else { None })
    }

    /// Jobs that have ended, of which somebody has not been told.
    pub fn untold(&self) -> BTreeSet<String> {
        let waits = self.jobs.values().flat_map(|job| &job.waits).chain(&self.dropped_waits);
        waits.filter(|id| self.ended(id).is_some()).cloned().collect()
    }

    /// Tells those who wait, and those who wait for them.
    pub fn settle(&mut self) {
        while let Some(ended) = self.untold().pop_first() {
            let well = self.ended(&ended).unwrap();
            self.dropped_waits.remove(&ended);
            for id in self.jobs.keys().cloned().collect::<Vec<_>>() {
                let now = self.now;
                let job = self.jobs.get_mut(&id).unwrap();
                if !job.waits.remove(&ended) || job.state != State::Blocked {
                    continue;
                }
                if !well && !job.runs_anyway {
                    self.go(&id, State::Over('f', now));
                } else if job.waits.is_empty() {
                    job.state = if job.not_before > now { State::Delayed(job.not_before) } else { State::Pending };
                }
            }
        }
    }

    pub fn forget(&mut self, id: &str) {
        let job = self.jobs.remove(id).unwrap();
        self.idempotency.remove(&job.idempotency);
        self.dropped_waits.extend(job.waits);
    }

    /// Drops what has been kept long enough; what somebody has not been told of is kept, and of completed jobs what
    /// completed after that.
    pub fn retain(&mut self, keep: u64, keep_failed: u64, most: usize) {
        for letter in ['c', 'x', 'f'] {
            let kept = if letter == 'f' { keep_failed } else { keep };
            loop {
                let mut over: Vec<(u64, u64, String)> = Vec::new();
                for (id, job) in &self.jobs {
                    if let State::Over(how, at) = job.state
                        && how == letter
                    {
                        // At the same time, those that are in the list of completed jobs go in its order.
                        over.push((at, if letter == 'c' { job.ended } else { 0 }, id.clone()));
                    }
                }
                over.sort();
                let excess = over.len().saturating_sub(most);
                let old = over.iter().filter(|(at, ..)| at + kept <= self.now).count();
                let untold = self.untold();
                let ids = over.into_iter().take(old.max(excess)).map(|(.., id)| id);
                let gone: Vec<String> = if letter == 'c' {
                    ids.take_while(|id| !untold.contains(id)).collect()
                } else {
                    ids.filter(|id| !untold.contains(id)).collect()
                };
                if gone.is_empty() {
                    break;
                }
                for id in gone {
                    self.forget(&id);
                }
            }
        }
    }
}
