//! Stick tables shared with HAProxys in their own protocol, and what sharing is worth: how many requests
//! a limit admits over three nodes, beside three HAProxys.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use cluster_tests::{Client, api, eventually, until};

use crate::side::{Kind, Side, haproxy};

const SOON: Duration = Duration::from_secs(10);

const REST: &str = "
global
    stats socket DIR/sock level admin
    stats timeout 1m
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
backend t
    balance roundrobin
    stick-table type ip size 10k expire 5m store gpc0,gpt0,http_req_cnt,http_req_rate(1m),bytes_out_cnt peers p
frontend f
    bind 127.0.0.1:8080
    http-request track-sc0 src table t
    http-request deny deny_status 429 if { sc_http_req_rate(0,t) gt LIMIT }
    http-request deny deny_status 403
";

/// The rest of a configuration, with a limit.
fn rest(limit: usize) -> String {
    REST.replace("LIMIT", &limit.to_string())
}

/// A `peers` section with these names and addresses.
fn section(peers: &[(&str, String)]) -> String {
    let lines = peers.iter().map(|(name, addr)| format!("    peer {name} {addr}\n"));
    format!("peers p\n{}", lines.collect::<String>())
}

/// A `cluster` section of these nodes, and HAProxys beside them.
fn cluster(nodes: &[(&str, String)], haproxys: &[(&str, String)]) -> String {
    let nodes = nodes.iter().map(|(name, addr)| format!("    node {name} {addr}\n"));
    let peers = haproxys.iter().map(|(name, addr)| format!("    peer {name} {addr}\n"));
    format!("cluster p\n    data-dir DIR/data\n{}{}", nodes.collect::<String>(), peers.collect::<String>())
}

/// A value of a key in table `t`.
fn value(side: &Side, key: &str, data: &str) -> Option<u64> {
    let shown = api(&side.socket(), &format!("show table t key {key}"));
    let row = shown.lines().find(|line| line.contains(&format!("key={key} ")))?;
    let field = row.split(' ').find_map(|word| word.strip_prefix(&format!("{data}=")))?;
    field.parse().ok()
}

fn set(side: &Side, key: &str, what: &str) {
    let said = api(&side.socket(), &format!("set table t key {key} {what}"));
    assert_eq!(said.trim(), "", "{:?}", side.kind);
}

fn has(side: &Side, key: &str, data: &str, expected: u64) {
    let what = format!("{:?} has {data}={expected} of {key}", side.kind);
    let mut last = None;
    let reached = eventually_or(SOON, || {
        last = value(side, key, data);
        last == Some(expected)
    });
    assert!(reached, "{what}, it has {last:?}\n{}", side.output());
}

fn eventually_or(limit: Duration, mut met: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if met() {
            return true;
        }
        sleep(Duration::from_millis(20));
    }
    false
}

/// A pair of HAProxys is replaced one by one: nothing that they have counted is lost.
#[test]
fn a_pair_of_haproxys_is_migrated_node_by_node() {
    if haproxy().is_none() {
        return;
    }
    let [mut a, mut b] = [Side::new(Kind::HAProxy), Side::new(Kind::HAProxy)];
    let config = format!("{}{}", section(&[("a", a.at(1000)), ("b", b.at(1000))]), rest(1000));
    a.run_as("a", &config);
    b.run_as("b", &config);
    set(&a, "10.0.0.1", "data.gpc0 5 data.gpt0 77 data.bytes_out_cnt 5000000000");
    set(&b, "10.0.0.2", "data.http_req_cnt 9");
    has(&b, "10.0.0.1", "gpc0", 5);
    has(&a, "10.0.0.2", "http_req_cnt", 9);

    // The first leaves; Phalanx takes its name and address with the same lines.
    let addr = b.at(1000);
    drop(b);
    let mut n = Side::new(Kind::Phalanx);
    n.run_as("b", &config.replace("bind 127.0.0.1:8080", "bind 127.0.0.1:8081"));
    has(&n, "10.0.0.1", "gpc0", 5);
    has(&n, "10.0.0.1", "gpt0", 77);
    has(&n, "10.0.0.1", "bytes_out_cnt", 5_000_000_000);
    has(&n, "10.0.0.2", "http_req_cnt", 9);
    // Both ways, live, and with HAProxy's own counting.
    set(&n, "10.0.0.3", "data.gpc0 3");
    has(&a, "10.0.0.3", "gpc0", 3);
    for _ in 0..4 {
        Client::connect(&a.at(8080)).unwrap().get("/", &[]).unwrap();
    }
    let own = "127.0.0.1";
    has(&n, own, "http_req_cnt", 4);
    has(&n, own, "http_req_rate(60000)", 4);
    Client::connect(&n.at(8081)).unwrap().get("/", &[]).unwrap();
    has(&n, own, "http_req_cnt", 5);
    has(&a, own, "http_req_cnt", 5);

    // The second leaves, and comes back as Phalanx: it is taught by the first.
    drop(a);
    let mut m = Side::new(Kind::Phalanx);
    m.run_as("a", &config);
    has(&m, own, "http_req_cnt", 5);
    has(&m, "10.0.0.1", "gpt0", 77);
    let shown = api(&n.socket(), "show peers p");
    assert!(shown.contains(&format!("addr={addr}")) && shown.contains("protocol=haproxy"), "{shown}");
}

