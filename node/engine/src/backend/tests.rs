use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use phalanx_config::model::{Balance, HashMethod, HashType, Proxy, ServerOptions};

use crate::counters::Worker;
use crate::health::{CheckStatus, Report};
use crate::server::OpState;
use crate::testing::{at, section, server, servers};

use super::*;

mod queueing;
mod simulation;

pub(super) fn backend(section: Proxy) -> Arc<Backend> {
    Arc::new(Backend::new(Arc::new(section), 100, 4, at(0)))
}

pub(super) fn ask<'a>() -> Ask<'a> {
    let src = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    Ask { key: None, src, directed: None, avoid: None, worker: Worker(0), draw: 0 }
}

pub(super) fn slot(backend: &Arc<Backend>, ask: &Ask<'_>) -> Slot {
    match backend.choose(ask) {
        Choice::Slot(slot) => slot,
        other => panic!("no slot: {other:?}"),
    }
}

pub(super) fn waiting(backend: &Arc<Backend>, ask: &Ask<'_>) -> Waiting {
    match backend.choose(ask) {
        Choice::Wait(waiting) => waiting,
        other => panic!("not queued: {other:?}"),
    }
}

pub(super) fn poll(waiting: &mut Waiting) -> Poll<Grant> {
    waiting.poll(&mut Context::from_waker(Waker::noop()))
}

pub(super) fn weighted(weights: &[u32]) -> Vec<Arc<phalanx_config::model::Server>> {
    let options = |&weight: &u32| ServerOptions { weight, ..ServerOptions::default() };
    servers(&weights.iter().map(options).collect::<Vec<_>>())
}

fn checked(n: usize) -> Vec<Arc<phalanx_config::model::Server>> {
    servers(&vec![ServerOptions { check: true, ..ServerOptions::default() }; n])
}

/// Names of the servers that so many requests, each ended at once, go to.
fn run(backend: &Arc<Backend>, n: usize) -> Vec<String> {
    (0..n).map(|_| slot(backend, &ask()).server().name().to_string()).collect()
}

fn shares(backend: &Arc<Backend>, n: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for name in run(backend, n) {
        *shares.entry(name).or_default() += 1;
    }
    shares
}

fn failed() -> Report {
    let info = "Connection refused".into();
    Report { status: CheckStatus::L4Con, code: None, info, duration: Duration::ZERO }
}

fn passed() -> Report {
    Report { status: CheckStatus::L4Ok, ..Report::default() }
}

fn texts(effects: &Effects) -> Vec<&str> {
    effects.notices.iter().map(|n| n.text.as_str()).collect()
}

#[test]
fn roundrobin_rotates_whatever_worker_asks() {
    let backend = backend(section(Balance::RoundRobin, weighted(&[1, 1, 1])));
    let mut names = Vec::new();
    for worker in [0, 3, 1, 1, 2, 0] {
        names.push(slot(&backend, &Ask { worker: Worker(worker), ..ask() }).server().name().to_string());
    }
    assert_eq!(names, ["s1", "s2", "s3", "s1", "s2", "s3"]);
}

#[test]
fn weights_give_exact_shares_and_change_at_run_time() {
    let backend = backend(section(Balance::RoundRobin, weighted(&[3, 1, 0])));
    assert_eq!(shares(&backend, 400), BTreeMap::from([("s1".into(), 300), ("s2".into(), 100)]));
    let s3 = backend.server("s3").unwrap();
    let _ = backend.set_weight(&s3, 4, at(1)).unwrap();
    let expected = [("s1".into(), 300), ("s2".into(), 100), ("s3".into(), 400)];
    assert_eq!(shares(&backend, 800), BTreeMap::from(expected));
}

#[test]
fn static_algorithms_refuse_weights_at_run_time() {
    let backend = backend(section(Balance::StaticRr, weighted(&[3, 1])));
    let s1 = backend.server("s1").unwrap();
    assert_eq!(backend.set_weight(&s1, 2, at(1)).unwrap_err(), ControlError::StaticWeights);
    let _ = backend.set_weight(&s1, 0, at(1)).unwrap();
    assert_eq!(run(&backend, 3), ["s2", "s2", "s2"]);
    let _ = backend.set_weight(&s1, 3, at(1)).unwrap();
    assert_eq!(shares(&backend, 40)["s1"], 30);
}

#[test]
fn full_servers_are_skipped_without_taking_from_the_others() {
    let mut lines = weighted(&[1, 1, 1]);
    Arc::make_mut(&mut lines[0]).options.maxconn = 1;
    let backend = backend(section(Balance::RoundRobin, lines));
    let held = slot(&backend, &ask());
    assert_eq!(&**held.server().name(), "s1");
    let shares = shares(&backend, 300);
    assert_eq!(shares, BTreeMap::from([("s2".into(), 150), ("s3".into(), 150)]));
}

