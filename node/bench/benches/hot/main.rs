//! The hot pieces, each counted by callgrind: what `budget.txt` holds limits for.
//!
//! Each function carries out its piece [`TIMES`] times, those that forward so many requests, so that the
//! first one does not decide; `budget.txt` has the numbers for one. Everything else is set up outside of
//! what is counted.

#![allow(unreachable_pub, reason = "what the harness writes is")]

mod forward;
mod rules;
mod table;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use phalanx_bench::TIMES;
use phalanx_config::{Cookie, LogFormat, Mode, Source, StaticEnv};
use phalanx_engine::backend::{Ask, Backend, Choice};
use phalanx_engine::cookie::{self, Answer};
use phalanx_engine::counters::Worker;
use phalanx_engine::h1::{self, Edits, Head};
use phalanx_engine::log::{self, Record, Timers};
use phalanx_engine::state::{Setup, State};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;

use self::forward::keep_alive;
use self::rules::twenty;
use self::table::touch;

/// What a browser sends, more or less.
const REQUEST: &str = "GET /shop/item-4711/details?colour=blue&size=xl HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Cookie: session=8e1f0b7a3c; theme=dark\r\n\
    Cache-Control: no-cache\r\n\
    \r\n";

/// What a server answers.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Sat, 21 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 100\r\n\
    Last-Modified: Sat, 21 Nov 2026 11:00:00 GMT\r\n\
    ETag: \"6560a1b0-64\"\r\n\
    Accept-Ranges: bytes\r\n\
    \r\n";

/// A moment.
fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), unix_us: 1_795_000_000_000_000 + ms * 1000 }
}

/// The state of a configuration.
fn state(text: &str, env: &StaticEnv) -> Arc<State> {
    let outcome = phalanx_config::parse(&[Source::new("bench.cfg", text)], env);
    let config = outcome.config.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics));
    let setup = Setup { workers: 1, seed: 1, default_maxconn: 1000, node: "n1".into() };
    State::new(config, setup, Tables::new("n1", 1, 1), at(0))
}

/// A number that looks random.
fn draw(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

// ---- heads ----

fn received(text: &str) -> (Vec<Vec<u8>>, Head) {
    let mut head = Head::default();
    let mut first = text.as_bytes().to_vec();
    // Once, for the room.
    let parsed = if text.starts_with("HTTP") { h1::response } else { h1::request };
    parsed(&mut first, &mut head).expect("a message");
    ((0..TIMES).map(|_| text.as_bytes().to_vec()).collect(), head)
}

#[library_benchmark]
#[bench::request(received(REQUEST))]
fn parse((mut texts, mut head): (Vec<Vec<u8>>, Head)) -> (Vec<Vec<u8>>, Head) {
    for text in &mut texts {
        head.clear();
        black_box(h1::request(text, &mut head).is_ok());
        black_box(h1::request_framing(text, &head).is_ok());
    }
    (texts, head)
}

#[library_benchmark]
#[bench::response(received(RESPONSE))]
fn parse_response((mut texts, mut head): (Vec<Vec<u8>>, Head)) -> (Vec<Vec<u8>>, Head) {
    for text in &mut texts {
        head.clear();
        black_box(h1::response(text, &mut head).is_ok());
        black_box(h1::response_framing(text, &head, b"GET", false).is_ok());
    }
    (texts, head)
}

/// A parsed head with what it takes to change it.
struct Edited {
    text: Vec<u8>,
    head: Head,
    edits: Edits,
    out: Vec<u8>,
    cookie: Cookie,
}

fn edited(text: &str) -> Edited {
    let cookie = "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n\
        backend b\n cookie SRV insert indirect nocache\n server s1 127.0.0.1:1 cookie s1\n";
    let state = state(cookie, &StaticEnv::default());
    let cookie = state.plan().proxy("b").and_then(|p| p.config.cookie.clone()).expect("it has one");
    let (mut texts, head) = received(text);
    let mut edited = Edited {
        text: texts.swap_remove(0),
        head,
        edits: Edits::default(),
        out: Vec::with_capacity(4096),
        cookie,
    };
    // The bytes as the head's parser leaves them.
    let mut head = Head::default();
    let parsed = if text.starts_with("HTTP") { h1::response } else { h1::request };
    parsed(&mut edited.text, &mut head).expect("a message");
    edited.head = head;
    edited.edits.add(b"room", &[&[b'x'; 100]]);
    edited
}

#[library_benchmark]
#[bench::forwardfor(edited(REQUEST))]
fn edit_request(mut e: Edited) -> Edited {
    for _ in 0..TIMES {
        e.out.clear();
        e.edits.clear();
        cookie::clean(&e.cookie, &e.text, &e.head, &mut e.edits);
        e.edits.add(b"x-forwarded-for", &[black_box(b"192.0.2.17")]);
        h1::write_request(&e.text, &e.head, &e.edits, &mut e.out);
    }
    e
}

#[library_benchmark]
#[bench::cookie(edited(RESPONSE))]
fn edit_response(mut e: Edited) -> Edited {
    for n in 0..TIMES {
        e.out.clear();
        e.edits.clear();
        let with = Answer { key: Some("s1"), now: 1_795_000_000 + n, ..Answer::default() };
        black_box(cookie::answer(&e.cookie, &e.text, &e.head, &with, &mut e.edits));
        e.edits.drop_named(&e.text, &e.head, b"connection");
        h1::write_response(&e.text, &e.head, &e.edits, &mut e.out);
    }
    e
}

// ---- servers ----

fn backend(balance: &str) -> Arc<Backend> {
    let mut text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n\
         backend b\n balance {balance}\n hash-type consistent\n"
    );
    for n in 1..=16 {
        text += &format!(" server s{n} 127.0.0.1:{} weight {}\n", 9000 + n, 1 + n % 3);
    }
    state(&text, &StaticEnv::default()).plan().backend("b").expect("a backend").clone()
}

