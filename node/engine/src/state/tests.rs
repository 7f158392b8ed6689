use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use phalanx_config::model::{Balance, Proxy, ServerOptions};

use crate::backend::{Ask, Choice, Slot};
use crate::counters::Worker;
use crate::registry::frontends::{Accepts, FrontendBase, FrontendChange, FrontendCommand};
use crate::registry::{Admin, Base, Change, Command, Origin, Reply, Target, Weight};
use crate::server::{self, Server};
use crate::testing::{at, config, section, server as line, servers};

use super::*;

fn setup() -> Setup {
    Setup { workers: 2, seed: 1, default_maxconn: 100, node: "n1".into() }
}

fn state(section: Proxy) -> Arc<State> {
    State::new(config(section), setup(), Tables::new("n1", 1, 1), at(0))
}

fn webservers(weights: &[u32]) -> Proxy {
    let options = |&weight: &u32| ServerOptions { weight, check: true, ..ServerOptions::default() };
    section(Balance::RoundRobin, servers(&weights.iter().map(options).collect::<Vec<_>>()))
}

fn backend(state: &State) -> Arc<Backend> {
    state.plan().backend("b").unwrap().clone()
}

fn get(state: &State, name: &str) -> Arc<Server> {
    backend(state).server(name).unwrap()
}

fn names(state: &State) -> Vec<String> {
    backend(state).servers().iter().map(|s| s.name().to_string()).collect()
}

fn slot(backend: &Arc<Backend>) -> Slot {
    let src = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ask = Ask { key: None, src, directed: None, avoid: None, worker: Worker(0), draw: 0 };
    match backend.choose(&ask) {
        Choice::Slot(slot) => slot,
        other => panic!("{other:?}"),
    }
}

fn target(server: &Server) -> Target {
    Target {
        backend: "b".into(),
        name: server.name().to_string(),
        origin: match server.origin() {
            server::Origin::Config => Origin::Config,
            server::Origin::Runtime => Origin::Added,
        },
        base: Base::of(&server.config()),
    }
}

fn set(registry: &mut Registry, server: &Server, change: Change) {
    let reply = registry.apply(&Command::SetServer { target: target(server), change });
    assert_eq!(reply, Reply::Ok);
}

fn add(registry: &mut Registry, name: &str, args: &[&str]) {
    let reply = registry.apply(&Command::AddServer {
        backend: "b".into(),
        name: name.into(),
        host: "127.0.0.1".into(),
        addr: "127.0.0.1:9804".parse().unwrap(),
        args: args.iter().map(|a| a.to_string()).collect(),
        id_hint: 3,
    });
    assert!(matches!(reply, Reply::Text(_)), "{reply:?}");
}

#[test]
fn an_added_server_serves_once_enabled_and_leaves_in_peace() {
    let state = state(webservers(&[1, 1]));
    let mut registry = Registry::new();
    add(&mut registry, "s4", &["check", "cookie", "s4", "weight", "2"]);
    let _ = state.reconcile(&registry, at(10));
    let s4 = get(&state, "s4");
    assert_eq!((s4.id(), s4.weight(), s4.status()), (3, 2, "MAINT".into()));
    assert!(!s4.check().enabled && !s4.usable());
    assert_eq!(backend(&state).server_by_cookie(b"s4").unwrap().id(), 3);

    set(&mut registry, &s4, Change::Admin(Admin::Ready));
    set(&mut registry, &s4, Change::Check(true));
    let effects = state.reconcile(&registry, at(20));
    let lines: Vec<_> = effects[0].1.notices.iter().map(|n| n.text.clone()).collect();
    assert_eq!(lines, ["Server b/s4 is UP/READY (leaving forced maintenance)."]);
    assert!(s4.usable() && s4.check_runs());
    let held: Vec<Slot> = (0..4).map(|_| slot(&backend(&state))).collect();
    assert_eq!(s4.served(), 2);

    // The same again changes nothing.
    assert!(state.reconcile(&registry, at(30))[0].1.notices.is_empty());
    assert!(Arc::ptr_eq(&s4, &get(&state, "s4")));

    set(&mut registry, &s4, Change::Admin(Admin::Maint));
    assert!(matches!(registry.apply(&Command::DelServer { target: target(&s4) }), Reply::Text(_)));
    let _ = state.reconcile(&registry, at(40));
    assert_eq!(names(&state), ["s1", "s2"]);
    assert!(s4.is_removed() && s4.served() == 2);
    drop(held);
    assert_eq!(s4.served(), 0);
}

