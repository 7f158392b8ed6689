//! From a request to a connection: choose a server, wait in its queue, connect, retry, redispatch.
//!
//! HAProxy's rules (manual: `retries`, `option redispatch`): a failed connection is tried again on the
//! same server after a second, or at once on another one where redispatching is allowed.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use phalanx_config::Proxy;
use phalanx_engine::backend::{Ask, Backend, Choice, Grant, Slot, Waiting};
use phalanx_engine::balance;
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::queue::Ahead;
use phalanx_engine::server::Server;
use phalanx_engine::state::sessions::{self, Session};
use phalanx_engine::time::Now;
use phalanx_sys::net::{self, Connect, Tuning};

use crate::front::Front;
use crate::pool::{Connection, Reuse};
use crate::stream::Stream;
use crate::worker::Worker;

/// So many bytes go in one packet on any way (RFC 9293 section 3.7.1: 536 with all options).
const PACKET: usize = 500;

/// Longest pause before the same server is tried again.
const TURN_AROUND: Duration = Duration::from_secs(1);

/// How one session or request comes to its server. Filled step by step, read by the log.
#[derive(Debug, Default)]
pub(crate) struct Dispatch {
    /// The place on the server; dropping it lets the next one in.
    pub(crate) slot: Option<Slot>,
    /// The server, kept for the log when the place is given back.
    pub(crate) server: Option<Arc<Server>>,
    /// Where a cookie or stick entry leads.
    pub(crate) directed: Option<Arc<Server>>,
    /// What the balancing algorithm hashes.
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) retries: u32,
    pub(crate) redispatched: bool,
    pub(crate) ahead: Ahead,
    /// When it began to ask for a place.
    pub(crate) asked: Now,
    /// When a place was had.
    pub(crate) queued: Option<Now>,
    /// When the connection was there.
    pub(crate) connected: Option<Now>,
}

/// What [`establish`] works with.
pub(crate) struct Towards<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) session: &'a Session,
    pub(crate) backend: &'a Arc<Backend>,
    pub(crate) config: &'a Proxy,
    /// Which idle connections may be used.
    pub(crate) reuse: Reuse,
    /// What a new connection begins with.
    pub(crate) first: First<'a>,
}

/// What is sent over a new connection as soon as it is there. Sending it also says whether it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First<'a> {
    /// What the client has sent, which is taken off its buffer.
    Buffered,
    /// The head of a request.
    Head(&'a [u8]),
    /// More than is worth looking at here.
    Later,
}

/// An established connection and whether it was used before.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) reused: bool,
    /// Bytes of [`Towards::first`] that were sent over it.
    pub(crate) sent: usize,
    /// It may carry another request: decided by who used it.
    pub(crate) reusable: bool,
}

/// Finds a server and connects to it.
///
/// # Errors
/// How the session ended instead.
pub(crate) async fn establish(
    towards: &Towards<'_>,
    front: &mut Front,
    dispatch: &mut Dispatch,
) -> Result<Established, End> {
    let mut avoid: Option<Arc<Server>> = None;
    loop {
        if dispatch.slot.is_none() {
            take_place(towards, front, dispatch, avoid.as_ref()).await?;
        }
        let Some(server) = &dispatch.server else {
            return Err(End::new(Cause::Internal, Phase::Connect));
        };
        if let Some(connection) = towards.worker.pool.take(server, towards.reuse) {
            count_reuse(towards, server);
            dispatch.connected = dispatch.queued;
            return Ok(Established { connection, reused: true, sent: 0, reusable: false });
        }
        let server = server.clone();
        match open(towards, front, &server).await? {
            Ok((connection, sent)) => {
                dispatch.connected = Some(towards.worker.now());
                return Ok(Established { connection, reused: false, sent, reusable: false });
            }
            Err(failure) => {
                if failed(towards, dispatch, &server, failure, &mut avoid)? {
                    turn_around(towards, front).await?;
                }
            }
        }
    }
}

/// Chooses a server and waits for a place on it.
async fn take_place(
    towards: &Towards<'_>,
    front: &mut Front,
    dispatch: &mut Dispatch,
    avoid: Option<&Arc<Server>>,
) -> Result<(), End> {
    let mut directed = dispatch.directed.clone();
    let mut had_at = (avoid.is_none()).then_some(dispatch.asked);
    loop {
        let ask = Ask {
            key: dispatch.key.as_deref(),
            src: towards.session.client().ip(),
            directed: directed.as_ref().filter(|d| avoid.is_none_or(|a| !Arc::ptr_eq(a, d))),
            avoid,
            worker: towards.worker.id,
            draw: towards.worker.draw(),
        };
        let slot = match towards.backend.choose(&ask) {
            Choice::Slot(slot) => slot,
            Choice::NoServer => return Err(End::new(Cause::ServerAbort, Phase::Connect)),
            Choice::Wait(waiting) => {
                let backend = Some(towards.backend);
                towards.session.note(backend, waiting.server(), sessions::Phase::Queue);
                if had_at.take().is_some() || avoid.is_some() {
                    let timeouts = &towards.config.timeouts;
                    front.deadline.set(timeouts.queue.or(timeouts.connect));
                }
                match wait(towards, front, dispatch, waiting).await? {
                    Grant::Slot(slot) => slot,
                    Grant::ChooseAgain => {
                        directed = None;
                        continue;
                    }
                }
            }
        };
        dispatch.ahead = slot.ahead();
        if let Some(failed) = avoid {
            count_second_choice(towards, dispatch, failed, slot.server());
        }
        dispatch.server = Some(slot.server().clone());
        dispatch.slot = Some(slot);
        // Without a wait no time has passed that is worth a look at the clock.
        dispatch.queued = Some(had_at.unwrap_or_else(|| towards.worker.now()));
        return Ok(());
    }
}

