//! Agreement on runtime commands: openraft with a durable log, over the peers' connections.
//!
//! [`Raft::propose`] takes a command on any node: it is carried to the leader, retried while one is
//! being elected, and answered once it is committed and this node has applied it too. Commands carry
//! an identity, so a retry never takes effect twice. Without a majority a command is refused with the
//! reason; reading goes on from what this node knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::{Config, Instant as _, RaftMetrics, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use phalanx_engine::registry::{Command, CommandId, Registry, Reply, Request, epochs};
use phalanx_wire::raft::propose_reply::Outcome;
use phalanx_wire::raft::{HelloReply, ProposeRequest};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::{debug, error, info, warn};

use self::change::Progress;
use self::log::LogStore;
use self::lost::Asked;
use self::machine::Machine;
use self::network::{Network, Witness};
use self::types::{LogId, Member, Types, Vote, decode, encode};
use crate::identity::{node_id, spoken};
use crate::peer::{FRESH, Peer, Peers};
use crate::roster::Roster;
use crate::status::{self, Status};
use crate::{Settings, StartError};

pub(crate) mod change;
mod log;
mod lost;
pub(crate) mod machine;
mod network;
pub(crate) mod seat;
pub(crate) mod service;
pub(crate) mod types;

/// A command is answered or refused within this time.
const PROPOSE_WITHIN: Duration = Duration::from_millis(1900);

/// Pause before a command is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Largest command, serialized.
const MAX_REQUEST: usize = 64 << 10;

/// Largest command that pushes a configuration.
const MAX_PUSH: usize = epochs::MAX_TEXT + MAX_REQUEST;

/// Largest snapshot that is taken from a leader.
const MAX_SNAPSHOT: usize = 256 << 20;

/// Distance between the oldest unfinished command of this process and its newest. The registry keeps
/// the replies in between, and no more than some thousands.
const MAX_OPEN: u64 = 4096;

/// A leader that has had no answer from a majority for this long cannot carry out commands.
const LEADER_GONE: Duration = Duration::from_millis(1600);

/// A majority of empty nodes waits so long for the others before it founds a cluster without them.
const MISSING_WITHIN: Duration = Duration::from_secs(5);

/// Nodes tell since the version after this one which they speak.
const OLDEST_TOLD: u32 = 3;

/// No leader has told yet how far the log was committed.
const UNTAUGHT: u64 = u64::MAX;

/// Between two looks at the state of the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(200);

type Core = openraft::Raft<Types, Machine>;
type Metrics = RaftMetrics<Types>;

/// Handle of this node's part in the agreement.
#[derive(Clone)]
pub(crate) struct Raft(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    id: u64,
    core: Core,
    log: LogStore,
    machine: Machine,
    peers: Peers,
    roster: Roster,
    open: Arc<Mutex<Open>>,
    progress: tokio::sync::Mutex<Progress>,
    /// Everything up to this index was committed before this node came, or since it leads.
    taught: AtomicU64,
    /// Why the last snapshot of a leader could not be used.
    refused: Mutex<Option<String>>,
    since: Instant,
}

/// Commands of this process that have no answer yet. Outlives a raft that has failed: the numbers of
/// commands are never used again.
#[derive(Default)]
pub(crate) struct Open {
    last: u64,
    unanswered: BTreeSet<u64>,
}

