//! Maps, ACLs and frontends: changed on one node, effective on all; still so after the loss of all
//! processes and of a disk; a file or configuration that says something else wins for what it changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, Signal, get, kill, until};

const SOON: Duration = Duration::from_secs(15);

/// Paths, what happens to them by the map and the ACL, and where those files are.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        std::fs::write(files.acl(), "/blocked\n").unwrap();
        files.map_says("/a pass\n/b deny\n/c pass\n");
        files
    }

    fn acl(&self) -> PathBuf {
        self.dir.path().join("blocked.acl")
    }

    fn map(&self) -> PathBuf {
        self.dir.path().join("paths.map")
    }

    fn map_says(&self, text: &str) {
        // As tools do it: beside it, then in its place.
        let new = self.dir.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.map()).unwrap();
    }

    fn cluster(&self) -> Cluster {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/phalanx.cfg");
        let text = std::fs::read_to_string(example).unwrap();
        let rules = format!(
            "frontend web\n    acl blocked path -f {}\n    acl listed path,map({}) -m str deny\n    \
             http-request deny if blocked or listed\n",
            self.acl().display(),
            self.map().display()
        );
        assert!(text.contains("frontend web\n"));
        Cluster::builder().config(text.replacen("frontend web\n", &rules, 1)).up()
    }
}

fn passes(cluster: &Cluster, node: &str, path: &str) -> bool {
    let status = get(&cluster.at(node, 8080), path, &[]).unwrap().status;
    assert!(status == 200 || status == 403, "{path} on {node}: {status}");
    status == 200
}

/// Waits until on all nodes the first paths pass and the others don't.
fn all_pass(cluster: &Cluster, passing: &[&str], denied: &[&str]) {
    for node in cluster.names() {
        for path in passing {
            until(&format!("{path} passes on {node}"), SOON, || passes(cluster, &node, path));
        }
        for path in denied {
            until(&format!("{path} is denied on {node}"), SOON, || !passes(cluster, &node, path));
        }
    }
}

