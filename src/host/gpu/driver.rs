use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::device::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

use super::{EccErrors, Gpu, GpuProcess, GpuReading, GpuSample, Throttle};

/// One wait for an error; between two of them the listener looks whether it is still wanted.
const ERROR_WAIT: Duration = Duration::from_millis(500);
/// What the driver calls an error whose code it does not know.
const UNKNOWN_XID: u64 = 999;

/// The NVIDIA driver. Every call may hang for as long as the driver does.
pub(super) struct Driver {
    nvml: Nvml,
}

/// Why there are no GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoDriver {
    pub why: String,
    /// Nothing is wrong: this host has no NVIDIA driver.
    pub usual: bool,
}

impl Driver {
    /// `library` none: the one that the loader finds.
    pub fn open(library: Option<&Path>) -> Result<Self, NoDriver> {
        let mut builder = Nvml::builder();
        let path: PathBuf = library.map(Path::to_owned).unwrap_or_default();
        if library.is_some() {
            builder.lib_path(path.as_os_str());
        }
        builder.init().map(|nvml| Self { nvml }).map_err(|cause| {
            let absent = matches!(
                cause,
                NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded
            );
            // Somebody who names a library expects it to be there.
            NoDriver { why: text_of(&cause), usual: absent && library.is_none() }
        })
    }

    /// Looks at every GPU; one of `known` that is not among them any more does not answer.
    pub fn read(&self, known: &[Gpu]) -> Vec<GpuReading> {
        let mut readings: Vec<GpuReading> = Vec::new();
        let mut failed = Vec::new();
        let count = match self.nvml.device_count() {
            Ok(count) => count,
            Err(cause) => {
                failed.push((None, text_of(&cause)));
                0
            }
        };
        for index in 0..count {
            let device = self.nvml.device_by_index(index);
            match device.and_then(|device| Ok((identify(&device, index, known)?, device))) {
                Ok((gpu, device)) => {
                    readings.push(GpuReading { gpu, outcome: sample(&device).map_err(|cause| text_of(&cause)) });
                }
                Err(cause) => failed.push((Some(index), text_of(&cause))),
            }
        }
        for gpu in known {
            if readings.iter().any(|reading| reading.gpu.uuid == gpu.uuid) {
                continue;
            }
            let of_it = failed.iter().find(|(index, _)| index.is_none_or(|index| index == gpu.index));
            let why = of_it.map_or("the driver does not list it any more", |(_, why)| why.as_str());
            readings.push(GpuReading { gpu: gpu.clone(), outcome: Err(why.to_owned()) });
        }
        readings
    }

    /// Tells Xid errors, the GPU's index and uuid with each, until `stop` is set. A GPU that reports none is left out.
    pub fn listen(&self, stop: &AtomicBool, tell: impl Fn(String, u64)) {
        let Ok(mut set) = self.nvml.create_event_set() else { return };
        let mut any = false;
        for index in 0..self.nvml.device_count().unwrap_or(0) {
            let Ok(device) = self.nvml.device_by_index(index) else { continue };
            let supported = device.supported_event_types().is_ok_and(|t| t.contains(EventTypes::CRITICAL_XID_ERROR));
            if !supported {
                continue;
            }
            // A set that a GPU could not be entered into is gone.
            match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                Ok(entered) => {
                    set = entered;
                    any = true;
                }
                Err(_) => return,
            }
        }
        while any && !stop.load(Ordering::Relaxed) {
            match set.wait(u32::try_from(ERROR_WAIT.as_millis()).unwrap_or(u32::MAX)) {
                Ok(event) => {
                    let code = match event.event_data {
                        Some(XidError::Value(code)) => code,
                        Some(XidError::Unknown) => UNKNOWN_XID,
                        None => continue,
                    };
                    if let Ok(uuid) = event.device.uuid() {
                        tell(uuid, code);
                    }
                }
                Err(NvmlError::Timeout) => {}
                // Also when a GPU is lost, which answers at once and every time.
                Err(_) => std::thread::sleep(ERROR_WAIT),
            }
        }
    }
}

/// The error and what is below it, in one line.
fn text_of(cause: &NvmlError) -> String {
    match cause {
        NvmlError::GpuLost => "it has fallen off the bus, or cannot be reached otherwise".to_owned(),
        other => other.to_string().replace('\n', " "),
    }
}

