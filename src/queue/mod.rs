//! Jobs: their model, matching, and the [`Broker`] trait with its backends.
//!
//! ```text
//!             submit                 claim                complete
//!  Submission ------> Pending ---------------> Running ------------> Completed
//!                ^  ^    |  due       |  |  |
//!        not_before |    | cancel     |  |  | fail, attempts left        fail, none left or fatal
//!          Delayed -+    v            |  |  +--> Delayed (backoff)       -> Failed (dead letters)
//!                     Cancelled <-----+  +-----> Pending (release, lost lease: old place)
//! ```

mod broker;
mod embedded;
mod matching;
mod model;
mod validate;

pub use broker::{Broker, BrokerError, Claim, ClaimRequest, HeartbeatReply, JobFilter, Registration, Submitted};
pub use embedded::{EmbeddedBroker, EmbeddedConfig};
pub use matching::{Class, ClassId, Mismatch};
pub use model::{
    Attempt, Failure, FailureClass, InvalidJobId, Job, JobEvent, JobId, JobState, Priority, Progress, QueueStats,
    RetryPolicy, Submission, Token, Workflow,
};
