//! Decisions of the load balancer: configuration, state, input, time and seed in; what to do out.
//!
//! No I/O and no clock: time comes as [`time::Now`], randomness as a seed. The `proxy` and `cluster`
//! crates carry out what is decided here.

pub mod cookie;
pub mod end;
pub mod h1;
pub mod log;
pub mod registry;
pub mod sample;
pub mod stick;
pub mod time;
