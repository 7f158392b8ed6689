//! The log lines about servers and backends that change state, in HAProxy's words.
//!
//! Pure text; the check tasks and the Runtime API send what [`super::Effects`] carries.

use std::fmt::Write as _;

use crate::health::{CheckResult, Health, Report};
use crate::server::Server;

/// Syslog levels of the lines.
pub(super) const EMERG: u8 = 0;
pub(super) const ALERT: u8 = 1;
pub(super) const NOTICE: u8 = 5;

/// What happened to the streams that waited, and who is left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) active: u32,
    pub(super) backup: u32,
    pub(super) on_backup: bool,
    pub(super) sessions: u32,
    pub(super) requeued: u32,
    pub(super) queued: u32,
}

/// `Server b/s` or `Backup Server b/s`.
pub(super) fn subject(server: &Server) -> String {
    let backup = if server.is_backup() { "Backup " } else { "" };
    format!("{backup}Server {}/{}", server.backend_name(), server.name())
}

/// The rest of a line about a server that went down.
pub(super) fn left(t: Tally) -> String {
    let on_backup = if t.on_backup { " Running on backup." } else { "" };
    format!(
        ". {} active and {} backup servers left.{on_backup} {} sessions active, {} requeued, {} remaining in queue.",
        t.active, t.backup, t.sessions, t.requeued, t.queued
    )
}

/// The rest of a line about a server that is still or again up.
pub(super) fn online(t: Tally) -> String {
    let on_backup = if t.on_backup { " Running on backup." } else { "" };
    format!(
        ". {} active and {} backup servers online.{on_backup} {} sessions requeued, {} total in queue.",
        t.active, t.backup, t.requeued, t.queued
    )
}

/// `option log-health-checks`.
pub(super) fn health_check(server: &Server, report: &Report, health: &Health, draining: bool) -> String {
    let verdict = match report.status.result() {
        CheckResult::Passed => "succeeded",
        CheckResult::CondPass => "conditionally succeeded",
        CheckResult::Failed | CheckResult::Unknown => "failed",
    };
    let (n, m) = health.progress();
    let state = match (health.is_up(), draining) {
        (false, _) => "DOWN",
        (true, true) => "DRAIN",
        (true, false) => "UP",
    };
    let backup = if server.is_backup() { "backup " } else { "" };
    let mut line =
        format!("Health check for {backup}server {}/{} {verdict}", server.backend_name(), server.name());
    let _ = write!(line, ", reason: {report}, status: {n}/{m} {state}.");
    line
}
