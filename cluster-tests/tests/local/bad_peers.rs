//! Whatever stands where a peer should be: a node starts, forwards, and says once what is wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use cluster_tests::{Base, Demo, Node, get, until};

const SOON: Duration = Duration::from_secs(10);

/// A node `n<i>` of a cluster, with one web server behind it.
fn config(base: &Base, cluster: &str, i: u8, nodes: &[(u8, String)]) -> String {
    let lines: Vec<String> = nodes.iter().map(|(i, addr)| format!("    node n{i} {addr}\n")).collect();
    format!(
        "global\n    localpeer n{i}\n    stats socket DIR/sock mode 600 level admin\n\
         cluster {cluster}\n{}    data-dir DIR/data\n\
         defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n\
         listen web\n    bind {}\n    stick-table type ip size 100 store gpc0 peers {cluster}\n    server s1 {}\n",
        lines.concat(),
        base.at(10 + i, 8080),
        base.at(1, 9801),
    )
}

struct Place {
    base: Base,
    _servers: Demo,
}

impl Place {
    fn new() -> Place {
        let base = Base::free();
        let _servers = Demo::start(&[("s1", base.at(1, 9801))], &[]);
        Place { base, _servers }
    }

    fn grpc(&self, i: u8) -> String {
        self.base.at(10 + i, 7100)
    }

    /// Node n1 with n2 somewhere.
    fn n1(&self, n2: &str) -> Node {
        let nodes = [(1, self.grpc(1)), (2, n2.to_owned())];
        Node::start(&config(&self.base, "prod", 1, &nodes), &self.base.at(11, 8080))
    }

    fn forwards(&self, i: u8) {
        let response = get(&self.base.at(10 + i, 8080), "/", &[]).unwrap();
        assert_eq!((response.status, response.server()), (200, "s1"));
    }
}

/// Lines of a node's output that hold all of these.
fn lines(node: &Node, parts: &[&str]) -> Vec<String> {
    let output = node.output();
    let told = output.lines().filter(|l| parts.iter().all(|p| l.contains(p)));
    told.map(str::to_owned).collect()
}

