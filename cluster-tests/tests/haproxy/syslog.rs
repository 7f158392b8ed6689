//! What goes to syslog: the framing of every format byte for byte, and what is said of servers.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use cluster_tests::until;

use crate::side::{BOTH, Side, haproxy};

/// What stands after the address on a `log` line.
const TARGETS: &[&str] = &[
    "local0",
    "daemon",
    "local0 notice",
    "local0 info warning",
    "len 80 local0",
    "format rfc3164 local1",
    "format rfc5424 local2",
    "format raw local0",
    "format short local3",
    "format timed local3",
    "format iso local3",
    "format priority local3",
    "format local local3",
];

const CONFIG: &str = "\
defaults
    log global
    mode http
    option httplog
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend fe
    bind 127.0.0.1:20000
    default_backend be
backend be
    server s1 127.0.0.1:30001
    server s2 127.0.0.1:30002 disabled
    server s3 127.0.0.1:30003 backup
";

#[test]
fn syslog_is_framed_as_haproxy_does() {
    if haproxy().is_none() {
        return;
    }
    for tag in ["", " log-tag mytag\n", " log-send-hostname ahost\n"] {
        let [theirs, ours] = BOTH.map(|kind| received(&mut Side::new(kind), tag));
        for ((target, theirs), ours) in TARGETS.iter().zip(&theirs).zip(&ours) {
            if *target == "format local local3" && tag.contains("hostname") {
                // Phalanx puts the name there as without `format`, HAProxy does not.
                continue;
            }
            if target.starts_with("len ") {
                cut_alike(theirs, ours);
                continue;
            }
            assert_eq!(theirs, ours, "log {target}, {tag:?}: HAProxy left, Phalanx right");
        }
    }
}

/// Lines that were cut at a length: how far they reach depends on the digits of pids and ports.
fn cut_alike(theirs: &[String], ours: &[String]) {
    const DIGITS: usize = 10;
    assert_eq!(theirs.len(), ours.len(), "{theirs:?} {ours:?}");
    for (theirs, ours) in theirs.iter().zip(ours) {
        let (theirs, ours) = (theirs.trim_end(), ours.trim_end());
        let common = theirs.len().min(ours.len());
        let same = theirs.as_bytes()[..common] == ours.as_bytes()[..common];
        assert!(same && theirs.len().abs_diff(ours.len()) < DIGITS, "cut: {theirs:?} by HAProxy, {ours:?}");
    }
}

/// The datagrams for one request and one command, by target.
fn received(side: &mut Side, extra: &str) -> Vec<Vec<String>> {
    let sockets: Vec<UdpSocket> =
        TARGETS.iter().map(|_| UdpSocket::bind(side.at(0)).expect("a socket for logs")).collect();
    let mut config = format!("global\n stats socket DIR/sock level admin\n{extra}");
    for (socket, target) in sockets.iter().zip(TARGETS) {
        config += &format!(" log {} {target}\n", socket.local_addr().expect("it is bound"));
    }
    side.run(&(config + CONFIG));
    until("the frontend listens", Duration::from_secs(10), || {
        TcpStream::connect(side.at(20_000)).is_ok_and(|mut stream| {
            let _ = stream.write_all(b"GET /\"x\" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.read_to_end(&mut Vec::new()).is_ok()
        })
    });
    // The request is logged after its client has seen the end, target by target.
    let last = &sockets[TARGETS.len() - 1];
    last.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    last.peek_from(&mut [0; 65536]).expect("the request is logged");
    for command in ["disable server be/s3", "enable server be/s3", "set server be/s1 state drain"] {
        cluster_tests::api(&side.socket(), command);
    }
    cluster_tests::api(&side.socket(), "disable server be/s1");
    sockets.iter().map(|socket| datagrams(socket, side)).collect()
}

fn datagrams(socket: &UdpSocket, side: &Side) -> Vec<String> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    let mut buf = [0; 65536];
    let mut seen = Vec::new();
    while let Ok((n, _)) = socket.recv_from(&mut buf) {
        let text = side.unmoved(&String::from_utf8_lossy(&buf[..n]));
        seen.push(normal(&text));
    }
    seen
}

/// Numbers become `#` but for the priority; the program's name becomes `NAME`.
fn normal(text: &str) -> String {
    let (priority, rest) = match text.split_once('>') {
        Some((p, rest)) if p.starts_with('<') => (format!("{p}>"), rest),
        _ => (String::new(), text),
    };
    let mut out = priority;
    let mut digits = false;
    for c in rest.chars() {
        if c.is_ascii_digit() {
            if !digits {
                out.push('#');
            }
        } else {
            out.extend(c.escape_debug());
        }
        digits = c.is_ascii_digit();
    }
    // Local time and the program's own name.
    for name in ["haproxy", "phalanx"] {
        out = out.replace(&format!(" {name}[#]"), " NAME[#]").replace(&format!(" {name} # "), " NAME # ");
    }
    out
}
