//! The forwarding plane as the program sees it: start it, apply a new plan, open and close gates.
//!
//! Owns the worker threads. Sockets are opened here, all of them before any worker hears of the change,
//! so that a failed bind changes nothing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_config::{Announce, Bind, Config};
use phalanx_engine::frontend::Status;
use phalanx_engine::plan::Plan;
use phalanx_engine::server::Server;
use phalanx_engine::state::State;
use phalanx_engine::state::sessions::{Kill, Phase};
use phalanx_sys::clock::Clock;
use phalanx_sys::net::{Listen, is_listening, refuse_new};
use tokio::sync::mpsc;

use crate::listener::{Key, Target};
use crate::log::Sink;
use crate::room::Limit;
use crate::runtime::EventLoop;
use crate::worker::{self, Order, Shared, Wanted};

/// How long a worker may take to carry out an order; it needs microseconds.
const ORDER_LIMIT: Duration = Duration::from_secs(5);

/// How long a worker that is well may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long the first bytes may take to come on a connection that was accepted before its listener closed.
const FIRST_BYTES: Duration = Duration::from_millis(50);

/// How often the sessions that are waited for are counted.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Pairs of descriptors that pipes leave to listeners, logs and peers.
const KEPT_BACK: u64 = 100;

/// Pipes that there may be in any case; a worker mostly needs one.
const FEW_PIPES: u64 = 16;

/// The worker threads and their listeners.
pub struct Forwarder {
    shared: Shared,
    orders: Vec<mpsc::Sender<Order>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The open sockets, one per worker, duplicated for the guardian.
    open: HashMap<Key, Open>,
    /// VIPs announced by listening that this node holds.
    held: HashSet<IpAddr>,
    stopping: bool,
    /// Opened for a configuration that is about to come into force.
    reserved: HashMap<Key, (SocketAddr, Vec<TcpListener>)>,
}

struct Open {
    addr: SocketAddr,
    limit: Arc<Limit>,
    duplicates: Vec<TcpListener>,
}

/// Why listeners could not be opened: nothing was changed.
#[derive(Debug)]
pub struct StartError {
    /// Name of the proxy; empty when a thread or runtime could not be had.
    pub proxy: String,
    /// The `bind` address.
    pub addr: Option<SocketAddr>,
    /// What the system said.
    pub error: io::Error,
}

impl StartError {
    fn bind(proxy: &str, bind: &Bind, error: io::Error) -> StartError {
        StartError { proxy: proxy.to_owned(), addr: Some(bind.addr), error }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.addr {
            Some(addr) => write!(f, "proxy '{}': cannot bind {addr}: {}", self.proxy, self.error),
            None => write!(f, "cannot start a worker: {}", self.error),
        }
    }
}

impl std::error::Error for StartError {}

/// One `bind` line that is to be open.
struct Line<'a> {
    key: Key,
    bind: &'a Bind,
    target: Target,
    proxy: &'a str,
}

