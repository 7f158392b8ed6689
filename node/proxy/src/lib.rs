//! The forwarding plane: moves bytes as the engine decides.
//!
//! [`Forwarder`] is the way in. Behind it: `worker` (threads) and `listener` (accept), `session` (one
//! client connection) with `tcp` and `http`, `connect` and `pool` (the way to a server), `tunnel`
//! (forwarding), `report` (counters and log lines).

mod buffer;
pub mod check;
mod connect;
mod deadline;
mod forwarder;
mod front;
mod http;
mod listener;
pub mod log;
mod nursery;
mod pipes;
mod pool;
mod report;
mod room;
mod rules;
mod runtime;
mod session;
pub mod stats_page;
mod stream;
mod tcp;
mod tunnel;
mod worker;

pub use forwarder::{Forwarder, StartError};