#[test]
fn leastconn_takes_the_least_loaded_then_the_least_recently_used() {
    let backend = backend(section(Balance::LeastConn, weighted(&[1, 1, 1])));
    assert_eq!(run(&backend, 4), ["s1", "s2", "s3", "s1"]);
    let held: Vec<Slot> = (0..3).map(|_| slot(&backend, &ask())).collect();
    drop(held.into_iter().nth(1));
    let s3 = slot(&backend, &ask());
    assert_eq!(backend.servers().iter().map(|s| s.served()).sum::<u32>(), 1);
    drop(s3);
    backend.check_queue_invariants();
}

#[test]
fn leastconn_follows_weights() {
    let backend = backend(section(Balance::LeastConn, weighted(&[3, 1])));
    let held: Vec<Slot> = (0..40).map(|_| slot(&backend, &ask())).collect();
    let on_s1 = held.iter().filter(|s| &**s.server().name() == "s1").count();
    assert!((29..=31).contains(&on_s1), "{on_s1}");
}

#[test]
fn first_fills_the_lowest_id() {
    let lines = vec![
        server("late", 9, ServerOptions { maxconn: 1, ..ServerOptions::default() }),
        server("early", 3, ServerOptions { maxconn: 2, ..ServerOptions::default() }),
    ];
    let backend = backend(section(Balance::First, lines));
    let held: Vec<Slot> = (0..3).map(|_| slot(&backend, &ask())).collect();
    let names: Vec<&str> = held.iter().map(|s| &**s.server().name()).collect();
    assert_eq!(names, ["early", "early", "late"]);
}

#[test]
fn random_draws_follow_weights() {
    let backend = backend(section(Balance::Random(1), weighted(&[3, 1])));
    let on_s1 = (0..4000u64)
        .filter(|&n| {
            let draw = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            &**slot(&backend, &Ask { draw, ..ask() }).server().name() == "s1"
        })
        .count();
    // The ring's points are few, so shares are only near the weights.
    assert!((2600..3400).contains(&on_s1), "{on_s1}");
}

#[test]
fn backups_serve_only_when_no_active_server_can() {
    let mut lines = weighted(&[1, 1, 1]);
    Arc::make_mut(&mut lines[1]).options.backup = true;
    Arc::make_mut(&mut lines[2]).options.backup = true;
    let mut with_all = section(Balance::RoundRobin, lines.clone());
    with_all.allbackups = true;
    for (section, expected) in
        [(section(Balance::RoundRobin, lines), ["s2", "s2", "s2"]), (with_all, ["s2", "s3", "s2"])]
    {
        let backend = backend(section);
        assert_eq!(run(&backend, 2), ["s1", "s1"]);
        assert_eq!(backend.usable_servers(), (1, 2));
        let s1 = backend.server("s1").unwrap();
        let effects = backend.set_admin(&s1, AdminChange::Maint, at(1));
        assert_eq!(
            texts(&effects),
            ["Server b/s1 is going DOWN for maintenance. 0 active and 2 backup servers left. \
              Running on backup. 0 sessions active, 0 requeued, 0 remaining in queue."]
        );
        backend.position.store(0, Relaxed);
        assert_eq!(run(&backend, 3), expected);
    }
}

#[test]
fn a_directed_server_is_honoured_while_it_drains_and_ignored_while_down() {
    let backend = backend(section(Balance::RoundRobin, checked(2)));
    let s2 = backend.server("s2").unwrap();
    let directed = |backend: &Arc<Backend>| {
        slot(backend, &Ask { directed: Some(&s2), ..ask() }).server().name().to_string()
    };
    let _ = backend.set_admin(&s2, AdminChange::Drain, at(1));
    assert_eq!(run(&backend, 2), ["s1", "s1"]);
    assert_eq!(directed(&backend), "s2");
    assert_eq!(s2.status(), "DRAIN 1/3");
    let _ = backend.set_admin(&s2, AdminChange::Maint, at(1));
    assert_eq!(directed(&backend), "s1");
    let _ = backend.set_admin(&s2, AdminChange::Ready, at(1));
    let _ = backend.check_result(&s2, failed(), at(2));
    assert_eq!(directed(&backend), "s1");
}

