//! Whole requests through a real worker on loopback. What the worker's thread did is what counts: the
//! client and the server are this thread, which goes step by step, so that the worker's steps are the
//! same ones each time but for a few.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use gungraun::{Callgrind, EntryPoint, LibraryBenchmarkConfig, library_benchmark};
use phalanx_bench::REQUESTS;
use phalanx_config::{Source, StaticEnv};
use phalanx_engine::state::{Setup, State};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_proxy::Forwarder;
use phalanx_proxy::log::Sink;
use phalanx_sys::clock::Clock;

use super::rules;
use super::{REQUEST, RESPONSE};

struct Plane {
    forwarder: Forwarder,
    origin: TcpListener,
    client: TcpStream,
    /// Never read: the kernel drops what it has no room for.
    _log: UdpSocket,
}

/// A worker with nothing to do but to forward.
fn plain() -> Plane {
    start("", "", &StaticEnv::default())
}

/// One that logs, sets a cookie, says for whom it forwards, walks over twenty rules with a map, and
/// tracks its clients.
fn laden() -> Plane {
    let front = format!(
        "option httplog\n option forwardfor\n http-request track-sc0 src table b\n \
         http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}\n{}",
        rules::TWENTY
    );
    let back = "cookie SRV insert indirect nocache\n \
        stick-table type ip size 1m expire 10m store http_req_rate(10s)";
    start(&front, back, &rules::files())
}

fn start(front: &str, back: &str, env: &StaticEnv) -> Plane {
    let origin = TcpListener::bind("127.0.0.1:0").expect("a port");
    let log = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (server, log_to) = (address(&origin), log.local_addr().expect("bound"));
    let logs = if front.contains("httplog") { format!("log {log_to} local0") } else { String::new() };
    let text = format!(
        "defaults\n mode http\n timeout connect 50s\n timeout client 50s\n timeout server 50s\n\
         frontend f\n bind 127.0.0.1:1\n {logs}\n default_backend b\n {front}\n\
         backend b\n {back}\n server s1 {server} cookie s1\n"
    );
    let outcome = phalanx_config::parse(&[Source::new("bench.cfg", &*text)], env);
    let mut config = outcome.config.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics));
    // A port of the system's choice, which no configuration can ask for.
    let front = config.proxies.iter_mut().find(|p| !p.binds.is_empty()).expect("a frontend");
    Arc::make_mut(front).binds[0].addr.set_port(0);
    let clock = Clock::new();
    let (mono, unix_us) = clock.now();
    let setup = Setup { workers: 1, seed: 1, default_maxconn: 1000, node: "n1".into() };
    let sink = Sink::new(&config.global);
    let state = State::new(config, setup, Tables::new("n1", 1, 1), Now { mono, unix_us });
    let forwarder = Forwarder::start(state, clock, sink).expect("it starts");
    let proxy = *forwarder.addresses().first().expect("a listener");
    let client = TcpStream::connect(proxy).expect("it accepts");
    Plane { forwarder, origin, client: patient(client), _log: log }
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("bound")
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    stream
}

/// Reads one head, and a body of `body` bytes.
fn read(stream: &mut TcpStream, body: usize) {
    let (mut text, mut len) = ([0; 4096], 0);
    loop {
        let n = stream.read(&mut text[len..]).expect("it goes on");
        assert!(n > 0, "closed after {}", String::from_utf8_lossy(&text[..len]));
        len += n;
        let end = text[..len].windows(4).position(|w| w == b"\r\n\r\n");
        if end.is_some_and(|end| len >= end + 4 + body) {
            return;
        }
    }
}

#[library_benchmark(config = LibraryBenchmarkConfig::default()
    .tool(Callgrind::with_args(["--cache-sim=no"]).entry_point(EntryPoint::None)))]
#[bench::plain(plain())]
#[bench::laden(laden())]
pub(crate) fn keep_alive(mut plane: Plane) {
    let response = format!("{RESPONSE}{}", "x".repeat(100));
    let mut servers: Vec<TcpStream> = Vec::new();
    for n in 0..REQUESTS {
        plane.client.write_all(REQUEST.as_bytes()).expect("it goes on");
        if n == 0 {
            servers.push(patient(plane.origin.accept().expect("the proxy comes").0));
        }
        read(&mut servers[0], 0);
        servers[0].write_all(response.as_bytes()).expect("it goes on");
        read(&mut plane.client, 100);
    }
    plane.forwarder.stop(Some(Duration::ZERO));
}
