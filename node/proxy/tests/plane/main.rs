//! The forwarding plane over real sockets on loopback.

mod harness;
mod http;
mod reuse;
mod splice;
mod tcp;
