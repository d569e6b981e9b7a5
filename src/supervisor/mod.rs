//! Services: started in order, watched, restarted, stopped, with all their descendants.
//!
//! One thread owns every service (`task`); it waits only for messages and for its next timer, and nothing else can block
//! it. What happens to a service is decided in `state`, which is pure. Everybody else holds a [`SupervisorHandle`], whose
//! verbs queue a message, and reads the published status. What services write is read on another thread (`logs`), which
//! also tells the world what happened, so that nobody who listens delays the next start.

mod events;
mod handle;
mod hooks;
mod logs;
mod measure;
mod notify;
mod probe;
mod state;
mod status;
mod task;

pub use crate::host::process::Exit;
pub use events::event_kinds;
pub use handle::{LostGpu, StartMode, SupervisorHandle, UnknownService};
pub use hooks::{HookCall, ServiceHooks};
pub use logs::{LogFilter, LogLine, LogStream};
pub use status::{Desired, ServiceState, ServiceStatus, ServicesStatus};
pub use task::{Supervisor, SupervisorConfig};
