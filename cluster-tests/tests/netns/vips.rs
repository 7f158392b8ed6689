//! Several floating addresses on one interface, what is done to them by hand, the other modes of
//! announcing, maintenance, and the shortest leases.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::{Client, Cluster, Node, Response, eventually, get, phalanx, until};

use super::confined::{CONFIG, Namespace};
use super::{Netns, forget_neighbours, forwarded_by, inside};

const SOON: Duration = Duration::from_secs(15);

/// A configuration with these lines in its `cluster` section, and these addresses to serve on.
fn config(lines: &str, binds: &[&str]) -> String {
    let binds: String = binds.iter().map(|addr| format!("    bind {addr}:8080\n")).collect();
    format!(
        "global
    stats socket \"ipv4@${{NODE_ADDR}}:9999\" level admin
    stats socket \"${{CLUSTER_DIR}}/${{NODE}}.sock\" mode 600 level admin
cluster local
    node n1 \"${{N1_ADDR}}:7100\"
    node n2 \"${{N2_ADDR}}:7100\"
    node n3 \"${{N3_ADDR}}:7100\"
    data-dir \"${{CLUSTER_DIR}}/data/${{NODE}}\"
{lines}
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend web
    bind \"${{NODE_ADDR}}:8080\"
    bind \"${{VIP_ADDR}}:8080\"
{binds}    default_backend webservers
backend webservers
    server s1 \"${{SERVER_ADDR}}:9801\"
"
    )
}

const WEB: &str = "    vip web \"${VIP_ADDR}/24\" interface eth0 announce arp";

fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Netns {
    fn space(&self, name: &str) -> String {
        self.client().replace("client", name)
    }

    /// By the socket in the file system, which works whatever becomes of the network.
    fn api(&self, node: &str, command: &str) -> String {
        let socket = self.cluster.dir().join(format!("{node}.sock")).display().to_string();
        cluster_tests::try_api(&socket, command, Duration::from_secs(5)).unwrap_or_default()
    }

    fn vip_json(&self, node: &str, vip: &str) -> serde_json::Value {
        let text = self.api(node, "show vip json");
        let value: serde_json::Value = serde_json::from_str(text.trim()).unwrap_or_default();
        let vips = value["vips"].as_array().cloned().unwrap_or_default();
        vips.into_iter().find(|v| v["name"] == vip).unwrap_or_default()
    }

    fn holder(&self, asked: &str, vip: &str) -> Option<String> {
        self.vip_json(asked, vip)["holder"].as_str().map(str::to_owned)
    }

    /// Waits for a holder that every node knows.
    fn settled(&self, vip: &str) -> String {
        eventually(&format!("{vip} has a holder"), SOON, || {
            let holder = self.holder("n1", vip)?;
            let agree = self.cluster.names().iter().all(|n| self.holder(n, vip).as_ref() == Some(&holder));
            agree.then_some(holder)
        })
    }

    fn noticed(&self, node: &str, text: &str) {
        until(&format!("{node} notices: {text}"), SOON, || self.api(node, "show vip").contains(text));
        let log = std::fs::read_to_string(self.cluster.dir().join(format!("{node}.log"))).unwrap();
        assert!(log.contains(text), "it is logged too");
    }

    fn all_eligible(&self, vip: &str) {
        until(&format!("all may hold {vip}"), SOON, || {
            let nodes = self.vip_json("n1", vip)["nodes"].as_array().cloned().unwrap_or_default();
            nodes.len() == 3 && nodes.iter().all(|n| n["eligible"] == true)
        });
    }
}

fn ask(client: &str, addr: &str) -> std::io::Result<Response> {
    inside(client, || Client::with_limit(addr, Duration::from_millis(500)).and_then(|mut c| c.get("/", &[])))
}

fn mac(space: &str, interface: &str) -> String {
    let shown = ip(&["-n", space, "-o", "link", "show", "dev", interface]);
    shown.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap().to_owned()
}

fn node_addr(cluster: &Cluster, node: &str) -> String {
    cluster.status().node(node).http.clone().unwrap().split(':').next().unwrap().to_owned()
}

