//! TCP mode: one connection to a server for the whole session.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use phalanx_config::Proxy;
use phalanx_engine::backend::Backend;
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::log::{self as records, Timers};
use phalanx_engine::plan::ProxyPlan;
use phalanx_engine::state::sessions;

use crate::buffer::{Buffer, SIZE};
use crate::connect::{Dispatch, First, Towards, establish};
use crate::front::Front;
use crate::pipes::{self, Conduit, Splicing};
use crate::pool::Reuse;
use crate::report::{self, Report};
use crate::rules::{self, Around, Passage};
use crate::session::Session;
use crate::tunnel::{self, Limits, Pipe};
use crate::worker::View;

/// Forwards until the end, then counts and logs.
#[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice, all the time")]
pub(crate) fn serve(
    session: Session,
    plan: Rc<View>,
    index: usize,
    mut front: Front,
) -> impl Future<Output = ()> {
    async move {
        let proxy = &plan.proxies[index];
        let now = session.accepted();
        let mut dispatch = Dispatch { asked: now, ..Dispatch::default() };
        let passage = pass(&session, &plan, proxy, proxy, &mut front).await;
        if passage != Passage::Free {
            return denied(&session, &mut front, &proxy.config, None, &dispatch, passage);
        }
        let target = chosen(&session, &plan, proxy);
        let Some((back, backend)) = target else {
            let end = End::new(Cause::ServerAbort, Phase::Connect);
            report(&session, &proxy.config, None, &dispatch, end, (0, 0));
            return;
        };
        let stream = backend.enter();
        backend.counters().count_session(session.worker.id, now);
        // Those of a `listen` have been executed already.
        if !std::ptr::eq(back, proxy) {
            let passage = pass(&session, &plan, proxy, back, &mut front).await;
            if passage != Passage::Free {
                return denied(&session, &mut front, &proxy.config, Some(backend), &dispatch, passage);
            }
        }
        let (end, bytes) = forward(&session, &plan, back, backend, &mut front, &mut dispatch).await;
        // What a client sent to nobody is thrown away: closing with unread bytes would reset its connection.
        if dispatch.connected.is_none() {
            let _ = front.stream.read_now(&mut [0; 512]);
        }
        report(&session, &proxy.config, Some(backend), &dispatch, end, bytes);
        drop(stream);
    }
}

fn around<'a>(
    session: &'a Session,
    plan: &'a View,
    front: &'a ProxyPlan,
    proxy: &'a ProxyPlan,
) -> Around<'a> {
    Around { session, plan, front, proxy, backend: proxy.backend.as_ref() }
}

/// The backend that takes the session. A function of its own, whose context the task does not carry.
fn chosen<'p>(
    session: &Session,
    plan: &'p View,
    proxy: &'p ProxyPlan,
) -> Option<(&'p ProxyPlan, &'p Arc<Backend>)> {
    let around = around(session, plan, proxy, proxy);
    let back = rules::backend(plan, proxy, || around.context(session.worker.now()))?;
    Some((back, back.backend.as_ref()?))
}

/// Carries out `tcp-request content` of a proxy.
async fn pass(
    session: &Session,
    plan: &View,
    front: &ProxyPlan,
    proxy: &ProxyPlan,
    client: &mut Front,
) -> Passage {
    if proxy.config.rules.tcp_content.is_empty() {
        return Passage::Free;
    }
    let around = around(session, plan, front, proxy);
    // Boxed: most sessions have no such rules.
    Box::pin(rules::content(&around, client)).await
}

/// Ends a session that a rule rejected.
fn denied(
    session: &Session,
    front: &mut Front,
    config: &Proxy,
    backend: Option<&Arc<Backend>>,
    dispatch: &Dispatch,
    passage: Passage,
) {
    for shard in report::shards(session, backend, None) {
        bump(&shard.dreq, 1);
    }
    if passage == Passage::Dropped {
        rules::leave_silently(front);
    }
    let _ = front.stream.read_now(&mut [0; 512]);
    report(session, config, backend, dispatch, End::new(Cause::Proxy, Phase::Request), (0, 0));
}

