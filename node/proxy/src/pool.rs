//! A worker's idle connections to servers.
//!
//! Last in, first out per server, so that a pool that has become too large runs dry at its old end. A
//! connection that has become readable while idle was closed by the server (or spoke out of turn) and
//! is not used again. Nothing here is shared between workers.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use phalanx_config::HttpReuse;
use phalanx_engine::server::Server;
use phalanx_engine::state::sessions::Session;

use crate::runtime;
use crate::stream::Stream;

/// An established connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// Where it goes; the server's address may have changed since.
    pub(crate) addr: SocketAddr,
    /// Requests sent over it before this one.
    pub(crate) requests: u32,
    /// The only session that may use it (`http-reuse never`).
    pub(crate) owner: Option<Owner>,
    /// The last response was of a length of which more is read at once.
    pub(crate) bulk: bool,
}

/// A session, as long as it lasts.
pub(crate) type Owner = usize;

/// Which idle connections a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// None.
    No,
    /// Those of its own session.
    Own(Owner),
    /// Those that carried more than one request already.
    Proven,
    /// All.
    Any,
}

impl Reuse {
    /// What a request may take; `first` = of its client's connection.
    pub(crate) fn of(mode: HttpReuse, first: bool, session: &Arc<Session>) -> Reuse {
        match mode {
            HttpReuse::Never => Reuse::Own(Arc::as_ptr(session) as usize),
            HttpReuse::Safe if first => Reuse::No,
            HttpReuse::Aggressive if first => Reuse::Proven,
            HttpReuse::Safe | HttpReuse::Aggressive | HttpReuse::Always => Reuse::Any,
        }
    }

    fn takes(self, connection: &Connection) -> bool {
        match self {
            Reuse::No => false,
            Reuse::Own(_) => connection.owner == self.owner(),
            Reuse::Proven => connection.owner.is_none() && connection.requests > 1,
            Reuse::Any => connection.owner.is_none(),
        }
    }

    /// Whose a connection is that it is used for.
    pub(crate) fn owner(self) -> Option<Owner> {
        match self {
            Reuse::Own(owner) => Some(owner),
            _ => None,
        }
    }
}

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    servers: RefCell<HashMap<usize, Idle>>,
    /// There may be connections with an owner.
    owned: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    server: Arc<Server>,
    connections: Vec<(Connection, Instant)>,
    /// Requests that were lately on the server at once: more idle connections are of no use.
    need: u32,
    line: Line,
}

/// What the pool goes by of a `server` line, kept: it is looked at twice a request and hardly ever changes.
#[derive(Debug)]
struct Line {
    /// [`Server::changes`] before it was read.
    read_at: u64,
    addr: SocketAddr,
    max_reuse: Option<u32>,
    max_conn: Option<u32>,
}

impl Line {
    fn read(server: &Server) -> Line {
        let read_at = server.changes();
        let options = server.options();
        let (max_reuse, max_conn) = (options.max_reuse, options.pool_max_conn);
        Line { read_at, addr: server.addr(), max_reuse, max_conn }
    }
}

impl Idle {
    fn line(&mut self) -> &Line {
        if self.line.read_at != self.server.changes() {
            self.line = Line::read(&self.server);
        }
        &self.line
    }
}

/// Idle connections kept however few requests a server has at once.
const KEPT: u32 = 4;

impl Pool {
    /// A live idle connection to `server`.
    pub(crate) fn take(&self, server: &Arc<Server>, reuse: Reuse) -> Option<Connection> {
        if reuse == Reuse::No {
            return None;
        }
        let mut servers = self.servers.borrow_mut();
        let idle = servers.get_mut(&key(server))?;
        let addr = idle.line().addr;
        // Mostly the last one.
        while let Some(at) = idle.connections.iter().rposition(|(c, _)| reuse.takes(c)) {
            let (connection, _) = idle.connections.remove(at);
            server.idle.fetch_sub(1, Relaxed);
            if connection.addr == addr && is_quiet(&connection.stream) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for later, unless the server's limits say otherwise; `now` is the moment.
    pub(crate) fn put(&self, server: &Arc<Server>, mut connection: Connection, now: Instant) {
        connection.requests += 1;
        // The request that brought it here is still counted.
        let busy = server.served();
        let mut servers = self.servers.borrow_mut();
        let idle = servers.entry(key(server)).or_insert_with(|| Idle {
            server: server.clone(),
            connections: Vec::new(),
            need: 0,
            line: Line::read(server),
        });
        idle.need = idle.need.max(busy).max(KEPT);
        if server.idle.load(Relaxed) >= idle.need {
            return;
        }
        let line = idle.line();
        let worn = line.max_reuse.is_some_and(|max| connection.requests > max);
        let full = line.max_conn.is_some_and(|max| server.idle.load(Relaxed) >= max);
        if worn || full || server.is_removed() || connection.addr != line.addr {
            return;
        }
        self.owned.set(self.owned.get() || connection.owner.is_some());
        server.idle.fetch_add(1, Relaxed);
        idle.connections.push((connection, now));
    }

    /// Closes the connections of a session that has ended.
    pub(crate) fn forget(&self, session: &Arc<Session>) {
        if !self.owned.get() {
            return;
        }
        let owner = Some(Arc::as_ptr(session) as usize);
        let mut owned = false;
        for idle in self.servers.borrow_mut().values_mut() {
            let before = idle.connections.len();
            idle.connections.retain(|(connection, _)| connection.owner != owner);
            owned |= idle.connections.iter().any(|(connection, _)| connection.owner.is_some());
            idle.server.idle.fetch_sub((before - idle.connections.len()) as u32, Relaxed);
        }
        self.owned.set(owned);
    }

    /// Closes what the server has closed or what was idle for longer than `pool-purge-delay`; call
    /// it about every second.
    pub(crate) fn purge(&self) {
        let now = runtime::instant();
        self.servers.borrow_mut().retain(|_, idle| {
            let delay = idle.server.options().pool_purge_delay;
            let addr = idle.server.addr();
            let gone = idle.server.is_removed() || idle.server.admin().maint();
            let before = idle.connections.len();
            idle.connections.retain(|(connection, since)| {
                !gone
                    && now.duration_since(*since) < delay.max(Duration::from_secs(1))
                    && connection.addr == addr
                    && is_quiet(&connection.stream)
            });
            // Forgotten slowly: a lull of a second must not cost the connections of the next burst.
            idle.need -= idle.need / 4;
            let closed = before - idle.connections.len();
            idle.server.idle.fetch_sub(closed as u32, Relaxed);
            !idle.connections.is_empty()
        });
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.server.idle.fetch_sub(self.connections.len() as u32, Relaxed);
    }
}

fn key(server: &Arc<Server>) -> usize {
    Arc::as_ptr(server) as usize
}

/// Whether nothing arrived on an idle connection: neither bytes nor its end. Without a system call
/// unless the event loop has seen something.
fn is_quiet(stream: &Stream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}
