use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_config::model::{Balance, HttpCheck, Proxy, ServerOptions};
use phalanx_engine::backend::{AdminChange, Ask, Choice};
use phalanx_engine::counters::Worker;
use phalanx_engine::health::CheckStatus;
use phalanx_engine::state::Setup;
use phalanx_engine::stick::Tables;
use phalanx_engine::testing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server that answers every request with these bytes; `None` = never.
async fn answering(answer: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer));
        }
    });
    addr
}

async fn serve(mut stream: TcpStream, answer: Option<&[u8]>) {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await;
    match answer {
        Some(answer) => drop(stream.write_all(answer).await),
        None => std::future::pending().await,
    }
}

/// An address where nobody listens.
async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn options() -> ServerOptions {
    ServerOptions { check: true, inter: Duration::from_millis(20), ..ServerOptions::default() }
}

fn section(addrs: &[SocketAddr], http: bool) -> Proxy {
    let lines = (1u32..).zip(addrs).map(|(id, &addr)| {
        let mut line = testing::server(&format!("s{id}"), id, options());
        Arc::make_mut(&mut line).addr = addr;
        line
    });
    let mut section = testing::section(Balance::RoundRobin, lines.collect());
    section.timeouts.check = Some(Duration::from_millis(100));
    section.httpchk = http.then(|| HttpCheck {
        method: "OPTIONS".into(),
        uri: "/".into(),
        version: "HTTP/1.0".into(),
        host: None,
    });
    section
}

type Lines = Arc<Mutex<Vec<(u8, String)>>>;

struct World {
    state: Arc<State>,
    checker: Checker,
    lines: Lines,
    clock: Clock,
}

impl World {
    fn start(section: Proxy) -> World {
        let (clock, lines) = (Clock::new(), Lines::default());
        let setup = Setup { workers: 1, seed: 1, default_maxconn: 100, node: "n1".into() };
        let tables = Tables::new("n1", 1, 1);
        let state = State::new(testing::config(section), setup, tables, now(&clock));
        let kept = lines.clone();
        let log: Log = Arc::new(move |_, level, text| kept.lock().push((level, text.to_owned())));
        let checker = Checker::start(state.clone(), clock, log, None);
        World { state, checker, lines, clock }
    }

    fn backend(&self) -> Arc<Backend> {
        self.state.plan().backend("b").unwrap().clone()
    }

    fn server(&self, name: &str) -> Arc<Server> {
        self.backend().server(name).unwrap()
    }

    fn has_server(&self) -> bool {
        let src = "127.0.0.1".parse().unwrap();
        let ask = Ask { key: None, src, directed: None, avoid: None, worker: Worker(0), draw: 0 };
        !matches!(self.backend().choose(&ask), Choice::NoServer)
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let ends = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < ends, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn each_kind_of_answer_has_its_status() {
    use CheckStatus::*;
    let answers: [(SocketAddr, CheckStatus, Option<u16>, &str); 7] = [
        (answering(Some(b"HTTP/1.0 200 OK\r\n\r\n")).await, L7Ok, Some(200), ""),
        (answering(Some(b"HTTP/1.1 500 Oops\r\n\r\n")).await, L7Sts, Some(500), "Oops"),
        (answering(Some(b"SSH-2.0-x\r\n")).await, L7Rsp, None, ""),
        (answering(Some(b"")).await, L7Rsp, None, ""),
        (answering(None).await, L7Tout, None, ""),
        (answering(Some(b"HTTP/1.1 ")).await, L7Rsp, None, ""),
        (closed().await, L4Con, None, "Connection refused"),
    ];
    let addrs: Vec<_> = answers.iter().map(|a| a.0).collect();
    let world = World::start(section(&addrs, true));
    until("all checked", || world.backend().servers().iter().all(|s| s.check().last.is_some())).await;
    for (server, (_, status, code, info)) in world.backend().servers().iter().zip(answers) {
        let last = server.check().last.unwrap();
        assert_eq!((last.status, last.code, &*last.info), (status, code, info), "{}", server.name());
        assert_eq!(server.is_up(), status == L7Ok, "{}", server.name());
    }
}

#[tokio::test]
async fn all_down_gives_no_server_until_one_is_back() {
    let addr = closed().await;
    let world = World::start(section(&[addr], false));
    until("it is down", || !world.has_server()).await;
    {
        let lines = world.lines.lock();
        let reason = "reason: Layer4 connection problem, info: \"Connection refused\"";
        assert!(
            lines[0].0 == 1 && lines[0].1.starts_with(&format!("Server b/s1 is DOWN, {reason}")),
            "{lines:?}"
        );
        assert_eq!(lines[1], (0, "backend b has no server available!".into()));
    }
    let listener = TcpListener::bind(addr).await.unwrap();
    until("it is up", || world.has_server()).await;
    let (level, text) = world.lines.lock().last().unwrap().clone();
    assert!(level == 5 && text.starts_with("Server b/s1 is UP, reason: Layer4 check passed"), "{text}");
    // The application behind saw no connection: the probes were reset within the handshake.
    let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err(), "a TCP check reached the application");
}

#[tokio::test]
async fn checks_stop_in_maintenance_and_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addrs = [listener.local_addr().unwrap(), answering(Some(b"HTTP/1.0 200 OK\r\n\r\n")).await];
    let probes = Arc::new(AtomicUsize::new(0));
    let count = probes.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            tokio::spawn(serve(stream, Some(b"HTTP/1.0 200 OK\r\n\r\n")));
        }
    });
    let world = World::start(section(&addrs, true));
    let (backend, s1) = (world.backend(), world.server("s1"));
    until("it is checked", || probes.load(SeqCst) > 2).await;
    let _ = backend.set_admin(&s1, AdminChange::Maint, now(&world.clock));
    world.checker.refresh();
    // The backend's list and this test hold it, no task does.
    until("its task has ended", || Arc::strong_count(&s1) == 2).await;
    let before = probes.load(SeqCst);
    let s2_was = world.server("s2").check().last.unwrap();
    until("s2 is still checked", || world.server("s2").check().last.unwrap() != s2_was).await;
    assert!(probes.load(SeqCst) <= before + 1, "checked in maintenance");
    let _ = backend.set_admin(&s1, AdminChange::Ready, now(&world.clock));
    world.checker.refresh();
    until("it is checked again", || probes.load(SeqCst) > before + 1).await;
}

#[test]
fn jitter_stays_within_its_percentage() {
    let mut jitter = Jitter { percent: 10, state: 3 };
    let spread: Vec<_> = (0..1000).map(|_| jitter.spread(Duration::from_millis(1000)).as_millis()).collect();
    assert!(spread.iter().all(|ms| (900..=1100).contains(ms)));
    assert!(spread.iter().any(|ms| *ms < 930) && spread.iter().any(|ms| *ms > 1070));
}
