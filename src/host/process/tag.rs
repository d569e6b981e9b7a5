#![expect(unsafe_code, reason = "prlimit is called on a limit that nix does not know")]

use std::fs;
use std::io;

/// Tells which spawn of which life of which machine a process descends from, in a place that it cannot lose by accident:
/// the soft limit of `RLIMIT_LOCKS`, which children inherit over fork and exec and which the kernel has not used since
/// Linux 2.4.25 (getrlimit(2)). A program may clear its environment, begin a session, be adopted and close all files, and
/// still carries it; `/proc/PID/limits` shows it to everybody.
///
/// ```text
/// 62          32 31        20 19                 0
/// [machine hash  | life      | spawn              ]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

const SPAWN_BITS: u32 = 20;
const LIFE_BITS: u32 = 12;

impl Tag {
    /// The tag of a life of the engine, `<machine>/<incarnation>`; its spawns differ in the lowest bits.
    pub fn life(prefix: &str) -> Self {
        let (machine, incarnation) = prefix.rsplit_once('/').unwrap_or((prefix, "0"));
        let incarnation: u64 = incarnation.parse().unwrap_or(0);
        let life = incarnation & ((1 << LIFE_BITS) - 1);
        // Never 0 in its machine's part: 0 is what somebody may have set as a limit.
        let hash = (fnv1a(machine) & 0x7fff_ffff) | 1;
        Self((hash << (SPAWN_BITS + LIFE_BITS)) | (life << SPAWN_BITS))
    }

    pub fn spawn(self, number: u64) -> Self {
        Self(self.0 | (number & ((1 << SPAWN_BITS) - 1)))
    }

    pub fn same_machine(self, other: Self) -> bool {
        self.0 >> (SPAWN_BITS + LIFE_BITS) == other.0 >> (SPAWN_BITS + LIFE_BITS)
    }

    pub fn same_life(self, other: Self) -> bool {
        self.0 >> SPAWN_BITS == other.0 >> SPAWN_BITS
    }

    /// What `pid` carries; none where it carries nothing or is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
        line.split_ascii_whitespace().next()?.parse().ok().map(Self)
    }

    /// Lets what `spawn` starts inherit this tag. The caller sees to it that no other spawn happens meanwhile.
    pub fn while_spawning<T>(self, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let before = exchange(self.0);
        let result = spawn();
        if let Some(before) = before {
            exchange(before);
        }
        result
    }
}

/// Sets the engine's own soft limit; none where a sandbox forbids it, and then the mark has to do.
fn exchange(soft: u64) -> Option<u64> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_LOCKS, &raw mut old) } != 0 {
        return None;
    }
    let new = libc::rlimit { rlim_cur: soft.min(old.rlim_max), rlim_max: old.rlim_max };
    // SAFETY: as above.
    (unsafe { libc::setrlimit(libc::RLIMIT_LOCKS, &raw const new) } == 0).then_some(old.rlim_cur)
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::Tag;

    #[test]
    fn tags_tell_machines_lives_and_spawns_apart() {
        let (life, next) = (Tag::life("gpu-1/7"), Tag::life("gpu-1/8"));
        let other = Tag::life("gpu-2/7");
        assert!(life.spawn(1) != life.spawn(2) && life.spawn(1).same_life(life) && life.spawn(1).same_machine(next));
        assert!(!life.spawn(1).same_life(next.spawn(1)) && !life.same_machine(other));
        assert!(life.spawn(u64::MAX).same_life(life) && life.0 < u64::MAX >> 1);
    }

    #[test]
    fn a_child_carries_the_tag_and_the_engine_does_not_keep_it() {
        let tag = Tag::life("m/1").spawn(3);
        let before = Tag::of(std::process::id());
        let mut child = tag.while_spawning(|| std::process::Command::new("sleep").arg("60").spawn()).unwrap();
        assert_eq!(Tag::of(child.id()), Some(tag));
        assert_eq!(Tag::of(std::process::id()), before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