#[test]
fn option_persist_follows_a_cookie_to_a_server_that_is_down() {
    let mut section = section(Balance::RoundRobin, checked(2));
    section.persist = true;
    let backend = backend(section);
    let s2 = backend.server("s2").unwrap();
    let _ = backend.check_result(&s2, failed(), at(1));
    assert_eq!(&**slot(&backend, &Ask { directed: Some(&s2), ..ask() }).server().name(), "s2");
}

#[test]
fn a_redispatch_avoids_the_server_unless_it_is_the_only_one() {
    for balance in [Balance::RoundRobin, Balance::LeastConn, Balance::First, Balance::Random(2)] {
        let backend = backend(section(balance.clone(), weighted(&[1, 1])));
        let s1 = backend.server("s1").unwrap();
        for draw in 0..20 {
            let slot = slot(&backend, &Ask { avoid: Some(&s1), draw, ..ask() });
            assert_eq!(&**slot.server().name(), "s2", "{balance:?}");
        }
        let _ = backend.set_admin(&backend.server("s2").unwrap(), AdminChange::Maint, at(1));
        assert_eq!(&**slot(&backend, &Ask { avoid: Some(&s1), ..ask() }).server().name(), "s1");
    }
}

#[test]
fn checks_take_servers_down_and_up_in_haproxys_words() {
    let backend = backend(section(Balance::RoundRobin, checked(2)));
    let (s1, s2) = (backend.server("s1").unwrap(), backend.server("s2").unwrap());
    let down = backend.check_result(&s1, failed(), at(1000));
    assert_eq!(
        texts(&down),
        ["Server b/s1 is DOWN, reason: Layer4 connection problem, info: \"Connection refused\", check \
          duration: 0ms. 1 active and 0 backup servers left. 0 sessions active, 0 requeued, 0 remaining \
          in queue."]
    );
    assert_eq!(down.notices[0].level, 1);
    assert_eq!((s1.status(), s1.op_state()), ("DOWN".into(), OpState::Stopped));
    assert_eq!(run(&backend, 2), ["s2", "s2"]);
    let gone = backend.check_result(&s2, failed(), at(2000));
    assert_eq!(gone.notices[1].text, "backend b has no server available!");
    assert_eq!(gone.notices[1].level, 0);
    assert!(matches!(backend.choose(&ask()), Choice::NoServer));
    assert!(texts(&backend.check_result(&s1, passed(), at(3000))).is_empty());
    assert_eq!(s1.status(), "DOWN 1/2");
    let up = backend.check_result(&s1, passed(), at(4000));
    assert_eq!(
        texts(&up),
        ["Server b/s1 is UP, reason: Layer4 check passed, check duration: 0ms. 1 active and 0 backup \
          servers online. 0 sessions requeued, 0 total in queue."]
    );
    assert_eq!((s1.status(), s1.downtime(at(9000)), s1.check_failures()), ("UP".into(), 3, (1, 1)));
    assert_eq!(s2.downtime(at(9000)), 7);
    assert_eq!((backend.is_up(), backend.downtime(at(9000)), backend.down_transitions()), (true, 2, 1));
    assert_eq!(backend.last_change(), at(4000));
}

#[test]
fn administrative_states_read_as_in_haproxy() {
    let backend = backend(section(Balance::RoundRobin, checked(2)));
    let s1 = backend.server("s1").unwrap();
    let mut log = Vec::new();
    for change in [
        AdminChange::Drain,
        AdminChange::Maint,
        AdminChange::Drain,
        AdminChange::Ready,
        AdminChange::Ready,
        AdminChange::Maint,
        AdminChange::Ready,
    ] {
        log.extend(backend.set_admin(&s1, change, at(1)).notices.into_iter().map(|n| n.text));
    }
    let tail = "0 sessions active, 0 requeued, 0 remaining in queue.";
    let online = "0 sessions requeued, 0 total in queue.";
    assert_eq!(
        log,
        [
            format!("Server b/s1 enters drain state. 1 active and 0 backup servers online. {online}"),
            format!("Server b/s1 is going DOWN for maintenance. 1 active and 0 backup servers left. {tail}"),
            "Server b/s1 is UP/DRAIN (leaving forced maintenance).".into(),
            "Server b/s1 remains in forced drain mode.".into(),
            "Server b/s1 is UP (leaving forced drain).".into(),
            format!("Server b/s1 is going DOWN for maintenance. 1 active and 0 backup servers left. {tail}"),
            "Server b/s1 is UP/READY (leaving forced maintenance).".into(),
        ]
    );
}

