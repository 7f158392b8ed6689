//! Stick tables over the wire: one bidirectional gRPC stream per pair of nodes.
//!
//! The decisions are the engine's ([`replication::Peer`]); this shell dials, carries frames both ways,
//! wakes up when a table has news, and counts bytes. The node whose name sorts first dials; a newer
//! stream of a pair takes the place of an older one. Whatever a peer does costs it its stream and at
//! most a warning here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use phalanx_engine::replication::{self, Message};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use phalanx_wire::peers::Frame;
use phalanx_wire::peers::peers_client::PeersClient;
use phalanx_wire::peers::peers_server::{Peers as PeersService, PeersServer};
use prost::Message as _;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use self::pace::Pace;
use crate::identity::Caller;
use crate::peer::{Lane, Peer, Peers};
use crate::server::ended;

mod convert;
mod pace;
#[cfg(test)]
mod tests;

/// Frames between a driver and its stream: beyond it the stream pushes back.
const FRAMES: usize = 16;
/// How long a dialled peer may take to open the stream.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
const DIAL_FIRST: Duration = Duration::from_millis(50);
const DIAL_LAST: Duration = Duration::from_secs(1);
/// How often tables are swept, and silence is looked for.
const SWEEP: Duration = Duration::from_millis(100);
/// How often a node that ends looks whether its peers know all.
const FLUSH_LOOK: Duration = Duration::from_millis(2);

/// Replication of this node's tables with all peers. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    tables: Arc<Tables>,
    clock: Clock,
    cluster: String,
    peers: Peers,
    links: RwLock<BTreeMap<String, Arc<Link>>>,
    stop: watch::Receiver<bool>,
}

/// One peer: its machine, and the stream that drives it now.
struct Link {
    name: String,
    peer: Mutex<replication::Peer>,
    news: Notify,
    /// The peer has just started: dial now.
    knock: Notify,
    /// Counts streams; the driver of an older one ends itself.
    stream: watch::Sender<u64>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    problem: Mutex<Option<String>>,
}

/// Where replication with one peer stands.
#[derive(Clone, Debug, Default)]
pub struct PeerStatus {
    /// What the engine knows.
    pub sync: replication::Status,
    /// Bytes received since the start.
    pub bytes_in: u64,
    /// Bytes sent since the start.
    pub bytes_out: u64,
    /// Why the last stream ended.
    pub problem: Option<String>,
}

impl Handle {
    /// Prepares replication with `peers`. Nothing happens before [`Handle::run`].
    pub(crate) fn new(
        cluster: &str,
        tables: Arc<Tables>,
        peers: &Peers,
        clock: Clock,
        stop: watch::Receiver<bool>,
    ) -> Handle {
        let cluster = cluster.to_string();
        let links = RwLock::default();
        let inner = Arc::new(Inner { tables, clock, cluster, peers: peers.clone(), links, stop });
        inner.follow();
        let woken = Arc::downgrade(&inner);
        inner.tables.add_waker(move || {
            if let Some(inner) = woken.upgrade() {
                inner.links.read().values().for_each(|link| link.news.notify_one());
            }
        });
        Handle(inner)
    }

    /// The gRPC service, for the node's port.
    pub(crate) fn service(&self) -> PeersServer<Handle> {
        PeersServer::new(self.clone())
    }

