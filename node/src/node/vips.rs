//! Floating IPs of the node: the cluster decides who holds them, the forwarding plane listens.
//!
//! The two crates never see each other; [`Gate`] is where they meet. Nothing is taken before the
//! forwarding plane runs: until [`Floating::ready`] the node says that it is starting.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use phalanx_cluster::vip::{
    Announce, Announcer, DEFAULT_DRAIN, GuardianCommand, Options, QuorumLoss, VipSettings, Vips,
};
use phalanx_cluster::{Cluster, Settings};
use phalanx_config::model;
use phalanx_engine::stick::Tables;
use phalanx_proxy::Forwarder;
use phalanx_sys::process::{self, Capability, Identity};

use crate::epochs::Held;

/// How long giving up all VIPs may take at the end.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// How long the last bytes of sessions that have ended, and what neighbours still send here, may take.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// How often a starting node looks whether it has caught up.
const LOOK: Duration = Duration::from_millis(50);

/// A peer that answers but never finishes teaching must not keep a VIP without any holder.
const TAUGHT_WITHIN: Duration = Duration::from_secs(10);

/// Guardians started before `chroot`: the first, and others for when it is killed.
const GUARDIANS_AHEAD: usize = 3;

/// The VIPs of a node that has any.
pub(super) struct Floating {
    vips: Vips,
    gate: Arc<Gate>,
    caught_up: CaughtUp,
}

/// Whether a node has caught up since its start: before, others must not say what it is behind with.
#[derive(Clone, Default)]
pub(super) struct CaughtUp(Arc<AtomicBool>);

impl CaughtUp {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Floating {
    /// Starts what decides about them; `None` when the configuration has none.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn start(
        config: &model::Config,
        settings: &Settings,
        guardian: GuardianCommand,
    ) -> Result<Option<Floating>, String> {
        let vips: Vec<VipSettings> = config.cluster.iter().flat_map(|c| &c.vips).map(vip).collect();
        if vips.is_empty() {
            return Ok(None);
        }
        let gate = Arc::new(Gate(OnceLock::new()));
        let options =
            Options { timing: settings.timing(), guardian: Some(guardian), seed: settings.incarnation };
        let vips = Vips::start(settings, vips, options, gate.clone())?;
        vips.set_drain(drain(config));
        vips.set_behind(vec!["starting".into()]);
        Ok(Some(Floating { vips, gate, caught_up: CaughtUp::default() }))
    }

    /// Takes over what a reload may change of them.
    pub(super) fn follow(&self, config: &model::Config) {
        self.vips.set_drain(drain(config));
    }

    /// A handle on them.
    pub(super) fn handle(&self) -> Vips {
        self.vips.clone()
    }

    /// The forwarding plane runs: VIPs may be taken as soon as the node knows what the cluster knows.
    pub(super) fn ready(
        &self,
        forwarder: &Arc<Forwarder>,
        cluster: &Cluster,
        tables: &Arc<Tables>,
        held: &Arc<Held>,
    ) {
        let _ = self.gate.0.set(forwarder.clone());
        let (vips, done) = (self.vips.clone(), self.caught_up.clone());
        tokio::spawn(catch_up(vips, cluster.clone(), tables.clone(), held.clone(), done));
    }

    /// Whether this node has caught up.
    pub(super) fn caught_up(&self) -> CaughtUp {
        self.caught_up.clone()
    }

    /// Moves to others what they can take; connections go on here. `unhurried`: as any planned move does it.
    pub(super) async fn depart(&self, unhurried: bool) {
        self.vips.depart(unhurried).await;
    }

    /// Comes back when no connections go on here, or after a while: a client that is gone does not say so.
    pub(super) async fn drained(&self) {
        self.vips.drained(DRAINED_WITHIN).await;
    }

    /// Gives all up; comes back when they are off this node.
    pub(super) async fn leave(&self) {
        let vips = self.vips.clone();
        let _ = tokio::task::spawn_blocking(move || vips.stop(LEAVE_WITHIN)).await;
    }
}

/// Opens and closes the listeners on VIPs of `announce listen`.
struct Gate(OnceLock<Arc<Forwarder>>);

