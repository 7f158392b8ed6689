//! A client stuck to a server on one node goes there on all of them; what is counted adds up.

use std::time::Duration;

use cluster_tests::{Cluster, get, until};

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