/// Waits until a node has warned so, and makes sure that it goes on without saying it again.
fn warned_once(place: &Place, node: &mut Node, i: u8, parts: &[&str]) {
    let deadline = std::time::Instant::now() + SOON;
    while lines(node, parts).is_empty() {
        assert!(std::time::Instant::now() < deadline, "no warning with {parts:?} in:\n{}", node.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Several attempts are made in this time.
    std::thread::sleep(Duration::from_secs(3));
    let told = lines(node, parts);
    assert_eq!(told.len(), 1, "{told:#?}");
    place.forwards(i);
    let output = node.output();
    assert!(node.runs() && !output.contains("panicked"), "{output}");
}

#[test]
fn a_name_that_does_not_resolve() {
    let place = Place::new();
    let mut n1 = place.n1("phalanx-n2.invalid:7100");
    place.forwards(1);
    warned_once(
        &place,
        &mut n1,
        1,
        &["WARN", "node 'n2' at phalanx-n2.invalid:7100", "its name cannot be resolved"],
    );
    let shown = n1.api("show cluster");
    assert!(shown.contains("n2") && shown.contains("unreachable"), "{shown}");
}

#[test]
fn junk_in_the_place_of_a_peer_and_junk_that_comes_in() {
    let place = Place::new();
    let fake = TcpListener::bind(place.grpc(2)).unwrap();
    std::thread::spawn(move || {
        let answers: [&[u8]; 4] =
            [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 4096], &[0; 64]];
        for (stream, answer) in fake.incoming().zip(answers.iter().cycle()) {
            // A close with bytes unread is a reset, which may overtake the answer.
            let _ = stream.and_then(|mut s| {
                s.write_all(answer)?;
                s.shutdown(std::net::Shutdown::Write)?;
                s.set_read_timeout(Some(Duration::from_secs(1)))?;
                std::io::copy(&mut s, &mut std::io::sink())
            });
        }
    });
    let mut n1 = place.n1(&place.grpc(2));
    until("it listens to its peers", SOON, || !lines(&n1, &["listening on", &place.grpc(1)]).is_empty());
    let junk: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HAProxyS 2.1\nn1\nn9 1 1\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ];
    for bytes in junk.iter().cycle().take(50) {
        let mut stream = TcpStream::connect(place.grpc(1)).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    warned_once(&place, &mut n1, 1, &["WARN", "node 'n2'", "is not a Phalanx node"]);
    let mut warnings = lines(&n1, &["WARN"]);
    warnings.iter_mut().for_each(|l| *l = l.split_once("WARN").unwrap().1.to_owned());
    let told = warnings.len();
    warnings.sort();
    warnings.dedup();
    assert_eq!(warnings.len(), told, "each is told once: {}", n1.output());
}

#[test]
fn a_node_of_another_cluster() {
    let place = Place::new();
    let nodes = [(1, place.grpc(1)), (2, place.grpc(2))];
    let mut n1 = place.n1(&place.grpc(2));
    let mut n2 = Node::start(&config(&place.base, "other", 2, &nodes), &place.base.at(12, 8080));
    warned_once(&place, &mut n1, 1, &["WARN", "node 'n2'", "refuses us: cluster 'prod' is not 'other'"]);
    warned_once(&place, &mut n2, 2, &["WARN", "node 'n1'", "refuses us: cluster 'other' is not 'prod'"]);
}

#[test]
fn the_cluster_port_in_use() {
    let place = Place::new();
    let taken = TcpListener::bind(place.grpc(1)).unwrap();
    let mut n1 = place.n1(&place.grpc(2));
    warned_once(&place, &mut n1, 1, &["WARN", "cannot listen on", &place.grpc(1), "in use"]);
    drop(taken);
    until("it listens as soon as it can", SOON, || !lines(&n1, &["listening on", &place.grpc(1)]).is_empty());
}

#[test]
fn another_version_of_the_protocol() {
    let place = Place::new();
    let fake = TcpListener::bind(place.grpc(2)).unwrap();
    std::thread::spawn(move || {
        for mut stream in fake.incoming().flatten() {
            std::thread::spawn(move || refuse(&mut stream));
        }
    });
    let mut n1 = place.n1(&place.grpc(2));
    warned_once(&place, &mut n1, 1, &["WARN", "refuses us: protocol version 7 is not 99"]);
    until("it listens to its peers", SOON, || !lines(&n1, &["listening on", &place.grpc(1)]).is_empty());
    // And the other way round.
    let mut stream = TcpStream::connect(place.grpc(1)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    let mut block = vec![0x83, 0x86, 0x04, 0x09];
    block.extend(b"/raft.Any");
    for (name, value) in [
        (":authority", "n1"),
        ("content-type", "application/grpc"),
        ("phalanx-protocol", "99"),
        ("phalanx-cluster", "prod"),
        ("phalanx-from", "n2"),
        ("phalanx-to", "n1"),
    ] {
        block.extend(literal(name, value));
    }
    stream.write_all(&frame(1, 0x5, 1, &block)).unwrap();
    until("it is reported", SOON, || {
        !lines(&n1, &["WARN", "node 'n2' speaks protocol version 99, node 'n1' "]).is_empty()
    });
    place.forwards(1);
}

/// An HTTP/2 server that answers every call as a node of another protocol would.
fn refuse(stream: &mut TcpStream) {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).is_err() || stream.write_all(&frame(4, 0, 0, &[])).is_err() {
        return;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let answer = match (head[3], head[4] & 1) {
            (1, _) => {
                let mut block = vec![0x88];
                for (name, value) in [
                    ("content-type", "application/grpc"),
                    ("grpc-status", "9"),
                    ("grpc-message", "protocol version 7 is not 99, the one of node 'n2'"),
                ] {
                    block.extend(literal(name, value));
                }
                frame(1, 0x5, id, &block)
            }
            (4, 0) => frame(4, 1, 0, &[]),
            (6, 0) => frame(6, 1, 0, &payload),
            _ => continue,
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header that no table knows, short enough for lengths of one byte.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, name.len() as u8];
    bytes.extend(name.as_bytes());
    bytes.push(value.len() as u8);
    bytes.extend(value.as_bytes());
    bytes
}
