use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::process::{Entry, Lineage, Row, listing, row, with_file};

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
#[derive(Debug)]
pub struct Meter {
    pss: HashMap<(u32, u64), (u64, Instant)>,
    /// Processes that the engine is no ancestor of, with the inodes of their directories. None of them can come to be below
    /// it: orphans go up to an ancestor. So nothing of them is read again.
    strangers: HashMap<u32, u64>,
    /// How many read at once.
    readers: usize,
}

/// `USER_HZ`, fixed on Linux.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;
/// Nearly all of the time the kernel writes numbers as text, for as many at once as there are CPUs.
const MOST_READERS: usize = 4;
/// From a process up to the first of all.
const LONGEST_WAY: usize = 1_000;
/// Fewer processes are not worth another thread.
const SHARE: usize = 32;

impl Default for Meter {
    fn default() -> Self {
        let readers = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MOST_READERS));
        Self { pss: HashMap::new(), strangers: HashMap::new(), readers }
    }
}

/// A process of a measured tree, and what it uses beside what its row says.
struct Member<'a> {
    row: &'a Row,
    root: usize,
    io: (u64, u64),
    open_files: u64,
    /// Its share of memory where it was read now, with when.
    pss: Option<(u64, Instant)>,
}

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
        let rows = self.rows();
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

    /// All processes but those that are known for strangers.
    fn rows(&mut self) -> Vec<Row> {
        let entries = listing();
        let strange = |entry: &Entry| self.strangers.get(&entry.pid) == Some(&entry.inode);
        let (known, open): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(strange);
        let read = |share: &[Entry]| share.iter().filter_map(|entry| row(entry.pid)).collect();
        let rows: Vec<Row> = spread(&open, self.readers_of(open.len()), read);
        self.strangers = known.into_iter().map(|entry| (entry.pid, entry.inode)).collect();
        let parents = parents(&rows);
        let inodes: HashMap<u32, u64> = open.into_iter().map(|entry| (entry.pid, entry.inode)).collect();
        let new = rows.iter().filter(|row| is_stranger(row.pid, &parents, &self.strangers));
        let new: Vec<(u32, u64)> = new.filter_map(|row| Some((row.pid, *inodes.get(&row.pid)?))).collect();
        self.strangers.extend(new);
        rows
    }

    fn measure_roots(
        &mut self,
        rows: &[Row],
        owner: &mut HashMap<u32, usize>,
        count: usize,
        budget: Duration,
    ) -> Vec<Usage> {
        let parents = parents(rows);
        let mut members: Vec<(usize, &Row)> = Vec::new();
        for row in rows {
            if let Some(root) = find_owner(row.pid, &parents, owner) {
                members.push((root, row));
            }
        }
        members.retain(|(_, row)| !row.zombie);
        let readers = self.readers_of(members.len());
        // Each reader has its part of the time, so that as much is read whatever their number.
        let budget = budget / u32::try_from(readers).unwrap_or(1);
        let members = spread(&members, readers, |share| read_members(share, &self.pss, budget));
        let mut usages = vec![Usage::default(); count];
        let alive: HashSet<(u32, u64)> =
            rows.iter().filter(|row| !row.zombie).map(|row| (row.pid, row.begun_ticks)).collect();
        self.pss.retain(|key, _| alive.contains(key));
        for Member { row, root, io, open_files, pss } in members {
            let key = (row.pid, row.begun_ticks);
            self.pss.extend(pss.map(|pss| (key, pss)));
            let known = self.pss.get(&key).map(|(bytes, _)| *bytes);
            let usage = &mut usages[root];
            usage.processes += 1;
            usage.threads += row.threads;
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a double")]
            let ticks = row.cpu_ticks as f64;
            usage.cpu_seconds += ticks / TICKS;
            usage.read_bytes += io.0;
            usage.written_bytes += io.1;
            usage.open_files += open_files;
            usage.memory_bytes += known.unwrap_or(row.resident_pages * PAGE);
        }
        usages
    }

    fn readers_of(&self, processes: usize) -> usize {
        processes.div_ceil(SHARE).clamp(1, self.readers)
    }
}

fn read_members<'a>(
    share: &[(usize, &'a Row)],
    known: &HashMap<(u32, u64), (u64, Instant)>,
    budget: Duration,
) -> Vec<Member<'a>> {
    let member = |(root, row): &(usize, &'a Row)| Member {
        row,
        root: *root,
        io: io_bytes(row.pid),
        open_files: open_files(row.pid),
        pss: None,
    };
    let mut members: Vec<Member> = share.iter().map(member).collect();
    let begun = Instant::now();
    let mut order: Vec<&mut Member> = members.iter_mut().collect();
    order.sort_by_key(|member| known.get(&(member.row.pid, member.row.begun_ticks)).map(|(_, at)| *at));
    for member in order {
        if begun.elapsed() >= budget {
            break;
        }
        member.pss = pss(member.row.pid).map(|bytes| (bytes, Instant::now()));
    }
    members
}