/// Why a command has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// It was not carried out, and never will be.
    Refused(String),
    /// Nobody knows whether it was or will be carried out.
    Unknown(String),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProposeError::Refused(reason) => f.write_str(reason),
            ProposeError::Unknown(reason) => write!(f, "{reason}; it may still take effect"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// Why the agreement could not start.
pub(crate) enum Failed {
    /// Something has to be set right first.
    Start(StartError),
    /// The disk is full or broken.
    Disk(String),
}

/// What became of a command on this node alone.
enum Local {
    Done {
        index: u64,
        reply: Reply,
    },
    NotLeader(Option<u64>),
    Failed(String),
    /// It did not reach the log, and must not.
    Refused(String),
}

/// What became of one attempt.
enum Attempt {
    Done {
        index: u64,
        reply: Reply,
    },
    /// It did not reach the log of any leader.
    NotTaken(String),
    /// It may have.
    Unknown(String),
    /// It did not, and must not.
    Refused(String),
}

impl Raft {
    /// Opens the log and takes part. Must be called within the control runtime.
    ///
    /// # Errors
    /// The data directory or its disk cannot be used.
    pub(crate) async fn start(
        settings: Arc<Settings>,
        peers: Peers,
        roster: Roster,
        on_registry: machine::OnRegistry,
        open: Arc<Mutex<Open>>,
    ) -> Result<Raft, Failed> {
        let dir = &settings.data_dir;
        let bad = |reason: String| Failed::Start(StartError::Data { dir: dir.clone(), reason });
        let io = |e: io::Error| match disk_fault(&e) {
            true => Failed::Disk(format!("data-dir '{}': {e}", dir.display())),
            false => bad(e.to_string()),
        };
        let owner = format!("node '{}' of cluster '{}'", settings.node, settings.name);
        let log = LogStore::open(&settings.data_dir, &owner).map_err(io)?;
        let machine = Machine::open(&settings.data_dir, Some(roster.clone()), on_registry).map_err(io)?;
        let config = config(&settings).validate().map_err(|e| bad(e.to_string()))?;
        let id = node_id(&settings.node);
        let witness = Witness::default();
        let network = Network { peers: peers.clone(), witness: witness.clone() };
        let core = Core::new(id, Arc::new(config), network, log.clone(), machine.clone());
        let core = core.await.map_err(|e| bad(e.to_string()))?;
        let (progress, taught) = (tokio::sync::Mutex::default(), AtomicU64::new(UNTAUGHT));
        let inner = Inner {
            settings,
            id,
            core,
            log,
            machine,
            peers,
            roster,
            open,
            progress,
            taught,
            refused: Mutex::default(),
            since: Instant::now(),
        };
        let inner = Arc::new(inner);
        let weak = Arc::downgrade(&inner);
        // Set once, just here.
        let _ = witness.set(Box::new(move || weak.upgrade().map(|inner| Raft(inner).standing())));
        Ok(Raft(inner))
    }

    /// The registry as this node knows it.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.0.machine.registry()
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    /// What openraft says of itself.
    fn metrics(&self) -> Metrics {
        self.0.core.metrics().borrow_watched().clone()
    }

    /// Leaves: takes no more part, and closes the log.
    pub(crate) async fn shutdown(&self) {
        let _ = timeout(PROPOSE_WITHIN, self.0.core.shutdown()).await;
    }

    /// Carries out a command for the whole cluster.
    ///
    /// # Errors
    /// There is no majority, this node cannot write its log, the command is too large, or a node runs a
    /// program that does not know it.
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        // Here and not only at the leader, which may be a node that can't even read it.
        if let Some(why) = self.too_new(&command) {
            return Err(ProposeError::Refused(why));
        }
        let deadline = tokio::time::Instant::now() + PROPOSE_WITHIN;
        let ticket = Ticket::take(self)?;
        let request = Request { id: ticket.id, done_below: ticket.done_below, command };
        let bytes = encode(&request).map_err(|e| ProposeError::Refused(e.to_string()))?;
        let limit = if matches!(request.command, Command::Config(_)) { MAX_PUSH } else { MAX_REQUEST };
        if bytes.len() > limit {
            return Err(ProposeError::Refused(format!("the command is larger than {limit} bytes")));
        }
        let mut unknown = None;
        let mut refused = "no leader is elected".to_owned();
        // A hint from another node, used once.
        let mut hint = None;
        loop {
            let attempt = self.attempt(&request, &bytes, &mut hint);
            match timeout_at(deadline, attempt).await {
                Ok(Attempt::Done { index, reply }) => {
                    // The answer is late rather than wrong if this node lags.
                    let mut next = self.0.machine.next();
                    let _ = timeout_at(deadline, next.wait_for(|next| *next > index)).await;
                    return Ok(reply);
                }
                Ok(Attempt::NotTaken(reason)) => refused = reason,
                Ok(Attempt::Unknown(reason)) => unknown = Some(reason),
                // Unless an attempt before this one reached the log after all.
                Ok(Attempt::Refused(reason)) if unknown.is_none() => {
                    return Err(ProposeError::Refused(reason));
                }
                Ok(Attempt::Refused(reason)) => unknown = Some(reason),
                Err(_) => {
                    unknown.get_or_insert_with(|| "no majority of the nodes confirmed it in time".to_owned());
                }
            }
            if let Some(stopped) = self.stopped() {
                let reason = format!("this node cannot write its log: {stopped}");
                return Err(match unknown {
                    None => ProposeError::Refused(reason),
                    Some(_) => ProposeError::Unknown(reason),
                });
            }
            if timeout_at(deadline, sleep(RETRY_AFTER)).await.is_err() {
                break;
            }
        }
        let nodes = self.reach();
        Err(match unknown {
            None => ProposeError::Refused(format!("cluster {}: {refused}, {nodes}", self.0.settings.name)),
            Some(why) => ProposeError::Unknown(format!("cluster {}: {why}, {nodes}", self.0.settings.name)),
        })
    }

    /// Carries out a command if this node is the leader.
    async fn propose_here(&self, request: &Request) -> Local {
        if let Some(why) = self.too_new(&request.command) {
            return Local::Refused(why);
        }
        match self.0.core.client_write(request.clone()).await {
            Ok(done) => Local::Done { index: done.log_id.index, reply: done.data },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Local::NotLeader(to.leader_id),
            Err(error) => Local::Failed(error.to_string()),
        }
    }

    /// Why this command must not be in the log yet, if so: there is a member whose program could not read it
    /// and would take part no more. One that was never seen is not waited for: it is dead, or will say
    /// within a second which program it runs.
    fn too_new(&self, command: &Command) -> Option<String> {
        let since = command.since();
        let old = |newest: u32| newest.max(OLDEST_TOLD) < since;
        let settings = &self.0.settings;
        let own = old(spoken(settings).1).then(|| settings.node.clone());
        let theirs = self.0.peers.iter().filter(|peer| peer.known().hello.is_some_and(|h| old(h.protocol)));
        let nodes: Vec<String> = own.into_iter().chain(theirs.map(|peer| peer.name().to_string())).collect();
        (!nodes.is_empty()).then(|| {
            format!(
                "cluster {}: not before all nodes are upgraded: {} could not read this command, which is of \
                 protocol version {since}",
                settings.name,
                nodes.join(", ")
            )
        })
    }

    /// One try: here if this node leads, else at the leader.
    async fn attempt(&self, request: &Request, bytes: &[u8], hint: &mut Option<u64>) -> Attempt {
        let leader = hint.take().or(self.metrics().current_leader);
        let Some(leader) = leader else { return Attempt::NotTaken("no leader is elected".to_owned()) };
        if leader == self.0.id {
            return match self.propose_here(request).await {
                Local::Done { index, reply } => Attempt::Done { index, reply },
                Local::NotLeader(to) => {
                    *hint = to.filter(|to| *to != self.0.id);
                    Attempt::NotTaken("no leader is elected".to_owned())
                }
                Local::Failed(reason) => Attempt::Unknown(reason),
                Local::Refused(reason) => Attempt::Refused(reason),
            };
        }
        let Some(peer) = self.0.peers.by_id(leader) else {
            return Attempt::NotTaken("the leader is no member that this node knows".to_owned());
        };
        self.attempt_at(&peer, bytes, hint).await
    }

    async fn attempt_at(&self, peer: &Peer, bytes: &[u8], hint: &mut Option<u64>) -> Attempt {
        let name = peer.name();
        let request = ProposeRequest { request: bytes.to_vec().into() };
        let answer = match timeout(PROPOSE_WITHIN / 2, network::client(peer).propose(request)).await {
            Ok(Ok(answer)) => answer.into_inner().outcome,
            Ok(Err(status)) if connection_failed(&status) => {
                return Attempt::NotTaken(format!("the leader '{name}' cannot be reached"));
            }
            Ok(Err(status)) => {
                return Attempt::Unknown(format!("the leader '{name}' failed: {}", status.message()));
            }
            Err(_) => return Attempt::Unknown(format!("the leader '{name}' does not answer")),
        };
        match answer {
            Some(Outcome::Done(done)) => match decode(&done.reply) {
                Ok(reply) => Attempt::Done { index: done.index, reply },
                Err(error) => Attempt::Unknown(format!("the leader '{name}' sent no reply: {error}")),
            },
            Some(Outcome::NotLeader(to)) => {
                *hint = (to.leader != 0 && to.leader != peer.id()).then_some(to.leader);
                Attempt::NotTaken("no leader is elected".to_owned())
            }
            Some(Outcome::Failed(reason)) => Attempt::Unknown(format!("the leader '{name}': {reason}")),
            Some(Outcome::Refused(reason)) => Attempt::Refused(reason),
            None => Attempt::Unknown(format!("the leader '{name}' sent no reply")),
        }
    }

    /// Why openraft has stopped on this node, if it has.
    pub(crate) fn stopped(&self) -> Option<String> {
        match self.metrics().running_state {
            Ok(()) => None,
            Err(Fatal::Stopped) => Some("it is shutting down".to_owned()),
            Err(error) => {
                let text = error.to_string();
                // What the system said; before it stands what openraft was about to do.
                let cause = text.rsplit_once("Error: ").map_or(text.as_str(), |(_, cause)| cause);
                Some(format!("data-dir '{}': {cause}", self.0.settings.data_dir.display()))
            }
        }
    }

    /// The state of the cluster as this node sees it.
    pub(crate) fn status(&self) -> Status {
        let metrics = self.metrics();
        let settings = &self.0.settings;
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let (there, all) = self.reachable();
        let stopped = self.stopped();
        // A leader knows it first hand, another node from whom it can reach.
        let majority = match metrics.last_quorum_acked {
            // One that has nobody to ask acknowledges only what it writes.
            Some(acked) if metrics.state == ServerState::Leader && voters.len() > 1 => {
                acked.elapsed() < LEADER_GONE
            }
            _ => 2 * there > all,
        };
        Status {
            cluster: settings.name.clone(),
            node: settings.node.clone(),
            leader: metrics.current_leader.map(|id| Status::name_of(&self.0.roster.nodes(), id)),
            term: metrics.current_term,
            quorum: metrics.current_leader.is_some() && majority && stopped.is_none(),
            stopped,
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            revision: self.registry().revision(),
            voters: voters.len(),
            cluster_id: self.0.roster.members().cluster_id(),
            config: self.0.roster.members().config(),
            change: self.waits(metrics.current_leader),
            nodes: status::nodes(&self.0.roster, &settings.node, &self.0.peers, &voters, Some(self.hello())),
        }
    }

    /// How many nodes answer, for messages.
    fn reach(&self) -> String {
        let (there, all) = self.reachable();
        format!("{there} of {all} nodes reachable")
    }

    /// How many voters answer, this node included, and how many there are.
    fn reachable(&self) -> (usize, usize) {
        let voters: BTreeSet<u64> = self.metrics().membership_config.membership().voter_ids().collect();
        let here = |p: &Arc<Peer>| p.reachable();
        if voters.is_empty() {
            return (1 + self.0.peers.iter().filter(here).count(), self.0.roster.nodes().len());
        }
        let there = self.0.peers.iter().filter(|p| voters.contains(&p.id())).filter(here).count();
        (there + usize::from(voters.contains(&self.0.id)), voters.len())
    }

    /// This node's answer to a probe.
    fn hello(&self) -> HelloReply {
        let metrics = self.metrics();
        let state = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => "stopped",
            (_, ServerState::Leader) => "leader",
            (_, ServerState::Candidate) => "candidate",
            (_, ServerState::Follower) => "follower",
            (_, ServerState::Learner) => "learner",
        };
        let adopted = self.0.roster.adopted();
        HelloReply {
            node: self.0.settings.node.clone(),
            incarnation: self.0.settings.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.to_owned(),
            term: metrics.current_term,
            leader: metrics.current_leader.unwrap_or(0),
            next_log: metrics.last_log_index.map_or(0, |i| i + 1),
            next_commit: metrics.local_committed.map_or(0, |id| id.index + 1),
            next_apply: metrics.last_applied.map_or(0, |id| id.index + 1),
            nodes: self.0.settings.nodes.iter().map(|n| n.name.clone()).collect(),
            cluster_id: self.0.roster.members().cluster_id(),
            lease_config: adopted.config,
            lease_config_ms: u64::try_from(adopted.age.as_millis()).unwrap_or(u64::MAX),
            holds: self.0.roster.holds() as u32,
            change: match metrics.state {
                ServerState::Leader => self.waits(Some(self.0.id)).unwrap_or_default(),
                _ => String::new(),
            },
            last_term: self.0.log.last().map_or(0, |id| id.leader_id.term),
            whole: self.0.log.proven(),
            gave_places_back: self.0.roster.has_given_back(),
            protocol: spoken(&self.0.settings).1,
            drains: self.0.roster.drains() as u32,
        }
    }

    /// Whether this node's vote counts. Not if its log may have lost what it once confirmed: a disk
    /// was replaced, and the cluster has committed commands that it does not have. Then it votes
    /// again once a leader has taught it, see [`Raft::note_taught`], or if what the candidate says of
    /// the others shows that nothing can be missing, see [`lost::may_vote`].
    async fn may_vote_for(&self, candidate: u64, asked: Asked, standing: &[u8]) -> Result<(), String> {
        if self.0.log.proven() {
            return Ok(());
        }
        let node = &self.0.settings.node;
        let known = self.0.peers.by_id(candidate).is_some_and(|p| p.known().hello.is_some());
        if self.cluster_has_committed() || !known {
            let standing = decode(standing).map_err(|_| {
                format!("node '{node}' has lost its log, or does not know yet whom it would vote for")
            })?;
            return lost::may_vote(self.0.id, self.0.since.elapsed(), asked, &standing).map_err(|why| {
                format!("node '{node}' has lost its log and does not vote before it is taught: {why}")
            });
        }
        // The first start of all: from here on the log has all that this node confirms.
        self.0.log.prove().await.map_err(|e| e.to_string())
    }

    fn cluster_has_committed(&self) -> bool {
        self.0.peers.iter().any(|p| p.known().hello.is_some_and(|h| h.next_commit > 0))
    }

    /// Notes that this node has everything that was committed before it came: it has all entries up
    /// to one that `leader` committed in its own term. Stored before the leader hears of it, so that
    /// nodes whose confirmation counted can also elect.
    async fn note_taught(
        &self,
        leader: Vote,
        committed: Option<LogId>,
        last: Option<LogId>,
    ) -> io::Result<()> {
        let current = committed.is_some_and(|id| id.leader_id == leader.leader_id);
        if !current || last < committed {
            return Ok(());
        }
        let upto = committed.map_or(0, |id| id.index);
        let _ = self.0.taught.compare_exchange(UNTAUGHT, upto, Relaxed, Relaxed);
        if self.0.log.proven() {
            return Ok(());
        }
        self.0.log.prove().await
    }

    /// Looks after the membership, until raft stops on this node: founds the cluster, and carries out changes
    /// of its members.
    pub(crate) async fn tend(self) {
        let mut said = String::new();
        let mut reported = Reported::default();
        loop {
            sleep(LOOK_EVERY).await;
            if let Some(reason) = self.stopped() {
                debug!("cluster {}: takes part no more: {reason}", self.0.settings.name);
                return;
            }
            reported.report(&self.status());
            self.found(&mut said).await;
            self.lead().await;
            self.allow_leases().await;
        }
    }

    /// Starts the cluster's log with the configured nodes, as every node does, all alike; but not on a
    /// node that joins, or comes back empty to, a cluster that is there already.
    async fn found(&self, said: &mut String) {
        if !matches!(self.0.core.is_initialized().await, Ok(false)) {
            return;
        }
        if let Err(why) = self.may_found() {
            if *said != why {
                info!("cluster {}: this node knows of no cluster yet: {why}", self.0.settings.name);
                *said = why;
            }
            return;
        }
        if let Err(error) = self.0.log.prove().await {
            warn!("cluster {}: first start: {error}", self.0.settings.name);
            return;
        }
        match self.0.core.initialize(self.configured()).await {
            Ok(()) => {
                info!("cluster {}: first start, {} nodes", self.0.settings.name, self.configured().len())
            }
            // Another node was quicker, and this one has voted for it.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => warn!("cluster {}: first start: {error}", self.0.settings.name),
        }
    }

    /// Whether this empty node may take part in founding a cluster: with the nodes that its configuration
    /// names, each as empty and of the same mind. Those that do not answer are waited for, as they
    /// could belong to a cluster of this name already; and never is it founded by a minority, or by a
    /// node that is to join one.
    fn may_found(&self) -> Result<(), String> {
        let Inner { settings, peers, roster, .. } = &*self.0;
        if roster.members().founded() {
            return Err("it has been a member, and waits to be taught".to_owned());
        }
        if settings.join {
            return Err("it waits for 'cluster join' on a member".to_owned());
        }
        let ours: BTreeSet<&str> = settings.nodes.iter().map(|n| n.name.as_str()).collect();
        let mut missing = Vec::new();
        for peer in peers.iter() {
            let Some(hello) = peer.known().hello else {
                missing.push(peer.name().to_string());
                continue;
            };
            if hello.next_commit > 0 || hello.cluster_id != 0 {
                let me = settings.this().map_or("ADDR:PORT", |n| n.addr.as_str());
                return Err(format!(
                    "node '{}' belongs to one; 'cluster join {} {me}' there makes this node a member",
                    peer.name(),
                    settings.node,
                ));
            }
            if hello.nodes.iter().map(String::as_str).collect::<BTreeSet<_>>() != ours {
                return Err(format!("node '{}' would found it with {}", peer.name(), hello.nodes.join(", ")));
            }
        }
        let there = settings.nodes.len() - missing.len();
        let late = self.0.since.elapsed() >= MISSING_WITHIN && 2 * there > settings.nodes.len();
        match missing.is_empty() || late {
            true => Ok(()),
            false => Err(format!(
                "it is founded when the nodes of the 'cluster' section answer, and joined by 'cluster join' on a \
                 member; no answer from {}",
                missing.join(", ")
            )),
        }
    }

    /// Leases count over the members once this node knows that it has all that was committed before it
    /// came.
    async fn allow_leases(&self) {
        let metrics = self.metrics();
        let applied = metrics.last_applied;
        let leads = metrics.state == ServerState::Leader
            && applied.is_some_and(|id| id.leader_id.term == metrics.current_term);
        if leads {
            let upto = applied.map_or(0, |id| id.index);
            let _ = self.0.taught.compare_exchange(UNTAUGHT, upto, Relaxed, Relaxed);
        }
        match self.waits_for(&metrics) {
            Some(why) => self.0.roster.set_waiting(&why),
            None => self.0.roster.allow().await,
        }
    }

    /// What this node does not have yet of what was committed before it came.
    fn waits_for(&self, metrics: &Metrics) -> Option<String> {
        let taught = self.0.taught.load(Relaxed);
        let next = metrics.last_applied.map_or(0, |id| id.index + 1);
        if self.0.log.proven() && taught != UNTAUGHT {
            return (next <= taught).then(|| format!("its log is applied up to {next} of {}", taught + 1));
        }
        if let Some(why) = &*self.0.refused.lock() {
            return Some(format!("the leader's snapshot cannot be used: {why}"));
        }
        Some(match metrics.current_leader {
            None => "no leader is known".to_owned(),
            Some(id) => {
                let leader = Status::name_of(&self.0.roster.nodes(), id);
                format!("waiting to be taught by the leader '{leader}'")
            }
        })
    }

    /// A snapshot that the leader sent cannot be read: it will send it again and again.
    fn refuse_snapshot(&self, error: &io::Error) {
        let why = error.to_string();
        let mut refused = self.0.refused.lock();
        if refused.as_ref() != Some(&why) {
            error!("cluster {}: the leader's snapshot cannot be used: {why}", self.0.settings.name);
            *refused = Some(why);
        }
    }

    /// The leader's snapshot could be used after all.
    fn take_snapshot(&self) {
        *self.0.refused.lock() = None;
    }

    fn configured(&self) -> BTreeMap<u64, Member> {
        let nodes = self.0.settings.nodes.iter();
        nodes.map(|n| (node_id(&n.name), Member { name: n.name.clone() })).collect()
    }
}

