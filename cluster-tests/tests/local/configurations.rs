//! The three configurations that people start from, as they are but for the addresses.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use cluster_tests::{Base, Client, Demo, Node, eventually, get, line, phalanx, try_api, until, websocket};

/// Long-lived TCP connections.
pub(crate) const CHAT: &str = "\
global
    stats socket /tmp/phalanx.sock mode 600 level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client  1h
    timeout server  1h
    timeout queue   30s
listen chat
    bind 127.0.0.1:9000
    balance leastconn
    server nc1 127.0.0.1:9001 check maxconn 1
    server nc2 127.0.0.1:9002 check maxconn 1
";

/// Sticky web sessions.
pub(crate) const WEB: &str = "\
global
    log stdout format raw local0
    stats socket ipv4@127.0.0.1:9999 level admin
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client  30s
    timeout server  30s
    timeout tunnel  1h
frontend web
    bind 127.0.0.1:8080
    default_backend webservers
backend webservers
    balance roundrobin
    cookie SRV insert indirect nocache
    option httpchk GET /healthz
    server s1 127.0.0.1:9801 check cookie s1
    server s2 127.0.0.1:9802 check cookie s2
    server s3 127.0.0.1:9803 check cookie s3
";

/// As people paste it.
const PASTED: &str = "\
global
    log 127.0.0.1 local0 notice
        maxconn 2000
\t    user nobody
\t        group nogroup
defaults
    log     global
        mode    http
\t    option  httplog
\t        option  dontlognull
\t\t    retries 3
\t\t        option redispatch
\t\t\t    timeout connect  5000
\t\t\t        timeout client  10000
\t\t\t\t    timeout server  10000
\t\t\t\t    timeout http-keep-alive 10s
\t\t\t\t     maxconn                 3000
listen appname 0.0.0.0:80
    mode http
        stats enable
\t    stats uri /haproxy?stats
\t        stats realm Strictly\\ Private
\t\t    stats auth A_Username:YourPassword
\t\t        stats auth Another_User:passwd
\t\t\t    balance roundrobin
\t\t\t        option httpclose
\t\t\t\t    option forwardfor
\t\t\t\t        server lamp1 10.0.0.1:80 check
\t\t\t\t\t    server lamp2 10.0.0.2:80 check
";

/// A text with its addresses moved to the test's own.
pub(crate) fn moved(text: &str, base: &Base) -> String {
    text.replace("127.0.0.1:", &base.at(1, 0).replace(":0", ":")).replace("/tmp/phalanx.sock", "DIR/sock")
}

