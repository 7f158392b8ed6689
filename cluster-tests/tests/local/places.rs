//! `maxconn <n> cluster`: counted at the server, never more than `n`, and hardly ever less.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use cluster_tests::{Base, Client, Node, try_api, until};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(15);
const LIMIT: u32 = 24;
const TAKES: Duration = Duration::from_millis(60);

/// A server that takes its time for each request and counts those that it has at a time.
#[derive(Default)]
struct Counting {
    now: AtomicI64,
    most: AtomicI64,
    served: AtomicU64,
    /// Sum of `now` over time, in microseconds, as of `since`.
    busy: std::sync::Mutex<(u64, Option<Instant>)>,
}

impl Counting {
    fn start(addr: &str) -> Arc<Counting> {
        let counting = Arc::new(Counting::default());
        let listener = TcpListener::bind(addr).unwrap();
        let shared = counting.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::Builder::new().stack_size(1 << 16).spawn(move || shared.serve(stream)).unwrap();
            }
        });
        counting
    }

    fn change(&self, by: i64) {
        let mut busy = self.busy.lock().unwrap();
        let at = Instant::now();
        let before = self.now.fetch_add(by, SeqCst);
        if let Some(since) = busy.1.replace(at) {
            busy.0 += before as u64 * (at - since).as_micros() as u64;
        }
        self.most.fetch_max(before + by, SeqCst);
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut head = [0; 2048];
        while let Ok(1..) = stream.read(&mut head) {
            self.change(1);
            // The node's death ends the request: its socket is closed.
            stream.set_read_timeout(Some(TAKES)).unwrap();
            let ended = matches!(stream.peek(&mut [0]), Ok(0))
                || matches!(stream.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset);
            self.change(-1);
            stream.set_read_timeout(None).unwrap();
            if ended {
                return;
            }
            self.served.fetch_add(1, SeqCst);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    }

    /// Share of the places that were in use in this time.
    fn utilisation(&self, time: Duration) -> f64 {
        self.change(0);
        let (before, began) = (self.busy.lock().unwrap().0, Instant::now());
        std::thread::sleep(time);
        self.change(0);
        let used = self.busy.lock().unwrap().0 - before;
        used as f64 / began.elapsed().as_micros() as f64 / f64::from(LIMIT)
    }
}

/// Node `i`, which knows the nodes `known`.
fn config(base: &Base, i: u8, known: &[u8], limit: u32) -> String {
    let nodes: String = known.iter().map(|i| format!("    node n{i} {}\n", base.at(10 + i, 7100))).collect();
    format!(
        "global\n    localpeer n{i}\n    stats socket DIR/sock mode 600 level admin\n\
         cluster prod\n{nodes}    data-dir DIR/data\n\
         defaults\n    mode http\n    timeout connect 2s\n    timeout client 20s\n    timeout server 20s\n    timeout queue 3s\n\
         listen web\n    bind {}\n    server s1 {} maxconn {limit} cluster\n",
        base.at(10 + i, 8080),
        base.at(1, 9801),
    )
}

/// Clients of one node, each with a request at a time, until stopped.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Clients {
    fn start(addr: String, count: u32) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|_| {
            let (addr, stop) = (addr.clone(), stop.clone());
            let run = move || {
                let (mut client, mut answered): (Option<Client>, u64) = (None, 0);
                while !stop.load(SeqCst) {
                    let asked = match client.as_mut() {
                        Some(client) => client.get("/", &[]).map(|r| r.status),
                        None => Client::with_limit(&addr, SOON).map(|c| client = Some(c)).map(|()| 0),
                    };
                    match asked {
                        Ok(200) => answered += 1,
                        Ok(0) => {}
                        _ => {
                            client = None;
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
                answered
            };
            std::thread::Builder::new().stack_size(1 << 18).spawn(run).unwrap()
        });
        let threads = threads.collect();
        Clients { stop, threads }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().map(|t| t.join().unwrap()).sum()
    }
}

fn places(node: &Node) -> String {
    node.api("show places").lines().filter(|l| !l.starts_with('#')).collect()
}

/// The places that a node has.
fn own(node: &Node) -> u32 {
    places(node).split(' ').nth(3).and_then(|w| w.parse().ok()).unwrap_or(0)
}

