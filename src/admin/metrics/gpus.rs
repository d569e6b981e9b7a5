use std::collections::BTreeMap;

use super::page::{Page, number};
use crate::base::Name;
use crate::host::{EccErrors, GpuSample, GpuState, GpuStatus, GpusStatus, Throttle};

type Read = fn(&GpuSample) -> Option<f64>;

/// Families with one series a GPU.
const VALUES: [(&str, Read); 13] = [
    ("machinist_gpu_utilization_ratio", |s| s.utilization),
    ("machinist_gpu_memory_utilization_ratio", |s| s.memory_utilization),
    ("machinist_gpu_memory_total_bytes", |s| s.memory_total_bytes.map(number)),
    ("machinist_gpu_memory_used_bytes", |s| s.memory_used_bytes.map(number)),
    ("machinist_gpu_memory_free_bytes", |s| s.memory_free_bytes.map(number)),
    ("machinist_gpu_processes", |s| Some(number(s.processes.len() as u64))),
    ("machinist_gpu_temperature_celsius", |s| s.temperature_celsius),
    ("machinist_gpu_power_watts", |s| s.power_watts),
    ("machinist_gpu_power_limit_watts", |s| s.power_limit_watts),
    ("machinist_gpu_energy_joules_total", |s| s.energy_joules),
    ("machinist_gpu_sm_clock_hertz", |s| s.sm_clock_hertz),
    ("machinist_gpu_memory_clock_hertz", |s| s.memory_clock_hertz),
    ("machinist_gpu_pcie_replays_total", |s| s.pcie_replays.map(number)),
];

/// What is known of the GPUs. `owners` are the services that processes with GPU memory belong to.
pub(super) fn gpus(page: &mut Page, status: &GpusStatus, owners: &BTreeMap<u32, Name>) {
    if !status.sampling {
        return;
    }
    let up = f64::from(u8::from(status.silent.is_none()));
    page.family("machinist_gpu_sampler_up").sample(&[], up);
    let indices: Vec<String> = status.gpus.iter().map(|gpu| gpu.gpu.index.to_string()).collect();
    let all: Vec<(&GpuStatus, [(&str, &str); 2])> = status
        .gpus
        .iter()
        .zip(&indices)
        .map(|(gpu, index)| (gpu, [("uuid", gpu.gpu.uuid.as_str()), ("index", index.as_str())]))
        .collect();
    let mut family = page.family("machinist_gpu_info");
    for (gpu, [uuid, index]) in &all {
        family.sample(&[*uuid, *index, ("name", &gpu.gpu.name)], 1.0);
    }
    let mut family = page.family("machinist_gpu_up");
    for (gpu, labels) in &all {
        family.sample(labels, f64::from(u8::from(gpu.state != GpuState::Lost)));
    }
    let mut family = page.family("machinist_gpu_withheld");
    for (gpu, labels) in &all {
        family.sample(labels, f64::from(u8::from(gpu.state == GpuState::Withheld)));
    }
    let mut family = page.family("machinist_gpu_xid_errors_total");
    for (gpu, [uuid, index]) in &all {
        for (code, count) in &gpu.xids {
            family.sample(&[*uuid, *index, ("xid", &code.to_string())], number(*count));
        }
    }
    let mut family = page.family("machinist_gpu_sample_timestamp_seconds");
    for (gpu, labels) in all.iter().filter(|(gpu, _)| gpu.sample.is_some()) {
        family.maybe(labels, gpu.sampled.map(|at| number(at.as_millis()) / 1000.0));
    }
    for (name, read) in VALUES {
        let mut family = page.family(name);
        for (gpu, labels) in &all {
            family.maybe(labels, gpu.sample.as_ref().and_then(read));
        }
    }
    let mut family = page.family("machinist_gpu_throttle_active");
    for (gpu, [uuid, index]) in &all {
        let Some(reasons) = gpu.sample.as_ref().and_then(|sample| sample.throttle.as_ref()) else { continue };
        for reason in Throttle::ALL {
            let active = f64::from(u8::from(reasons.contains(&reason)));
            family.sample(&[*uuid, *index, ("reason", reason.as_str())], active);
        }
    }
    let mut family = page.family("machinist_gpu_ecc_errors_total");
    for (gpu, [uuid, index]) in &all {
        let Some(sample) = &gpu.sample else { continue };
        for (since, errors) in [("load", sample.ecc), ("ever", sample.ecc_lifetime)] {
            let Some(EccErrors { corrected, uncorrected }) = errors else { continue };
            for (kind, count) in [("corrected", corrected), ("uncorrected", uncorrected)] {
                family.sample(&[*uuid, *index, ("type", kind), ("since", since)], number(count));
            }
        }
    }
    let mut family = page.family("machinist_service_gpu_memory_bytes");
    for (gpu, [uuid, index]) in &all {
        for (service, bytes) in of_services(gpu, owners) {
            family.sample(&[("service", service.as_str()), *uuid, *index], number(bytes));
        }
    }
}

