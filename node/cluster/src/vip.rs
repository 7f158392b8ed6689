//! Floating IPs: runs the engine's lease machines, announces what is held, and fences what is not.
//!
//! `core` keeps the machines behind one short lock; whoever has news (a stream of a peer, the clock
//! thread, a command) takes it, lets the machine decide, and hands on what came out: messages to
//! bounded queues of the peers (`link`), announcements to one thread per VIP (`hands`). Nothing here
//! waits for raft, a disk or the forwarding plane, so none of them can cost a lease.
//!
//! Three layers see to it that a node is silent when its lease ends (obligation 5 of
//! [`phalanx_engine::lease`]): the machine, which looks at the clock before anything else; the
//! kernel, whose nftables elements run out by themselves; and the `guardian`, a process of its own,
//! which outlives the worker. Time is `CLOCK_BOOTTIME` throughout, the same in all three.

mod arp;
mod core;
mod drain;
mod exec;
pub mod guardian;
mod hands;
mod health;
mod link;
mod term;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use phalanx_engine::lease::QuorumLoss;
use phalanx_engine::lease::{Epoch, Timing};
use phalanx_engine::membership::Adopted;
use phalanx_engine::registry::Members;
use phalanx_wire::cluster::MoveRequest;
use phalanx_wire::cluster::lease_client::LeaseClient;
use phalanx_wire::cluster::lease_server::LeaseServer;
use tonic::service::Routes;

use self::core::Shared;
pub use self::guardian::GuardianCommand;
use crate::Settings;

/// A `vip` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipSettings {
    /// Unique in the cluster.
    pub name: String,
    /// The floating address.
    pub addr: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// How the holder makes it its own.
    pub announce: Announce,
    /// Node with the first chance when nobody has held it yet.
    pub prefer: Option<String>,
    /// What the holder does when no majority renews its lease.
    pub on_quorum_loss: QuorumLoss,
}

/// How the holder of a VIP makes it its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announce {
    /// The address is put on the interface, and neighbours are told.
    Arp {
        /// Which.
        interface: String,
    },
    /// Only the holder listens on it: by the [`Announcer`].
    Listen,
    /// Only the holder answers health checks on this port.
    HealthPort(u16),
    /// A program moves it.
    Exec {
        /// Which.
        path: PathBuf,
        /// How long it may take.
        limit: Duration,
    },
}

impl Announce {
    /// As in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Announce::Arp { .. } => "arp",
            Announce::Listen => "listen",
            Announce::HealthPort(_) => "health-port",
            Announce::Exec { .. } => "exec",
        }
    }
}

/// Opens and closes what listens on a VIP of `announce listen`. Calls come one at a time per VIP, from
/// a thread that may block; taking longer than a lease loses the VIP.
pub trait Announcer: Send + Sync {
    /// Listens on the address. Returns duplicates of the listening sockets, with which the guardian can
    /// end them when this process stands still.
    ///
    /// # Errors
    /// Why not; the VIP then goes elsewhere.
    fn acquire(&self, vip: &VipSettings, epoch: u64) -> Result<Vec<OwnedFd>, String>;

    /// From now on no new connection begins on the address; those that wait are still accepted until
    /// [`release`](Announcer::release), which follows soon. Tells whether that can be done.
    fn quiesce(&self, vip: &VipSettings) -> bool {
        let _ = vip;
        false
    }

    /// What keeps connections to the address from being accepted here, or would if this node held it;
    /// `None`: not known now. Must not block. For VIPs of any kind.
    fn unready(&self, vip: &VipSettings) -> Option<Vec<String>> {
        let _ = vip;
        Some(Vec::new())
    }

    /// Stops listening on the address, and comes back when no new connection is taken; harmless when it
    /// was not.
    ///
    /// # Errors
    /// Why not; it is tried again.
    fn release(&self, vip: &VipSettings) -> Result<(), String>;
}

/// How long connections may go on where they are after a VIP has been moved away, unless it is said.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30 * 60);

/// Options of the process, beside the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times of the lease; the same on all nodes.
    pub timing: Timing,
    /// The guardian; without one, only kernel and machine fence.
    pub guardian: Option<GuardianCommand>,
    /// Of the random parts of waiting times.
    pub seed: u64,
}

/// What `show vip` shows of one VIP.
#[derive(Clone, Debug)]
pub struct VipStatus {
    /// Its name.
    pub name: String,
    /// The floating address.
    pub addr: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// `arp`, `listen`, `health-port` or `exec`.
    pub announce: &'static str,
    /// Who holds it, as far as this node knows.
    pub holder: Option<String>,
    /// Fencing token of the tenure; 0 without a holder.
    pub epoch: u64,
    /// Left of the lease.
    pub left: Duration,
    /// This node holds it without a majority, by `on-quorum-loss hold`.
    pub kept: bool,
    /// Former holders on which connections go on.
    pub draining: Vec<Draining>,
    /// Every node, in alphabetical order.
    pub nodes: Vec<NodeFitness>,
    /// Newest last.
    pub moves: Vec<Move>,
    /// What was done to the address on this node by others, newest last.
    pub notices: Vec<Notice>,
    /// Why leases have not begun on this node: it has yet to be taught who belongs to the cluster.
    pub waiting: Option<String>,
}

/// Something that was done to a VIP, and what this node did about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// When, in microseconds since the Unix epoch.
    pub unix_us: u64,
    /// What, for people.
    pub text: String,
}

/// A node that has moved a VIP away, and still has connections to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    /// Its name.
    pub node: String,
    /// Of its tenure.
    pub epoch: u64,
    /// How many.
    pub connections: u32,
}

