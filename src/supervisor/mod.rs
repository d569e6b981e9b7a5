//! Services: started in order, watched, restarted, stopped, with all their descendants.

mod handle;
mod logs;
mod status;

pub use handle::{StartMode, SupervisorHandle, UnknownService};
pub use logs::{LogLine, LogStream};
pub use status::{Desired, Exit, ServiceState, ServiceStatus, ServicesStatus};
