//! A `libnvidia-ml` for tests: up to eight GPUs, as a file of JSON says that `FAKE_NVML_STATE` names. The file is read at every
//! call, so a test changes what the GPUs say, loses one, or lets a call hang, by replacing it.
//!
//! ```json
//! { "init": 0, "hang": "nvmlDeviceGetUUID", "xids": [[0, 48]],
//!   "gpus": [ { "uuid": "GPU-a", "lost": false, "absent": false, "unsupported": ["nvmlDeviceGetPowerUsage"],
//!               "memory_total": 1, "memory_used": 1, "processes": [[1234, 1048576]] } ] }
//! ```
//! `init` is what opening the driver answers; `hang` names a call that does not return while it stands there; `xids` are
//! errors by the GPU's place in the list and are told once each, in their order, so that a test only ever appends.
#![expect(unsafe_code, reason = "it speaks C")]
#![allow(non_snake_case, reason = "the names are NVIDIA's")]
#![expect(clippy::missing_safety_doc, reason = "NVIDIA's documentation says what the pointers are")]

use std::ffi::{c_char, c_uint, c_ulonglong, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

const SUCCESS: c_uint = 0;
const INVALID_ARGUMENT: c_uint = 2;
const NOT_SUPPORTED: c_uint = 3;
const INSUFFICIENT_SIZE: c_uint = 7;
const TIMEOUT: c_uint = 10;
const GPU_IS_LOST: c_uint = 15;
const XID_ERRORS: c_ulonglong = 8;
const PAUSE: Duration = Duration::from_millis(5);

/// Errors that were told.
static TOLD: AtomicUsize = AtomicUsize::new(0);

fn state() -> Value {
    let path = std::env::var("FAKE_NVML_STATE").unwrap_or_default();
    std::fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null)
}

/// The state at the end of a call that may hang.
fn state_after(call: &str) -> Value {
    loop {
        let state = state();
        if state["hang"] != call {
            return state;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What the GPU behind a handle says in a call.
fn gpu(device: *mut c_void, call: &str) -> Result<Value, c_uint> {
    let mut state = state_after(call);
    let place = (device as usize).wrapping_sub(1);
    let gpu = state["gpus"].get_mut(place).map(Value::take).ok_or(INVALID_ARGUMENT)?;
    if gpu["lost"] == true || gpu["absent"] == true {
        return Err(GPU_IS_LOST);
    }
    let unsupported = gpu["unsupported"].as_array().is_some_and(|calls| calls.iter().any(|name| name == call));
    if unsupported { Err(NOT_SUPPORTED) } else { Ok(gpu) }
}

fn number(gpu: &Value, key: &str) -> Result<u64, c_uint> {
    gpu[key].as_u64().ok_or(NOT_SUPPORTED)
}

fn small(gpu: &Value, key: &str) -> Result<c_uint, c_uint> {
    number(gpu, key).map(|value| c_uint::try_from(value).unwrap_or(c_uint::MAX))
}

/// Writes an answer where the caller wants it.
unsafe fn answer<T>(outcome: Result<T, c_uint>, to: *mut T) -> c_uint {
    match outcome {
        Ok(value) => {
            // SAFETY: the caller's pointer, as NVML's functions are given them.
            unsafe { to.write(value) };
            SUCCESS
        }
        Err(code) => code,
    }
}

unsafe fn text(text: Option<&str>, to: *mut c_char, length: c_uint) -> c_uint {
    let Some(text) = text else { return NOT_SUPPORTED };
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller's buffer has room for `length` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    SUCCESS
}

/// A function that answers with one small number of the state.
macro_rules! numbers {
    ($($name:ident $key:literal),+ $(,)?) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: *mut c_void, to: *mut c_uint) -> c_uint {
            let outcome = gpu(device, stringify!($name)).and_then(|gpu| small(&gpu, $key));
            // SAFETY: as NVML says.
            unsafe { answer(outcome, to) }
        }
    )+ };
}

