//! What is counted in stick tables: the same clients, one after the other, and what `show table` says
//! after each.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cluster_tests::eventually;

use crate::normal;
use crate::script::{Step, Transcript, play};
use crate::side::{BOTH, Kind, Side, haproxy};

/// One client: where it connects, what it sends, whether it closes its half then, and how long it stays
/// before it reads to the end.
struct Client {
    what: &'static str,
    port: u16,
    sends: &'static str,
    shuts: bool,
}

const fn client(what: &'static str, port: u16, sends: &'static str) -> Client {
    Client { what, port, sends, shuts: false }
}

const CONFIG: &str = "\
global
    stats socket DIR/sock level admin
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout http-request 700ms
    retries 0
frontend early
    bind 127.0.0.1:20001
    tcp-request connection track-sc0 src table conn
    tcp-request session track-sc1 src table sess
    http-request deny deny_status 403 if { path /deny }
    http-request deny deny_status 503 if { path /deny503 }
    use_backend b404 if { path /404 }
    use_backend b500 if { path /500 }
    use_backend b501 if { path /501 }
    use_backend bad if { path /bad }
    use_backend down if { path /down }
    default_backend b200
frontend later
    bind 127.0.0.1:20002
    http-request track-sc0 src table late
    http-request track-sc1 path table paths
    http-request deny deny_status 403 if { path /deny }
    use_backend b404 if { path /404 }
    use_backend b500 if { path /500 }
    default_backend b200
frontend behind
    bind 127.0.0.1:20003
    default_backend tracking
frontend tcp
    mode tcp
    bind 127.0.0.1:20004
    tcp-request connection track-sc0 src table tcp1
    tcp-request content track-sc1 src table tcp2
    default_backend echo
frontend refused
    mode tcp
    bind 127.0.0.1:20005
    tcp-request connection track-sc0 src table refuse
    tcp-request connection reject
    default_backend echo
backend tracking
    http-request track-sc0 src table late
    server s 127.0.0.1:30001
backend b200
    server s 127.0.0.1:30001
backend b404
    server s 127.0.0.1:30002
backend b500
    server s 127.0.0.1:30003
backend b501
    server s 127.0.0.1:30004
backend bad
    server s 127.0.0.1:30005
backend down
    server s 127.0.0.1:30009
backend echo
    mode tcp
    server s 127.0.0.1:30006
backend conn
    stick-table type ip size 100 expire 10m store ALL
backend sess
    stick-table type ip size 100 expire 10m store ALL
backend late
    stick-table type ip size 100 expire 10m store ALL
backend paths
    stick-table type string len 8 size 100 expire 10m store http_req_cnt,http_err_cnt,http_fail_cnt
backend tcp1
    stick-table type ip size 100 expire 10m store ALL
backend tcp2
    stick-table type ip size 100 expire 10m store ALL
backend refuse
    stick-table type ip size 100 expire 10m store ALL
backend stuck
    stick-table type ip size 100 expire 10m
    stick on src
    server s 127.0.0.1:30001
frontend sticky
    bind 127.0.0.1:20006
    default_backend stuck
";

const ALL: &str = "conn_cnt,conn_rate(1m),conn_cur,sess_cnt,sess_rate(1m),http_req_cnt,http_req_rate(1m),\
http_err_cnt,http_err_rate(1m),http_fail_cnt,http_fail_rate(1m),bytes_in_cnt,bytes_out_cnt,bytes_in_rate(1m)";

const TABLES: [&str; 8] = ["conn", "sess", "late", "paths", "tcp1", "tcp2", "refuse", "stuck"];

