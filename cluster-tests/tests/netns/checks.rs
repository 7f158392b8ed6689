//! A node that alone cannot reach a server stops using it and says so; the others go on.

use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, get, until};

use super::{Netns, inside};

const SOON: Duration = Duration::from_secs(15);

/// The row of a server in `show checks`: prober, state, here.
fn row(cluster: &Cluster, node: &str) -> (String, String, String) {
    let shown = cluster.api(node, "show checks");
    let line = shown.lines().find(|l| l.split(' ').nth(1) == Some("s1")).unwrap_or_else(|| panic!("{shown}"));
    let words: Vec<&str> = line.split(' ').collect();
    (words[3].to_owned(), words[4].to_owned(), words[6].to_owned())
}

/// Status and `last_chk` of the same server in `show stat`.
fn stat(cluster: &Cluster, node: &str, backend: &str) -> (String, String) {
    let shown = cluster.api(node, "show stat");
    let line = shown.lines().find(|l| l.starts_with(&format!("{backend},s1,"))).expect("a row of s1");
    let words: Vec<&str> = line.split(',').collect();
    (words[17].to_owned(), words[56].to_owned())
}

fn nft(namespace: &str, rules: &str) {
    let done = Command::new("ip").args(["netns", "exec", namespace, "nft"]).arg(rules).status();
    assert!(done.expect("nft runs").success(), "nft {rules}");
}

#[test]
fn a_node_that_alone_cannot_reach_a_server_stops_using_it_and_says_so() {
    let Some(netns) = Netns::up() else { return };
    let (cluster, client) = (&netns.cluster, netns.client());
    let names = cluster.names();
    let shown = cluster.api("n1", "show checks");
    let line = shown.lines().find(|l| l.split(' ').nth(1) == Some("s1")).expect("s1 is checked");
    let backend = line.split(' ').next().unwrap().to_owned();
    let server = stat_addr(cluster, &backend);
    until("one node probes s1 for all", SOON, || {
        let rows: Vec<_> = names.iter().map(|n| row(cluster, n)).collect();
        rows.iter().all(|r| *r == rows[0] && r.0 != "-" && r.1 == "UP")
    });
    let prober = row(cluster, "n1").0;
    let follower = names.iter().find(|n| **n != prober).unwrap().clone();

    for cut in [&follower, &prober] {
        let namespace = client.replace("client", cut);
        let began = Instant::now();
        let (ip, port) = server.rsplit_once(':').unwrap();
        nft(&namespace, "add table inet cut");
        nft(&namespace, "add chain inet cut out { type filter hook output priority 0 ; }");
        nft(
            &namespace,
            &format!("add rule inet cut out ip daddr {ip} tcp dport {port} reject with tcp reset"),
        );
        let http = cluster.at(cut, 8080);
        until(&format!("{cut} stops using s1"), SOON, || {
            let _ = inside(&client, || get(&http, "/", &[]));
            row(cluster, cut).2.starts_with("apart:")
        });
        println!(
            "{cut} (prober was {prober}) stands apart after {:?}: {:?}",
            began.elapsed(),
            row(cluster, cut)
        );
        let (status, why) = stat(cluster, cut, &backend);
        assert_eq!(status, "DOWN");
        assert!(why.starts_with("only from this node"), "{why}");
        let log = std::fs::read_to_string(cluster.dir().join(format!("{cut}.log"))).unwrap();
        assert!(log.contains(&format!("{backend}/s1: only this node cannot reach it")), "{log}");
        until("another probes, and it is up there", SOON, || {
            names.iter().filter(|n| *n != cut).all(|n| {
                let row = row(cluster, n);
                assert_eq!((&*row.1, &*row.2), ("UP", "agrees"), "{n}");
                row.0 != *cut && row.0 != "-"
            })
        });
        for _ in 0..12 {
            let answer = inside(&client, || get(&http, "/", &[])).unwrap();
            assert_eq!(answer.status, 200);
            assert_ne!(answer.server(), "s1");
        }
        nft(&namespace, "delete table inet cut");
        until("it uses s1 again", SOON, || {
            row(cluster, cut).2 == "agrees" && stat(cluster, cut, &backend).0 == "UP"
        });
        for other in names.iter().filter(|n| *n != cut && cut == &follower) {
            let log = std::fs::read_to_string(cluster.dir().join(format!("{other}.log"))).unwrap();
            assert!(!log.contains(&format!("Server {backend}/s1 is DOWN")), "{other}: {log}");
        }
    }
    until("the first in rank probes again", SOON, || names.iter().all(|n| row(cluster, n).0 == prober));
}

/// The server's address.
fn stat_addr(cluster: &Cluster, backend: &str) -> String {
    let shown = cluster.api("n1", "show stat");
    let line = shown.lines().find(|l| l.starts_with(&format!("{backend},s1,"))).expect("a row of s1");
    line.split(',').nth(73).unwrap().to_owned()
}