/// Whether a node would take a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFitness {
    /// Its name.
    pub node: String,
    /// It would.
    pub eligible: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

/// A change of holder that this node has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// When, in microseconds since the Unix epoch.
    pub unix_us: u64,
    /// Holder before.
    pub from: Option<String>,
    /// Holder after.
    pub to: Option<String>,
    /// Of the tenure that began or ended.
    pub epoch: u64,
    /// Why.
    pub reason: String,
}

/// Why a planned move was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveError(pub String);

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MoveError {}

/// The floating IPs of a node: a handle.
#[derive(Clone)]
pub struct Vips(Arc<Shared>);

impl Vips {
    /// Starts the machines and their threads. What is missing for a VIP (a capability, an interface)
    /// makes this node not eligible for it, and is a warning.
    ///
    /// # Errors
    /// This node is not in the list, or a thread cannot be started.
    pub fn start(
        settings: &Settings,
        vips: Vec<VipSettings>,
        options: Options,
        announcer: Arc<dyn Announcer>,
    ) -> Result<Vips, String> {
        let timing = options.timing.after(term::remember(&settings.data_dir, options.timing.lease));
        let shared = Shared::start(settings, vips, Options { timing, ..options }, announcer)?;
        link::start(&shared)?;
        Ok(Vips(shared))
    }

    /// Adds the Lease service to those of the cluster's port.
    pub fn add_to(&self, routes: Routes) -> Routes {
        routes.add_service(LeaseServer::new(link::Service::new(self.0.clone())))
    }

    /// What this node knows of each VIP.
    pub fn status(&self) -> Vec<VipStatus> {
        self.0.status()
    }

    /// Says what this node has yet to catch up with; empty: nothing. A node that is behind keeps what
    /// it holds and takes nothing.
    pub fn set_behind(&self, reasons: Vec<String>) {
        self.0.set_behind(reasons);
    }

    /// Why leases have not begun on this node; `None` when they have.
    pub(crate) fn set_waiting(&self, why: Option<String>) {
        self.0.set_waiting(why);
    }

    /// These are the members from now on.
    pub(crate) fn follow(&self, members: &Members) {
        self.0.follow(members);
    }

    /// A node that leaves the cluster gives up what it holds and takes nothing.
    pub(crate) fn set_leaving(&self, on: bool) {
        self.0.set_leaving(on);
    }

    /// The oldest configuration of members in which this node votes, and since when.
    pub(crate) fn adopted(&self) -> Adopted {
        self.0.adopted()
    }

    /// How many this node holds.
    pub fn held(&self) -> usize {
        self.0.held()
    }

    /// How many this node has moved away, whose connections go on here.
    pub(crate) fn draining(&self) -> usize {
        self.0.drained_from()
    }

    /// Connections may go on for so long after a VIP has been moved away; counts for those that do now.
    pub fn set_drain(&self, limit: Duration) {
        self.0.set_drain(limit);
    }

    /// In maintenance, a node gives up what it holds and takes nothing.
    pub fn set_maintenance(&self, on: bool) {
        self.0.set_maintenance(on);
    }

    /// Moves a VIP, from whichever node holds it, to `to` or else to any eligible node. Answered when
    /// it has a new holder, whose name and epoch come back.
    ///
    /// # Errors
    /// Why it was not moved, or that it is not known whether it was.
    pub async fn failover(&self, vip: &str, to: Option<&str>) -> Result<(String, Epoch), MoveError> {
        let Some(holder) = self.0.holder_of(vip)? else {
            return Err(MoveError(format!("vip '{vip}' has no holder")));
        };
        let settings = self.0.settings();
        let me = settings.node.clone();
        if holder == me {
            return self.0.move_here(vip, to, &me).await;
        }
        let unreachable = |why: String| MoveError(format!("node '{holder}', which holds vip '{vip}': {why}"));
        let endpoint = link::endpoint(&settings, &holder, self.0.timing).map_err(&unreachable)?;
        let channel = crate::tls::connect(&settings, &holder, &endpoint)
            .await
            .map_err(|_| unreachable("cannot be reached".into()))?;
        let stamp = crate::identity::Stamp::new(&settings, &holder).map_err(&unreachable)?;
        let request = MoveRequest {
            cluster: settings.name.clone(),
            vip: vip.to_owned(),
            to: to.unwrap_or_default().to_owned(),
            asked_by: me,
        };
        let mut client = LeaseClient::with_interceptor(channel, stamp);
        let wait = core::moves::answer_deadline(self.0.timing);
        match tokio::time::timeout(wait, client.r#move(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if reply.refused.is_empty() {
                    Ok((reply.holder, Epoch(reply.epoch)))
                } else {
                    Err(MoveError(reply.refused))
                }
            }
            Ok(Err(status)) => Err(unreachable(status.message().to_owned())),
            Err(_) => Err(unreachable(format!("no answer within {wait:?}; see show vip"))),
        }
    }

    /// Takes nothing any more, and moves to others what this node holds; its connections go on here, until
    /// [`stop`](Vips::stop). `unhurried`: waits until others hold it, however many connections there are, and
    /// gives up what nobody else can take.
    pub async fn depart(&self, unhurried: bool) {
        self.0.depart(unhurried).await;
    }

    /// Comes back when no connections of what was moved away go on here, or after `patience`.
    pub async fn drained(&self, patience: Duration) {
        self.0.drained(Instant::now() + patience).await;
    }

    /// Gives everything up and stops; comes back when all addresses are gone, or after `patience`.
    /// Blocks: not for an async context.
    pub fn stop(&self, patience: Duration) {
        self.0.stop(Instant::now() + patience);
    }
}
