use std::fmt;
use std::path::Path;

use nix::sys::resource::{Resource as Limit, getrlimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gpu::GpuStatus;
use crate::base::ByteSize;

/// What a machine can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Memory,
    /// Of the state directory's file system.
    Disk,
    /// Open file descriptors, of the engine and of the host.
    Files,
    GpuMemory,
}

/// How much of a resource is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Level {
    pub resource: Resource,
    /// Of 1.
    pub used: f64,
    /// For people.
    pub detail: String,
}

impl Resource {
    pub const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Files, Self::GpuMemory];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Files => "files",
            Self::GpuMemory => "gpu_memory",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The levels of now; a resource that cannot be read is left out, and of several places the fullest counts. Blocks.
pub fn levels(state_dir: &Path, gpus: &[GpuStatus]) -> Vec<Level> {
    let fullest = |resource: Resource, found: Vec<(u64, u64, String)>| {
        let levels = found.into_iter().filter(|(_, total, _)| *total > 0).map(|(used, total, detail)| {
            #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
            let share = used as f64 / total as f64;
            Level { resource, used: share, detail }
        });
        levels.max_by(|a, b| a.used.total_cmp(&b.used))
    };
    let memory = [group_memory(), host_memory()].into_iter().flatten().collect();
    let disk = disk(state_dir).into_iter().collect();
    let files = [own_files(), host_files()].into_iter().flatten().collect();
    [
        fullest(Resource::Memory, memory),
        fullest(Resource::Disk, disk),
        fullest(Resource::Files, files),
        fullest(Resource::GpuMemory, gpus.iter().filter_map(gpu_memory).collect()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Processes that run or want to, on average over 1, 5 and 15 minutes.
pub fn load() -> Option<[f64; 3]> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let numbers: Vec<f64> = text.split_ascii_whitespace().take(3).filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().ok()
}

fn bytes(what: &str, used: u64, total: u64) -> (u64, u64, String) {
    (used, total, format!("{} of {} {what}", ByteSize(used), ByteSize(total)))
}

/// Page cache that the kernel gives back by itself does not count.
fn group_memory() -> Option<(u64, u64, String)> {
    let v2 = Path::new("/sys/fs/cgroup/memory.current");
    let (used, total, stat, cache) = if v2.exists() {
        (number(v2)?, number(Path::new("/sys/fs/cgroup/memory.max"))?, "/sys/fs/cgroup/memory.stat", "inactive_file ")
    } else {
        let base = Path::new("/sys/fs/cgroup/memory");
        let total = number(&base.join("memory.limit_in_bytes"))?;
        (
            number(&base.join("memory.usage_in_bytes"))?,
            total,
            "/sys/fs/cgroup/memory/memory.stat",
            "total_inactive_file ",
        )
    };
    // Without a limit v1 shows a number beyond all memory.
    if total > 1 << 60 {
        return None;
    }
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    let cached = text.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(bytes("of the container's memory", used.saturating_sub(cached), total))
}

fn host_memory() -> Option<(u64, u64, String)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let (total, available) = (value("MemTotal:")?, value("MemAvailable:")?);
    Some(bytes("of the host's memory", total.saturating_sub(available), total))
}

fn disk(path: &Path) -> Option<(u64, u64, String)> {
    let (total, free) = disk_space(path)?;
    Some(bytes(&format!("on the disk of {}", path.display()), total - free, total))
}

/// The bytes of the file system that `path` lies on, and those that are free. What only root may use is not there for others.
pub fn disk_space(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    let free = stat.blocks_available() * block;
    Some(((stat.blocks() - stat.blocks_free()) * block + free, free))
}

fn own_files() -> Option<(u64, u64, String)> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let (limit, _) = getrlimit(Limit::RLIMIT_NOFILE).ok()?;
    Some((open, limit, format!("{open} of the engine's {limit} file descriptors")))
}

fn host_files() -> Option<(u64, u64, String)> {
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr").ok()?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (open, limit) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
    Some((open, limit, format!("{open} of the host's {limit} open files")))
}

fn gpu_memory(status: &GpuStatus) -> Option<(u64, u64, String)> {
    let sample = status.sample.as_ref()?;
    let (used, total) = (sample.memory_used_bytes?, sample.memory_total_bytes?);
    Some(bytes(&format!("of GPU {}'s memory", status.gpu.index), used, total))
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_levels() {
        let levels = levels(Path::new("/tmp"), &[]);
        for resource in [Resource::Memory, Resource::Disk, Resource::Files] {
            let level = levels.iter().find(|level| level.resource == resource).unwrap();
            assert!((0.0..=1.0).contains(&level.used), "{level:?}");
        }
    }
}
