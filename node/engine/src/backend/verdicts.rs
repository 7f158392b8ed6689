//! Servers whose health another node of the cluster finds out.
//!
//! The check tasks bring here what the node that probes has told, and what this node's own probes say
//! where they differ: then this node alone stops using the server.

use std::sync::Arc;

use crate::health::Health;
use crate::server::{Apart, OpState, Server};
use crate::time::Now;
use crate::verdict::Verdict;

use super::{Backend, Effects};

impl Backend {
    /// Takes over what another node found. `None` = not now, because commands that it does not know of
    /// yet have changed the server here: it will tell again.
    pub fn apply_verdict(&self, server: &Arc<Server>, verdict: &Verdict, now: Now) -> Option<Effects> {
        let mut standing = self.control.lock();
        if !server.check_runs() {
            return None;
        }
        {
            let mut control = server.control.lock();
            if verdict.forced < control.forced {
                return None;
            }
            control.check.health.restore(verdict.health);
            if verdict.report.is_some() {
                control.check.last.clone_from(&verdict.report);
            }
            if control.check.apart.is_some() {
                return Some(Effects::default());
            }
        }
        let mut effects = Effects::default();
        let reason = verdict.report.as_ref().map_or(String::new(), |r| format!(", reason: {r}"));
        match (verdict.op, server.op_state()) {
            (OpState::Stopped, OpState::Stopped) => {}
            (OpState::Stopped, _) => self.go_down(server, &mut standing, &reason, now, &mut effects),
            (_, OpState::Stopped) if !server.agent_holds_down() => {
                self.go_up(server, &mut standing, &reason, now, &mut effects);
            }
            (OpState::Stopping, OpState::Starting | OpState::Running) => {
                self.stay_up(server, "stopping", &mut standing, &reason, now, &mut effects);
            }
            (OpState::Starting | OpState::Running, OpState::Stopping) => {
                self.stay_up(server, "UP", &mut standing, &reason, now, &mut effects);
            }
            _ => {}
        }
        self.announce_if_empty(&mut standing, &mut effects);
        Some(effects)
    }

    /// This node alone cannot reach the server: it is down here, and nowhere else.
    pub fn stand_apart(&self, server: &Arc<Server>, apart: Apart, now: Now) -> Effects {
        let mut standing = self.control.lock();
        let mut effects = Effects::default();
        let reason = format!(", reason: {}", apart.report);
        server.control.lock().check.apart = Some(apart);
        if server.check_runs() && server.op_state() != OpState::Stopped {
            self.go_down(server, &mut standing, &reason, now, &mut effects);
        }
        self.announce_if_empty(&mut standing, &mut effects);
        effects
    }

    /// The opposite of [`Backend::stand_apart`]: the server is again what all say it is, or, with
    /// `down`, what this node says is what counts.
    pub fn stand_by(&self, server: &Arc<Server>, down: bool, now: Now) -> Effects {
        let mut standing = self.control.lock();
        let mut effects = Effects::default();
        let (was, up, reason) = {
            let mut control = server.control.lock();
            let was = control.check.apart.take();
            if down && was.is_some() {
                control.check.health.force(false);
                control.check.last = was.as_ref().map(|a| a.report.clone());
            }
            let reason = control.check.last.as_ref().map_or(String::new(), |r| format!(", reason: {r}"));
            (was, control.check.health.is_up(), reason)
        };
        if was.is_some()
            && up
            && !server.agent_holds_down()
            && server.check_runs()
            && server.op_state() == OpState::Stopped
        {
            self.go_up(server, &mut standing, &reason, now, &mut effects);
        }
        self.announce_if_empty(&mut standing, &mut effects);
        effects
    }
}

impl Server {
    /// What this node knows of its health, to tell others.
    pub fn verdict(&self) -> Verdict {
        let control = self.control.lock();
        Verdict {
            health: control.check.health.value(),
            // What the agent does to it is told beside it.
            op: match self.op_state() {
                OpState::Stopped if control.check.health.is_up() => OpState::Running,
                op => op,
            },
            report: control.check.last.clone(),
            forced: control.forced,
            said: String::new(),
        }
    }