impl Announcer for Gate {
    fn acquire(&self, vip: &VipSettings, _: u64) -> Result<Vec<OwnedFd>, String> {
        let forwarder = self.0.get().ok_or("the forwarding plane does not run yet")?;
        forwarder.gate(vip.addr, true).map_err(|e| e.to_string())?;
        Ok(forwarder.gated_listeners(vip.addr))
    }

    fn quiesce(&self, vip: &VipSettings) -> bool {
        let forwarder = self.0.get();
        forwarder.inspect(|forwarder| forwarder.quiesce(vip.addr)).is_some()
    }

    fn unready(&self, vip: &VipSettings) -> Option<Vec<String>> {
        self.0.get().map_or_else(|| Some(Vec::new()), |forwarder| forwarder.unready(vip.addr))
    }

    fn release(&self, vip: &VipSettings) -> Result<(), String> {
        match self.0.get() {
            Some(forwarder) => forwarder.gate(vip.addr, false).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

/// Lets the node take VIPs once the log is applied up to what was committed when it joined, and the
/// stick tables and the health of the servers have been taught.
async fn catch_up(vips: Vips, cluster: Cluster, tables: Arc<Tables>, held: Arc<Held>, caught_up: CaughtUp) {
    let started = Instant::now();
    loop {
        let mut reasons = Vec::new();
        let status = cluster.status();
        if !status.quorum {
            reasons.push("no leader and majority seen since the start".to_owned());
        } else if status.applied < status.committed {
            reasons.push("the log is not applied yet".to_owned());
        }
        let untaught = tables.list().into_iter().find(|t| t.is_shared() && !t.is_learned());
        if let Some(table) = untaught.filter(|_| started.elapsed() < TAUGHT_WITHIN) {
            reasons.push(format!("stick table '{}' is not taught yet", table.name()));
        }
        if !cluster.share().is_taught() {
            reasons.push("the health of the servers is not taught yet".to_owned());
        }
        if !held.settled() && started.elapsed() < TAUGHT_WITHIN {
            reasons.push("the cluster's configuration is not applied yet".to_owned());
        }
        let done = reasons.is_empty();
        vips.set_behind(reasons);
        if done {
            caught_up.0.store(true, Relaxed);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn drain(config: &model::Config) -> Duration {
    config.cluster.as_ref().and_then(|cluster| cluster.vip_drain).unwrap_or(DEFAULT_DRAIN)
}

fn vip(vip: &model::Vip) -> VipSettings {
    VipSettings {
        name: vip.name.clone(),
        addr: vip.addr,
        prefix: vip.prefix,
        announce: match vip.announce {
            model::Announce::Arp => Announce::Arp { interface: vip.interface.clone().unwrap_or_default() },
            model::Announce::Listen => Announce::Listen,
            model::Announce::HealthPort(port) => Announce::HealthPort(port),
            model::Announce::Exec(ref path) => Announce::Exec { path: path.clone(), limit: vip.exec_timeout },
        },
        prefer: vip.prefer.clone(),
        on_quorum_loss: if vip.hold { QuorumLoss::Hold } else { QuorumLoss::Release },
    }
}

/// How guardians are started; where `chroot` will hide the program, some are started now. They become
/// the configured user themselves.
///
/// # Errors
/// One line, when they cannot be started.
pub(super) fn guardians(config: &model::Config) -> Result<GuardianCommand, String> {
    let global = &config.global;
    let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    // This very program, even when its file was replaced meanwhile.
    let program = PathBuf::from("/proc/self/exe");
    let command = GuardianCommand::new(program, vec!["guardian".into(), id(global.uid), id(global.gid)]);
    if global.chroot.is_some() && config.cluster.iter().any(|c| !c.vips.is_empty()) {
        command.start_ahead(GUARDIANS_AHEAD).map_err(|e| format!("cannot start the guardian: {e}"))?;
    }
    Ok(command)
}

/// The guardian's process: becomes the user that `words` name, and watches over the worker's VIPs.
pub(super) fn guardian(words: &[String]) -> ExitCode {
    let id = |at: usize| words.get(at).and_then(|w| w.parse().ok());
    let identity = Identity { uid: id(0), gid: id(1) };
    if process::effective_uid() == 0
        && let Err(e) = process::become_identity(identity, &[Capability::NetAdmin, Capability::NetRaw])
    {
        tracing::error!("guardian: cannot change the user: {e}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(phalanx_cluster::vip::guardian::main() as u8)
}
