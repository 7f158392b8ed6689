//! `hash-type consistent` is the same on every node.

use std::thread;

use cluster_tests::{Client, Cluster, seed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KEYS: usize = 10_000;

/// Which server each key goes to on one node, asked over one kept connection.
fn servers(addr: &str, keys: &[String]) -> Vec<String> {
    let mut client = Client::connect(addr).unwrap();
    keys.iter()
        .map(|key| {
            let response = client.get("/", &[("X-Session-ID", key)]).unwrap();
            assert_eq!(response.status, 200);
            response.server().to_owned()
        })
        .collect()
}

fn on_all_nodes(cluster: &Cluster, keys: &[String]) -> Vec<Vec<String>> {
    let addrs: Vec<String> = cluster.names().iter().map(|n| cluster.at(n, 8081)).collect();
    thread::scope(|scope| {
        let asked: Vec<_> = addrs.iter().map(|addr| scope.spawn(move || servers(addr, keys))).collect();
        asked.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn ten_thousand_keys_go_to_the_same_server_on_three_nodes() {
    let mut rng = StdRng::seed_from_u64(seed());
    let keys: Vec<String> = (0..KEYS).map(|_| format!("{:016x}", rng.random::<u64>())).collect();
    let cluster = Cluster::up();

    let before = on_all_nodes(&cluster, &keys);
    assert_eq!(before[0], before[1]);
    assert_eq!(before[0], before[2]);
    for name in ["s1", "s2", "s3"] {
        let share = before[0].iter().filter(|s| *s == name).count();
        assert!((KEYS / 10..=KEYS * 6 / 10).contains(&share), "{name} has {share} of {KEYS} keys");
    }

    // A server added at run time moves its own share and nothing else, on every node alike.
    let server = cluster.base().at(1, 9804);
    let added = cluster.api("n2", &format!("add server api/s4 {server}; enable server api/s4"));
    assert!(added.contains("New server registered."), "{added}");
    cluster_tests::until("all nodes have s4", std::time::Duration::from_secs(5), || {
        cluster.names().iter().all(|n| cluster.api(n, "show servers state api").contains(" s4 "))
    });
    let after = on_all_nodes(&cluster, &keys);
    assert_eq!(after[0], after[1]);
    assert_eq!(after[0], after[2]);
    let moved = before[0].iter().zip(&after[0]).filter(|(b, a)| b != a);
    let elsewhere = moved.clone().filter(|(_, a)| *a != "s4").count();
    assert_eq!(elsewhere, 0, "keys moved between servers that stayed");
    let share = moved.count();
    assert!((KEYS / 10..=KEYS / 2).contains(&share), "s4 took {share} of {KEYS} keys");
}
