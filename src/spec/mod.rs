//! What a machine is: checked, immutable, without I/O. A value of these types has passed every check that needs nothing
//! but the value itself; later code cannot see unchecked data.

mod capabilities;
mod diff;
mod fields;
mod graph;
mod instances;
mod inventory;
mod limits;
mod machine;
mod plan;
mod probe;
mod redact;
mod requirement;
mod restart;
mod service;
mod step;
mod stop;
mod worker;

pub use capabilities::{Capabilities, Hardware};
pub use diff::{Affected, Change, Diff, ServiceChange};
pub use fields::{FieldProblem, Fields};
pub use graph::{Cycle, start_order};
pub use instances::GpuRef;
pub use inventory::Inventory;
pub use limits::{Limits, ProcessSetup, Rlimit, RlimitValue};
pub use machine::{Checked, MachineSpec};
pub use plan::{Action, ChangePlan, FieldChange, PlannedService, PlannedWorker, StartPlan, Step, differences};
pub use probe::{Probe, ProbeKind, ProbeTarget};
pub use requirement::{LabelTest, Requirement};
pub use restart::{Restart, RestartMode};
pub use service::{Condition, Kind, LogFileFormat, LogLimits, Need, ServiceSpec};
pub use step::{Download, GitCheckout, PipInstall, StepSpec};
pub use stop::{Drain, DrainTarget, Stop, StopSignal};
pub use worker::WorkerSpec;