/// What was said of the leader and the quorum.
#[derive(Default)]
struct Reported {
    leader: Option<String>,
    quorum: bool,
    /// Since when there is no quorum.
    without: Option<Instant>,
}

impl Reported {
    /// Says what has changed. The quorum only counts as lost when an election does not bring it back.
    fn report(&mut self, status: &Status) {
        let name = &status.cluster;
        if status.quorum && status.leader != self.leader {
            info!(
                "cluster {name}: leader is '{}', term {}",
                status.leader.as_deref().unwrap_or("?"),
                status.term
            );
            self.leader.clone_from(&status.leader);
        }
        if status.quorum {
            if !self.quorum {
                info!("cluster {name}: runtime commands are taken");
            }
            (self.quorum, self.without) = (true, None);
        } else if self.without.get_or_insert_with(Instant::now).elapsed() >= FRESH && self.quorum {
            warn!(
                "cluster {name}: no majority of the nodes: runtime commands are refused, forwarding goes on"
            );
            self.quorum = false;
        }
    }
}

/// A command under way; dropped when it has its answer, or will not get one.
struct Ticket {
    raft: Raft,
    id: CommandId,
    done_below: u64,
}

impl Ticket {
    fn take(raft: &Raft) -> Result<Ticket, ProposeError> {
        let mut open = raft.0.open.lock();
        let oldest = open.unanswered.first().copied();
        if oldest.is_some_and(|oldest| open.last - oldest >= MAX_OPEN) {
            return Err(ProposeError::Refused("too many commands are under way".to_owned()));
        }
        open.last += 1;
        let seq = open.last;
        open.unanswered.insert(seq);
        let id = CommandId { node: raft.0.id, incarnation: raft.0.settings.incarnation, seq };
        Ok(Ticket { raft: raft.clone(), id, done_below: oldest.unwrap_or(seq) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.raft.0.open.lock().unanswered.remove(&self.id.seq);
    }
}

/// Whether the disk is at fault, rather than the setting: full, or broken. Forwarding goes on then.
fn disk_fault(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    ) || error.raw_os_error() == Some(EIO)
}

/// Whether the call cannot have reached the other side.
fn connection_failed(status: &tonic::Status) -> bool {
    use std::error::Error;
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::FailedPrecondition)
}

/// openraft's timers: several times what a slow disk and a busy machine need.
///
/// A follower holds on to a leader for `election_timeout_max` after its last sign of life and then
/// waits its own random time: a dead leader is replaced after 1.2 to 1.6 seconds. Nothing that must
/// be faster waits for it.
fn config(settings: &Settings) -> Config {
    Config {
        cluster_name: settings.name.clone(),
        heartbeat_interval: 150,
        election_timeout_min: 400,
        election_timeout_max: 800,
        install_snapshot_timeout: 10_000,
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(1000),
        max_in_snapshot_log_to_keep: 500,
        replication_lag_threshold: 2000,
        enable_pre_vote: Some(true),
        // A restarted leader asks again: others may have gone on without it.
        enable_leader_restore: Some(false),
        // A node that lost its disk comes back empty; `may_vote_for` keeps that safe.
        allow_log_reversion: Some(true),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests;