#[test]
fn several_addresses_of_both_families_on_one_interface_move_and_neighbours_follow() {
    let lines = format!(
        "{WEB}
    vip second 198.18.7.101/24 interface eth0 announce arp
    vip six fd00:77::100/64 interface eth0 announce arp"
    );
    let Some(netns) = Netns::with(Some(config(&lines, &["198.18.7.101", "[fd00:77::100]"]))) else { return };
    let client = netns.client();
    ip(&["-n", &client, "addr", "add", "198.18.7.1/24", "dev", "eth0"]);
    ip(&["-n", &client, "addr", "add", "fd00:77::1/64", "dev", "eth0", "nodad"]);
    let web = netns.vip(8080);
    let addrs = [("web", web.as_str()), ("second", "198.18.7.101:8080"), ("six", "[fd00:77::100]:8080")];
    for (vip, _) in addrs {
        netns.settled(vip);
        netns.all_eligible(vip);
    }
    for (vip, addr) in addrs {
        until(&format!("{vip} serves"), SOON, || ask(&client, addr).is_ok_and(|r| r.status == 200));
    }
    let has = |node: &str, what: &str| {
        let space = netns.space(node);
        let neighbour = mac(&space, "eth0");
        for (vip, addr) in addrs {
            let host = addr.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
            // What the announcement did, before the client has to ask again.
            until(&format!("{what}: the client's neighbour entry of {vip} is {node}'s"), SOON, || {
                ip(&["-n", &client, "neigh", "show", host, "dev", "eth0"]).contains(&neighbour)
            });
            let expected = node_addr(&netns.cluster, node);
            until(&format!("{what}: {node} serves {vip}"), SOON, || {
                ask(&client, addr).is_ok_and(|r| forwarded_by(&r) == expected)
            });
        }
    };
    let target = if netns.settled("web") == "n2" { "n3" } else { "n2" };
    for (vip, addr) in addrs {
        if netns.settled(vip) == target {
            continue;
        }
        let began = Instant::now();
        let answer = netns.api("n1", &format!("move vip {vip} {target}"));
        assert!(answer.contains(&format!("vip '{vip}' is now held by '{target}'")), "{answer}");
        let expected = node_addr(&netns.cluster, target);
        until("the new holder answers", SOON, || {
            ask(&client, addr).is_ok_and(|r| forwarded_by(&r) == expected)
        });
        println!("{vip} answers from {target} {:?} after the move was asked for", began.elapsed());
    }
    has(target, "moved");
    let shown = ip(&["-n", &netns.space(target), "-6", "addr", "show", "dev", "eth0"]);
    let line = shown.lines().find(|l| l.contains("fd00:77::100/")).unwrap();
    assert!(line.contains("nodad") && !line.contains("tentative"), "{line}");

    netns.cluster.must(&["kill", target]);
    for (vip, addr) in addrs {
        until(&format!("{vip} serves again"), SOON, || ask(&client, addr).is_ok_and(|r| r.status == 200));
        let asked = if target == "n2" { "n3" } else { "n2" };
        let holder = netns.holder(asked, vip).unwrap();
        assert_ne!(holder, target);
        let host = addr.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
        let known = ip(&["-n", &client, "neigh", "show", host, "dev", "eth0"]);
        assert!(known.contains(&mac(&netns.space(&holder), "eth0")), "{vip} on {holder}: {known}");
    }
}