/// A HAProxy beside a cluster, on the cluster's port: what it counts counts once.
#[test]
fn haproxy_beside_a_cluster_is_counted_once() {
    if haproxy().is_none() {
        return;
    }
    let mut nodes = [(); 3].map(|()| Side::new(Kind::Phalanx));
    let mut a = Side::new(Kind::HAProxy);
    let names = ["n1", "n2", "n3"];
    let at: Vec<(&str, String)> =
        names.iter().zip(&nodes).map(|(name, side)| (*name, side.at(7100))).collect();
    let own = [("a", a.at(1000))];
    let config = cluster(&at, &own) + &rest(1000);
    for (name, side) in names.iter().zip(&mut nodes) {
        side.run_as(name, &config);
    }
    let everybody = [at, own.to_vec()].concat();
    a.run_as("a", &(section(&everybody) + &rest(1000)));
    until("all sessions are up", SOON, || {
        nodes.iter().all(|n| api(&n.socket(), "show peers").contains("protocol=haproxy last_status=ESTA"))
    });
    set(&a, "10.0.0.1", "data.gpc0 7");
    for n in &nodes {
        has(n, "10.0.0.1", "gpc0", 7);
    }
    // Counted on one of the cluster's nodes and on the HAProxy, in turns.
    let client = "127.0.0.1";
    for (turn, side) in [&nodes[1], &a, &nodes[2], &a, &nodes[0]].into_iter().enumerate() {
        Client::connect(&side.at(8080)).unwrap().get("/", &[]).unwrap();
        for other in nodes.iter().chain([&a]) {
            has(other, client, "http_req_cnt", turn as u64 + 1);
        }
    }
    // It stays so: no echo goes round.
    sleep(Duration::from_millis(500));
    for n in &nodes {
        assert_eq!(value(n, client, "http_req_cnt"), Some(5));
        assert_eq!(value(n, "10.0.0.1", "gpc0"), Some(7));
    }
}

/// Requests that three nodes with one limit admit, when a client spreads so many over them.
fn admitted(nodes: &[Side], each: usize) -> usize {
    let admitted = AtomicUsize::new(0);
    scope(|threads| {
        for node in nodes {
            let admitted = &admitted;
            threads.spawn(move || {
                let mut client = Client::connect(&node.at(8080)).unwrap();
                let begin = Instant::now();
                for turn in 0..each {
                    // A hundred a second on each node: the pace of the load, not a wait for anything.
                    sleep(
                        (begin + Duration::from_millis(10) * turn as u32)
                            .saturating_duration_since(Instant::now()),
                    );
                    let response = match client.get("/", &[]) {
                        Ok(response) => response,
                        Err(_) => {
                            client = Client::connect(&node.at(8080)).unwrap();
                            client.get("/", &[]).unwrap()
                        }
                    };
                    match response.status {
                        403 => _ = admitted.fetch_add(1, Relaxed),
                        429 => {}
                        other => panic!("{:?} answers {other}", node.kind),
                    }
                }
            });
        }
    });
    admitted.into_inner()
}

/// A limit of L requests admits L over three nodes, where three HAProxys with a `peers` section lose
/// what they count at the same time.
#[test]
fn a_limit_of_l_admits_l_over_three_nodes() {
    if haproxy().is_none() {
        return;
    }
    let (limit, each) = (300, 300);
    let names = ["n1", "n2", "n3"];
    let mut said = Vec::new();
    for kind in [Kind::HAProxy, Kind::Phalanx] {
        let mut nodes = [(); 3].map(|()| Side::new(kind));
        let port = 7100;
        let at: Vec<(&str, String)> =
            names.iter().zip(&nodes).map(|(name, side)| (*name, side.at(port))).collect();
        let head = if kind == Kind::HAProxy { section(&at) } else { cluster(&at, &[]) };
        for (name, side) in names.iter().zip(&mut nodes) {
            side.run_as(name, &(head.clone() + &rest(limit)));
        }
        // Replication is up: what is set on each is seen on all.
        for (key, side) in ["10.0.0.1", "10.0.0.2", "10.0.0.3"].into_iter().zip(&nodes) {
            eventually("an entry goes round", SOON, || {
                set(side, key, "data.gpc0 1");
                nodes.iter().all(|n| value(n, key, "gpc0") == Some(1)).then_some(())
            });
        }
        said.push(admitted(&nodes, each));
    }
    let (theirs, ours) = (said[0], said[1]);
    println!(
        "limit {limit}, {} requests over three nodes: HAProxy admitted {theirs}, Phalanx {ours}",
        3 * each
    );
    assert!(ours >= limit, "no fewer than {limit}: {ours}");
    // What is on its way between nodes when the limit is reached gets through: 300 a second here.
    assert!(ours <= limit + limit / 5, "not far above {limit}: {ours}");
}
