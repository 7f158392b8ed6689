//! A configuration by the cluster: pushed to all nodes or to none, in turn, and taken back when a node
//! fails with it or dies.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, Load, Signal, eventually, kill, phalanx, summary, until};

const SOON: Duration = Duration::from_secs(30);

/// The built-in configuration with quick checks, so that a node is not watched for long.
fn built_in() -> String {
    include_str!("../../../deploy/local/phalanx.cfg")
        .replace("inter 1s", "inter 200ms")
        .replace("check maxconn 1", "check inter 200ms maxconn 1")
}

fn up() -> Cluster {
    Cluster::builder().config(built_in()).up()
}

/// `phalanx ctl` at a node.
fn ctl(cluster: &Cluster, node: &str, words: &[&str]) -> Output {
    let socket = cluster.status().node(node).cli.clone().expect("a node has a Runtime API");
    Command::new(phalanx()).args(["ctl", "-S", &socket]).args(words).output().expect("phalanx starts")
}

/// Pushes a text; whether that was done, and what was said.
fn push(cluster: &Cluster, node: &str, text: &str) -> (bool, String) {
    push_at(cluster, &cluster.status().node(node).cli.clone().expect("a node has a Runtime API"), text)
}

/// The same where the socket is known: the supervisor says nothing while it takes in a node.
fn push_at(cluster: &Cluster, socket: &str, text: &str) -> (bool, String) {
    let file = cluster.dir().join("pushed.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(phalanx());
    command.args(["ctl", "-S", socket, "config", "push"]).arg(&file);
    let out = command.output().expect("phalanx starts");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{said}");
    (out.status.success(), said)
}

/// What each node runs: epoch and state, as `node` sees it, and the process-wide maxconn there.
fn runs(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let status = cluster.api(node, "show config status");
    let rows = status.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    rows.map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        (words[1].to_owned(), words[2].to_owned())
    })
    .collect()
}

fn maxconn(cluster: &Cluster, node: &str) -> String {
    let info = cluster.api(node, "show info");
    info.lines().find_map(|l| l.strip_prefix("Maxconn: ")).expect("show info has it").to_owned()
}

fn all_run(cluster: &Cluster, epoch: &str, state: &str, limit: &str) {
    for node in ["n1", "n2", "n3"] {
        until(&format!("epoch {epoch} on all, as {node} sees it"), SOON, || {
            runs(cluster, node).iter().all(|r| *r == (epoch.to_owned(), state.to_owned()))
        });
        assert_eq!(maxconn(cluster, node), limit, "on {node}");
    }
}

fn with_maxconn(limit: u32) -> String {
    built_in().replace("maxconn 1000", &format!("maxconn {limit}"))
}

fn log(cluster: &Cluster, node: &str) -> String {
    std::fs::read_to_string(cluster.dir().join(format!("{node}.log"))).unwrap_or_default()
}

#[test]
fn a_push_reaches_all_nodes_without_a_failed_request_and_survives() {
    let cluster = up();
    let holder = cluster.wait_for_holder(SOON);
    let loads: Vec<Load> = ["n1", "n2", "n3"]
        .iter()
        .map(|n| Load::start(&cluster.at(n, 8081), "/", 1, Duration::from_secs(10)))
        .collect();
    let (done, said) = push(&cluster, "n2", &with_maxconn(1500));
    assert!(done && said.contains("Epoch 1 is in force on: "), "{said}");
    let order = said.lines().find_map(|l| l.strip_prefix("Epoch 1 is in force on: ")).unwrap();
    assert!(order.trim_end_matches('.').ends_with(&holder), "the holder comes last: {order}");
    for load in loads {
        let outcomes = load.finish();
        println!("{}", summary(&outcomes));
        assert!(
            outcomes.len() > 20 && outcomes.iter().all(|o| o.result == Ok(200)),
            "{}",
            summary(&outcomes)
        );
    }
    all_run(&cluster, "1", "in-force", "1500");
    let log = log(&cluster, &holder);
    let moved = log.find("vip web: moved to '").expect("it was moved away");
    assert!(moved < log.find("this node runs epoch 1").unwrap(), "{log}");
    assert_ne!(cluster.wait_for_holder(SOON), holder);

    // The text in force is shown, on all nodes the same.
    let shown = |node: &str| cluster.api(node, "show config");
    assert!(shown("n1").starts_with("# epoch 1: ") && shown("n1").contains("\n    maxconn 1500\n"));
    assert_eq!(shown("n1"), shown("n3"));

    // Over a restart, and a reload, the epoch goes on.
    cluster.must(&["kill", "n3"]);
    cluster.must(&["start", "n3"]);
    cluster.wait_running("n3");
    all_run(&cluster, "1", "in-force", "1500");
    assert!(self::log(&cluster, "n3").contains("Epoch 1 of the cluster's configuration"));
    let said = cluster.api("n3", "reload");
    assert!(said.contains("Success=1") && said.contains("Epoch 1 of the cluster's configuration"), "{said}");
    assert_eq!(maxconn(&cluster, "n3"), "1500");

    // Forward to a second one, back to the first, and back to the files.
    assert!(push(&cluster, "n3", &with_maxconn(1600)).0);
    all_run(&cluster, "2", "in-force", "1600");
    assert!(ctl(&cluster, "n1", &["config", "rollback"]).status.success());
    all_run(&cluster, "3", "in-force", "1500");
    let history = cluster.api("n2", "config history");
    let rows: Vec<&str> = history.lines().filter(|l| l.starts_with(char::is_numeric)).collect();
    assert!(rows.len() == 3 && rows[1].ends_with("replaced") && rows[2].ends_with("in force"), "{history}");
    assert!(rows[2].contains("(again 1)"), "{history}");
    assert!(ctl(&cluster, "n1", &["config", "detach"]).status.success());
    all_run(&cluster, "4", "in-force", "1000");
}