#[test]
fn log_health_checks_tells_each_change_once() {
    let mut section = section(Balance::RoundRobin, checked(2));
    section.log_health_checks = true;
    let backend = backend(section);
    let s1 = backend.server("s1").unwrap();
    let mut log = Vec::new();
    for report in [passed(), passed(), failed(), passed()] {
        log.extend(backend.check_result(&s1, report, at(1)).notices.into_iter().map(|n| n.text));
    }
    let refused = "Layer4 connection problem, info: \"Connection refused\", check duration: 0ms";
    assert_eq!(
        log,
        [
            "Health check for server b/s1 succeeded, reason: Layer4 check passed, check duration: 0ms, \
             status: 3/3 UP."
                .to_string(),
            format!("Health check for server b/s1 failed, reason: {refused}, status: 2/3 UP."),
            "Health check for server b/s1 succeeded, reason: Layer4 check passed, check duration: 0ms, \
             status: 3/3 UP."
                .to_string(),
        ]
    );
}

#[test]
fn forced_health_lasts_until_the_next_checks() {
    let backend = backend(section(Balance::RoundRobin, checked(2)));
    let s1 = backend.server("s1").unwrap();
    let _ = backend.set_health(&s1, HealthChange::Stopping, at(1));
    assert_eq!((s1.status(), s1.op_state()), ("NOLB".into(), OpState::Stopping));
    assert_eq!(run(&backend, 2), ["s2", "s2"]);
    let _ = backend.set_health(&s1, HealthChange::Down, at(2));
    assert_eq!(s1.status(), "DOWN");
    let _ = backend.check_result(&s1, passed(), at(3));
    let _ = backend.check_result(&s1, passed(), at(4));
    assert_eq!(s1.status(), "UP");
}

#[test]
fn slowstart_ramps_weight_and_limit() {
    let mut lines = checked(2);
    for line in &mut lines {
        let options = &mut Arc::make_mut(line).options;
        options.slowstart = Some(Duration::from_secs(10));
        options.weight = 100;
        options.maxconn = 50;
    }
    let backend = backend(section(Balance::RoundRobin, lines));
    let s1 = backend.server("s1").unwrap();
    let _ = backend.set_admin(&s1, AdminChange::Maint, at(0));
    let _ = backend.set_admin(&s1, AdminChange::Ready, at(1000));
    assert_eq!((s1.op_state(), s1.throttle()), (OpState::Starting, 1));
    assert_eq!(s1.limit(0, 0), Some(1));
    assert!(backend.advance_ramps(at(6000)));
    assert_eq!((s1.throttle(), s1.limit(0, 0)), (50, Some(25)));
    let early = shares(&backend, 300)["s1"];
    assert!((80..=120).contains(&early), "{early}");
    assert!(!backend.advance_ramps(at(11_000)));
    assert_eq!((s1.op_state(), s1.throttle()), (OpState::Running, 100));
    assert_eq!(shares(&backend, 200)["s1"], 100);
}

#[test]
fn the_same_key_goes_to_the_same_server_on_every_node() {
    let consistent = HashType {
        method: HashMethod::Consistent,
        function: phalanx_config::model::HashFunction::Sdbm,
        avalanche: true,
    };
    let lines: Vec<_> = (1..=7)
        .map(|id| server(&format!("s{id}"), id, ServerOptions { weight: 1 + id % 3, ..Default::default() }))
        .collect();
    let node = |rotate: usize| {
        let mut lines = lines.clone();
        lines.rotate_left(rotate);
        let balance = Balance::Hdr { name: "x-session-id".into(), domain_only: false };
        let mut section = section(balance, lines);
        section.hash_type = consistent;
        backend(section)
    };
    let nodes = [node(0), node(3), node(5)];
    let keys: Vec<String> = (0..10_000).map(|n| format!("session-{n}")).collect();
    let place = |backend: &Arc<Backend>, key: &str| {
        slot(backend, &Ask { key: Some(key.as_bytes()), ..ask() }).server().id()
    };
    let mut used = BTreeMap::<u32, usize>::new();
    for key in &keys {
        let ids: Vec<u32> = nodes.iter().map(|n| place(n, key)).collect();
        assert!(ids[0] == ids[1] && ids[1] == ids[2], "{key}: {ids:?}");
        *used.entry(ids[0]).or_default() += 1;
    }
    assert_eq!(used.len(), 7);
    // One server leaves: only its keys move.
    let before: Vec<u32> = keys.iter().map(|k| place(&nodes[0], k)).collect();
    let s4 = nodes[0].server("s4").unwrap();
    let _ = nodes[0].set_admin(&s4, AdminChange::Maint, at(1));
    for (key, was) in keys.iter().zip(before) {
        let is = place(&nodes[0], key);
        assert!(is == was || was == 4, "{key}: {was} -> {is}");
    }
}