/// What `look` makes of all `items`, in their order: each of so many threads looks at its share of them.
fn spread<T: Sync, R: Send>(items: &[T], threads: usize, look: impl Fn(&[T]) -> Vec<R> + Sync) -> Vec<R> {
    let mut shares = items.chunks(items.len().div_ceil(threads).max(1));
    let own = shares.next().unwrap_or_default();
    let look = &look;
    thread::scope(|scope| {
        let begin = |share| thread::Builder::new().name("usage".to_owned()).spawn_scoped(scope, move || look(share));
        let others: Vec<_> = shares.map(|share| (share, begin(share).ok())).collect();
        let mut found = look(own);
        for (share, other) in others {
            // Where there is no thread to be had, this one looks.
            found.extend(other.and_then(|other| other.join().ok()).unwrap_or_else(|| look(share)));
        }
        found
    })
}

fn parents(rows: &[Row]) -> HashMap<u32, u32> {
    rows.iter().map(|row| (row.pid, row.parent)).collect()
}

/// Whether the way up from `pid` ends without having met the engine. Where it breaks off, because somebody on it has just
/// ended, nothing is known.
fn is_stranger(pid: u32, parents: &HashMap<u32, u32>, strangers: &HashMap<u32, u64>) -> bool {
    let (me, mut at) = (std::process::id(), pid);
    for _ in 0..LONGEST_WAY {
        if at == 0 || strangers.contains_key(&at) {
            return true;
        }
        match parents.get(&at) {
            Some(parent) if at != me => at = *parent,
            _ => return false,
        }
    }
    false
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
            Some(parent) if *parent > 0 && path.len() < LONGEST_WAY => at = *parent,
            _ => break None,
        }
    };
    if let Some(root) = found {
        owner.extend(path.into_iter().map(|pid| (pid, root)));
    }
    found
}

/// How many files the process has open; 0 where nobody may know. Since Linux 6.2 the size of the directory tells; before, they
/// are counted.
pub fn open_files(pid: u32) -> u64 {
    let directory = format!("/proc/{pid}/fd");
    match fs::metadata(&directory) {
        Ok(found) if found.len() > 0 => found.len(),
        Ok(_) => fs::read_dir(directory).map_or(0, |entries| entries.count() as u64),
        Err(_) => 0,
    }
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
    use super::super::process::snapshot;
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
        // The others end when their signals have reached them.
        while !meter.pss.is_empty() {
            assert!(Instant::now() < deadline);
            let mut roots = HashMap::from([(child.id(), 0)]);
            assert_eq!(meter.measure_roots(&snapshot(), &mut roots, 1, Duration::ZERO)[0], Usage::default());
        }
    }

    #[test]
    fn strangers_are_read_once_and_the_engines_own_always() {
        let mut meter = Meter::default();
        let mut before = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let has = |rows: &[Row], pid: u32| rows.iter().any(|row| row.pid == pid);
        let (me, parent) = (std::process::id(), std::os::unix::process::parent_id());
        let rows = meter.rows();
        assert!([me, parent, before.id()].into_iter().all(|pid| has(&rows, pid)));
        assert!(meter.strangers.contains_key(&parent), "{:?}", meter.strangers);
        let mut after = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let rows = meter.rows();
        assert!([me, before.id(), after.id()].into_iter().all(|pid| has(&rows, pid)) && !has(&rows, parent));
        // One that was a stranger's number.
        meter.strangers.insert(after.id(), 1);
        assert!(has(&meter.rows(), after.id()));
        for child in [&mut before, &mut after] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Whose way up breaks off is read again.
        let parents = HashMap::from([(7, 8), (9, 1), (1, 0)]);
        let strange = |pid| is_stranger(pid, &parents, &HashMap::new());
        assert!(!strange(7) && strange(9) && strange(1) && !strange(me));
        assert!(is_stranger(7, &parents, &HashMap::from([(8, 1)])));
    }

    #[test]
    fn threads_share_what_there_is_in_its_order() {
        let items: Vec<u32> = (0..100).collect();
        for threads in [1, 3, 4, 100, 200] {
            assert_eq!(
                spread(&items, threads, |share| share.iter().map(|item| item * 2).collect()),
                items.iter().map(|item| item * 2).collect::<Vec<_>>()
            );
        }
        assert!(spread(&[], 4, <[u32]>::to_vec).is_empty());
        // A share whose thread fails is looked at by the one that asked.
        let me = thread::current().id();
        let look = |share: &[u32]| {
            assert!(thread::current().id() == me || share[0] == 50, "as a test wants it");
            share.to_vec()
        };
        assert_eq!(spread(&items, 4, look), items);
    }
}
