//! The other nodes: how to call them, and what is known of them.
//!
//! Each [`Peer`] has one connection per [`Lane`], made when first used and again when lost; its name
//! is resolved at each attempt. A probe calls every peer about once a second, which finds out who is
//! there, keeps the connection warm, and reports, once per change, a peer that cannot be used. An
//! unusable peer is never an error of this node.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use phalanx_wire::raft::raft_client::RaftClient;
use phalanx_wire::raft::{HelloReply, HelloRequest};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::identity::{Stamp, node_id};
use crate::{Node, Settings, StartError, tls};

/// How often a peer is asked for its state.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A peer that has not answered for this long does not count as reachable.
pub(crate) const FRESH: Duration = Duration::from_secs(3);

/// Pause after the first probe.
const PROBE_SOON: Duration = Duration::from_millis(125);

/// A peer that cannot be reached is reported after this time.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// Problems of one peer that are told before it answers again.
const REPORTED: usize = 8;

/// How long a probe may take; also how long a connection may take to come about.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// A connection that answers no ping for this long is given up.
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(2);

/// Bytes of Runtime API answers of one peer that may be on their way.
const CONTROL_WINDOW: u32 = 8 << 20;

/// What a connection is used for. Each has its own, so that a bulky one does not delay a quick one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Log replication, commands, probes.
    Raft,
    /// Stick tables.
    Sync,
    /// Leases of floating IPs.
    Lease,
    /// Runtime API commands.
    Control,
    /// Who probes what, and who may use how many places.
    Share,
}

/// A connection to a peer, for a generated client: stamps each call with who calls whom.
pub type Line = InterceptedService<Channel, Stamp>;

/// All other nodes of the cluster: a list that changes with its members.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: ArcSwap<Vec<Arc<Peer>>>,
    changed: watch::Sender<()>,
}

/// Another node.
#[derive(Debug)]
pub struct Peer {
    name: Arc<str>,
    id: u64,
    addr: String,
    witness: bool,
    cluster: String,
    stamp: Stamp,
    lanes: [Channel; 5],
    known: Mutex<Known>,
}

/// What is known of a peer.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// When it last answered.
    pub seen: Option<Instant>,
    /// What it said then.
    pub hello: Option<HelloReply>,
    /// Why it cannot be used now.
    pub problem: Option<String>,
    /// Since when it cannot.
    since: Option<Instant>,
    /// The problems reported since it last answered: each is told once, however they alternate.
    reported: Vec<String>,
}

impl Peers {
    /// The peers that `settings` name. Does not connect yet; must be called within a runtime.
    ///
    /// # Errors
    /// A name or an address that can never be used.
    pub(crate) fn new(settings: &Settings) -> Result<Peers, StartError> {
        let others = settings.nodes.iter().filter(|n| n.name != settings.node);
        let list = others.map(|node| Peer::new(settings, node).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Peers(Arc::new(Shared { list: ArcSwap::from_pointee(list), changed: watch::Sender::new(()) })))
    }

    /// Becomes the list of these nodes without this one. A peer that stays the same stays.
    pub(crate) fn follow(&self, settings: &Settings, nodes: &[Node]) {
        let old = self.0.list.load_full();
        let mut list = Vec::with_capacity(nodes.len());
        for node in nodes.iter().filter(|n| n.name != settings.node) {
            let same =
                |p: &&Arc<Peer>| *p.name == *node.name && p.addr == node.addr && p.witness == node.witness;
            match old.iter().find(same) {
                Some(peer) => list.push(peer.clone()),
                None => match Peer::new(settings, node) {
                    Ok(peer) => list.push(Arc::new(peer)),
                    Err(error) => warn!("cluster {}: {error}", settings.name),
                },
            }
        }
        let equal = old.len() == list.len() && old.iter().zip(&list).all(|(a, b)| Arc::ptr_eq(a, b));
        if !equal {
            self.0.list.store(Arc::new(list));
            self.0.changed.send_replace(());
        }
    }

