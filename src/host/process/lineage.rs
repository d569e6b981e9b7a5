use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::Serialize;

use super::table::{self, Row};
use super::tag::Tag;

/// The environment variable that tells people and programs whose process it is.
pub const MARK: &str = "MACHINIST_MARK";

/// All processes that one spawn has led to, whatever they did to get away: its own process, its descendants, its
/// session, and orphans that carry its tag or its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub pid: u32,
    pub(super) tag: Tag,
    pub(super) mark: Arc<str>,
    /// Programs that may outlive it, by the name that `ps` shows.
    pub(super) detach: Arc<[String]>,
}

impl Lineage {
    pub fn may_detach(&self) -> bool {
        !self.detach.is_empty()
    }

    /// Which of `lineages` the process carries the tag of.
    pub fn of(pid: u32, lineages: &[&Self]) -> Option<usize> {
        let tag = Tag::of(pid)?;
        lineages.iter().position(|lineage| lineage.tag == tag)
    }
}

/// A process that an earlier life of the engine left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Leftover {
    pub pid: u32,
    pub mark: String,
    pub command: String,
}

/// The children of the engine's first thread: orphans become children of that one, services of the thread that started
/// them. None where the kernel has no such list. No child may be reaped meanwhile, or the kernel skips others.
pub(super) fn adopted() -> Option<Vec<u32>> {
    let me = std::process::id();
    let text = fs::read_to_string(format!("/proc/self/task/{me}/children")).ok()?;
    Some(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// What a look at adopted processes tells about a lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// One of them is of it and lives.
    Left,
    /// None of them is, and so nothing of it lives: whatever lives of it hangs below one of them.
    Nothing,
    /// One that was of it, or may have been, has just died; what hung below it has been adopted since.
    Again,
}

/// Gives up at `until`, with [`Look::Again`].
pub(super) fn look(pids: &[u32], lineage: &Lineage, until: Instant) -> Look {
    let mut again = false;
    for pid in pids {
        if Instant::now() >= until {
            return Look::Again;
        }
        match table::row(*pid) {
            Some(row) if !row.zombie => {
                if belongs(&row, lineage) && !lineage.detach.contains(&row.name) {
                    return Look::Left;
                }
            }
            // The dead still carry their tag until they are reaped.
            Some(_) => again |= Tag::of(*pid).is_none_or(|tag| tag == lineage.tag),
            None => again = true,
        }
    }
    if again { Look::Again } else { Look::Nothing }
}

/// Everything alive of this lineage but what may detach. `managed` are the engine's other children.
pub(super) fn members(lineage: &Lineage, managed: &HashSet<u32>) -> Vec<u32> {
    split(lineage, managed).0
}

/// What is detached of this lineage and lives.
pub(super) fn detached(lineage: &Lineage, managed: &HashSet<u32>) -> Vec<u32> {
    split(lineage, managed).1
}

fn split(lineage: &Lineage, managed: &HashSet<u32>) -> (Vec<u32>, Vec<u32>) {
    let me = std::process::id();
    let rows = table::snapshot();
    let mut children: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in rows.iter().filter(|row| !row.zombie) {
        children.entry(row.parent).or_default().push(row);
    }
    let ours = |row: &&&Row| row.pid == lineage.pid || (!managed.contains(&row.pid) && belongs(row, lineage));
    let mut open: Vec<(&Row, bool)> =
        children.get(&me).into_iter().flatten().filter(ours).map(|row| (*row, false)).collect();
    let (mut members, mut detached) = (BTreeSet::new(), BTreeSet::new());
    while let Some((row, outer)) = open.pop() {
        let away = outer || (row.pid != lineage.pid && lineage.detach.contains(&row.name));
        if members.contains(&row.pid) || detached.contains(&row.pid) {
            continue;
        }
        if away {
            detached.insert(row.pid)
        } else {
            members.insert(row.pid)
        };
        open.extend(children.get(&row.pid).into_iter().flatten().map(|child| (*child, away)));
    }
    (members.into_iter().collect(), detached.into_iter().collect())
}

fn belongs(row: &Row, lineage: &Lineage) -> bool {
    row.session == lineage.pid
        || Tag::of(row.pid) == Some(lineage.tag)
        || mark_of(row.pid).as_deref() == Some(&*lineage.mark)
}

/// Ends the processes of earlier lives of this machine: those whose mark begins with `machine` and not with `own`, or that
/// carry the tag of such a life. First asks (SIGTERM), then, after `grace`, kills. `detached` says which programs of which
/// owner may live on. Blocks until the others are gone, at most a few seconds longer. Answers whom it met.
pub fn kill_leftovers(
    machine: &str,
    own: &str,
    grace: Duration,
    detached: &dyn Fn(&str) -> Vec<String>,
) -> Vec<Leftover> {
    let mut met: BTreeMap<u32, Leftover> = BTreeMap::new();
    let begun = Instant::now();
    let mut asked = BTreeSet::new();
    while begun.elapsed() < grace + Duration::from_secs(5) {
        let leftovers = find_leftovers(machine, own, detached);
        if leftovers.is_empty() {
            break;
        }
        let hard = begun.elapsed() >= grace;
        for leftover in leftovers {
            let pid = Pid::from_raw(i32::try_from(leftover.pid).unwrap_or(0));
            if pid.as_raw() > 1 && hard {
                let _ = kill(pid, Signal::SIGKILL);
            } else if pid.as_raw() > 1 && asked.insert(leftover.pid) {
                let _ = kill(pid, Signal::SIGTERM);
                // A stopped process would not hear it.
                let _ = kill(pid, Signal::SIGCONT);
            }
            met.entry(leftover.pid).or_insert(leftover);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    met.into_values().collect()
}

fn find_leftovers(machine: &str, own: &str, detached: &dyn Fn(&str) -> Vec<String>) -> Vec<Leftover> {
    let life = Tag::life(own.trim_end_matches('/'));
    let mut found = Vec::new();
    let mut spared = HashSet::new();
    // Parents have mostly lower numbers than their children, so what hangs below a spared process is met after it.
    for row in table::snapshot() {
        if row.pid == std::process::id() || row.zombie {
            continue;
        }
        if spared.contains(&row.parent) {
            spared.insert(row.pid);
            continue;
        }
        let mark = mark_of(row.pid).filter(|mark| mark.starts_with(machine));
        let tagged = Tag::of(row.pid).is_some_and(|tag| tag.same_machine(life) && !tag.same_life(life));
        let mark = match mark {
            Some(mark) if mark.starts_with(own) => continue,
            Some(mark) => mark,
            None if tagged => format!("{machine}?"),
            None => continue,
        };
        let owner = mark.split('/').nth(2).unwrap_or_default();
        if detached(owner).contains(&row.name) {
            spared.insert(row.pid);
            continue;
        }
        found.push(Leftover { pid: row.pid, mark, command: table::command(row.pid) });
    }
    found
}

fn mark_of(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entry = environment.split(|byte| *byte == 0).find_map(|entry| {
        let rest = entry.strip_prefix(MARK.as_bytes())?;
        rest.strip_prefix(b"=")
    })?;
    Some(String::from_utf8_lossy(entry).into_owned())
}
