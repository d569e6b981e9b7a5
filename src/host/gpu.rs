use nvml_wrapper::Nvml;
use schemars::JsonSchema;
use serde::Serialize;

/// An NVIDIA GPU that this process may use.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Gpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    pub memory_gb: f64,
}

/// The GPUs that NVML reports; none where there is no NVIDIA driver. A GPU that does not answer is left out.
pub fn gpus() -> Vec<Gpu> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    (0..count).filter_map(|index| gpu(&nvml, index)).collect()
}

fn gpu(nvml: &Nvml, index: u32) -> Option<Gpu> {
    let device = nvml.device_by_index(index).ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a size in GiB needs no exact bytes")]
    let memory_gb = device.memory_info().ok()?.total as f64 / (1024.0 * 1024.0 * 1024.0);
    Some(Gpu {
        index,
        uuid: device.uuid().ok()?,
        name: device.name().ok()?,
        memory_gb: (memory_gb * 10.0).round() / 10.0,
    })
}
