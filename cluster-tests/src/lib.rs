//! Harness of the black-box tests: starts real Phalanx processes, talks to them as clients do, and
//! leaves nothing behind.
//!
//! The tests know the program by its command line, its configuration, its Runtime API and the bytes
//! that it forwards, never by its insides. Everything listens in a piece of 127.0.0.0/8 that a
//! [`Base`] reserves, so that tests run side by side. Waiting is polling with a deadline.

mod base;
pub mod bench;
mod binary;
mod certificates;
pub mod chaos;
mod cluster;
mod consul;
mod dns;
mod http;
pub mod lab;
mod load;
pub mod nemesis;
mod node;
pub mod probe;
pub mod traffic;
mod wait;
pub mod websocket;

pub use base::Base;
pub use binary::phalanx;
pub use certificates::Authority;
pub use cluster::{Builder, Cluster, NodeStatus, Status, VipStatus};
pub use consul::{Consul, Fault, Query};
pub use dns::{Dns, Zone};
pub use http::{Client, Response, get};
pub use load::{Load, Outcome, summary};
pub use node::{Demo, Node, api, line, try_api};
pub use wait::{EndOnDrop, eventually, seed, until};

/// Kills a process that a test started.
pub fn kill(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, signal).unwrap_or_else(|e| panic!("cannot send {signal} to {pid}: {e}"));
}

pub use nix::sys::signal::Signal;
