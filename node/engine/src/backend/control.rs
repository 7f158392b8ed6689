//! Changes of a backend's servers: administrative state, weight, address, health, coming and going.
//!
//! One at a time under the backend's control lock; never on the request path. Each change settles
//! the servers' states, publishes a new farm, serves or sends away who waits, and returns the log
//! lines as [`Effects`].

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::balance::{self, Farm};
pub use crate::registry::{Admin as AdminChange, Force as HealthChange};

use crate::health::{CheckResult, Report, Transition};
use crate::server::{Admin, OpState, Server};
use crate::time::Now;

use super::lines::{self, Tally};
use super::{Backend, Standing};

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Syslog level.
    pub level: u8,
    /// The line.
    pub text: String,
}

/// What the caller must carry out after a change.
#[derive(Debug, Default)]
#[must_use]
pub struct Effects {
    /// Lines for the backend's log targets.
    pub notices: Vec<Notice>,
    /// Servers whose checks may have to start, stop or move.
    pub checks: bool,
    /// Servers with `on-marked-down shutdown-sessions` that went down:
    /// [`State::end_sessions`](crate::state::State::end_sessions).
    pub ended: Vec<Arc<Server>>,
}

impl Effects {
    pub(super) fn line(&mut self, level: u8, text: String) {
        self.notices.push(Notice { level, text });
    }

    fn end_sessions_if_asked(&mut self, server: &Arc<Server>) {
        if server.options().shutdown_sessions_on_down {
            self.ended.push(server.clone());
        }
    }

    /// Adds those of another change.
    pub fn merge(&mut self, other: Effects) {
        self.notices.extend(other.notices);
        self.checks |= other.checks;
        self.ended.extend(other.ended);
    }
}

/// Why a change was refused; the text is HAProxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// A weight other than 0 % or 100 % for a static algorithm.
    StaticWeights,
    /// No check on the server line.
    NoCheck,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ControlError::StaticWeights => {
                "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."
            }
            ControlError::NoCheck => "Health check was not configured on this server, cannot enable.",
        })
    }
}

impl std::error::Error for ControlError {}

impl Backend {
    /// `set server … state`, `enable|disable server`.
    pub fn set_admin(&self, server: &Arc<Server>, change: AdminChange, now: Now) -> Effects {
        let mut effects = Effects::default();
        let mut standing = self.control.lock();
        self.change_admin(server, change, &mut standing, now, &mut effects);
        effects
    }

    pub(super) fn change_admin(
        &self,
        server: &Arc<Server>,
        change: AdminChange,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        let (before, after) = (server.admin(), server.admin().after(change));
        if after == before {
            return;
        }
        let subject = lines::subject(server);
        match (before.maint(), after.maint()) {
            (false, true) => self.enter_maintenance(server, after, "", standing, now, effects),
            // It has no address: what the command says counts once it has one.
            (true, true) => {
                server.set_admin(after);
                let state = if after.0 & Admin::FMAINT != 0 { "enters" } else { "leaves" };
                effects.line(
                    lines::NOTICE,
                    format!("{subject} {state} forced maintenance, without an address."),
                );
            }
            (true, false) => {
                self.leave_maintenance(server, after, now);
                self.publish(standing, now, effects);
                let state = if server.is_up() { "UP" } else { "DOWN" };
                let mode = if after.drain() { "DRAIN" } else { "READY" };
                effects.line(
                    lines::NOTICE,
                    format!("{subject} is {state}/{mode} (leaving forced maintenance)."),
                );
                if after.drain() {
                    effects.line(lines::NOTICE, format!("{subject} remains in forced drain mode."));
                }
            }
            _ => {
                self.mark_change(server, now);
                server.set_admin(after);
                self.publish(standing, now, effects);
                let text = if after.drain() {
                    format!("{subject} enters drain state{}", lines::online(self.tally(server, 0)))
                } else {
                    let state = if server.is_up() { "UP" } else { "DOWN" };
                    format!("{subject} is {state} (leaving forced drain).")
                };
                effects.line(lines::NOTICE, text);
            }
        }
        self.announce_if_empty(standing, effects);
    }