    /// Dials the peers that are ours to dial, and keeps tables swept, until stopped.
    pub(crate) async fn run(self) {
        let mut tasks = JoinSet::new();
        let inner = self.0.clone();
        tasks.spawn(self.0.peers.clone().each(move |peer| inner.clone().meet(peer)));
        let mut changed = self.0.peers.changed();
        self.0.follow();
        let mut stop = self.0.stop.clone();
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.0.tables.sweep(self.0.now()),
                _ = changed.changed() => self.0.follow(),
                () = ended(&mut stop) => break,
            }
        }
        tasks.shutdown().await;
    }

    /// Where replication with each peer stands (`show peers`).
    pub fn status(&self) -> Vec<PeerStatus> {
        let status = |link: &Arc<Link>| {
            let now = self.0.now();
            let mut sync = link.peer.lock().status(now);
            // Without the peer's lock: it would hold up the stream for as long as that takes.
            sync.add_digests(&self.0.tables, now);
            PeerStatus {
                sync,
                bytes_in: link.bytes_in.load(Relaxed),
                bytes_out: link.bytes_out.load(Relaxed),
                problem: link.problem.lock().clone(),
            }
        };
        self.0.links.read().values().map(status).collect()
    }

    /// How many peers there are, and how many of them have a stream.
    pub fn peer_counts(&self) -> (u32, u32) {
        let links = self.0.links.read();
        let connected = links.values().filter(|link| link.peer.lock().is_connected()).count();
        (links.len() as u32, connected as u32)
    }

    /// Waits until the peers that are there have acknowledged all that this node counted, at most for
    /// `limit`: what they do not know goes with this run of the process. Returns the names of those that
    /// have not. Nothing may be counted meanwhile.
    pub(crate) async fn flush(&self, limit: Duration) -> Vec<String> {
        let end = Instant::now() + limit;
        loop {
            let owed: Vec<String> = {
                let links = self.0.links.read();
                let owed = links.values().filter(|link| self.0.is_owed(link));
                owed.map(|link| link.name.clone()).collect()
            };
            if owed.is_empty() || Instant::now() >= end {
                return owed;
            }
            sleep(FLUSH_LOOK).await;
        }
    }

    /// A peer that was started has called: it is there to be dialled.
    pub(crate) fn knock(&self, node: &str) {
        if let Some(link) = self.0.links.read().get(node) {
            link.knock.notify_one();
        }
    }

    /// The tables that it replicates.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.0.tables
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("sync::Handle").field("node", &self.0.tables.node()).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl PeersService for Handle {
    type SyncStream = ReceiverStream<Result<Frame, Status>>;

    async fn sync(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::SyncStream>, Status> {
        let caller = Caller::of(&request)?;
        let link = self.0.links.read().get(&*caller.node).cloned();
        let link = link.ok_or_else(|| Status::failed_precondition("not a peer of the stick tables"))?;
        let (out, frames) = mpsc::channel(FRAMES);
        let inner = self.0.clone();
        // Ends with the stream, with a newer one of the same peer, or with `stop`.
        tokio::spawn(async move { inner.drive(link, request.into_inner(), Outbound::Served(out)).await });
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

/// The sending half of a stream: a server sends results, a client bare frames.
enum Outbound {
    Served(mpsc::Sender<Result<Frame, Status>>),
    Dialled(mpsc::Sender<Frame>),
}

enum Offer {
    Taken,
    Full(Frame),
    Closed,
}

impl Outbound {
    fn offer(&self, frame: Frame) -> Offer {
        match self {
            Outbound::Served(out) => match out.try_send(Ok(frame)) {
                Ok(()) => Offer::Taken,
                Err(TrySendError::Full(Ok(frame))) => Offer::Full(frame),
                Err(_) => Offer::Closed,
            },
            Outbound::Dialled(out) => match out.try_send(frame) {
                Ok(()) => Offer::Taken,
                Err(TrySendError::Full(frame)) => Offer::Full(frame),
                Err(TrySendError::Closed(_)) => Offer::Closed,
            },
        }
    }

    /// Waits until there is room.
    async fn room(&self) {
        match self {
            Outbound::Served(out) => drop(out.reserve().await),
            Outbound::Dialled(out) => drop(out.reserve().await),
        }
    }
}

impl Inner {
    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    /// Brings the links in line with the peers: one for each that has tables. What a node that is gone
    /// has counted stays, as that of a run that has ended.
    fn follow(&self) {
        let mut links = self.links.write();
        let peers: Vec<_> = self.peers.iter().filter(|p| !p.witness()).collect();
        links.retain(|name, link| {
            let stays = peers.iter().any(|p| **p.name() == **name);
            if !stays {
                // Its driver sees that it is not the newest stream any more.
                let mut peer = link.peer.lock();
                link.stream.send_modify(|n| *n += 1);
                peer.disconnected();
            }
            stays
        });
        for name in peers.iter().map(|p| p.name().to_string()) {
            if links.contains_key(&name) {
                continue;
            }
            match replication::Peer::new(self.tables.clone(), &name) {
                Ok(peer) => _ = links.insert(name.clone(), Arc::new(Link::new(name, peer))),
                Err(error) => {
                    warn!("cluster {}: node '{name}': stick tables not replicated: {error}", self.cluster);
                }
            }
        }
    }

    /// Whether a peer is there that does not know yet all that this node counted. One whose stream is being
    /// made again counts as there.
    fn is_owed(&self, link: &Link) -> bool {
        let peer = link.peer.lock();
        let there = peer.is_connected() || self.peers.by_name(&link.name).is_some_and(|p| p.reachable());
        there && !peer.has_told_all()
    }

    /// Keeps a stream to a peer that is ours to dial.
    async fn meet(self: Arc<Inner>, peer: Arc<Peer>) {
        if peer.witness() || self.tables.node() >= &**peer.name() {
            return;
        }
        self.follow();
        let link = self.links.read().get(&**peer.name()).cloned();
        if let Some(link) = link {
            self.dial(link, PeersClient::new(peer.line(Lane::Sync))).await;
        }
    }

    /// Opens the stream to a peer again and again.
    async fn dial(self: Arc<Inner>, link: Arc<Link>, mut client: PeersClient<crate::peer::Line>) {
        let mut pause = DIAL_FIRST;
        loop {
            let (out, frames) = mpsc::channel(FRAMES);
            match timeout(DIAL_DEADLINE, client.sync(ReceiverStream::new(frames))).await {
                Ok(Ok(response)) => {
                    let began = Instant::now();
                    self.drive(link.clone(), response.into_inner(), Outbound::Dialled(out)).await;
                    if began.elapsed() > DIAL_LAST {
                        pause = DIAL_FIRST;
                    }
                }
                // The peer's probe reports who cannot be reached; it need not be said twice.
                Ok(Err(status)) => debug!("node '{}': no stream: {status}", link.name),
                Err(_) => debug!("node '{}': no stream in time", link.name),
            }
            // Both ends of many pairs come back at once after a partition.
            let jitter = rand::random_range(0.5..1.0);
            let knocked = timeout(pause.mul_f64(jitter), link.knock.notified()).await.is_ok();
            pause = if knocked { DIAL_FIRST } else { (pause * 2).min(DIAL_LAST) };
        }
    }

    /// Carries one stream until it ends.
    async fn drive(&self, link: Arc<Link>, inbound: Streaming<Frame>, out: Outbound) {
        let mut current = link.stream.subscribe();
        let mine = {
            // Under the peer's lock: whoever holds it and reads this number knows whose session it is.
            let mut peer = link.peer.lock();
            link.stream.send_modify(|n| *n += 1);
            peer.connected(self.now());
            *link.stream.borrow()
        };
        let mut stop = self.stop.clone();
        let end = tokio::select! {
            end = self.carry(&link, mine, inbound, &out) => end,
            _ = current.wait_for(|n| *n != mine) => return,
            () = ended(&mut stop) => "this node stops".to_string(),
        };
        let mut peer = link.peer.lock();
        if *link.stream.borrow() == mine {
            peer.disconnected();
            drop(peer);
            info!("cluster {}: node '{}': stick tables: stream ended: {end}", self.cluster, link.name);
            *link.problem.lock() = Some(end);
        }
    }

    async fn carry(&self, link: &Link, mine: u64, mut inbound: Streaming<Frame>, out: &Outbound) -> String {
        let mut held: Option<Frame> = None;
        let mut pace = Pace::new(std::time::Instant::now());
        loop {
            if pace.is_turn(std::time::Instant::now()) {
                if pace.wants_news() {
                    self.tables.rearm();
                }
                let mut sent = 0;
                loop {
                    let next = held.take().or_else(|| self.next(link, mine));
                    let Some(frame) = next else { break };
                    let (bytes, count) = (frame.encoded_len() as u64, convert::changes(&frame));
                    let taught = convert::taught(&frame);
                    match out.offer(frame) {
                        Offer::Taken => _ = link.bytes_out.fetch_add(bytes, Relaxed),
                        Offer::Full(frame) => {
                            held = Some(frame);
                            break;
                        }
                        Offer::Closed => return "closed".to_string(),
                    }
                    pace.sent(std::time::Instant::now());
                    sent += count;
                    if taught {
                        // A worker that waits for this CPU has requests, and they go first.
                        std::thread::yield_now();
                    }
                }
                pace.changes(sent);
            }
            let (wake, silent, teaching) = {
                let (peer, now) = (link.peer.lock(), self.now());
                let wait = peer.next_poll(now).unwrap_or(now.mono).saturating_sub(now.mono);
                (Instant::now() + wait.max(Duration::from_millis(1)), peer.is_silent(now), peer.is_teaching())
            };
            if silent {
                return "silent".to_string();
            }
            if pace.teaches(teaching) {
                continue;
            }
            let wake = pace.due().map_or(wake, |due| wake.min(due.into()));
            tokio::select! {
                biased;
                frame = inbound.message() => {
                    if let Err(end) = self.heard(link, mine, frame, &mut inbound) {
                        return end;
                    }
                }
                () = out.room(), if held.is_some() => {}
                () = link.news.notified(), if held.is_none() && pace.wants_news() => {
                    pace.news(std::time::Instant::now());
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// The next frame to send.
    fn next(&self, link: &Link, mine: u64) -> Option<Frame> {
        let mut peer = link.peer.lock();
        if *link.stream.borrow() != mine {
            return None;
        }
        let message = peer.poll_output(self.now())?;
        drop(peer);
        Some(convert::to_frame(message))
    }

    /// Handles what has come, and what else is there already, so that one answer serves for all.
    fn heard(
        &self,
        link: &Link,
        mine: u64,
        first: Result<Option<Frame>, Status>,
        inbound: &mut Streaming<Frame>,
    ) -> Result<(), String> {
        let mut came = Some(first);
        let mut left = FRAMES;
        while let Some(frame) = came {
            let frame = frame.map_err(|status| status.message().to_string())?;
            let frame = frame.ok_or_else(|| "closed by the peer".to_string())?;
            link.bytes_in.fetch_add(frame.encoded_len() as u64, Relaxed);
            if let Some(message) = convert::from_frame(frame) {
                self.handle(link, mine, message)?;
            }
            left -= 1;
            came = if left > 0 { inbound.message().now_or_never() } else { None };
        }
        Ok(())
    }

    fn handle(&self, link: &Link, mine: u64, message: Message) -> Result<(), String> {
        let mut peer = link.peer.lock();
        if *link.stream.borrow() != mine {
            return Err("replaced by a newer stream".to_string());
        }
        let handled = peer.handle(message, self.now());
        while let Some(warning) = peer.poll_warning() {
            warn!("cluster {}: {warning}", self.cluster);
        }
        handled.map_err(|error| {
            let text = error.to_string();
            if link.problem.lock().as_ref() != Some(&text) {
                warn!("cluster {}: node '{}': stick tables: {text}", self.cluster, link.name);
            }
            text
        })
    }
}

impl Link {
    fn new(name: String, peer: replication::Peer) -> Link {
        Link {
            name,
            peer: Mutex::new(peer),
            news: Notify::new(),
            knock: Notify::new(),
            stream: watch::channel(0).0,
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            problem: Mutex::new(None),
        }
    }
}
