//! Unit tests of the registry, and a seeded property test: any log gives the same state on every
//! node, whether replayed whole or from a snapshot.

use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn base(weight: u32) -> Base {
    Base {
        disabled: false,
        weight,
        host: "127.0.0.1".into(),
        addr: addr(9801),
        check: true,
        maxconn: 0,
        check_ip: None,
        check_port: None,
    }
}

fn target(name: &str, origin: Origin, base: Base) -> Target {
    Target { backend: "web".into(), name: name.into(), origin, base }
}

fn add(name: &str, id_hint: u32) -> Command {
    Command::AddServer {
        backend: "web".into(),
        name: name.into(),
        host: "127.0.0.1".into(),
        addr: addr(9804),
        args: vec!["check".into()],
        id_hint,
    }
}

fn set(target: Target, change: Change) -> Command {
    Command::SetServer { target, change }
}

fn rebase(name: &str, from: Option<Base>, to: Option<Base>) -> Command {
    Command::Rebase { servers: vec![Rebased { backend: "web".into(), name: name.into(), from, to }] }
}

fn refusal(reply: Reply) -> String {
    match reply {
        Reply::Refused(text) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn added_servers_get_ids_above_the_configured_ones() {
    let mut r = Registry::new();
    assert_eq!(r.apply(&add("s4", 4)), Reply::Text("New server registered.".into()));
    assert_eq!(r.apply(&add("s5", 4)), Reply::Text("New server registered.".into()));
    assert_eq!(r.added_server("web", "s4").unwrap().id, 4);
    assert_eq!(r.added_server("web", "s5").unwrap().id, 5);
    // A node whose configuration has more servers raises the floor for all.
    r.apply(&add("s6", 10));
    r.apply(&add("s7", 1));
    assert_eq!(r.added_server("web", "s6").unwrap().id, 10);
    assert_eq!(r.added_server("web", "s7").unwrap().id, 11);
}

#[test]
fn add_server_refuses_a_name_that_exists() {
    let mut r = Registry::new();
    r.apply(&add("s4", 4));
    let before = r.clone();
    let text = refusal(r.apply(&add("s4", 4)));
    assert_eq!(text, "Already exists a server with the same name in backend.");
    assert_eq!(r.backends, before.backends);
}

#[test]
fn del_server_wants_maintenance() {
    let mut r = Registry::new();
    r.apply(&add("s4", 4));
    let s4 = || target("s4", Origin::Added, base(1));
    r.apply(&set(s4(), Change::Admin(Admin::Ready)));
    let text = refusal(r.apply(&Command::DelServer { target: s4() }));
    assert_eq!(text, "Only servers in maintenance mode can be deleted.");
    r.apply(&set(s4(), Change::Admin(Admin::Maint)));
    assert_eq!(r.apply(&Command::DelServer { target: s4() }), Reply::Text("Server deleted.".into()));
    assert_eq!(r.added("web").count(), 0);
    assert_eq!(refusal(r.apply(&Command::DelServer { target: s4() })), "No such server.");
    assert_eq!(refusal(r.apply(&set(s4(), Change::Check(true)))), "No such server.");
}

#[test]
fn a_server_added_again_starts_afresh() {
    let mut r = Registry::new();
    let s4 = || target("s4", Origin::Added, base(1));
    r.apply(&add("s4", 4));
    let first = r.added_server("web", "s4").unwrap().revision;
    r.apply(&set(s4(), Change::Weight(Weight::Absolute(7))));
    r.apply(&Command::DelServer { target: s4() });
    r.apply(&add("s4", 4));
    assert_eq!(r.effective("web", "s4", &base(1)), Effective::default());
    assert_ne!(r.added_server("web", "s4").unwrap().revision, first);
}

#[test]
fn a_deleted_configured_server_comes_back_only_with_another_line() {
    let mut r = Registry::new();
    let s1 = || target("s1", Origin::Config, base(1));
    assert_eq!(
        refusal(r.apply(&Command::DelServer { target: s1() })),
        "Only servers in maintenance mode can be deleted."
    );
    r.apply(&set(s1(), Change::Admin(Admin::Maint)));
    assert_eq!(r.apply(&Command::DelServer { target: s1() }), Reply::Text("Server deleted.".into()));
    assert!(r.deleted("web", "s1", &base(1)));
    assert_eq!(refusal(r.apply(&set(s1(), Change::Check(true)))), "No such server.");
    let moved = Base { addr: addr(9999), ..base(1) };
    assert!(!r.deleted("web", "s1", &moved));
    // One node reloads; on the others, with the old line, it stays deleted.
    r.apply(&rebase("s1", Some(base(1)), None));
    assert!(r.deleted("web", "s1", &base(1)));
    // The configuration has it again: that is newer than the deletion.
    r.apply(&rebase("s1", None, Some(base(1))));
    assert!(!r.deleted("web", "s1", &base(1)));
}

#[test]
fn an_added_server_that_is_put_into_the_configuration_stays_until_all_have_it() {
    let mut r = Registry::new();
    r.apply(&add("s4", 4));
    r.apply(&rebase("s4", None, Some(base(1))));
    assert!(r.added_server("web", "s4").is_some(), "for the nodes that have not reloaded");
    // Taken out of the configuration again: it does not come back as an added one.
    r.apply(&rebase("s4", Some(base(1)), None));
    assert!(r.added_server("web", "s4").is_none());
}

#[test]
fn a_changed_configuration_wins_over_the_override_of_that_value_only() {
    let mut r = Registry::new();
    let s1 = || target("s1", Origin::Config, base(1));
    r.apply(&set(s1(), Change::Weight(Weight::Absolute(10))));
    r.apply(&set(s1(), Change::Maxconn(5)));
    let now = r.effective("web", "s1", &base(1));
    assert_eq!((now.weight, now.maxconn), (Some(Weight::Absolute(10)), Some(5)));
    let later = r.effective("web", "s1", &base(20));
    assert_eq!((later.weight, later.maxconn), (None, Some(5)));
}

#[test]
fn a_server_that_only_some_configurations_have_is_deleted_on_all_nodes() {
    for origin in [Origin::Config, Origin::Added] {
        let mut r = Registry::new();
        r.apply(&add("s4", 4));
        r.apply(&rebase("s4", None, Some(base(1))));
        r.apply(&set(target("s4", origin, base(1)), Change::Admin(Admin::Maint)));
        let reply = r.apply(&Command::DelServer { target: target("s4", origin, base(1)) });
        assert_eq!(reply, Reply::Text("Server deleted.".into()));
        assert!(r.added_server("web", "s4").is_none() && r.deleted("web", "s4", &base(1)), "{origin:?}");
    }
}

#[test]
fn an_override_does_not_come_back_with_the_value_that_it_replaced() {
    let mut r = Registry::new();
    let s1 = |w| target("s1", Origin::Config, base(w));
    let weight = |r: &Registry, w| r.effective("web", "s1", &base(w)).weight;
    let reload = |from, to| rebase("s1", Some(base(from)), Some(base(to)));
    r.apply(&set(s1(1), Change::Weight(Weight::Absolute(10))));
    r.apply(&reload(1, 20));
    assert_eq!(weight(&r, 20), None, "on the node that reloaded");
    assert_eq!(weight(&r, 1), Some(Weight::Absolute(10)), "on a node that has not");
    r.apply(&reload(20, 1));
    assert_eq!(weight(&r, 1), None, "the newer configuration wins");
    assert!(r.backends["web"].servers.is_empty(), "nothing is kept of it");
}

#[test]
fn when_commands_spoke_outlasts_their_overrides_but_not_the_server() {
    let mut r = Registry::new();
    let change = Change::Weight(Weight::Absolute(10)).beside_an_agent();
    r.apply(&set(target("s1", Origin::Config, base(1)), change));
    let spoken = r.spoken("web", "s1");
    r.apply(&rebase("s1", Some(base(1)), Some(base(20))));
    r.apply(&rebase("s1", Some(base(20)), Some(base(1))));
    assert!(r.backends["web"].servers.is_empty() && spoken.weight > 0);
    assert_eq!(r.spoken("web", "s1"), spoken);
    r.apply(&rebase("s1", Some(base(1)), None));
    assert_eq!(r.spoken("web", "s1"), Revisions::default());
}

#[test]
fn a_late_reload_does_not_end_an_override_of_the_new_value() {
    let mut r = Registry::new();
    let s1 = target("s1", Origin::Config, base(20));
    r.apply(&set(s1, Change::Weight(Weight::Percent(50))));
    r.apply(&rebase("s1", Some(base(1)), Some(base(20))));
    assert_eq!(r.effective("web", "s1", &base(20)).weight, Some(Weight::Percent(50)));
}

#[test]
fn weights_are_relative_to_the_configured_one_and_capped() {
    assert_eq!(Weight::Percent(50).of(10), 5);
    assert_eq!(Weight::Percent(1000).of(200), 256);
    assert_eq!(Weight::Percent(u32::MAX).of(256), 256);
    assert_eq!(Weight::Absolute(300).of(1), 256);
    assert_eq!(Weight::Absolute(0).of(1), 0);
}

#[test]
fn a_retried_command_is_applied_once() {
    let mut r = Registry::new();
    let id = CommandId { node: 1, incarnation: 7, seq: 3 };
    let request = Request { id, done_below: 3, command: add("s4", 4) };
    let first = r.apply_request(&request);
    assert_eq!(first, Reply::Text("New server registered.".into()));
    assert_eq!(r.apply_request(&request), first);
    assert_eq!(r.revision(), 1);
    // Finished since: a late copy is refused, not applied.
    let next = CommandId { seq: 4, ..id };
    r.apply_request(&Request {
        id: next,
        done_below: 4,
        command: set(target("s4", Origin::Added, base(1)), Change::Check(true)),
    });
    assert_eq!(refusal(r.apply_request(&request)), "The command came too late.");
    // The same number in another run of the process is another command.
    let other = CommandId { incarnation: 8, ..id };
    let reply = r.apply_request(&Request { id: other, done_below: 0, command: add("s5", 4) });
    assert_eq!(reply, Reply::Text("New server registered.".into()));
}

#[test]
fn kept_replies_are_bounded() {
    let mut r = Registry::new();
    for seq in 1..=(replies::KEPT as u64 + 100) {
        let id = CommandId { node: 1, incarnation: 1, seq };
        r.apply_request(&Request { id, done_below: 0, command: Command::Rebase { servers: vec![] } });
    }
    for incarnation in 2..20 {
        let id = CommandId { node: 1, incarnation, seq: 1 };
        r.apply_request(&Request { id, done_below: 0, command: Command::Rebase { servers: vec![] } });
    }
    let bytes = postcard::to_stdvec(&r).unwrap();
    assert!(bytes.len() < 64 * 1024, "{} bytes", bytes.len());
}

#[test]
fn what_a_node_that_left_said_of_epochs_makes_room() {
    let mut r = Registry::new();
    let new = |name: &str| NewMember { name: name.into(), addr: format!("{name}:1"), witness: false };
    r.apply(&Command::Member(MemberCommand::Found { id: 7, nodes: ["n1", "n2"].map(new).to_vec() }));
    for node in ["n1", "n2"] {
        let said =
            epochs::ConfigCommand::Report { wanted: 0, runs: 0, node: node.into(), run: 1, error: None };
        r.apply(&Command::Config(said));
        assert!(r.epochs().mark(node).is_some());
    }
    r.apply(&Command::Member(MemberCommand::Leave { name: "n2".into() }));
    r.apply(&Command::Member(MemberCommand::Remove { name: "n2".into(), config: 1 }));
    assert!(r.epochs().mark("n1").is_some() && r.epochs().mark("n2").is_none());
}

fn random_command(rng: &mut StdRng) -> Command {
    let name = format!("s{}", rng.random_range(1..6));
    let origin = if rng.random_bool(0.5) { Origin::Added } else { Origin::Config };
    let base = Base { disabled: rng.random_bool(0.3), ..base(rng.random_range(1..3)) };
    let target = target(&name, origin, base.clone());
    match rng.random_range(0..10) {
        0..3 => add(&name, rng.random_range(0..8)),
        3..5 => Command::DelServer { target },
        5 => {
            let from = rng.random_bool(0.7).then(|| base.clone());
            let to = rng.random_bool(0.7).then_some(Base { weight: 9, ..base });
            Command::Rebase { servers: vec![Rebased { backend: "web".into(), name, from, to }] }
        }
        _ => {
            let change = match rng.random_range(0..7) {
                0 => Change::Admin(Admin::Maint),
                1 => Change::Admin(Admin::Ready),
                2 => Change::Weight(Weight::Percent(rng.random_range(0..300))),
                3 => Change::Addr { ip: [10, 0, 0, 1].into(), port: rng.random_bool(0.5).then_some(80) },
                4 => Change::Check(rng.random()),
                5 => Change::CheckAddr { ip: None, port: Some(rng.random_range(1..9)) },
                _ => Change::Health(Force::Down),
            };
            set(target, change)
        }
    }
}

#[test]
fn any_log_gives_the_same_state_whole_or_from_a_snapshot() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Vec::new();
        for _ in 0..rng.random_range(1..80) {
            if !log.is_empty() && rng.random_bool(0.2) {
                let at = rng.random_range(0..log.len());
                let copy: Request = Clone::clone(&log[at]);
                log.push(copy);
                continue;
            }
            let id = CommandId {
                node: rng.random_range(1..4),
                incarnation: rng.random_range(1..3),
                seq: rng.random_range(1..60),
            };
            let done_below = rng.next_u64() % (id.seq + 2);
            log.push(Request { id, done_below, command: random_command(&mut rng) });
        }
        let mut whole = Registry::new();
        let replies: Vec<Reply> = log.iter().map(|r| whole.apply_request(r)).collect();
        let cut = rng.random_range(0..=log.len());
        let mut other = Registry::new();
        let mut again: Vec<Reply> = log[..cut].iter().map(|r| other.apply_request(r)).collect();
        let bytes = postcard::to_stdvec(&other).unwrap();
        let bytes = [&bytes, Registry::LAST_EMPTY].concat();
        let mut other: Registry = postcard::from_bytes(&bytes).unwrap();
        again.extend(log[cut..].iter().map(|r| other.apply_request(r)));
        assert_eq!(whole, other, "seed {seed}, cut at {cut}");
        assert_eq!(replies, again, "seed {seed}, cut at {cut}");
    }
}

