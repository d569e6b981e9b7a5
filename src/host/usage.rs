use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::process::{Lineage, Row, snapshot, with_file};

/// What a process tree uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub processes: u32,
    pub threads: u32,
    /// User and system time of the processes that live now and of children they have waited for.
    pub cpu_seconds: f64,
    /// Memory with shared pages divided among those that share them (PSS), where the kernel tells and time allows;
    /// resident memory else.
    pub memory_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub open_files: u64,
}

/// Measures process trees with one pass over `/proc`. What is expensive to read (PSS) is read oldest first within a
/// budget of time; in between its last value stands.
#[derive(Debug, Default)]
pub struct Meter {
    pss: HashMap<(u32, u64), (u64, Instant)>,
}

/// `USER_HZ`, fixed on Linux.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

impl Meter {
    /// The trees of `lineages`, in their order, with orphans that the engine adopted.
    pub fn measure(&mut self, lineages: &[&Lineage], budget: Duration) -> Vec<Usage> {
        self.measure_and_own(lineages, budget, &BTreeSet::new()).0
    }

    /// The same, and which of the trees each of `pids` belongs to.
    pub fn measure_and_own(
        &mut self,
        lineages: &[&Lineage],
        budget: Duration,
        pids: &BTreeSet<u32>,
    ) -> (Vec<Usage>, BTreeMap<u32, usize>) {
        let rows = snapshot();
        let mut roots: HashMap<u32, usize> =
            lineages.iter().enumerate().map(|(index, lineage)| (lineage.pid, index)).collect();
        let me = std::process::id();
        for row in rows.iter().filter(|row| row.parent == me && !row.zombie) {
            if !roots.contains_key(&row.pid)
                && let Some(index) = Lineage::of(row.pid, lineages)
            {
                roots.insert(row.pid, index);
            }
        }
        let usages = self.measure_roots(&rows, &mut roots, lineages.len(), budget);
        let owned = pids.iter().filter_map(|pid| Some((*pid, *roots.get(pid)?))).collect();
        (usages, owned)
    }

    fn measure_roots(
        &mut self,
        rows: &[Row],
        owner: &mut HashMap<u32, usize>,
        count: usize,
        budget: Duration,
    ) -> Vec<Usage> {
        let parents: HashMap<u32, u32> = rows.iter().map(|row| (row.pid, row.parent)).collect();
        let mut usages = vec![Usage::default(); count];
        let mut members: Vec<(usize, &Row)> = Vec::new();
        for row in rows {
            if let Some(root) = find_owner(row.pid, &parents, owner) {
                members.push((root, row));
            }
        }
        members.retain(|(_, row)| !row.zombie);
        for (root, row) in &members {
            let usage = &mut usages[*root];
            usage.processes += 1;
            usage.threads += row.threads;
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
            let ticks = row.cpu_ticks as f64;
            usage.cpu_seconds += ticks / TICKS;
            let (read, written) = io_bytes(row.pid);
            usage.read_bytes += read;
            usage.written_bytes += written;
            usage.open_files += fs::metadata(format!("/proc/{}/fd", row.pid)).map_or(0, |fd| open_files(row.pid, &fd));
        }
        self.refresh_pss(&members, budget);
        for (root, row) in &members {
            let known = self.pss.get(&(row.pid, row.begun_ticks)).map(|(bytes, _)| *bytes);
            usages[*root].memory_bytes += known.unwrap_or(row.resident_pages * PAGE);
        }
        usages
    }

    fn refresh_pss(&mut self, members: &[(usize, &Row)], budget: Duration) {
        let begun = Instant::now();
        let alive: std::collections::HashSet<(u32, u64)> =
            members.iter().map(|(_, row)| (row.pid, row.begun_ticks)).collect();
        self.pss.retain(|key, _| alive.contains(key));
        let mut order: Vec<(Option<Instant>, &Row)> = members
            .iter()
            .map(|(_, row)| (self.pss.get(&(row.pid, row.begun_ticks)).map(|(_, at)| *at), *row))
            .collect();
        order.sort_by_key(|(at, _)| *at);
        for (_, row) in order {
            if begun.elapsed() >= budget {
                return;
            }
            if let Some(bytes) = pss(row.pid) {
                self.pss.insert((row.pid, row.begun_ticks), (bytes, Instant::now()));
            }
        }
    }
}

fn find_owner(pid: u32, parents: &HashMap<u32, u32>, owner: &mut HashMap<u32, usize>) -> Option<usize> {
    let mut at = pid;
    let mut path = Vec::new();
    let found = loop {
        if let Some(root) = owner.get(&at) {
            break Some(*root);
        }
        path.push(at);
        match parents.get(&at) {
            Some(parent) if *parent > 0 && path.len() < 1000 => at = *parent,
            _ => break None,
        }
    };
    if let Some(root) = found {
        owner.extend(path.into_iter().map(|pid| (pid, root)));
    }
    found
}

/// Since Linux 6.2 the size of the directory is the number of open files; before, they are counted.
fn open_files(pid: u32, directory: &fs::Metadata) -> u64 {
    if directory.len() > 0 {
        return directory.len();
    }
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

fn io_bytes(pid: u32) -> (u64, u64) {
    let read = |text: &str| {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        (value("read_bytes:"), value("write_bytes:"))
    };
    with_file(pid, "io", read).unwrap_or_default()
}

fn pss(pid: u32) -> Option<u64> {
    with_file(pid, "smaps_rollup", |text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_with_all_that_hangs_below_it() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 60 & sleep 60"]).spawn().unwrap();
        let mut meter = Meter::default();
        let deadline = Instant::now() + Duration::from_secs(10);
        let usage = loop {
            let mut roots = HashMap::from([(child.id(), 0)]);
            let usage = meter.measure_roots(&snapshot(), &mut roots, 1, Duration::from_secs(1))[0];
            if usage.processes == 3 || Instant::now() > deadline {
                break usage;
            }
        };
        assert_eq!((usage.processes, usage.threads), (3, 3));
        assert!(usage.memory_bytes > 10_000 && usage.open_files >= 9, "{usage:?}");
        assert_eq!(meter.pss.len(), 3);
        for row in snapshot().into_iter().filter(|row| row.parent == child.id()) {
            let pid = nix::unistd::Pid::from_raw(row.pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut roots = HashMap::from([(child.id(), 0)]);
        assert_eq!(meter.measure_roots(&snapshot(), &mut roots, 1, Duration::ZERO)[0], Usage::default());
        assert!(meter.pss.is_empty());
    }
}
