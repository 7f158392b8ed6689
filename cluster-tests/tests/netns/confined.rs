//! A node that has become `nobody` in a root directory of its own still holds a floating address by
//! ARP, and loses it when it dies.

use std::fs;
use std::process::Command;
use std::time::Duration;

use cluster_tests::{Demo, Node, Signal, get, kill, until};

use super::inside;

const SOON: Duration = Duration::from_secs(10);

pub(super) const CONFIG: &str = "\
global
    localpeer n1
    user nobody
    group nogroup
    chroot DIR/jail
    stats socket DIR/sock mode 600 level admin
cluster c
    node n1 127.0.0.1:7100
    data-dir DIR/jail/data
    vip web 198.51.100.7/24 interface eth0 announce arp
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
listen web
    bind 198.51.100.7:80
    server s1 127.0.0.1:9801
";

/// A network namespace with one interface, removed with the test.
pub(super) struct Namespace(pub(super) String);

impl Namespace {
    pub(super) fn new(purpose: &str) -> Namespace {
        let name = format!("phx-{purpose}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        let space = Namespace(name);
        space.link();
        space
    }

    /// Makes the interface.
    pub(super) fn link(&self) {
        for args in [
            &["link", "add", "eth0", "type", "veth", "peer", "name", "far"][..],
            &["link", "set", "far", "up"],
            &["link", "set", "lo", "up"],
            &["addr", "add", "198.51.100.1/24", "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            ip(&[&["-n", &self.0], args].concat());
        }
    }

    pub(super) fn has_vip(&self) -> bool {
        ip(&["-n", &self.0, "addr", "show", "dev", "eth0"]).contains("198.51.100.7/")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The guardians of a node, in the order of their pids.
fn guardians(node: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{node}/task/{node}/children")).unwrap_or_default();
    let mut pids: Vec<u32> = children.split_whitespace().map(|w| w.parse().unwrap()).collect();
    pids.sort_unstable();
    pids
}

/// Whether a process has the user id of `nobody`, four times.
pub(super) fn is_nobody(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().any(|l| l.starts_with("Uid:") && l.matches("65534").count() == 4)
}

#[test]
fn a_node_in_chroot_without_root_holds_a_vip_by_arp() {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("not run: it needs root and the program 'ip'");
        return;
    }
    let space = Namespace::new("test");
    let (_servers, mut node) = inside(&space.0, || {
        let servers = Demo::start(&[("s1", "127.0.0.1:9801".into())], &[]);
        (servers, Node::start_with(CONFIG, "DIR/sock", |dir| fs::create_dir(dir.join("jail"))))
    });
    until("the address is there", SOON, || space.has_vip());
    let fetch = || inside(&space.0, || get("198.51.100.7:80", "/", &[]).unwrap());
    assert_eq!(fetch().server(), "s1");
    assert!(is_nobody(node.pid()), "{}", node.output());
    let root = fs::read_link(format!("/proc/{}/root", node.pid())).unwrap();
    assert!(root.ends_with("jail"), "{root:?}");
    let waiting = guardians(node.pid());
    assert!(!waiting.is_empty() && waiting.iter().all(|g| is_nobody(*g)), "{waiting:?}");

    let reloaded = node.api("reload");
    assert!(reloaded.contains("Reload done.") && !reloaded.contains("next start"), "{reloaded}");

    // Its guardian is killed: another takes its place.
    kill(*waiting.last().unwrap(), Signal::SIGKILL);
    until("another runs", SOON, || node.output().contains("another guardian runs"));
    assert!(node.runs());
    until("the address is there", SOON, || space.has_vip());
    assert_eq!(fetch().server(), "s1");

    // The node is killed: the guardian takes the address off.
    node.signal(Signal::SIGKILL);
    until("the address is gone", Duration::from_secs(1), || !space.has_vip());
}
