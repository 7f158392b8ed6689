//! Agreement with the other nodes: replicated commands, stick tables and floating IPs.
//!
//! One gRPC port per node serves them all (`server`), one set of connections per peer calls them
//! (`peer`). `raft` agrees on runtime commands; what they mean is the engine's [`Registry`]. All of it
//! runs on the control runtime and meets the forwarding plane only in engine state, so that nothing
//! here can stop or delay forwarding: whatever fails is a warning, or the refusal of a command.
//!
//! [`Registry`]: phalanx_engine::registry::Registry

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::lease::Timing;
use phalanx_engine::peers::Role;
use phalanx_engine::permits::Desk;
use phalanx_engine::registry::{Command, Registry, Reply};
pub use phalanx_engine::registry::{NewMember, Stage};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;

pub use self::identity::{Caller, OLDEST_PROTOCOL, PROTOCOL, node_id};
pub use self::peer::{Known, Lane, Line, Peer, Peers};
pub use self::raft::ProposeError;
pub use self::raft::machine::OnRegistry;
use self::raft::seat::Seat;
use self::roster::Roster;
pub use self::status::{NodeStatus, State, Status};

pub mod control;
pub mod haproxy;
mod identity;
mod peer;
mod raft;
mod roster;
mod server;
pub mod share;
mod status;
pub mod sync;
pub mod tls;
pub mod vip;

/// What the `cluster` section and the process say.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of the cluster.
    pub name: String,
    /// Name of this node.
    pub node: String,
    /// The nodes of the `cluster` section, this one included. They found the cluster; from then on what
    /// the nodes have agreed on counts.
    pub nodes: Vec<Node>,
    /// Where the log and the snapshots are.
    pub data_dir: PathBuf,
    /// Number of this run of the process: larger than that of every earlier run.
    pub incarnation: u64,
    /// The nodes talk TLS with each other.
    pub tls: Option<tls::Tls>,
    /// HAProxys that share the stick tables: name and `host:port`.
    pub haproxys: Vec<(String, String)>,
    /// For tests of upgrades: the versions of the protocol, oldest and newest, that another release would
    /// speak.
    pub pretends: Option<(u32, u32)>,
    /// `vip-lease`: the term of the leases of floating IPs.
    pub vip_lease: Option<Duration>,
    /// This node never founds a cluster, it only joins one.
    pub join: bool,
    /// What tells the cluster from another of its name; 0 until it is known.
    pub cluster_id: Arc<AtomicU64>,
    /// Version of the list of members that this node has; 0 until it has one.
    pub members: Arc<AtomicU64>,
}

/// A `node` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    /// `host:port`, resolved when connecting.
    pub addr: String,
    /// Votes, but never holds a floating IP.
    pub witness: bool,
}

impl Settings {
    /// Times of the leases of floating IPs.
    pub fn timing(&self) -> Timing {
        self.vip_lease.map_or_else(Timing::default, Timing::of)
    }

    /// How long a configuration must have been seen before the next. Not less than by any default: while
    /// `vip-lease` is being made shorter, some nodes still have the longer one.
    pub(crate) fn settle_wait(&self) -> Duration {
        self.timing().start_wait.max(Timing::of(Timing::FORMER_DEFAULT).start_wait)
    }

    /// The line of this node.
    pub fn this(&self) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == self.node)
    }
}

/// Why the cluster part of a node could not start. The peers are never the reason.
#[derive(Debug)]
pub enum StartError {
    /// This node is not in the list.
    NotListed {
        /// Its name.
        node: String,
        /// The cluster.
        cluster: String,
        /// Names that are.
        listed: Vec<String>,
    },
    /// A `node` line that can never be used.
    Node {
        /// Its name.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The data directory cannot be used.
    Data {
        /// Which.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NotListed { node, cluster, listed } => write!(
                f,
                "cluster '{cluster}': no line for this node '{node}', use -L with one of: {}",
                listed.join(", ")
            ),
            StartError::Node { node, reason } => write!(f, "node '{node}': {reason}"),
            StartError::Data { dir, reason } => {
                write!(f, "data-dir '{}': {reason}", dir.display())
            }
        }
    }
}

impl std::error::Error for StartError {}

/// This node's part in the cluster. Ends when the last handle is dropped.
#[derive(Clone)]
pub struct Cluster(Arc<Parts>);

