//! What becomes of servers when something was agreed about their addresses: states, log lines, who
//! may be chosen.

use std::net::IpAddr;

use phalanx_config::{Source as File, StaticEnv};

use super::*;
use crate::discovery::{Instance, users};
use crate::registry::{Admin, Base, Change, Command, DiscoveryCommand, Found, Names, Origin, Target, Weight};
use crate::testing::at;

const CONFIG: &str = "\
resolvers dns
    nameserver ns1 127.0.0.1:53
consul c
    address 127.0.0.1:8500
defaults
    mode http
    timeout connect 1s
    timeout server 1s
backend b
    balance roundrobin
    server-template w COUNT consul(c)/web weight 3
    server fixed 127.0.0.9:80
    server name app.example:80 resolvers dns init-addr 10.0.0.1
    server srv _h._tcp.x resolvers dns
";

const WEB: &str = "consul(c)/web";

fn parsed(count: usize) -> Config {
    let text = CONFIG.replace("COUNT", &count.to_string());
    let outcome = phalanx_config::parse(&[File::new("t.cfg", text)], &StaticEnv::default());
    outcome.config.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics))
}

fn state() -> Arc<State> {
    let setup = Setup { workers: 1, seed: 1, default_maxconn: 100, node: "n1".into() };
    State::new(parsed(2), setup, Tables::new("n1", 1, 1), at(0))
}

fn found(state: &State, source: &str, instances: Vec<Instance>, why: Option<&str>) -> Command {
    let users = users(&state.plan().config, &Names::default())
        .remove(source)
        .expect("a source of the configuration")
        .1;
    Command::Discovered(DiscoveryCommand::Found(Found {
        source: source.to_owned(),
        reader: "n1".to_owned(),
        term: 1,
        index: 1,
        found_at: 0,
        why: why.map(str::to_owned),
        instances,
        users,
    }))
}

fn instance(n: u8, weight: u32) -> Instance {
    Instance::at([10, 0, 0, n].into(), 8000 + u16::from(n), Some(weight))
}

/// Applies a command; what is logged for it.
fn apply(state: &State, registry: &mut Registry, command: &Command) -> Vec<String> {
    registry.apply(command);
    let effects = state.reconcile(registry, at(1000));
    effects.into_iter().flat_map(|(_, effects)| effects.notices).map(|n| n.text).collect()
}

