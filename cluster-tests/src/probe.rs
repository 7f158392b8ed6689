//! Probes of an address in even steps, none of which waits for another: what a client would see, and
//! who answers.
//!
//! One thread sends one probe after the other, each on a connection of its own, and gives up each
//! after its patience. A [`Prober`] sends a request and notes who answered it: silence between two
//! answers is a gap. A [`Witness`] asks a node's kernel alone, by a port where nobody listens: that it
//! refuses shows that the address is its own at that moment, whatever its processes do.

mod spans;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::sys::time::TimeSpec;

pub use self::spans::{Overlap, Span, Spans, overlap, overlaps};
use crate::lab::enter;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The first line of the body.
    Body(String),
    /// The connection was refused or reset.
    Refused,
    /// Nothing came in time.
    Silence,
}

/// A probe that is over.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When it was sent, from the origin.
    pub sent: Duration,
    /// When its answer was there, or patience was over.
    pub ended: Duration,
    /// What became of it.
    pub answer: Answer,
}

/// How to probe.
#[derive(Clone, Debug)]
struct Plan {
    namespace: String,
    target: SocketAddr,
    every: Duration,
    patience: Duration,
    request: Option<Vec<u8>>,
    origin: Instant,
}

/// A client that asks through the floating address.
#[derive(Debug)]
pub struct Prober {
    shots: Arc<Mutex<Vec<Shot>>>,
    _runner: Runner,
}

impl Prober {
    /// Starts it in a namespace. Times are counted from `origin`.
    pub fn start(namespace: &str, target: SocketAddr, every: Duration, origin: Instant) -> Prober {
        let request =
            format!("GET /probe HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").into_bytes();
        let plan = Plan {
            namespace: namespace.to_owned(),
            target,
            every,
            // As long as the first repetition of a SYN takes: what is lost stays lost.
            patience: Duration::from_millis(900),
            request: Some(request),
            origin,
        };
        let shots = Arc::new(Mutex::new(Vec::new()));
        let sink = shots.clone();
        Prober { shots, _runner: Runner::start(plan, move |shot| locked(&sink).push(shot)) }
    }

    /// All probes that are over, in the order in which they were sent.
    pub fn shots(&self) -> Vec<Shot> {
        locked(&self.shots).clone()
    }

    /// The probes that were sent since then.
    pub fn since(&self, from: Duration) -> Vec<Shot> {
        let shots = locked(&self.shots);
        let start = shots.partition_point(|s| s.sent < from);
        shots[start..].to_vec()
    }

    /// Who answered the last probe that was answered, of those sent since then.
    pub fn last(&self, from: Duration) -> Option<String> {
        let shots = locked(&self.shots);
        let recent = shots.iter().rev().take_while(|s| s.sent >= from);
        recent.filter_map(Shot::body).next().map(str::to_owned)
    }
}

impl Shot {
    /// What was answered.
    pub fn body(&self) -> Option<&str> {
        match &self.answer {
            Answer::Body(text) => Some(text),
            _ => None,
        }
    }
}

/// Longest time without the end of an answer, among the probes of a time that ends with `until`.
pub fn longest_gap(shots: &[Shot], until: Duration) -> Duration {
    let Some(first) = shots.first() else { return Duration::MAX };
    let mut ends: Vec<Duration> = shots.iter().filter(|s| s.body().is_some()).map(|s| s.ended).collect();
    ends.extend([first.sent, until]);
    ends.sort_unstable();
    ends.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(Duration::MAX)
}

/// Asks one node's kernel for the floating address.
#[derive(Debug)]
pub struct Witness {
    spans: Arc<Mutex<Spans>>,
    _runner: Runner,
}

impl Witness {
    /// Starts it in the namespace of a witness; `target` is the floating address and a port where
    /// nobody listens.
    pub fn start(namespace: &str, target: SocketAddr, every: Duration, origin: Instant) -> Witness {
        let plan = Plan {
            namespace: namespace.to_owned(),
            target,
            every,
            patience: Duration::from_millis(25),
            request: None,
            origin,
        };
        let spans = Arc::new(Mutex::new(Spans::default()));
        let sink = spans.clone();
        let runner = Runner::start(plan, move |shot| match shot.answer {
            Answer::Silence => locked(&sink).broken(),
            Answer::Refused | Answer::Body(_) => locked(&sink).seen(shot.sent, shot.ended),
        });
        Witness { spans, _runner: runner }
    }

    /// When the node's kernel had the address, for certain.
    pub fn spans(&self) -> Vec<Span> {
        locked(&self.spans).all()
    }
}

