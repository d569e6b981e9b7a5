use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

/// The environment variable that tells whose process it is.
pub const MARK: &str = "MACHINIST_MARK";

/// A process that an earlier life of the engine left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    pub pid: u32,
    pub mark: String,
    pub command: String,
}

#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: u32,
    session: u32,
    zombie: bool,
}

/// Everything alive that belongs to the child `pid`: itself, its descendants, its session, and orphans that carry its mark
/// or descend from one that does. `managed` are the engine's other children, which are somebody else's.
pub(super) fn members(pid: u32, mark: &str, managed: &[u32]) -> Vec<u32> {
    let mut members = BTreeSet::new();
    let mut open: Vec<u32> = Vec::new();
    for child in own_children() {
        let Some(stat) = stat(child).filter(|stat| !stat.zombie) else { continue };
        let ours = child == pid || (!managed.contains(&child) && (stat.session == pid || has_mark(child, mark)));
        if ours {
            open.push(child);
        }
    }
    while let Some(member) = open.pop() {
        if members.insert(member) {
            open.extend(children_of(member).into_iter().filter(|child| stat(*child).is_some_and(|stat| !stat.zombie)));
        }
    }
    members.into_iter().collect()
}

/// Ends the processes whose mark begins with `machine` and not with `own`: first asks (SIGTERM), then, after `grace`, kills.
/// Blocks until they are gone, at most a few seconds longer. Answers whom it met.
pub fn kill_leftovers(machine: &str, own: &str, grace: Duration) -> Vec<Leftover> {
    let mut met: BTreeMap<u32, Leftover> = BTreeMap::new();
    let begun = Instant::now();
    let mut asked = BTreeSet::new();
    while begun.elapsed() < grace + Duration::from_secs(5) {
        let leftovers = find_leftovers(machine, own);
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
            }
            met.entry(leftover.pid).or_insert(leftover);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    met.into_values().collect()
}

fn find_leftovers(machine: &str, own: &str) -> Vec<Leftover> {
    let mut found = Vec::new();
    for pid in all_processes() {
        let Some(mark) = mark_of(pid).filter(|mark| mark.starts_with(machine) && !mark.starts_with(own)) else {
            continue;
        };
        if pid != std::process::id() && stat(pid).is_some_and(|stat| !stat.zombie) {
            found.push(Leftover { pid, mark, command: command_of(pid) });
        }
    }
    found
}

/// The engine's own children, orphans that came to it included.
fn own_children() -> Vec<u32> {
    children_of(std::process::id())
}

/// The kernel lists children by the thread that made them; a kernel without these lists is asked process by process.
fn children_of(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for task in tasks.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => children.extend(parse_pids(&text)),
            Err(_) if task.path().exists() => return children_by_scan(pid),
            Err(_) => {}
        }
    }
    children
}

fn children_by_scan(parent: u32) -> Vec<u32> {
    all_processes().into_iter().filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

fn all_processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parse_pids(text: &str) -> impl Iterator<Item = u32> {
    text.split_whitespace().filter_map(|pid| pid.parse().ok())
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, parentheses too.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { parent, session, zombie: matches!(state, "Z" | "X") })
}

fn has_mark(pid: u32, mark: &str) -> bool {
    mark_of(pid).is_some_and(|found| found == mark)
}

fn mark_of(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entry = environment.split(|byte| *byte == 0).find_map(|entry| {
        let rest = entry.strip_prefix(MARK.as_bytes())?;
        rest.strip_prefix(b"=")
    })?;
    Some(String::from_utf8_lossy(entry).into_owned())
}

fn command_of(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim_end().chars().take(200).collect()
}
