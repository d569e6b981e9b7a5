//! The GPUs of the machine, as a test says they are.

use rhai::{Array, Dynamic, Map};

use super::world::{unmocked, with};
use crate::base::{Timestamp, did_you_mean};
use crate::host::{Gpu, GpuSample, GpuState, GpuStatus};
use crate::script::api::gpu_map;
use crate::script::call::{ScriptResult, error};

pub(in crate::script) fn gpus() -> ScriptResult<Vec<Map>> {
    with(|world| world.gpus.clone()).ok_or_else(|| unmocked("gpu::", "mock::gpus([#{ utilization: 0.5 }])"))
}

/// Each of `given` over a GPU that tells nothing.
pub(super) fn mock(given: Array) -> ScriptResult<()> {
    let mut gpus = Vec::new();
    for (index, given) in given.into_iter().enumerate() {
        let found = given.type_name();
        let given = given.try_cast::<Map>();
        let given = given.ok_or_else(|| error(format!("mock::gpus: a GPU is a map, found {found}")))?;
        let mut gpu = plain(u32::try_from(index).unwrap_or(u32::MAX));
        for (key, value) in given {
            if !gpu.contains_key(&key) {
                let meant = did_you_mean(&key, gpu.keys().map(rhai::Identifier::as_str));
                let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
                return Err(error(format!("mock::gpus: a GPU has no key {key}{hint}")));
            }
            gpu.insert(key, value);
        }
        gpus.push(gpu);
    }
    with(|world| world.gpus = Some(gpus));
    Ok(())
}

fn plain(index: u32) -> Map {
    let gpu = Gpu { index, uuid: format!("GPU-{index}"), name: "a GPU".to_owned(), memory_gb: 24.0 };
    let status = GpuStatus {
        gpu,
        state: GpuState::Ok,
        reason: None,
        last_xid: None,
        xids: std::collections::BTreeMap::new(),
        sampled: None,
        sample: Some(GpuSample::default()),
    };
    let mut map = gpu_map(&status, Timestamp::from_millis(0));
    map.insert("age".into(), Dynamic::from(0.0));
    map
}
