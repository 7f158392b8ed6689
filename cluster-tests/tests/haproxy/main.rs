//! Phalanx beside HAProxy 2.6 with the same configuration: what clients and servers see byte for
//! byte, what is logged, and what the Runtime API answers.
//!
//! Cases are table entries. Where Phalanx differs on purpose, the entry says how and why; an entry
//! that no longer matches what HAProxy does fails, too. Without `haproxy` the tests say so and pass.
//! `CASE=text` runs only the cases whose names hold it and prints what both did.

mod exchange;
mod normal;
mod script;
mod side;

mod balance;
mod config;
mod http;
mod peers;
mod resolvers;
mod rules;
mod runtime;
mod syslog;
mod tables;
mod tcp;
