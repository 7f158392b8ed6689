//! The cluster's port over TLS: nodes know each other by their certificates, and nobody else gets in.

use std::process::Command;
use std::time::Duration;

use cluster_tests::{Authority, Base, Demo, Node, Signal, get, phalanx, until};

const SOON: Duration = Duration::from_secs(15);

struct Place {
    base: Base,
    ca: Authority,
    _servers: Demo,
}

impl Place {
    fn new() -> Place {
        let base = Base::free();
        let _servers = Demo::start(&[("s1", base.at(1, 9801))], &[]);
        Place { base, ca: Authority::new(), _servers }
    }

    /// Node `n<i>` of three; `ssl` is its line in the section.
    fn config(&self, i: u8, ssl: &str) -> String {
        let nodes: Vec<String> =
            (1..=3).map(|i| format!("    node n{i} {}\n", self.base.at(10 + i, 7100))).collect();
        format!(
            "global\n    localpeer n{i}\n    stats socket DIR/sock mode 600 level admin\n\
             cluster prod\n{}    data-dir DIR/data\n    {ssl}\n    vip web {} announce listen\n\
             defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
             listen web\n    bind {}\n    bind {}\n    http-request track-sc0 src\n\
             \x20   stick-table type ip size 100 expire 1h store http_req_cnt peers prod\n    server s1 {}\n",
            nodes.concat(),
            self.base.ip(99),
            self.base.at(10 + i, 8080),
            self.base.at(99, 8080),
            self.base.at(1, 9801),
        )
    }

    fn start(&self, i: u8, ssl: &str, crt: &str) -> Node {
        let ready = self.base.at(10 + i, 8080);
        Node::start_with(&self.config(i, ssl), &ready, |dir| {
            self.ca.write(dir, crt);
            Ok(())
        })
    }

    /// A node with a certificate for its name.
    fn proper(&self, i: u8) -> Node {
        self.start(i, TLS, &self.ca.certify(&[&format!("n{i}")]))
    }

    fn forwards(&self, i: u8) {
        let response = get(&self.base.at(10 + i, 8080), "/", &[]).unwrap();
        assert_eq!((response.status, response.server()), (200, "s1"));
    }
}

const TLS: &str = "ssl crt DIR/node.pem ca-file DIR/ca.pem verify required";

