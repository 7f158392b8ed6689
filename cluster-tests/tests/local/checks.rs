//! Health checks that three nodes share out: about as many probes as one node makes, whoever dies.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::{Base, Node, get, try_api, until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);
const INTER: Duration = Duration::from_millis(100);
const SERVERS: u8 = 6;

/// Servers that count probes and requests, and can be told to fail.
struct Counting {
    probes: Arc<AtomicUsize>,
    failing: Arc<AtomicUsize>,
}

impl Counting {
    fn start(base: &Base) -> Counting {
        let counting = Counting { probes: Arc::default(), failing: Arc::default() };
        for i in 1..=SERVERS {
            let listener = TcpListener::bind(base.at(i, 9800)).unwrap();
            let (probes, failing) = (counting.probes.clone(), counting.failing.clone());
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let (probes, failing) = (probes.clone(), failing.clone());
                    std::thread::spawn(move || {
                        let mut head = [0; 1024];
                        while let Ok(n @ 1..) = stream.read(&mut head) {
                            let fails = failing.load(Ordering::SeqCst) == usize::from(i);
                            if head[..n].starts_with(b"OPTIONS") {
                                probes.fetch_add(1, Ordering::SeqCst);
                            }
                            let status = if fails { "500 Broken" } else { "200 OK" };
                            let answer =
                                format!("HTTP/1.1 {status}\r\nserver: s{i}\r\ncontent-length: 0\r\n\r\n");
                            let _ = stream.write_all(answer.as_bytes());
                        }
                    });
                }
            });
        }
        counting
    }

    /// Probes in the time that one node makes ten at each server, as multiples of that.
    fn rate(&self) -> f64 {
        let (before, began) = (self.probes.load(Ordering::SeqCst), Instant::now());
        std::thread::sleep(INTER * 15);
        let made = self.probes.load(Ordering::SeqCst) - before;
        let one = began.elapsed().as_secs_f64() / INTER.as_secs_f64() * f64::from(SERVERS);
        made as f64 / one
    }
}

fn config(base: &Base, i: u8, option: &str) -> String {
    // Who comes later knows itself and one other.
    let known = if i > 3 { vec![1, i] } else { vec![1, 2, 3] };
    let nodes: String = known.iter().map(|i| format!("    node n{i} {}\n", base.at(10 + i, 7100))).collect();
    let servers: String =
        (1..=SERVERS).map(|i| format!("    server s{i} {} check inter 100ms\n", base.at(i, 9800))).collect();
    format!(
        "global\n    localpeer n{i}\n    stats socket DIR/sock mode 600 level admin\n    log stdout format raw local0\n\
         cluster prod\n{nodes}    data-dir DIR/data\n\
         defaults\n    mode http\n    log global\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
         listen web\n    bind {}\n    option httpchk\n    {option}\n{servers}",
        base.at(10 + i, 8080),
    )
}

fn nodes(base: &Base, option: &str) -> Vec<Node> {
    (1..=3).map(|i| Node::start(&config(base, i, option), &base.at(10 + i, 8080))).collect()
}

/// `show checks` of a node: who probes, and what it says, for each server.
fn probers(node: &Node) -> Vec<(String, String)> {
    let shown = node.api("show checks");
    let rows = shown.lines().filter(|l| l.starts_with("web "));
    rows.map(|l| l.split(' ').collect::<Vec<_>>()).map(|w| (w[3].to_owned(), w[4].to_owned())).collect()
}

fn down(node: &Node, server: &str) -> bool {
    node.api("show stat").lines().any(|l| l.starts_with(&format!("web,{server},")) && l.contains(",DOWN"))
}

