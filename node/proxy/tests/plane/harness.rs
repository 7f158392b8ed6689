//! A forwarding plane on loopback with scripted servers; everything on ports that the system chose.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_config::*;
use phalanx_engine::state::{Setup, State};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_proxy::Forwarder;
use phalanx_proxy::log::Sink;
use phalanx_sys::clock::Clock;

/// Longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A `backend` section named `b` with a stick table by client address, and the rule that tracks in it.
pub(crate) fn tracking_backend(mode: Mode, servers: &[SocketAddr], store: Vec<DataType>) -> (Proxy, Rule) {
    let table = StickTable {
        key: KeyType::Ip,
        size: 10,
        expire: None,
        nopurge: false,
        peers: None,
        store,
        write_to: None,
        recv_only: false,
        server_key: ServerKey::Name,
        brates_factor: 1,
        pos: Pos::default(),
    };
    let backend = Proxy {
        name: "b".into(),
        id: 3,
        kind: ProxyKind::Backend,
        binds: vec![],
        stick_table: Some(table),
        ..listen(mode, servers)
    };
    let expr = Expr { fetch: Fetch::Src, converters: vec![], text: String::new() };
    (backend, Rule::always(Action::Track(TrackRule { counter: 0, expr, table: Link::new("b") })))
}

/// A `listen` section named `l` on a port of the system's choice.
pub(crate) fn listen(mode: Mode, servers: &[SocketAddr]) -> Proxy {
    let second = Some(Duration::from_secs(5));
    Proxy {
        name: "l".into(),
        id: 2,
        kind: ProxyKind::Listen,
        pos: Pos::default(),
        mode,
        disabled: false,
        description: None,
        binds: vec![bind("127.0.0.1:0".parse().unwrap())],
        maxconn: None,
        fullconn: None,
        default_backend: None,
        servers: servers.iter().enumerate().map(|(i, a)| Arc::new(server(i as u32 + 1, *a))).collect(),
        default_server: ServerOptions::default(),
        balance: Some(Balance::RoundRobin),
        hash_type: HashType::default(),
        cookie: None,
        timeouts: Timeouts { client: second, server: second, connect: second, ..Timeouts::default() },
        retries: 3,
        redispatch: None,
        logs: vec![],
        log_format: if mode == Mode::Http { LogFormat::Http } else { LogFormat::Tcp },
        dontlognull: false,
        dontlog_normal: false,
        logasap: false,
        log_health_checks: false,
        per_node_checks: false,
        connection_mode: ConnectionMode::KeepAlive,
        http_reuse: HttpReuse::default(),
        splice: Splice::default(),
        forwardfor: None,
        allbackups: false,
        abortonclose: false,
        persist: false,
        clitcpka: false,
        srvtcpka: false,
        smart_accept: true,
        smart_connect: true,
        httpchk: None,
        errorfiles: vec![],
        monitor_uri: None,
        stats: None,
        stick_table: None,
        stick_rules: vec![],
        acls: vec![],
        rules: Rules::default(),
        use_backend: vec![],
        use_server: vec![],
    }
}

/// A `bind` line.
pub(crate) fn bind(addr: SocketAddr) -> Bind {
    Bind {
        addr,
        interface: None,
        name: None,
        id: 1,
        maxconn: None,
        backlog: None,
        transparent: false,
        v6only: None,
        pos: Pos::default(),
    }
}

/// `server sN addr cookie sN`.
pub(crate) fn server(id: u32, addr: SocketAddr) -> Server {
    Server {
        name: format!("s{id}"),
        id,
        pos: Pos::default(),
        host: addr.ip().to_string(),
        addr,
        discovered: None,
        options: ServerOptions { cookie: Some(format!("s{id}")), ..ServerOptions::default() },
    }
}

/// Changes the options of every server.
pub(crate) fn with_servers(mut proxy: Proxy, change: impl Fn(&mut ServerOptions)) -> Proxy {
    for server in &mut proxy.servers {
        change(&mut Arc::make_mut(server).options);
    }
    proxy
}

/// A running plane.
pub(crate) struct Plane {
    pub(crate) state: Arc<State>,
    pub(crate) forwarder: Forwarder,
    pub(crate) addr: SocketAddr,
    clock: Clock,
    log: TcpLog,
}

/// Log lines, received as UDP datagrams.
struct TcpLog(std::net::UdpSocket);

