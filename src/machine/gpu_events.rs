use metrics::counter;
use schemars::JsonSchema;
use serde::Serialize;

use crate::telemetry::{EventKind, Level, Observed};

/// Every kind of event that comes from here.
pub(super) fn event_kinds() -> Vec<EventKind> {
    vec![
        EventKind::of::<GpuLost>(),
        EventKind::of::<GpuBack>(),
        EventKind::of::<GpuXid>(),
        EventKind::of::<GpuReleased>(),
        EventKind::of::<GpuSamplingStalled>(),
        EventKind::of::<GpuSamplingResumed>(),
        EventKind::of::<GpusUnavailable>(),
    ]
}

fn subject_of(index: u32) -> String {
    format!("gpu-{index}")
}

/// A GPU does not answer any more: workers claim no jobs for it, services pinned to it are held.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuLost {
    pub index: u32,
    pub uuid: String,
    pub why: String,
}

impl Observed for GpuLost {
    const KIND: &'static str = "gpu.lost";
    fn level(&self) -> Level {
        Level::Error
    }
    fn subject(&self) -> Option<String> {
        Some(subject_of(self.index))
    }
    fn message(&self) -> String {
        format!("GPU {} ({}) is lost: {}", self.index, self.uuid, self.why)
    }
    fn record(&self) {
        counter!("machinist_gpu_losses_total").increment(1);
    }
}

/// A GPU that was lost answers again.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuBack {
    pub index: u32,
    pub uuid: String,
}

impl Observed for GpuBack {
    const KIND: &'static str = "gpu.back";
    fn subject(&self) -> Option<String> {
        Some(subject_of(self.index))
    }
    fn message(&self) -> String {
        format!("GPU {} ({}) answers again", self.index, self.uuid)
    }
}

/// The driver reports an error of a GPU.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuXid {
    pub index: u32,
    pub uuid: String,
    /// As NVIDIA numbers them; 999 where the driver does not know it.
    pub code: u64,
    pub meaning: &'static str,
    /// Workers claim no jobs for it for a while, `gpu.xid_hold`.
    pub withheld: bool,
}

impl Observed for GpuXid {
    const KIND: &'static str = "gpu.xid";
    fn level(&self) -> Level {
        if self.withheld { Level::Error } else { Level::Warn }
    }
    fn subject(&self) -> Option<String> {
        Some(subject_of(self.index))
    }
    fn message(&self) -> String {
        let withheld = if self.withheld { "; it gets no jobs for a while" } else { "" };
        format!("GPU {} ({}) reports Xid {}: {}{withheld}", self.index, self.uuid, self.code, self.meaning)
    }
}

/// A GPU gets jobs again after an error.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuReleased {
    pub index: u32,
    pub uuid: String,
}

impl Observed for GpuReleased {
    const KIND: &'static str = "gpu.released";
    fn subject(&self) -> Option<String> {
        Some(subject_of(self.index))
    }
    fn message(&self) -> String {
        format!("GPU {} ({}) gets jobs again", self.index, self.uuid)
    }
}

/// The NVIDIA driver does not answer: nothing new is known of the GPUs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuSamplingStalled {
    pub silent_seconds: u64,
}

impl Observed for GpuSamplingStalled {
    const KIND: &'static str = "gpu.sampling_stalled";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn message(&self) -> String {
        let silent = self.silent_seconds;
        format!("the NVIDIA driver has not answered for {silent} s; nothing new is known of the GPUs")
    }
}

/// The NVIDIA driver answers again.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpuSamplingResumed {}

impl Observed for GpuSamplingResumed {
    const KIND: &'static str = "gpu.sampling_resumed";
    fn message(&self) -> String {
        "the NVIDIA driver answers again".to_owned()
    }
}

/// The NVIDIA driver is there and cannot be used, or the library that the settings name cannot: the machine has no GPUs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GpusUnavailable {
    pub why: String,
}

impl Observed for GpusUnavailable {
    const KIND: &'static str = "gpu.unavailable";
    fn level(&self) -> Level {
        Level::Warn
    }
    fn message(&self) -> String {
        format!("the machine has no GPUs: {}", self.why)
    }
}