#[test]
fn a_reload_keeps_what_was_set_at_run_time_unless_it_changes_the_same_value() {
    let state = state(webservers(&[1, 1]));
    let (s1, s2) = (get(&state, "s1"), get(&state, "s2"));
    let mut registry = Registry::new();
    set(&mut registry, &s1, Change::Weight(Weight::Absolute(50)));
    set(&mut registry, &s1, Change::Maxconn(7));
    set(&mut registry, &s2, Change::Admin(Admin::Drain));
    let _ = state.reconcile(&registry, at(10));
    let held = slot(&backend(&state));
    assert_eq!((s1.weight(), s1.maxconn(), s1.served(), s2.status()), (50, 7, 1, "DRAIN 1/3".into()));

    let mut changed = webservers(&[1, 1, 1]);
    Arc::make_mut(&mut changed.servers[0]).options.rise = 5;
    let report = state.load(config(changed.clone()), at(20));
    assert!(report.added.is_empty() && report.removed.is_empty());
    assert!(Arc::ptr_eq(&s1, &get(&state, "s1")));
    assert_eq!((s1.weight(), s1.maxconn(), s1.served(), s1.check().health.rise()), (50, 7, 1, 5));
    assert!(s2.admin().drain());
    assert_eq!((names(&state).len(), state.plan().epoch), (3, 2));

    Arc::make_mut(&mut changed.servers[0]).options.weight = 10;
    let _ = state.load(config(changed), at(30));
    assert_eq!((s1.weight(), s1.initial_weight(), s1.maxconn()), (10, 10, 7));

    // A server that the file no longer has keeps its session, and takes no other.
    let _ = state
        .load(config(section(Balance::RoundRobin, vec![line("s2", 2, ServerOptions::default())])), at(40));
    assert_eq!(names(&state), ["s2"]);
    assert!(s1.is_removed() && s1.served() == 1);
    drop(held);
}

#[test]
fn a_reload_keeps_added_and_deleted_servers() {
    let state = state(webservers(&[1, 1]));
    let mut registry = Registry::new();
    add(&mut registry, "s4", &[]);
    let s1 = get(&state, "s1");
    set(&mut registry, &s1, Change::Admin(Admin::Maint));
    let _ = registry.apply(&Command::DelServer { target: target(&s1) });
    let _ = state.reconcile(&registry, at(10));
    assert_eq!(names(&state), ["s2", "s4"]);
    let _ = state.load(config(webservers(&[1, 1])), at(20));
    assert_eq!(names(&state), ["s2", "s4"]);
}

#[test]
fn state_is_kept_by_name_when_numbers_shift() {
    let state = state(webservers(&[1, 1]));
    let (s2, was) = (get(&state, "s2"), backend(&state));
    let mut registry = Registry::new();
    add(&mut registry, "s4", &["weight", "5"]);
    let _ = state.reconcile(&registry, at(5));
    let s4 = get(&state, "s4");
    set(&mut registry, &s4, Change::Admin(Admin::Ready));
    let _ = state.reconcile(&registry, at(6));
    let held: Vec<Slot> = (0..7).map(|_| slot(&backend(&state))).collect();
    assert_eq!((s2.served(), s4.served()), (1, 5));
    // Sections and servers come before, and the file now has s4 as well.
    let options = ServerOptions::default;
    let lines = vec![line("s0", 1, options()), line("s2", 2, options()), line("s4", 7, options())];
    let mut moved = section(Balance::RoundRobin, lines);
    moved.id = 9;
    let new = config(moved);
    assert!(
        registry.rebase_command(&state.plan().config, &new).is_some_and(|c| registry.apply(&c) == Reply::Ok)
    );
    let _ = state.load(new, at(10));
    let _ = state.reconcile(&registry, at(11));
    assert!(Arc::ptr_eq(&was, &backend(&state)) && backend(&state).id() == 9);
    assert!(Arc::ptr_eq(&s2, &get(&state, "s2")) && Arc::ptr_eq(&s4, &get(&state, "s4")));
    assert_eq!((s2.served(), s4.served(), s4.id(), s4.weight()), (1, 5, 7, 1));
    assert!(s4.origin() == server::Origin::Config && s4.usable());
    assert_eq!(names(&state), ["s0", "s2", "s4"]);
    drop(held);
}

#[test]
fn a_forced_health_is_carried_out_once() {
    let state = state(webservers(&[1]));
    let (mut registry, s1) = (Registry::new(), get(&state, "s1"));
    set(&mut registry, &s1, Change::Health(crate::registry::Force::Down));
    let _ = state.reconcile(&registry, at(10));
    assert_eq!(s1.status(), "DOWN");
    let up = crate::health::Report { status: crate::health::CheckStatus::L4Ok, ..Default::default() };
    for _ in 0..2 {
        let _ = backend(&state).check_result(&s1, up.clone(), at(20));
    }
    let _ = state.reconcile(&registry, at(30));
    assert_eq!(s1.status(), "UP");
}

