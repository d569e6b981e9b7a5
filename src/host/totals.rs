use std::fs;
use std::path::Path;

/// What the host has done and has, from `/proc`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTotals {
    pub cpus: u32,
    /// Seconds of all CPUs, by mode.
    pub cpu_seconds: Vec<(&'static str, f64)>,
    pub memory: HostMemory,
    pub disks: Vec<DiskTotals>,
    pub interfaces: Vec<InterfaceTotals>,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    pub total: Option<u64>,
    pub available: Option<u64>,
    pub swap_total: Option<u64>,
    pub swap_free: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskTotals {
    pub device: String,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub busy_seconds: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceTotals {
    pub interface: String,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Received, then sent.
    pub errors: [u64; 2],
    pub dropped: [u64; 2],
}

/// What the control group at the root of `/sys/fs/cgroup` has used and may use: the container's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerTotals {
    pub user_seconds: Option<f64>,
    pub system_seconds: Option<f64>,
    pub cpu_limit: Option<f64>,
    pub throttled_seconds: Option<f64>,
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    /// Without what the kernel gives back by itself.
    pub memory_bytes: Option<u64>,
    pub cache_bytes: Option<u64>,
    pub memory_limit: Option<u64>,
    pub oom_kills: Option<u64>,
    pub read_bytes: Option<u64>,
    pub written_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub processes_limit: Option<u64>,
}

/// `USER_HZ`, fixed on Linux.
const TICKS: f64 = 100.0;
/// The unit of `/proc/diskstats`, whatever the disk.
const SECTOR: u64 = 512;
/// Disks and interfaces are shown up to here.
const MOST: usize = 64;
/// Version 1 shows a limit beyond all memory where there is none.
const NO_LIMIT: u64 = 1 << 60;
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

impl HostTotals {
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/stat");
        let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        let whole = |device: &str| Path::new("/sys/block").join(device).exists();
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            cpu_seconds: cpu_seconds(&stat),
            memory: HostMemory::parse(&read("/proc/meminfo")),
            disks: disks(&read("/proc/diskstats"), whole),
            interfaces: interfaces(&read("/proc/self/net/dev")),
        }
    }
}

fn cpu_seconds(stat: &str) -> Vec<(&'static str, f64)> {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return Vec::new() };
    let values = line.split_ascii_whitespace().filter_map(|ticks| ticks.parse::<f64>().ok());
    MODES.into_iter().zip(values.map(|ticks| ticks / TICKS)).collect()
}

impl HostMemory {
    fn parse(meminfo: &str) -> Self {
        let value = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        Self {
            total: value("MemTotal"),
            available: value("MemAvailable"),
            swap_total: value("SwapTotal"),
            swap_free: value("SwapFree"),
        }
    }
}

/// Whole disks; partitions are part of them, and what lies in memory or in a file is none.
fn disks(diskstats: &str, whole: impl Fn(&str) -> bool) -> Vec<DiskTotals> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let device = (*fields.get(2)?).to_owned();
        if ["loop", "ram", "zram"].iter().any(|prefix| device.starts_with(prefix)) || !whole(&device) {
            return None;
        }
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let busy_milliseconds = fields.get(12)?.parse::<f64>().ok()?;
        let (read, written) = (number(5)?, number(9)?);
        let busy_seconds = busy_milliseconds / 1000.0;
        Some(DiskTotals { device, read_bytes: read * SECTOR, written_bytes: written * SECTOR, busy_seconds })
    };
    diskstats.lines().filter_map(line).take(MOST).collect()
}

/// All but the loopback.
fn interfaces(dev: &str) -> Vec<InterfaceTotals> {
    let line = |line: &str| {
        let (interface, counts) = line.split_once(':')?;
        let interface = interface.trim().to_owned();
        let counts: Vec<u64> = counts.split_ascii_whitespace().map_while(|count| count.parse().ok()).collect();
        let [
            received_bytes,
            _,
            received_errors,
            received_dropped,
            _,
            _,
            _,
            _,
            sent_bytes,
            _,
            sent_errors,
            sent_dropped,
            ..,
        ] = counts[..]
        else {
            return None;
        };
        (interface != "lo").then_some(InterfaceTotals {
            interface,
            received_bytes,
            sent_bytes,
            errors: [received_errors, sent_errors],
            dropped: [received_dropped, sent_dropped],
        })
    };
    dev.lines().filter_map(line).take(MOST).collect()
}

