//! A frontend at run time: connections counted against `maxconn`, counters, paused or stopped.
//!
//! Workers enter a [`Connection`] for every accepted connection; dropping it leaves. Listeners
//! belong to the proxy, which looks at [`Frontend::status`] to open and close them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use phalanx_config::model;

use crate::counters::{Counters, Padded};
use crate::registry::Registry;
use crate::registry::frontends::{Accepts, FrontendBase};

/// Whether a frontend accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Listening.
    Open = 0,
    /// Paused by `disable frontend`.
    Paused = 1,
    /// Stopped for good by `shutdown frontend` or removal from the configuration.
    Stopped = 2,
}

/// What `show errors` tells of a request or response that was refused.
#[derive(Clone, Debug)]
pub struct CapturedError {
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
    /// Number of the event, counted over the process.
    pub event: u64,
    /// The client.
    pub client: Option<SocketAddr>,
    /// The frontend of a refused response, the backend of a refused request if one was chosen: name
    /// and number.
    pub other: Option<(Arc<str>, u32)>,
    /// Server, if one was chosen: name and number.
    pub server: Option<(Arc<str>, u32)>,
    /// Offset of the offending byte in `bytes`.
    pub position: usize,
    /// The message's bytes, at most a buffer full.
    pub bytes: Vec<u8>,
}

/// The runtime state of a `frontend` or of the front side of a `listen`.
#[derive(Debug)]
pub struct Frontend {
    name: Arc<str>,
    id: AtomicU32,
    config: ArcSwap<model::Proxy>,
    status: AtomicU8,
    maxconn: AtomicU32,
    conns: Padded<AtomicU32>,
    conns_max: AtomicU32,
    counters: Counters,
    /// Last refused request.
    pub last_error: Mutex<Option<CapturedError>>,
}

impl Frontend {
    pub(crate) fn new(config: Arc<model::Proxy>, maxconn: u32, workers: usize) -> Frontend {
        Frontend {
            name: config.name.as_str().into(),
            id: AtomicU32::new(config.id),
            status: AtomicU8::new(Status::Open as u8),
            maxconn: AtomicU32::new(maxconn),
            conns: Padded::default(),
            conns_max: AtomicU32::new(0),
            counters: Counters::new(workers),
            last_error: Mutex::default(),
            config: ArcSwap::new(config),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its numeric id.
    pub fn id(&self) -> u32 {
        self.id.load(Relaxed)
    }

    /// Its section as it stands.
    pub fn config(&self) -> Guard<Arc<model::Proxy>> {
        self.config.load()
    }

    /// Whether it accepts.
    pub fn status(&self) -> Status {
        match self.status.load(Acquire) {
            0 => Status::Open,
            1 => Status::Paused,
            _ => Status::Stopped,
        }
    }

    /// Pauses, resumes or stops it, until commands or a configuration say something else.
    pub fn set_status(&self, status: Status) {
        self.status.store(status as u8, Release);
    }

    /// Status as in CSV: `OPEN`, `FULL`, `PAUSED`, `STOP`.
    pub fn status_text(&self) -> &'static str {
        match self.status() {
            Status::Open if self.conns() >= self.maxconn() => "FULL",
            Status::Open => "OPEN",
            Status::Paused => "PAUSED",
            Status::Stopped => "STOP",
        }
    }

    /// Limit of concurrent connections.
    pub fn maxconn(&self) -> u32 {
        self.maxconn.load(Relaxed)
    }

    /// Changes the limit (`set maxconn frontend`).
    pub fn set_maxconn(&self, maxconn: u32) {
        self.maxconn.store(maxconn, Relaxed);
    }

    /// Connections now.
    pub fn conns(&self) -> u32 {
        self.conns.load(Relaxed)
    }

    /// Largest [`Frontend::conns`].
    pub fn conns_max(&self) -> u32 {
        self.conns_max.load(Relaxed)
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// `clear counters`.
    pub fn clear_max(&self) {
        self.conns_max.store(self.conns(), Relaxed);
        self.counters.clear_max();
    }

    /// `clear counters all`.
    pub fn clear_all(&self) {
        self.clear_max();
        self.counters.clear_all();
    }

    /// Takes a place for a connection, which must [`leave`](Frontend::leave); `false` when `maxconn` is
    /// reached.
    #[must_use]
    pub fn enter(&self) -> bool {
        let max = self.maxconn();
        let entered = self.conns.fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1));
        let Ok(before) = entered else { return false };
        if before + 1 > self.conns_max.load(Relaxed) {
            self.conns_max.fetch_max(before + 1, Relaxed);
        }
        true
    }

    /// Gives the place of a connection back.
    pub fn leave(&self) {
        self.conns.fetch_sub(1, SeqCst);
    }

    /// Takes over what commands have changed; `maxconn` is what the configuration says.
    pub(crate) fn follow(&self, registry: &Registry, maxconn: u32) {
        let effective = registry.frontends().effective(&self.name, &FrontendBase::of(&self.config()));
        self.set_maxconn(effective.maxconn.unwrap_or(maxconn));
        self.set_status(match effective.accepts {
            Accepts::Open => Status::Open,
            Accepts::Paused => Status::Paused,
            Accepts::Stopped => Status::Stopped,
        });
    }

    pub(crate) fn set_config(&self, config: Arc<model::Proxy>) {
        self.id.store(config.id, Relaxed);
        self.config.store(config);
    }
}