/// A redispatch is one that leads to another server; back on the same one it was a retry.
fn count_second_choice(
    towards: &Towards<'_>,
    dispatch: &mut Dispatch,
    failed: &Arc<Server>,
    chosen: &Arc<Server>,
) {
    let worker = towards.worker.id;
    let shards = [failed.counters().shard(worker), towards.backend.counters().shard(worker)];
    if Arc::ptr_eq(failed, chosen) {
        shards.iter().for_each(|shard| bump(&shard.wretr, 1));
    } else {
        shards.iter().for_each(|shard| bump(&shard.wredis, 1));
        dispatch.redispatched = true;
    }
}

async fn wait(
    towards: &Towards<'_>,
    front: &mut Front,
    dispatch: &mut Dispatch,
    mut waiting: Waiting,
) -> Result<Grant, End> {
    let result = poll_fn(|cx| {
        if let Poll::Ready(grant) = waiting.poll(cx) {
            return Poll::Ready(Ok(grant));
        }
        if towards.session.poll_killed(cx.waker()) {
            return Poll::Ready(Err(End::new(towards.session.kill_cause(), Phase::Queue)));
        }
        if front.poll_abort(cx, towards.config.abortonclose).is_ready() {
            return Poll::Ready(Err(End::new(Cause::ClientAbort, Phase::Queue)));
        }
        ready!(front.deadline.poll(cx));
        Poll::Ready(Err(End::new(Cause::ServerTimeout, Phase::Queue)))
    })
    .await;
    if result.is_err() {
        dispatch.ahead = waiting.ahead();
        dispatch.server = waiting.server().cloned();
        dispatch.queued = Some(towards.worker.now());
    }
    result
}

/// How an attempt to connect failed.
enum Failure {
    /// Refused or unreachable.
    Refused,
    /// `timeout connect`.
    Timeout,
    /// Out of a local resource.
    Resource(io::Error),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        if is_resource(&e) { Failure::Resource(e) } else { Failure::Refused }
    }
}

/// One attempt. The outer error ends the session.
async fn open(
    towards: &Towards<'_>,
    front: &mut Front,
    server: &Arc<Server>,
) -> Result<Result<(Connection, usize), Failure>, End> {
    towards.session.note(Some(towards.backend), Some(server), sessions::Phase::Connect);
    let mut addr = server.addr();
    if addr.port() == 0 {
        addr.set_port(towards.session.local().port());
    }
    let (stream, sent) = match start(towards, front, addr) {
        Ok(started) => started,
        Err(failure) => return Ok(Err(failure)),
    };
    if let Some(sent) = sent {
        return Ok(Ok((opened(towards, server, stream), sent)));
    }
    front.deadline.set(towards.config.timeouts.connect);
    let connecting = poll_fn(|cx| {
        if let Poll::Ready(result) = stream.poll_connected(cx) {
            return Poll::Ready(Ok(result.map_err(|_| Failure::Refused)));
        }
        if towards.session.poll_killed(cx.waker()) {
            return Poll::Ready(Err(End::new(towards.session.kill_cause(), Phase::Connect)));
        }
        if front.poll_abort(cx, towards.config.abortonclose).is_ready() {
            return Poll::Ready(Err(End::new(Cause::ClientAbort, Phase::Connect)));
        }
        ready!(front.deadline.poll(cx));
        Poll::Ready(Ok(Err(Failure::Timeout)))
    })
    .await?;
    Ok(connecting.map(|()| (opened(towards, server, stream), 0)))
}

/// A connection that is there, and counted.
fn opened(towards: &Towards<'_>, server: &Arc<Server>, stream: Stream) -> Connection {
    server.note_connect(true);
    bump(&server.counters().shard(towards.worker.id).connect, 1);
    bump(&towards.backend.counters().shard(towards.worker.id).connect, 1);
    Connection { stream, addr: server.addr(), requests: 0, owner: None, bulk: false }
}

