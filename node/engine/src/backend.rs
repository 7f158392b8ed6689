//! A backend at run time: its servers, the choice among them, its queue and its state.
//!
//! Workers call [`Backend::choose`] and hold the [`Slot`] it gives. The control plane (Runtime API,
//! checks, reload) changes servers through the methods of [`control`], one change at a time; each
//! change publishes a new [`Farm`] and serves whoever waits.

mod agents;
mod control;
mod lines;
mod reconcile;
mod resolve;
#[cfg(test)]
mod tests;
mod verdicts;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use phalanx_config::model::{self, Link, ServerKey};

use crate::balance::{self, Farm, Input, Pick, Shared};
use crate::counters::{Counters, Padded, Worker, bump};
use crate::frontend::CapturedError;
use crate::queue::{Ahead, Enqueued, Queues};
use crate::server::{Server, Start};
use crate::stick::Stuck;
use crate::time::Now;

pub use self::control::{AdminChange, ControlError, Effects, HealthChange, Notice};
pub use crate::queue::{Grant, Slot, Waiting};

/// What a stream asks of its backend.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What `balance hdr()`, `uri` or `url_param` hash, from [`balance::key::of`].
    pub key: Option<&'a [u8]>,
    /// Client address.
    pub src: IpAddr,
    /// The server that a cookie or stick entry leads to.
    pub directed: Option<&'a Arc<Server>>,
    /// The server of the attempt before, to be avoided by a redispatch.
    pub avoid: Option<&'a Arc<Server>>,
    /// Who asks.
    pub worker: Worker,
    /// Randomness for `balance random`.
    pub draw: u64,
}

/// The answer.
#[derive(Debug)]
pub enum Choice {
    /// A place on a server.
    Slot(Slot),
    /// All places are taken.
    Wait(Waiting),
    /// No server may be used: 503.
    NoServer,
}

/// The runtime state of a `backend` or of the back side of a `listen`.
pub struct Backend {
    name: Arc<str>,
    id: AtomicU32,
    workers: usize,
    config: ArcSwap<model::Proxy>,
    servers: ArcSwap<Vec<Arc<Server>>>,
    farm: ArcSwap<Farm>,
    fullconn: AtomicU32,
    /// Shared by the workers: where the rotation stands.
    position: Padded<AtomicU64>,
    /// Streams in any queue of this backend.
    waiting: Padded<AtomicU32>,
    queues: Mutex<Queues>,
    queued: AtomicU32,
    queued_max: AtomicU32,
    conns: Padded<AtomicU32>,
    conns_max: AtomicU32,
    counters: Counters,
    control: Mutex<Standing>,
    /// Last refused response.
    pub last_error: Mutex<Option<CapturedError>>,
    /// Called when a stream begins to wait: for servers that share their places with other nodes.
    bell: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

/// Whether the backend has servers, and since when.
#[derive(Debug)]
struct Standing {
    up: bool,
    last_change: Now,
    downtime: Duration,
    down_transitions: u64,
    /// It has just lost its last server, and that is not in the log yet.
    announce: bool,
}

impl Backend {
    pub(crate) fn new(config: Arc<model::Proxy>, fullconn: u32, workers: usize, now: Now) -> Backend {
        let name: Arc<str> = config.name.as_str().into();
        let servers: Vec<Arc<Server>> = config
            .servers
            .iter()
            .map(|s| Arc::new(Server::new(name.clone(), Start::configured(s.clone()), workers, now)))
            .collect();
        let farm = Farm::new(&config, &servers);
        farm.mark(&servers);
        let up = !farm.servers().is_empty() || servers.is_empty();
        Backend {
            name,
            id: AtomicU32::new(config.id),
            workers,
            servers: ArcSwap::from_pointee(servers),
            farm: ArcSwap::from_pointee(farm),
            fullconn: AtomicU32::new(fullconn),
            position: Padded::default(),
            waiting: Padded::default(),
            queues: Mutex::default(),
            queued: AtomicU32::new(0),
            queued_max: AtomicU32::new(0),
            conns: Padded::default(),
            conns_max: AtomicU32::new(0),
            counters: Counters::new(workers),
            last_error: Mutex::default(),
            bell: OnceLock::new(),
            control: Mutex::new(Standing {
                up,
                last_change: now,
                downtime: Duration::ZERO,
                down_transitions: 0,
                announce: false,
            }),
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

    /// Its servers: those of the configuration in order, then those added at run time.
    pub fn servers(&self) -> Guard<Arc<Vec<Arc<Server>>>> {
        self.servers.load()
    }

    /// The server of this name.
    pub fn server(&self, name: &str) -> Option<Arc<Server>> {
        self.servers().iter().find(|s| **s.name() == *name).cloned()
    }

    /// The server that a link leads to. Servers come and go, so its place is only where to look first.
    pub fn linked(&self, link: &Link) -> Option<Arc<Server>> {
        let servers = self.servers();
        let there = link.place().and_then(|place| servers.get(place));
        let there = there.filter(|server| **server.name() == *link.name());
        there.or_else(|| servers.iter().find(|s| **s.name() == *link.name())).cloned()
    }

    #[cfg(test)]
    pub(crate) fn set_servers<'a>(&self, servers: impl Iterator<Item = &'a Arc<Server>>) {
        self.servers.store(Arc::new(servers.cloned().collect()));
    }

    /// The server of this id: what a stick entry holds.
    pub fn server_by_id(&self, id: u32) -> Option<Arc<Server>> {
        self.servers().iter().find(|s| s.id() == id).cloned()
    }

    /// The server that a stick table names: by name or address if one of these is here, else by id.
    pub fn stuck_server(&self, stuck: &Stuck, by: ServerKey) -> Option<Arc<Server>> {
        let named = stuck.key.as_deref().and_then(|key| {
            let servers = self.servers();
            let address = || key.parse::<SocketAddr>().ok();
            match by {
                ServerKey::Name => servers.iter().find(|s| **s.name() == *key).cloned(),
                ServerKey::Address => {
                    let address = address()?;
                    servers.iter().find(|s| s.addr() == address).cloned()
                }
            }
        });
        named.or_else(|| self.server_by_id(stuck.id).filter(|_| stuck.id != 0))
    }

    /// The server of this cookie value.
    pub fn server_by_cookie(&self, value: &[u8]) -> Option<Arc<Server>> {
        self.servers().iter().find(|s| s.has_cookie(value)).cloned()
    }

    /// Counts a stream in this backend until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> Stream {
        let now = self.conns.fetch_add(1, Relaxed) + 1;
        if now > self.conns_max.load(Relaxed) {
            self.conns_max.fetch_max(now, Relaxed);
        }
        Stream { backend: self.clone() }
    }

