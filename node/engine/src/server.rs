//! One server at run time: address, weight, admin and operational state, places in use.
//!
//! Created by a [`Backend`](crate::backend::Backend), from the configuration or for `add server`,
//! and kept across reloads. Workers read its atomics and claim places on it; every change of state
//! goes through the backend, which then rebuilds what balancing looks at.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use phalanx_config::model;
use phalanx_config::model::ServerOptions;

use crate::agent::Agent;
use crate::balance::WEIGHT_SCALE;
use crate::counters::{Counters, Padded};
use crate::health::{Health, Report};
use crate::registry;
use crate::time::Now;

/// Operational state; the number is `srv_op_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OpState {
    /// Down.
    Stopped = 0,
    /// Warming up (`slowstart`).
    Starting = 1,
    /// Up.
    Running = 2,
    /// Finishing: persistent traffic only.
    Stopping = 3,
}

impl OpState {
    /// From its number.
    pub fn from_u8(n: u8) -> OpState {
        match n {
            0 => OpState::Stopped,
            1 => OpState::Starting,
            2 => OpState::Running,
            _ => OpState::Stopping,
        }
    }
}

/// Administrative state, the bits of `srv_admin_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admin(pub u8);

impl Admin {
    /// Put into maintenance by a command.
    pub const FMAINT: u8 = 0x01;
    /// In maintenance because of a tracked server.
    pub const IMAINT: u8 = 0x02;
    /// Started in maintenance: `disabled` in the configuration.
    pub const CMAINT: u8 = 0x04;
    /// Put into drain by a command.
    pub const FDRAIN: u8 = 0x08;

    /// In maintenance because its name does not resolve, or nothing was found for it.
    pub const RMAINT: u8 = 0x20;
    /// Its name came from an SRV record.
    pub const HMAINT: u8 = 0x40;

    /// In maintenance, for whatever reason.
    pub fn maint(self) -> bool {
        self.0 & (Self::FMAINT | Self::IMAINT | Self::RMAINT) != 0
    }

    /// Draining.
    pub fn drain(self) -> bool {
        self.0 & Self::FDRAIN != 0
    }

    /// What a command makes of it: maintenance and drain exclude each other.
    pub(crate) fn after(self, change: registry::Admin) -> Admin {
        Admin(match change {
            registry::Admin::Ready => self.0 & !(Self::FMAINT | Self::FDRAIN),
            registry::Admin::Drain => self.0 & !Self::FMAINT | Self::FDRAIN,
            registry::Admin::Maint => self.0 & !Self::FDRAIN | Self::FMAINT,
        })
    }
}

/// Who made the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A `server` line.
    Config,
    /// `add server`.
    Runtime,
}

/// The options as they stand; derefs to [`ServerOptions`].
pub struct Options(Guard<Arc<model::Server>>);

impl Deref for Options {
    type Target = ServerOptions;

    fn deref(&self) -> &ServerOptions {
        &self.0.options
    }
}

/// What the check tasks and the Runtime API know of a server's checks.
#[derive(Clone, Debug)]
pub struct CheckState {
    /// The server line says `check`.
    pub configured: bool,
    /// Not switched off by `disable health`.
    pub enabled: bool,
    /// Rise and fall counting.
    pub health: Health,
    /// The last probe; `None` before the first.
    pub last: Option<Report>,
    /// Address that probes go to, if it is another than the server's.
    pub ip: Option<IpAddr>,
    /// Port that probes go to, if it is another than the server's.
    pub port: Option<u16>,
    /// This node alone cannot reach the server, and does not use it.
    pub apart: Option<Apart>,
}

/// Why this node does not use a server that is up for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// What this node's own probe found.
    pub report: Report,
    /// A node that can reach it.
    pub reached_by: Arc<str>,
}

/// What changes rarely, under the server's own lock.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) check: CheckState,
    pub(crate) agent: Agent,
    /// Last change of the operational or maintenance state.
    pub(crate) last_change: Now,
    /// Time spent down before `last_change`.
    pub(crate) downtime: Duration,
    pub(crate) failed_checks: u64,
    pub(crate) down_transitions: u64,
    /// Start of `slowstart`'s ramp.
    pub(crate) ramp_from: Option<Duration>,
    /// Revision of the last `set server … health` carried out.
    pub(crate) forced: u64,
}

