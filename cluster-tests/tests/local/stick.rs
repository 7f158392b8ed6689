//! A client stuck to a server on one node goes there on all of them; what is counted adds up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cluster_tests::{Cluster, EndOnDrop, Signal, get, kill, until};

fn stuck_to(cluster: &Cluster, node: &str, user: &str) -> String {
    let response = get(&cluster.at(node, 8082), "/", &[("X-User", user)]).unwrap();
    assert_eq!(response.status, 200);
    response.server().to_owned()
}

/// Whether a node's table has a user.
fn knows(cluster: &Cluster, node: &str, user: &str) -> bool {
    cluster.api(node, "show table app").contains(&format!("key={user} "))
}

/// `http_req_cnt` of a user in a node's table.
fn counted(cluster: &Cluster, node: &str, user: &str) -> Option<u64> {
    let table = cluster.api(node, "show table app");
    let row = table.lines().find(|l| l.contains(&format!("key={user} ")))?;
    row.split_once("http_req_cnt=")?.1.split_whitespace().next()?.parse().ok()
}

#[test]
fn stickiness_and_counters_are_shared_by_all_nodes_and_taught_to_one_that_returns() {
    let cluster = Cluster::up();
    let users: Vec<String> = (0..30).map(|i| format!("user{i}")).collect();

    let first: Vec<String> = users.iter().map(|u| stuck_to(&cluster, "n1", u)).collect();
    for name in ["s1", "s2", "s3"] {
        assert!(first.iter().any(|s| s == name), "round robin reaches {name}: {first:?}");
    }
    let last = users.last().unwrap();
    for node in ["n2", "n3"] {
        until("the entries arrive", Duration::from_secs(5), || {
            users.iter().all(|u| knows(&cluster, node, u))
        });
        let there: Vec<String> = users.iter().map(|u| stuck_to(&cluster, node, u)).collect();
        assert_eq!(there, first, "on {node}");
    }
    // One request on each node: every node reads their sum.
    for node in ["n1", "n2", "n3"] {
        until("the counter adds up", Duration::from_secs(5), || counted(&cluster, node, last) == Some(3));
    }

    // A node that was away learns what it lost and what it missed, and its own old counts stay counted once.
    cluster.must(&["kill", "n2"]);
    let late = stuck_to(&cluster, "n3", "late");
    cluster.must(&["start", "n2"]);
    cluster.wait_running("n2");
    until("it is taught", Duration::from_secs(15), || {
        knows(&cluster, "n2", "late") && users.iter().all(|u| knows(&cluster, "n2", u))
    });
    assert_eq!(stuck_to(&cluster, "n2", "late"), late);
    let again: Vec<String> = users.iter().map(|u| stuck_to(&cluster, "n2", u)).collect();
    assert_eq!(again, first);
    for node in ["n1", "n2", "n3"] {
        until("the counter adds up again", Duration::from_secs(5), || {
            counted(&cluster, node, last) == Some(4)
        });
    }
}

/// `updates_out`-like fields of `show peers`: per peer and table, whether both hold the same.
fn in_sync(cluster: &Cluster, node: &str) -> bool {
    let shown = cluster.api(node, "show peers");
    let tables: Vec<&str> = shown.lines().filter(|l| l.contains("table: id=app ")).collect();
    tables.len() == 2 && tables.iter().all(|l| l.contains("in_sync=1") && l.contains("learned=1"))
}

/// The digest of the table here, by the node itself.
fn digest(cluster: &Cluster, node: &str) -> String {
    let shown = cluster.api(node, "show peers");
    let line = shown.lines().find(|l| l.contains("table: id=app ")).unwrap_or_default();
    line.split_once(" digest=").map_or("", |(_, d)| d.split(' ').next().unwrap_or("")).to_owned()
}

