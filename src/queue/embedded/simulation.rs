//! The queue's functions against a model that is plainly right, on simulated time: random schedules of submissions, claims,
//! ends, time passing and workers dying. Every claim is the best there is, every invariant holds after every step.
//!
//! `SIMULATION_SCHEDULES` (default 60, of 100 steps each) and `SIMULATION_SEED` set how many and which.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::data::Data;
use super::lua::Functions;
use crate::queue::store::Reply;

const STEPS: usize = 100;
const LEASE: u64 = 5_000;
/// Which classes each worker's profile matches.
const MATCHES: [&[usize]; 4] = [&[0], &[0, 1], &[0, 1, 2], &[2]];

#[derive(Debug, Clone, PartialEq)]
enum State {
    Pending,
    Delayed(u64),
    Running { worker: usize, fence: String },
    Over,
}

struct Job {
    /// The smallest goes first: priority, then the order of submission.
    place: (u32, usize),
    class: usize,
    state: State,
}

struct Worker {
    incarnation: Option<String>,
    lease: u64,
    lives: u32,
}

struct Simulation {
    functions: Functions,
    random: StdRng,
    now: u64,
    jobs: BTreeMap<String, Job>,
    workers: Vec<Worker>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let functions = Functions::load(Data::default()).unwrap();
        let workers = (0..MATCHES.len()).map(|_| Worker { incarnation: None, lease: 0, lives: 0 }).collect();
        let random = StdRng::seed_from_u64(seed);
        let mut this = Self { functions, random, now: 1_700_000_000_000, jobs: BTreeMap::new(), workers };
        for worker in 0..MATCHES.len() {
            this.register(worker);
        }
        for class in 0..3 {
            let mut arguments = vec![format!("c{class}"), "{}".to_owned(), format!("service:s{class}"), String::new()];
            arguments[3] = this.call("roster", &[]).list().unwrap().remove(0).text().unwrap();
            let matching = (0..MATCHES.len()).filter(|worker| MATCHES[*worker].contains(&class));
            arguments.extend(matching.map(|worker| format!("p{worker}")));
            assert_eq!(this.call("add_class", &arguments), Reply::Text("OK".to_owned()));
        }
        this
    }

    fn call(&self, name: &str, arguments: &[String]) -> Reply {
        self.functions.data.borrow_mut().clock = Some(self.now);
        let reply = self.functions.call(name, arguments).unwrap();
        self.functions.data.borrow_mut().keep_call();
        reply
    }

    fn words(&self, name: &str, arguments: &[&str]) -> Reply {
        self.call(name, &arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    fn register(&mut self, worker: usize) {
        self.workers[worker].lives += 1;
        let incarnation = format!("i{worker}-{}", self.workers[worker].lives);
        let (name, profile) = (format!("m/w{worker}"), format!("p{worker}"));
        let arguments = [&incarnation, &name, "own", &profile, "{}", "{}", &LEASE.to_string()];
        let mut answer = self.words("register", &arguments).list().unwrap();
        if answer[0] != Reply::Text("OK".to_owned()) {
            // Its former life ends first, and what that held goes back.
            let former = answer.remove(1).text().unwrap();
            self.end(&former);
            answer = self.words("register", &arguments).list().unwrap();
        }
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
        self.workers[worker].incarnation = Some(incarnation);
        self.workers[worker].lease = self.now + LEASE;
    }

    /// What the reaper does.
    fn end(&mut self, incarnation: &str) {
        for id in self.words("held", &[incarnation]).texts().unwrap() {
            let job = self.jobs.get_mut(&id).unwrap();
            let State::Running { fence, .. } = &job.state else { panic!("{id} is held but {:?}", job.state) };
            let fence = fence.clone();
            job.state = State::Pending;
            let moved = self.words("move", &[&id, &fence, "p", "", "0", "lost", "null", "lo", "+1"]);
            assert_eq!(moved.texts().unwrap()[..2], ["OK", "p"]);
        }
        assert_eq!(self.words("forget", &[incarnation]), Reply::Int(0));
        for worker in &mut self.workers {
            if worker.incarnation.as_deref() == Some(incarnation) {
                worker.incarnation = None;
            }
        }
    }

    fn promote(&mut self) {
        for job in self.jobs.values_mut() {
            if matches!(job.state, State::Delayed(due) if due <= self.now) {
                job.state = State::Pending;
            }
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..12) {
            0..=3 => self.submit(),
            4..=6 => self.claim(),
            7 | 8 => self.finish(),
            9 => {
                self.now += self.random.random_range(0..2_000);
                // Who lives beats; who dies does not, and nobody tells.
                for worker in 0..self.workers.len() {
                    if self.random.random_range(0..4) > 0
                        && let Some(incarnation) = self.workers[worker].incarnation.clone()
                    {
                        self.words("heartbeat", &[&LEASE.to_string(), &incarnation, "0", "0"]);
                        self.workers[worker].lease = self.now + LEASE;
                    }
                }
                self.words("promote", &[]);
                self.promote();
            }
            10 => {
                let todo = self.words("todo", &[]).list().unwrap();
                self.promote();
                for incarnation in todo[3].clone().texts().unwrap() {
                    self.end(&incarnation);
                }
                assert!(self.workers.iter().all(|worker| worker.incarnation.is_none() || worker.lease > self.now));
            }
            _ => {
                // A life ends with or without the former being known as dead.
                let worker = self.random.random_range(0..self.workers.len());
                self.register(worker);
            }
        }
        self.check();
    }

    fn submit(&mut self) {
        let (class, priority) = (self.random.random_range(0..3usize), self.random.random_range(0..3u32));
        let id = format!("j{}", self.jobs.len());
        let due = if self.random.random_range(0..5) == 0 { self.now + self.random.random_range(1..3_000) } else { 0 };
        let cid = format!("c{class}");
        let (level, due_text) = ((500 - priority).to_string(), due.to_string());
        let arguments = [&cid, "", &id, &level, "", &cid, "-", "-", &due_text, "", "", "", "fail", "0", "s 0  null"];
        let answer = self.words("submit", &arguments).list().unwrap();
        assert_eq!(answer[0], Reply::Text("OK".to_owned()));
        let state = if due > 0 { State::Delayed(due) } else { State::Pending };
        self.jobs.insert(id, Job { place: (500 - priority, self.jobs.len()), class, state });
    }

    fn claim(&mut self) {
        let worker = self.random.random_range(0..self.workers.len());
        let Some(incarnation) = self.workers[worker].incarnation.clone() else { return };
        let most = self.random.random_range(1..5usize);
        let answer = self.words("claim", &[&incarnation, &most.to_string(), "1"]).list().unwrap();
        self.promote();
        let mut best: Vec<(&(u32, usize), &String)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.state == State::Pending && MATCHES[worker].contains(&job.class))
            .map(|(id, job)| (&job.place, id))
            .collect();
        best.sort();
        let expected: Vec<String> = best.into_iter().take(most).map(|(_, id)| id.clone()).collect();
        let mut claimed = Vec::new();
        for entry in answer[4].clone().list().unwrap() {
            let mut parts = entry.list().unwrap().into_iter();
            let (id, fence) = (parts.next().unwrap().text().unwrap(), parts.next().unwrap().text().unwrap());
            self.jobs.get_mut(&id).unwrap().state = State::Running { worker, fence };
            claimed.push(id);
        }
        let mut sorted = (claimed.clone(), expected.clone());
        sorted.0.sort();
        sorted.1.sort();
        assert_eq!(sorted.0, sorted.1, "worker {worker} claimed {claimed:?}, the best are {expected:?}");
    }

    fn finish(&mut self) {
        let running: Vec<String> = self
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.state, State::Running { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        if running.is_empty() {
            return;
        }
        let id = running[self.random.random_range(0..running.len())].clone();
        let State::Running { fence, .. } = self.jobs[&id].state.clone() else { return };
        match self.random.random_range(0..6) {
            0..=2 => {
                let answer = self.words("complete", &[&id, &fence, "1"]).texts().unwrap();
                assert_eq!(answer, ["OK"]);
                assert_eq!(
                    self.words("complete", &[&id, &fence, "1"]).texts().unwrap(),
                    ["OK"],
                    "said twice, counted once"
                );
                self.jobs.get_mut(&id).unwrap().state = State::Over;
            }
            3 => {
                // Somebody who held it before, or never.
                let stale = (fence.parse::<u64>().unwrap() - 1).to_string();
                assert_eq!(self.words("complete", &[&id, &stale, "2"]).texts().unwrap(), ["STALE"]);
                assert_eq!(self.words("report", &[&id, &stale, "log", "null"]), Reply::Text("STALE".to_owned()));
            }
            4 => {
                let due = self.now + self.random.random_range(1..2_000);
                let moved =
                    self.words("move", &[&id, &fence, "d", "", &due.to_string(), "retried", "null", "at", "+1"]);
                assert_eq!(moved.texts().unwrap()[..2], ["OK", "d"]);
                self.jobs.get_mut(&id).unwrap().state = State::Delayed(due);
            }
            _ => {
                let target = if self.random.random_range(0..2) == 0 { "p" } else { "f" };
                let moved = self.words("move", &[&id, &fence, target, "", "0", "x", "null"]);
                assert_eq!(moved.texts().unwrap()[..2], ["OK", target]);
                let state = if target == "p" { State::Pending } else { State::Over };
                self.jobs.get_mut(&id).unwrap().state = state;
            }
        }
    }

    fn check(&self) {
        let mut arguments = vec!["0".to_owned()];
        arguments.extend(self.jobs.keys().cloned());
        assert_eq!(self.call("audit", &arguments).texts().unwrap(), Vec::<String>::new());
        assert_eq!(self.words("audit_classes", &["0", "c0", "c1", "c2"]).texts().unwrap(), Vec::<String>::new());
        assert_eq!(self.words("audit_pending", &["0"]).texts().unwrap(), Vec::<String>::new());
        let stats = self.words("stats", &[]).texts().unwrap();
        let count =
            |wanted: fn(&State) -> bool| self.jobs.values().filter(|job| wanted(&job.state)).count().to_string();
        let delayed = count(|state| matches!(state, State::Delayed(_)));
        let pending = count(|state| *state == State::Pending);
        let running = count(|state| matches!(state, State::Running { .. }));
        assert_eq!((&stats[0], &stats[1], &stats[2]), (&delayed, &pending, &running));
    }
}

#[test]
fn every_schedule_keeps_every_promise() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let schedules = setting("SIMULATION_SCHEDULES").unwrap_or(60);
    let first = setting("SIMULATION_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    for seed in first..first + schedules {
        let outcome = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            for _ in 0..STEPS {
                simulation.step();
            }
        });
        assert!(outcome.is_ok(), "SIMULATION_SEED={seed} SIMULATION_SCHEDULES=1");
    }
}