    /// Chooses a server and takes a place on it, or a place in the queue.
    pub fn choose(self: &Arc<Self>, ask: &Ask<'_>) -> Choice {
        // A directed server whose queue is full as well is given up.
        if let Some(server) = ask.directed.filter(|s| self.honours(s))
            && let Some(choice) = self.take_or_wait(server, ask.worker)
        {
            return choice;
        }
        let farm = self.farm.load();
        // Nobody jumps the queue, even if a place became free just now.
        let queued = self.queued.load(SeqCst) > 0 && !balance::is_hash(&self.config.load());
        let pick = if queued && !farm.servers().is_empty() {
            Pick::Full
        } else {
            let input = Input { key: ask.key, src: ask.src, draw: ask.draw, avoid: ask.avoid };
            farm.pick(&input, &self.shared())
        };
        match pick {
            Pick::Claimed(server) => {
                self.count_selection(&server, ask.worker, ask.avoid);
                Choice::Slot(Slot::new(self.clone(), server, Ahead::default()))
            }
            Pick::Bound(server) => {
                self.count_selection(&server, ask.worker, ask.avoid);
                self.take_or_wait(&server, ask.worker).unwrap_or_else(|| self.wait(ask.worker))
            }
            Pick::Full => self.wait(ask.worker),
            Pick::NoServer => Choice::NoServer,
        }
    }

    /// Streams in it now, waiting or served (`beconn`).
    pub fn conns(&self) -> u32 {
        self.conns.load(Relaxed)
    }

    /// Largest [`Backend::conns`].
    pub fn conns_max(&self) -> u32 {
        self.conns_max.load(Relaxed)
    }

    /// `fullconn` in force: CSV `slim`.
    pub fn fullconn(&self) -> u32 {
        self.fullconn.load(Relaxed)
    }

    /// Streams in the backend's own queue.
    pub fn queued(&self) -> u32 {
        self.queued.load(SeqCst)
    }

    /// Largest [`Backend::queued`].
    pub fn queued_max(&self) -> u32 {
        self.queued_max.load(Relaxed)
    }

    /// Streams in the backend's queue and in its servers' queues.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Usable `(active, backup)` servers: CSV `act` and `bck`.
    pub fn usable_servers(&self) -> (u32, u32) {
        let farm = self.farm.load();
        (farm.active, farm.backup)
    }

    /// Sum of the weights of the servers in use: CSV `weight`.
    pub fn weight(&self) -> u32 {
        self.farm.load().servers().iter().map(|s| s.weight()).sum()
    }

    /// Whether some server may be used: CSV `UP`. One without any server counts as up.
    pub fn is_up(&self) -> bool {
        self.control.lock().up
    }