impl ContainerTotals {
    /// None where there is no control group of the engine's own: at the root of a host.
    pub fn read() -> Option<Self> {
        Self::read_in(Path::new("/sys/fs/cgroup"))
    }

    fn read_in(root: &Path) -> Option<Self> {
        if root.join("memory.current").exists() || root.join("pids.current").exists() {
            return Some(Self::of_version_2(root));
        }
        root.join("memory/memory.usage_in_bytes").exists().then(|| Self::of_version_1(root))
    }

    fn of_version_2(root: &Path) -> Self {
        let (cpu, memory, events) = (text(root, "cpu.stat"), text(root, "memory.stat"), text(root, "memory.events"));
        let limit = text(root, "cpu.max");
        let cpu_limit = limit
            .trim()
            .split_once(' ')
            .and_then(|(quota, period)| Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?));
        let io = text(root, "io.stat");
        let io_of = |key: &str| {
            (!io.is_empty()).then(|| {
                io.split_ascii_whitespace().filter_map(|pair| pair.strip_prefix(key)?.parse::<u64>().ok()).sum()
            })
        };
        let idle = field(&memory, "inactive_file").unwrap_or(0);
        Self {
            user_seconds: field(&cpu, "user_usec").map(micros),
            system_seconds: field(&cpu, "system_usec").map(micros),
            cpu_limit,
            throttled_seconds: field(&cpu, "throttled_usec").map(micros),
            periods: field(&cpu, "nr_periods"),
            throttled_periods: field(&cpu, "nr_throttled"),
            memory_bytes: number(root, "memory.current").map(|used| used.saturating_sub(idle)),
            cache_bytes: field(&memory, "file"),
            memory_limit: number(root, "memory.max"),
            oom_kills: field(&events, "oom_kill"),
            read_bytes: io_of("rbytes="),
            written_bytes: io_of("wbytes="),
            processes: number(root, "pids.current"),
            processes_limit: number(root, "pids.max"),
        }
    }

    fn of_version_1(root: &Path) -> Self {
        let (cpu, memory) = (text(root, "cpu/cpu.stat"), text(root, "memory/memory.stat"));
        // Ticks of user and system mode; `cpuacct` is usually one with `cpu`.
        let accounts = text(root, "cpuacct/cpuacct.stat");
        let accounts = if accounts.is_empty() { text(root, "cpu/cpuacct.stat") } else { accounts };
        let seconds = |key: &str| {
            accounts
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok())
                .map(|ticks| ticks / TICKS)
        };
        let signed = |path: &str| text(root, path).trim().parse::<f64>().ok();
        let cpu_limit = signed("cpu/cpu.cfs_quota_us").zip(signed("cpu/cpu.cfs_period_us"));
        let cpu_limit = cpu_limit.filter(|(quota, period)| *quota > 0.0 && *period > 0.0);
        let io = text(root, "blkio/blkio.throttle.io_service_bytes");
        let io_of = |kind: &str| {
            let of_line = |line: &str| line.split_once(kind)?.1.trim().parse::<u64>().ok();
            (!io.is_empty()).then(|| io.lines().filter_map(of_line).sum())
        };
        let idle = field(&memory, "total_inactive_file").unwrap_or(0);
        Self {
            user_seconds: seconds("user "),
            system_seconds: seconds("system "),
            cpu_limit: cpu_limit.map(|(quota, period)| quota / period),
            throttled_seconds: field(&cpu, "throttled_time").map(|nanoseconds| micros(nanoseconds / 1000)),
            periods: field(&cpu, "nr_periods"),
            throttled_periods: field(&cpu, "nr_throttled"),
            memory_bytes: number(root, "memory/memory.usage_in_bytes").map(|used| used.saturating_sub(idle)),
            cache_bytes: field(&memory, "total_cache"),
            memory_limit: number(root, "memory/memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT),
            oom_kills: field(&text(root, "memory/memory.oom_control"), "oom_kill"),
            read_bytes: io_of(" Read "),
            written_bytes: io_of(" Write "),
            processes: number(root, "pids/pids.current"),
            processes_limit: number(root, "pids/pids.max"),
        }
    }
}

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

