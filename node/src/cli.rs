//! The Runtime API: HAProxy's text commands on `stats socket`, and Phalanx's own for the cluster.
//!
//! [`serve`] runs on the control runtime and can never stall a worker. A connection is framed by
//! `session`, a line is split by `words`, a command is found in the table of `keyword`; one file per
//! group holds the commands. What changes servers goes through [`Authority`], so that every node
//! makes the same change and an answer means that it is committed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use parking_lot::Mutex;
use phalanx_engine::state::State;
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_proxy::log::Sink;
use phalanx_sys::clock::Clock;
use tokio::sync::{mpsc, oneshot};

use crate::epochs::Held;

mod authority;
mod basics;
mod config;
mod counters;
mod digests;
mod discovery;
mod errors;
mod frontends;
mod keyword;
mod membership;
mod patterns;
mod process;
mod remote;
mod servers;
mod session;
mod sessions;
mod socket;
mod tables;
#[cfg(test)]
mod tests;
mod vips;
mod words;

pub(crate) use authority::{Authority, Local};
pub(crate) use remote::ForOthers;
pub(crate) use socket::{Listener, listen, serve};

/// What the commands work on. Assembled once by the program.
pub(crate) struct Context {
    /// Plan, servers, counters, sessions.
    pub(crate) state: Arc<State>,
    /// Where changes of servers are decided.
    pub(crate) authority: Authority,
    /// The process's clock.
    pub(crate) clock: Clock,
    /// For the count of dropped lines.
    pub(crate) logs: Sink,
    /// Asks the program to read its configuration again.
    pub(crate) reload: mpsc::Sender<ReloadRequest>,
    /// Brings listeners in line after `enable|disable|shutdown frontend`.
    pub(crate) apply_listeners: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What the program said when it started or last reloaded.
    pub(crate) startup_logs: Arc<Mutex<String>>,
    /// Resolves a host name; it may block.
    pub(crate) resolve: fn(&str) -> Result<std::net::IpAddr, String>,
    /// Processor time between two `show info`.
    pub(crate) load: Load,
    /// `peers` sections.
    pub(crate) haproxys: Vec<phalanx_cluster::haproxy::Handle>,
    /// Warnings so far.
    pub(crate) warnings: AtomicU64,
    /// Servers that are found at run time.
    pub(crate) discovery: crate::discovery::Handle,
    /// The configuration that this node runs.
    pub(crate) held: Arc<Held>,
}

/// Where the answer to a reload goes: what there is to say, as an error if nothing was changed.
pub(crate) type ReloadRequest = oneshot::Sender<Result<String, String>>;

/// Remembers processor time, to tell how idle the process was since.
#[derive(Debug, Default)]
pub(crate) struct Load(Mutex<Option<(Instant, std::time::Duration)>>);

impl Context {
    /// The moment.
    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    fn tables(&self) -> &Arc<Tables> {
        self.state.tables()
    }
}