#[test]
fn a_node_that_missed_a_thousand_changes_holds_the_same_seconds_after_its_return() {
    let cluster = Cluster::up();
    let set = |node: &str, from: u32, to: u32, value: u32| {
        let words: Vec<String> =
            (from..to).map(|k| format!("set table app key user{k} data.http_req_cnt {value}")).collect();
        for some in words.chunks(50) {
            assert_eq!(cluster.api(node, &some.join("; ")).trim(), "");
        }
    };
    set("n1", 0, 500, 5);
    set("n3", 250, 750, 7);
    cluster.must(&["kill", "n2"]);
    set("n1", 500, 1_000, 11);
    set("n3", 0, 500, 13);
    cluster.must(&["start", "n2"]);
    cluster.wait_running("n2");
    let began = std::time::Instant::now();
    until("the same on all nodes", Duration::from_secs(15), || {
        let all: Vec<String> = ["n1", "n2", "n3"].iter().map(|n| digest(&cluster, n)).collect();
        all[0].bytes().any(|b| b != b'0') && all.windows(2).all(|w| w[0] == w[1])
    });
    println!("equal {:?} after it runs", began.elapsed());
    until("and every node knows so", Duration::from_secs(15), || {
        ["n1", "n2", "n3"].iter().all(|n| in_sync(&cluster, n))
    });
    println!("known to be equal after {:?}", began.elapsed());
    for node in ["n1", "n2", "n3"] {
        let table = cluster.api(node, "show table app");
        assert!(table.starts_with("# table: app, type: string, size:102400, used:1000"), "{}", &table[..80]);
    }
}

#[test]
fn reloads_and_kills_leave_counters_exact() {
    let cluster = Cluster::up();
    let all = ["n1", "n2", "n3"];
    let mut truth = 0;
    let mut count = |nodes: &[&str], times: u64| {
        for node in nodes {
            for _ in 0..times {
                stuck_to(&cluster, node, "ann");
            }
            truth += times;
        }
        truth
    };
    let summed = |truth: u64| {
        for node in all {
            until(&format!("{truth} on {node}"), Duration::from_secs(10), || {
                counted(&cluster, node, "ann") == Some(truth)
            });
        }
    };
    summed(count(&all, 5));
    for node in all {
        let answer = cluster.api(node, "reload");
        assert!(answer.contains("Reload done"), "{answer}");
    }
    summed(count(&all, 3));
    for victim in all {
        cluster.must(&["kill", victim]);
        let others: Vec<&str> = all.into_iter().filter(|n| *n != victim).collect();
        count(&others, 2);
        cluster.must(&["start", victim]);
        cluster.wait_running(victim);
        until("it is taught", Duration::from_secs(15), || counted(&cluster, victim, "ann").is_some());
        summed(count(&all, 1));
    }
}

#[test]
fn a_node_told_to_end_under_load_takes_no_count_with_it() {
    let cluster = Cluster::up();
    let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    for victim in ["n2", "n3", "n1"] {
        let at = cluster.at(victim, 8082);
        let pid = cluster.status().node(victim).pid.expect("it runs");
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !ended.load(Relaxed) {
                        sent.fetch_add(1, Relaxed);
                        let asked = get(&at, "/", &[("X-User", "bob"), ("Connection", "close")]);
                        let good = asked.is_ok_and(|response| response.status == 200);
                        answered.fetch_add(u64::from(good), Relaxed);
                    }
                });
            }
            let _end = EndOnDrop(&ended);
            let before = answered.load(Relaxed);
            until("requests are answered", Duration::from_secs(10), || answered.load(Relaxed) > before + 100);
            kill(pid, Signal::SIGTERM);
            let gone = || cluster.status().node(victim).pid != Some(pid);
            until("it ends", Duration::from_secs(10), gone);
        });
        let certain = answered.load(Relaxed)..=sent.load(Relaxed);
        for node in ["n1", "n2", "n3"].into_iter().filter(|n| *n != victim) {
            let shown = counted(&cluster, node, "bob");
            assert!(shown.is_some_and(|n| certain.contains(&n)), "{node}: {shown:?}, expects {certain:?}");
        }
        cluster.must(&["start", victim]);
        cluster.wait_running(victim);
        until("it is taught", Duration::from_secs(15), || counted(&cluster, victim, "bob").is_some());
    }
}