/// What a server starts from.
pub(crate) struct Start {
    pub(crate) config: Arc<model::Server>,
    /// Of the `add server` command; 0 for a configured one.
    pub(crate) revision: u64,
    pub(crate) admin: Admin,
}

impl Start {
    /// A `server` line.
    pub(crate) fn configured(config: Arc<model::Server>) -> Start {
        let mut admin = if config.options.disabled { Admin::FMAINT | Admin::CMAINT } else { 0 };
        if config.discovered.is_some() && config.addr.ip().is_unspecified() {
            admin |= Admin::RMAINT;
        }
        Start { config, revision: 0, admin: Admin(admin) }
    }

    /// An `add server` command: in maintenance until enabled.
    pub(crate) fn added(config: Arc<model::Server>, revision: u64) -> Start {
        Start { config, revision, admin: Admin(Admin::FMAINT) }
    }
}

/// The runtime state of one server.
pub struct Server {
    backend: Arc<str>,
    name: Arc<str>,
    /// Tells it from every other server of the process.
    serial: u64,
    id: AtomicU32,
    /// Revision of the `add server` command that made it; 0 for a configured one.
    revision: AtomicU64,
    config: ArcSwap<model::Server>,
    addr: ArcSwap<SocketAddr>,
    /// Counts the changes of the two.
    changes: AtomicU64,
    weight: AtomicU32,
    maxconn: AtomicU32,
    minconn: AtomicU32,
    /// `maxconn <n> cluster`: how many of them this node may use now; `u32::MAX` for other servers.
    places: AtomicU32,
    maxqueue: AtomicU32,
    op: AtomicU8,
    admin: AtomicU8,
    /// Percent of weight and limits while starting; 100 otherwise.
    throttle: AtomicU32,
    removed: AtomicBool,
    /// Whether balancing may pick it now, backup rules included.
    in_farm: AtomicBool,
    /// Idle connections in the workers' pools; the proxy keeps it.
    pub idle: AtomicU32,
    served: Padded<AtomicU32>,
    served_max: AtomicU32,
    pub(crate) queued: AtomicU32,
    queued_max: AtomicU32,
    /// Failed attempts to connect since the last that succeeded.
    failures: AtomicU32,
    /// Stamp of the last selection, for the least recently used of equals.
    pub(crate) last_used: AtomicU64,
    pub(crate) control: Mutex<Control>,
    counters: Counters,
}

impl Server {
    pub(crate) fn new(backend: Arc<str>, start: Start, workers: usize, now: Now) -> Server {
        let Start { config, revision, admin } = start;
        let o = &config.options;
        let op = if admin.maint() { OpState::Stopped } else { OpState::Running };
        let mut health = Health::new(o.rise, o.fall);
        if admin.maint() {
            health.force(false);
        }
        let check = CheckState {
            configured: o.check,
            enabled: o.check && revision == 0,
            health,
            last: None,
            ip: o.check_addr,
            port: o.check_port,
            apart: None,
        };
        let agent = Agent {
            configured: o.agent_check,
            enabled: o.agent_check && revision == 0,
            ip: o.agent_addr,
            port: o.agent_port.unwrap_or(0),
            send: o.agent_send.clone().unwrap_or_default(),
            ..Agent::default()
        };
        Server {
            backend,
            name: config.name.as_str().into(),
            serial: SERIAL.fetch_add(1, Relaxed),
            id: AtomicU32::new(config.id),
            revision: AtomicU64::new(revision),
            addr: ArcSwap::from_pointee(config.addr),
            changes: AtomicU64::new(0),
            weight: AtomicU32::new(o.weight),
            maxconn: AtomicU32::new(o.maxconn),
            minconn: AtomicU32::new(o.minconn),
            places: AtomicU32::new(if o.maxconn_cluster && o.maxconn > 0 { 0 } else { u32::MAX }),
            maxqueue: AtomicU32::new(o.maxqueue),
            op: AtomicU8::new(op as u8),
            admin: AtomicU8::new(admin.0),
            throttle: AtomicU32::new(100),
            removed: AtomicBool::new(false),
            in_farm: AtomicBool::new(false),
            idle: AtomicU32::new(0),
            served: Padded::default(),
            served_max: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            queued_max: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            last_used: AtomicU64::new(0),
            control: Mutex::new(Control {
                check,
                agent,
                last_change: now,
                downtime: Duration::ZERO,
                failed_checks: 0,
                down_transitions: 0,
                ramp_from: None,
                forced: 0,
            }),
            counters: Counters::new(workers),
            config: ArcSwap::new(config),
        }
    }