#[test]
fn a_snapshot_of_any_bytes_never_panics() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut r = Registry::new();
    for _ in 0..40 {
        r.apply(&random_command(&mut rng));
    }
    let good = postcard::to_stdvec(&r).unwrap();
    for _ in 0..5_000 {
        let mut bytes = good.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.random();
        bytes.truncate(rng.random_range(0..=bytes.len()));
        let _: Result<Registry, _> = postcard::from_bytes(&bytes);
    }
}

#[test]
fn a_name_stands_until_the_configuration_names_another() {
    let mut r = Registry::new();
    let named = |host: &str| Base { host: host.into(), ..base(1) };
    let set_name =
        |name: &str, host: &str| set(target("s", Origin::Config, named(host)), Change::Fqdn(name.into()));
    let before = postcard::to_stdvec(&r).unwrap();
    assert_eq!(r.apply(&set_name("new", "old")), Reply::Ok);
    assert_eq!(r.names().of("web", "s", "old"), Some("new"));
    assert_eq!(r.names().of("web", "s", "third"), None, "its line says something else");
    assert_eq!(r.names().of("web", "t", "old"), None);

    // It lasts over a snapshot; one of before has none, and one without names is as it was.
    let bytes = postcard::to_stdvec(&r).unwrap();
    assert_eq!(postcard::from_bytes::<Registry>(&bytes).unwrap(), r);
    let before = [&before, Registry::LAST_EMPTY].concat();
    assert!(postcard::from_bytes::<Registry>(&before).unwrap().names().is_empty());

    // Left and come back to: the command is not heard of again.
    r.apply(&rebase("s", Some(named("old")), Some(named("third"))));
    assert_eq!(r.names().of("web", "s", "old"), Some("new"), "on nodes that still say it");
    r.apply(&rebase("s", Some(named("third")), Some(named("old"))));
    assert!(r.names().is_empty());

    r.apply(&set_name("new", "old"));
    r.apply(&set_name("old", "old"));
    assert_eq!((r.names().is_empty(), r.digest() != 0), (true, true));
}
