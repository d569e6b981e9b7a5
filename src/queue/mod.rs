//! Jobs: their model, matching, and the [`Broker`] that hands them out.
//!
//! ```text
//!             submit                 claim                complete
//!  Submission ------> Pending ---------------> Running ------------> Completed
//!            ^  ^  ^    |  due        |  |  |
//!   not_before  |  |    | cancel      |  |  | fail, attempts left        fail, none left or fatal
//!       Delayed-+  |    v             |  |  +--> Delayed (backoff)       -> Failed (dead letters)
//!  depends_on Blocked  Cancelled <----+  +-----> Pending (release, lost lease: old place)
//! ```
//!
//! The state machine is written once, in `script/queue.lua`: Redis runs it as a library of functions ([`redis`]), the
//! engine runs the same text on a file ([`embedded`]). Both are a [`store::Store`]; [`client`] is the one `Broker`.

mod broker;
mod client;
mod embedded;
mod expression;
mod lifecycle;
mod matching;
mod model;
mod presence;
mod redis;
mod store;
mod validate;
mod webhook;

use std::path::Path;
use std::sync::Arc;

use crate::settings::RedisAddress;

pub use broker::{
    Broker, BrokerError, Claim, ClaimRequest, HeartbeatReply, HoldRequest, JobFilter, QueueConfig, Registration, Round,
    Submitted,
};
pub use matching::{Class, ClassId, Mismatch};
pub use model::{
    AccountStatus, Affinity, Attempt, Backlog, ClassForWorker, ClassRefused, ClassStatus, DependencyPolicy,
    Explanation, Failure, FailureClass, Hold, InvalidJobId, Job, JobEvent, JobId, JobSchedule, JobState, Limit, Load,
    Priority, Progress, QueueStats, RetryPolicy, Scope, Submission, Token, Usage, WorkerExplanation, WorkerMatch,
    Workflow,
};
pub use presence::{KnownMachine, Presence, Word};
pub use webhook::WebhookSender;

/// Opens or creates the queue in the file `path`. Must be called in a Tokio runtime.
pub fn open_embedded(path: &Path, config: QueueConfig) -> Result<Arc<dyn Broker>, BrokerError> {
    Ok(Arc::new(client::Client::start(Arc::new(embedded::EmbeddedStore::open(path)?), config)))
}

/// The queue `name` on a Redis. Returns at once; calls wait for the connection, or fail as unavailable.
pub fn connect_redis(address: RedisAddress, name: &str, config: QueueConfig) -> Arc<dyn Broker> {
    Arc::new(client::Client::start(redis::RedisStore::start(address, name), config))
}
