//! What the engine does with the operating system: primitives without policy.

mod allocator;
mod blobs;
mod cgroup;
mod gpu;
pub mod http;
mod memory;
mod pressure;
pub mod process;
pub mod provision;
pub mod redis;
mod rooted;
mod seen;
mod signals;
mod state_dir;
pub mod storage;
mod system;
mod totals;
mod usage;
mod watch;
pub mod ws;

pub use allocator::{held_by_thread, take_over};
pub use blobs::{BlobError, BlobRef, BlobStore};
pub use cgroup::{Cgroup, CgroupLimits, Cgroups, oom_kills};
pub use gpu::{
    EccErrors, Gpu, GpuMonitor, GpuNews, GpuProcess, GpuReading, GpuSample, GpuState, GpuStatus, GpusStatus, Throttle,
    gpus,
};
pub use memory::give_back;
pub use pressure::{Level, Resource, disk_space, levels, load};
pub use rooted::Rooted;
pub use seen::{Mark, Seen};
pub use signals::{HostSignal, listen};
pub use state_dir::{Identity, StateDir, StateDirError};
pub use system::{Resources, host_name, reserve_descriptors, resources};
pub use totals::{ContainerTotals, DiskTotals, HostMemory, HostTotals, InterfaceTotals};
pub use usage::{Meter, Usage, open_files};
pub use watch::{FileWatcher, Known, Watched};
