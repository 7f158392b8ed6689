//! What agents do to servers: weight, limit, administrative and operational state.
//!
//! The check tasks bring the lines of agents here, their own or what the node that asks has told. Between
//! an agent and commands it counts who spoke last: every word of an agent carries the revision of the
//! command that it came after.

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
        let view = {
            let agent = &server.control.lock().agent;
            let mut view = agent.view;
            if let Some(said) = said {
                view.take(said, &agent.spoken, agent.forced);
            }
            view
        };
        self.take_view(server, view, Some(report), &mut standing, now)
    }

    /// Takes over what another node's probe of the agent has come to.
    pub fn apply_agent(&self, server: &Arc<Server>, verdict: &Verdict, now: Now) -> Option<Effects> {
        let mut standing = self.control.lock();
        if verdict.forced < server.control.lock().agent.forced {
            return None;
        }
        // From a node that does not tell when: after the commands that this one has carried out.
        let view = View::parse(&verdict.said, &server.control.lock().agent.spoken);
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
        let view = {
            let agent = &mut server.control.lock().agent;
            agent.last = report.or(agent.last.take());
            agent.view = view;
            view.standing(&agent.spoken)
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
        if let Some(admin) = view.admin {
            self.change_admin(server, admin, standing, now, &mut effects);
        }
        self.follow_agent(server, &reason, standing, now, &mut effects);
        self.announce_if_empty(standing, &mut effects);
        effects
    }

    /// `set server … agent up|down`, once.
    pub(super) fn force_agent(
        &self,
        server: &Arc<Server>,
        (up, revision): (bool, u64),
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        {
            let agent = &mut server.control.lock().agent;
            if std::mem::replace(&mut agent.forced, revision) >= revision || agent.view.down_after >= revision
            {
                // Done before, or the agent has spoken since, as the node that asked it says.
                return;
            }
            (agent.view.down, agent.view.down_after) = (!up, revision);
        }
        self.follow_agent(server, ", changed from CLI", standing, now, effects);
        self.announce_if_empty(standing, effects);
    }

    /// `enable agent`, `disable agent`: what it said of up and down counts again, or no more.
    pub(super) fn switch_agent(
        &self,
        server: &Arc<Server>,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        if std::mem::take(&mut server.control.lock().agent.switched) {
            self.follow_agent(server, ", changed from CLI", standing, now, effects);
        }
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

/// What an agent has said and no command since counts above what commands and the configuration say.
///
/// Not while it is disabled, unlike in HAProxy: no claim carries its words then, so a node that starts could
/// never learn them.
pub(super) fn over(server: &Server, eff: &mut Effective) {
    let agent = &server.control.lock().agent;
    if agent.configured && agent.enabled {
        let view = agent.view.standing(&agent.spoken);
        eff.weight = view.weight.or(eff.weight);
        eff.maxconn = view.maxconn.or(eff.maxconn);
        eff.admin = view.admin.or(eff.admin);
    }
}

/// Whether agents are asked, and where, as configuration and commands say.
pub(super) fn settle(server: &Server, eff: &registry::AgentEffective, spoken: registry::Revisions) {
    let options = server.options();
    let by_default = server.origin() == crate::server::Origin::Config;
    let agent = &mut server.control.lock().agent;
    let enabled = options.agent_check && eff.enabled.unwrap_or(by_default);
    agent.switched |= agent.configured && agent.enabled != enabled;
    (agent.configured, agent.enabled) = (options.agent_check, enabled);
    agent.spoken = spoken;
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
    use crate::registry::{
        Admin, AgentChange, Base, Change, Command, Origin, Registry, Reply, Revisions, Target, Weight,
    };
    use crate::testing::{at, section, servers};
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

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

    /// A command as every node carries it out.
    fn command(registry: &mut Registry, nodes: &[&Backend], server: &Server, change: Change) {
        let base = Base::of(&server.config());
        let target = Target { backend: "b".into(), name: "s1".into(), origin: Origin::Config, base };
        let command = Command::SetServer { target, change: change.beside_an_agent() };
        assert_eq!(registry.apply(&command), Reply::Ok);
        for node in nodes {
            carry_out(node, registry);
        }
    }

    fn carry_out(node: &Backend, registry: &Registry) {
        let none = |_: &str, _: &registry::Added| Err(String::new());
        let config = node.config().clone();
        let _ = node.apply(&config, node.fullconn(), registry, &none, at(2));
    }

    #[test]
    fn who_spoke_last_counts_an_agent_or_a_command() {
        let (backend, mut registry) = (backend(), Registry::new());
        let s1 = backend.server("s1").unwrap();
        let weight = |n| Change::Weight(Weight::Absolute(n));
        let nodes = [&backend];
        say(&backend, &s1, "up 50% maxconn:4");
        command(&mut registry, &nodes, &s1, weight(7));
        command(&mut registry, &nodes, &s1, Change::Maxconn(9));
        assert_eq!((s1.weight(), s1.maxconn()), (7, 9));
        say(&backend, &s1, "up");
        assert_eq!((s1.weight(), s1.maxconn()), (7, 9), "what it does not mention stays");
        say(&backend, &s1, "50%");
        assert_eq!((s1.weight(), s1.maxconn()), (5, 9));
        // The same command once more is a later one.
        command(&mut registry, &nodes, &s1, weight(7));
        assert_eq!(s1.weight(), 7);
        say(&backend, &s1, "drain");
        assert_eq!(s1.status(), "DRAIN (agent)");
        command(&mut registry, &nodes, &s1, Change::Admin(Admin::Ready));
        say(&backend, &s1, "up");
        assert!(s1.usable(), "{}", s1.status());
        command(&mut registry, &nodes, &s1, Change::Admin(Admin::Maint));
        say(&backend, &s1, "up");
        assert_eq!(s1.status(), "MAINT");
        say(&backend, &s1, "ready");
        assert!(s1.usable(), "{}", s1.status());
        // Whoever it was, a command about something else changes nothing of it.
        command(&mut registry, &nodes, &s1, weight(3));
        assert!(s1.usable() && s1.weight() == 3);
        // Up and down in the same way.
        say(&backend, &s1, "down");
        command(&mut registry, &nodes, &s1, Change::Agent(AgentChange::Force(true)));
        assert!(s1.is_up());
        say(&backend, &s1, "down");
        command(&mut registry, &nodes, &s1, weight(4));
        assert!(!s1.is_up() && s1.status() == "DOWN (agent)");
        say(&backend, &s1, "up 20%");
        // What one that is disabled has said does not count: a node that starts now shows the same.
        say(&backend, &s1, "maint");
        command(&mut registry, &nodes, &s1, Change::Agent(AgentChange::Enabled(false)));
        let fresh = self::backend();
        carry_out(&fresh, &registry);
        let shown = |s: &Server| (s.status(), s.weight(), s.maxconn(), s.admin());
        assert_eq!((s1.weight(), shown(&s1)), (4, shown(&fresh.server("s1").unwrap())));
        command(&mut registry, &nodes, &s1, weight(6));
        assert_eq!(s1.weight(), 6);
        // Nothing is left of it with the server.
        assert_ne!(registry.spoken("b", "s1"), Revisions::default());
        command(&mut registry, &nodes, &s1, Change::Admin(Admin::Maint));
        let base = Base::of(&s1.config());
        let target = Target { backend: "b".into(), name: "s1".into(), origin: Origin::Config, base };
        registry.apply(&Command::DelServer { target });
        assert_eq!(registry.spoken("b", "s1"), Revisions::default());
    }

    #[test]
    fn nodes_find_the_same_order_of_agent_and_commands() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (asking, following) = (backend(), backend());
            let (a, b) = (asking.server("s1").unwrap(), following.server("s1").unwrap());
            let mut registry = Registry::new();
            let mut log = vec![registry.clone()];
            let (mut heard_a, mut heard_b) = (0, 0);
            for _ in 0..20 {
                let words =
                    ["up", "down", "25%", "up 50%", "drain", "ready", "maint up", "maxconn:3", "maxconn:5"];
                match rng.random_range(0..4) {
                    0 | 1 => drop(say(&asking, &a, words[rng.random_range(0..words.len())])),
                    _ => {
                        let change = match rng.random_range(0..6) {
                            0 => Change::Weight(Weight::Absolute(rng.random_range(0..9))),
                            1 => Change::Maxconn(rng.random_range(1..9)),
                            2 => Change::Agent(AgentChange::Force(rng.random())),
                            3 => Change::Agent(AgentChange::Enabled(rng.random())),
                            _ => Change::Admin(
                                [Admin::Ready, Admin::Drain, Admin::Maint][rng.random_range(0..3)],
                            ),
                        };
                        command(&mut registry, &[], &a, change);
                        log.push(registry.clone());
                    }
                }
                // Each carries the commands out when it hears of them, in the order of the log, and the
                // verdicts come in between.
                heard_a = rng.random_range(heard_a..log.len());
                heard_b = rng.random_range(heard_b..log.len());
                carry_out(&asking, &log[heard_a]);
                carry_out(&following, &log[heard_b]);
                if rng.random() {
                    let _ = following.apply_agent(&b, &a.agent_verdict(), at(3));
                }
            }
            carry_out(&asking, &registry);
            carry_out(&following, &registry);
            let _ = following.apply_agent(&b, &a.agent_verdict(), at(4)).unwrap();
            let all = |s: &Server| (s.status(), s.weight(), s.maxconn(), s.admin(), s.op_state());
            assert_eq!(all(&a), all(&b), "seed {seed}");
        }
    }

    #[test]
    fn words_without_an_order_end_with_the_next_command() {
        let (node, mut registry) = (backend(), Registry::new());
        let s1 = node.server("s1").unwrap();
        let weight = |n| Change::Weight(Weight::Absolute(n));
        command(&mut registry, &[&node], &s1, weight(7));
        let verdict = Verdict { said: "down=0 weight=50%".to_owned(), ..s1.agent_verdict() };
        let _ = node.apply_agent(&s1, &verdict, at(2)).unwrap();
        assert_eq!(s1.weight(), 5);
        command(&mut registry, &[&node], &s1, weight(3));
        assert_eq!(s1.weight(), 3);
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
