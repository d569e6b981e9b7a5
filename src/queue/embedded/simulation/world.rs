//! What there is in the simulated world: kinds of job, workers, and which of them fit.

use std::collections::BTreeSet;

pub(super) const WORKERS: usize = 5;
/// What a worker may be able to do, as bits. It changes when the worker registers anew.
pub(super) const ABILITIES: [u8; 5] = [0b000, 0b001, 0b011, 0b110, 0b111];
pub(super) const MODEL: &str = "sdxl";
/// What workers may share.
pub(super) const ACCOUNTS: [&str; 2] = ["a", "b"];

/// A kind of requirement.
pub(super) struct Kind {
    pub service: &'static str,
    pub pool: Option<&'static str>,
    pub customer: &'static str,
    pub needs: u8,
    /// Only this worker.
    pub pinned: Option<usize>,
    /// For so many ms the job is left to a worker that has [`MODEL`] loaded.
    pub patience: Option<u64>,
}

const fn kind(service: &'static str, customer: &'static str, needs: u8) -> Kind {
    Kind { service, pool: None, customer, needs, pinned: None, patience: None }
}

pub(super) const KINDS: [Kind; 10] = [
    kind("s0", "", 0b000),
    kind("s0", "a", 0b001),
    kind("s0", "b c", 0b011),
    Kind { pool: Some("p"), ..kind("s1", "a", 0b100) },
    Kind { pool: Some("p"), ..kind("s1", "b c", 0b000) },
    Kind { patience: Some(1_500), ..kind("s1", "", 0b000) },
    Kind { patience: Some(400), pool: Some("p"), ..kind("s2", "a", 0b010) },
    Kind { pinned: Some(0), ..kind("s2", "a", 0b000) },
    Kind { pinned: Some(3), ..kind("s0", "b c", 0b000) },
    // Nobody ever can.
    kind("s0", "b c", 0b1000),
];

/// What limits are set for.
pub(super) const SCOPES: [&str; 8] =
    ["service:s0", "service:s1", "service:s2", "pool:p", "customer:a", "customer:b%20c", "account:a", "account:b"];

impl Kind {
    pub fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![format!("service:{}", self.service)];
        scopes.extend(self.pool.map(|pool| format!("pool:{pool}")));
        if !self.customer.is_empty() {
            scopes.push(format!("customer:{}", self.customer.replace(' ', "%20")));
        }
        scopes
    }
}

/// A kind, without the workers that are not to have the job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub kind: usize,
    pub avoid: BTreeSet<usize>,
}

impl Class {
    pub fn of(kind: usize) -> Self {
        Self { kind, avoid: BTreeSet::new() }
    }

    pub fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }

    pub fn id(&self) -> String {
        self.avoid.iter().fold(format!("c{}", self.kind), |id, worker| format!("{id}-{worker}"))
    }

    /// From an id, as the queue gives it back.
    pub fn parse(id: &str) -> Self {
        let mut numbers = id[1..].split('-').map(|number| number.parse().unwrap());
        Self { kind: numbers.next().unwrap(), avoid: numbers.collect() }
    }

    /// What the queue is told of it.
    pub fn scopes(&self) -> String {
        let mut scopes = self.kind().scopes();
        scopes.extend(self.kind().patience.map(|patience| format!("affinity:{MODEL}:{patience}")));
        scopes.join(" ")
    }

    pub fn is_personal(&self) -> bool {
        self.kind().pinned.is_some() || !self.avoid.is_empty()
    }

    pub fn admits(&self, worker: usize, abilities: u8) -> bool {
        let kind = self.kind();
        kind.needs & !abilities == 0 && kind.pinned.is_none_or(|only| only == worker) && !self.avoid.contains(&worker)
    }
}

/// A worker's name in the queue.
pub(super) fn name(worker: usize) -> String {
    format!("m/w{worker}")
}

/// The profile of all that have these abilities.
pub(super) fn profile(abilities: u8) -> String {
    format!("p{abilities}")
}
