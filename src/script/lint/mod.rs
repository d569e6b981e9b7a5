//! What is wrong with a script that can be seen without running it: undefined variables and functions, wrong numbers of
//! arguments, misspelled hooks and options, imports that are not there or go in circles; in the script itself and in all
//! that it imports, everything at once.

mod functions;
mod unit;
mod walk;

pub(super) use functions::Functions;
pub(super) use walk::{Imports, at_function, count, lint};