impl Plane {
    /// Starts two workers on this configuration.
    pub(crate) fn start(proxy: Proxy) -> Plane {
        Plane::start_with(proxy, |_| {})
    }

    /// As `start`, with one worker.
    pub(crate) fn start_one(proxy: Proxy) -> Plane {
        Plane::start_by(1, proxy, |_| {})
    }

    /// As `start`, with a change to the global section.
    pub(crate) fn start_with(proxy: Proxy, change: impl Fn(&mut Config)) -> Plane {
        Plane::start_by(2, proxy, change)
    }

    fn start_by(workers: usize, mut proxy: Proxy, change: impl Fn(&mut Config)) -> Plane {
        let log = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        log.set_read_timeout(Some(LIMIT)).unwrap();
        proxy.logs = vec![LogTarget {
            to: LogReceiver::Udp(log.local_addr().unwrap()),
            format: LogFraming::Raw,
            len: 1024,
            facility: 16,
            level: 7,
            min_level: 0,
        }];
        let mut config = Config { proxies: vec![Arc::new(proxy)], ..Config::default() };
        change(&mut config);
        let clock = Clock::new();
        let setup = Setup { workers, seed: 7, default_maxconn: 1000, node: "n1".into() };
        let tables = Tables::new("n1", 1, 7);
        let logs = Sink::new(&config.global);
        let state = State::new(config, setup, tables, now(clock));
        let forwarder = Forwarder::start(state.clone(), clock, logs).unwrap();
        let addr = *forwarder.addresses().first().expect("a listener");
        Plane { state, forwarder, addr, clock, log: TcpLog(log) }
    }

    /// A reload: the configuration in force after `change`.
    pub(crate) fn reload(&self, change: impl Fn(&mut Proxy)) {
        let mut config = (*self.state.plan().config).clone();
        change(Arc::make_mut(&mut config.proxies[0]));
        let _ = self.state.load(config, now(self.clock));
        self.forwarder.apply().unwrap();
    }

    /// A new client connection.
    pub(crate) fn client(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// The next log line.
    pub(crate) fn log_line(&self) -> String {
        let mut line = [0; 2048];
        let n = self.log.0.recv(&mut line).expect("a log line");
        String::from_utf8_lossy(&line[..n]).trim_end().to_string()
    }

    /// The termination code of the next log line.
    pub(crate) fn ended(&self) -> String {
        let line = self.log_line();
        let words: Vec<&str> = line.split(' ').collect();
        let at = if line.ends_with('"') { 9 } else { 6 };
        words.get(at).unwrap_or_else(|| panic!("{line}")).to_string()
    }
}

fn now(clock: Clock) -> Now {
    let (mono, unix_us) = clock.now();
    Now { mono, unix_us }
}

/// A server that runs `serve` for every connection, on a thread each.
pub(crate) fn serve(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream, n));
        }
    });
    addr
}

/// An address that refuses connections.
pub(crate) fn refusing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Reads until the text ends with `end`.
pub(crate) fn read_until(stream: &mut impl Read, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => text.push(byte[0]),
            Ok(_) => panic!("closed after {:?}, waiting for {end:?}", String::from_utf8_lossy(&text)),
            Err(e) => panic!("{e} after {:?}, waiting for {end:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads until the peer closes.
pub(crate) fn read_all(stream: &mut impl Read) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes everything.
pub(crate) fn send(stream: &mut impl Write, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads one request head; `None` when the proxy closes.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// A keep-alive server: answers with its name, the number of its connection and the head it got.
pub(crate) fn web(name: &'static str) -> SocketAddr {
    serve(move |mut stream, n| {
        while let Some(head) = read_head(&mut stream) {
            let body = format!("{name} {n}\n{head}");
            send(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    })
}

/// A server that sends `answer` to every request and then closes or not.
pub(crate) fn says(answer: &'static str, close: bool) -> SocketAddr {
    serve(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            send(&mut stream, answer);
            if close {
                return;
            }
        }
    })
}

/// Reads a response with a content-length: head and body.
pub(crate) fn response(stream: &mut TcpStream) -> (String, String) {
    let head = read_until(stream, "\r\n\r\n");
    let length = head
        .lines()
        .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_string))
        .unwrap_or_else(|| panic!("no length: {head}"));
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8_lossy(&body).into_owned())
}

pub(crate) fn get(stream: &mut TcpStream, path: &str) -> (String, String) {
    send(stream, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    response(stream)
}
