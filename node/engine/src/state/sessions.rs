//! The list of sessions for `show sess` and `shutdown session`.
//!
//! Each worker enters its own sessions under its own lock, which only the Runtime API ever contends.
//! The proxy fills the [`Session`]; this module decides nothing.

use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;

use crate::counters::{Padded, Worker};
use crate::end::Cause;
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

/// Why a session is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kill {
    /// By a command, or because the process ends: `K` in the log.
    Admin = 1,
    /// Its server went down: `D` in the log.
    Down = 2,
}

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
    /// In [`Phase::Request`] its names are those of the request before, and not shown.
    progress: Progress,
    waker: Option<Waker>,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    /// Name of the frontend.
    pub frontend: Arc<str>,
    client: Packed,
    local: Packed,
    /// When it was accepted: nanoseconds of the process, and microseconds since the epoch.
    mono_ns: u64,
    unix_us: u64,
    worker: u16,
    /// Its place in its worker's list.
    key: u32,
    shown: Mutex<Shown>,
    /// A [`Kill`] or 0, and [`WHEN_IDLE`].
    killed: AtomicU8,
    /// The task's waker is in `shown`, or was used.
    armed: AtomicBool,
}

/// An address in 24 bytes. Idle sessions are many.
#[derive(Clone, Copy, Debug)]
struct Packed {
    ip: [u8; 16],
    scope: u32,
    port: u16,
    is_v4: bool,
}

impl Packed {
    fn new(addr: SocketAddr) -> Packed {
        let (ip, scope) = match addr {
            SocketAddr::V4(addr) => {
                let mut ip = [0; 16];
                ip[..4].copy_from_slice(&addr.ip().octets());
                (ip, 0)
            }
            // The flow is of no use to anybody.
            SocketAddr::V6(addr) => (addr.ip().octets(), addr.scope_id()),
        };
        Packed { ip, scope, port: addr.port(), is_v4: addr.is_ipv4() }
    }

    fn addr(self) -> SocketAddr {
        match (self.is_v4, self.ip) {
            (true, [a, b, c, d, ..]) => SocketAddr::from(([a, b, c, d], self.port)),
            (false, ip) => SocketAddrV6::new(ip.into(), self.port, 0, self.scope).into(),
        }
    }
}

impl Session {
    /// Whose.
    pub fn worker(&self) -> Worker {
        Worker(usize::from(self.worker))
    }

    /// Client address.
    pub fn client(&self) -> SocketAddr {
        self.client.addr()
    }

    /// Address it connected to.
    pub fn local(&self) -> SocketAddr {
        self.local.addr()
    }

    /// When it was accepted.
    pub fn accepted(&self) -> Now {
        Now { mono: Duration::from_nanos(self.mono_ns), unix_us: self.unix_us }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let shown = self.shown.lock();
        match shown.progress.phase {
            Phase::Request => Progress::default(),
            _ => shown.progress.clone(),
        }
    }

    /// Notes how far it is; the proxy's, once per step.
    pub fn note(&self, backend: Option<&Arc<str>>, server: Option<&Arc<Server>>, phase: Phase) {
        let progress = &mut self.shown.lock().progress;
        progress.phase = phase;
        // The next request mostly goes the same way: counts of references that all workers share are
        // left alone then.
        if phase != Phase::Request {
            point(&mut progress.backend, backend);
            point(&mut progress.server, server);
        }
    }

    /// Asks it to end (`shutdown session`), and wakes it.
    pub fn kill(&self) {
        self.kill_because(Kill::Admin);
    }

    /// Asks it to end, and wakes it. The first reason stays.
    pub fn kill_because(&self, why: Kill) {
        let first = |killed: u8| (killed & !WHEN_IDLE == 0).then_some(killed | why as u8);
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
        if !self.armed.load(Relaxed) {
            self.shown.lock().waker = Some(waker.clone());
            self.armed.store(true, Relaxed);
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
        match self.killed.load(Acquire) & !WHEN_IDLE {
            0 => None,
            1 => Some(Kill::Admin),
            _ => Some(Kill::Down),
        }
    }
}

fn point<T: ?Sized>(held: &mut Option<Arc<T>>, to: Option<&Arc<T>>) {
    let same = match (&*held, to) {
        (Some(held), Some(to)) => Arc::ptr_eq(held, to),
        (held, to) => held.is_none() && to.is_none(),
    };
    if !same {
        *held = to.cloned();
    }
}

type Shard = Padded<Mutex<Slab<Arc<Session>>>>;

/// The sessions of all workers.
#[derive(Debug)]
pub struct Sessions {
    shards: Arc<[Shard]>,
}

impl Sessions {
    pub(crate) fn new(workers: usize) -> Sessions {
        Sessions { shards: (0..workers.max(1)).map(|_| Padded::default()).collect() }
    }

    /// Enters a session until the entry is dropped.
    pub fn enter(
        &self,
        worker: Worker,
        client: SocketAddr,
        local: SocketAddr,
        frontend: Arc<str>,
        accepted: Now,
    ) -> Entry {
        let mut list = self.shards[worker.0].lock();
        let place = list.vacant_entry();
        let session = Arc::new(Session {
            // A worker never has as many.
            key: place.key() as u32,
            // Of which there are 256 at most.
            worker: worker.0 as u16,
            client: Packed::new(client),
            local: Packed::new(local),
            frontend,
            mono_ns: accepted.mono.as_nanos() as u64,
            unix_us: accepted.unix_us,
            shown: Mutex::default(),
            killed: AtomicU8::new(0),
            armed: AtomicBool::new(false),
        });
        place.insert(session.clone());
        drop(list);
        Entry { shards: self.shards.clone(), session }
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
            let progress = &s.shown.lock().progress;
            progress.phase != Phase::Request
                && progress.server.as_ref().is_some_and(|held| Arc::ptr_eq(held, server))
        };
        let sessions: Vec<_> = self.all().into_iter().filter(on_it).collect();
        sessions.iter().for_each(|s| s.kill_because(why));
        sessions.len()
    }
}

/// A session's entry in the list; dropping it removes the session.
#[derive(Debug)]
pub struct Entry {
    shards: Arc<[Shard]>,
    session: Arc<Session>,
}

impl Entry {
    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shards[self.session.worker().0].lock().remove(self.session.key as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_packed_without_loss() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "[fe80::1%3]:1", "0.0.0.0:0", "[::]:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Packed::new(addr).addr(), addr, "{text}");
        }
    }

    /// With its two counts of references it takes 160 bytes, a size that allocators have.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 144, "{} bytes", size_of::<Session>());
    }
}
