//! Websockets as scripts use them: one connection of one script, or one that all scripts share which is made again when it
//! breaks. The handshake is a request of `host::http`, so proxies, certificates and refusals are as there.

mod filter;
mod handshake;
mod link;
mod queue;
mod shared;

pub use filter::Filter;
pub use handshake::{WsOptions, WsRequest, open};
pub use link::{End, Frame, Link, LinkSender};
pub use queue::Event;
pub use shared::{SharedRequest, SharedSockets, Subscription};
