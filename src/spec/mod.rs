//! What a machine is: checked, immutable, without I/O. A value of these types has passed every check that needs nothing
//! but the value itself; later code cannot see unchecked data.

mod service;
mod probe;
mod restart;
mod stop;
mod worker;
mod capabilities;
mod requirement;
mod machine;
mod graph;
mod diff;
mod fields;

pub use capabilities::{Capabilities, Hardware};
pub use diff::{Change, Diff, ServiceChange};
pub use fields::{FieldProblem, Fields};
pub use graph::{Cycle, start_order};
pub use machine::{Checked, MachineSpec};
pub use probe::{Probe, ProbeTarget};
pub use requirement::{LabelTest, Requirement};
pub use restart::{Restart, RestartMode};
pub use service::{Condition, Kind, LogLimits, Need, ServiceSpec};
pub use stop::{Stop, StopSignal};
pub use worker::WorkerSpec;