    /// `set weight`, `set server … weight`.
    ///
    /// # Errors
    /// A static algorithm takes only 0 and the configured weight.
    pub fn set_weight(&self, server: &Arc<Server>, weight: u32, now: Now) -> Result<Effects, ControlError> {
        if !balance::is_dynamic(&self.config.load()) && weight != 0 && weight != server.initial_weight() {
            return Err(ControlError::StaticWeights);
        }
        let mut standing = self.control.lock();
        let mut effects = Effects::default();
        if server.weight() != weight.min(256) {
            server.set_weight(weight);
            self.publish(&mut standing, now, &mut effects);
            self.announce_if_empty(&mut standing, &mut effects);
        }
        Ok(effects)
    }

    /// `set maxconn server`.
    pub fn set_maxconn(&self, server: &Arc<Server>, maxconn: u32) {
        let _standing = self.control.lock();
        server.set_maxconn(maxconn);
        self.serve_all();
    }

    /// `set server … addr`. New connections use it at once.
    pub fn set_addr(&self, server: &Arc<Server>, addr: SocketAddr) -> Effects {
        let _standing = self.control.lock();
        let changed = server.addr() != addr;
        server.set_addr(addr);
        Effects { checks: changed, ..Effects::default() }
    }

    /// `enable|disable health`.
    ///
    /// # Errors
    /// The server line has no `check`.
    pub fn set_check(&self, server: &Arc<Server>, enabled: bool) -> Result<Effects, ControlError> {
        let mut control = server.control.lock();
        if !control.check.configured {
            return Err(ControlError::NoCheck);
        }
        control.check.enabled = enabled;
        Ok(Effects { checks: true, ..Effects::default() })
    }

    /// `set server … health`.
    pub fn set_health(&self, server: &Arc<Server>, change: HealthChange, now: Now) -> Effects {
        let mut effects = Effects::default();
        let mut standing = self.control.lock();
        self.change_health(server, change, &mut standing, now, &mut effects);
        effects
    }

    pub(super) fn change_health(
        &self,
        server: &Arc<Server>,
        change: HealthChange,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        const WHY: &str = ", changed from CLI";
        if server.admin().maint() {
            return;
        }
        server.control.lock().check.health.force(change != HealthChange::Down);
        match (change, server.op_state()) {
            (HealthChange::Up, OpState::Stopped) if !server.agent_holds_down() => {
                self.go_up(server, standing, WHY, now, effects);
            }
            (HealthChange::Up, OpState::Stopping) => self.stay_up(server, "UP", standing, WHY, now, effects),
            (HealthChange::Stopping, was) if was != OpState::Stopping => {
                self.stay_up(server, "stopping", standing, WHY, now, effects);
            }
            (HealthChange::Down, was) if was != OpState::Stopped => {
                self.go_down(server, standing, WHY, now, effects);
            }
            _ => {}
        }
        self.announce_if_empty(standing, effects);
    }