struct Parts {
    settings: Arc<Settings>,
    peers: Peers,
    roster: Roster,
    seat: Seat,
    vips: Option<vip::Vips>,
    sync: sync::Handle,
    control: control::Control,
    share: share::Handle,
    haproxys: Option<haproxy::Handle>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

/// How long tasks may take to end by themselves.
const END_WITHIN: Duration = Duration::from_secs(2);

/// How long a node that ends waits until its peers know what it has counted.
const TELL_WITHIN: Duration = Duration::from_secs(2);

/// What a HAProxy says waits so long for what the other nodes say.
const HAPROXY_DELAY: Duration = Duration::from_millis(100);
/// A node that has not answered for so long does not take what HAProxys say.
const HAPROXY_ABSENT: Duration = Duration::from_secs(3);

impl Cluster {
    /// Takes part in the cluster. Must be called within the control runtime, on which all of it
    /// runs. `on_registry` is called with what the log says so far, and again after every change.
    /// `tables` are replicated, and swept; `clock` is the one by which the workers use them. `vips`
    /// were started before, see [`vip::Vips::start`]; their service is added to the port.
    ///
    /// # Errors
    /// The settings or the data directory cannot be used. Peers are never the reason, and neither is
    /// a disk that is full or broken: then the node forwards without runtime commands, until it works.
    pub async fn start(
        settings: Settings,
        tables: Arc<Tables>,
        clock: Clock,
        vips: Option<vip::Vips>,
        on_registry: OnRegistry,
    ) -> Result<Cluster, StartError> {
        let settings = Arc::new(settings);
        let Some(this) = settings.this() else {
            return Err(StartError::NotListed {
                node: settings.node.clone(),
                cluster: settings.name.clone(),
                listed: settings.nodes.iter().map(|n| n.name.clone()).collect(),
            });
        };
        let addr = this.addr.clone();
        if let Some(problem) = settings.tls.as_ref().and_then(|tls| tls.own_problem(this)) {
            tracing::warn!(
                "cluster {}: the other nodes will refuse this one: in 'crt', {problem}",
                settings.name
            );
        }
        let peers = Peers::new(&settings)?;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let haproxys = haproxys(&settings, &peers, &tables, clock, &stopped);
        if let Some(haproxys) = &haproxys {
            tasks.spawn(haproxys.clone().run());
        }
        let sync = sync::Handle::new(&settings.name, tables, &peers, clock, stopped.clone());
        let knocked = sync.clone();
        let on_run = Box::new(move |node: &str| knocked.knock(node));
        let guard = identity::Guard::telling(&settings, Some(on_run));
        let (mono, unix_us) = clock.now();
        let desk = Arc::new(Desk::new(&settings.node, settings.incarnation, Now { mono, unix_us }));
        let roster = Roster::open(settings.clone(), peers.clone(), guard.clone(), vips.clone(), desk);
        let roster =
            roster.map_err(|e| StartError::Data { dir: settings.data_dir.clone(), reason: e.to_string() })?;
        let seat = Seat::take(settings.clone(), peers.clone(), roster.clone(), on_registry).await?;
        tasks.spawn(seat.clone().tend(stopped.clone()));
        tasks.spawn(until(stopped.clone(), peers.clone().each(Peer::probe)));
        tasks.spawn(sync.clone().run());
        let control = control::Control::default();
        let share = share::Handle::new(&settings, &peers, &roster, clock, stopped.clone());
        tasks.spawn(share.clone().run());
        let mut routes = Routes::new(sync.service())
            .add_service(raft::service::server(seat.clone()))
            .add_service(control.service())
            .add_service(share.service());
        if let Some(vips) = &vips {
            routes = vips.add_to(routes);
        }
        tasks.spawn(server::serve(settings.clone(), addr, guard, routes, haproxys.clone(), stopped));
        let tasks = Mutex::new(tasks);
        Ok(Cluster(Arc::new(Parts {
            settings,
            peers,
            roster,
            seat,
            vips,
            sync,
            control,
            share,
            haproxys,
            stop,
            tasks,
        })))
    }

    /// Carries out a command for the whole cluster: from any node, answered after it is committed
    /// and this node has applied it, or refused within about two seconds.
    ///
    /// # Errors
    /// There is no majority, or this node cannot write its log.
    pub async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        match self.0.seat.raft() {
            Ok(raft) => raft.propose(command).await,
            Err(reason) => Err(ProposeError::Refused(format!("this node has no log for now: {reason}"))),
        }
    }