impl Forwarder {
    /// Starts so many workers and opens the listeners of the plan in force.
    ///
    /// # Errors
    /// When an address cannot be bound or a thread cannot be started.
    pub fn start(state: Arc<State>, clock: Clock, logs: Sink) -> Result<Forwarder, StartError> {
        let workers = state.workers();
        let shared = Shared { state, clock, logs, room: Arc::default() };
        let failed = |error| StartError { proxy: String::new(), addr: None, error };
        let mut orders = Vec::with_capacity(workers);
        for id in 0..workers {
            let (sender, receiver) = mpsc::channel(64);
            let event_loop = EventLoop::new().map_err(failed)?;
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || worker::run(id, shared, receiver, event_loop))
                .map_err(failed)?;
            orders.push(sender);
        }
        let forwarder = Forwarder { shared, orders, inner: Mutex::default() };
        forwarder.apply()?;
        Ok(forwarder)
    }

    /// Brings the listeners in line with the plan in force; call it after every reload.
    ///
    /// # Errors
    /// When an address cannot be bound: then nothing has changed.
    pub fn apply(&self) -> Result<(), StartError> {
        self.reconcile(&mut self.inner.lock())?;
        self.limit_pipes();
        self.end_orphans();
        Ok(())
    }

    /// Sets how many pipes there may be: `maxpipes`, else a quarter of `maxconn` as far as descriptors go
    /// round besides those of connections.
    fn limit_pipes(&self) {
        let process = self.shared.state.process();
        let maxconn = u64::from(process.maxconn());
        let (open, _) = phalanx_sys::process::nofile().unwrap_or_default();
        let spare = open.saturating_sub(2 * maxconn) / 2;
        let derived = (maxconn / 4).min(spare.saturating_sub(KEPT_BACK)).max(FEW_PIPES);
        let max = self.shared.state.plan().config.global.maxpipes.map_or(derived, u64::from);
        process.pipes.set_max(u32::try_from(max).unwrap_or(u32::MAX));
    }

    /// Whether the forwarding plane does its work: every listener that is to be open accepts, and every
    /// worker answers. Blocks for a moment.
    ///
    /// # Errors
    /// What does not.
    pub fn well(&self) -> Result<(), String> {
        let plan = self.shared.state.plan_owned();
        let inner = self.inner.lock();
        if inner.stopping {
            return Ok(());
        }
        let lines = lines(&plan, &inner.held);
        for line in &lines {
            let listens = |open: &Open| open.duplicates.iter().all(is_listening);
            if !inner.open.get(&line.key).is_some_and(listens) {
                return Err(format!("proxy '{}' does not listen on {}", line.proxy, line.bind.addr));
            }
        }
        self.order(&inner, &lines, HashMap::new(), ANSWER_LIMIT)
    }

    /// Opens or closes the listeners on a VIP that is announced by listening; returns when every
    /// worker has done it.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn gate(&self, addr: IpAddr, open: bool) -> Result<(), StartError> {
        let mut inner = self.inner.lock();
        let changed = if open { inner.held.insert(addr) } else { inner.held.remove(&addr) };
        let result = if changed { self.reconcile(&mut inner) } else { Ok(()) };
        if result.is_err() {
            inner.held.remove(&addr);
        }
        result
    }

    /// Duplicates of the open listeners on `addr`, for the guardian's `shutdown(2)`.
    pub fn gated_listeners(&self, addr: IpAddr) -> Vec<OwnedFd> {
        let inner = self.inner.lock();
        let on_it = inner.open.iter().filter(|(key, _)| key.addr.ip() == addr);
        on_it
            .flat_map(|(_, open)| &open.duplicates)
            .filter_map(|socket| socket.as_fd().try_clone_to_owned().ok())
            .collect()
    }

    /// The listeners on `addr` begin no connection any more; those that wait are still accepted.
    pub fn quiesce(&self, addr: IpAddr) {
        let inner = self.inner.lock();
        let on_it = inner.open.iter().filter(|(key, _)| key.addr.ip() == addr);
        for socket in on_it.flat_map(|(_, open)| &open.duplicates) {
            if let Err(error) = refuse_new(socket) {
                tracing::warn!(
                    "{addr}: new connections are not kept off before its listeners close: {error}"
                );
            }
        }
    }

    /// What keeps connections to `addr` from being accepted here, or would if it were open: listeners
    /// that don't listen, addresses that can't be bound. `None` while listeners are being changed.
    pub fn unready(&self, addr: IpAddr) -> Option<Vec<String>> {
        let plan = self.shared.state.plan_owned();
        let inner = self.inner.try_lock()?;
        if inner.stopping {
            return None;
        }
        let concerns = |ip: IpAddr| ip == addr || (ip.is_unspecified() && ip.is_ipv4() == addr.is_ipv4());
        let mut unready = Vec::new();
        for line in lines(&plan, &HashSet::from([addr])).iter().filter(|l| concerns(l.bind.addr.ip())) {
            let (proxy, addr) = (line.proxy, line.bind.addr);
            match inner.open.get(&line.key) {
                Some(open) if open.duplicates.iter().all(is_listening) => {}
                None if gated(&plan.config, &inner.held, addr.ip()) => {
                    if let Err(error) = listen(line.bind).bound() {
                        unready.push(StartError::bind(proxy, line.bind, error).to_string());
                    }
                }
                _ => unready.push(format!("proxy '{proxy}' does not listen on {addr}")),
            }
        }
        Some(unready)
    }

    /// The addresses that are listened on; a port of 0 in the configuration is resolved.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.inner.lock().open.values().map(|o| o.addr).collect();
        addresses.sort();
        addresses
    }

    /// Ends all sessions on a server; returns how many.
    pub fn shutdown_sessions(&self, server: &Arc<Server>) -> usize {
        self.shared.state.sessions().kill_on(server, Kill::Admin)
    }

    /// Wakes listeners that wait for room, after a limit was raised.
    pub fn room_changed(&self) {
        self.shared.room.wake();
    }

    /// Closes the listeners and idle connections and waits for the sessions to end, at most for
    /// `limit`; `None` waits for all. Blocks. Returns how many were left.
    pub fn stop(&self, limit: Option<Duration>) -> usize {
        self.close(|_, waited| limit.is_none_or(|limit| waited < limit))
    }

    /// As [`stop`](Forwarder::stop), but waits for requests only: for those that are being answered at
    /// most for `limit`, for those that are still to come on connections accepted already for
    /// [`FIRST_BYTES`]. Sessions that either side ends when it likes are not waited for.
    pub fn finish_requests(&self, limit: Duration) -> usize {
        self.close(|phase, waited| match phase {
            Phase::Tunnel => false,
            Phase::Request => waited < limit.min(FIRST_BYTES),
            Phase::Queue | Phase::Connect | Phase::Response | Phase::Data => waited < limit,
        })
    }

    /// Closes the listeners, and idle connections until the others, as far as `waits` says so of
    /// what they are busy with, have ended. Returns how many sessions were left.
    fn close(&self, waits: impl Fn(Phase, Duration) -> bool) -> usize {
        self.shared.state.process().set_stopping();
        {
            let mut inner = self.inner.lock();
            inner.stopping = true;
            // Closing cannot fail to bind.
            let _ = self.reconcile(&mut inner);
        }
        let began = Instant::now();
        loop {
            let sessions = self.shared.state.sessions().all();
            sessions.iter().for_each(|s| s.end_when_idle());
            let waited = began.elapsed();
            if !sessions.iter().any(|s| waits(s.phase(), waited)) {
                return sessions.len();
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Opens what `config` needs beyond what is open, for the [`apply`](Forwarder::apply) that
    /// follows: so that a reload knows before it changes anything that every address can be bound.
    ///
    /// # Errors
    /// When an address cannot be bound: then nothing has changed.
    pub fn reserve(&self, config: &Config) -> Result<(), StartError> {
        let plan = self.shared.state.plan_owned();
        let mut inner = self.inner.lock();
        inner.reserved.clear();
        let mut reserved = HashMap::new();
        let mut keys = Vec::new();
        for proxy in config.proxies.iter().filter(|p| !p.disabled && p.kind.is_frontend()) {
            if plan.frontend(&proxy.name).is_some_and(|f| f.status() != Status::Open) {
                continue;
            }
            for bind in proxy.binds.iter().filter(|b| !gated(config, &inner.held, b.addr.ip())) {
                let key = key(bind, &keys);
                if !inner.open.contains_key(&key) {
                    let sockets = open(bind, self.orders.len())
                        .map_err(|error| StartError::bind(&proxy.name, bind, error))?;
                    reserved.insert(key.clone(), sockets);
                }
                keys.push(key);
            }
        }
        inner.reserved = reserved;
        Ok(())
    }

    fn reconcile(&self, inner: &mut Inner) -> Result<(), StartError> {
        let plan = self.shared.state.plan_owned();
        let lines = if inner.stopping { Vec::new() } else { lines(&plan, &inner.held) };
        let mut opened: HashMap<Key, (SocketAddr, Vec<TcpListener>)> = HashMap::new();
        for line in &lines {
            if !inner.open.contains_key(&line.key) {
                let sockets = match inner.reserved.remove(&line.key) {
                    Some(sockets) => sockets,
                    None => open(line.bind, self.orders.len())
                        .map_err(|error| StartError::bind(line.proxy, line.bind, error))?,
                };
                opened.insert(line.key.clone(), sockets);
            }
        }
        inner.reserved.clear();
        inner.open.retain(|key, _| lines.iter().any(|l| l.key == *key));
        for (key, (addr, sockets)) in &opened {
            let duplicates = sockets.iter().filter_map(|s| s.try_clone().ok()).collect();
            inner.open.insert(key.clone(), Open { addr: *addr, limit: Arc::default(), duplicates });
        }
        for line in &lines {
            if let Some(open) = inner.open.get(&line.key) {
                open.limit.set(line.bind.maxconn);
            }
        }
        if let Err(why) = self.order(inner, &lines, opened, ORDER_LIMIT) {
            tracing::error!("{why}");
        }
        // Limits may have been raised.
        self.shared.room.wake();
        Ok(())
    }

    /// Tells every worker and waits until all have done it.
    fn order(
        &self,
        inner: &Inner,
        lines: &[Line<'_>],
        mut opened: HashMap<Key, (SocketAddr, Vec<TcpListener>)>,
        limit: Duration,
    ) -> Result<(), String> {
        let mut problem = Ok(());
        let (done, all_done) = sync_channel(0);
        for sender in &self.orders {
            let listeners = lines
                .iter()
                .map(|line| {
                    let mut target = line.target.clone();
                    if let Some(open) = inner.open.get(&line.key) {
                        target.addr = open.addr;
                        target.limit = open.limit.clone();
                    }
                    Wanted {
                        key: line.key.clone(),
                        target,
                        socket: opened.get_mut(&line.key).and_then(|(_, sockets)| sockets.pop()),
                    }
                })
                .collect();
            if sender.try_send(Order { listeners, done: done.clone() }).is_err() {
                problem = Err("a worker does not take orders".to_owned());
            }
        }
        drop(done);
        // Disconnects when the last worker drops its sender.
        match all_done.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Err("a worker does not carry out an order".to_owned()),
            _ => problem,
        }
    }

    /// Ends idle sessions of frontends that are gone; busy ones end after their response.
    fn end_orphans(&self) {
        let plan = self.shared.state.plan_owned();
        for session in self.shared.state.sessions().all() {
            if plan.frontend(session.frontend().name()).is_none() && session.phase() == Phase::Request {
                session.kill();
            }
        }
    }
}

/// The `bind` lines of the plan that are to be open now.
fn lines<'a>(plan: &'a Plan, held: &HashSet<IpAddr>) -> Vec<Line<'a>> {
    let mut keys = Vec::new();
    let mut lines: Vec<Line<'a>> = Vec::new();
    for proxy in plan.proxies.iter().filter(|p| !p.config.disabled) {
        // `disable frontend` releases the ports.
        let Some(frontend) = proxy.frontend.as_ref().filter(|f| f.status() == Status::Open) else { continue };
        for bind in proxy.config.binds.iter().filter(|b| !gated(&plan.config, held, b.addr.ip())) {
            let key = key(bind, &keys);
            keys.push(key.clone());
            let target = Target {
                frontend: frontend.clone(),
                addr: bind.addr,
                limit: Arc::default(),
                keepalive: proxy.config.clitcpka,
                slow_ack: proxy.config.smart_accept,
            };
            lines.push(Line { key, bind, target, proxy: &proxy.config.name });
        }
    }
    lines
}