numbers!(
    nvmlDeviceGetPowerUsage "power",
    nvmlDeviceGetEnforcedPowerLimit "power_limit",
    nvmlDeviceGetPcieReplayCounter "pcie_replays",
);

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_uint {
    let code = state_after("nvmlInit_v2")["init"].as_u64().unwrap_or(0);
    c_uint::try_from(code).unwrap_or(c_uint::MAX)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_uint {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> c_uint {
    // SAFETY: as NVML says.
    unsafe { text(Some("580.00"), to, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> c_uint {
    let state = state_after("nvmlDeviceGetCount_v2");
    let there = state["gpus"].as_array().map_or(0, |gpus| gpus.iter().filter(|gpu| gpu["absent"] != true).count());
    // SAFETY: as NVML says.
    unsafe { answer(Ok(c_uint::try_from(there).unwrap_or(0)), to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut *mut c_void) -> c_uint {
    let state = state_after("nvmlDeviceGetHandleByIndex_v2");
    let gpus = state["gpus"].as_array().cloned().unwrap_or_default();
    let mut there = gpus.iter().enumerate().filter(|(_, gpu)| gpu["absent"] != true);
    let handle = there.nth(index as usize).map(|(place, _)| (place + 1) as *mut c_void);
    // SAFETY: as NVML says.
    unsafe { answer(handle.ok_or(INVALID_ARGUMENT), to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, to: *mut c_char, length: c_uint) -> c_uint {
    match gpu(device, "nvmlDeviceGetUUID") {
        // SAFETY: as NVML says.
        Ok(gpu) => unsafe { text(gpu["uuid"].as_str(), to, length) },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: *mut c_void, to: *mut c_char, length: c_uint) -> c_uint {
    match gpu(device, "nvmlDeviceGetName") {
        // SAFETY: as NVML says.
        Ok(gpu) => unsafe { text(gpu["name"].as_str().or(Some("Fake GPU")), to, length) },
        Err(code) => code,
    }
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, to: *mut Memory) -> c_uint {
    let memory = gpu(device, "nvmlDeviceGetMemoryInfo_v2").and_then(|gpu| {
        let (total, used) = (number(&gpu, "memory_total")?, number(&gpu, "memory_used").unwrap_or(0));
        Ok(Memory { version: 0, total, reserved: 0, free: total.saturating_sub(used), used })
    });
    // SAFETY: as NVML says.
    unsafe { answer(memory, to) }
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: *mut c_void, to: *mut Utilization) -> c_uint {
    let rates = gpu(device, "nvmlDeviceGetUtilizationRates").and_then(|gpu| {
        Ok(Utilization { gpu: small(&gpu, "utilization")?, memory: small(&gpu, "memory_utilization")? })
    });
    // SAFETY: as NVML says.
    unsafe { answer(rates, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(device: *mut c_void, _sensor: c_uint, to: *mut c_uint) -> c_uint {
    let outcome = gpu(device, "nvmlDeviceGetTemperature").and_then(|gpu| small(&gpu, "temperature"));
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: *mut c_void, to: *mut c_ulonglong) -> c_uint {
    let outcome = gpu(device, "nvmlDeviceGetTotalEnergyConsumption").and_then(|gpu| number(&gpu, "energy"));
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(device: *mut c_void, clock: c_uint, to: *mut c_uint) -> c_uint {
    let key = if clock == 2 { "memory_clock" } else { "sm_clock" };
    let outcome = gpu(device, "nvmlDeviceGetClockInfo").and_then(|gpu| small(&gpu, key));
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: *mut c_void,
    to: *mut c_ulonglong,
) -> c_uint {
    let outcome = gpu(device, "nvmlDeviceGetCurrentClocksThrottleReasons").and_then(|gpu| number(&gpu, "throttle"));
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

/// `ecc` is `[[corrected, uncorrected], [.. in its whole life ..]]`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: *mut c_void,
    kind: c_uint,
    counter: c_uint,
    to: *mut c_ulonglong,
) -> c_uint {
    let outcome = gpu(device, "nvmlDeviceGetTotalEccErrors")
        .and_then(|gpu| gpu["ecc"][counter as usize][kind as usize].as_u64().ok_or(NOT_SUPPORTED));
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    to: *mut Process,
) -> c_uint {
    let gpu = match gpu(device, "nvmlDeviceGetComputeRunningProcesses_v3") {
        Ok(gpu) => gpu,
        Err(code) => return code,
    };
    let rows = gpu["processes"].as_array().cloned().unwrap_or_default();
    // SAFETY: the caller tells how many fit, and is told how many there are.
    unsafe {
        let room = count.read() as usize;
        count.write(c_uint::try_from(rows.len()).unwrap_or(0));
        if rows.len() > room || to.is_null() {
            return if rows.is_empty() { SUCCESS } else { INSUFFICIENT_SIZE };
        }
        for (place, row) in rows.iter().enumerate() {
            let pid = c_uint::try_from(row[0].as_u64().unwrap_or(0)).unwrap_or(0);
            let memory = row[1].as_u64().unwrap_or(0);
            let whole = c_uint::MAX;
            to.add(place).write(Process { pid, memory, gpu_instance: whole, compute_instance: whole });
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    _device: *mut c_void,
    count: *mut c_uint,
    _to: *mut Process,
) -> c_uint {
    // SAFETY: as NVML says.
    unsafe { answer(Ok(0), count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(to: *mut *mut c_void) -> c_uint {
    // SAFETY: as NVML says; nobody looks behind the handle.
    unsafe { answer(Ok(std::ptr::without_provenance_mut(1)), to) }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(_set: *mut c_void) -> c_uint {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(device: *mut c_void, to: *mut c_ulonglong) -> c_uint {
    let outcome = gpu(device, "nvmlDeviceGetSupportedEventTypes").map(|_| XID_ERRORS);
    // SAFETY: as NVML says.
    unsafe { answer(outcome, to) }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(device: *mut c_void, _types: c_ulonglong, _set: *mut c_void) -> c_uint {
    gpu(device, "nvmlDeviceRegisterEvents").map_or_else(|code| code, |_| SUCCESS)
}

#[repr(C)]
pub struct Event {
    device: *mut c_void,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(_set: *mut c_void, to: *mut Event, timeout_ms: c_uint) -> c_uint {
    let deadline = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let state = state_after("nvmlEventSetWait_v2");
        let next = state["xids"].as_array().and_then(|xids| xids.get(TOLD.load(Ordering::Relaxed)).cloned());
        if let Some(next) = next {
            TOLD.fetch_add(1, Ordering::Relaxed);
            let place = usize::try_from(next[0].as_u64().unwrap_or(0)).unwrap_or(0);
            let device = (place + 1) as *mut c_void;
            let data = next[1].as_u64().unwrap_or(999);
            let event =
                Event { device, kind: XID_ERRORS, data, gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX };
            // SAFETY: as NVML says.
            return unsafe { answer(Ok(event), to) };
        }
        if Instant::now() >= deadline {
            return TIMEOUT;
        }
        std::thread::sleep(PAUSE);
    }
}