/// Waits for a line of a node's output that holds all of these.
fn says(node: &Node, parts: &[&str]) {
    let deadline = std::time::Instant::now() + SOON;
    while !node.output().lines().any(|l| parts.iter().all(|p| l.contains(p))) {
        assert!(std::time::Instant::now() < deadline, "nothing with {parts:?} in:\n{}", node.output());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing is said twice, and nothing panics.
fn said_once(nodes: &[&Node]) {
    for node in nodes {
        let output = node.output();
        assert!(!output.contains("panicked"), "{output}");
        let warnings = output.lines().filter_map(|l| l.split_once(" WARN ")).map(|(_, text)| text);
        let mut warnings: Vec<&str> = warnings.collect();
        let told = warnings.len();
        warnings.sort_unstable();
        warnings.dedup();
        assert_eq!(warnings.len(), told, "each is told once:\n{output}");
    }
}

/// The leader that a node knows.
fn leader(node: &Node) -> Option<String> {
    let shown = node.api("show cluster json");
    let shown: serde_json::Value = serde_json::from_str(&shown).expect(&shown);
    shown["leader"].as_str().map(str::to_owned)
}

fn counts(node: &Node, wanted: u64) -> bool {
    node.api("show table web").contains(&format!("http_req_cnt={wanted}"))
}

#[test]
fn a_cluster_forms_shares_its_tables_and_moves_a_vip_over_tls() {
    let place = Place::new();
    // By name, by address, and by both.
    let n1 = place.proper(1);
    let n2 = place.start(2, TLS, &place.ca.certify(&[&place.base.ip(12)]));
    let n3 = place.start(3, TLS, &place.ca.certify(&["n3", &place.base.ip(13)]));
    let mut nodes = vec![n1, n2, n3];
    until("a leader", SOON, || nodes.iter().all(|n| leader(n).is_some()));
    (1..=3).for_each(|i| place.forwards(i));
    until("the sum on every node", SOON, || nodes.iter().all(|n| counts(n, 3)));
    assert_eq!(nodes[1].api("set weight web/s1 7").trim(), "");
    until("the command on every node", SOON, || {
        nodes.iter().all(|n| n.api("get weight web/s1").starts_with("7 (initial 1)"))
    });

    let holder = |node: &Node| {
        let shown: serde_json::Value = serde_json::from_str(&node.api("show vip json")).unwrap();
        shown["vips"][0]["holder"].as_str().map(str::to_owned)
    };
    until("a holder", SOON, || nodes.iter().all(|n| holder(n).is_some()));
    assert_eq!(get(&place.base.at(99, 8080), "/", &[]).unwrap().status, 200);
    let first = holder(&nodes[0]).unwrap();
    let dead = nodes.remove(usize::from(first.as_bytes()[1] - b'1'));
    dead.signal(Signal::SIGKILL);
    until("another holder", SOON, || nodes.iter().all(|n| holder(n).is_some_and(|h| h != first)));
    until("it serves", SOON, || get(&place.base.at(99, 8080), "/", &[]).is_ok_and(|r| r.status == 200));
    // The guardian's call went through: it is the one that would say otherwise.
    says(&dead, &["guardian", "took off: web"]);
    assert!(!dead.output().contains("not told"), "{}", dead.output());
    said_once(&nodes.iter().collect::<Vec<_>>());
}

#[test]
fn certificates_of_strangers_expired_ones_and_those_of_other_nodes_are_refused() {
    let place = Place::new();
    let n1 = place.proper(1);
    let n2 = place.proper(2);
    until("a leader", SOON, || leader(&n1).is_some() && leader(&n2).is_some());
    for (crt, own, peer) in [
        (
            Authority::new().certify(&["n3"]),
            "the certificate is not signed by the CA of 'ca-file'",
            "its certificate is not signed by the CA of 'ca-file'",
        ),
        (place.ca.certify_expired(&["n3"]), "the certificate has expired", "its certificate has expired"),
        (
            place.ca.certify(&["n2"]),
            "the certificate is neither for the node's name nor for its host",
            "its certificate is neither for the node's name nor for its host",
        ),
    ] {
        let n3 = place.start(3, TLS, &crt);
        place.forwards(3);
        says(&n3, &["WARN", "the other nodes will refuse this one", own]);
        says(&n3, &["WARN", "node 'n1'", "refuses"]);
        says(&n1, &["WARN", "node 'n3'", peer]);
        assert_eq!(leader(&n3), None, "{}", n3.output());
        assert_eq!(n3.api("show table web").matches("key=").count(), 1, "its own client alone");
        said_once(&[&n3]);
    }
    said_once(&[&n1, &n2]);
    place.forwards(1);
    // With a good one it is let in.
    let n3 = place.proper(3);
    until("it is a member", SOON, || leader(&n3).is_some());
}

#[test]
fn plain_text_and_tls_do_not_mix_and_both_say_so() {
    let place = Place::new();
    let n1 = place.proper(1);
    let n2 = place.start(2, "", "");
    // The plain node cannot open TLS, and the TLS node does not talk plain text.
    says(&n1, &["WARN", "node 'n2'", "is 'ssl' missing in its 'cluster' section?"]);
    says(&n1, &["WARN", "call from node 'n2' refused", "speaks TLS"]);
    says(&n2, &["WARN", "node 'n1'", "refuses us", "speaks TLS: 'ssl' is missing"]);
    says(&n2, &["WARN", "connection from", "it speaks TLS: 'ssl' is missing in the 'cluster' section here"]);
    place.forwards(1);
    place.forwards(2);
    assert_eq!((leader(&n1), leader(&n2)), (None, None));
    said_once(&[&n1, &n2]);
}

#[test]
fn a_reload_takes_other_certificates_and_keeps_the_old_ones_when_they_are_bad() {
    let place = Place::new();
    let n1 = place.proper(1);
    let n2 = place.start(2, TLS, &place.ca.certify_expired(&["n2"]));
    says(&n1, &["WARN", "node 'n2'", "its certificate has expired"]);
    std::fs::write(n2.dir().join("node.pem"), "nothing").unwrap();
    let answer = n2.api("reload");
    assert!(
        answer.contains("'ssl' : 'crt' file '") && answer.contains("no certificate found in it"),
        "{answer}"
    );
    place.ca.write(n2.dir(), &place.ca.certify(&["n2"]));
    let answer = n2.api("reload");
    assert!(answer.contains("Reload done.") && !answer.contains("next start"), "{answer}");
    until("they agree", SOON, || leader(&n1).is_some() && leader(&n2).is_some());
    says(&n1, &["node 'n2'", "is there"]);
}

#[test]
fn files_that_cannot_be_used_are_found_when_the_configuration_is_checked() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    place.ca.write(dir.path(), &place.ca.certify(&["n1"]));
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    for (ssl, code, said) in [
        (TLS, 0, ""),
        ("ssl crt DIR/node.pem verify none", 0, ""),
        (
            "ssl crt DIR/none.pem ca-file DIR/ca.pem",
            1,
            "phalanx.cfg:9] : 'ssl' : cannot read the 'crt' file 'DIR/none.pem': No such file or directory",
        ),
        ("ssl crt DIR/ca.pem ca-file DIR/ca.pem", 1, "'crt' file 'DIR/ca.pem': no private key found in it"),
        (
            "ssl crt DIR/node.pem ca-file DIR/empty.pem",
            1,
            "'ca-file' 'DIR/empty.pem': no certificate found in it",
        ),
    ] {
        let dir_text = dir.path().display().to_string();
        let file = dir.path().join("phalanx.cfg");
        std::fs::write(&file, place.config(1, ssl).replace("DIR", &dir_text)).unwrap();
        for check in [true, false] {
            if !check && code == 0 {
                continue;
            }
            let mut command = Command::new(phalanx());
            command.arg("-f").arg(&file).args(check.then_some("-c"));
            let out = command.output().unwrap();
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{ssl}: {text}");
            assert!(text.contains(&said.replace("DIR", &dir_text)), "{ssl}: {text}");
        }
    }
}
