//! What is changed on one node's Runtime API is so on all, and stays so.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster_tests::{Client, Cluster, Signal, kill, until};

/// Servers that answer on a node's `web` frontend, by a number of requests without a cookie.
fn reached(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let mut client = Client::connect(&cluster.at(node, 8080)).unwrap();
    (0..16)
        .map(|_| {
            let response = client.get("/", &[]).unwrap();
            assert_eq!(response.status, 200, "on {node}");
            response.server().to_owned()
        })
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn all_reach(cluster: &Cluster, what: &str, names: &[&str]) {
    for node in cluster.names() {
        until(&format!("{what} on {node}"), Duration::from_secs(15), || {
            reached(cluster, &node) == set(names)
        });
    }
}

#[test]
fn a_server_added_on_one_node_serves_on_all_and_after_all_were_killed_at_once() {
    let cluster = Cluster::up();
    all_reach(&cluster, "the configured servers", &["s1", "s2", "s3"]);

    // The very line that people pipe into nc.
    let server = cluster.base().at(1, 9804);
    let answer = cluster.api(
        "n2",
        &format!(
            "add server webservers/s4 {server} check cookie s4; enable server webservers/s4; \
             enable health webservers/s4"
        ),
    );
    assert!(answer.contains("New server registered."), "{answer}");
    all_reach(&cluster, "the added server", &["s1", "s2", "s3", "s4"]);

    cluster.api("n3", "set server webservers/s1 state maint");
    all_reach(&cluster, "without the one in maintenance", &["s2", "s3", "s4"]);

    // kill -9 of all nodes at once.
    let pids: Vec<u32> = cluster.status().nodes.iter().filter_map(|n| n.pid).collect();
    assert_eq!(pids.len(), 3);
    for pid in &pids {
        kill(*pid, Signal::SIGKILL);
    }
    until("all are gone", Duration::from_secs(5), || {
        cluster.status().nodes.iter().all(|n| n.state == "stopped")
    });
    cluster.must(&["start", "n1", "n2", "n3"]);
    for node in ["n1", "n2", "n3"] {
        cluster.wait_running(node);
    }
    all_reach(&cluster, "after the restart", &["s2", "s3", "s4"]);

    // And away again, from another node.
    let answer = cluster.api("n1", "disable server webservers/s4; del server webservers/s4");
    assert!(answer.contains("Server deleted."), "{answer}");
    cluster.api("n1", "set server webservers/s1 state ready");
    all_reach(&cluster, "after it was deleted", &["s1", "s2", "s3"]);
}

#[test]
fn the_runtime_api_answers_plain_nc() {
    let cluster = Cluster::builder().nodes(1).up();
    let place = cluster.status().node("n1").cli.clone().unwrap();
    let (host, port) = place.rsplit_once(':').unwrap();
    let script = format!("echo 'show version; show info' | timeout 10 nc {host} {port}");
    let Ok(out) = std::process::Command::new("sh").args(["-c", &script]).output() else {
        panic!("sh does not run");
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if String::from_utf8_lossy(&out.stderr).contains("not found") {
        eprintln!("nc is not installed: not tried");
        return;
    }
    assert!(out.status.success(), "nc ends with the answer: {text}");
    assert!(text.contains("\nName: ") && text.contains("\nUptime_sec: "), "{text}");
}