/// The memory of each service's tree on one GPU.
fn of_services<'a>(gpu: &GpuStatus, owners: &'a BTreeMap<u32, Name>) -> BTreeMap<&'a Name, u64> {
    let mut found: BTreeMap<&Name, u64> = BTreeMap::new();
    for process in gpu.sample.iter().flat_map(|sample| &sample.processes) {
        if let Some(owner) = owners.get(&process.pid) {
            *found.entry(owner).or_default() += process.memory_bytes;
        }
    }
    found
}

type ReadDcgm = fn(&GpuStatus, &GpuSample) -> Option<f64>;

const MHZ: f64 = 1e6;
const PERCENT: f64 = 100.0;
const MIB: f64 = 1024.0 * 1024.0;

/// The same under the names and in the units of dcgm-exporter.
const DCGM_VALUES: [(&str, ReadDcgm); 15] = [
    ("DCGM_FI_DEV_SM_CLOCK", |_, s| s.sm_clock_hertz.map(|hertz| hertz / MHZ)),
    ("DCGM_FI_DEV_MEM_CLOCK", |_, s| s.memory_clock_hertz.map(|hertz| hertz / MHZ)),
    ("DCGM_FI_DEV_GPU_TEMP", |_, s| s.temperature_celsius),
    ("DCGM_FI_DEV_POWER_USAGE", |_, s| s.power_watts),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", |_, s| s.energy_joules.map(|joules| joules * 1000.0)),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", |_, s| s.pcie_replays.map(number)),
    ("DCGM_FI_DEV_GPU_UTIL", |_, s| s.utilization.map(|share| (share * PERCENT).round())),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", |_, s| s.memory_utilization.map(|share| (share * PERCENT).round())),
    ("DCGM_FI_DEV_XID_ERRORS", |gpu, _| Some(number(gpu.last_xid.unwrap_or(0)))),
    ("DCGM_FI_DEV_FB_FREE", |_, s| s.memory_free_bytes.map(|bytes| (number(bytes) / MIB).floor())),
    ("DCGM_FI_DEV_FB_USED", |_, s| s.memory_used_bytes.map(|bytes| (number(bytes) / MIB).floor())),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", |_, s| s.ecc.map(|ecc| number(ecc.corrected))),
    ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", |_, s| s.ecc.map(|ecc| number(ecc.uncorrected))),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", |_, s| s.ecc_lifetime.map(|ecc| number(ecc.corrected))),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", |_, s| s.ecc_lifetime.map(|ecc| number(ecc.uncorrected))),
];

/// With the labels of dcgm-exporter.
pub(super) fn dcgm(page: &mut Page, status: &GpusStatus, host: &str) {
    let texts: Vec<[String; 2]> =
        status.gpus.iter().map(|gpu| [gpu.gpu.index.to_string(), format!("nvidia{}", gpu.gpu.index)]).collect();
    for (name, read) in DCGM_VALUES {
        let mut family = page.family(name);
        for (gpu, [index, device]) in status.gpus.iter().zip(&texts) {
            let labels: [(&str, &str); 5] = [
                ("gpu", index),
                ("UUID", &gpu.gpu.uuid),
                ("device", device),
                ("modelName", &gpu.gpu.name),
                ("Hostname", host),
            ];
            family.maybe(&labels, gpu.sample.as_ref().and_then(|sample| read(gpu, sample)));
        }
    }
}