    /// Tells of changes of the list.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Runs a task for each peer for as long as it is one; never comes back.
    pub(crate) async fn each<F>(self, task: impl Fn(Arc<Peer>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut changed = self.changed();
        let mut tasks = JoinSet::new();
        let mut running: Vec<(Arc<Peer>, AbortHandle)> = Vec::new();
        loop {
            changed.mark_unchanged();
            let list = self.0.list.load_full();
            running.retain(|(peer, handle)| {
                let stays = list.iter().any(|p| Arc::ptr_eq(p, peer));
                if !stays {
                    handle.abort();
                }
                stays
            });
            for peer in list.iter() {
                if !running.iter().any(|(p, _)| Arc::ptr_eq(p, peer)) {
                    running.push((peer.clone(), tasks.spawn(task(peer.clone()))));
                }
            }
            while tasks.try_join_next().is_some() {}
            // Our own handle keeps the sender.
            let _ = changed.changed().await;
        }
    }

    /// Each of them, as the list is now.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Peer>> + use<> {
        Vec::clone(&self.0.list.load()).into_iter()
    }

    /// The one with this id.
    pub fn by_id(&self, id: u64) -> Option<Arc<Peer>> {
        self.0.list.load().iter().find(|p| p.id == id).cloned()
    }

    /// The one with this name.
    pub fn by_name(&self, name: &str) -> Option<Arc<Peer>> {
        self.0.list.load().iter().find(|p| &*p.name == name).cloned()
    }
}

