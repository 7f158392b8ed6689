//! Carries what the nodes share out among themselves: probes of servers, and places on them.
//!
//! The decisions are the engine's ([`Board`], [`Desk`]); this shell sends their messages to the peers,
//! one stream to each, and hands them theirs. The machines expect losses, so whatever cannot be sent is
//! dropped. Whatever a peer does costs it its stream and nothing else. It also finds out whether the
//! process of a peer is dead: when nobody listens on its port.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::health::Report;
use phalanx_engine::permits::Desk;
use phalanx_engine::time::Now;
use phalanx_engine::verdict::{Board, Subject};
use phalanx_sys::clock::Clock;
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::share_client::ShareClient;
use phalanx_wire::cluster::share_server::{Share as ShareService, ShareServer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use self::convert::Heard;
use crate::Settings;
use crate::identity::Caller;
use crate::peer::{Lane, Peer, Peers};
use crate::roster::Roster;
use crate::server::ended;

mod convert;

/// Messages waiting for a peer; more are lost.
const QUEUE: usize = 256;
/// How often time passes for the machines.
const TICK: Duration = Duration::from_millis(50);
/// A stream on which nothing comes for so long has ended: peers send several times a second.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two attempts to open a stream.
const RETRY: Duration = Duration::from_millis(100);
/// How long an attempt to connect may take that finds out whether a peer is dead.
const CONNECT: Duration = Duration::from_millis(500);
/// A peer's process is dead when so many attempts in a row were refused.
const REFUSALS: u32 = 3;
/// How long a second opinion may take beyond the probe itself.
const GRACE: Duration = Duration::from_millis(250);

/// Probes once, for another node; `None` = this node has no such subject.
pub type Probe = dyn Fn(Subject) -> Pin<Box<dyn Future<Output = Option<Report>> + Send>> + Send + Sync;

/// What this node shares with its peers. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    board: Arc<Board>,
    desk: Arc<Desk>,
    peers: Peers,
    roster: Roster,
    clock: Clock,
    news: Notify,
    /// The streams that are open.
    out: Mutex<BTreeMap<Arc<str>, mpsc::Sender<pb::ShareMessage>>>,
    probe: OnceLock<Box<Probe>>,
    stop: watch::Receiver<bool>,
}

impl Handle {
    /// Prepares it. Nothing happens before [`Handle::run`].
    pub(crate) fn new(
        settings: &Settings,
        peers: &Peers,
        roster: &Roster,
        clock: Clock,
        stop: watch::Receiver<bool>,
    ) -> Handle {
        let now = now(&clock);
        let board = Arc::new(Board::new(&settings.node, settings.incarnation, now));
        let desk = roster.desk().clone();
        set_peers(&board, peers, now);
        roster.share_out();
        let inner = Arc::new(Inner {
            board: board.clone(),
            desk: desk.clone(),
            peers: peers.clone(),
            roster: roster.clone(),
            clock,
            news: Notify::new(),
            out: Mutex::default(),
            probe: OnceLock::new(),
            stop,
        });
        let wake = |woken: Weak<Inner>| {
            move || {
                if let Some(inner) = woken.upgrade() {
                    inner.news.notify_one();
                }
            }
        };
        board.wake_carrier(wake(Arc::downgrade(&inner)));
        desk.wake_carrier(wake(Arc::downgrade(&inner)));
        Handle(inner)
    }

    /// Who probes what.
    pub fn board(&self) -> &Arc<Board> {
        &self.0.board
    }

