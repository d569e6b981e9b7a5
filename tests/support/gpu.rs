//! GPUs that a test makes up: a `libnvidia-ml` of ours (`tests/fake_nvml`) and the file that says what they are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::machine::{BINARY, Machine};

/// GIB is what memory is counted in.
pub const GIB: u64 = 1024 * 1024 * 1024;

/// The library, which the test runner builds beside the tests.
pub fn library() -> PathBuf {
    let path = Path::new(BINARY).parent().unwrap().join("examples/libfake_nvml.so");
    assert!(path.exists(), "{} is not there; cargo build --example fake_nvml", path.display());
    path
}

/// A GPU that tells everything.
pub fn gpu(index: u64) -> Value {
    json!({
        "uuid": format!("GPU-{index}0000000-aaaa"), "name": "Fake A100", "memory_total": 40 * GIB, "memory_used": (index + 1) * GIB,
        "utilization": 50 + index, "memory_utilization": 25, "temperature": 60 + index, "power": 250_500, "power_limit": 400_000,
        "energy": 1_234_500, "sm_clock": 1410, "memory_clock": 1593, "pcie_replays": 3, "throttle": 4,
        "ecc": [[5, 1], [50, 2]], "processes": [], "unsupported": [],
    })
}

/// What the driver says, kept in the machine's directory.
pub struct Gpus {
    path: PathBuf,
    pub state: Value,
}

impl Gpus {
    /// Gives a machine that is not started yet a driver with these GPUs.
    pub fn of(machine: &mut Machine, gpus: Vec<Value>) -> Self {
        let gpus = Self { path: machine.dir.path().join("gpus.json"), state: json!({ "gpus": gpus, "xids": [] }) };
        machine.environment.push(("FAKE_NVML_STATE".to_owned(), gpus.path.display().to_string()));
        machine.environment.push(("MACHINIST_GPU__LIBRARY".to_owned(), library().display().to_string()));
        machine.environment.push(("MACHINIST_GPU__EVERY".to_owned(), "100ms".to_owned()));
        gpus.say();
        gpus
    }

    /// Makes the state what the driver says from now on.
    pub fn say(&self) {
        let temporary = self.path.with_extension("new");
        std::fs::write(&temporary, self.state.to_string()).unwrap();
        std::fs::rename(temporary, &self.path).unwrap();
    }

    pub fn set(&mut self, place: usize, key: &str, value: impl Into<Value>) {
        self.state["gpus"][place][key] = value.into();
        self.say();
    }

    pub fn xid(&mut self, place: usize, code: u64) {
        self.state["xids"].as_array_mut().unwrap().push(json!([place, code]));
        self.say();
    }
}
