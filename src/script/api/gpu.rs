//! `gpu::`: the machine's GPUs.

use rhai::Array;

use crate::base::Timestamp;
use crate::host::{GpuProcess, GpuSample, GpuStatus, Throttle};
use crate::script::call::{Call, ScriptResult, World, error};
use crate::script::prelude::*;
use crate::script::testing;

pub(super) fn module() -> Module {
    exported_module!(functions)
}

/// The machine's NVIDIA GPUs, from the latest look at them, which is `gpu.every` old at most: no function waits for the driver. A GPU
/// is a map, in which `()` stands for what it does not tell, and for all values of one that is lost:
///
/// | key | what |
/// |---|---|
/// | `index`, `uuid`, `name`, `memory_gb` | as in `m.gpus` |
/// | `state` | `"ok"`, `"withheld"` (no jobs after an error) or `"lost"` (it does not answer) |
/// | `reason` | why it is not ok |
/// | `last_xid` | the code of the latest Xid error |
/// | `age` | seconds since the values were taken |
/// | `utilization`, `memory_utilization` | shares of time, of 1 |
/// | `memory_total`, `memory_used`, `memory_free` | bytes |
/// | `temperature` | degrees Celsius |
/// | `power`, `power_limit` | watts |
/// | `energy` | joules since the driver was loaded |
/// | `sm_clock`, `memory_clock` | hertz |
/// | `throttle` | why its clocks are held down, an array of `"idle"`, `"setting"`, `"power_cap"`, `"thermal"`, `"hardware_thermal"`, `"power_brake"`, `"hardware_slowdown"`, `"sync_boost"` |
/// | `ecc_corrected`, `ecc_uncorrected` | errors of memory since the driver was loaded |
/// | `pcie_replays` | transfers that were made again |
/// | `processes` | maps of `pid` and `memory` in bytes, as far as the driver shows them |
#[export_module]
mod functions {
    /// All GPUs, by their index; none where there is no NVIDIA driver:
    /// `gpu::list().filter(|gpu| gpu.state == "ok")`.
    #[rhai_fn(return_raw)]
    pub fn list() -> ScriptResult<Array> {
        Ok(all()?.into_iter().map(Dynamic::from_map).collect())
    }

    /// The GPU with this index. Fails where there is none.
    #[rhai_fn(return_raw)]
    pub fn get(index: i64) -> ScriptResult<Map> {
        find(&format!("index {index}"), |gpu| gpu.get("index").and_then(|found| found.as_int().ok()) == Some(index))
    }

    /// The GPU with this uuid. Fails where there is none.
    #[rhai_fn(name = "get", return_raw)]
    pub fn get_by_uuid(uuid: &str) -> ScriptResult<Map> {
        let is = |gpu: &Map| {
            gpu.get("uuid").is_some_and(|found| found.read_lock::<ImmutableString>().is_some_and(|text| *text == uuid))
        };
        find(&format!("uuid {uuid:?}"), is)
    }
}

fn all() -> ScriptResult<Vec<Map>> {
    let call = Call::current()?;
    let World::Real(deps) = call.world() else { return testing::gpus() };
    let gpus = deps.config.gpus.as_ref().ok_or_else(|| error("no machine runs here"))?;
    Ok(gpus.get().gpus.iter().map(|gpu| map_of(gpu, call.timestamp())).collect())
}

fn find(what: &str, is: impl Fn(&Map) -> bool) -> ScriptResult<Map> {
    all()?.into_iter().find(is).ok_or_else(|| error(format!("there is no GPU with {what}")))
}

/// A GPU as scripts see it.
pub(in crate::script) fn map_of(status: &GpuStatus, now: Timestamp) -> Map {
    let nothing = GpuSample::default();
    let sample = status.sample.as_ref().unwrap_or(&nothing);
    let whole = |value: u64| Dynamic::from(i64::try_from(value).unwrap_or(i64::MAX));
    let or_unit = |value: Option<Dynamic>| value.unwrap_or(Dynamic::UNIT);
    let float = |value: Option<f64>| or_unit(value.map(Dynamic::from));
    let bytes = |value: Option<u64>| or_unit(value.map(whole));
    let text = |reason: &Throttle| Dynamic::from(reason.as_str());
    let process = |process: &GpuProcess| {
        let fields = [("pid", i64::from(process.pid).into()), ("memory", whole(process.memory_bytes))];
        Dynamic::from_map(fields.into_iter().map(|(key, value): (&str, Dynamic)| (key.into(), value)).collect())
    };
    let age = status.sampled.filter(|_| status.sample.is_some()).map(|at| now.since(at).as_secs_f64());
    let processes: Array = sample.processes.iter().map(process).collect();
    let fields: [(&str, Dynamic); 24] = [
        ("index", i64::from(status.gpu.index).into()),
        ("uuid", status.gpu.uuid.clone().into()),
        ("name", status.gpu.name.clone().into()),
        ("memory_gb", status.gpu.memory_gb.into()),
        ("state", status.state.as_str().into()),
        ("reason", or_unit(status.reason.clone().map(Dynamic::from))),
        ("last_xid", bytes(status.last_xid)),
        ("age", float(age)),
        ("utilization", float(sample.utilization)),
        ("memory_utilization", float(sample.memory_utilization)),
        ("memory_total", bytes(sample.memory_total_bytes)),
        ("memory_used", bytes(sample.memory_used_bytes)),
        ("memory_free", bytes(sample.memory_free_bytes)),
        ("temperature", float(sample.temperature_celsius)),
        ("power", float(sample.power_watts)),
        ("power_limit", float(sample.power_limit_watts)),
        ("energy", float(sample.energy_joules)),
        ("sm_clock", float(sample.sm_clock_hertz)),
        ("memory_clock", float(sample.memory_clock_hertz)),
        ("throttle", or_unit(sample.throttle.as_ref().map(|all| all.iter().map(text).collect::<Array>().into()))),
        ("ecc_corrected", bytes(sample.ecc.map(|ecc| ecc.corrected))),
        ("ecc_uncorrected", bytes(sample.ecc.map(|ecc| ecc.uncorrected))),
        ("processes", if status.sample.is_some() { processes.into() } else { Dynamic::UNIT }),
        ("pcie_replays", bytes(sample.pcie_replays)),
    ];
    fields.into_iter().map(|(key, value)| (key.into(), value)).collect()
}
