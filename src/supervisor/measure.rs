use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::{ByteSize, Name};
use crate::host::process::Lineage;
use crate::host::{Meter, Usage};
use crate::spec::Limits;

/// Between two looks at services that have limits which no cgroup enforces.
const LOOK: Duration = Duration::from_secs(2);
/// For shared memory, whose share takes time to find out.
const BUDGET: Duration = Duration::from_millis(5);

/// The processes that services have now, for whoever measures them. Written by the supervisor, which never waits for a
/// measurement.
#[derive(Clone, Default)]
pub(super) struct Trees {
    trees: Arc<Mutex<BTreeMap<Name, Tree>>>,
    meter: Arc<Mutex<Meter>>,
}

#[derive(Clone)]
pub(super) struct Tree {
    pub lineage: Lineage,
    pub incarnation: u64,
    /// What is to be measured and held to.
    pub limits: Option<Limits>,
}

impl Trees {
    pub fn insert(&self, name: &Name, tree: Tree) {
        self.lock().insert(name.clone(), tree);
    }

    pub fn remove(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// What every service's tree uses now, and whose each of `pids` is. Blocks for as long as `/proc` takes, and `budget` more.
    pub fn measure(&self, budget: Duration, pids: &BTreeSet<u32>) -> (BTreeMap<Name, Usage>, BTreeMap<u32, Name>) {
        let trees = self.lock().clone();
        let lineages: Vec<&Lineage> = trees.values().map(|tree| &tree.lineage).collect();
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let (usages, owned) = meter.measure_and_own(&lineages, budget, pids);
        let names: Vec<&Name> = trees.keys().collect();
        let owners = owned.into_iter().filter_map(|(pid, tree)| Some((pid, (*names.get(tree)?).clone()))).collect();
        (trees.keys().cloned().zip(usages).collect(), owners)
    }

    /// Looks again and again; tells who has been over a limit for too long. Blocks for ever: for a thread of its own.
    pub fn watch_limits(&self, tell: impl Fn(&Name, u64, String)) {
        let mut last: BTreeMap<(Name, u64), Reading> = BTreeMap::new();
        loop {
            std::thread::sleep(LOOK);
            let limited: Vec<(Name, Tree)> = self
                .lock()
                .iter()
                .filter(|(_, tree)| tree.limits.is_some())
                .map(|(n, t)| (n.clone(), t.clone()))
                .collect();
            let lineages: Vec<&Lineage> = limited.iter().map(|(_, tree)| &tree.lineage).collect();
            if lineages.is_empty() {
                last.clear();
                continue;
            }
            let usages = self.meter.lock().unwrap_or_else(PoisonError::into_inner).measure(&lineages, BUDGET);
            let now = Instant::now();
            let mut readings = BTreeMap::new();
            for ((name, tree), usage) in limited.iter().zip(usages) {
                let key = (name.clone(), tree.incarnation);
                let limits = tree.limits.unwrap_or_default();
                let mut reading = Reading::new(usage, now, last.get(&key), &limits);
                if reading.over.as_ref().is_some_and(|(since, _)| now.duration_since(*since) >= limits.period.get())
                    && let Some((_, why)) = reading.over.take()
                {
                    tell(name, tree.incarnation, why);
                }
                readings.insert(key, reading);
            }
            last = readings;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Tree>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reading {
    at: Instant,
    cpu_seconds: f64,
    /// Since when it is over a limit, and how.
    over: Option<(Instant, String)>,
}

impl Reading {
    fn new(usage: Usage, at: Instant, before: Option<&Self>, limits: &Limits) -> Self {
        let memory = limits.memory.filter(|limit| usage.memory_bytes > limit.bytes());
        let memory =
            memory.map(|limit| format!("it uses {} of memory and may use {limit}", ByteSize(usage.memory_bytes)));
        let cpu = limits.cpu.zip(before).and_then(|(limit, before)| {
            let cores =
                (usage.cpu_seconds - before.cpu_seconds) / at.duration_since(before.at).as_secs_f64().max(0.001);
            (cores > limit).then(|| format!("it uses {cores:.1} cores and may use {limit}"))
        });
        let since = before.and_then(|before| before.over.as_ref()).map_or(at, |(since, _)| *since);
        Self { at, cpu_seconds: usage.cpu_seconds, over: memory.or(cpu).map(|why| (since, why)) }
    }
}