    /// When it last went up or down.
    pub fn last_change(&self) -> Now {
        self.control.lock().last_change
    }

    /// Seconds down in all.
    pub fn downtime(&self, now: Now) -> u64 {
        let standing = self.control.lock();
        let current =
            if standing.up { Duration::ZERO } else { now.mono.saturating_sub(standing.last_change.mono) };
        (standing.downtime + current).as_secs()
    }

    /// Times it lost its last server: CSV `chkdown`.
    pub fn down_transitions(&self) -> u64 {
        self.control.lock().down_transitions
    }

    /// Failed checks `(chkfail)` of all its servers.
    pub fn failed_checks(&self) -> u64 {
        self.servers().iter().map(|s| s.check_failures().0).sum()
    }

    /// `clear counters`: the maxima, its servers' included.
    pub fn clear_max(&self) {
        self.conns_max.store(self.conns(), Relaxed);
        self.queued_max.store(self.queued(), Relaxed);
        self.counters.clear_max();
        self.servers().iter().for_each(|s| s.clear_max());
    }

    /// `clear counters all`, its servers' included.
    pub fn clear_all(&self) {
        self.clear_max();
        self.counters.clear_all();
        self.servers().iter().for_each(|s| s.clear_all());
        let mut standing = self.control.lock();
        standing.downtime = Duration::ZERO;
        standing.down_transitions = 0;
    }

    /// `bell` is called, on the request path, when a stream begins to wait. Only the first one counts.
    pub fn set_bell(&self, bell: &Arc<dyn Fn() + Send + Sync>) {
        if self.bell.get().is_none() {
            let _ = self.bell.set(bell.clone());
        }
    }

    /// Hands out places that became free other than by a stream's end.
    pub fn serve_waiting(&self) {
        self.serve_all();
    }

    pub(crate) fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }

    pub(crate) fn farm(&self) -> Guard<Arc<Farm>> {
        self.farm.load()
    }

    pub(crate) fn queues(&self) -> &Mutex<Queues> {
        &self.queues
    }

    pub(crate) fn waiting_counter(&self) -> &AtomicU32 {
        &self.waiting
    }

    pub(crate) fn note_queued(&self) {
        let now = self.queued.fetch_add(1, SeqCst) + 1;
        self.queued_max.fetch_max(now, Relaxed);
    }

    pub(crate) fn forget_queued(&self) {
        self.queued.fetch_sub(1, SeqCst);
    }

    pub(crate) fn limit(&self, server: &Server) -> Option<u32> {
        server.limit(self.conns(), self.fullconn())
    }

    /// `lbtot`: a retry on the same server is no new selection.
    pub(crate) fn count_selection(&self, server: &Arc<Server>, worker: Worker, before: Option<&Arc<Server>>) {
        if !before.is_some_and(|b| Arc::ptr_eq(b, server)) {
            bump(&server.counters().shard(worker).lbtot, 1);
            bump(&self.counters.shard(worker).lbtot, 1);
        }
    }

    /// A cookie or stick entry is followed to a server that is up or draining; with `option
    /// persist` even to one that is down.
    fn honours(&self, server: &Arc<Server>) -> bool {
        *server.backend_name() == self.name
            && (server.accepts_persistent()
                || (self.config.load().persist && !server.is_removed() && !server.admin().maint()))
    }

    /// A place on this server or in its queue; `None` if that is full.
    fn take_or_wait(self: &Arc<Self>, server: &Arc<Server>, worker: Worker) -> Option<Choice> {
        if server.queued() == 0 && server.claim(self.limit(server)) {
            return Some(Choice::Slot(Slot::new(self.clone(), server.clone(), Ahead::default())));
        }
        match self.enqueue(Some(server), worker) {
            Enqueued::Slot(slot) => Some(Choice::Slot(slot)),
            Enqueued::Waiting(waiting) => Some(Choice::Wait(waiting)),
            Enqueued::Refused => None,
        }
    }

    fn wait(self: &Arc<Self>, worker: Worker) -> Choice {
        match self.enqueue(None, worker) {
            Enqueued::Slot(slot) => Choice::Slot(slot),
            Enqueued::Waiting(waiting) => Choice::Wait(waiting),
            Enqueued::Refused => Choice::NoServer,
        }
    }

    fn shared(&self) -> Shared<'_> {
        Shared { position: &self.position, beconn: self.conns(), fullconn: self.fullconn() }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .field("servers", &*self.servers())
            .finish_non_exhaustive()
    }
}

/// A stream counted in its backend; dropping it uncounts.
#[derive(Debug)]
pub struct Stream {
    backend: Arc<Backend>,
}

impl Stream {
    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.backend.conns.fetch_sub(1, Relaxed);
    }
}
