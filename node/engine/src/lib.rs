//! Decisions of the load balancer: configuration, state, input, time and seed in; what to do out.
//!
//! No I/O and no clock: time comes as [`time::Now`], randomness as a seed. The `proxy` and `cluster`
//! crates carry out what is decided here.

pub mod agent;
pub mod backend;
pub mod balance;
pub mod chunked;
pub mod cookie;
pub mod counters;
pub mod discovery;
pub mod end;
pub mod errors_page;
pub mod frontend;
pub mod h1;
pub mod hash;
pub mod health;
pub mod lease;
pub mod log;
pub mod membership;
pub mod memory;
pub mod near;
pub mod pattern;
pub mod peers;
pub mod permits;
pub mod plan;
mod planted;
pub mod queue;
pub mod registry;
pub mod replication;
pub mod rollout;
pub mod rules;
pub mod sample;
pub mod server;
pub mod state;
pub mod stats;
pub mod stick;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod verdict;
