//! What agents do to servers: weight, limit, administrative and operational state.
//!
//! The check tasks bring the lines of agents here, their own or what the node that asks has told. An
//! agent's word counts above what commands say, for as long as the agent is enabled: it would say so
//! again a moment later.

use std::sync::Arc;

use crate::agent::{Said, View};
use crate::health::Report;
use crate::registry::{self, Effective};
use crate::server::{OpState, Server};
use crate::time::Now;
use crate::verdict::Verdict;

use super::{Backend, Effects, Standing};

impl Backend {
    /// Takes the answer of an agent, or with `said` = `None` why there was none.
    pub fn agent_result(
        &self,
        server: &Arc<Server>,
        said: Option<&Said>,
        report: Report,
        now: Now,
    ) -> Effects {
        let mut standing = self.control.lock();
        let mut view = server.control.lock().agent.view;
        if let Some(said) = said {
            view.take(said);
        }
        self.take_view(server, view, Some(report), &mut standing, now)
    }

    /// Takes over what another node's probe of the agent has come to.
    pub fn apply_agent(&self, server: &Arc<Server>, verdict: &Verdict, now: Now) -> Option<Effects> {
        let mut standing = self.control.lock();
        if verdict.forced < server.control.lock().agent.forced {
            return None;
        }
        let view = View::parse(&verdict.said);
        Some(self.take_view(server, view, verdict.report.clone(), &mut standing, now))
    }

    fn take_view(
        &self,
        server: &Arc<Server>,
        view: View,
        report: Option<Report>,
        standing: &mut Standing,
        now: Now,
    ) -> Effects {
        let mut effects = Effects::default();
        if !server.agent_runs() {
            return effects;
        }
        let reason = report.as_ref().map_or(String::new(), |r| format!(", reason: {r}"));
        let before = {
            let agent = &mut server.control.lock().agent;
            agent.last = report.or(agent.last.take());
            std::mem::replace(&mut agent.view, view)
        };
        let initial = server.initial_weight();
        if let Some(weight) = view.weight.map(|w| w.of(initial).min(256))
            && server.weight() != weight
            && (crate::balance::is_dynamic(&self.config.load()) || weight == 0 || weight == initial)
        {
            server.set_weight(weight);
            self.publish(standing, now, &mut effects);
        }
        if let Some(maxconn) = view.maxconn.filter(|n| server.maxconn() != *n) {
            server.set_maxconn(maxconn);
            self.serve_all();
        }
        if let Some(admin) = view.admin.filter(|_| view.admin != before.admin || before == view) {
            self.change_admin(server, admin, standing, now, &mut effects);
        }
        self.follow_agent(server, &reason, standing, now, &mut effects);
        self.announce_if_empty(standing, &mut effects);
        effects
    }

    /// `set server … agent up|down`.
    pub(super) fn force_agent(
        &self,
        server: &Arc<Server>,
        up: bool,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        server.control.lock().agent.view.down = !up;
        self.follow_agent(server, ", changed from CLI", standing, now, effects);
        self.announce_if_empty(standing, effects);
    }

    fn follow_agent(
        &self,
        server: &Arc<Server>,
        reason: &str,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        if server.admin().maint() {
            return;
        }
        match (server.agent_holds_down(), server.op_state()) {
            (true, op) if op != OpState::Stopped => self.go_down(server, standing, reason, now, effects),
            (false, OpState::Stopped) if server.checks_say_up() => {
                self.go_up(server, standing, reason, now, effects);
            }
            _ => {}
        }
    }
}

impl Server {
    /// Whether its agent should be asked now.
    pub fn agent_runs(&self) -> bool {
        let control = self.control.lock();
        control.agent.configured && control.agent.enabled && !self.is_removed()
    }

    /// Its agent.
    pub fn agent(&self) -> crate::agent::Agent {
        self.control.lock().agent.clone()
    }

    /// What this node knows of its agent, to tell others.
    pub fn agent_verdict(&self) -> Verdict {
        let agent = self.agent();
        Verdict {
            health: u32::from(!agent.view.down),
            op: OpState::Running,
            report: agent.last,
            forced: agent.forced,
            said: agent.view.to_string(),
        }
    }

    /// Whether its agent said that it is down.
    pub fn agent_holds_down(&self) -> bool {
        let agent = &self.control.lock().agent;
        agent.configured && agent.enabled && agent.view.down
    }

    /// Whether health checks, if there are any, would have it up.
    fn checks_say_up(&self) -> bool {
        let check = &self.control.lock().check;
        !(check.configured && check.enabled) || (check.health.is_up() && check.apart.is_none())
    }
}

