//! Nodes come and go while clients are served: nothing that was counted or acknowledged is lost.

use std::time::{Duration, Instant};

use cluster_tests::{Cluster, Load, Signal, get, kill, summary, until};

const SOON: Duration = Duration::from_secs(30);

/// Sends requests of `user` to nodes in turn, and says how many were answered.
fn count(cluster: &Cluster, nodes: &[&str], user: &str, times: usize) -> u64 {
    let answered = (0..times).filter(|i| {
        let at = cluster.at(nodes[i % nodes.len()], 8082);
        get(&at, "/", &[("X-User", user)]).is_ok_and(|r| r.status == 200)
    });
    answered.count() as u64
}

/// `http_req_cnt` of a user in a node's table.
fn counted(cluster: &Cluster, node: &str, user: &str) -> Option<u64> {
    let table = cluster.api(node, "show table app");
    let row = table.lines().find(|l| l.contains(&format!("key={user} ")))?;
    row.split_once("http_req_cnt=")?.1.split_whitespace().next()?.parse().ok()
}

fn all_count(cluster: &Cluster, nodes: &[&str], user: &str, sum: u64) {
    for node in nodes {
        until(&format!("{node} counts {sum}"), SOON, || counted(cluster, node, user) == Some(sum));
    }
}

/// What `show cluster json` says.
fn agreed(cluster: &Cluster, node: &str) -> serde_json::Value {
    serde_json::from_str(&cluster.api(node, "show cluster json")).expect("it is JSON")
}