    /// Name of its backend.
    pub fn backend_name(&self) -> &Arc<str> {
        &self.backend
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its numeric id, unique in the backend, the same on every node.
    pub fn id(&self) -> u32 {
        self.id.load(Relaxed)
    }

    /// Who made it.
    pub fn origin(&self) -> Origin {
        if self.revision() == 0 { Origin::Config } else { Origin::Runtime }
    }

    /// Which `add server` command made it; 0 for a configured one.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Relaxed)
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Where to connect to.
    pub fn addr(&self) -> SocketAddr {
        **self.addr.load()
    }

    /// How often [`Server::addr`] and [`Server::config`] have changed: who keeps what they gave, and read
    /// this before, may use it for as long as this is the same.
    pub fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }

    /// The `server` line as it stands.
    pub fn config(&self) -> Guard<Arc<model::Server>> {
        self.config.load()
    }

    /// The options of the `server` line.
    pub fn options(&self) -> Options {
        Options(self.config.load())
    }

    /// Whether this is its cookie value.
    pub fn has_cookie(&self, value: &[u8]) -> bool {
        self.config.load().options.cookie.as_ref().is_some_and(|c| c.as_bytes() == value)
    }

    /// `backup`.
    pub fn is_backup(&self) -> bool {
        self.config.load().options.backup
    }

    /// Weight in force (`uweight`), 0..=256.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Weight of the configuration (`iweight`).
    pub fn initial_weight(&self) -> u32 {
        self.config.load().options.weight
    }

    /// `maxconn` in force; 0 = no limit.
    pub fn maxconn(&self) -> u32 {
        self.maxconn.load(Relaxed)
    }

    /// Whether `maxconn` is that of all nodes together.
    pub fn shares_places(&self) -> bool {
        self.config.load().options.maxconn_cluster && self.maxconn() > 0
    }

    /// How many places this node may use from now on, of a server that shares them; `None` = all.
    /// Requests that have one keep it. [`Server::served`], read after it, counts all that are in use.
    pub fn set_places(&self, places: Option<u32>) {
        let places = places.unwrap_or(u32::MAX);
        if self.places.load(Relaxed) != places {
            self.places.store(places, SeqCst);
        }
    }

    /// `maxqueue`; 0 = no limit.
    pub fn maxqueue(&self) -> u32 {
        self.maxqueue.load(Relaxed)
    }

    /// Administrative state.
    pub fn admin(&self) -> Admin {
        Admin(self.admin.load(Acquire))
    }

    /// Operational state.
    pub fn op_state(&self) -> OpState {
        OpState::from_u8(self.op.load(Acquire))
    }

    /// Up and not in maintenance.
    pub fn is_up(&self) -> bool {
        self.op_state() != OpState::Stopped && !self.admin().maint()
    }

    /// Whether balancing may pick it: up, not draining, weight above 0.
    pub fn usable(&self) -> bool {
        self.is_up() && !self.admin().drain() && self.op_state() != OpState::Stopping && self.weight() > 0
    }

    /// Whether a cookie or stick entry may still lead to it.
    pub fn accepts_persistent(&self) -> bool {
        self.is_up() && !self.is_removed()
    }