/// Four of them, s1 to s4.
pub(crate) fn web_servers(base: &Base) -> Demo {
    let web: Vec<_> = ["s1", "s2", "s3", "s4"].into_iter().zip((9801..).map(|p| base.at(1, p))).collect();
    Demo::start(&web, &[])
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn all_three_are_valid_as_they_are() {
    for text in [CHAT, WEB, PASTED] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let out = Command::new(phalanx()).args(["-c", "-V", "-f"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert_eq!(out.status.code(), Some(0), "{said}");
        assert!(said.contains("Configuration file is valid"), "{said}");
    }
}

#[test]
fn web_sessions_stick_by_cookie_and_websockets_pass() {
    let base = Base::free();
    let _servers = web_servers(&base);
    let web = base.at(1, 8080);
    let node = Node::start(&moved(WEB, &base), &web);

    // Round robin without a cookie; the cookie names the server.
    let mut client = Client::connect(&web).unwrap();
    let answers: Vec<_> = (0..6).map(|_| client.get("/", &[]).unwrap()).collect();
    let order: Vec<&str> = answers.iter().map(|r| r.server()).collect();
    for name in ["s1", "s2", "s3"] {
        assert_eq!(order.iter().filter(|s| **s == name).count(), 2, "{order:?}");
    }
    for answer in &answers {
        assert_eq!(answer.header("set-cookie"), Some(format!("SRV={}; path=/", answer.server()).as_str()));
    }
    for name in ["s2", "s2", "s3", "s2"] {
        let answer = client.get("/", &[("Cookie", &format!("a=b; SRV={name}; c=d"))]).unwrap();
        assert_eq!((answer.server(), answer.header("set-cookie")), (name, None));
        // indirect: the server does not see it.
        assert!(answer.text().contains("a=b; c=d") && !answer.text().contains("SRV="), "{}", answer.text());
    }

    // A WebSocket, sticky too, on a connection of its own.
    let mut client = Client::connect(&web).unwrap();
    let headers = [&websocket::HANDSHAKE[..], &[("Cookie", "SRV=s3")]].concat();
    let answer = client.get("/ws/echo", &headers).unwrap();
    assert_eq!((answer.status, answer.server()), (101, "s3"));
    assert_eq!(answer.header("sec-websocket-accept"), Some(websocket::ACCEPT));
    for text in ["hello", "and again"] {
        websocket::send_text(client.stream().get_mut(), text).unwrap();
        assert_eq!(websocket::read_text(client.stream()).unwrap(), text);
    }
    drop(client);

    // The log has a line for each request, in HAProxy's format.
    let log = eventually("the log is written", Duration::from_secs(5), || {
        let log = node.output();
        log.contains("\"GET /ws/echo HTTP/1.1\"").then_some(log)
    });
    assert!(log.contains(" web webservers/s3 ") && log.contains("--VN "), "{log}");
    assert_eq!(log.matches("\"GET / HTTP/1.1\"").count(), 10, "{log}");
}

#[test]
fn bodies_of_any_size_pass_both_ways() {
    let base = Base::free();
    let _servers = web_servers(&base);
    let web = base.at(1, 8080);
    let _node = Node::start(&moved(WEB, &base), &web);
    let mut client = Client::connect(&web).unwrap();
    for size in [0, 1, 16_383, 16_384, 100_000, 20_000_000] {
        let answer = client.get(&format!("/size?bytes={size}"), &[]).unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, size));
    }
    for size in [1, 16_384, 5_000_000] {
        let answer = client.request("POST", "/", &[], &vec![b'x'; size]).unwrap();
        assert!(answer.text().contains(&format!("body: {size} bytes")), "{}", answer.text());
    }
    let chunked = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    client.send(chunked).unwrap();
    assert!(client.response(false).unwrap().text().contains("body: 11 bytes"));
}

#[test]
fn the_same_with_a_session_header_in_place_of_the_cookie() {
    let base = Base::free();
    let _servers = web_servers(&base);
    let web = base.at(1, 8080);
    let text = WEB
        .replace("balance roundrobin", "balance hdr(X-Session-ID)\n    hash-type consistent")
        .replace("    cookie SRV insert indirect nocache\n", "");
    let _node = Node::start(&moved(&text, &base), &web);
    let mut client = Client::connect(&web).unwrap();
    let mut ask = |key: &str| client.get("/", &[("X-Session-ID", key)]).unwrap().server().to_owned();
    let keys: Vec<String> = (0..50).map(|i| format!("session-{i}")).collect();
    let first: Vec<String> = keys.iter().map(|k| ask(k)).collect();
    let second: Vec<String> = keys.iter().map(|k| ask(k)).collect();
    assert_eq!(first, second);
    for name in ["s1", "s2", "s3"] {
        assert!(first.iter().any(|s| s == name), "{name} has no key: {first:?}");
    }
}

#[test]
fn all_servers_down_gives_503_until_one_is_back() {
    let base = Base::free();
    let web = base.at(1, 8080);
    let api = base.at(1, 9999);
    let text = moved(WEB, &base).replace(" check ", " check inter 100ms fall 1 rise 1 ");
    let servers = web_servers(&base);
    let _node = Node::start(&text, &web);
    until("it serves", Duration::from_secs(5), || get(&web, "/", &[]).is_ok_and(|r| r.status == 200));
    drop(servers);
    until("503", Duration::from_secs(10), || get(&web, "/", &[]).is_ok_and(|r| r.status == 503));
    until("all are DOWN", Duration::from_secs(10), || {
        let csv = try_api(&api, "show stat -1 4 -1", Duration::from_secs(2)).unwrap_or_default();
        csv.lines().filter(|l| l.starts_with("webservers,s") && l.contains(",DOWN,")).count() == 3
    });
    let _servers = web_servers(&base);
    until("it serves again", Duration::from_secs(10), || get(&web, "/", &[]).is_ok_and(|r| r.status == 200));
}

