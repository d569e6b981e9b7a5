//! Child processes: spawned without forking the engine, reaped by one thread, killed with all they started.
//!
//! Every child gets a session of its own, a *mark* in its environment and a *tag* among its limits. The engine is PID 1 or
//! a subreaper, so whatever a child leaves behind becomes the engine's own child; session, tag and mark tell whose it was.

mod exec;
mod exit;
mod lineage;
mod reaper;
mod spawn;
mod table;
mod tag;

pub use exec::{EXEC_NAME, ExecSetup, exec_main};
pub use exit::Exit;
pub use lineage::{Leftover, Lineage, MARK, kill_leftovers};
pub use reaper::{Hurry, Processes};
pub use spawn::{SpawnSpec, Spawned, Stdin, find_program};
pub use table::{Entry, Row, command, listing, row, snapshot, with_file};