    /// Taken out of its backend; lives on only for the sessions it still has.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Acquire)
    }

    /// Requests (HTTP) or connections (TCP) on it now.
    pub fn served(&self) -> u32 {
        self.served.load(SeqCst)
    }

    /// Largest [`Server::served`].
    pub fn served_max(&self) -> u32 {
        self.served_max.load(Relaxed)
    }

    /// Streams waiting for this very server.
    pub fn queued(&self) -> u32 {
        self.queued.load(SeqCst)
    }

    /// Largest [`Server::queued`].
    pub fn queued_max(&self) -> u32 {
        self.queued_max.load(Relaxed)
    }

    /// Notes how an attempt to connect to it ended.
    pub fn note_connect(&self, connected: bool) {
        if !connected {
            self.failures.fetch_add(1, Relaxed);
        } else if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Failed attempts to connect since the last that succeeded.
    pub fn connect_failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// Percent of its weight while starting, 100 otherwise.
    pub fn throttle(&self) -> u32 {
        self.throttle.load(Relaxed)
    }

    /// Weight as the algorithms count it: in sixteenths, less while starting.
    pub(crate) fn effective_weight(&self) -> u32 {
        let full = self.weight() * WEIGHT_SCALE;
        let throttle = self.throttle();
        if throttle >= 100 || full == 0 { full } else { (full * throttle / 100).max(1) }
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// `clear counters`: the maxima.
    pub fn clear_max(&self) {
        self.served_max.store(self.served(), Relaxed);
        self.queued_max.store(self.queued(), Relaxed);
        self.counters.clear_max();
    }

    /// `clear counters all`.
    pub fn clear_all(&self) {
        self.clear_max();
        self.counters.clear_all();
        let mut control = self.control.lock();
        control.failed_checks = 0;
        control.down_transitions = 0;
        control.downtime = Duration::ZERO;
    }

    /// Its checks.
    pub fn check(&self) -> CheckState {
        self.control.lock().check.clone()
    }

    /// Whether probes should run now: configured, enabled, not in maintenance.
    pub fn check_runs(&self) -> bool {
        let control = self.control.lock();
        control.check.configured && control.check.enabled && !self.admin().maint() && !self.is_removed()
    }

    /// Where its checks go: `addr` and `port` of the `server` line or as commands set them, else its own.
    pub fn check_addr(&self) -> SocketAddr {
        let addr = self.addr();
        let check = &self.control.lock().check;
        SocketAddr::new(check.ip.unwrap_or(addr.ip()), check.port.unwrap_or(addr.port()))
    }

    /// When it last went up, down or changed its maintenance state.
    pub fn last_change(&self) -> Now {
        self.control.lock().last_change
    }

    /// Seconds down in all: CSV `downtime`.
    pub fn downtime(&self, now: Now) -> u64 {
        let control = self.control.lock();
        let current =
            if self.is_up() { Duration::ZERO } else { now.mono.saturating_sub(control.last_change.mono) };
        (control.downtime + current).as_secs()
    }

    /// `(chkfail, chkdown)`.
    pub fn check_failures(&self) -> (u64, u64) {
        let control = self.control.lock();
        (control.failed_checks, control.down_transitions)
    }

    /// Status as in CSV: `UP`, `UP 1/3`, `DOWN`, `DOWN 1/2`, `DRAIN`, `MAINT`, `no check`, `NOLB`.
    pub fn status(&self) -> String {
        let admin = self.admin();
        if admin.0 & Admin::RMAINT != 0 {
            return "MAINT (resolution)".into();
        }
        if admin.maint() {
            return if admin.0 & Admin::IMAINT != 0 { "MAINT (via)".into() } else { "MAINT".into() };
        }
        let check = self.check();
        let (up, stable) = (self.is_up(), check.health.is_stable());
        let word = match (up, admin.drain() || self.weight() == 0, self.op_state()) {
            (false, _, _) if self.agent_holds_down() => return "DOWN (agent)".into(),
            (false, _, _) => "DOWN",
            (true, true, _) if admin.drain() && self.agent_runs() => return "DRAIN (agent)".into(),
            (true, true, _) => "DRAIN",
            (true, false, OpState::Stopping) => "NOLB",
            (true, false, _) if !(check.configured && check.enabled) => return "no check".into(),
            (true, false, _) => "UP",
        };
        let full_value = check.health.rise() + check.health.fall() - 1;
        let checked = check.configured && check.enabled;
        if !checked || (stable && (check.health.value() == full_value) == up) {
            return word.into();
        }
        let (n, m) = check.health.progress();
        if check.health.is_up() == up { format!("{word} {n}/{m}") } else { word.into() }
    }

    /// Limit in force, given the backend's load; `None` = no limit.
    pub(crate) fn limit(&self, beconn: u32, fullconn: u32) -> Option<u32> {
        let max = self.maxconn.load(Relaxed);
        if max == 0 {
            return None;
        }
        let min = self.minconn.load(Relaxed);
        let dynamic = if min == 0 || min == max || fullconn == 0 || beconn >= fullconn {
            max
        } else {
            min.max((u64::from(beconn) * u64::from(max) / u64::from(fullconn)) as u32)
        };
        let throttle = self.throttle();
        let limit = if throttle >= 100 { dynamic } else { (dynamic * throttle).div_ceil(100).max(1) };
        Some(limit.min(self.places.load(Relaxed)))
    }

    /// Takes a place if there is one.
    pub(crate) fn claim(&self, limit: Option<u32>) -> bool {
        let taken = match limit {
            None => self.served.fetch_add(1, SeqCst) + 1,
            Some(limit) => match self.served.fetch_update(SeqCst, SeqCst, |n| (n < limit).then_some(n + 1)) {
                Ok(before) => before + 1,
                Err(_) => return false,
            },
        };
        self.keep(taken)
    }

    /// Keeps a place just taken, unless it is no longer this node's: who lowers `places` then looks at
    /// `served`, so one of both sees the other.
    fn keep(&self, taken: u32) -> bool {
        if taken > self.places.load(SeqCst) {
            self.served.fetch_sub(1, SeqCst);
            return false;
        }
        raise(&self.served_max, taken);
        true
    }

    /// Takes a place only if nobody else did since `seen` was read.
    pub(crate) fn claim_from(&self, seen: u32) -> bool {
        self.served.compare_exchange(seen, seen + 1, SeqCst, Relaxed).is_ok() && self.keep(seen + 1)
    }

    /// Gives a place back.
    pub(crate) fn release(&self) {
        let before = self.served.fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "server {}/{} released more than it served", self.backend, self.name);
    }

    pub(crate) fn note_queued(&self) {
        raise(&self.queued_max, self.queued.fetch_add(1, SeqCst) + 1);
    }

    pub(crate) fn set_admin(&self, admin: Admin) {
        self.admin.store(admin.0, Release);
    }

    pub(crate) fn set_op(&self, op: OpState) {
        self.op.store(op as u8, Release);
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight.min(256), Release);
    }

    pub(crate) fn set_maxconn(&self, maxconn: u32) {
        // HAProxy: a minconn equal to maxconn means a fixed limit, and stays equal.
        if self.minconn.load(Relaxed) == self.maxconn.swap(maxconn, Release) {
            self.minconn.store(maxconn, Release);
        }
    }

    pub(crate) fn set_addr(&self, addr: SocketAddr) {
        self.addr.store(Arc::new(addr));
        self.changes.fetch_add(1, Release);
    }

    /// From here on it is the server of this line.
    pub(crate) fn set_config(&self, config: Arc<model::Server>) {
        self.id.store(config.id, Relaxed);
        self.revision.store(0, Relaxed);
        self.config.store(config);
        self.changes.fetch_add(1, Release);
    }

    /// Sets `maxconn`, `minconn` and `maxqueue`; returns whether one of them changed.
    pub(crate) fn set_limits(&self, maxconn: u32, minconn: u32, maxqueue: u32) -> bool {
        let before = [
            self.maxconn.swap(maxconn, Release),
            self.minconn.swap(minconn, Release),
            self.maxqueue.swap(maxqueue, Release),
        ];
        before != [maxconn, minconn, maxqueue]
    }

    pub(crate) fn set_throttle(&self, percent: u32) {
        self.throttle.store(percent, Release);
    }

    pub(crate) fn in_farm(&self) -> bool {
        self.in_farm.load(SeqCst)
    }

    pub(crate) fn set_in_farm(&self, on: bool) {
        self.in_farm.store(on, SeqCst);
    }

    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Release);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("backend", &self.backend)
            .field("name", &self.name)
            .field("id", &self.id())
            .field("addr", &self.addr())
            .field("served", &self.served())
            .finish_non_exhaustive()
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

fn raise(max: &AtomicU32, value: u32) {
    if value > max.load(Relaxed) {
        max.fetch_max(value, Relaxed);
    }
}