    /// Who may use how many places.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.0.desk
    }

    /// Whether the verdicts of the other nodes are known as far as they can be.
    pub fn is_taught(&self) -> bool {
        self.0.board.is_taught(now(&self.0.clock))
    }

    /// How this node probes for others. Only the first one counts.
    pub fn set_probe(&self, probe: Box<Probe>) {
        let _ = self.0.probe.set(probe);
    }

    /// Asks a node what its own probe finds; `None` = it cannot tell in time.
    pub async fn ask(&self, node: &str, subject: &Subject, limit: Duration) -> Option<Report> {
        let mut client = ShareClient::new(self.0.peers.by_name(node)?.line(Lane::Share));
        let request = pb::ProbeRequest { subject: Some(convert::from_subject(subject)) };
        let reply = timeout(limit + GRACE, client.probe(request)).await.ok()?.ok()?;
        reply.into_inner().report.map(convert::to_report)
    }

    /// The gRPC service, for the node's port.
    pub(crate) fn service(&self) -> ShareServer<Handle> {
        ShareServer::new(self.clone())
    }

    /// Keeps a stream to every peer and lets time pass, until stopped.
    pub(crate) async fn run(self) {
        let mut tasks = JoinSet::new();
        let inner = self.0.clone();
        tasks.spawn(self.0.peers.clone().each(move |peer| inner.clone().keep_stream(peer)));
        let mut changed = self.0.peers.changed();
        set_peers(&self.0.board, &self.0.peers, now(&self.0.clock));
        let mut stop = self.0.stop.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.0.roster.share_out(),
                () = self.0.news.notified() => {}
                _ = changed.changed() => {
                    set_peers(&self.0.board, &self.0.peers, now(&self.0.clock));
                    self.0.roster.share_out();
                }
                () = ended(&mut stop) => break,
            }
            self.0.board.tick(now(&self.0.clock));
            self.0.send();
        }
        tasks.shutdown().await;
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("share::Handle").field("board", &self.0.board).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl ShareService for Handle {
    async fn talk(
        &self,
        request: Request<Streaming<pb::ShareMessage>>,
    ) -> Result<Response<pb::TalkReply>, Status> {
        let caller = Caller::of(&request)?;
        let mut inbound = request.into_inner();
        let mut stop = self.0.stop.clone();
        loop {
            let message = tokio::select! {
                message = timeout(SILENCE, inbound.message()) => message,
                () = ended(&mut stop) => return Ok(Response::new(pb::TalkReply {})),
            };
            match message {
                Ok(Ok(Some(message))) => self.0.receive(&caller, message),
                Ok(Ok(None)) => return Ok(Response::new(pb::TalkReply {})),
                Ok(Err(status)) => return Err(status),
                Err(_) => return Err(Status::deadline_exceeded("silent")),
            }
        }
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeReply>, Status> {
        Caller::of(&request)?;
        let subject = request.into_inner().subject.and_then(convert::to_subject);
        let report = match (subject, self.0.probe.get()) {
            (Some(subject), Some(probe)) => probe(subject).await,
            _ => None,
        };
        Ok(Response::new(pb::ProbeReply { report: report.as_ref().map(convert::from_report) }))
    }
}

impl Inner {
    fn receive(&self, from: &Caller, message: pb::ShareMessage) {
        let now = now(&self.clock);
        match convert::to_heard(message) {
            Some(Heard::Verdicts(message)) => self.board.handle(&from.node, from.incarnation, message, now),
            Some(Heard::Permits(message)) => self.desk.handle(&from.node, from.incarnation, message, now),
            None => debug!("node '{}': a message of an unknown kind", from.node),
        }
    }

    fn send(&self) {
        while let Some((to, message)) = self.board.poll_output() {
            self.post(&to, convert::from_message(message));
        }
        while let Some((to, message)) = self.desk.poll_output() {
            self.post(&to, convert::from_permits(message));
        }
    }

    fn post(&self, to: &str, message: pb::ShareMessage) {
        if let Some(out) = self.out.lock().get(to) {
            // Full: lost, as the machines allow.
            let _ = out.try_send(message);
        }
    }

    async fn keep_stream(self: Arc<Inner>, peer: Arc<Peer>) {
        if peer.witness() {
            return;
        }
        let mut client = ShareClient::new(peer.line(Lane::Share));
        let mut refusals = 0;
        loop {
            let (out, messages) = mpsc::channel(QUEUE);
            self.out.lock().insert(peer.name().clone(), out);
            self.news.notify_one();
            // Ends with the stream: the server answers when it has seen enough.
            if let Err(status) = client.talk(ReceiverStream::new(messages)).await {
                debug!("node '{}': no stream: {}", peer.name(), status.message());
            }
            self.out.lock().remove(peer.name());
            // Before the attempt: a process that starts meanwhile is not dead.
            let then = now(&self.clock);
            let refused = timeout(CONNECT, TcpStream::connect(peer.addr())).await;
            if matches!(refused, Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused) {
                refusals += 1;
                if refusals >= REFUSALS {
                    self.desk.set_gone(peer.name(), then);
                }
            } else {
                refusals = 0;
            }
            let jitter = rand::random_range(0.5..1.5);
            sleep(RETRY.mul_f64(jitter)).await;
        }
    }
}

/// A witness has no servers to probe.
fn set_peers(board: &Board, peers: &Peers, now: Now) {
    let peers: Vec<Arc<Peer>> = peers.iter().filter(|p| !p.witness()).collect();
    board.set_peers(peers.iter().map(|p| &**p.name()), now);
}

fn now(clock: &Clock) -> Now {
    let (mono, unix_us) = clock.now();
    Now { mono, unix_us }
}