// Chooses and lets go, with eight streams at a time.
#[library_benchmark]
#[bench::roundrobin(backend("roundrobin"))]
#[bench::leastconn(backend("leastconn"))]
#[bench::source(backend("source"))]
#[bench::header(backend("hdr(x-key)"))]
fn balance(backend: Arc<Backend>) -> Arc<Backend> {
    let mut held: [Option<Choice>; 8] = Default::default();
    for n in 0..TIMES {
        let key = draw(n).to_le_bytes();
        let ask = Ask {
            key: Some(&key),
            src: IpAddr::V4(Ipv4Addr::from_bits(draw(n) as u32)),
            directed: None,
            avoid: None,
            worker: Worker(0),
            draw: draw(n),
        };
        held[(n % 8) as usize] = Some(backend.choose(&ask));
    }
    black_box(&held);
    drop(held);
    backend
}

// ---- log ----

fn record() -> (Record<'static>, Vec<u8>) {
    let record = Record {
        client: "192.0.2.17:51234".parse().expect("an address"),
        destination: "198.51.100.1:80".parse().expect("an address"),
        mode: Mode::Http,
        unix_us: at(0).unix_us,
        frontend: "www",
        backend: "app",
        server: Some("app3"),
        timers: Timers { request: Some(0), queue: Some(0), connect: Some(1), response: Some(12), total: 13 },
        status: Some(200),
        bytes: 4711,
        request_cookie: None,
        response_cookie: None,
        termination: *b"--NI",
        actconn: 117,
        feconn: 117,
        beconn: 64,
        srvconn: 9,
        retries: 0,
        redispatched: false,
        srv_queue: 0,
        backend_queue: 0,
        request: b"GET /shop/item-4711/details?colour=blue&size=xl HTTP/1.1",
        asap: false,
    };
    let mut out = Vec::with_capacity(1024);
    log::line(LogFormat::Http, &record, &mut out);
    (record, out)
}

#[library_benchmark]
#[bench::httplog(record())]
fn log_line((mut record, mut out): (Record<'static>, Vec<u8>)) -> Vec<u8> {
    for _ in 0..TIMES {
        out.clear();
        record.unix_us += 1_000;
        log::line(black_box(LogFormat::Http), &record, &mut out);
    }
    out
}

library_benchmark_group!(
    name = hot,
    benchmarks =
        [parse, parse_response, edit_request, edit_response, balance, log_line, twenty, touch, keep_alive]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = hot
);