/// `show cluster digests` without what need not be equal at once: stick tables have their own test.
fn digests(cluster: &Cluster, node: &str) -> Vec<String> {
    let text = cluster.api(node, "show cluster digests");
    let lines = text.lines().filter(|l| !l.starts_with("table") && !l.starts_with('#') && !l.is_empty());
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn agree(cluster: &Cluster) -> Vec<String> {
    let mut all = Vec::new();
    until("equal digests on all nodes", SOON, || {
        all = cluster.names().iter().map(|n| digests(cluster, n)).collect();
        all.windows(2).all(|w| w[0] == w[1])
    });
    for kind in ["commands", "frontend", "servers", "acl", "map"] {
        assert!(all[0].iter().any(|l| l.starts_with(kind)), "no {kind} in {:?}", all[0]);
    }
    all.remove(0)
}

fn done(cluster: &Cluster, node: &str, command: &str) {
    assert_eq!(cluster.api(node, command).trim(), "", "{command}");
}

fn accepts(cluster: &Cluster, node: &str) -> bool {
    std::net::TcpStream::connect(cluster.at(node, 8081)).is_ok()
}

/// One change of each kind, on different nodes.
fn change(cluster: &Cluster, files: &Files) {
    let (acl, map) = (files.acl().display().to_string(), files.map().display().to_string());
    all_pass(cluster, &["/", "/a", "/c"], &["/blocked", "/b"]);
    done(cluster, "n1", &format!("add acl {acl} /x"));
    assert!(!passes(cluster, "n1", "/x"), "effective here when answered");
    done(cluster, "n2", &format!("set map {map} /a deny"));
    done(cluster, "n3", &format!("add map {map} /new deny"));
    done(cluster, "n3", &format!("del map {map} /b"));
    all_pass(cluster, &["/", "/b", "/c"], &["/blocked", "/x", "/a", "/new"]);
    done(cluster, "n2", "disable frontend api");
    done(cluster, "n3", "set maxconn frontend web 77");
}

fn changed(cluster: &Cluster) {
    all_pass(cluster, &["/", "/b", "/c"], &["/blocked", "/x", "/a", "/new"]);
    for node in cluster.names() {
        until(&format!("'api' is closed on {node}"), SOON, || !accepts(cluster, &node));
        until(&format!("another maxconn on {node}"), SOON, || {
            let stat = cluster.api(&node, "show stat");
            let row = stat.lines().find(|l| l.starts_with("web,FRONTEND")).unwrap();
            row.split(',').nth(6) == Some("77")
        });
    }
}

#[test]
fn changes_are_effective_on_all_nodes_and_survive_the_loss_of_all_and_of_a_disk() {
    let files = Files::new();
    let cluster = files.cluster();
    change(&cluster, &files);
    changed(&cluster);
    let before = agree(&cluster);

    let pids: Vec<u32> = cluster.status().nodes.iter().filter_map(|n| n.pid).collect();
    assert_eq!(pids.len(), 3);
    pids.iter().for_each(|pid| kill(*pid, Signal::SIGKILL));
    until("all are gone", SOON, || cluster.status().nodes.iter().all(|n| n.state == "stopped"));
    cluster.must(&["start", "n1", "n2", "n3"]);
    cluster.names().iter().for_each(|n| cluster.wait_running(n));
    changed(&cluster);
    // Membership and discovery may have been agreed on anew; what commands changed of these has not.
    let same =
        |all: &[String]| all.iter().filter(|l| !l.starts_with("commands")).cloned().collect::<Vec<_>>();
    assert_eq!(same(&agree(&cluster)), same(&before));

    cluster.must(&["kill", "n2"]);
    until("n2 is gone", SOON, || cluster.status().node("n2").state == "stopped");
    std::fs::remove_dir_all(cluster.dir().join("data/n2")).unwrap();
    cluster.must(&["start", "n2"]);
    cluster.wait_running("n2");
    changed(&cluster);
    assert_eq!(same(&agree(&cluster)), same(&before));
    println!("digests on all nodes:\n{}", agree(&cluster).join("\n"));

    done(&cluster, "n1", "enable frontend api");
    for node in cluster.names() {
        until(&format!("'api' is open on {node}"), SOON, || accepts(&cluster, &node));
    }
}

#[test]
fn a_reload_wins_for_the_keys_that_its_file_changed() {
    let files = Files::new();
    let cluster = files.cluster();
    change(&cluster, &files);
    changed(&cluster);
    // The file changes `/a`, which a command had set, and `/c`, which none had; not `/b`.
    files.map_says("/a other\n/b deny\n/c deny\n");
    for node in cluster.names() {
        let answer = cluster.api(&node, "reload");
        assert!(answer.starts_with("Success=1"), "{answer}");
    }
    all_pass(&cluster, &["/", "/a", "/b"], &["/blocked", "/x", "/c", "/new"]);
    agree(&cluster);
    // An old command does not come to life again when the file says what it once said.
    files.map_says("/a pass\n/b deny\n/c deny\n");
    cluster.names().iter().for_each(|node| drop(cluster.api(node, "reload")));
    all_pass(&cluster, &["/", "/a", "/b"], &["/blocked", "/x", "/c", "/new"]);
    agree(&cluster);

    // As a whole: a version that replaces the file, until the file as a whole is another one.
    let map = files.map().display().to_string();
    assert!(cluster.api("n1", &format!("prepare map {map}")).contains("New version created: 1"));
    done(&cluster, "n2", &format!("add map @1 {map} <<\n/a deny\n/z deny\n"));
    all_pass(&cluster, &["/a", "/z"], &["/c"]);
    done(&cluster, "n3", &format!("commit map @1 {map}"));
    all_pass(&cluster, &["/c", "/new"], &["/a", "/z", "/x"]);
    agree(&cluster);
    files.map_says("/q deny\n");
    cluster.names().iter().for_each(|node| drop(cluster.api(node, "reload")));
    all_pass(&cluster, &["/a", "/z", "/c"], &["/q", "/x"]);
    agree(&cluster);
}

#[test]
fn without_a_majority_changes_are_refused_in_time_and_reads_go_on() {
    let files = Files::new();
    let cluster = files.cluster();
    let map = files.map().display().to_string();
    for node in ["n2", "n3"] {
        cluster.must(&["kill", node]);
        until("it is gone", SOON, || cluster.status().node(node).state == "stopped");
    }
    for command in [
        format!("set map {map} /a deny"),
        format!("add map {map} /k v"),
        format!("clear map {map}"),
        format!("prepare map {map}"),
        "disable frontend api".to_owned(),
        "set maxconn frontend web 5".to_owned(),
    ] {
        let began = Instant::now();
        let answer = cluster.api("n1", &command);
        let took = began.elapsed();
        println!("{command}: after {took:?}: {}", answer.trim());
        assert!(answer.contains("1 of 3 nodes reachable"), "{command}: {answer}");
        assert!(took < Duration::from_millis(2500), "{command}: refused after {took:?}");
    }
    assert!(cluster.api("n1", &format!("get map {map} /b")).contains("value=\"deny\""));
    assert!(cluster.api("n1", &format!("show map {map}")).contains(" /a pass"));
    assert!(passes(&cluster, "n1", "/a") && !passes(&cluster, "n1", "/b"));
    assert!(accepts(&cluster, "n1"));
}