#[test]
fn pasted_text_forwards_with_a_protected_statistics_page() {
    if !is_root() {
        eprintln!("not run: 'user nobody' needs root");
        return;
    }
    let base = Base::free();
    let servers = [("lamp1", base.at(2, 9881)), ("lamp2", base.at(3, 9882))];
    let _servers = Demo::start(&servers, &[]);
    let app = base.at(1, 80);
    let text = PASTED
        .replace("0.0.0.0:80", &app)
        .replace("10.0.0.1:80", &servers[0].1)
        .replace("10.0.0.2:80", &servers[1].1)
        .replace("log 127.0.0.1 ", &format!("log {} ", base.at(1, 5514)));
    let syslog = std::net::UdpSocket::bind(base.at(1, 5514)).unwrap();
    syslog.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let node = Node::start(&text, &app);

    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid;
    assert!(status.contains(&format!("\nUid:\t{nobody}\t{nobody}\t")), "{status}");

    let answers: Vec<_> = (0..4).map(|_| get(&app, "/", &[]).unwrap()).collect();
    let order: Vec<&str> = answers.iter().map(|r| r.server()).collect();
    assert_ne!(order[0], order[1], "{order:?}");
    assert_eq!((order[0], order[1]), (order[2], order[3]));
    for answer in &answers {
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.text().to_ascii_lowercase().contains("  x-forwarded-for: 127."), "{}", answer.text());
    }

    let closed = get(&app, "/haproxy?stats", &[]).unwrap();
    assert_eq!(closed.status, 401);
    assert_eq!(closed.header("www-authenticate"), Some("Basic realm=\"Strictly Private\""));
    // A_Username:YourPassword, Another_User:passwd, Another_User:wrong
    for (credentials, status) in [
        ("QV9Vc2VybmFtZTpZb3VyUGFzc3dvcmQ=", 200),
        ("QW5vdGhlcl9Vc2VyOnBhc3N3ZA==", 200),
        ("QW5vdGhlcl9Vc2VyOndyb25n", 401),
    ] {
        let page =
            get(&app, "/haproxy?stats", &[("Authorization", &format!("Basic {credentials}"))]).unwrap();
        assert_eq!(page.status, status);
        assert_eq!(page.text().contains("lamp2"), status == 200);
    }
    // `notice`: servers that change state are told, requests (info) are not.
    let mut told = String::new();
    let mut datagram = [0; 2048];
    while let Ok(n) = syslog.recv(&mut datagram) {
        told += &String::from_utf8_lossy(&datagram[..n]);
        told.push('\n');
    }
    assert!(!told.contains("\"GET "), "{told}");
}

#[test]
fn tcp_connections_wait_for_a_free_server_and_get_it() {
    let base = Base::free();
    let _servers = Demo::start(&[], &[("nc1", base.at(1, 9001)), ("nc2", base.at(1, 9002))]);
    let chat = base.at(1, 9000);
    let _node = Node::start(&moved(CHAT, &base), "DIR/sock");
    let mut one = connect_first(&chat);
    let first = line(&mut one).unwrap();
    let mut two = connect(&chat);
    let second = line(&mut two).unwrap();
    let mut names = [first.as_str(), &second];
    names.sort_unstable();
    assert_eq!(names, ["nc1 ready", "nc2 ready"]);
    let mut three = connect(&chat);
    three.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(line(&mut three).is_err(), "both servers are full");
    three.get_ref().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // What it says while it waits is not lost, and the place that comes free is its own.
    three.get_mut().write_all(b"early\n").unwrap();
    drop(one);
    assert_eq!(line(&mut three).unwrap(), first);
    assert_eq!(line(&mut three).unwrap(), "early");
    // Half-close passes through.
    two.get_mut().write_all(b"last words\n").unwrap();
    two.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    two.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last words\n");
}

/// A connection to a node that has just started: its Runtime API answers a moment before it listens.
pub(crate) fn connect_first(addr: &str) -> BufReader<TcpStream> {
    let stream = eventually("it listens", Duration::from_secs(5), || TcpStream::connect(addr).ok());
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

/// A TCP connection that is read with a deadline.
pub(crate) fn connect(addr: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}