    /// Whether the next failed probe takes it down.
    pub fn on_the_brink(&self) -> bool {
        let health: Health = self.control.lock().check.health;
        self.op_state() != OpState::Stopped && health.value() == health.rise()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phalanx_config::model::{Balance, ServerOptions};

    use super::*;
    use crate::health::{CheckStatus, Report};
    use crate::testing::{at, section, servers};

    fn backend() -> Backend {
        let options =
            ServerOptions { check: true, slowstart: Some(Duration::from_secs(9)), ..Default::default() };
        let lines = servers(&[options]);
        Backend::new(Arc::new(section(Balance::RoundRobin, lines)), 1, 1, at(0))
    }

    fn refused() -> Report {
        let info = "Connection refused".into();
        Report { status: CheckStatus::L4Con, info, ..Report::default() }
    }

    #[test]
    fn a_verdict_changes_the_server_as_its_own_probes_would() {
        let (probing, following) = (backend(), backend());
        let (a, b) = (probing.server("s1").unwrap(), following.server("s1").unwrap());
        let told = probing.check_result(&a, refused(), at(10));
        let taken = following.apply_verdict(&b, &a.verdict(), at(11)).unwrap();
        assert_eq!(told.notices, taken.notices);
        assert_eq!((a.status(), a.check().last), (b.status(), b.check().last));
        assert!(!b.is_up());
        // The same again says nothing.
        assert!(following.apply_verdict(&b, &a.verdict(), at(12)).unwrap().notices.is_empty());
        let passed = Report { status: CheckStatus::L4Ok, ..Report::default() };
        let _ = probing.check_result(&a, passed.clone(), at(20));
        assert!(following.apply_verdict(&b, &a.verdict(), at(21)).unwrap().notices.is_empty());
        assert_eq!((a.status(), b.status()), ("DOWN 1/2".into(), "DOWN 1/2".into()));
        let told = probing.check_result(&a, passed, at(30));
        let taken = following.apply_verdict(&b, &a.verdict(), at(31)).unwrap();
        assert_eq!(told.notices, taken.notices);
        assert_eq!((a.op_state(), b.op_state()), (OpState::Starting, OpState::Starting));
        // Taking over from here starts no ramp again.
        let _ = following.apply_verdict(&b, &a.verdict(), at(5000)).unwrap();
        following.advance_ramps(at(5031));
        assert!(b.throttle() > 50, "{}", b.throttle());
    }

    #[test]
    fn who_stands_apart_hears_but_does_not_use() {
        let backend = backend();
        let s = backend.server("s1").unwrap();
        let apart = Apart { report: refused(), reached_by: "n2".into() };
        let effects = backend.stand_apart(&s, apart.clone(), at(1));
        assert!(
            effects.notices[0].text.starts_with("Server b/s1 is DOWN, reason: Layer4 connection problem")
        );
        let up = Verdict { health: 4, op: OpState::Running, ..Verdict::default() };
        assert!(backend.apply_verdict(&s, &up, at(2)).unwrap().notices.is_empty());
        assert!(!s.is_up());
        let effects = backend.stand_by(&s, false, at(3));
        assert!(effects.notices[0].text.starts_with("Server b/s1 is UP"), "{effects:?}");
        // When nobody else is left, what it found is the verdict.
        let _ = backend.stand_apart(&s, apart, at(4));
        let effects = backend.stand_by(&s, true, at(5));
        assert!(effects.notices.is_empty() && !s.is_up());
        assert_eq!((s.verdict().op, s.verdict().health), (OpState::Stopped, 0));
    }

    #[test]
    fn a_verdict_older_than_a_command_is_not_taken() {
        let backend = backend();
        let s = backend.server("s1").unwrap();
        s.control.lock().forced = 7;
        let old = Verdict { op: OpState::Stopped, forced: 6, ..Verdict::default() };
        assert!(backend.apply_verdict(&s, &old, at(1)).is_none());
        assert!(s.is_up());
        assert!(backend.apply_verdict(&s, &Verdict { forced: 7, ..old }, at(1)).is_some());
        assert!(!s.is_up());
    }
}
