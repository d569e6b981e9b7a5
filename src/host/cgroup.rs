use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The place below the engine's own control group where it may make groups: v2 where it is mounted, the v1 hierarchies of
/// memory, cpu and pids where those are.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    /// A v2 directory for the machine's groups.
    unified: Option<PathBuf>,
    /// What v2 may limit here.
    unified_controllers: Vec<String>,
    /// A v1 directory per controller.
    split: Vec<(Controller, PathBuf)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

/// What one group is to be held to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupLimits {
    pub memory: Option<u64>,
    /// In cores.
    pub cpu: Option<f64>,
    pub pids: Option<u32>,
}

/// The group of one service.
#[derive(Clone, Debug)]
pub struct Cgroup {
    unified: Option<PathBuf>,
    split: Vec<(Controller, PathBuf)>,
    /// Whether the kernel holds the group to all of its limits.
    pub enforced: bool,
}

const ROOT: &str = "/sys/fs/cgroup";
/// The kernel's period of CPU quotas, in microseconds.
const PERIOD: f64 = 100_000.0;

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl Cgroups {
    /// None where the engine may not make groups, which is so in most containers.
    pub fn detect(machine: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mut found = Self::default();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                found.find_unified(path, machine);
            } else {
                let wanted = Controller::ALL.iter().filter(|known| controllers.split(',').any(|c| c == known.as_str()));
                for controller in wanted {
                    let mount = Path::new(ROOT).join(controller.as_str());
                    found.split.extend(own_directory(&mount, path, machine).map(|directory| (*controller, directory)));
                }
            }
        }
        (found.unified.is_some() || !found.split.is_empty()).then_some(found)
    }

    fn find_unified(&mut self, path: &str, machine: &str) {
        let mount = [ROOT, "/sys/fs/cgroup/unified"].into_iter().map(Path::new);
        let Some(mount) = mount.into_iter().find(|mount| mount.join("cgroup.controllers").exists()) else { return };
        let Some(directory) = own_directory(mount, path, machine) else { return };
        let Some(base) = directory.parent() else { return };
        let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let wanted: Vec<&str> = Controller::ALL
            .iter()
            .map(|controller| controller.as_str())
            .filter(|name| offered.split_ascii_whitespace().any(|offered| offered == *name))
            .collect();
        for parent in [base, directory.as_path()] {
            for name in &wanted {
                let switch = || fs::write(parent.join("cgroup.subtree_control"), format!("+{name}"));
                if switch().is_err() && parent == base {
                    // A group with processes of its own may not limit its children: they move into a leaf.
                    let leaf = base.join(format!("{machine}-engine"));
                    let _ = fs::create_dir(&leaf);
                    for pid in fs::read_to_string(base.join("cgroup.procs")).unwrap_or_default().lines() {
                        let _ = fs::write(leaf.join("cgroup.procs"), pid);
                    }
                    let _ = switch();
                }
            }
        }
        let enabled = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
        self.unified_controllers = enabled.split_ascii_whitespace().map(str::to_owned).collect();
        self.unified = Some(directory);
    }

    /// Makes the group of one service, or takes the one that is there.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn group(&self, service: &str, limits: CgroupLimits) -> io::Result<Cgroup> {
        let make = |base: &PathBuf| -> io::Result<PathBuf> {
            let directory = base.join(service);
            fs::create_dir_all(&directory)?;
            Ok(directory)
        };
        let unified = self.unified.as_ref().map(make).transpose()?;
        let mut split = Vec::new();
        for (controller, base) in &self.split {
            split.push((*controller, make(base)?));
        }
        let mut group = Cgroup { unified, split, enforced: true };
        let memory = limits.memory.map(|bytes| group.limit_memory(self, bytes));
        let cpu = limits.cpu.map(|cores| group.limit_cpu(self, cores));
        let pids = limits.pids.map(|count| group.limit_pids(self, count));
        group.enforced = [memory, cpu, pids].into_iter().flatten().all(|outcome| outcome.is_ok());
        Ok(group)
    }

    fn unified_has(&self, controller: Controller) -> bool {
        self.unified_controllers.iter().any(|name| name == controller.as_str())
    }
}

