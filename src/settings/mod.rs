//! How this process runs: defaults, then the machine's file, then the environment, then flags; every value knows where it
//! comes from. What a machine *does* belongs in its script.

mod document;
mod layers;
mod model;
mod origin;
mod secret;

pub use layers::{Overrides, load, machine_file};
pub use model::{
    ConnectorSettings, HttpSettings, LogSettings, MachineSettings, QueueBackend, QueueSettings, ReloadSettings,
    ResourceSettings, Settings, ShutdownSettings,
};
pub use origin::{Leaf, Origin, Tree};
pub use secret::Secret;
