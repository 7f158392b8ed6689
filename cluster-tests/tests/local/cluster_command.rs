//! `phalanx cluster` itself: what it leaves behind, and what it says when something is in the way.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::{Base, Cluster, Signal, kill, phalanx, until};

/// Whether a process exists.
fn exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// All processes that run a file below `dir` or name it in their arguments or environment.
fn processes_of(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
            continue;
        }
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let words = [read("cmdline"), read("environ")].concat();
        if String::from_utf8_lossy(&words).contains(dir) {
            found.push((pid, String::from_utf8_lossy(&read("cmdline")).replace('\0', " ")));
        }
    }
    found
}

#[test]
fn an_interrupt_leaves_nothing_behind_but_the_data_of_a_named_directory() {
    let mut cluster = Some(Cluster::up());
    let up = cluster.as_ref().unwrap();
    let dir = up.dir();
    let name = dir.display().to_string();
    assert!(processes_of(&name).len() >= 5, "supervisor, three nodes, demo: {:?}", processes_of(&name));
    kill(up.supervisor(), Signal::SIGINT);
    until("all processes are gone", Duration::from_secs(15), || processes_of(&name).is_empty());
    let left: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n != "data" && n != "phalanx.cfg" && !n.ends_with(".log"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    drop(cluster.take());
}

#[test]
fn a_killed_supervisor_takes_its_nodes_along_and_down_sweeps_up() {
    let cluster = Cluster::up();
    let pids: Vec<u32> = cluster.status().nodes.iter().filter_map(|n| n.pid).collect();
    kill(cluster.supervisor(), Signal::SIGKILL);
    until("the nodes are gone", Duration::from_secs(10), || !pids.iter().any(|p| exists(*p)));
    cluster.must(&["down"]);
    assert!(!cluster.dir().join("control.sock").exists());
    let out = cluster.run(&["status"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("no cluster is running in"));
}

#[test]
fn detached_it_stays_until_down_and_is_one_per_directory() {
    let base = Base::free();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("c");
    let run = |words: &[&str]| {
        let mut command = Command::new(phalanx());
        command.arg("cluster").args(words).arg("--dir").arg(&dir).stdin(Stdio::null());
        command.output().unwrap()
    };
    let up = run(&["up", "--detach", "--base", base.prefix(), "--nodes", "1"]);
    let text = String::from_utf8_lossy(&up.stdout).into_owned();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    for part in ["n1 (leader)", &base.at(11, 9999), &base.at(11, 8080), &base.ip(100)] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let again = run(&["up", "--detach", "--base", base.prefix()]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");

    for (verb, message) in [(["partition", "n1"], "--netns"), (["kill", "n9"], "there are: n1")] {
        let out = run(&verb);
        assert!(!out.status.success());
        assert!(String::from_utf8_lossy(&out.stderr).contains(message), "{out:?}");
    }
    let down = run(&["down"]);
    assert!(down.status.success(), "{down:?}");
    assert!(processes_of(&dir.display().to_string()).is_empty());
}

#[test]
fn an_address_in_use_is_named_before_anything_starts() {
    let base = Base::free();
    let dir = tempfile::tempdir().unwrap();
    let taken = base.at(12, 9999);
    let _listener = TcpListener::bind(&taken).unwrap();
    let mut command = Command::new(phalanx());
    command.args(["cluster", "up", "--base", base.prefix(), "--dir"]).arg(dir.path().join("c"));
    let out = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(error.contains(&taken) && error.contains("the Runtime API of node n2"), "{error}");
}

#[test]
fn a_configuration_with_errors_is_shown_with_its_lines() {
    let base = Base::free();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.cfg");
    std::fs::write(&file, "listen l\n    bind 127.0.0.1:1\n    ballance roundrobin\n").unwrap();
    let mut command = Command::new(phalanx());
    command.args(["cluster", "up", "--base", base.prefix(), "--config"]).arg(&file);
    command.arg("--dir").arg(dir.path().join("c"));
    let out = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(error.contains("bad.cfg:3]") && error.contains("ballance"), "{error}");
}
