//! The queue's functions against a model that is plainly right, on simulated time: random schedules of everything that
//! happens to a queue. After every step the model and the queue agree about every job, and every claim is the best there is.
//!
//! [`world`] says what kinds of job and worker there are, [`model`] what the queue promises of them ([`turns`], [`limits`], [`accounts`]);
//! [`submitting`], [`assigning`], [`claiming`], [`ending`] and [`living`] take steps on both, [`check`] compares them.
//!
//! `SIMULATION_SCHEDULES` (default 40, of 100 steps each) and `SIMULATION_SEED` (default 1) set how many and which.

mod accounts;
mod assigning;
mod cases;
mod check;
mod claiming;
mod ending;
mod limits;
mod living;
mod model;
mod submitting;
mod turns;
mod world;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::model::{Model, State, Worker};
use self::world::{ABILITIES, ACCOUNTS, Class, WORKERS};
use super::data::{Data, Text};
use super::lua::Functions;
use crate::queue::store::Reply;

const STEPS: usize = 100;

struct Simulation {
    functions: Functions,
    /// What the functions told whom, and nobody has looked at.
    published: std::cell::RefCell<Vec<(Text, Text)>>,
    random: StdRng,
    model: Model,
    /// How many ids have been made.
    ids: usize,
    /// The latest claim's number, and how many there were.
    fence: u64,
    claims: u64,
    /// How many of these came with a submission.
    assigned: u64,
    steps: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let functions = Functions::load(Data::default()).unwrap();
        let accounts = [Some(ACCOUNTS[0]), Some(ACCOUNTS[0]), Some(ACCOUNTS[1]), None, None];
        let workers = (0..WORKERS).map(|at| Worker { account: accounts[at], ..Worker::default() }).collect();
        let model = Model { now: 1_700_000_000_000, workers, ..Model::default() };
        let mut this = Self {
            functions,
            published: std::cell::RefCell::default(),
            random: StdRng::seed_from_u64(seed),
            model,
            ids: 0,
            fence: 0,
            claims: 0,
            assigned: 0,
            steps: 0,
        };
        for (worker, abilities) in ABILITIES.into_iter().enumerate() {
            this.model.workers[worker].abilities = abilities;
            this.register(worker);
        }
        this
    }

    fn call(&self, name: &str, arguments: &[String]) -> Reply {
        self.functions.data.borrow_mut().clock = Some(self.model.now);
        let reply = self.functions.call(name, arguments).unwrap();
        self.published.borrow_mut().extend(self.functions.data.borrow_mut().keep_call());
        reply
    }

    fn words(&self, name: &str, arguments: &[&str]) -> Reply {
        self.call(name, &arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    /// What the queue has in a hash that is read page by page.
    fn scan(&self, hash: &str) -> Vec<(String, String)> {
        let (mut all, mut from) = (Vec::new(), String::new());
        loop {
            let [next, page] = <[Reply; 2]>::try_from(self.words("scan", &[hash, &from, "3"]).list().unwrap()).unwrap();
            all.extend(page.pairs().unwrap());
            from = next.text().unwrap();
            if from.is_empty() {
                return all;
            }
        }
    }

    fn class_ids(&self) -> Vec<String> {
        self.scan("cls").into_iter().map(|(id, _)| id).collect()
    }

    // Chance.

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn any_job(&mut self, wanted: impl Fn(&model::Job) -> bool) -> Option<String> {
        let ids: Vec<&String> = self.model.jobs.iter().filter(|(_, job)| wanted(job)).map(|(id, _)| id).collect();
        if ids.is_empty() { None } else { Some(ids[self.random.random_range(0..ids.len())].clone()) }
    }

    fn step(&mut self) {
        self.steps += 1;
        match self.below(43) {
            42 => self.rest(),
            40 | 41 => self.hold(),
            0..=10 => self.submit(),
            11..=20 => self.claim(),
            21..=27 => self.finish(),
            28 => self.cancel(),
            29 => self.retry(),
            30 => self.limit(),
            31 | 32 => self.settle(),
            33..=35 => self.pass_time(),
            36 | 37 => self.look_after(),
            38 => self.live_anew(),
            _ if self.one_in(4) => self.retain(),
            _ => self.drop_one(),
        }
        self.check();
        self.check_accounts();
    }

    /// Moves a job in both; answers with the letter of where it came to.
    fn go(&mut self, id: &str, expected: &str, to: State, kind: &str, changes: &[&str]) -> char {
        let job = &self.model.jobs[id];
        let (target, due) = match to {
            State::Pending => ("p".to_owned(), 0),
            State::Delayed(due) => ("d".to_owned(), due),
            State::Over(how, _) => (how.to_string(), 0),
            _ => unreachable!("nothing is moved there"),
        };
        let class = Class { kind: job.kind, avoid: job.banned.clone() };
        self.go_to_class(id, expected, (&target, due), &class, kind, changes);
        self.model.go(id, to)
    }

    fn go_to_class(
        &self,
        id: &str,
        expected: &str,
        (target, due): (&str, u64),
        class: &Class,
        kind: &str,
        changes: &[&str],
    ) {
        let (class_id, due) = (class.id(), due.to_string());
        let mut arguments = vec![id, expected, target, &class_id, &due, kind, "null"];
        arguments.extend(changes);
        loop {
            let answer = self.words("move", &arguments).list().unwrap();
            if answer[0] == Reply::Text("NOCLASS".to_owned()) {
                self.add_class(class);
                continue;
            }
            assert_eq!(answer[0], Reply::Text("OK".to_owned()), "{id} from {expected} to {target}");
            return;
        }
    }
}

#[test]
fn every_schedule_keeps_every_promise() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let schedules = setting("SIMULATION_SCHEDULES").unwrap_or(40);
    let first = setting("SIMULATION_SEED").unwrap_or(1);
    let (mut claims, mut assigned) = (0, 0);
    for seed in first..first + schedules {
        let outcome = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            for _ in 0..STEPS {
                simulation.step();
            }
            (simulation.claims, simulation.assigned)
        });
        let repeat = "cargo nextest run --lib -E 'test(every_schedule_keeps_every_promise)'";
        let (more, of_these) =
            outcome.unwrap_or_else(|_| panic!("again with: SIMULATION_SEED={seed} SIMULATION_SCHEDULES=1 {repeat}"));
        claims += more;
        assigned += of_these;
    }
    let operations = schedules * STEPS as u64;
    println!("{operations} random operations, {claims} claims, {assigned} of them at submission, each the best");
    assert!(claims >= schedules * 10, "only {claims} claims: the schedules do too little");
    assert!(assigned >= schedules / 4, "only {assigned} jobs were assigned: the schedules do too little");
}