    /// Takes the result of a probe. A result that comes after the check was switched off or the
    /// server went into maintenance is dropped.
    pub fn check_result(&self, server: &Arc<Server>, report: Report, now: Now) -> Effects {
        let mut standing = self.control.lock();
        let mut effects = Effects::default();
        if !server.check_runs() {
            return effects;
        }
        let logs_checks = self.config.load().log_health_checks;
        let result = report.status.result();
        let (transition, changed) = {
            let mut control = server.control.lock();
            let before = control.check.health;
            if result == CheckResult::Failed && server.op_state() != OpState::Stopped {
                control.failed_checks += 1;
            }
            let transition = control.check.health.handle(result);
            let changed = control.check.health != before
                || control.check.last.as_ref().is_none_or(|last| last.status != report.status);
            control.check.last = Some(report.clone());
            (transition, changed)
        };
        if logs_checks && changed {
            let draining = server.admin().drain() || server.weight() == 0;
            let health = server.control.lock().check.health;
            effects.line(lines::NOTICE, lines::health_check(server, &report, &health, draining));
        }
        // The reason has just been logged by the line before.
        let reason = if logs_checks { String::new() } else { format!(", reason: {report}") };
        let (up, op) = (server.control.lock().check.health.is_up(), server.op_state());
        debug_assert!(transition.is_none_or(|t| (t == Transition::Up) == up));
        match (up, op) {
            (true, OpState::Stopped) if !server.agent_holds_down() => {
                self.go_up(server, &mut standing, &reason, now, &mut effects);
            }
            (true, OpState::Stopping) if result == CheckResult::Passed => {
                self.stay_up(server, "UP", &mut standing, &reason, now, &mut effects);
            }
            (false, OpState::Starting | OpState::Running | OpState::Stopping) => {
                self.go_down(server, &mut standing, &reason, now, &mut effects);
            }
            _ => {}
        }
        self.announce_if_empty(&mut standing, &mut effects);
        effects
    }

    /// Advances `slowstart` ramps; returns whether one is still under way. To be called about once
    /// a second while it is.
    pub fn advance_ramps(&self, now: Now) -> bool {
        let mut standing = self.control.lock();
        let (mut ramping, mut changed) = (false, false);
        for server in self.servers.load().iter() {
            let Some(from) = server.control.lock().ramp_from else { continue };
            let whole = server.options().slowstart.unwrap_or_default();
            let elapsed = now.mono.saturating_sub(from);
            changed = true;
            if elapsed >= whole || server.op_state() != OpState::Starting {
                server.control.lock().ramp_from = None;
                server.set_throttle(100);
                if server.op_state() == OpState::Starting {
                    server.set_op(OpState::Running);
                }
            } else {
                server.set_throttle(ramp_percent(elapsed, whole));
                ramping = true;
            }
        }
        if changed {
            self.publish(&mut standing, now, &mut Effects::default());
        }
        ramping
    }

    pub(super) fn enter_maintenance(
        &self,
        server: &Arc<Server>,
        admin: Admin,
        why: &str,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        let was_up = server.is_up();
        // One that drained already is missed by nobody.
        let level = if server.admin().drain() { lines::NOTICE } else { lines::ALERT };
        self.settle_downtime(server, now);
        server.set_admin(admin);
        server.set_op(OpState::Stopped);
        {
            let mut control = server.control.lock();
            control.last_change = now;
            control.check.health.force(false);
        }
        self.publish(standing, now, effects);
        let requeued = self.redistribute(server);
        let subject = lines::subject(server);
        if was_up {
            server.control.lock().down_transitions += 1;
            effects.end_sessions_if_asked(server);
            let tail = lines::left(self.tally(server, requeued));
            effects.line(level, format!("{subject} is going DOWN for maintenance{why}{tail}"));
        } else {
            effects.line(lines::NOTICE, format!("{subject} was DOWN and now enters maintenance{why}."));
        }
    }

    pub(super) fn leave_maintenance(&self, server: &Arc<Server>, admin: Admin, now: Now) {
        self.settle_downtime(server, now);
        server.control.lock().check.health.reset();
        server.set_admin(admin);
        if server.agent_holds_down() {
            // What its agent said counts, whatever it was in meanwhile.
            server.control.lock().last_change = now;
        } else {
            self.raise(server, now);
        }
    }

    pub(super) fn go_up(
        &self,
        server: &Arc<Server>,
        standing: &mut Standing,
        reason: &str,
        now: Now,
        effects: &mut Effects,
    ) {
        self.settle_downtime(server, now);
        self.raise(server, now);
        self.publish(standing, now, effects);
        let tail = lines::online(self.tally(server, 0));
        effects.line(lines::NOTICE, format!("{} is UP{reason}{tail}", lines::subject(server)));
    }

