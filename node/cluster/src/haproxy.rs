//! HAProxys that share stick tables with this node: sessions of the peers protocol over TCP.
//!
//! What is said is the engine's ([`phalanx_engine::peers`]); this shell dials, answers, carries bytes
//! and keeps time. A `peers` section has a port of its own; a cluster's `peer` lines share the cluster's,
//! where a session is recognised by its first byte. Both sides dial, and of two sessions of a pair the
//! later one stays, as the protocol has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::peers::handshake::{Hello, Status, read_status};
use phalanx_engine::peers::{Learned, Peer, Role, Totals};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::server::{bind_when_possible, ended};

/// How long connecting, and then each step of the handshake, may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts, at random (`doc/peers.txt`): so that two that lost their session do not dial
/// at the same moment again.
const PAUSE: std::ops::Range<u64> = 50..2050;
/// Changes are gathered for so long before they are sent.
const GATHER: Duration = Duration::from_millis(1);
/// Sessions of strangers that may be in their handshake at once.
const GREETING: usize = 64;

/// Who takes part in a section.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The `peers` section; `None`: `peer` lines of the cluster.
    pub section: Option<String>,
    /// Name of this node there.
    pub local: String,
    /// Where this node listens, if not on the cluster's port.
    pub bind: Option<String>,
    /// The others: name and `host:port`.
    pub peers: Vec<(String, String)>,
    /// What comes is learned so much later: the other nodes of a cluster must have told their part of
    /// it before, or it would count as the HAProxy's own.
    pub delay: Duration,
}

/// Whether this node takes what HAProxys say, asked again for everything that comes.
pub type Judge = Box<dyn Fn() -> Role + Send + Sync>;

/// The sessions of one section. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    settings: Settings,
    tables: Arc<Tables>,
    clock: Clock,
    links: BTreeMap<String, Arc<Link>>,
    judge: Judge,
    stop: watch::Receiver<bool>,
}

struct Link {
    name: String,
    addr: String,
    peer: Mutex<Peer>,
    news: Notify,
    /// Counts sessions; the driver of an older one ends itself.
    session: watch::Sender<u64>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    problem: Mutex<Option<String>>,
}

/// Where things stand with one HAProxy (`show peers`).
#[derive(Clone, Debug, Default)]
pub struct PeerStatus {
    /// The `peers` section; `None`: a peer of the cluster.
    pub section: Option<String>,
    /// Its name.
    pub name: String,
    /// `host:port`.
    pub addr: String,
    /// A session is up.
    pub connected: bool,
    /// Why there is none.
    pub problem: Option<String>,
    /// What was exchanged since the start.
    pub totals: Totals,
    /// Bytes received since the start.
    pub bytes_in: u64,
    /// Bytes sent since the start.
    pub bytes_out: u64,
}

impl Handle {
    /// Prepares sessions. Nothing happens before [`Handle::run`].
    pub fn new(
        settings: Settings,
        tables: Arc<Tables>,
        clock: Clock,
        judge: Judge,
        stop: watch::Receiver<bool>,
    ) -> Handle {
        let mut links = BTreeMap::new();
        let learned = Arc::new(Learned::default());
        for (name, addr) in &settings.peers {
            let section = settings.section.as_deref();
            match Peer::new(tables.clone(), learned.clone(), section, name, settings.delay) {
                Ok(peer) => _ = links.insert(name.clone(), Arc::new(Link::new(name, addr, peer))),
                Err(error) => warn!("peer '{name}': stick tables not shared: {error}"),
            }
        }
        let woken: Vec<Arc<Link>> = links.values().cloned().collect();
        tables.add_waker(move || woken.iter().for_each(|link| link.news.notify_one()));
        Handle(Arc::new(Inner { settings, tables, clock, links, judge, stop }))
    }