async fn forward(
    session: &Session,
    plan: &View,
    back: &ProxyPlan,
    backend: &Arc<Backend>,
    front: &mut Front,
    dispatch: &mut Dispatch,
) -> (End, (u64, u64)) {
    let worker = &*session.worker;
    let config = &back.config;
    if !back.config.use_server.is_empty() {
        let at = around(session, plan, back, back).context(session.accepted());
        dispatch.directed = rules::server(back, backend, &at);
    }
    if dispatch.directed.is_none() && !back.stick_rules.is_empty() {
        let at = around(session, plan, back, back).context(session.accepted());
        dispatch.directed = rules::stick_match(back, &at, backend, config.persist);
    }
    if front.take_first().is_err() {
        return (End::new(Cause::ClientAbort, Phase::Connect), (0, 0));
    }
    let towards = Towards {
        worker,
        session: &session.entry,
        backend,
        config,
        reuse: Reuse::No,
        first: First::Buffered,
    };
    // Boxed: forwarding, which may take hours, does not carry the state of connecting.
    let established = match Box::pin(establish(&towards, front, dispatch)).await {
        Ok(established) => established,
        Err(end) => return (end, (0, 0)),
    };
    if let Some(server) = dispatch.server.clone() {
        server.counters().count_session(worker.id, worker.now());
        if !server.options().non_stick && !back.stick_rules.is_empty() {
            let at = around(session, plan, back, back).context(worker.now());
            rules::stick_store(back, &at, &server);
        }
        session.entry.note(Some(backend), Some(&server), sessions::Phase::Tunnel);
    }
    let own = session.frontend().config();
    if own.logasap {
        let timers = timers(session, dispatch);
        log(session, &own, Some(backend), dispatch, timers, End::NORMAL, None);
    }
    let limits = Limits::new(&own.timeouts, &config.timeouts);
    let ways = Splicing::of(&plan.config.global, &own, config);
    drop(own);
    let ahead = std::mem::replace(&mut front.buf, Buffer::new(SIZE));
    let global = &plan.config.global;
    let (upward, downward) = (Conduit::new(ways.0, global), Conduit::new(ways.1, global));
    let (mut up, mut down) =
        (Pipe::new(ahead, front.eof, upward), Pipe::new(Buffer::new(SIZE), false, downward));
    up.bytes = established.sent as u64;
    if front.stream.watch().is_err() {
        return (End::new(Cause::Resource, Phase::Data), (up.bytes, 0));
    }
    let end = tunnel::run(
        &front.stream,
        &established.connection.stream,
        &mut up,
        &mut down,
        limits,
        &mut front.deadline,
        &session.entry,
    )
    .await;
    pipes::count(session, down.spliced());
    if end.cause == Cause::ClientAbort {
        // A server is told of an abort by a reset, as HAProxy does; a port in TIME_WAIT is spared, too.
        established.connection.stream.reset_on_close();
    }
    (end, (up.bytes, down.bytes))
}

/// Counts and logs the session.
fn report(
    session: &Session,
    config: &Proxy,
    back: Option<&Arc<Backend>>,
    dispatch: &Dispatch,
    end: End,
    (up, down): (u64, u64),
) {
    let timers = timers(session, dispatch);
    for shard in report::shards(session, back, dispatch.server.as_ref()) {
        bump(&shard.bin, up);
        bump(&shard.bout, down);
        shard.ttime.add(u64::from(timers.total));
        timers.queue.into_iter().for_each(|ms| shard.qtime.add(u64::from(ms)));
        timers.connect.into_iter().for_each(|ms| shard.ctime.add(u64::from(ms)));
        report::count_end(shard, end);
    }
    report::track_bytes(session.memory.all_tracked(), (up, down), session.worker.now());
    if config.dontlognull && up == 0 && down == 0 {
        return;
    }
    if config.dontlog_normal && end == End::NORMAL && dispatch.retries == 0 && !dispatch.redispatched {
        return;
    }
    if !(config.logasap && dispatch.connected.is_some()) {
        log(session, config, back, dispatch, timers, end, Some(down));
    }
}

fn timers(session: &Session, dispatch: &Dispatch) -> Timers {
    let now = session.worker.now();
    let ms = report::since(session.accepted());
    Timers {
        request: None,
        queue: dispatch.queued.map(&ms),
        connect: dispatch.connected.map(report::since(dispatch.queued.unwrap_or(now))),
        response: None,
        total: ms(now),
    }
}

/// Logs the session; without `bytes` it has only begun (`option logasap`).
#[allow(clippy::too_many_arguments, reason = "what a log line is made of")]
fn log(
    session: &Session,
    config: &Proxy,
    backend: Option<&Arc<Backend>>,
    dispatch: &Dispatch,
    timers: Timers,
    end: End,
    bytes: Option<u64>,
) {
    let [cause, phase] = end.code();
    report::log(&Report {
        session,
        client: session.src(),
        destination: session.dst(),
        config,
        backend,
        dispatch,
        unix_us: session.accepted().unix_us,
        timers,
        status: None,
        bytes: bytes.unwrap_or(0),
        termination: [cause, phase, b'-', b'-'],
        request: b"",
        server: None,
        asap: bytes.is_none(),
        level: records::INFO,
    });
}
