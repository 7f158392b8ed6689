//! Which server a request goes to: the same sequence, or the same one for the same key.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use cluster_tests::until;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use std::time::Duration;

use crate::side::{BOTH, Side, haproxy};

/// Lines of a backend; the servers come after them.
const BACKENDS: &[(&str, &str)] = &[
    // With these weights: the same shares, in an order of our own, which is computed ahead.
    ("roundrobin", "balance roundrobin"),
    ("static-rr", "balance static-rr"),
    ("first", "balance first"),
    ("leastconn", "balance leastconn"),
    ("source", "balance source"),
    ("source-consistent", "balance source\n hash-type consistent"),
    ("uri", "balance uri"),
    ("uri-consistent", "balance uri\n hash-type consistent"),
    ("uri-depth", "balance uri depth 1"),
    ("uri-len", "balance uri len 4"),
    ("uri-whole", "balance uri whole"),
    ("hdr", "balance hdr(x-key)"),
    ("hdr-consistent", "balance hdr(x-key)\n hash-type consistent"),
    ("hdr-djb2", "balance hdr(x-key)\n hash-type map-based djb2"),
    ("hdr-avalanche", "balance hdr(x-key)\n hash-type consistent sdbm avalanche"),
    ("hdr-crc32", "balance hdr(x-key)\n hash-type consistent crc32"),
    ("url_param", "balance url_param key"),
    ("url_param-consistent", "balance url_param key\n hash-type consistent"),
];

const WEIGHTS: [u32; 4] = [10, 1, 7, 2];
const FRONT: u16 = 20_000;
const SERVER: u16 = 31_000;
const REQUESTS: usize = 40;

#[test]
fn servers_are_chosen_as_haproxy_does() {
    if haproxy().is_none() {
        return;
    }
    let [theirs, ours] = BOTH.map(|kind| {
        let mut side = Side::new(kind);
        chosen(&mut side)
    });
    let mut failed = String::new();
    for ((name, _), (theirs, ours)) in BACKENDS.iter().zip(theirs.iter().zip(&ours)) {
        // With `leastconn` the order depends on whether the end of a request is counted before the next begins.
        let any_order = ["roundrobin", "leastconn"].contains(name);
        let same = if any_order { sorted(theirs) == sorted(ours) } else { theirs == ours };
        if !same {
            failed += &format!("{name}\n  haproxy {theirs}\n  phalanx {ours}\n");
        }
    }
    assert!(failed.is_empty(), "the sequences differ:\n{failed}");
}

fn sorted(answers: &str) -> Vec<char> {
    let mut all: Vec<char> = answers.chars().collect();
    all.sort_unstable();
    all
}

fn chosen(side: &mut Side) -> Vec<String> {
    for n in 0..WEIGHTS.len() as u16 {
        serve(&side.at(SERVER + n), n);
    }
    let mut config = String::from(
        "global\n stats socket DIR/sock level admin\ndefaults\n mode http\n timeout connect 2s\n timeout client 5s\n \
         timeout server 5s\n",
    );
    for (n, (name, lines)) in BACKENDS.iter().enumerate() {
        let port = FRONT + n as u16;
        config += &format!(
            "frontend f{name}\n bind 127.0.0.1:{port}\n default_backend {name}\nbackend {name}\n {lines}\n"
        );
        for (k, weight) in WEIGHTS.iter().enumerate() {
            config += &format!(" server s{k} 127.0.0.1:{} weight {weight}\n", SERVER + k as u16);
        }
    }
    side.run(&config);
    let last = FRONT + BACKENDS.len() as u16 - 1;
    until("the frontends listen", Duration::from_secs(10), || TcpStream::connect(side.at(last)).is_ok());
    (0..BACKENDS.len() as u16).map(|n| (0..REQUESTS).map(|k| ask(&side.at(FRONT + n), k)).collect()).collect()
}

/// Asks once, with its own source address, path and key; returns who answered.
fn ask(addr: &str, k: usize) -> String {
    let mut stream = connected(addr, k);
    let request = format!(
        "GET /dir{}/file{k}?a=1&key=value-{k} HTTP/1.1\r\nHost: a\r\nX-Key: key-{k}\r\nConnection: close\r\n\r\n",
        k % 7
    );
    stream.write_all(request.as_bytes()).expect("the proxy reads");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text.chars().last().map_or("?".into(), String::from)
}

/// A connection from an address that both programs see.
fn connected(addr: &str, k: usize) -> TcpStream {
    let to: SocketAddr = addr.parse().expect("an address");
    let SocketAddr::V4(to) = to else { panic!("IPv4") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let from = SockaddrIn::new(127, 1, (k / 5) as u8, 1 + k as u8, 0);
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &from).expect("loopback is all ours");
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(to)).expect("the proxy listens");
    TcpStream::from(fd)
}

/// A server that answers with its number.
fn serve(addr: &str, n: u16) {
    let listener = TcpListener::bind(addr).expect("an address of its own");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{n}");
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
}