impl Cgroup {
    fn limit_memory(&self, parent: &Cgroups, bytes: u64) -> io::Result<()> {
        if let (true, Some(directory)) = (parent.unified_has(Controller::Memory), &self.unified) {
            fs::write(directory.join("memory.max"), bytes.to_string())?;
            // The whole group dies, not its largest process alone: what is left would be no service.
            let _ = fs::write(directory.join("memory.oom.group"), "1");
            let _ = fs::write(directory.join("memory.swap.max"), "0");
            return Ok(());
        }
        fs::write(self.of(Controller::Memory)?.join("memory.limit_in_bytes"), bytes.to_string())
    }

    fn limit_cpu(&self, parent: &Cgroups, cores: f64) -> io::Result<()> {
        let quota = format!("{:.0}", (cores * PERIOD).max(1_000.0));
        if let (true, Some(directory)) = (parent.unified_has(Controller::Cpu), &self.unified) {
            return fs::write(directory.join("cpu.max"), format!("{quota} {PERIOD}"));
        }
        let directory = self.of(Controller::Cpu)?;
        fs::write(directory.join("cpu.cfs_period_us"), format!("{PERIOD}"))?;
        fs::write(directory.join("cpu.cfs_quota_us"), quota)
    }

    fn limit_pids(&self, parent: &Cgroups, count: u32) -> io::Result<()> {
        if let (true, Some(directory)) = (parent.unified_has(Controller::Pids), &self.unified) {
            return fs::write(directory.join("pids.max"), count.to_string());
        }
        fs::write(self.of(Controller::Pids)?.join("pids.max"), count.to_string())
    }

    fn of(&self, controller: Controller) -> io::Result<&Path> {
        let found = self.split.iter().find(|(known, _)| *known == controller);
        found.map(|(_, path)| path.as_path()).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The files into which a process writes itself.
    pub fn entrances(&self) -> Vec<PathBuf> {
        let directories = self.unified.iter().chain(self.split.iter().map(|(_, path)| path));
        directories.map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let unified = self.unified.as_ref().map(|directory| directory.join("memory.events"));
        let split = self.of(Controller::Memory).ok().map(|directory| directory.join("memory.oom_control"));
        [unified, split].into_iter().flatten().map(|file| oom_kills_in(&file)).sum()
    }

    /// Kills all in it at once, where the kernel can (Linux 5.14).
    pub fn kill(&self) -> bool {
        self.unified.as_ref().is_some_and(|directory| fs::write(directory.join("cgroup.kill"), "1").is_ok())
    }

    /// Empty groups are removed; others are left.
    pub fn remove(&self) {
        for directory in self.unified.iter().chain(self.split.iter().map(|(_, path)| path)) {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// How many processes of the machine's whole group the kernel has killed for want of memory; none where it does not tell.
pub fn oom_kills() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
    let group = files.into_iter().map(Path::new).find(|file| file.exists()).map(oom_kills_in);
    // Outside of any group the host's own counter.
    group.or_else(|| counter(Path::new("/proc/vmstat"), "oom_kill"))
}

fn oom_kills_in(file: &Path) -> u64 {
    counter(file, "oom_kill").unwrap_or(0)
}

fn counter(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// The machine's directory below the engine's own group, made now; the mount's root where the path leads outside of what
/// is mounted here.
fn own_directory(mount: &Path, path: &str, machine: &str) -> Option<PathBuf> {
    let below = mount.join(path.trim_start_matches('/'));
    let base = if below.is_dir() { below } else { mount.to_owned() };
    let directory = base.join(format!("machinist-{machine}"));
    match fs::create_dir(&directory) {
        Ok(()) => Some(directory),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Some(directory),
        Err(_) => None,
    }
}