/// `name=address/weight/status` of all servers.
fn shown(state: &State) -> String {
    let backend = state.plan().backend("b").expect("the backend").clone();
    let one =
        |s: &Arc<crate::server::Server>| format!("{}={}/{}/{}", s.name(), s.addr(), s.weight(), s.status());
    backend.servers().iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn servers_wait_for_an_address_get_it_keep_it_and_lose_it() {
    let (state, mut registry) = (state(), Registry::new());
    let rest = "fixed=127.0.0.9:80/1/no check name=10.0.0.1:80/1/no check srv=0.0.0.0:0/1/MAINT (resolution)";
    let nothing = "0.0.0.0:0/3/MAINT (resolution)";
    assert_eq!(shown(&state), format!("w1={nothing} w2={nothing} {rest}"));

    let command = found(&state, WEB, vec![instance(1, 5)], None);
    assert_eq!(
        apply(&state, &mut registry, &command),
        [
            "b/w1 changed its IP from (none) to 10.0.0.1 by consul/c.",
            "Server b/w1 ('consul(c)/web') is UP/READY (resolves again).",
        ]
    );
    assert_eq!(shown(&state), format!("w1=10.0.0.1:8001/5/no check w2={nothing} {rest}"));
    assert!(apply(&state, &mut registry, &command).is_empty(), "nothing has changed");

    let other = found(&state, WEB, vec![instance(2, 5), instance(1, 6)], None);
    apply(&state, &mut registry, &other);
    assert_eq!(shown(&state), format!("w1=10.0.0.1:8001/6/no check w2=10.0.0.2:8002/5/no check {rest}"));

    let moved = found(&state, WEB, vec![instance(3, 5), instance(1, 6)], None);
    assert_eq!(
        apply(&state, &mut registry, &moved),
        ["b/w2 changed its IP from 10.0.0.2:8002 to 10.0.0.3:8003 by consul/c."]
    );
    let gone = found(&state, WEB, vec![instance(3, 5)], None);
    assert_eq!(
        apply(&state, &mut registry, &gone),
        ["Server b/w1 is going DOWN for maintenance (instance removed from Consul). 3 active and 0 backup \
          servers left. 0 sessions active, 0 requeued, 0 remaining in queue."]
    );
    assert_eq!(shown(&state), format!("w1={nothing} w2=10.0.0.3:8003/5/no check {rest}"));

    // A restart knows it from the start, and says nothing of it.
    let fresh = self::state();
    assert!(!fresh.reconcile(&registry, at(0)).is_empty());
    assert_eq!(shown(&fresh), shown(&state));
    // A reload with more servers keeps those that are there.
    let _ = state.load(parsed(3), at(2000));
    assert_eq!(shown(&state), format!("w1={nothing} w2=10.0.0.3:8003/5/no check w3={nothing} {rest}"));
}

#[test]
fn commands_on_a_server_outlast_its_addresses() {
    let (state, mut registry) = (state(), Registry::new());
    let w1 = || state.plan().backend("b").and_then(|b| b.server("w1")).expect("the server");
    let set = |change: Change| {
        let target = Target {
            backend: "b".to_owned(),
            name: "w1".to_owned(),
            origin: Origin::Config,
            base: Base::of(&w1().config()),
        };
        Command::SetServer { target, change }
    };
    apply(&state, &mut registry, &set(Change::Weight(Weight::Absolute(9))));
    let lines = apply(&state, &mut registry, &set(Change::Admin(Admin::Maint)));
    assert_eq!(lines, ["Server b/w1 enters forced maintenance, without an address."]);
    let command = found(&state, WEB, vec![instance(1, 5)], None);
    apply(&state, &mut registry, &command);
    assert_eq!((w1().status().as_str(), w1().weight(), w1().addr().port()), ("MAINT", 9, 8001));
    assert!(!w1().usable());
    apply(&state, &mut registry, &set(Change::Admin(Admin::Ready)));
    assert!(w1().usable());
    let nothing = found(&state, WEB, Vec::new(), None);
    apply(&state, &mut registry, &nothing);
    apply(&state, &mut registry, &set(Change::Admin(Admin::Drain)));
    assert_eq!(w1().status(), "MAINT (resolution)");
    let command = found(&state, WEB, vec![instance(1, 5)], None);
    apply(&state, &mut registry, &command);
    assert_eq!(w1().status(), "DRAIN");
}

#[test]
fn a_name_that_is_lost_takes_its_server_out_for_a_reason() {
    let (state, mut registry) = (state(), Registry::new());
    let ip: IpAddr = [10, 0, 0, 1].into();
    let source = "dns(dns)/app.example";
    let same = found(&state, source, vec![Instance::at(ip, 0, None)], None);
    assert!(apply(&state, &mut registry, &same).is_empty(), "it is where it started");
    let lost = found(&state, source, Vec::new(), Some("DNS NX status"));
    let lines = apply(&state, &mut registry, &lost);
    assert!(
        lines[0].starts_with("Server b/name is going DOWN for maintenance (DNS NX status). "),
        "{lines:?}"
    );
    let target = Instance { host: "h.x".into(), ips: vec![ip], port: 90, weight: Some(2) };
    let lines = apply(&state, &mut registry, &found(&state, "dns(dns)/_h._tcp.x", vec![target], None));
    assert_eq!(
        lines,
        [
            "b/srv changed its IP from (none) to 10.0.0.1 by dns/cluster.",
            "Server b/srv ('h.x') is UP/READY (resolves again).",
            "Server b/srv administratively READY thanks to valid DNS answer.",
        ]
    );
    assert!(shown(&state).ends_with("name=0.0.0.0:80/1/MAINT (resolution) srv=10.0.0.1:90/2/no check"));
}
