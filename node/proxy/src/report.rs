//! The end of a session or request: counters and the log line.

use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_config::Proxy;
use phalanx_engine::backend::Backend;
use phalanx_engine::counters::{Shard, bump};
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::log::{self, Record, Timers};
use phalanx_engine::server::Server;
use phalanx_engine::stick::Tracked;
use phalanx_engine::time::Now;

use crate::buffer::Text;
use crate::connect::Dispatch;
use crate::session::Session;

/// What a log line is made of.
pub(crate) struct Report<'a> {
    pub(crate) session: &'a Session,
    pub(crate) client: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// The frontend's section.
    pub(crate) config: &'a Proxy,
    pub(crate) backend: Option<&'a Arc<Backend>>,
    pub(crate) dispatch: &'a Dispatch,
    pub(crate) unix_us: u64,
    pub(crate) timers: Timers,
    pub(crate) status: Option<u16>,
    pub(crate) bytes: u64,
    pub(crate) termination: [u8; 4],
    pub(crate) request: &'a [u8],
    /// In place of the server's name.
    pub(crate) server: Option<&'a str>,
    /// `option logasap`: before the end.
    pub(crate) asap: bool,
    /// Level that it is logged at.
    pub(crate) level: u8,
}

/// Writes the line to the frontend's log targets.
pub(crate) fn log(report: &Report<'_>) {
    let config = report.config;
    if config.logs.is_empty() {
        return;
    }
    let (session, dispatch) = (report.session, report.dispatch);
    let server = dispatch.server.as_ref();
    // Connections in use are counted without the one that this line is about only where HAProxy has
    // already let it go: its place on the server is still held when it logs a request.
    let let_go = u32::from(!report.asap);
    let record = Record {
        client: report.client,
        destination: report.destination,
        mode: config.mode,
        unix_us: report.unix_us,
        frontend: &config.name,
        backend: report.backend.map_or(&*config.name, |b| b.name()),
        server: report.server.or(server.map(|s| &**s.name())),
        timers: report.timers,
        status: report.status,
        bytes: report.bytes,
        request_cookie: None,
        response_cookie: None,
        termination: report.termination,
        actconn: session.worker.shared.state.process().conns(),
        feconn: session.frontend().conns(),
        beconn: report.backend.map_or(0, |b| b.conns()).saturating_sub(let_go),
        srvconn: server
            .map_or(0, |s| s.served())
            .saturating_sub(let_go.min(u32::from(dispatch.slot.is_some()))),
        retries: dispatch.retries,
        redispatched: dispatch.redispatched,
        srv_queue: dispatch.ahead.server,
        backend_queue: dispatch.ahead.backend,
        request: report.request,
        asap: report.asap,
    };
    let mut line = Text::take();
    log::line(config.log_format, &record, &mut line);
    session.worker.shared.logs.send(&config.logs, report.level, &line);
}

/// Milliseconds from `start` to a later moment.
pub(crate) fn since(start: Now) -> impl Fn(Now) -> u32 {
    move |end| u32::try_from(end.ms().saturating_sub(start.ms())).unwrap_or(u32::MAX)
}

/// The counters that a session touches: frontend, backend, server.
pub(crate) fn shards<'a>(
    session: &'a Session,
    backend: Option<&'a Arc<Backend>>,
    server: Option<&'a Arc<Server>>,
) -> impl Iterator<Item = &'a Shard> {
    let worker = session.worker.id;
    let shards = [
        Some(session.frontend().counters().shard(worker)),
        backend.map(|b| b.counters().shard(worker)),
        server.map(|s| s.counters().shard(worker)),
    ];
    shards.into_iter().flatten()
}

/// Counts what has passed in what is tracked. At the end, as HAProxy does.
pub(crate) fn track_bytes<'a>(tracked: impl Iterator<Item = &'a Tracked>, (up, down): (u64, u64), now: Now) {
    for tracked in tracked.filter(|tracked| tracked.table().counts_bytes()) {
        tracked.bytes_in(up, now);
        tracked.bytes_out(down, now);
    }
}

/// Counts an abnormal end.
pub(crate) fn count_end(shard: &Shard, end: End) {
    let transferring = matches!(end.phase, Phase::Data | Phase::Last | Phase::Headers);
    match end.cause {
        Cause::ClientAbort | Cause::ClientTimeout if transferring => bump(&shard.cli_abrt, 1),
        Cause::ServerAbort | Cause::ServerTimeout if transferring => bump(&shard.srv_abrt, 1),
        _ => {}
    }
    let ours = matches!(end.cause, Cause::ClientAbort | Cause::ClientTimeout | Cause::Local);
    if end.phase == Phase::Headers && !ours {
        bump(&shard.eresp, 1);
    }
}