    /// Dials until stopped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        for link in self.0.links.values() {
            tasks.spawn(self.0.clone().dial(link.clone()));
        }
        let mut stop = self.0.stop.clone();
        ended(&mut stop).await;
        tasks.shutdown().await;
    }

    /// Listens on a port of the section's own, if it has one, until stopped.
    pub async fn listen(self) {
        let Some(addr) = self.0.settings.bind.clone() else { return };
        let mut stop = self.0.stop.clone();
        let section = self.0.settings.section.clone().unwrap_or_default();
        let who = format!("peers {section}");
        let Some(listener) = bind_when_possible(&who, &addr, &mut stop).await else { return };
        info!("{who}: listening on {addr}");
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = accept(&listener) => if tasks.len() < GREETING + self.0.links.len() {
                    let handle = self.clone();
                    tasks.spawn(async move { handle.serve(accepted).await });
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                () = ended(&mut stop) => break,
            }
        }
        tasks.shutdown().await;
    }

    /// Carries a session that somebody else began.
    pub async fn serve(&self, mut stream: TcpStream) {
        let mut input = Vec::new();
        let greeted = timeout(WITHIN, self.0.greet(&mut stream, &mut input)).await;
        let Ok(Some(link)) = greeted else { return };
        self.0.drive(&link, stream, input).await;
    }

    /// Who takes part.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Where things stand with each peer.
    pub fn status(&self) -> Vec<PeerStatus> {
        let status = |link: &Arc<Link>| {
            let peer = link.peer.lock();
            PeerStatus {
                section: self.0.settings.section.clone(),
                name: link.name.clone(),
                addr: link.addr.clone(),
                connected: peer.is_connected(),
                problem: link.problem.lock().clone(),
                totals: peer.totals().clone(),
                bytes_in: link.bytes_in.load(Relaxed),
                bytes_out: link.bytes_out.load(Relaxed),
            }
        };
        self.0.links.values().map(status).collect()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("haproxy::Handle").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                debug!("accept of a peer: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Inner {
    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    /// Reads a hello and answers it; who it is, if it may stay. What came after it is left in `input`.
    async fn greet(&self, stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<Arc<Link>> {
        stream.set_nodelay(true).ok()?;
        let answer = loop {
            match Hello::read(input) {
                Ok(Some((hello, used))) => {
                    input.drain(..used);
                    if hello.to != self.settings.local {
                        let local = &self.settings.local;
                        self.tell_stranger(format!(
                            "it calls '{}', and this is '{local}'",
                            hello.to.escape_debug()
                        ));
                        break Err(Status::LocalMismatch);
                    }
                    match self.links.get(&hello.from) {
                        Some(link) => break Ok(link.clone()),
                        None => {
                            self.tell_stranger(format!(
                                "there is no 'peer {}' here",
                                hello.from.escape_debug()
                            ));
                            break Err(Status::RemoteMismatch);
                        }
                    }
                }
                Ok(None) => {}
                Err(status) => break Err(status),
            }
            let mut bytes = [0; 1024];
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => input.extend_from_slice(&bytes[..n]),
            }
        };
        let line = answer.as_ref().map_or_else(|status| status.line(), |_| Status::Succeeded.line());
        stream.write_all(line).await.ok()?;
        answer.ok()
    }

    fn tell_stranger(&self, why: String) {
        let section = self.settings.section.as_deref().unwrap_or("of the cluster");
        info!("peers {section}: session refused: {why}");
    }

    /// Begins sessions with a peer again and again, while there is none.
    async fn dial(self: Arc<Inner>, link: Arc<Link>) {
        let mut sessions = link.session.subscribe();
        loop {
            if link.peer.lock().is_connected() {
                // Every end of a session is announced as well.
                let _ = sessions.changed().await;
                continue;
            }
            match timeout(2 * WITHIN, self.call(&link))
                .await
                .unwrap_or_else(|_| Err("no answer in time".into()))
            {
                Ok((stream, input)) => self.drive(&link, stream, input).await,
                Err(problem) => link.note(problem),
            }
            sleep(Duration::from_millis(rand::random_range(PAUSE))).await;
        }
    }

    /// Connects and does the handshake.
    async fn call(&self, link: &Link) -> Result<(TcpStream, Vec<u8>), String> {
        let connected = timeout(WITHIN, TcpStream::connect(&link.addr)).await;
        let connected = connected.map_err(|_| "cannot connect in time".to_string())?;
        let mut stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
        let said = |error: io::Error| format!("handshake: {error}");
        stream.set_nodelay(true).map_err(said)?;
        let hello = Hello { to: link.name.clone(), from: self.settings.local.clone() };
        stream.write_all(&hello.bytes(std::process::id())).await.map_err(said)?;
        let mut input = Vec::new();
        loop {
            let mut bytes = [0; 256];
            match stream.read(&mut bytes).await.map_err(said)? {
                0 => return Err("handshake: closed without an answer".to_string()),
                n => input.extend_from_slice(&bytes[..n]),
            }
            let status = read_status(&input).map_err(|what| format!("handshake: {}", what.0))?;
            match status {
                Some((b"200", used)) => {
                    input.drain(..used);
                    return Ok((stream, input));
                }
                Some((other, _)) => return Err(format!("handshake: {}", Status::explain(other))),
                None => {}
            }
        }
    }

    /// Carries one session until it ends.
    async fn drive(&self, link: &Link, stream: TcpStream, input: Vec<u8>) {
        let mut current = link.session.subscribe();
        let mine = {
            // Under the peer's lock: whoever holds it and reads this number knows whose session it is.
            let mut peer = link.peer.lock();
            link.session.send_modify(|n| *n += 1);
            peer.connected(self.now());
            *link.session.borrow()
        };
        *link.problem.lock() = None;
        debug!("peer '{}': session {mine} begins", link.name);
        let mut stop = self.stop.clone();
        let end = tokio::select! {
            end = self.carry(link, mine, stream, input) => end,
            _ = current.wait_for(|n| *n != mine) => {
                debug!("peer '{}': session {mine} gives way to a later one", link.name);
                return;
            }
            () = ended(&mut stop) => "this node stops".to_string(),
        };
        let mut peer = link.peer.lock();
        if *link.session.borrow() == mine {
            peer.disconnected();
            link.session.send_modify(|n| *n += 1);
            drop(peer);
            link.note(end);
        }
    }

    async fn carry(&self, link: &Link, mine: u64, stream: TcpStream, input: Vec<u8>) -> String {
        let (mut reader, mut writer) = stream.into_split();
        let mut input = input;
        let mut out: Vec<u8> = Vec::new();
        let mut bytes = vec![0; 32 << 10];
        let mut gathering: Option<Instant> = None;
        loop {
            if let Err(end) = self.heard(link, mine, &input) {
                // The peer is told why, if it still listens.
                let mut last = Vec::new();
                link.peer.lock().poll_output(&mut last, self.now());
                let _ = writer.try_write(&last);
                return end;
            }
            input.clear();
            gathering = gathering.filter(|due| *due > Instant::now());
            let (due, full) = {
                self.tables.rearm();
                let (mut peer, now) = (link.peer.lock(), self.now());
                if *link.session.borrow() != mine {
                    return "replaced by a later session".to_string();
                }
                if peer.is_silent(now) {
                    return "silent".to_string();
                }
                if out.is_empty() && gathering.is_none() {
                    peer.poll_output(&mut out, now);
                }
                let wake = peer.next_poll(now).saturating_sub(now.mono).max(GATHER);
                (Instant::now() + wake, peer.is_full())
            };
            tokio::select! {
                read = reader.read(&mut bytes), if !full => match read {
                    Ok(0) => return "closed by the peer".to_string(),
                    Ok(n) => {
                        link.bytes_in.fetch_add(n as u64, Relaxed);
                        input.extend_from_slice(&bytes[..n]);
                    }
                    Err(error) => return error.to_string(),
                },
                written = writer.write(&out), if !out.is_empty() => match written {
                    Ok(n) => {
                        link.bytes_out.fetch_add(n as u64, Relaxed);
                        out.drain(..n);
                    }
                    Err(error) => return error.to_string(),
                },
                () = link.news.notified(), if out.is_empty() && gathering.is_none() => {
                    gathering = Some(Instant::now() + GATHER);
                }
                () = sleep_until(gathering.map_or(due, |g| g.min(due))) => {}
            }
        }
    }

    fn heard(&self, link: &Link, mine: u64, bytes: &[u8]) -> Result<(), String> {
        let role = (self.judge)();
        let mut peer = link.peer.lock();
        if *link.session.borrow() != mine {
            return Err("replaced by a later session".to_string());
        }
        let outcome = peer.receive(bytes, role, self.now());
        while let Some(warning) = peer.poll_warning() {
            warn!("{warning}");
        }
        outcome.map_err(|error| error.to_string())
    }
}

impl Link {
    fn new(name: &str, addr: &str, peer: Peer) -> Link {
        Link {
            name: name.to_string(),
            addr: addr.to_string(),
            peer: Mutex::new(peer),
            news: Notify::new(),
            session: watch::channel(0).0,
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            problem: Mutex::new(None),
        }
    }

    /// Why there is no session: told when it changes.
    fn note(&self, problem: String) {
        let mut known = self.problem.lock();
        if known.as_ref() != Some(&problem) {
            warn!("peer '{}' ({}): {problem}", self.name, self.addr);
            *known = Some(problem);
        }
    }
}