#[test]
fn a_push_ends_while_a_member_joins_leaves_or_dies() {
    let cluster = up();
    let socket = cluster.status().node("n1").cli.clone().unwrap();
    for (limit, change) in [(1500, ["join", "n4"]), (1501, ["leave", "n2"]), (1502, ["kill", "n3"])] {
        let began = Instant::now();
        let (pushed, changed) = std::thread::scope(|scope| {
            let push = scope.spawn(|| push_at(&cluster, &socket, &with_maxconn(limit)));
            let change = scope.spawn(|| cluster.run(&change));
            (push.join().unwrap(), change.join().unwrap())
        });
        let said = String::from_utf8_lossy(&[changed.stdout, changed.stderr].concat()).into_owned();
        println!("{change:?} and a push took {:?}: {} {said}", began.elapsed(), pushed.0);
        assert!(changed.status.success(), "{change:?}: {said}");
        assert!(!pushed.1.trim().is_empty() && began.elapsed() < Duration::from_secs(60), "{}", pushed.1);
        if change[0] == "kill" {
            cluster.must(&["start", change[1]]);
            cluster.wait_running(change[1]);
        }
        // Applied on all or taken back on all, also on who came meanwhile.
        let members = if change[0] == "join" { &["n1", "n2", "n3", "n4"][..] } else { &["n1", "n3", "n4"] };
        until("all run the same", SOON, || {
            let seen = runs(&cluster, "n1");
            let limits: Vec<String> = members.iter().map(|n| maxconn(&cluster, n)).collect();
            seen.len() == members.len()
                && seen.iter().all(|r| *r == seen[0] && r.1 == "in-force")
                && limits.iter().all(|l| *l == limits[0])
        });
        if pushed.0 {
            assert_eq!(maxconn(&cluster, "n1"), limit.to_string());
        }
    }
    // And the next one is taken as ever.
    let (done, said) = push(&cluster, "n3", &with_maxconn(1600));
    assert!(done, "{said}");
}

#[test]
fn what_a_node_cannot_run_changes_nothing_anywhere() {
    let cluster = up();
    // Refused by the check, with its place.
    let bad = built_in().replace("balance leastconn", "balance leastcon");
    let line = 1 + bad.lines().position(|l| l.contains("leastcon")).unwrap();
    let (done, said) = push(&cluster, "n1", &bad);
    assert!(!done && said.contains("nothing was changed on any node"), "{said}");
    assert!(
        said.contains("Refused by n1, n2, n3:") && said.contains(&format!("pushed.cfg:{line}]")),
        "{said}"
    );
    let other = built_in().replace("cluster local", "cluster other").replace("peers local", "peers other");
    let (done, said) = push(&cluster, "n1", &other);
    assert!(!done && said.contains("its cluster is 'other', this one is 'local'"), "{said}");
    assert_eq!(cluster.api("n1", "config history").lines().count(), 2, "no epoch was made");

    // Right on all nodes but for an address that is taken on n2: it is taken back everywhere.
    let n2 = cluster.at("n2", 7777);
    let taken = TcpListener::bind(&n2).unwrap();
    let bind = "bind \"${NODE_ADDR}:8081\"";
    let text = with_maxconn(1500).replace(bind, &format!("{bind}\n    bind \"${{NODE_ADDR}}:7777\""));
    let (done, said) = push(&cluster, "n3", &text);
    assert!(!done && said.contains("Epoch 1 was taken back on all nodes: node 'n2': "), "{said}");
    assert!(said.contains(&format!("cannot bind {n2}")), "{said}");
    all_run_old(&cluster);
    for node in ["n1", "n3"] {
        assert!(TcpListener::bind(cluster.at(node, 7777)).is_ok(), "{node} has let go of it");
    }

    // Every node would lose all its servers: the first that notices stops it.
    let dead =
        built_in().replace("${SERVER_ADDR}:980", "${SERVER_ADDR}:97").replace("maxconn 1000", "maxconn 1501");
    let (done, said) = push(&cluster, "n1", &dead);
    assert!(!done && said.contains("has no usable server any more"), "{said}");
    all_run_old(&cluster);

    // And the one after it is taken.
    drop(taken);
    let (done, said) = push(&cluster, "n3", &text);
    assert!(done, "{said}");
    all_run(&cluster, "3", "in-force", "1500");
}