#[test]
fn three_nodes_probe_as_much_as_one_and_all_know_what_was_found() {
    let base = Base::free();
    let servers = Counting::start(&base);
    let mut nodes = nodes(&base, "");
    until("all agree on who probes", SOON, || {
        let seen: Vec<_> = nodes.iter().map(probers).collect();
        seen[0].len() == usize::from(SERVERS) && seen.iter().all(|s| *s == seen[0] && s[0].0 != "-")
    });
    until("they settle", SOON, || (0.7..1.3).contains(&servers.rate()));
    println!("three nodes probe {:.2} times as often as one; {:?}", servers.rate(), probers(&nodes[0]));

    // Found by one, known by all, in the same words.
    let began = Instant::now();
    servers.failing.store(2, Ordering::SeqCst);
    until("s2 is down everywhere", SOON, || nodes.iter().all(|n| down(n, "s2")));
    println!("down everywhere after {:?}", began.elapsed());
    for node in &nodes {
        let output = node.output();
        let line = "Server web/s2 is DOWN, reason: Layer7 wrong status, code: 500, info: \"Broken\"";
        assert_eq!(output.matches(line).count(), 1, "{output}");
    }

    // The prober of s2 dies: others take its servers over, and s2 stays down.
    let prober = probers(&nodes[0])[1].0.clone();
    let dead = (1..=3).find(|i| format!("n{i}") == prober).unwrap();
    let victim = nodes.remove(dead - 1);
    let killed = Instant::now();
    victim.signal(Signal::SIGKILL);
    until("others probe", SOON, || {
        nodes.iter().all(|n| {
            assert!(down(n, "s2"), "a takeover starts from what was known");
            probers(n).iter().all(|(node, _)| *node != prober && node != "-")
        })
    });
    let took = killed.elapsed();
    println!("taken over after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    until("the rate is back", SOON, || (0.7..1.3).contains(&servers.rate()));
    servers.failing.store(0, Ordering::SeqCst);
    until("s2 is up everywhere", SOON, || nodes.iter().all(|n| !down(n, "s2")));
    assert_eq!(get(&base.at(10 + if dead == 1 { 2 } else { 1 }, 8080), "/", &[]).unwrap().status, 200);
    for node in &nodes {
        assert_eq!(node.output().matches("Server web/s2 is ").count(), 2, "{}", node.output());
    }
}

#[test]
fn who_joins_probes_its_part_and_who_leaves_none() {
    let base = Base::free();
    let servers = Counting::start(&base);
    let mut nodes = nodes(&base, "");
    let agree = |nodes: &[Node], count: usize| {
        until(&format!("{count} nodes agree on who probes"), SOON, || {
            let seen: Vec<_> = nodes.iter().map(probers).collect();
            let names: std::collections::BTreeSet<&str> = seen[0].iter().map(|(n, _)| &**n).collect();
            let alike = seen.iter().all(|s| s.iter().map(|p| &p.0).eq(seen[0].iter().map(|p| &p.0)));
            alike && !names.contains("-") && names.iter().all(|n| n[1..].parse::<usize>().unwrap() <= count)
        });
        until("they settle", SOON, || (0.7..1.3).contains(&servers.rate()));
    };
    agree(&nodes, 3);
    nodes.push(Node::start(&config(&base, 4, ""), &base.at(14, 8080)));
    let patiently = |node: &Node, command: &str| {
        let place = node.dir().join("sock").display().to_string();
        try_api(&place, command, Duration::from_secs(40)).unwrap()
    };
    let answer = patiently(&nodes[1], &format!("cluster join n4 {}", base.at(14, 7100)));
    assert!(answer.contains("Node 'n4' is a member after"), "{answer}");
    agree(&nodes, 4);
    println!("four nodes probe {:.2} times as often as one; {:?}", servers.rate(), probers(&nodes[3]));
    let answer = patiently(&nodes[1], "cluster leave n4");
    assert!(answer.contains("Node 'n4' has left after"), "{answer}");
    nodes.pop();
    agree(&nodes, 3);
}

#[test]
fn per_node_checks_probe_from_every_node() {
    let base = Base::free();
    let servers = Counting::start(&base);
    let _nodes = nodes(&base, "option per-node-checks");
    until("each node probes", SOON, || (2.4..3.5).contains(&servers.rate()));
    println!("three nodes probe {:.2} times as often as one", servers.rate());
}

#[test]
fn an_agent_is_asked_by_one_node_and_obeyed_by_all() {
    let base = Base::free();
    let _servers = Counting::start(&base);
    let asked = Arc::new(AtomicUsize::new(0));
    let said = Arc::new(std::sync::Mutex::new("up 50%\n"));
    let listener = TcpListener::bind(base.at(1, 7701)).unwrap();
    let (count, line) = (asked.clone(), said.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(line.lock().unwrap().as_bytes());
        }
    });
    let nodes: Vec<Node> = (1..=3)
        .map(|i| {
            let config = config(&base, i, "").replace(
                "server s1 ",
                &format!(
                    "server a {} weight 100 agent-check agent-port 7701 agent-inter 100ms\n    server s1 ",
                    base.at(1, 9800)
                ),
            );
            Node::start(&config, &base.at(10 + i, 8080))
        })
        .collect();
    let stat = |node: &Node, column: usize| {
        let shown = node.api("show stat");
        let line = shown.lines().find(|l| l.starts_with("web,a,")).unwrap().to_owned();
        line.split(',').nth(column).unwrap().to_owned()
    };
    until("half the weight everywhere", SOON, || nodes.iter().all(|n| stat(n, 18) == "50"));
    let (before, began) = (asked.load(Ordering::SeqCst), Instant::now());
    std::thread::sleep(INTER * 20);
    let rate = (asked.load(Ordering::SeqCst) - before) as f64 / (began.elapsed().as_secs_f64() * 10.0);
    println!("three nodes ask the agent {rate:.2} times as often as one");
    assert!((0.5..1.4).contains(&rate), "{rate}");
    *said.lock().unwrap() = "down #too hot\n";
    until("down everywhere", SOON, || nodes.iter().all(|n| stat(n, 17) == "DOWN (agent)"));
    let line =
        "Server web/a is DOWN, reason: Layer7 wrong status, code: 0, info: \"via agent : down (too hot)\"";
    until("all say so", SOON, || nodes.iter().all(|n| n.output().contains(line)));
    *said.lock().unwrap() = "up drain\n";
    until("drains everywhere", SOON, || nodes.iter().all(|n| stat(n, 17) == "DRAIN (agent)"));
    // A command on one node is carried out by all.
    let _ = nodes[0].api("disable agent web/a");
    until("nobody asks", SOON, || {
        let before = asked.load(Ordering::SeqCst);
        std::thread::sleep(INTER * 4);
        asked.load(Ordering::SeqCst) == before
    });
}