/// Decides what follows a failed attempt; true = wait before the next one.
fn failed(
    towards: &Towards<'_>,
    dispatch: &mut Dispatch,
    server: &Arc<Server>,
    failure: Failure,
    avoid: &mut Option<Arc<Server>>,
) -> Result<bool, End> {
    let worker = towards.worker.id;
    server.note_connect(false);
    bump(&server.counters().shard(worker).econ, 1);
    bump(&towards.backend.counters().shard(worker).econ, 1);
    let end = match &failure {
        Failure::Refused => End::new(Cause::ServerAbort, Phase::Connect),
        Failure::Timeout => End::new(Cause::ServerTimeout, Phase::Connect),
        Failure::Resource(e) => {
            tracing::error!("server {}/{}: connect: {e}", towards.backend.name(), server.name());
            return Err(End::new(Cause::Resource, Phase::Connect));
        }
    };
    let config = towards.config;
    if dispatch.retries >= config.retries {
        return Err(end);
    }
    dispatch.retries += 1;
    let (active, backup) = towards.backend.usable_servers();
    let usable = if active > 0 { active } else { backup };
    let directed = dispatch.directed.as_ref().is_some_and(|d| Arc::ptr_eq(d, server));
    let redispatch = config.redispatch.is_some_and(|interval| {
        !server.usable()
            || due(interval, dispatch.retries, config.retries)
            || (!directed && usable > 1 && !balance::is_hash(config))
    });
    if redispatch {
        dispatch.slot = None;
        dispatch.queued = None;
        *avoid = Some(server.clone());
        return Ok(matches!(failure, Failure::Refused) && usable <= 1);
    }
    bump(&server.counters().shard(worker).wretr, 1);
    bump(&towards.backend.counters().shard(worker).wretr, 1);
    Ok(matches!(failure, Failure::Refused))
}

/// Whether `option redispatch <interval>` falls on this retry, counted from 1.
fn due(interval: i32, retry: u32, retries: u32) -> bool {
    let (retry, retries, interval) = (i64::from(retry), i64::from(retries), i64::from(interval));
    match interval {
        1.. => retry % interval == 0,
        ..=-1 => retries + 1 + interval > 0 && retry % (retries + 1 + interval) == 0,
        0 => false,
    }
}

async fn turn_around(towards: &Towards<'_>, front: &mut Front) -> Result<(), End> {
    let pause = towards.config.timeouts.connect.map_or(TURN_AROUND, |c| c.min(TURN_AROUND));
    front.deadline.set(Some(pause));
    poll_fn(|cx| {
        if towards.session.poll_killed(cx.waker()) {
            return Poll::Ready(Err(End::new(towards.session.kill_cause(), Phase::Connect)));
        }
        if front.poll_abort(cx, towards.config.abortonclose).is_ready() {
            return Poll::Ready(Err(End::new(Cause::ClientAbort, Phase::Connect)));
        }
        front.deadline.poll(cx).map(Ok)
    })
    .await
}

fn count_reuse(towards: &Towards<'_>, server: &Arc<Server>) {
    bump(&server.counters().shard(towards.worker.id).reuse, 1);
    bump(&towards.backend.counters().shard(towards.worker.id).reuse, 1);
}

/// Begins to connect. If the connection is there already, as to a server on this machine: how many of its
/// first bytes were sent. With such bytes the server gets them with the acknowledgement that establishes it.
fn start(
    towards: &Towards<'_>,
    front: &mut Front,
    addr: SocketAddr,
) -> Result<(Stream, Option<usize>), Failure> {
    let config = towards.config;
    let slow_ack = !front.buf.is_empty() && config.smart_connect;
    let first = match towards.first {
        First::Buffered => front.buf.bytes(),
        First::Head(head) => head,
        First::Later => &[],
    };
    let nodelay = !(1..=PACKET).contains(&first.len());
    let tuning = Tuning { nodelay, keepalive: config.srvtcpka, slow_ack, ..Tuning::default() };
    let socket = Connect { tuning, ..Connect::default() }.start(addr)?;
    let sent = match first {
        [] => net::is_connected(&socket).then_some(0),
        first => match net::send(&socket, first, &[], false) {
            Ok(sent) => Some(sent),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Err(e) => return Err(e.into()),
        },
    };
    let stream = if nodelay { Stream::new(socket) } else { Stream::delayed(socket) };
    match sent {
        Some(sent) => {
            if matches!(towards.first, First::Buffered) {
                front.buf.consume(sent);
            }
            // Not tried again elsewhere: the server may have the request.
            stream.watch().map_err(Failure::Resource)?;
        }
        None => stream.watch_connecting().map_err(Failure::Resource)?,
    }
    Ok((stream, sent))
}

/// Out of descriptors, buffers or ports.
fn is_resource(e: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOBUFS: i32 = 105;
    const ENOMEM: i32 = 12;
    const ENOSPC: i32 = 28;
    const EADDRNOTAVAIL: i32 = 99;
    matches!(e.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | ENOSPC | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redispatch_falls_where_the_manual_says() {
        let falls = |interval| (1..=3).filter(|r| due(interval, *r, 3)).collect::<Vec<_>>();
        assert_eq!(falls(-1), [3]);
        assert_eq!(falls(-2), [2]);
        assert_eq!(falls(1), [1, 2, 3]);
        assert_eq!(falls(2), [2]);
        assert_eq!(falls(0), [0; 0]);
        assert_eq!(falls(-9), [0; 0]);
    }
}
