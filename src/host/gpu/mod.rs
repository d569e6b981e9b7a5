//! NVIDIA GPUs, as NVML tells of them. `driver` reads, once and without patience of its own; `monitor` has threads that may
//! wait for a driver that hangs, so that nothing else does; `sample` is what is known of a GPU, for everybody to read.

mod driver;
mod monitor;
mod sample;

pub use monitor::{GpuMonitor, GpuNews, gpus};
pub use sample::{EccErrors, Gpu, GpuProcess, GpuReading, GpuSample, GpuState, GpuStatus, GpusStatus, Throttle};
