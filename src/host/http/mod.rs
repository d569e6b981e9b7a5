//! HTTP requests as scripts make them: redirects that keep credentials to themselves, retries that follow what servers
//! ask for, and errors that name no secret.

mod clients;
mod error;
mod request;
mod retry;
mod sse;

pub use clients::{ClientOptions, HttpClients};
pub use error::{HttpError, HttpErrorKind, cause_text, shown};
pub use request::{Fill, HttpRequest, next_chunk, refusal, send};
pub use retry::{Outcome, RetryOn, RetryPolicy, retry_after};
pub use sse::{SseEvent, SseParser};