impl Peer {
    fn new(settings: &Settings, node: &Node) -> Result<Peer, StartError> {
        let bad = |reason| StartError::Node { node: node.name.clone(), reason };
        let stamp = Stamp::new(settings, &node.name).map_err(bad)?;
        let endpoint = Endpoint::from_shared(format!("http://{}", node.addr))
            .map_err(|_| bad(format!("invalid address '{}', expects host:port", node.addr)))?
            .connect_timeout(PROBE_DEADLINE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE_EVERY)
            .keep_alive_timeout(KEEPALIVE_DEADLINE)
            .keep_alive_while_idle(true);
        // An answer that nobody reads for a while must not hold up the others.
        let control = endpoint.clone().initial_connection_window_size(CONTROL_WINDOW);
        Ok(Peer {
            name: Arc::from(node.name.as_str()),
            id: node_id(&node.name),
            addr: node.addr.clone(),
            witness: node.witness,
            cluster: settings.name.clone(),
            stamp,
            lanes: [
                tls::channel(settings, node, &endpoint),
                tls::channel(settings, node, &endpoint),
                tls::channel(settings, node, &endpoint),
                tls::channel(settings, node, &control),
                tls::channel(settings, node, &endpoint),
            ],
            known: Mutex::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its id, see [`node_id`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its address as configured.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Whether it only votes.
    pub fn witness(&self) -> bool {
        self.witness
    }

    /// A connection to it. Every call on it needs a deadline of its own.
    pub fn line(&self, lane: Lane) -> Line {
        let channel = match lane {
            Lane::Raft => &self.lanes[0],
            Lane::Sync => &self.lanes[1],
            Lane::Lease => &self.lanes[2],
            Lane::Control => &self.lanes[3],
            Lane::Share => &self.lanes[4],
        };
        InterceptedService::new(channel.clone(), self.stamp.clone())
    }

    /// What is known of it.
    pub fn known(&self) -> Known {
        self.known.lock().clone()
    }

    /// Whether it answered lately and nothing is wrong with it.
    pub fn reachable(&self) -> bool {
        let known = self.known.lock();
        known.problem.is_none() && known.seen.is_some_and(|seen| seen.elapsed() < FRESH)
    }

    /// Asks it for its state about once a second, for ever.
    pub(crate) async fn probe(self: Arc<Peer>) {
        let mut client = RaftClient::new(self.line(Lane::Raft));
        let mut pause = PROBE_SOON;
        loop {
            match timeout(PROBE_DEADLINE, client.hello(HelloRequest {})).await {
                Ok(Ok(reply)) => self.answered(reply.into_inner()),
                Ok(Err(status)) => self.failed(problem(&status)),
                Err(_) => self.failed(Problem { text: "does not answer".to_owned(), refused: false }),
            }
            // Sooner at first: nodes are often started together.
            sleep(pause).await;
            pause = (pause * 2).min(PROBE_EVERY);
        }
    }

    fn answered(&self, hello: HelloReply) {
        let mut known = self.known.lock();
        known.seen = Some(Instant::now());
        let restarted = known.hello.as_ref().is_some_and(|h| h.incarnation != hello.incarnation);
        (known.problem, known.since) = (None, None);
        if !std::mem::take(&mut known.reported).is_empty() || known.hello.is_none() || restarted {
            let what = if restarted { "was started again" } else { "is there" };
            info!("cluster {}: node '{}' at {} {what}", self.cluster, self.name, self.addr);
        }
        known.hello = Some(hello);
    }

    fn failed(&self, problem: Problem) {
        let mut known = self.known.lock();
        let since = *known.since.get_or_insert_with(Instant::now);
        // Nodes are often started together: the first moments of silence say nothing.
        let tell = problem.refused || since.elapsed() >= SILENT_FOR;
        // A side that refuses closes, which is all that an attempt may see of it.
        let cut = ["connection closed", "Connection reset"].iter().any(|cut| problem.text.contains(cut));
        let tell = tell && (!cut || known.reported.is_empty());
        if tell && known.reported.len() < REPORTED && !known.reported.contains(&problem.text) {
            warn!("cluster {}: node '{}' at {}: {}", self.cluster, self.name, self.addr, problem.text);
            known.reported.push(problem.text.clone());
        }
        known.problem = Some(problem.text);
    }
}

/// What is wrong with a peer.
struct Problem {
    text: String,
    /// It answers, but not as a node of this cluster.
    refused: bool,
}

/// What is wrong with a peer, in words that stay the same from one attempt to the next.
fn problem(status: &Status) -> Problem {
    match status.code() {
        Code::FailedPrecondition | Code::Unauthenticated => {
            Problem { text: format!("refuses us: {}", status.message()), refused: true }
        }
        Code::Aborted => Problem { text: status.message().to_owned(), refused: true },
        Code::Unimplemented => Problem { text: "is not a Phalanx node".to_owned(), refused: true },
        _ => {
            // The innermost cause says it: refused, no route, name not known.
            let mut cause: &dyn std::error::Error = status;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            if let Some(tls::Refusal(text)) = io.and_then(|inner| inner.downcast_ref()) {
                return Problem { text: text.clone(), refused: true };
            }
            let own = std::ptr::addr_eq(cause, status);
            let text = if own { status.message().to_owned() } else { cause.to_string() };
            match tls::refused_later(&text) {
                Some(text) => Problem { text, refused: true },
                None => Problem { text: plain(&text), refused: false },
            }
        }
    }
}

/// What is wrong with a peer, for the answer to a command.
pub(crate) fn problem_text(status: &Status) -> String {
    problem(status).text
}

/// What a library says, in words that help to set it right.
fn plain(cause: &str) -> String {
    const LOOKUP: &str = "failed to lookup address information: ";
    const PROTOCOL: &str = "connection error detected: ";
    if let Some(why) = cause.strip_prefix(LOOKUP) {
        return format!("unreachable: its name cannot be resolved: {why}");
    }
    if cause.starts_with(PROTOCOL) {
        // Which rule of HTTP/2 junk breaks first is chance, and nothing that helps.
        return "what answers is not a Phalanx node".to_owned();
    }
    format!("unreachable: {cause}")
}