fn members(cluster: &Cluster, node: &str) -> Vec<String> {
    let json = agreed(cluster, node);
    let nodes = json["nodes"].as_array().cloned().unwrap_or_default();
    let voters = nodes.iter().filter(|n| n["voter"] == true && n["stage"] == "member");
    voters.map(|n| n["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn all_agree(cluster: &Cluster, on: &[&str]) {
    for node in on {
        until(&format!("{node} knows the members"), SOON, || members(cluster, node) == on);
    }
}

/// All requests of a load that were answered were answered well, and few were not.
fn went_well(outcomes: &[cluster_tests::Outcome], what: &str) {
    let good = outcomes.iter().filter(|o| o.result == Ok(200)).count();
    let wrong = outcomes.iter().filter(|o| o.result != Ok(200)).count();
    println!("{what}: {}", summary(outcomes));
    assert!(good > 50, "{what}: only {good} answers");
    assert_eq!(wrong, 0, "{what}: {}", summary(outcomes));
}

#[test]
fn three_nodes_become_five_and_three_again_under_load() {
    let cluster = Cluster::up();
    // On nodes that stay, and on the address that moves.
    let stays: Vec<Load> =
        ["n2", "n3"].map(|n| Load::start(&cluster.at(n, 8080), "/", 1, Duration::from_secs(5))).into();
    let mut sum = count(&cluster, &["n1", "n2", "n3"], "alice", 9);
    cluster.api("n1", "set server webservers/s1 weight 7");

    for new in ["n4", "n5"] {
        let text = cluster.must(&["join", new]);
        assert!(text.contains(&format!("Node '{new}' is a member after")), "{text}");
        println!("{}", text.trim());
        cluster.wait_running(new);
    }
    let five = ["n1", "n2", "n3", "n4", "n5"];
    all_agree(&cluster, &five);
    // The new nodes know what was counted and said, and count and say themselves.
    all_count(&cluster, &five, "alice", sum);
    sum += count(&cluster, &five, "alice", 10);
    all_count(&cluster, &five, "alice", sum);
    for node in five {
        let weight = cluster.api(node, "get weight webservers/s1");
        assert!(weight.starts_with("7 "), "on {node}: {weight}");
    }
    let answer = cluster.api("n5", "set server webservers/s2 weight 9");
    assert!(answer.trim().is_empty(), "{answer}");

    // Two go, one of them holds the address or leads.
    let holder = cluster.wait_for_holder(SOON);
    let first = if ["n1", "n4", "n5"].contains(&holder.as_str()) { holder } else { "n1".to_owned() };
    let second = if first == "n4" { "n5" } else { "n4" };
    for old in [first.as_str(), second] {
        let text = cluster.must(&["leave", old]);
        assert!(text.contains(&format!("Node '{old}' has left after")), "{text}");
        println!("{}", text.trim());
    }
    let three: Vec<&str> = five.into_iter().filter(|n| *n != first && *n != second).collect();
    all_agree(&cluster, &three);
    // What the nodes that left have counted counts on.
    sum += count(&cluster, &three, "alice", 6);
    all_count(&cluster, &three, "alice", sum);
    for node in &three {
        let weight = cluster.api(node, "get weight webservers/s2");
        assert!(weight.starts_with("9 "), "on {node}: {weight}");
    }
    let holder = cluster.wait_for_holder(SOON);
    assert!(three.contains(&holder.as_str()), "{holder} holds the address");
    for load in stays {
        went_well(&load.finish(), "a node that stays");
    }
    // Three nodes are a cluster again: it bears the loss of one.
    cluster.must(&["kill", three[0]]);
    until("commands with two of three", SOON, || {
        cluster.api(three[1], "set server webservers/s3 weight 5").trim().is_empty()
    });
}

#[test]
fn a_dead_node_is_replaced_and_a_wiped_one_comes_back() {
    let cluster = Cluster::up();
    let mut sum = count(&cluster, &["n1", "n2", "n3"], "bob", 9);
    all_count(&cluster, &["n1", "n2"], "bob", sum);
    cluster.must(&["kill", "n3"]);
    let text = cluster.must(&["replace", "n3", "n6"]);
    assert!(text.contains("Node 'n6' has replaced 'n3' after"), "{text}");
    println!("{}", text.trim());
    cluster.wait_running("n6");
    let three = ["n1", "n2", "n6"];
    all_agree(&cluster, &three);
    sum += count(&cluster, &three, "bob", 3);
    all_count(&cluster, &three, "bob", sum);

    until("nothing is under way", SOON, || {
        let all: Vec<_> = three.iter().map(|n| agreed(&cluster, n)).collect();
        all.iter().all(|json| json["change"].is_null() && json["applied"] == all[0]["last_log"])
    });
    // The disk of a member is lost.
    cluster.must(&["kill", "n2"]);
    std::fs::remove_dir_all(cluster.dir().join("data/n2")).unwrap();
    cluster.must(&["start", "n2"]);
    cluster.wait_running("n2");
    all_agree(&cluster, &three);
    all_count(&cluster, &three, "bob", sum);
    until("it takes commands", SOON, || {
        cluster.api("n2", "set server webservers/s1 weight 3").trim().is_empty()
    });
    let ids: Vec<_> = three.iter().map(|n| agreed(&cluster, n)["id"].clone()).collect();
    assert!(ids[0].is_string() && ids.iter().all(|id| *id == ids[0]), "one cluster: {ids:?}");
}

#[test]
fn two_nodes_and_a_witness_survive_either_node() {
    let cluster = Cluster::builder().nodes(2).witness(1).up();
    let vip = cluster.base().at(100, 8080);
    let refused = cluster.run(&["failover", "web", "--to", "n3"]);
    assert!(!refused.status.success(), "a witness holds no address");
    assert!(cluster.status().node("n3").http.is_none(), "and takes no traffic");
    for victim in ["n1", "n2"] {
        let other = if victim == "n1" { "n2" } else { "n1" };
        until("both are fit", SOON, || {
            let vips = cluster.api(other, "show vip json");
            vips.matches("\"eligible\":true").count() == 2
        });
        cluster.must(&["kill", victim]);
        until(&format!("{other} serves the address"), Duration::from_secs(10), || {
            cluster.status().holder() == Some(other) && get(&vip, "/", &[]).is_ok_and(|r| r.status == 200)
        });
        until("commands are taken", SOON, || {
            cluster.api(other, "set server webservers/s1 weight 4").trim().is_empty()
        });
        cluster.must(&["start", victim]);
        cluster.wait_running(victim);
    }
}

#[test]
fn what_would_cost_the_quorum_is_refused_in_time() {
    let cluster = Cluster::up();
    cluster.must(&["kill", "n3"]);
    until("its death is noticed", SOON, || {
        let json = agreed(&cluster, "n1");
        let nodes = json["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|n| n["name"] == "n3" && n["state"] == "unreachable")
    });
    let began = Instant::now();
    let answer = cluster.api("n1", "cluster leave n2");
    assert!(answer.contains("without 'n2' 1 of the 2 voters that are left would be reachable"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    cluster.must(&["kill", "n2"]);
    until("its death is noticed", SOON, || agreed(&cluster, "n1")["quorum"] == false);
    let began = Instant::now();
    let addr = cluster.base().at(14, 7100);
    let answer = cluster.api("n1", &format!("cluster join n4 {addr}"));
    assert!(answer.contains("1 of 3 nodes reachable"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(2) + Duration::from_millis(500), "{:?}", began.elapsed());
    for (command, text) in [
        ("cluster join", "expects the name of a node and its address"),
        ("cluster join n4 nowhere", "Invalid address 'nowhere', expects host:port."),
        ("cluster leave n9", "n9"),
    ] {
        let answer = cluster.api("n1", command);
        assert!(answer.contains(text), "{command}: {answer}");
    }
}

#[test]
fn nodes_restarted_one_by_one_under_load_lose_nothing() {
    let cluster = Cluster::up();
    let three = ["n1", "n2", "n3"];
    let vip = cluster.base().at(100, 8080);
    until("the address serves", SOON, || get(&vip, "/", &[]).is_ok_and(|r| r.status == 200));
    let load = Load::start(&vip, "/", 2, Duration::from_secs(5));
    let mut sum = 0;
    for (i, node) in three.into_iter().enumerate() {
        sum += count(&cluster, &three, "carol", 6);
        all_count(&cluster, &three, "carol", sum);
        let weight = i + 3;
        let answer = cluster.api(node, &format!("set server webservers/s{} weight {weight}", i + 1));
        assert!(answer.trim().is_empty(), "{answer}");
        // In order, as an upgrade of the program does it.
        let pid = cluster.status().node(node).pid.unwrap();
        kill(pid, Signal::SIGTERM);
        until("it has ended", SOON, || cluster.status().node(node).state == "stopped");
        cluster.must(&["start", node]);
        cluster.wait_running(node);
        all_agree(&cluster, &three);
        all_count(&cluster, &three, "carol", sum);
        until("all are fit to hold the address", SOON, || cluster.all_fit(node));
    }
    for node in three {
        for i in 0..3 {
            let weight = cluster.api(node, &format!("get weight webservers/s{}", i + 1));
            assert!(weight.starts_with(&format!("{} ", i + 3)), "on {node}: {weight}");
        }
    }
    let outcomes = load.finish();
    let wrong = outcomes.iter().filter(|o| matches!(o.result, Ok(s) if s != 200)).count();
    assert_eq!(wrong, 0, "{}", summary(&outcomes));
    let good: Vec<Duration> = outcomes.iter().filter(|o| o.result.is_ok()).map(|o| o.at).collect();
    let gap = good.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    println!("{}, longest gap {gap:?}", summary(&outcomes));
    assert!(gap < Duration::from_secs(3), "the address was silent for {gap:?}");
}
