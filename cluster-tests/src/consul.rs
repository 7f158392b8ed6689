//! A Consul for tests: the documented HTTP API of an agent, as far as services and their health go,
//! with blocking queries, and every fault that a client has to live with.
//!
//! Tests register services over that API, so that the same tests run against a real `consul` if one
//! is on the path ([`Consul::start`]); faults are the fake's alone ([`Consul::fake`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Base, eventually};

/// How the fake misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Every query is answered with 500, as without a leader.
    Error,
    /// With something that is no JSON.
    Garbage,
    /// With the first half of the answer, and the end of the connection.
    Half,
    /// Not at all, on an open connection.
    Hang,
    /// With an empty list, but with the mark that access rules filtered it.
    Filtered,
    /// After this many milliseconds.
    Slow(u64),
}

/// One query of a service's health, as the fake saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `index`.
    pub index: Option<u64>,
    /// Path and parameters.
    pub target: String,
    /// `X-Consul-Token`.
    pub token: Option<String>,
}

/// An agent.
#[derive(Debug)]
pub struct Consul {
    base: Base,
    agent: Option<Agent>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Agent {
    Fake { listener: JoinHandle<()> },
    Real { child: Child, _data: tempfile::TempDir },
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    index: u64,
    /// By id.
    services: BTreeMap<String, Value>,
    fault: Option<Fault>,
    token: Option<String>,
    queries: Vec<Query>,
    connections: Vec<TcpStream>,
    /// Which listener is the present one; others end.
    run: u64,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

const PORT: u16 = 8500;

impl Consul {
    /// A real agent if `consul` is on the path, else the fake.
    pub fn start() -> Consul {
        match Command::new("consul").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => Consul::real(),
            _ => Consul::fake(),
        }
    }

    /// The fake.
    pub fn fake() -> Consul {
        let mut consul = Consul { base: Base::free(), agent: None, shared: Arc::default() };
        consul.shared.lock().index = 10;
        consul.restart();
        consul
    }

    fn real() -> Consul {
        let mut consul = Consul { base: Base::free(), agent: None, shared: Arc::default() };
        consul.agent = Some(consul.spawn());
        consul.wait();
        consul
    }

    fn spawn(&self) -> Agent {
        let data = tempfile::tempdir().expect("a temporary directory");
        let ip = self.base.ip(1);
        let child = Command::new("consul")
            .args([
                "agent",
                "-dev",
                "-bind",
                &ip,
                "-client",
                &ip,
                "-grpc-port=-1",
                "-grpc-tls-port=-1",
                "-dns-port=-1",
            ])
            .arg(format!("-http-port={PORT}"))
            .stdin(Stdio::null())
            .stdout(File::create(data.path().join("log")).expect("a log file"))
            .stderr(Stdio::null())
            .spawn()
            .expect("consul starts");
        Agent::Real { child, _data: data }
    }

    fn wait(&self) {
        eventually("Consul answers", Duration::from_secs(30), || {
            let (status, body) = self.try_call("GET", "/v1/status/leader", "").ok()?;
            (status == 200 && body.len() > 2).then_some(())
        });
    }

    /// Whether it is the fake.
    pub fn is_fake(&self) -> bool {
        !matches!(self.agent, Some(Agent::Real { .. }))
    }

    /// `host:port` of its API.
    pub fn addr(&self) -> String {
        self.base.at(1, PORT)
    }

    /// Registers an instance of a service, passing.
    pub fn register(&self, id: &str, service: &str, addr: &str, tags: &[&str], weight: u32) {
        let (ip, port) = addr.rsplit_once(':').expect("an address has a port");
        let port: u16 = port.parse().expect("a port");
        let body = json!({
            "ID": id, "Name": service, "Address": ip, "Port": port, "Tags": tags,
            "Weights": {"Passing": weight, "Warning": 1},
            "Check": {"CheckID": format!("check-{id}"), "TTL": "10m", "Status": "passing"},
        });
        self.call("PUT", "/v1/agent/service/register", &body.to_string());
    }

    /// Takes an instance away.
    pub fn deregister(&self, id: &str) {
        self.call("PUT", &format!("/v1/agent/service/deregister/{id}"), "");
    }

    /// Sets an instance's check: `pass`, `warn` or `fail`.
    pub fn check(&self, id: &str, status: &str) {
        self.call("PUT", &format!("/v1/agent/check/{status}/check-{id}"), "");
    }

    fn call(&self, method: &str, path: &str, body: &str) {
        let (status, text) = self.try_call(method, path, body).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(status, 200, "{path}: {text}");
    }

    fn try_call(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.addr())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_owned()))
    }

    /// Makes the fake misbehave from now on, blocked queries included.
    pub fn fault(&self, fault: Fault) {
        self.shared.lock().fault = Some(fault).filter(|f| *f != Fault::None);
        self.shared.changed.notify_all();
    }

    /// Makes the fake ask for a token.
    pub fn need_token(&self, token: &str) {
        self.shared.lock().token = Some(token.to_owned());
    }

    /// Queries of service health that the fake got so far.
    pub fn queries(&self) -> Vec<Query> {
        self.shared.lock().queries.clone()
    }

    /// Ends it, as a crash does.
    pub fn stop(&mut self) {
        match self.agent.take() {
            Some(Agent::Real { mut child, .. }) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Agent::Fake { listener }) => {
                let mut state = self.shared.lock();
                state.stopped = true;
                state.run += 1;
                for connection in state.connections.drain(..) {
                    let _ = connection.shutdown(Shutdown::Both);
                }
                drop(state);
                self.shared.changed.notify_all();
                // Wakes it out of accept.
                let _ = TcpStream::connect(self.addr());
                let _ = listener.join();
            }
            None => {}
        }
    }

    /// Starts it again, without what was registered and with an index that has fallen.
    pub fn restart(&mut self) {
        self.stop();
        if self.shared.lock().run > 0 && which() {
            self.agent = Some(self.spawn());
            return self.wait();
        }
        let addr = self.addr();
        let listener = eventually("the address of the agent is free", Duration::from_secs(5), || {
            TcpListener::bind(&addr).ok()
        });
        let shared = self.shared.clone();
        let run = {
            let mut state = shared.lock();
            if state.stopped {
                state.services.clear();
                state.index = 1;
            }
            state.stopped = false;
            state.run += 1;
            state.run
        };
        let listener = std::thread::spawn(move || accept(&listener, &shared, run));
        self.agent = Some(Agent::Fake { listener });
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, run: u64) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let mut state = shared.lock();
        if state.run != run {
            return;
        }
        state.connections.extend(stream.try_clone());
        drop(state);
        let shared = shared.clone();
        std::thread::spawn(move || {
            let _ = serve(&stream, &shared, run);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Answers requests on one connection until it ends.
fn serve(stream: &TcpStream, shared: &Shared, run: u64) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream.try_clone()?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
        let (mut length, mut token, mut close) = (0, None, false);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "x-consul-token" => token = Some(value.trim().to_owned()),
                "connection" => close = value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let answer = if target.starts_with("/v1/health/service/") {
            health(shared, run, &target, token)
        } else {
            change(shared, &method, &target, &body)
        };
        let Some(Answer { status, headers, body, cut }) = answer else { return Ok(()) };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        out.write_all(format!("{head}{headers}\r\n").as_bytes())?;
        out.write_all(if cut { &body.as_bytes()[..body.len() / 2] } else { body.as_bytes() })?;
        if cut || close {
            return Ok(());
        }
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: String,
    /// Only half of it is sent.
    cut: bool,
}

impl Answer {
    fn plain(status: u16, body: &str) -> Answer {
        Answer { status, headers: String::new(), body: body.to_owned(), cut: false }
    }
}

/// `/v1/agent/...`.
fn change(shared: &Shared, method: &str, target: &str, body: &[u8]) -> Option<Answer> {
    let mut state = shared.lock();
    let words: Vec<&str> = target.trim_start_matches("/v1/").split('/').collect();
    match (method, words.as_slice()) {
        ("GET", ["status", "leader"]) => return Some(Answer::plain(200, "\"127.0.0.1:8300\"")),
        ("PUT", ["agent", "service", "register"]) => {
            let service: Value = serde_json::from_slice(body).ok()?;
            state.services.insert(service["ID"].as_str()?.to_owned(), service);
        }
        ("PUT", ["agent", "service", "deregister", id]) => drop(state.services.remove(*id)),
        ("PUT", ["agent", "check", status, check]) => {
            let id = check.trim_start_matches("check-");
            let word = match *status {
                "pass" => "passing",
                "warn" => "warning",
                _ => "critical",
            };
            state.services.get_mut(id)?["Check"]["Status"] = word.into();
        }
        _ => return Some(Answer::plain(404, "not found")),
    }
    state.index += 1;
    drop(state);
    shared.changed.notify_all();
    Some(Answer::plain(200, ""))
}

/// `/v1/health/service/NAME`; `None` = the connection ends.
fn health(shared: &Shared, run: u64, target: &str, token: Option<String>) -> Option<Answer> {
    let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
    let service = path.trim_start_matches("/v1/health/service/");
    let get = |name: &str| {
        parameters.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let index: Option<u64> = get("index").and_then(|text| text.parse().ok());
    let wait = get("wait").map_or(Duration::from_secs(300), |text| {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number: u64 = number.parse().unwrap_or(0);
        if unit == "ms" { Duration::from_millis(number) } else { Duration::from_secs(number) }
    });
    let mut state = shared.lock();
    state.queries.push(Query { index, target: target.to_owned(), token: token.clone() });
    if state.token.is_some() && state.token != token {
        return Some(Answer::plain(403, "Permission denied: token lacks permission 'service:read'"));
    }
    let ends = Instant::now() + wait;
    while state.run == run
        && state.fault.is_none()
        && index.is_some_and(|index| index > 0 && state.index <= index)
        && Instant::now() < ends
    {
        let left = ends.saturating_duration_since(Instant::now());
        state = match shared.changed.wait_timeout(state, left) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    match state.fault {
        Some(Fault::Error) => return Some(Answer::plain(500, "No cluster leader")),
        Some(Fault::Garbage) => return Some(Answer::plain(200, "<html>not json</html>")),
        Some(Fault::Slow(ms)) => {
            drop(state);
            std::thread::sleep(Duration::from_millis(ms));
            state = shared.lock();
        }
        Some(Fault::Hang) => {
            while state.run == run && state.fault == Some(Fault::Hang) {
                state = shared.changed.wait(state).ok()?;
            }
            return None;
        }
        _ => {}
    }
    if state.run != run {
        return None;
    }
    let wanted: Vec<&str> = parameters.split('&').filter_map(|p| p.strip_prefix("tag=")).collect();
    let passing = parameters.split('&').any(|p| p == "passing" || p == "passing=1");
    let filtered = state.fault == Some(Fault::Filtered);
    let list: Vec<Value> = state
        .services
        .values()
        .filter(|s| s["Name"] == *service && !filtered)
        .filter(|s| !passing || s["Check"]["Status"] == "passing")
        .filter(|s| {
            wanted.iter().all(|tag| s["Tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag)))
        })
        .map(|s| {
            json!({
                "Node": {"Node": "test", "Address": "127.0.0.1", "Datacenter": "dc1"},
                "Service": {"ID": s["ID"], "Service": s["Name"], "Address": s["Address"], "Port": s["Port"],
                            "Tags": s["Tags"], "Weights": s["Weights"]},
                "Checks": [{"CheckID": "serfHealth", "Status": "passing"}, {"Status": s["Check"]["Status"]}],
            })
        })
        .collect();
    let headers = format!(
        "X-Consul-Index: {}\r\nX-Consul-KnownLeader: true\r\nX-Consul-LastContact: 0\r\n{}",
        state.index,
        if filtered { "X-Consul-Results-Filtered-By-ACLs: true\r\n" } else { "" },
    );
    let cut = state.fault == Some(Fault::Half);
    Some(Answer { status: 200, headers, body: Value::Array(list).to_string(), cut })
}

/// Whether a real `consul` is used.
fn which() -> bool {
    let status = Command::new("consul").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