/// A file with one number; `max` is none.
fn number(root: &Path, path: &str) -> Option<u64> {
    text(root, path).trim().parse().ok()
}

/// A line `key value`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[expect(clippy::cast_precision_loss, reason = "a sample is a double")]
fn micros(value: u64) -> f64 {
    value as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_container_of_version_2_with_limits() {
        let root = tree(&[
            (
                "cpu.stat",
                "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 500000\n",
            ),
            ("cpu.max", "150000 100000\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "4096\n"),
            ("memory.stat", "anon 1\nfile 300\ninactive_file 200\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n"),
            ("pids.current", "7\n"),
            ("pids.max", "100\n"),
        ]);
        let expected = ContainerTotals {
            user_seconds: Some(2.0),
            system_seconds: Some(1.0),
            cpu_limit: Some(1.5),
            throttled_seconds: Some(0.5),
            periods: Some(9),
            throttled_periods: Some(4),
            memory_bytes: Some(800),
            cache_bytes: Some(300),
            memory_limit: Some(4096),
            oom_kills: Some(2),
            read_bytes: Some(11),
            written_bytes: Some(22),
            processes: Some(7),
            processes_limit: Some(100),
        };
        assert_eq!(ContainerTotals::read_in(root.path()), Some(expected));
    }

    #[test]
    fn a_container_of_version_1_and_one_without_limits() {
        let root = tree(&[
            ("cpu/cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 500000000\n"),
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpuacct/cpuacct.stat", "user 200\nsystem 100\n"),
            ("memory/memory.usage_in_bytes", "1000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.stat", "cache 1\ntotal_cache 300\ntotal_inactive_file 200\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("blkio/blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n"),
            ("pids/pids.current", "7\n"),
            ("pids/pids.max", "max\n"),
        ]);
        let found = ContainerTotals::read_in(root.path()).unwrap();
        assert_eq!(
            (found.user_seconds, found.system_seconds, found.throttled_seconds),
            (Some(2.0), Some(1.0), Some(0.5))
        );
        assert_eq!((found.cpu_limit, found.memory_limit, found.processes_limit), (None, None, None));
        assert_eq!((found.memory_bytes, found.cache_bytes, found.oom_kills), (Some(800), Some(300), Some(2)));
        assert_eq!((found.read_bytes, found.written_bytes, found.processes), (Some(11), Some(20), Some(7)));
        let unlimited = tree(&[("memory.current", "1000\n"), ("memory.max", "max\n"), ("cpu.max", "max 100000\n")]);
        let found = ContainerTotals::read_in(unlimited.path()).unwrap();
        assert_eq!((found.memory_bytes, found.memory_limit, found.cpu_limit), (Some(1000), None, None));
        // The root of a host has a cpu.stat and nothing of its own.
        assert_eq!(ContainerTotals::read_in(tree(&[("cpu.stat", "usage_usec 1\n")]).path()), None);
    }

    #[test]
    fn disks_are_whole_ones_and_interfaces_are_not_the_loopback() {
        let diskstats = "   7       0 loop0 1 0 2 0 0 0 0 0 0 0 0\n\
                           8       0 sda 10 0 20 30 40 0 50 60 0 7000 80 0 0 0 0 0 0\n\
                           8       1 sda1 1 0 2 3 4 0 5 6 0 7 8\n";
        let disk =
            DiskTotals { device: "sda".to_owned(), read_bytes: 20 * 512, written_bytes: 50 * 512, busy_seconds: 7.0 };
        assert_eq!(disks(diskstats, |device| device != "sda1"), [disk]);
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n\
                       lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n";
        let expected = InterfaceTotals {
            interface: "eth0".to_owned(),
            received_bytes: 100,
            sent_bytes: 200,
            errors: [3, 6],
            dropped: [4, 7],
        };
        assert_eq!(interfaces(dev), [expected]);
    }

    #[test]
    fn this_host_has_totals() {
        let totals = HostTotals::read();
        assert!(totals.cpus > 0 && totals.cpu_seconds.len() == MODES.len(), "{totals:?}");
        assert!(totals.memory.total > totals.memory.available, "{totals:?}");
    }
}
