//! The reference of what scripts can use, and definitions for editors: made of the comments beside the code.

mod definitions;
mod entry;
mod language;
mod names;
mod page;

pub use definitions::definitions;
pub(super) use entry::type_name;
pub use names::describe;
pub(super) use names::words;
pub use page::reference;
