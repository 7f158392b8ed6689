//! Everything that a planned move of a floating address must not disturb: requests on kept connections,
//! connections for one request, a long transfer, TCP connections that talk, and one that is idle.
//!
//! Started where the client is (its threads inherit the network namespace), finished for a [`Report`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Client;

/// Longest wait for anything; longer than any connection may be held up by a lost packet.
const LIMIT: Duration = Duration::from_secs(8);

/// Between two attempts to connect, over all threads that try.
pub const KNOCK_EVERY: Duration = Duration::from_millis(5);

/// Threads that try: so many may wait for an answer at a time.
const KNOCKERS: u32 = 40;

/// A connection that took longer had to ask again.
const ASKED_AGAIN: Duration = Duration::from_millis(500);

/// Bytes of a long transfer.
const LONG: usize = 64 << 20;

/// An attempt to connect.
#[derive(Clone, Copy, Debug)]
pub struct Knock {
    /// When, from the start.
    pub at: Duration,
    /// Until it was connected; `None`: never.
    pub took: Option<Duration>,
}

/// What became of everything.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests answered with 200.
    pub requests: usize,
    /// What went wrong, each with its reason.
    pub lost: Vec<String>,
    /// Bytes of long transfers.
    pub transferred: usize,
    /// Lines that came back on TCP connections.
    pub echoes: usize,
    /// Attempts to connect, in order.
    pub knocks: Vec<Knock>,
}

impl Report {
    /// How long new connections had to ask again, for each time that they had to: between the first and
    /// the last attempt of those that follow each other within 100 ms.
    pub fn gaps(&self) -> Vec<Duration> {
        let mut gaps: Vec<(Duration, Duration)> = Vec::new();
        let late = self.knocks.iter().filter(|k| k.took.is_none_or(|took| took >= ASKED_AGAIN));
        for knock in late {
            match gaps.last_mut() {
                Some((_, last)) if knock.at <= *last + Duration::from_millis(100) => *last = knock.at,
                _ => gaps.push((knock.at, knock.at)),
            }
        }
        gaps.into_iter().map(|(first, last)| last - first + KNOCK_EVERY).collect()
    }

    /// Times to connect, the shortest first.
    pub fn connect_times(&self) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.knocks.iter().filter_map(|k| k.took).collect();
        times.sort_unstable();
        times
    }
}

/// Running traffic.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    parts: Vec<JoinHandle<Report>>,
}

impl Traffic {
    /// Starts it: HTTP to `http`, whose servers know `/size`, and lines to `tcp`, which echoes after a
    /// greeting and has room for two connections.
    pub fn start(http: &str, tcp: &str) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let run = |part: fn(&str, &AtomicBool, Instant) -> Report, addr: &str| {
            let (addr, stop) = (addr.to_owned(), stop.clone());
            thread::spawn(move || part(&addr, &stop, began))
        };
        let mut parts = vec![
            run(kept_connection, http),
            run(kept_connection, http),
            run(single_requests, http),
            run(single_requests, http),
            run(transfer, http),
            run(talk, tcp),
            run(idle, tcp),
        ];
        parts.extend((0..KNOCKERS).map(|i| {
            let (addr, stop) = (http.to_owned(), stop.clone());
            thread::spawn(move || knock(&addr, &stop, began, i))
        }));
        Traffic { stop, parts }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When one of its threads has.
    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for part in self.parts {
            let part = part.join().expect("a part of the traffic does not panic");
            report.requests += part.requests;
            report.lost.extend(part.lost);
            report.transferred += part.transferred;
            report.echoes += part.echoes;
            report.knocks.extend(part.knocks);
        }
        report.knocks.sort_by_key(|k| k.at);
        let never = report.knocks.iter().filter(|k| k.took.is_none()).count();
        if never > 0 {
            report.lost.push(format!("{never} connections could not be made"));
        }
        report
    }
}