/// Whether an address belongs to a VIP that is announced by listening, and is not held.
fn gated(config: &Config, held: &HashSet<IpAddr>, ip: IpAddr) -> bool {
    let vips = config.cluster.iter().flat_map(|c| &c.vips);
    vips.filter(|v| v.announce == Announce::Listen).any(|v| v.addr == ip) && !held.contains(&ip)
}

/// The key of a `bind` line that comes after those with these keys.
fn key(bind: &Bind, before: &[Key]) -> Key {
    let mut key = Key { addr: bind.addr, interface: bind.interface.clone(), v6only: bind.v6only, nth: 0 };
    while before.contains(&key) {
        key.nth += 1;
    }
    key
}

/// One socket for each worker. With port 0 the first decides.
fn open(bind: &Bind, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let mut listen = listen(bind);
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = listen.open()?;
        if bind.transparent {
            phalanx_sys::net::set_transparent(&socket)?;
        }
        listen.addr = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok((listen.addr, sockets))
}

/// How its sockets are opened.
fn listen(bind: &Bind) -> Listen {
    let mut listen = Listen {
        reuse_port: true,
        free_bind: true,
        interface: bind.interface.clone(),
        only_v6: bind.v6only,
        ..Listen::on(bind.addr)
    };
    if let Some(backlog) = bind.backlog {
        listen.backlog = backlog;
    }
    listen
}