/// What an agent that is enabled has said counts above what commands and the configuration say.
pub(super) fn over(server: &Server, eff: &mut Effective) {
    let agent = &server.control.lock().agent;
    if agent.configured && agent.enabled {
        let view = agent.view;
        eff.weight = view.weight.or(eff.weight);
        eff.maxconn = view.maxconn.or(eff.maxconn);
        eff.admin = view.admin.or(eff.admin);
    }
}

/// Whether agents are asked, and where, as configuration and commands say.
pub(super) fn settle(server: &Server, eff: &registry::AgentEffective) {
    let options = server.options();
    let by_default = server.origin() == crate::server::Origin::Config;
    let agent = &mut server.control.lock().agent;
    agent.configured = options.agent_check;
    agent.enabled = options.agent_check && eff.enabled.unwrap_or(by_default);
    agent.ip = eff.ip.or(options.agent_addr);
    agent.port = eff.port.or(options.agent_port).unwrap_or(0);
    agent.send = eff.send.clone().or_else(|| options.agent_send.clone()).unwrap_or_default();
    if !agent.configured {
        (agent.view, agent.last) = (View::default(), None);
    }
}

#[cfg(test)]
mod tests {
    use phalanx_config::model::{Balance, ServerOptions};

    use super::*;
    use crate::health::CheckStatus;
    use crate::testing::{at, section, servers};

    fn backend() -> Backend {
        let options = ServerOptions { check: true, agent_check: true, weight: 10, ..Default::default() };
        let plain = ServerOptions { weight: 10, ..ServerOptions::default() };
        Backend::new(Arc::new(section(Balance::RoundRobin, servers(&[options, plain]))), 1, 1, at(0))
    }

    fn say(backend: &Backend, server: &Arc<Server>, line: &str) -> Vec<String> {
        let said = Said::read(line.as_bytes());
        let code = said.up.map(|_| 0);
        let report = Report { status: said.status, code, info: said.info.clone(), ..Report::default() };
        let effects = backend.agent_result(server, Some(&said), report, at(1));
        effects.notices.into_iter().map(|n| n.text).collect()
    }

    #[test]
    fn an_agent_steers_its_server_as_in_haproxy() {
        let backend = backend();
        let s1 = backend.server("s1").unwrap();
        assert!(say(&backend, &s1, "up 50%").is_empty());
        assert_eq!((s1.weight(), &*s1.agent().last.unwrap().info), (5, "via agent : up"));
        assert!(say(&backend, &s1, "weight:7 maxconn:3").is_empty());
        assert_eq!((s1.weight(), s1.maxconn()), (7, 3));
        let line = "Server b/s1 enters drain state. 1 active and 0 backup servers online. 0 sessions requeued, 0 total in queue.";
        assert_eq!(say(&backend, &s1, "drain"), [line]);
        assert_eq!(s1.status(), "DRAIN (agent)");
        assert_eq!(say(&backend, &s1, "ready"), ["Server b/s1 is UP (leaving forced drain)."]);
        let line = "Server b/s1 is DOWN, reason: Layer7 wrong status, code: 0, info: \"via agent : down (overloaded now)\", \
            check duration: 0ms. 1 active and 0 backup servers left. 0 sessions active, 0 requeued, 0 remaining in queue.";
        assert_eq!(say(&backend, &s1, "down #overloaded now"), [line]);
        assert_eq!(s1.status(), "DOWN (agent)");
        // Checks that pass don't help, and neither does an agent that says nothing about it.
        let passed = Report { status: CheckStatus::L4Ok, ..Report::default() };
        assert!(backend.check_result(&s1, passed.clone(), at(2)).notices.is_empty());
        assert!(say(&backend, &s1, "75%").is_empty() && !s1.is_up());
        assert!(
            say(&backend, &s1, "up")[0]
                .starts_with("Server b/s1 is UP, reason: Layer7 check passed, code: 0")
        );
        // An agent's up does not help against failed checks.
        let failed = Report { status: CheckStatus::L4Con, ..Report::default() };
        for _ in 0..3 {
            let _ = backend.check_result(&s1, failed.clone(), at(3));
        }
        assert!(!s1.is_up() && say(&backend, &s1, "up").is_empty() && !s1.is_up());
    }

    #[test]
    fn what_one_node_hears_another_does() {
        let (asking, following) = (backend(), backend());
        let (a, b) = (asking.server("s1").unwrap(), following.server("s1").unwrap());
        for line in ["up 50%", "drain", "maxconn:9", "ready down #x", "weight:3 up", "maint", "ready"] {
            let said = say(&asking, &a, line);
            let taken = following.apply_agent(&b, &a.agent_verdict(), at(2)).unwrap();
            assert_eq!(said, taken.notices.into_iter().map(|n| n.text).collect::<Vec<_>>(), "{line}");
            let all = |s: &Server| (s.status(), s.weight(), s.maxconn(), s.admin(), s.agent().last);
            assert_eq!(all(&a), all(&b), "{line}");
        }
    }
}
