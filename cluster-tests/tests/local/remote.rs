//! `@NODE`, `@all` and `local`: commands run on the nodes that are meant, and silent nodes are named.

use std::time::{Duration, Instant};

use cluster_tests::{Cluster, until};

const SOON: Duration = Duration::from_secs(15);

/// The headings of an answer to `@all`, and the lines below each.
fn sections(answer: &str) -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in answer.trim_end().lines() {
        match line.strip_prefix('@').filter(|l| !l.starts_with('@')) {
            Some(heading) => sections.push((heading.to_owned(), Vec::new())),
            None => sections.last_mut().expect("a heading comes first").1.push(line.to_owned()),
        }
    }
    sections
}

fn headings(answer: &str) -> Vec<String> {
    sections(answer).into_iter().map(|(heading, _)| heading).collect()
}

#[test]
fn commands_run_where_they_are_meant_to() {
    let cluster = Cluster::up();
    for node in ["n1", "n2", "n3"] {
        let info = cluster.api("n1", &format!("@{node} show info"));
        assert!(info.lines().any(|l| l == format!("node: {node}")), "{info}");
    }
    let all = sections(&cluster.api("n2", "@all show info"));
    assert_eq!(all.len(), 3);
    for ((heading, lines), node) in all.iter().zip(["n1", "n2", "n3"]) {
        assert_eq!(heading, &format!("{node}: ok"));
        assert!(lines.contains(&format!("node: {node}")), "{heading}: {lines:?}");
    }

    // What is agreed may be asked for anywhere, but not for one node only.
    assert_eq!(cluster.api("n1", "@n3 set weight webservers/s1 7").trim(), "");
    until("the weight is the same on all", SOON, || {
        let all = sections(&cluster.api("n2", "@all get weight webservers/s1"));
        all.iter().all(|(_, lines)| lines == &["7 (initial 1)"])
    });
    let refused = cluster.api("n1", "local set weight webservers/s1 9");
    assert!(refused.starts_with("Not done: what this changes is agreed by all nodes"), "{refused}");
    let refused = cluster.api("n1", "local cluster leave n3");
    assert!(refused.contains("cannot be changed on this node only"), "{refused}");
    let refused = cluster.api("n1", "local clear table app");
    assert!(refused.starts_with("Not done: "), "{refused}");
    assert_eq!(cluster.api("n1", "local get weight webservers/s1").trim(), "7 (initial 1)");
    assert_eq!(
        headings(&cluster.api("n1", "@all set weight nosuch/s1 9")),
        ["n1: refused", "n2: refused", "n3: refused"]
    );

    // Never in circles, and by the level of who asks.
    let refused = cluster.api("n1", "@n2 @n1 show info");
    assert!(refused.contains("not passed on from node to node"), "{refused}");
    let lowered = cluster.api("n1", "user; @n2 disable server webservers/s1; @n2 show cli level");
    assert_eq!(lowered, "\nPermission denied\n\nuser\n\n");

    // Lists, and other nodes' dumps of any length.
    let list = cluster.api("n1", "@n2 echo a; echo b; @n3 echo c");
    assert_eq!(list, "a\n\nb\n\nc\n\n");
    let long: String = "x".repeat(15_000);
    let echoed = cluster.api("n1", &format!("@n2 echo {long}"));
    assert_eq!(echoed.trim_end(), long);
}

#[test]
fn nodes_that_are_gone_or_stand_still_are_named_in_time() {
    let cluster = Cluster::up();
    cluster.must(&["kill", "n3"]);
    cluster.must(&["pause", "n2"]);
    let began = Instant::now();
    let answer = cluster.api("n1", "@all show info");
    let took = began.elapsed();
    let found = headings(&answer);
    println!("after {took:?}: {found:?}");
    assert_eq!(found[0], "n1: ok");
    assert!(found[1].starts_with("n2: unreachable: does not answer within "), "{found:?}");
    assert!(found[2].starts_with("n3: unreachable: "), "{found:?}");
    assert!(took < Duration::from_millis(2500), "{took:?}");
    let answer = cluster.api("n1", "@n3 show info");
    assert!(answer.starts_with("Node 'n3': "), "{answer}");
    cluster.must(&["resume", "n2"]);
    until("n2 answers again", SOON, || cluster.api("n1", "@n2 echo a").trim() == "a");
}
