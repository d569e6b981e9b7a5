//! Names, times, durations, backoff, problems: what every other module speaks in. Knows nothing else.

mod allowance;
mod backoff;
mod clock;
mod fields;
mod lock;
mod name;
mod problem;
mod schedule;
mod schema;
mod suggest;
mod units;

pub use allowance::Allowance;
pub use backoff::Backoff;
pub use clock::Timestamp;
pub use fields::{Field, fields};
pub use lock::lock_file;
pub use name::{InvalidName, Name};
pub use problem::{Location, Problem, Problems, Severity, SourceText};
pub use schedule::Schedule;
pub use suggest::did_you_mean;
pub use units::{ByteSize, Seconds, parse_duration};

/// For `skip_serializing_if`: what says nothing is not written.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