#[test]
fn what_is_done_to_an_address_by_hand_is_noticed_and_put_right() {
    let Some(netns) = Netns::with(Some(config(WEB, &[]))) else { return };
    let (client, addr) = (netns.client(), netns.vip(8080));
    let vip = addr.split(':').next().unwrap().to_owned();
    let holder = netns.settled("web");
    netns.all_eligible("web");
    until("the address serves", SOON, || ask(&client, &addr).is_ok_and(|r| r.status == 200));
    let space = netns.space(&holder);
    let other = netns.cluster.names().into_iter().find(|n| *n != holder).unwrap();
    let there = |space: &str| ip(&["-n", space, "addr", "show", "dev", "eth0"]).contains(&format!("{vip}/"));

    // Removed from the holder.
    ip(&["-n", &space, "addr", "del", &format!("{vip}/24"), "dev", "eth0"]);
    netns.noticed(&holder, &format!("address {vip} was taken off eth0: put back"));
    assert!(there(&space));
    until("it serves", SOON, || ask(&client, &addr).is_ok_and(|r| r.status == 200));

    // Added on another node: silent there at once, and taken off.
    let elsewhere = netns.space(&other);
    ip(&["-n", &elsewhere, "addr", "add", &format!("{vip}/32"), "dev", "eth0"]);
    let home = node_addr(&netns.cluster, &holder);
    while there(&elsewhere) {
        forget_neighbours(&client);
        if let Ok(response) = ask(&client, &addr) {
            assert_eq!(forwarded_by(&response), home, "the other node never answers");
        }
    }
    netns.noticed(&other, &format!("address {vip} was on eth0, and this node does not hold it: taken off"));

    // A host that is no node has it.
    let hub = netns.space("hub");
    ip(&["-n", &hub, "addr", "add", &format!("{vip}/32"), "dev", "br0"]);
    netns.noticed(&holder, &format!("another host claims address {vip} on eth0: {}", mac(&hub, "br0")));
    ip(&["-n", &hub, "addr", "del", &format!("{vip}/32"), "dev", "br0"]);
    forget_neighbours(&client);
    until("it serves", SOON, || ask(&client, &addr).is_ok_and(|r| forwarded_by(&r) == home));

    // The interface of the cluster itself goes down: the node is cut off as well.
    ip(&["-n", &space, "link", "set", "eth0", "down"]);
    let asked = other.clone();
    until("web moves away", SOON, || netns.holder(&asked, "web").is_some_and(|h| h != holder));
    until("it serves", SOON, || ask(&client, &addr).is_ok_and(|r| forwarded_by(&r) != home));
    let shown = netns.api(&holder, "show vip");
    assert!(shown.contains("interface 'eth0' is down"), "{shown}");
    ip(&["-n", &space, "link", "set", "eth0", "up"]);
    netns.all_eligible("web");
}

/// A node in a namespace of its own, that keeps its rights; `None` where there are no namespaces.
fn alone(name: &str) -> Option<(Namespace, Node)> {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("not run: it needs root and the program 'ip'");
        return None;
    }
    let space = Namespace::new(name);
    let config = CONFIG.replace("    user nobody\n    group nogroup\n    chroot DIR/jail\n", "");
    let node = inside(&space.0, || Node::start(&config, "DIR/sock"));
    Some((space, node))
}

#[test]
fn an_interface_that_is_deleted_takes_the_address_along_and_brings_it_back() {
    let Some((space, node)) = alone("del") else { return };
    until("the address is there", SOON, || space.has_vip());
    ip(&["-n", &space.0, "link", "del", "eth0"]);
    until("it says why it holds nothing", SOON, || {
        let shown = node.api("show vip");
        shown.contains("n1 (interface 'eth0' does not exist)")
            && shown.contains("not eligible: interface 'eth0' does not exist")
    });
    space.link();
    until("the address is there again", SOON, || space.has_vip());
    until("it holds it again", SOON, || node.api("show vip json").contains("\"holder\":\"n1\""));
}

#[test]
fn how_long_connections_may_go_on_after_a_move_is_said_and_a_reload_changes_it() {
    let lines = format!("{WEB}\n    vip-drain 1h");
    let text = config(&lines, &[]).replace("timeout client 5s", "timeout client 1m");
    let Some(netns) = Netns::with(Some(text.clone())) else { return };
    let (client, addr) = (netns.client(), netns.vip(8080));
    let holder = netns.settled("web");
    netns.all_eligible("web");
    let idle = inside(&client, || {
        let mut idle = Client::with_limit(&addr, SOON).unwrap();
        assert_eq!(idle.get("/", &[]).unwrap().status, 200);
        idle
    });
    let next = netns.cluster.names().into_iter().find(|n| *n != holder).unwrap();
    let answer = netns.api("n1", &format!("move vip web {next}"));
    assert!(answer.contains("is now held by"), "{answer}");
    let file = netns.cluster.dir().with_file_name("own.cfg");
    std::fs::write(file, text.replace("vip-drain 1h", "vip-drain 1s")).unwrap();
    let answer = netns.api(&holder, "reload");
    assert!(answer.contains("Reload done") && !answer.contains("next start"), "{answer}");
    until("it is not kept any longer", SOON, || {
        let log = std::fs::read_to_string(netns.cluster.dir().join(format!("{holder}.log"))).unwrap();
        log.contains("1 connections are left after 'vip-drain' 1s")
    });
    drop(idle);
}

