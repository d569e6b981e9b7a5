//! How this process runs: defaults, then the machine's file, then the environment, then flags; every value knows where it
//! comes from. What a machine *does* belongs in its script.

mod document;
mod layers;
mod live;
mod model;
mod origin;
mod redis_address;
mod secret;

pub use layers::{Overrides, load, machine_files};
pub use live::SettingChange;
pub use model::{
    BlobSettings, ConnectorSettings, GpuSettings, HttpSettings, LogSettings, MachineSettings, QueueBackend,
    QueueSettings, ReloadSettings, ResourceSettings, Settings, ShutdownSettings,
};
pub use origin::{Leaf, Origin, Tree};
pub use redis_address::{RedisAddress, RedisNodes};
pub use secret::Secret;