#[test]
fn places_are_counted_over_all_nodes_also_while_one_dies() {
    let base = Base::free();
    let server = Counting::start(&base.at(1, 9801));
    let mut nodes: Vec<Node> =
        (1..=3).map(|i| Node::start(&config(&base, i, &[1, 2, 3], LIMIT), &base.at(10 + i, 8080))).collect();
    until("all places are given out", SOON, || nodes.iter().map(own).sum::<u32>() == LIMIT);

    // Everywhere more clients than places.
    let mut clients: Vec<Clients> = (1..=3).map(|i| Clients::start(base.at(10 + i, 8080), LIMIT)).collect();
    std::thread::sleep(Duration::from_secs(1));
    let even = server.utilisation(Duration::from_secs(3));
    let (most, shown) = (server.most.load(SeqCst), nodes.iter().map(places).collect::<Vec<_>>());
    println!(
        "clients on all nodes: {:.1} % of {LIMIT} places in use, at most {most}; {shown:?}",
        even * 100.0
    );
    assert!(most <= i64::from(LIMIT), "{most}");

    // One dies in the middle of it: its places are used by the others.
    let victim = nodes.remove(0);
    let killed = Instant::now();
    victim.signal(Signal::SIGKILL);
    let back = loop {
        if server.utilisation(Duration::from_millis(200)) > 0.9 {
            break killed.elapsed();
        }
        assert!(killed.elapsed() < SOON, "the places of the dead node are not used again");
    };
    let dead = server.utilisation(Duration::from_secs(3));
    println!("after kill -9 of one: {:.1} % in use, full again after {back:?}", dead * 100.0);

    // All clients on one node.
    clients.drain(..2).for_each(|c| _ = c.stop());
    let more = Clients::start(base.at(13, 8080), LIMIT);
    std::thread::sleep(Duration::from_secs(1));
    let skewed = server.utilisation(Duration::from_secs(3));
    println!("clients on one node: {:.1} % in use; {}", skewed * 100.0, places(&nodes[1]));
    clients.into_iter().chain([more]).for_each(|c| _ = c.stop());
    let most = server.most.load(SeqCst);
    println!("at most {most} of {LIMIT} at a time, {} requests", server.served.load(SeqCst));
    assert!(most <= i64::from(LIMIT), "{most}");
    for (what, share) in [("even", even), ("dead", dead), ("skewed", skewed)] {
        // The machine that runs the test may be busy with other things: the goal is 0.95.
        assert!(share > 0.9, "{what}: {share}");
    }
}

#[test]
fn places_are_counted_also_while_a_node_joins_and_another_leaves_and_runs_on() {
    const FEW: u32 = 12;
    let base = Base::free();
    let server = Counting::start(&base.at(1, 9801));
    let start = |i: u8, known: &[u8]| Node::start(&config(&base, i, known, FEW), &base.at(10 + i, 8080));
    let mut nodes: Vec<Node> = (1..=3).map(|i| start(i, &[1, 2, 3])).collect();
    until("all places are given out", SOON, || nodes.iter().map(own).sum::<u32>() == FEW);
    let load = |i: u8| Clients::start(base.at(10 + i, 8080), FEW);
    let mut clients: Vec<Clients> = (1..=3).map(load).collect();

    // It is under load before it is a member, and knows one of them alone.
    nodes.push(start(4, &[1, 4]));
    clients.push(load(4));
    let patiently = |node: &Node, command: &str| {
        let place = node.dir().join("sock").display().to_string();
        try_api(&place, command, Duration::from_secs(40)).unwrap()
    };
    let answer = patiently(&nodes[2], &format!("cluster join n4 {}", base.at(14, 7100)));
    println!("{}", answer.trim());
    assert!(answer.contains("Node 'n4' is a member after"), "{answer}");
    until("it has places", SOON, || own(&nodes[3]) > 0);

    // The arbiter leaves: its clients stay.
    let answer = patiently(&nodes[2], "cluster leave n1");
    assert!(answer.contains("Node 'n1' has left after"), "{answer}");
    println!("{}", answer.trim());
    assert_eq!(own(&nodes[0]), 0, "{}", nodes[0].api("show places"));
    until("the others have all of them", SOON, || nodes[1..].iter().map(own).sum::<u32>() == FEW);
    std::thread::sleep(Duration::from_secs(1));
    let most = server.most.load(SeqCst);
    clients.into_iter().for_each(|c| _ = c.stop());
    println!("at most {most} of {FEW} at a time, {} requests", server.served.load(SeqCst));
    assert!(most <= i64::from(FEW), "{most}");
    assert!(most + 1 >= i64::from(FEW), "the load used the places: {most}");
}