#[derive(Debug)]
struct Runner {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    fn start(plan: Plan, sink: impl FnMut(Shot) + Send + 'static) -> Runner {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            enter(&plan.namespace);
            run(&plan, &told, sink);
        });
        Runner { stop, thread: Some(thread) }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A probe under way, or over while one sent earlier is not.
struct Flight {
    sent: Duration,
    stream: Option<TcpStream>,
    asked: bool,
    received: Vec<u8>,
    done: Option<(Duration, Answer)>,
}

fn run(plan: &Plan, stop: &AtomicBool, mut sink: impl FnMut(Shot)) {
    let mut flights: VecDeque<Flight> = VecDeque::new();
    let mut next = Instant::now();
    while !stop.load(Relaxed) {
        let now = Instant::now();
        if now >= next {
            // A thread that was not run for long sends no burst.
            next = if now > next + plan.every * 4 { now + plan.every } else { next + plan.every };
            flights.push_back(depart(plan, now - plan.origin));
        }
        wait(&mut flights, next.saturating_duration_since(Instant::now()));
        for flight in flights.iter_mut().filter(|f| f.done.is_none()) {
            let answer = flight.advance(plan);
            let ended = plan.origin.elapsed();
            let answer = answer.or_else(|| (ended > flight.sent + plan.patience).then_some(Answer::Silence));
            if let Some(answer) = answer {
                flight.stream = None;
                flight.done = Some((ended, answer));
            }
        }
        while let Some((ended, answer)) = flights.front_mut().and_then(|f| f.done.take()) {
            let sent = flights.pop_front().expect("it has a front").sent;
            sink(Shot { sent, ended, answer });
        }
    }
}

fn depart(plan: &Plan, sent: Duration) -> Flight {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let family = if plan.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, flags, None).expect("a socket");
    let done = match connect(fd.as_raw_fd(), &SockaddrStorage::from(plan.target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => None,
        Err(Errno::ECONNREFUSED) => Some((plan.origin.elapsed(), Answer::Refused)),
        Err(_) => Some((plan.origin.elapsed(), Answer::Silence)),
    };
    Flight {
        sent,
        stream: done.is_none().then(|| TcpStream::from(fd)),
        asked: false,
        received: Vec::new(),
        done,
    }
}

fn wait(flights: &mut VecDeque<Flight>, limit: Duration) {
    let mut fds: Vec<PollFd<'_>> = flights
        .iter()
        .filter_map(|f| {
            let events = if f.asked { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            Some(PollFd::new(f.stream.as_ref()?.as_fd(), events))
        })
        .collect();
    let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(limit.min(Duration::from_millis(20)))), None);
}

impl Flight {
    fn advance(&mut self, plan: &Plan) -> Option<Answer> {
        let stream = self.stream.as_mut()?;
        if !self.asked {
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_err() => return None,
                Ok(None) => {}
                Ok(Some(e)) | Err(e) => return Some(failed(&e)),
            }
            let Some(request) = &plan.request else { return Some(Answer::Body(String::new())) };
            match stream.write(request) {
                Ok(_) => self.asked = true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) => return Some(failed(&e)),
            }
        }
        let mut buffer = [0; 2048];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Some(body(&self.received)),
                Ok(n) => self.received.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) => return Some(failed(&e)),
            }
        }
    }
}

fn failed(error: &std::io::Error) -> Answer {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Answer::Refused,
        _ => Answer::Silence,
    }
}

fn body(received: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(received);
    match (text.starts_with("HTTP/1.1 200"), text.split_once("\r\n\r\n")) {
        (true, Some((_, body))) => Answer::Body(body.lines().next().unwrap_or_default().to_owned()),
        _ => Answer::Refused,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(sent: u64, ended: u64, who: Option<&str>) -> Shot {
        let answer = who.map_or(Answer::Silence, |w| Answer::Body(w.into()));
        Shot { sent: Duration::from_millis(sent), ended: Duration::from_millis(ended), answer }
    }

    #[test]
    fn a_gap_is_the_time_without_answers() {
        let shots =
            [shot(0, 1, Some("a")), shot(5, 900, None), shot(10, 71, Some("b")), shot(15, 70, Some("b"))];
        let until = Duration::from_millis;
        assert_eq!(longest_gap(&shots, until(72)), until(69));
        assert_eq!(longest_gap(&shots, until(200)), until(129), "it may not be over");
        assert_eq!(longest_gap(&[], until(200)), Duration::MAX);
    }

    #[test]
    fn only_whole_good_answers_count() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nn1\n"), Answer::Body("n1".into()));
        assert_eq!(body(b"HTTP/1.1 503 No\r\n\r\nn1\n"), Answer::Refused);
        assert_eq!(body(b""), Answer::Refused);
    }
}