    /// Between running and stopping: persistent traffic goes on.
    pub(super) fn stay_up(
        &self,
        server: &Arc<Server>,
        state: &str,
        standing: &mut Standing,
        reason: &str,
        now: Now,
        effects: &mut Effects,
    ) {
        self.mark_change(server, now);
        server.set_op(if state == "UP" { OpState::Running } else { OpState::Stopping });
        self.publish(standing, now, effects);
        let tail = lines::online(self.tally(server, 0));
        effects.line(lines::NOTICE, format!("{} is {state}{reason}{tail}", lines::subject(server)));
    }

    pub(super) fn go_down(
        &self,
        server: &Arc<Server>,
        standing: &mut Standing,
        reason: &str,
        now: Now,
        effects: &mut Effects,
    ) {
        self.settle_downtime(server, now);
        server.set_op(OpState::Stopped);
        {
            let mut control = server.control.lock();
            control.down_transitions += 1;
            control.last_change = now;
        }
        self.publish(standing, now, effects);
        effects.end_sessions_if_asked(server);
        let config = self.config.load();
        let moves = config.redispatch.is_some() && !config.persist;
        let requeued = if moves { self.redistribute(server) } else { 0 };
        let tail = lines::left(self.tally(server, requeued));
        effects.line(lines::ALERT, format!("{} is DOWN{reason}{tail}", lines::subject(server)));
    }

    /// Up, or on its way with `slowstart`.
    fn raise(&self, server: &Server, now: Now) {
        let slow = server.options().slowstart.filter(|d| !d.is_zero());
        let mut control = server.control.lock();
        control.last_change = now;
        control.ramp_from = slow.map(|_| now.mono);
        drop(control);
        match slow {
            Some(whole) => {
                server.set_throttle(ramp_percent(Duration::ZERO, whole));
                server.set_op(OpState::Starting);
            }
            None => server.set_op(OpState::Running),
        }
    }

    fn mark_change(&self, server: &Server, now: Now) {
        self.settle_downtime(server, now);
        server.control.lock().last_change = now;
    }

    /// Adds the time since the last change if the server was down in it. Before the change.
    fn settle_downtime(&self, server: &Server, now: Now) {
        let mut control = server.control.lock();
        if !server.is_up() {
            let down = now.mono.saturating_sub(control.last_change.mono);
            control.downtime += down;
        }
    }

    /// Publishes a new farm after a change, and serves whoever it can.
    pub(super) fn publish(&self, standing: &mut Standing, now: Now, effects: &mut Effects) {
        let servers = self.servers.load_full();
        let farm = Farm::new(&self.config.load(), &servers);
        let up = !farm.servers().is_empty() || servers.is_empty();
        farm.mark(&servers);
        self.farm.store(Arc::new(farm));
        if up != standing.up {
            if up {
                standing.downtime += now.mono.saturating_sub(standing.last_change.mono);
            } else {
                standing.down_transitions += 1;
            }
            standing.up = up;
            standing.last_change = now;
            standing.announce = !up;
        }
        effects.checks = true;
        self.serve_all();
    }

    /// `backend b has no server available!`, after the line that tells why.
    pub(super) fn announce_if_empty(&self, standing: &mut Standing, effects: &mut Effects) {
        if std::mem::take(&mut standing.announce) && !standing.up {
            effects.line(lines::EMERG, format!("backend {} has no server available!", self.name));
        }
    }

    fn tally(&self, server: &Server, requeued: u32) -> Tally {
        let (active, backup) = self.usable_servers();
        Tally {
            active,
            backup,
            on_backup: active == 0 && backup > 0,
            sessions: server.served(),
            requeued,
            queued: self.queued.load(SeqCst) + server.queued(),
        }
    }
}

fn ramp_percent(elapsed: Duration, whole: Duration) -> u32 {
    let percent = elapsed.as_millis() * 100 / whole.as_millis().max(1);
    (percent as u32).clamp(1, 100)
}