/// What is known of a GPU does not change while it has its uuid.
fn identify(device: &Device<'_>, index: u32, known: &[Gpu]) -> Result<Gpu, NvmlError> {
    let uuid = device.uuid()?;
    if let Some(gpu) = known.iter().find(|gpu| gpu.uuid == uuid && gpu.index == index) {
        return Ok(gpu.clone());
    }
    #[expect(clippy::cast_precision_loss, reason = "a size in GiB needs no exact bytes")]
    let memory_gb = device.memory_info()?.total as f64 / (1024.0 * 1024.0 * 1024.0);
    Ok(Gpu { index, uuid, name: device.name()?, memory_gb: (memory_gb * 10.0).round() / 10.0 })
}

/// What the GPU tells; an error only where it is not there any more.
fn sample(device: &Device<'_>) -> Result<GpuSample, NvmlError> {
    let utilization = told(device.utilization_rates())?;
    let memory = told(device.memory_info())?;
    let percent = |value: u32| f64::from(value) / 100.0;
    let hertz = |mhz: u32| f64::from(mhz) * 1e6;
    let milliwatts = |value: u32| f64::from(value) / 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "a sample is a double")]
    let joules = |millijoules: u64| millijoules as f64 / 1000.0;
    Ok(GpuSample {
        utilization: utilization.as_ref().map(|rates| percent(rates.gpu)),
        memory_utilization: utilization.as_ref().map(|rates| percent(rates.memory)),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_free_bytes: memory.as_ref().map(|memory| memory.free),
        temperature_celsius: told(device.temperature(TemperatureSensor::Gpu))?.map(f64::from),
        power_watts: told(device.power_usage())?.map(milliwatts),
        power_limit_watts: told(device.enforced_power_limit())?.map(milliwatts),
        energy_joules: told(device.total_energy_consumption())?.map(joules),
        sm_clock_hertz: told(device.clock_info(Clock::SM))?.map(hertz),
        memory_clock_hertz: told(device.clock_info(Clock::Memory))?.map(hertz),
        pcie_replays: told(device.pcie_replay_counter())?.map(u64::from),
        throttle: told(device.current_throttle_reasons())?.map(throttle),
        ecc: ecc(device, EccCounter::Volatile)?,
        ecc_lifetime: ecc(device, EccCounter::Aggregate)?,
        processes: processes(device)?,
    })
}

/// None where the GPU, the driver or its version does not tell; what ends a reading is an error.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(cause @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized)) => Err(cause),
        Err(_) => Ok(None),
    }
}

fn throttle(reasons: ThrottleReasons) -> Vec<Throttle> {
    let names = [
        (ThrottleReasons::GPU_IDLE, Throttle::Idle),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, Throttle::Setting),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, Throttle::Setting),
        (ThrottleReasons::SW_POWER_CAP, Throttle::PowerCap),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, Throttle::Thermal),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, Throttle::HardwareThermal),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, Throttle::PowerBrake),
        (ThrottleReasons::HW_SLOWDOWN, Throttle::HardwareSlowdown),
        (ThrottleReasons::SYNC_BOOST, Throttle::SyncBoost),
    ];
    let mut found: Vec<Throttle> =
        names.into_iter().filter(|(bit, _)| reasons.contains(*bit)).map(|(_, name)| name).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn ecc(device: &Device<'_>, counter: EccCounter) -> Result<Option<EccErrors>, NvmlError> {
    let corrected = told(device.total_ecc_errors(MemoryError::Corrected, counter))?;
    let uncorrected = told(device.total_ecc_errors(MemoryError::Uncorrected, counter))?;
    Ok(corrected.zip(uncorrected).map(|(corrected, uncorrected)| EccErrors { corrected, uncorrected }))
}

/// Those that compute and those that draw; one that does both is in both lists with the same memory. Drivers before 510 do
/// not tell.
fn processes(device: &Device<'_>) -> Result<Vec<GpuProcess>, NvmlError> {
    let compute = told(device.running_compute_processes())?;
    let graphics = told(device.running_graphics_processes())?;
    let mut found: Vec<GpuProcess> = Vec::new();
    for process in compute.into_iter().chain(graphics).flatten() {
        let UsedGpuMemory::Used(memory_bytes) = process.used_gpu_memory else { continue };
        if !found.iter().any(|known| known.pid == process.pid) {
            found.push(GpuProcess { pid: process.pid, memory_bytes });
        }
    }
    found.sort_unstable_by_key(|process| process.pid);
    Ok(found)
}