#[test]
fn maxconn_counts_connections_of_frontend_and_process() {
    let mut front = section(Balance::RoundRobin, Vec::new());
    front.kind = model::ProxyKind::Listen;
    front.maxconn = Some(2);
    let state = state(front.clone());
    let frontend = state.plan().frontend("b").unwrap().clone();
    assert!(frontend.enter() && frontend.enter());
    assert!(!frontend.enter());
    assert_eq!((frontend.status_text(), frontend.conns_max()), ("FULL", 2));
    front.maxconn = Some(3);
    let _ = state.load(config(front), at(1));
    assert!(frontend.enter());
    (0..3).for_each(|_| frontend.leave());
    assert_eq!(frontend.conns(), 0);

    state.process().set_maxconn(1);
    assert!(state.process().enter() && !state.process().enter());
    state.process().leave();
    assert!(state.process().enter());
}

#[test]
fn sessions_are_listed_and_told_to_end() {
    let mut with_server = webservers(&[1]);
    Arc::make_mut(&mut with_server.servers[0]).options.shutdown_sessions_on_down = true;
    let state = state(with_server);
    let client = "127.0.0.1:1".parse().unwrap();
    let frontend = Arc::new(Frontend::new(Arc::new(section(Balance::RoundRobin, Vec::new())), 1, 1));
    let first = state.sessions().enter(Worker(1), client, client, frontend.clone(), at(1));
    let second = state.sessions().enter(Worker(0), client, client, frontend, at(2));
    let s1 = get(&state, "s1");
    second.note(Some(&backend(&state)), Some(&s1), sessions::Phase::Data);
    assert_eq!(state.sessions().all().len(), 2);
    let waker = std::task::Waker::noop();
    assert!(!second.poll_killed(waker));
    let mut registry = Registry::new();
    set(&mut registry, &s1, Change::Admin(Admin::Maint));
    let _ = state.reconcile(&registry, at(3));
    assert!(second.poll_killed(waker) && !first.poll_killed(waker));
    assert_eq!(second.killed(), Some(Kill::Down));
    state.sessions().leave(&first);
    assert!(Arc::ptr_eq(&state.sessions().all()[0], &second) && state.sessions().all().len() == 1);
}

#[test]
fn a_reload_leaves_frontends_as_commands_made_them() {
    let mut front = section(Balance::RoundRobin, servers(&[ServerOptions::default()]));
    front.kind = phalanx_config::ProxyKind::Listen;
    let state = state(front.clone());
    let mut registry = Registry::new();
    let both = [
        (Accepts::Paused, Status::Paused),
        (Accepts::Stopped, Status::Stopped),
        (Accepts::Open, Status::Open),
    ];
    for (accepts, after) in both {
        let frontend = state.plan().frontend("b").unwrap().clone();
        let (name, base) = ("b".to_string(), FrontendBase::of(&front));
        let change = FrontendChange::Accepts(accepts);
        let _ = registry.apply(&Command::Frontend(FrontendCommand { name, base, change }));
        let _ = state.reconcile(&registry, at(1));
        let _ = state.load(config(front.clone()), at(2));
        assert!(Arc::ptr_eq(&frontend, state.plan().frontend("b").unwrap()));
        assert_eq!(frontend.status(), after);
    }
}

#[test]
fn checks_go_where_a_command_sends_them_until_the_configuration_says_otherwise() {
    let state = state(webservers(&[1, 1]));
    let (mut registry, own) = (Registry::new(), get(&state, "s1").addr());
    set(&mut registry, &get(&state, "s1"), Change::CheckAddr { ip: None, port: Some(99) });
    let _ = state.reconcile(&registry, at(1));
    assert_eq!(get(&state, "s1").check_addr(), SocketAddr::new(own.ip(), 99));
    assert_eq!((get(&state, "s1").addr(), get(&state, "s2").check().port), (own, None));
    let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    set(&mut registry, &get(&state, "s1"), Change::CheckAddr { ip: Some(other), port: None });
    let _ = state.reconcile(&registry, at(2));
    let _ = state.load(config(webservers(&[1, 1])), at(3));
    assert_eq!(get(&state, "s1").check_addr(), SocketAddr::new(other, 99));
    let mut changed = webservers(&[1, 1]);
    Arc::make_mut(&mut changed.servers[0]).options.check_port = Some(7);
    let _ = state.load(config(changed), at(4));
    assert_eq!(get(&state, "s1").check_addr(), SocketAddr::new(other, 7));
}
