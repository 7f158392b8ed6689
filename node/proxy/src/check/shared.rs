//! Checks that the nodes of a cluster share out.
//!
//! The engine's [`Board`] says which node probes a server for all. Here is what that means for the
//! tasks: a node that probes tells what it found, and asks another node before a server counts as
//! down; one that follows takes over what it is told, and probes only when it has failed to connect
//! to a server that is said to be up: when it alone cannot reach it, it stops using it and says so.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::backend::Backend;
use phalanx_engine::health::{CheckResult, Health, Report, Transition};
use phalanx_engine::server::{Apart, Server};
use phalanx_engine::state::State;
use phalanx_engine::verdict::{Board, Kind, Subject};
use tokio::time::{Instant, sleep_until};

use super::{Check, announce, now, probe};

/// Asks a node for what its own probe finds, which may take so long; `None` = it cannot tell.
pub type Ask =
    dyn Fn(&str, &Subject, Duration) -> Pin<Box<dyn Future<Output = Option<Report>> + Send>> + Send + Sync;

/// How checks are shared with the other nodes.
#[derive(Clone)]
pub struct Sharing {
    /// Who probes what.
    pub board: Arc<Board>,
    /// Second opinions.
    pub ask: Arc<Ask>,
}

/// A node that fails so often in a row to connect to a server that is said to be up looks for itself.
pub(super) const SUSPICIOUS: u32 = 3;

/// A server's health as this node alone sees it.
pub(super) type Local = Arc<Mutex<Health>>;

/// A fresh one: up.
pub(super) fn local(server: &Server) -> Local {
    let options = server.options();
    let mut health = Health::new(options.rise, options.fall);
    health.force(true);
    Arc::new(Mutex::new(health))
}

/// What a server's health check is, for all nodes whose configuration says the same.
pub fn subject(backend: &Backend, server: &Server) -> Subject {
    let (config, options) = (backend.config(), server.options());
    let how = format!("{} {} {} {:?}", server.check_addr(), options.rise, options.fall, config.httpchk);
    Subject {
        backend: backend.name().clone(),
        server: server.name().clone(),
        kind: Kind::Health,
        how: fnv1a(how.as_bytes()),
    }
}

/// What a server's agent check is, for all nodes whose configuration says the same.
pub fn agent_subject(backend: &Backend, server: &Server) -> Subject {
    let agent = server.agent();
    let how = format!("{} {} {:?}", agent.ip.unwrap_or(server.addr().ip()), agent.port, agent.send);
    Subject {
        backend: backend.name().clone(),
        server: server.name().clone(),
        kind: Kind::Agent,
        how: fnv1a(how.as_bytes()),
    }
}

/// Probes once, for another node. `None` = this node does not check that.
pub(super) async fn probe_for_another(state: Arc<State>, asked: Subject) -> Option<Report> {
    let backend = state.plan().backend(&asked.backend)?.clone();
    let server = backend.server(&asked.server)?;
    if !server.check_runs() || subject(&backend, &server) != asked || server.check().apart.is_some() {
        return None;
    }
    Some(probe::run(&backend, &server).await)
}

/// Part of a check that is done for all nodes.
pub(super) struct ForAll {
    pub(super) sharing: Sharing,
    pub(super) subject: Subject,
    pub(super) local: Local,
}

impl ForAll {
    /// Probes; a probe that would take the server down is beside one of another node. With the name
    /// of that node if only it could reach the server.
    pub(super) async fn probe(&self, check: &Check) -> (Report, Option<Arc<str>>) {
        let (backend, server) = (&check.backend, &check.server);
        let brink = server.on_the_brink();
        let failed = |r: &Report| r.status.result() == CheckResult::Failed;
        let second = || self.sharing.board.second(&self.subject, now(&check.clock));
        let limit = probe::longest(backend, server);
        // Beside the probe and not after it, so that it costs no time. Not for the first one of all:
        // most servers are up.
        if brink
            && server.check().last.as_ref().is_some_and(failed)
            && let Some(other) = second()
        {
            let ask = (self.sharing.ask)(&other, &self.subject, limit);
            let (report, opinion) = tokio::join!(probe::run(backend, server), ask);
            return (report.clone(), reached(&report, opinion, other));
        }
        let report = probe::run(backend, server).await;
        if brink
            && failed(&report)
            && let Some(other) = second()
        {
            let opinion = (self.sharing.ask)(&other, &self.subject, limit).await;
            return (report.clone(), reached(&report, opinion, other));
        }
        (report, None)
    }

    /// Leaves the server to the others, who can reach it.
    pub(super) fn leave(&self, check: &Check, report: Report, reached_by: Arc<str>) {
        self.local.lock().force(false);
        stand_apart(check, &self.sharing.board, &self.subject, Apart { report, reached_by });
    }
}

fn reached(mine: &Report, opinion: Option<Report>, other: Arc<str>) -> Option<Arc<str>> {
    let passed = |r: &Report| matches!(r.status.result(), CheckResult::Passed | CheckResult::CondPass);
    (mine.status.result() == CheckResult::Failed && opinion.is_some_and(|r| passed(&r))).then_some(other)
}

fn stand_apart(check: &Check, board: &Board, subject: &Subject, apart: Apart) {
    let (backend, server, at) = (&check.backend, &check.server, now(&check.clock));
    tracing::warn!(
        "server {}/{}: only this node cannot reach it ({}), node '{}' can: not used here until it answers",
        backend.name(),
        server.name(),
        apart.report.status.text(),
        apart.reached_by
    );
    let effects = backend.stand_apart(server, apart, at);
    check.state.end_sessions(&effects);
    announce(backend, &effects, &check.log);
    board.set_apart(subject, true, at);
}

/// Looks whether this node alone cannot reach a server, and when it can again.
pub(super) async fn look(check: Check, sharing: Sharing, subject: Subject, local: Local) {
    let (backend, server) = (&check.backend, &check.server);
    let board = &sharing.board;
    let mut due = Instant::now();
    if server.check().apart.is_some() {
        due += local.lock().interval(&server.options());
    }
    while !server.is_removed() {
        sleep_until(due).await;
        let began = Instant::now();
        let report = probe::run(backend, server).await;
        let result = report.status.result();
        let transition = local.lock().handle(result);
        let at = now(&check.clock);
        match transition {
            Some(Transition::Down) => {
                let reached_by = board.claim(&subject, at).map_or_else(|| "another".into(), |(node, _)| node);
                stand_apart(&check, board, &subject, Apart { report, reached_by });
            }
            Some(Transition::Up) => {
                tracing::info!("server {}/{}: this node can reach it again", backend.name(), server.name());
                server.note_connect(true);
                let effects = backend.stand_by(server, false, at);
                announce(backend, &effects, &check.log);
                board.set_apart(&subject, false, at);
                return;
            }
            None if result != CheckResult::Failed && server.check().apart.is_none() => {
                server.note_connect(true);
                return;
            }
            None => {}
        }
        let interval = local.lock().interval(&server.options());
        due = (began + interval).max(Instant::now());
    }
}

/// The same on every node and in every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