#[test]
fn a_hash_without_a_key_rotates() {
    for method in [HashMethod::MapBased, HashMethod::Consistent] {
        let balance = Balance::Hdr { name: "x".into(), domain_only: false };
        let mut section = section(balance, weighted(&[1, 1, 1]));
        section.hash_type.method = method;
        let shares = shares(&backend(section), 3000);
        assert!(shares.len() == 3 && shares.values().all(|&n| n > 700), "{method:?} {shares:?}");
    }
}

#[test]
fn selections_are_counted_once_per_server() {
    let backend = backend(section(Balance::RoundRobin, weighted(&[1])));
    let s1 = slot(&backend, &ask()).server().clone();
    drop(slot(&backend, &Ask { avoid: Some(&s1), ..ask() }));
    assert_eq!(s1.counters().sum(at(0)).lbtot, 1);
    assert_eq!(backend.counters().sum(at(0)).lbtot, 1);
}

#[test]
fn workers_share_one_rotation() {
    let backend = backend(section(Balance::RoundRobin, weighted(&[1, 2, 1])));
    let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (backend, counts) = (&backend, &counts);
            scope.spawn(move || {
                for _ in 0..1000 {
                    let slot = slot(backend, &Ask { worker: Worker(worker), ..ask() });
                    counts[slot.server().id() as usize - 1].fetch_add(1, Relaxed);
                }
            });
        }
    });
    let counts: Vec<usize> = counts.iter().map(|c| c.load(Relaxed)).collect();
    assert_eq!(counts, [1000, 2000, 1000]);
    assert_eq!(backend.counters().sum(at(0)).lbtot, 4000);
}

/// The file holds what HAProxy 2.6 answered to requests with these keys.
#[test]
fn keys_map_to_the_servers_that_haproxy_picks() {
    use phalanx_config::model::HashFunction;
    let mut lines = 0;
    for line in include_str!("tests/haproxy_mapping.txt").lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let [method, function, avalanche, weights, picks] = words[..] else { panic!("{line}") };
        let weights: Vec<u32> = weights.split(',').map(|w| w.parse().unwrap()).collect();
        let balance = Balance::Hdr { name: "x".into(), domain_only: false };
        let mut section = section(balance, weighted(&weights));
        section.hash_type = HashType {
            method: if method == "consistent" { HashMethod::Consistent } else { HashMethod::MapBased },
            function: match function {
                "sdbm" => HashFunction::Sdbm,
                "djb2" => HashFunction::Djb2,
                _ => HashFunction::Crc32,
            },
            avalanche: avalanche == "avalanche",
        };
        let backend = backend(section);
        let ours: String = (0..200)
            .map(|n| {
                let key = format!("key-{n}");
                slot(&backend, &Ask { key: Some(key.as_bytes()), ..ask() }).server().id().to_string()
            })
            .collect();
        assert_eq!(ours, picks, "{method} {function} {avalanche} {weights:?}");
        lines += 1;
    }
    assert_eq!(lines, 28);
}

/// The file holds what HAProxy 2.6 answered to requests for these targets and hosts.
#[test]
fn the_parts_of_a_request_that_are_hashed_are_haproxys() {
    use phalanx_config::model::HashFunction;
    let uri = |len, depth, whole| Balance::Uri { len, depth, whole, path_only: false };
    let host = |domain_only| Balance::Hdr { name: "host".into(), domain_only };
    let mut wrong = Vec::new();
    for line in include_str!("tests/haproxy_keys.txt").lines().filter(|l| !l.starts_with('#')) {
        let [name, input, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let balance = match name {
            "uri" => uri(None, None, false),
            "uri-len6" => uri(Some(6), None, false),
            "uri-depth2" => uri(None, Some(2), false),
            "uri-whole" => uri(None, None, true),
            "uri-len8-depth1" => uri(Some(8), Some(1), false),
            "url_param" => Balance::UrlParam("id".into()),
            "hdr" => host(false),
            "hdr-domain" => host(true),
            other => panic!("{other}"),
        };
        let mut section = section(balance.clone(), weighted(&[1; 7]));
        section.hash_type.function = HashFunction::Djb2;
        section.hash_type.avalanche = true;
        let backend = backend(section);
        let key = balance::key::of(&balance, input.as_bytes(), |_| Some(input.as_bytes()));
        let ours = match key {
            Some(_) => slot(&backend, &Ask { key, ..ask() }).server().id().to_string(),
            None => "rotates".to_string(),
        };
        if ours != expected {
            wrong.push(format!("{line}: {ours} by {:?}", key.map(String::from_utf8_lossy)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
