use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::base::Name;

/// A call into the machine's script.
pub type HookCall = Pin<Box<dyn Future<Output = Result<bool, String>> + Send>>;

/// What the supervisor asks of the machine's script, of which it knows nothing else.
pub trait ServiceHooks: Send + Sync {
    /// Calls `function(m, service)`, which must be through within `limit`. Answers whether it returned true; nothing
    /// returned counts as true.
    fn call(&self, function: &str, service: &Name, limit: Duration) -> HookCall;
}
