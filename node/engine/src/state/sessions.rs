//! The list of sessions for `show sess` and `shutdown session`.
//!
//! Each worker enters its own sessions under its own lock, which only the Runtime API ever contends.
//! The proxy fills the [`Session`]; this module decides nothing.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;

use crate::backend::Backend;
use crate::counters::{Padded, Worker};
use crate::end::Cause;
use crate::frontend::Frontend;
use crate::server::Server;
use crate::time::Now;

/// What a session is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a request.
    #[default]
    Request,
    /// Waits for a place on a server.
    Queue,
    /// Connects to a server.
    Connect,
    /// Waits for the response.
    Response,
    /// Forwards the response, and what is left of the request.
    Data,
    /// Forwards both ways until either side ends it.
    Tunnel,
}

impl Phase {
    /// That of a number.
    fn of(number: u8) -> Phase {
        const ALL: [Phase; 5] = [Phase::Request, Phase::Queue, Phase::Connect, Phase::Response, Phase::Data];
        ALL.get(usize::from(number)).copied().unwrap_or(Phase::Tunnel)
    }
}

/// Why a session is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kill {
    /// By a command, or because the process ends: `K` in the log.
    Admin = 1,
    /// Its server went down: `D` in the log.
    Down = 2,
}

/// Where a [`Kill`] is.
const KILL: u8 = 3;
/// The task's waker is in `shown`, or was used.
const ARMED: u8 = 1 << 6;
/// It is to end before its next request.
const WHEN_IDLE: u8 = 1 << 7;

/// What changes in the course of a session.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Name of the backend, once chosen.
    pub backend: Option<Arc<str>>,
    /// The server, once chosen.
    pub server: Option<Arc<Server>>,
    /// What it is busy with.
    pub phase: Phase,
}

#[derive(Debug, Default)]
struct Shown {
    // In `Phase::Request` these are of the request before, and not shown.
    backend: Option<Arc<Backend>>,
    server: Option<Arc<Server>>,
    waker: Option<Waker>,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    frontend: Arc<Frontend>,
    ends: Ends,
    /// When it was accepted: nanoseconds of the process, and microseconds since the epoch.
    mono_ns: u64,
    unix_us: u64,
    /// Its worker, of which there are 256 at most, and above its place in the worker's list.
    place: u32,
    shown: Mutex<Shown>,
    /// A [`Phase`].
    phase: AtomicU8,
    /// A [`Kill`] or 0, [`WHEN_IDLE`], and [`ARMED`].
    killed: AtomicU8,
}

/// Both addresses, in 42 bytes. Idle sessions are many.
#[derive(Clone, Copy, Debug)]
struct Ends {
    ips: [[u8; 16]; 2],
    /// Of addresses that are valid on one link only: that is the same for both. Not aligned.
    scope: [u8; 4],
    ports: [u16; 2],
    /// A bit for each.
    v4: u8,
}

impl Ends {
    fn new(client: SocketAddr, local: SocketAddr) -> Ends {
        let mut ends = Ends { ips: [[0; 16]; 2], scope: [0; 4], ports: [client.port(), local.port()], v4: 0 };
        for (nth, addr) in [client, local].into_iter().enumerate() {
            match addr {
                SocketAddr::V4(addr) => {
                    ends.ips[nth][..4].copy_from_slice(&addr.ip().octets());
                    ends.v4 |= 1 << nth;
                }
                // The flow is of no use to anybody.
                SocketAddr::V6(addr) => {
                    ends.ips[nth] = addr.ip().octets();
                    if addr.scope_id() != 0 {
                        ends.scope = addr.scope_id().to_ne_bytes();
                    }
                }
            }
        }
        ends
    }

    fn addr(&self, nth: usize) -> SocketAddr {
        let port = self.ports[nth];
        match (self.v4 & 1 << nth != 0, self.ips[nth]) {
            (true, [a, b, c, d, ..]) => SocketAddr::from(([a, b, c, d], port)),
            (false, ip) => {
                let ip = Ipv6Addr::from(ip);
                let scope = if ip.is_unicast_link_local() { self.scope } else { [0; 4] };
                SocketAddrV6::new(ip, port, 0, u32::from_ne_bytes(scope)).into()
            }
        }
    }
}

impl Session {
    /// Whose.
    pub fn worker(&self) -> Worker {
        Worker(self.place as usize % WORKERS)
    }

    /// The frontend that accepted it.
    pub fn frontend(&self) -> &Arc<Frontend> {
        &self.frontend
    }

    /// Client address.
    pub fn client(&self) -> SocketAddr {
        self.ends.addr(0)
    }

    /// Address it connected to.
    pub fn local(&self) -> SocketAddr {
        self.ends.addr(1)
    }

    /// When it was accepted.
    pub fn accepted(&self) -> Now {
        Now { mono: Duration::from_nanos(self.mono_ns), unix_us: self.unix_us }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let shown = self.shown.lock();
        match self.phase() {
            Phase::Request => Progress::default(),
            phase => Progress {
                backend: shown.backend.as_ref().map(|backend| backend.name().clone()),
                server: shown.server.clone(),
                phase,
            },
        }
    }

