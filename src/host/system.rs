use std::path::Path;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// What the machine may use of the host: the container's limits where there are any, else the host's totals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resources {
    pub cpus: f64,
    pub memory_gb: f64,
}

pub fn resources() -> Resources {
    let memory = [memory_total(), cgroup_memory_limit()].into_iter().flatten().min().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a size in GiB needs no exact bytes")]
    let memory_gb = memory as f64 / GIB;
    Resources { cpus: cpus(), memory_gb: (memory_gb * 100.0).round() / 100.0 }
}

/// Makes room for so many file descriptors, to be called before the process has threads: a table that grows later makes
/// the thread that needs it wait for the whole kernel (`synchronize_rcu`, 10 ms and more), and that thread is the one that
/// starts services.
pub fn reserve_descriptors(count: i32) {
    let limit =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft);
    let highest = count.min(i32::try_from(limit).unwrap_or(i32::MAX)) - 1;
    // The copy is closed again at once; the table keeps its size. Without room nothing is lost but time.
    let _ = nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(highest)).map(|fd| {
        let _ = nix::unistd::close(fd);
    });
}

/// A name for this host that is safe in a machine id.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let safe = safe.trim_matches('-');
    if safe.is_empty() { "machine".to_owned() } else { safe.to_owned() }
}

/// The affinity mask and the cgroup's quota (which `available_parallelism` rounds down) bound the CPUs.
fn cpus() -> f64 {
    let visible = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let visible = f64::from(u32::try_from(visible).unwrap_or(u32::MAX));
    cgroup_cpu_quota().map_or(visible, |quota| quota.min(visible)).max(0.1)
}

fn cgroup_cpu_quota() -> Option<f64> {
    let (quota, period) = match read("/sys/fs/cgroup/cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => (
            read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?.trim().parse::<f64>().ok()?,
            read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?.trim().parse::<f64>().ok()?,
        ),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn cgroup_memory_limit() -> Option<u64> {
    let text = read("/sys/fs/cgroup/memory.max").or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))?;
    text.trim().parse().ok()
}

fn memory_total() -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_has_something_to_offer() {
        let resources = super::resources();
        assert!(resources.cpus >= 0.1 && resources.memory_gb > 0.0, "{resources:?}");
        assert!(!super::host_name().is_empty());
    }
}
