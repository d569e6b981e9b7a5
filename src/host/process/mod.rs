//! Child processes: spawned without forking the engine, reaped by one thread, killed with all they started.
//!
//! Every child gets a session of its own and a *mark* in its environment. The engine is PID 1 or a subreaper, so whatever
//! a child leaves behind becomes the engine's own child; session and mark tell whose it was.

mod exit;
mod lineage;
mod reaper;
mod spawn;

pub use exit::Exit;
pub use lineage::{Leftover, MARK, kill_leftovers};
pub use reaper::Processes;
pub use spawn::{SpawnSpec, Spawned, Stdin, find_program};