    /// What it is busy with.
    pub fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Acquire))
    }

    /// Notes how far it is; the proxy's, once per step.
    pub fn note(&self, backend: Option<&Arc<Backend>>, server: Option<&Arc<Server>>, phase: Phase) {
        // The next request mostly goes the same way: counts of references that all workers share are
        // left alone then.
        if phase != Phase::Request {
            let mut shown = self.shown.lock();
            point(&mut shown.backend, backend);
            point(&mut shown.server, server);
        }
        self.phase.store(phase as u8, Release);
    }

    /// Asks it to end (`shutdown session`), and wakes it.
    pub fn kill(&self) {
        self.kill_because(Kill::Admin);
    }

    /// Asks it to end, and wakes it. The first reason stays.
    pub fn kill_because(&self, why: Kill) {
        let first = |killed: u8| (killed & KILL == 0).then_some(killed | why as u8);
        let _ = self.killed.fetch_update(Release, Relaxed, first);
        let waker = self.shown.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Asks it to end where it waits for a request after one that was answered, and wakes it. What is
    /// under way, a first request among it, goes on.
    pub fn end_when_idle(&self) {
        if self.killed.fetch_or(WHEN_IDLE, Release) & WHEN_IDLE == 0
            && let Some(waker) = &self.shown.lock().waker
        {
            waker.wake_by_ref();
        }
    }

    /// Whether it has been asked to end where nothing is under way. Tells its waker to
    /// [`poll_killed`](Session::poll_killed), which comes first.
    pub fn ends_when_idle(&self) -> bool {
        self.killed.load(Acquire) & WHEN_IDLE != 0
    }

    /// Whether it has been asked to end; otherwise the waker is called when it is. A session is one
    /// task: the waker of the first call stays.
    pub fn poll_killed(&self, waker: &Waker) -> bool {
        if self.killed.load(Relaxed) & ARMED == 0 {
            self.shown.lock().waker = Some(waker.clone());
            self.killed.fetch_or(ARMED, Relaxed);
        }
        self.killed().is_some()
    }

    /// Whose doing its end is then.
    pub fn kill_cause(&self) -> Cause {
        match self.killed() {
            Some(Kill::Down) => Cause::Down,
            _ => Cause::Killed,
        }
    }

    /// Why it has been asked to end.
    pub fn killed(&self) -> Option<Kill> {
        match self.killed.load(Acquire) & KILL {
            0 => None,
            1 => Some(Kill::Admin),
            _ => Some(Kill::Down),
        }
    }
}

fn point<T>(held: &mut Option<Arc<T>>, to: Option<&Arc<T>>) {
    let same = match (&*held, to) {
        (Some(held), Some(to)) => Arc::ptr_eq(held, to),
        (held, to) => held.is_none() && to.is_none(),
    };
    if !same {
        *held = to.cloned();
    }
}

/// Workers that a place can tell apart.
const WORKERS: usize = 256;

type Shard = Padded<Mutex<Slab<Arc<Session>>>>;

/// The sessions of all workers.
#[derive(Debug)]
pub struct Sessions {
    shards: Box<[Shard]>,
}

impl Sessions {
    pub(crate) fn new(workers: usize) -> Sessions {
        Sessions { shards: (0..workers.max(1)).map(|_| Padded::default()).collect() }
    }

    /// Enters a session; whoever does must have it [`leave`](Sessions::leave).
    pub fn enter(
        &self,
        worker: Worker,
        client: SocketAddr,
        local: SocketAddr,
        frontend: Arc<Frontend>,
        accepted: Now,
    ) -> Arc<Session> {
        let mut list = self.shards[worker.0].lock();
        let place = list.vacant_entry();
        let session = Arc::new(Session {
            // A worker never has as many: each is of a descriptor.
            place: (place.key() * WORKERS + worker.0 % WORKERS) as u32,
            ends: Ends::new(client, local),
            frontend,
            mono_ns: accepted.mono.as_nanos() as u64,
            unix_us: accepted.unix_us,
            shown: Mutex::default(),
            phase: AtomicU8::new(Phase::Request as u8),
            killed: AtomicU8::new(0),
        });
        place.insert(session.clone());
        session
    }

    /// Removes a session that was entered.
    pub fn leave(&self, session: &Session) {
        self.shards[session.worker().0].lock().try_remove(session.place as usize / WORKERS);
    }

    /// All sessions, oldest first.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<Arc<Session>> = Vec::new();
        for shard in self.shards.iter() {
            all.extend(shard.lock().iter().map(|(_, session)| session.clone()));
        }
        all.sort_by_key(|s| s.accepted());
        all
    }

    /// Asks every session on the server to end; returns how many.
    pub fn kill_on(&self, server: &Arc<Server>, why: Kill) -> usize {
        let on_it = |s: &Arc<Session>| {
            let shown = s.shown.lock();
            s.phase() != Phase::Request && shown.server.as_ref().is_some_and(|held| Arc::ptr_eq(held, server))
        };
        let sessions: Vec<_> = self.all().into_iter().filter(on_it).collect();
        sessions.iter().for_each(|s| s.kill_because(why));
        sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_packed_without_loss() {
        let texts = ["192.0.2.1:80", "[2001:db8::1]:443", "[fe80::1%3]:1", "0.0.0.0:0", "[::]:65535"];
        let addrs: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        for (client, local) in
            addrs.iter().flat_map(|client| addrs.iter().map(move |local| (*client, *local)))
        {
            let ends = Ends::new(client, local);
            assert_eq!((ends.addr(0), ends.addr(1)), (client, local));
        }
    }

    #[test]
    fn phases_are_kept() {
        use Phase::*;
        for phase in [Request, Queue, Connect, Response, Data, Tunnel] {
            assert_eq!(Phase::of(phase as u8), phase);
        }
    }

    /// With its two counts of references it takes 128 bytes, a size that allocators have.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 112, "{} bytes", size_of::<Session>());
    }
}
