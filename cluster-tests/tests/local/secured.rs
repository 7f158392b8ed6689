//! What people do with a local cluster beside the ordinary: nodes that talk TLS, configurations
//! compared, a session that goes to another node.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cluster_tests::{Cluster, get, phalanx, until};

const SOON: Duration = Duration::from_secs(20);

/// Peers that a node is connected with.
fn established(cluster: &Cluster, node: &str) -> usize {
    cluster.api(node, "show peers").lines().filter(|l| l.contains("last_status=ESTA")).count()
}

#[test]
fn nodes_talk_tls_and_a_new_one_gets_its_certificate() {
    let cluster = Cluster::builder().tls().up();
    let config = std::fs::read_to_string(cluster.config()).unwrap();
    assert!(config.lines().any(|l| l.trim_start().starts_with("ssl crt ")), "{config}");
    until("all are connected", SOON, || cluster.names().iter().all(|n| established(&cluster, n) == 2));
    assert_eq!(get(&cluster.at("n2", 8080), "/", &[]).unwrap().status, 200);
    assert_eq!(cluster.api("n1", "@n3 set weight webservers/s1 7").trim(), "");
    cluster.must(&["join", "n4"]);
    until("the new one is connected", SOON, || established(&cluster, "n4") == 3);
    assert_eq!(cluster.api("n4", "get weight webservers/s1").trim(), "7 (initial 1)");
}

fn ctl(cluster: &Cluster, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(phalanx());
    command.args(["ctl", "-S", &cluster.at("n1", 9999)]).args(words).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn differences_are_shown_and_told_by_the_exit_code() {
    let cluster = Cluster::builder().nodes(1).up();
    let file = cluster.config();
    let (code, text) = ctl(&cluster, &["config", "diff", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "nothing differs: {text}");
    let changed = file.with_file_name("changed.cfg");
    let old = std::fs::read_to_string(&file).unwrap();
    let new = old.replace("maxconn 1000", "maxconn 2000");
    assert_ne!(old, new);
    std::fs::write(&changed, new).unwrap();
    let (code, text) = ctl(&cluster, &["config", "diff", changed.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    let line = |sign: &str, n: u32| {
        text.lines().any(|l| l.starts_with(sign) && l.ends_with(&format!("maxconn {n}")))
    };
    assert!(line("-", 1000) && line("+", 2000), "{text}");
    let (code, text) = ctl(&cluster, &["config", "diff", "/nowhere/at/all.cfg"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("/nowhere/at/all.cfg"), "{text}");
}

#[test]
fn a_session_goes_to_another_node_and_comes_back() {
    let cluster = Cluster::up();
    let mut session = TcpStream::connect(cluster.at("n1", 9999)).unwrap();
    session.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    session.write_all(b"prompt\n@n3\nshow info\n@n9\n@\nshow info\nquit\n").unwrap();
    let mut answer = String::new();
    session.read_to_string(&mut answer).unwrap();
    let nodes: Vec<&str> = answer.lines().filter_map(|l| l.strip_prefix("node: ")).collect();
    assert_eq!(nodes, ["n3", "n1"], "{answer}");
    assert!(answer.contains("n3> "), "the prompt says where: {answer}");
    assert!(answer.contains("'n9'"), "no such node: {answer}");
}
