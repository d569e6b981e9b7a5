//! What the engine does with the operating system: primitives without policy.

mod gpu;
pub mod process;
mod signals;
mod state_dir;
mod system;
mod watch;

pub use gpu::{Gpu, gpus};
pub use signals::{HostSignal, listen};
pub use state_dir::{Identity, StateDir, StateDirError};
pub use system::{Resources, host_name, resources};
pub use watch::FileWatcher;