#[test]
fn a_link_that_goes_down_is_left_at_once() {
    const ROUNDS: usize = 9;
    let Some((space, _node)) = alone("down") else { return };
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            until("the address is there", SOON, || space.has_vip());
            ip(&["-n", &space.0, "link", "set", "eth0", "down"]);
            let began = Instant::now();
            while space.has_vip() {
                assert!(began.elapsed() < SOON, "it is never taken off");
            }
            let took = began.elapsed();
            ip(&["-n", &space.0, "link", "set", "eth0", "up"]);
            took
        })
        .collect();
    took.sort_unstable();
    println!("from the loss of the link until the address is off: {took:?}");
    // The kernel says so: a look every 100 ms alone would find it after 50 ms more often than not.
    assert!(took[ROUNDS / 2] < Duration::from_millis(45), "{took:?}");
}

#[test]
fn health_port_and_exec_follow_the_lease_and_maintenance_keeps_them_off() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (hook, log) = (dir.path().join("hook"), dir.path().join("log"));
    let script = format!(
        "#!/bin/sh\necho $PHALANX_ACTION $PHALANX_NODE $PHALANX_EPOCH >> {}\ntest ! -e {}/fail.$PHALANX_NODE\n",
        log.display(),
        dir.path().display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lines = format!(
        "{WEB}
    vip lb 198.18.9.1 announce health-port 7080
    vip route 198.18.9.2 announce exec {} on-quorum-loss hold",
        hook.display()
    );
    let Some(netns) = Netns::with(Some(config(&lines, &[]))) else { return };
    let client = netns.client();
    let names = netns.cluster.names();
    let answers = |node: &str| {
        let addr = format!("{}:7080", node_addr(&netns.cluster, node));
        ask(&client, &addr).is_ok_and(|r| r.status == 200)
    };
    let only = |holder: &str| names.iter().all(|n| answers(n) == (n == holder));
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    for vip in ["web", "lb", "route"] {
        netns.settled(vip);
        netns.all_eligible(vip);
    }
    let first = netns.settled("lb");
    until("only the holder answers health checks", SOON, || only(&first));
    let next = names.iter().find(|n| **n != first).unwrap();
    let answer = netns.api("n1", &format!("move vip lb {next}"));
    assert!(answer.contains(&format!("held by '{next}'")), "{answer}");
    until("only the new holder answers health checks", SOON, || only(next));

    // The program is told of each tenure; where it fails, the VIP goes elsewhere.
    let from = netns.settled("route");
    until("the program has run", SOON, || said().contains(&format!("acquire {from} ")));
    let bad = names.iter().find(|n| **n != from).unwrap();
    std::fs::write(dir.path().join(format!("fail.{bad}")), "").unwrap();
    netns.api("n1", &format!("move vip route {bad}"));
    until("the program failed there", SOON, || {
        netns.api(bad, "show vip").contains("cannot be announced")
            && said().contains(&format!("release {bad} "))
    });
    until("a third has it", SOON, || netns.holder("n1", "route").is_some_and(|h| h != *bad));
    let lines = said();
    let epochs: Vec<u64> = lines
        .lines()
        .filter(|l| l.starts_with("acquire"))
        .map(|l| l.split(' ').nth(2).unwrap().parse().unwrap())
        .collect();
    assert!(epochs.windows(2).all(|e| e[0] < e[1]), "epochs rise: {lines}");

    // Maintenance, by the command for people: everything moves off, nothing comes, also after a restart.
    let phalanx_vip = |words: &[&str]| {
        let socket = netns.cluster.dir().join("n1.sock");
        let out = Command::new(phalanx()).args(["vip", "-S"]).arg(socket).args(words).output().unwrap();
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let node = netns.settled("web");
    let (code, text) = phalanx_vip(&["maintenance", &node, "on"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with(&format!("Node '{node}' is in maintenance: it takes no vip")), "{text}");
    assert!(text.contains("vip 'web' is now held by '"), "{text}");
    for vip in ["web", "lb", "route"] {
        until(&format!("{vip} is elsewhere"), SOON, || netns.holder("n1", vip).is_some_and(|h| h != node));
    }
    let (code, text) = phalanx_vip(&["move", "web", &node]);
    assert_eq!((code, text.contains("is not eligible for vip 'web': maintenance")), (1, true), "{text}");
    assert!(netns.api("n1", "show cluster").contains(&format!("# in maintenance: {node}")));
    netns.cluster.must(&["kill", &node]);
    netns.cluster.must(&["start", &node]);
    until("it is back, and in maintenance", SOON, || {
        let nodes = netns.vip_json("n1", "web")["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|n| n["node"] == *node && n["reasons"] == serde_json::json!(["maintenance"]))
    });
    assert_eq!(phalanx_vip(&["maintenance", &node, "off"]).0, 0);
    netns.all_eligible("web");
    let (code, text) = phalanx_vip(&["maintenance", "n9", "on"]);
    assert_eq!((code, text.trim()), (1, "No node 'n9', there are: n1, n2, n3."));
    assert_eq!(phalanx_vip(&["status"]).0, 0);
    let out = Command::new(phalanx()).args(["vip", "-S", "/nonexistent.sock", "status"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn the_last_holder_keeps_an_address_without_a_majority_if_it_is_to() {
    let lines = format!("{WEB} on-quorum-loss hold\n    vip-lease 200ms");
    let Some(netns) = Netns::with(Some(config(&lines, &[]))) else { return };
    let (client, addr) = (netns.client(), netns.vip(8080));
    let holder = netns.settled("web");
    until("it serves", SOON, || ask(&client, &addr).is_ok_and(|r| r.status == 200));
    let before = netns.vip_json(&holder, "web")["epoch"].as_u64().unwrap();
    let others: Vec<String> = netns.cluster.names().into_iter().filter(|n| *n != holder).collect();
    others.iter().for_each(|n| _ = netns.cluster.must(&["kill", n]));
    until("it is kept without a majority", SOON, || netns.vip_json(&holder, "web")["kept"] == true);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert_eq!(ask(&client, &addr).map(|r| r.status).unwrap_or(0), 200, "it serves on");
    }
    others.iter().for_each(|n| _ = netns.cluster.must(&["start", n]));
    until("a majority has given it back", SOON, || {
        let vip = netns.vip_json(&holder, "web");
        vip["kept"] == false && vip["epoch"].as_u64().unwrap() > before
    });
    assert_eq!(netns.settled("web"), holder);
    assert!(ask(&client, &addr).is_ok_and(|r| r.status == 200));
}

#[test]
fn the_fastest_lease_is_kept_and_a_cut_link_costs_little_more() {
    let lines = format!("{WEB}\n    vip-lease 80ms");
    let Some(netns) = Netns::with(Some(config(&lines, &[]))) else { return };
    let (client, addr) = (netns.client(), netns.vip(8080));
    netns.settled("web");
    netns.all_eligible("web");
    until("it serves", SOON, || ask(&client, &addr).is_ok_and(|r| r.status == 200));
    let before = netns.vip_json("n1", "web")["moves"].as_array().unwrap().len();
    let calm = Instant::now() + Duration::from_secs(10);
    while Instant::now() < calm {
        let _ = ask(&client, &addr);
    }
    let moves = netns.vip_json("n1", "web")["moves"].as_array().unwrap().len() - before;
    println!("moves by themselves in 10 s: {moves}");
    for _ in 0..5 {
        let holder = netns.settled("web");
        netns.all_eligible("web");
        let port = netns.space(&holder);
        ip(&["-n", &port, "link", "set", "eth0", "down"]);
        let cut = Instant::now();
        let gap = loop {
            if inside(&client, || {
                Client::with_limit(&addr, Duration::from_millis(15)).and_then(|mut c| c.get("/", &[]))
            })
            .is_ok_and(|r| r.status == 200)
            {
                break cut.elapsed();
            }
            assert!(cut.elapsed() < SOON, "nobody took over");
        };
        println!("link of {holder} cut: silent for {gap:?}");
        ip(&["-n", &port, "link", "set", "eth0", "up"]);
        let _ = get(&addr, "/", &[]);
    }
}