/// One connection for all requests, made anew only when it was lost.
fn kept_connection(addr: &str, stop: &AtomicBool, began: Instant) -> Report {
    let mut report = Report::default();
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let answer = match client.take() {
            Some(client) => Ok(client),
            None => Client::with_limit(addr, LIMIT),
        };
        let answer = answer.and_then(|mut c| Ok((c.get("/", &[])?, c)));
        match answer {
            Ok((response, kept)) if response.status == 200 => {
                report.requests += 1;
                client = Some(kept);
            }
            Ok((response, _)) => report.lost.push(format!("status {}", response.status)),
            Err(e) => report.lost.push(format!("a kept connection at {:?}: {e}", began.elapsed())),
        }
        thread::sleep(Duration::from_millis(1));
    }
    report
}

/// A connection for every request.
fn single_requests(addr: &str, stop: &AtomicBool, began: Instant) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let answer = Client::with_limit(addr, LIMIT).and_then(|mut c| c.get("/", &[("connection", "close")]));
        match answer {
            Ok(response) if response.status == 200 => report.requests += 1,
            other => report.lost.push(format!("a single request at {:?}: {other:?}", began.elapsed())),
        }
        thread::sleep(Duration::from_millis(2));
    }
    report
}

/// Long transfers, read slowly.
fn transfer(addr: &str, stop: &AtomicBool, began: Instant) -> Report {
    let mut report = Report::default();
    let mut whole = || -> io::Result<()> {
        let mut client = Client::with_limit(addr, LIMIT)?;
        client.send(format!("GET /size?bytes={LONG} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        let head = client.response(true)?;
        if head.header("content-length") != Some(&LONG.to_string()) {
            return Err(io::Error::other(format!("not the transfer: {head:?}")));
        }
        let (mut left, mut buf) = (LONG, vec![0; 64 << 10]);
        while left > 0 {
            let n = left.min(buf.len());
            client.stream().read_exact(&mut buf[..n])?;
            left -= n;
            report.transferred += n;
            // 16 MiB a second, and what is left at the end at once.
            if !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(4));
            }
        }
        Ok(())
    };
    let mut lost = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Err(e) = whole() {
            lost.push(format!("a long transfer at {:?}: {e}", began.elapsed()));
        }
    }
    report.lost = lost;
    report
}

fn connect(addr: &str) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&addr.parse().map_err(io::Error::other)?, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut greeting = String::new();
    stream.read_line(&mut greeting)?;
    if greeting.ends_with(" ready\n") { Ok(stream) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn echo(stream: &mut BufReader<TcpStream>, n: usize) -> io::Result<()> {
    let (line, mut back) = (format!("line {n}\n"), String::new());
    stream.get_mut().write_all(line.as_bytes())?;
    stream.read_line(&mut back)?;
    if back == line { Ok(()) } else { Err(io::Error::other(format!("'{back}' came back"))) }
}

/// One TCP connection that talks all the time.
fn talk(addr: &str, stop: &AtomicBool, began: Instant) -> Report {
    long_lived(addr, stop, began, Duration::from_millis(10))
}

/// One TCP connection that says nothing until the end.
fn idle(addr: &str, stop: &AtomicBool, began: Instant) -> Report {
    long_lived(addr, stop, began, Duration::MAX)
}

fn long_lived(addr: &str, stop: &AtomicBool, began: Instant, every: Duration) -> Report {
    let mut report = Report::default();
    let mut whole = || -> io::Result<()> {
        let mut stream = connect(addr)?;
        let mut said = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if said.elapsed() >= every {
                echo(&mut stream, report.echoes)?;
                report.echoes += 1;
                said = Instant::now();
            }
            thread::sleep(Duration::from_millis(10));
        }
        echo(&mut stream, report.echoes)?;
        report.echoes += 1;
        Ok(())
    };
    if let Err(e) = whole() {
        report.lost.push(format!("a TCP connection at {:?}: {e}", began.elapsed()));
    }
    report
}

/// One of those that take turns to connect.
fn knock(addr: &str, stop: &AtomicBool, began: Instant, which: u32) -> Report {
    let mut report = Report::default();
    let addr = addr.parse().expect("an address with a port");
    let mut next = began + KNOCK_EVERY * which;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let at = Instant::now();
        let made = TcpStream::connect_timeout(&addr, LIMIT);
        let took = made.is_ok().then(|| at.elapsed());
        report.knocks.push(Knock { at: at - began, took });
        next = (next + KNOCK_EVERY * KNOCKERS).max(Instant::now());
    }
    report
}