/// All nodes run their files, and the rollout has ended.
fn all_run_old(cluster: &Cluster) {
    for node in ["n1", "n2", "n3"] {
        until(&format!("the files on all, as {node} sees it"), SOON, || {
            cluster.api(node, "show config status").starts_with("# in force: epoch 0, rollout: none\n")
                && runs(cluster, node).iter().all(|(epoch, _)| epoch == "0" || epoch == "-")
        });
        assert_eq!(maxconn(cluster, node), "1000", "on {node}");
    }
}

/// The node whose turn it is.
fn applying(cluster: &Cluster, seen_by: &str) -> Option<String> {
    let names = ["n1", "n2", "n3"];
    let at = runs(cluster, seen_by).iter().position(|(_, state)| state == "applying")?;
    Some(names[at].to_owned())
}

#[test]
fn kills_in_the_middle_leave_no_half_state() {
    let cluster = up();
    let file = cluster.dir().join("pushed.cfg");
    let start = |limit: u32, at: &str| {
        std::fs::write(&file, with_maxconn(limit)).unwrap();
        let socket = cluster.status().node(at).cli.clone().unwrap();
        let mut command = Command::new(phalanx());
        command.args(["ctl", "-S", &socket, "config", "push"]).arg(&file);
        command.stdout(std::process::Stdio::null()).spawn().expect("phalanx starts")
    };
    let pid = |node: &str| cluster.status().node(node).pid.expect("it runs");
    let gone = |node: &str| until("it is gone", SOON, || cluster.status().node(node).state == "stopped");

    // The first node to apply dies while it does: all go back.
    let mut client = start(1500, "n1");
    let first = eventually("a node applies", SOON, || applying(&cluster, "n1"));
    kill(pid(&first), Signal::SIGKILL);
    gone(&first);
    let _ = client.wait();
    let rest: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|n| *n != first).collect();
    until("it is taken back", SOON, || {
        cluster.api(rest[0], "show config status").starts_with("# in force: epoch 0, rollout: none\n")
    });
    let history = cluster.api(rest[0], "config history");
    assert!(history.contains(&format!("taken back: node '{first}': ")), "{history}");
    cluster.must(&["start", &first]);
    cluster.wait_running(&first);
    all_run_old(&cluster);

    // The node that took the command dies after another one has begun: the others carry on, and it
    // takes the epoch when it is back.
    let holder = cluster.wait_for_holder(SOON);
    let mut client = start(1600, &holder);
    let other =
        eventually("another node applies", SOON, || applying(&cluster, &holder).filter(|n| *n != holder));
    kill(pid(&holder), Signal::SIGKILL);
    gone(&holder);
    let _ = client.wait();
    until("the others carry on", SOON, || {
        cluster.api(&other, "show config status").starts_with("# in force: epoch 2, rollout: none\n")
    });
    assert_eq!(maxconn(&cluster, &other), "1600");
    cluster.must(&["start", &holder]);
    cluster.wait_running(&holder);
    all_run(&cluster, "2", "in-force", "1600");

    // All at once in the middle.
    let mut client = start(1700, "n1");
    eventually("a node applies", SOON, || applying(&cluster, "n1"));
    for node in ["n1", "n2", "n3"] {
        kill(pid(node), Signal::SIGKILL);
    }
    let _ = client.wait();
    ["n1", "n2", "n3"].iter().for_each(|n| gone(n));
    cluster.must(&["start", "n1", "n2", "n3"]);
    ["n1", "n2", "n3"].iter().for_each(|n| cluster.wait_running(n));
    all_run(&cluster, "2", "in-force", "1600");
    assert!(push(&cluster, "n1", &with_maxconn(1800)).0);
    all_run(&cluster, "4", "in-force", "1800");
}