const ANSWERS: [(u16, &str); 4] = [
    (30001, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
    (30002, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    (30003, "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"),
    (30004, "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n"),
];

const CLIENTS: &[Client] = &[
    client("a request", 20001, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client(
        "two on one connection",
        20001,
        "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /404 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ),
    client("a failure", 20001, "GET /500 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("not implemented", 20001, "GET /501 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("denied", 20001, "GET /deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("denied with 503", 20001, "GET /deny503 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("an invalid response", 20001, "GET /bad HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("a server that is not there", 20001, "GET /down HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("garbage", 20001, "GARBAGE\r\n\r\n"),
    client("too slow", 20001, "GET / HTTP/1.1\r\nHos"),
    Client { shuts: true, ..client("truncated", 20001, "GET / HTTP/1.1\r\nHos") },
    Client { shuts: true, ..client("nothing", 20001, "") },
    client("tracked by request", 20002, "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client(
        "three requests, each tracked",
        20002,
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /404 HTTP/1.1\r\nHost: x\r\n\r\n\
         GET /500 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ),
    client("denied after tracking", 20002, "GET /deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    client("tracked in the backend", 20003, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    Client { shuts: true, ..client("tcp", 20004, "hello") },
    client("rejected", 20005, ""),
    client("stuck", 20006, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
];

#[test]
fn tables_count_as_in_haproxy() {
    if haproxy().is_none() {
        return;
    }
    let [wanted, got] = BOTH.map(run);
    if std::env::var("CASE").is_ok() {
        println!("{got}");
    }
    assert!(wanted == got, "{}", normal::difference(&wanted, &got));
}

/// All clients, and what the tables say after each.
fn run(kind: Kind) -> String {
    let mut side = Side::new(kind);
    for (port, answer) in ANSWERS {
        serve(&side, port, Step::Serve(answer));
    }
    serve(&side, 30005, Step::Send("HTTP/9 what\r\n\r\n"));
    serve(&side, 30006, Step::Bytes(5));
    side.run(&CONFIG.replace("ALL", ALL));
    let mut seen = String::new();
    for client in CLIENTS {
        let mut stream = eventually("it listens", Duration::from_secs(5), || {
            TcpStream::connect(side.at(client.port)).ok()
        });
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
        // One that is rejected may be gone already.
        let _ = stream.write_all(client.sends.as_bytes());
        if client.shuts {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = stream.read_to_end(&mut Vec::new());
        drop(stream);
        let tables = eventually("the connection is over", Duration::from_secs(5), || {
            let all: String = TABLES.iter().map(|table| table_of(&side, table)).collect();
            (!all.contains(" use=1 ") && !all.contains("conn_cur=1")).then_some(all)
        });
        seen += &format!("== {}\n{tables}", client.what);
    }
    // While a connection lasts it is in `conn_cur`; its bytes come at the end.
    let mut held = TcpStream::connect(side.at(20004)).expect("it listens");
    held.write_all(b"hel").expect("it takes bytes");
    let tables = eventually("it is tracked", Duration::from_secs(5), || {
        let now = table_of(&side, "tcp1") + &table_of(&side, "tcp2");
        (now.matches(" use=1 ").count() == 2).then_some(now)
    });
    seen += &format!("== open\n{tables}");
    for command in SETS {
        seen += &format!("> {command}\n{}", ask(&side, command));
        seen += &table_of(&side, "late");
    }
    seen
}

/// What is set and cleared, and filters on it.
const SETS: &[&str] = &[
    "set table late key 10.0.0.1 data.conn_cnt 4294967295 data.conn_cur 7 data.bytes_in_cnt 99999999999",
    "set table late key 10.0.0.1 data.http_req_rate 9 data.sess_rate 3",
    "set table late key 10.0.0.2 data.http_err_cnt 2",
    "show table late data.http_err_cnt gt 1",
    "show table late data.bytes_in_cnt gt 99999999998",
    "show table late data.http_req_rate eq 9",
    "set table late key 10.0.0.1 data.gpc0 1",
    "clear table late data.http_err_cnt gt 1",
    "clear table late key 10.0.0.1",
    "clear table late",
];

fn serve(side: &Side, port: u16, step: Step) {
    let listener = TcpListener::bind(side.at(port)).expect("an address of its own");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || play(stream, &[step], &Transcript::default()));
        }
    });
}

fn ask(side: &Side, command: &str) -> String {
    let mut stream = UnixStream::connect(side.socket()).expect("the Runtime API listens");
    stream.write_all(format!("{command}\n").as_bytes()).expect("commands can be sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    lines(side, &text)
}

fn table_of(side: &Side, table: &str) -> String {
    ask(side, &format!("show table {table}"))
}

/// Without pointers and ages. HAProxy counts bytes of HTTP in a form of the message that is never on the
/// wire: there only whether some were counted is compared.
fn lines(side: &Side, text: &str) -> String {
    let text = side.unmoved(text);
    let mut rows: Vec<String> = Vec::new();
    let mut tcp = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('#') {
            tcp = line.contains(" tcp");
        }
        let words =
            line.split(' ').filter(|w| !w.starts_with("0x") && *w != "shard=0").map(|word| {
                match word.split_once('=') {
                    Some(("exp", _)) => "exp=N".to_owned(),
                    Some((name, n)) if name.starts_with("bytes_") && !tcp && n.len() < 9 && n != "0" => {
                        format!("{name}=B")
                    }
                    _ => word.to_owned(),
                }
            });
        rows.push(words.collect::<Vec<_>>().join(" "));
    }
    rows.sort();
    rows.into_iter().map(|row| row + "\n").collect()
}