    /// Has a node join the cluster, asked on any member; answered when it votes.
    ///
    /// # Errors
    /// Why it does not, or after `patience` what it waits for.
    pub async fn join(
        &self,
        node: NewMember,
        replaces: Option<String>,
        patience: Duration,
    ) -> Result<String, String> {
        self.0.seat.raft()?.join(node, replaces, patience).await
    }

    /// Has a node leave the cluster, alive or dead; answered when it is gone.
    ///
    /// # Errors
    /// Why it does not, or after `patience` what it waits for.
    pub async fn leave(&self, name: &str, patience: Duration) -> Result<String, String> {
        self.0.seat.raft()?.leave(name, patience).await
    }

    /// Where the `cluster` section, as it is now, differs from what is agreed, and what to do about it.
    pub fn differences(&self, nodes: Vec<Node>) -> Vec<String> {
        let settings = Settings { nodes, ..Settings::default() };
        roster::differences(&self.0.roster.members(), &settings)
    }

    /// Whether this node was a member and is none any more.
    pub fn left(&self) -> bool {
        self.0.roster.left()
    }

    /// What the commands so far have changed, as this node knows it.
    pub fn registry(&self) -> Arc<Registry> {
        self.0.seat.registry()
    }

    /// The floating IPs, when there are any.
    pub fn vips(&self) -> Option<&vip::Vips> {
        self.0.vips.as_ref()
    }

    /// The state of the cluster as this node sees it.
    pub fn status(&self) -> Status {
        match self.0.seat.raft() {
            Ok(raft) => raft.status(),
            Err(reason) => Status::stopped(&self.0.settings, &self.0.roster, &self.0.peers, &reason),
        }
    }

    /// Sessions with the HAProxys that share the stick tables, when there are any.
    pub fn haproxys(&self) -> Option<&haproxy::Handle> {
        self.0.haproxys.as_ref()
    }

    /// Replication of stick tables.
    pub fn sync(&self) -> &sync::Handle {
        &self.0.sync
    }

    /// TLS between the nodes, when they have it.
    pub fn tls(&self) -> Option<&tls::Tls> {
        self.0.settings.tls.as_ref()
    }

    /// Probes and places that the nodes share out.
    pub fn share(&self) -> &share::Handle {
        &self.0.share
    }

    /// The other nodes.
    pub fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.0.settings.node
    }

    /// Lets the other nodes run commands here, from now on and for as long as `commands` exists.
    pub fn take_commands(&self, commands: &Arc<dyn control::Commands>) {
        self.0.control.take(commands);
    }

    /// Leaves in order: sees to it that the peers know what was counted here, ends the calls that are under
    /// way and closes the log. Forwarding must have ended.
    pub async fn shutdown(&self) {
        let owed = self.0.sync.flush(TELL_WITHIN).await;
        if !owed.is_empty() {
            let (name, owed) = (&self.0.settings.name, owed.join(", "));
            tracing::warn!(
                "cluster {name}: stick tables: not acknowledged within {TELL_WITHIN:?} by {owed}: what was \
                 counted here last may be lost"
            );
        }
        self.0.stop.send_replace(true);
        if let Ok(raft) = self.0.seat.raft() {
            raft.shutdown().await;
        }
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        let _ = timeout(END_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
    }
}

/// Sessions with HAProxys. Of the nodes that answer, the first by name takes what they say, and tells
/// the others: were it taken by all, what one of them has counted would count again at the next.
fn haproxys(
    settings: &Arc<Settings>,
    peers: &Peers,
    tables: &Arc<Tables>,
    clock: Clock,
    stop: &watch::Receiver<bool>,
) -> Option<haproxy::Handle> {
    if settings.haproxys.is_empty() {
        return None;
    }
    let own = haproxy::Settings {
        section: None,
        bind: None,
        local: settings.node.clone(),
        peers: settings.haproxys.clone(),
        delay: if settings.nodes.len() > 1 { HAPROXY_DELAY } else { Duration::ZERO },
    };
    let (peers, node) = (peers.clone(), settings.node.clone());
    let judge = Box::new(move || {
        let answers = |p: &Arc<Peer>| p.known().seen.is_some_and(|at| at.elapsed() < HAPROXY_ABSENT);
        let before = |p: Arc<Peer>| **p.name() < *node && !p.witness();
        match peers.iter().filter(answers).any(before) {
            true => Role::Bystander,
            false => Role::Learner,
        }
    });
    Some(haproxy::Handle::new(own, tables.clone(), clock, judge, stop.clone()))
}

/// Works until `stop` turns true or its sender is gone.
async fn until(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = server::ended(&mut stop) => {}
    }
}
