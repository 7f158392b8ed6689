//! Carries out what the engine's [`Agent`] decides about the configuration of the cluster: moves
//! floating IPs away, applies, watches, stores, and has the cluster agree.
//!
//! One task per node. It acts only when this node has heard of everything that was committed when it
//! came, and one thing at a time. What it applies goes through the same door as a reload.

use std::sync::Arc;
use std::time::Duration;

use phalanx_cluster::vip::Vips;
use phalanx_cluster::{Cluster, Peer};
use phalanx_config::{Config, Server};
use phalanx_engine::registry::epochs::{Epochs, Step};
use phalanx_engine::registry::{Command, Reply};
use phalanx_engine::rollout::{self, Action, Agent, LOOK_EVERY, Usable, Verdict, Watch};
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_proxy::Forwarder;
use phalanx_sys::clock::Clock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::vips::CaughtUp;
use crate::epochs::{Held, Text};

/// How often the agreed state is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A node is watched at least and at most for so long after it has applied.
const WATCH_LEAST: Duration = Duration::from_secs(2);
const WATCH_MOST: Duration = Duration::from_secs(15);

/// A text for the program to apply, and where the outcome goes: what there is to say.
pub(super) struct ApplyRequest {
    pub text: Text,
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// What the task works on.
pub(super) struct Rollout {
    pub cluster: Cluster,
    pub held: Arc<Held>,
    pub apply: mpsc::Sender<ApplyRequest>,
    pub state: Arc<State>,
    pub forwarder: Arc<Forwarder>,
    pub vips: Option<(Vips, CaughtUp)>,
    pub clock: Clock,
    pub incarnation: u64,
}

impl Rollout {
    /// Runs until the process ends.
    pub(super) async fn run(self) {
        self.caught_up().await;
        let mut record = self.held.record();
        let mut agent =
            Agent::new(self.cluster.node(), self.incarnation, record.runs, record.declined, record.trying);
        let mut behind = false;
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now_held = self.held.record();
            if now_held.declined != record.declined
                && let Some(epoch) = now_held.declined
            {
                agent.declined(epoch);
            }
            record = now_held;
            let registry = self.cluster.registry();
            let epochs = registry.epochs();
            self.held.set_settled(agent.settled(epochs));
            if behind && !self.in_turn(epochs) {
                behind = false;
                self.set_behind(Vec::new());
            }
            match agent.poll(epochs, &|name| self.peer(name), self.now()) {
                None => {}
                Some(Action::Yield { epoch }) => {
                    behind = true;
                    self.give_up_vips(epoch, epochs).await;
                    agent.yielded(epoch);
                }
                Some(Action::Propose(command)) => {
                    let reply = self.cluster.propose(Command::Config(command)).await;
                    agent.proposed(reply.is_ok_and(|r| !matches!(r, Reply::Refused(_))), self.now());
                }
                Some(Action::Apply { epoch, watch }) => {
                    let (runs, error) = match self.take(epoch, epochs, agent.runs(), watch).await {
                        Ok(()) => (epoch, None),
                        Err((runs, why)) => (runs, Some(why)),
                    };
                    match &error {
                        None => tracing::info!("configuration: this node runs epoch {epoch}"),
                        Some(why) => tracing::error!("configuration: epoch {epoch} is not applied: {why}"),
                    }
                    agent.applied(epoch, runs, error, self.now());
                }
            }
        }
    }

    fn now(&self) -> Now {
        let (mono, unix_us) = self.clock.now();
        Now { mono, unix_us }
    }

    /// Waits until this node has what was committed when it came: what it knows before is the past.
    async fn caught_up(&self) {
        loop {
            let status = self.cluster.status();
            if status.quorum && status.applied >= status.committed {
                return;
            }
            sleep(LOOK).await;
        }
    }

    fn peer(&self, name: &str) -> rollout::Peer {
        let Some(peer) = self.cluster.peers().by_name(name) else {
            return rollout::Peer::default();
        };
        let peer: &Peer = &peer;
        rollout::Peer { reachable: peer.reachable(), run: peer.known().hello.map(|h| h.incarnation) }
    }

    /// Moves the floating IPs that this node holds, to nodes that have applied the epoch if there are
    /// any, and takes none before it has applied it as well. A floating IP that nobody else can take
    /// stays: better here than nowhere.
    async fn give_up_vips(&self, epoch: u64, epochs: &Epochs) {
        let Some((vips, _)) = &self.vips else { return };
        let me = self.cluster.node();
        for vip in vips.status().iter().filter(|v| v.holder.as_deref() == Some(me)) {
            let applied = |node: &str| epochs.rollout().is_some_and(|r| r.step(node) == Some(&Step::Applied));
            let better = vip.nodes.iter().find(|n| n.eligible && n.node != me && applied(&n.node));
            let mut moved = vips.failover(&vip.name, better.map(|n| n.node.as_str())).await;
            if moved.is_err() && better.is_some() {
                moved = vips.failover(&vip.name, None).await;
            }
            match moved {
                Ok((holder, _)) => tracing::info!("vip {}: moved to '{holder}' for epoch {epoch}", vip.name),
                Err(why) => {
                    tracing::warn!("vip {}: stays here while epoch {epoch} is applied: {why}", vip.name)
                }
            }
        }
        self.set_behind(vec![format!("configuration epoch {epoch} is being applied")]);
    }

    /// Whether the rollout waits for this node.
    fn in_turn(&self, epochs: &Epochs) -> bool {
        let turn = epochs.rollout().and_then(|r| r.turn());
        turn.is_some_and(|(node, _)| node == self.cluster.node())
    }

    /// Says why this node takes no floating IP for now; a node that starts says so by itself.
    fn set_behind(&self, reasons: Vec<String>) {
        if let Some((vips, caught_up)) = &self.vips
            && caught_up.is_set()
        {
            vips.set_behind(reasons);
        }
    }

    /// Applies an epoch; comes back when it is stored, or the former configuration is in force again.
    /// An error says what runs then.
    async fn take(&self, epoch: u64, epochs: &Epochs, runs: u64, watch: bool) -> Result<(), (u64, String)> {
        let text = match (epoch, epochs.epoch(epoch)) {
            (0, _) => Text { name: "own files".to_owned(), text: None },
            (_, Some(found)) => Text { name: found.name.clone(), text: found.text.clone() },
            (_, None) => return Err((runs, "its text is not remembered any more".to_owned())),
        };
        let record = self.held.record();
        let former = Text { name: record.name, text: record.text };
        let held = self.held.clone();
        self.blocking(move || held.trying(epoch).map_err(|e| format!("cannot store the attempt: {e}")))
            .await
            .map_err(|why| (runs, why))?;
        let (before, config) = (self.usable(), self.state.plan_owned().config.clone());
        let outcome = self.apply(text.clone()).await;
        let held = self.held.clone();
        if let Err(why) = outcome {
            let _ = spawn_blocking(move || held.tried()).await;
            return Err((runs, why));
        }
        let well = if watch { self.watch(before, &config).await } else { Ok(()) };
        let stored = match well {
            Ok(()) => {
                let (held, text) = (held.clone(), text.clone());
                self.blocking(move || held.applied(epoch, &text).map_err(|e| format!("cannot store it: {e}")))
                    .await
            }
            Err(why) => Err(why),
        };
        let Err(why) = stored else { return Ok(()) };
        let back = self.apply(former).await;
        let _ = spawn_blocking(move || held.tried()).await;
        match back {
            Ok(_) => Err((runs, why)),
            Err(again) => Err((epoch, format!("{why}; and cannot return to the former one: {again}"))),
        }
    }

    async fn blocking(
        &self,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Has the program apply a text. An error is one line.
    async fn apply(&self, text: Text) -> Result<String, String> {
        let (answer, outcome) = oneshot::channel();
        let ending = || "the process is stopping".to_owned();
        self.apply.send(ApplyRequest { text, answer }).await.map_err(|_| ending())?;
        let outcome = outcome.await.map_err(|_| ending())?;
        outcome.map_err(|text| {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            lines.join(" ").replace("Reload failed, nothing changed: ", "")
        })
    }

    /// Usable servers of every backend.
    fn usable(&self) -> Usable {
        let plan = self.state.plan_owned();
        let backends = plan.proxies.iter().filter_map(|p| p.backend.as_ref());
        backends
            .map(|b| {
                let (active, backup) = b.usable_servers();
                (b.name().to_string(), (active + backup) as usize)
            })
            .collect()
    }

    /// How long the checks need to find out about a server that is new or was changed.
    fn checks_need(&self, former: &Config) -> Duration {
        let plan = self.state.plan_owned();
        let mut longest = Duration::ZERO;
        for proxy in plan.proxies.iter().map(|p| &p.config) {
            let old = former.proxies.iter().find(|p| p.name == proxy.name && p.kind.is_backend());
            let old = old.filter(|p| p.httpchk == proxy.httpchk);
            for server in proxy.servers.iter().filter(|s| s.options.check) {
                let same = |s: &Server| {
                    (&s.name, s.addr, &s.options) == (&server.name, server.addr, &server.options)
                };
                if !old.is_some_and(|p| p.servers.iter().any(|s| same(s))) {
                    let checks = server.options.fall.saturating_add(1);
                    longest = longest.max(server.options.inter.saturating_mul(checks));
                }
            }
        }
        longest.clamp(WATCH_LEAST, WATCH_MOST)
    }

    /// Watches this node for as long as its checks need.
    async fn watch(&self, before: Usable, former: &Config) -> Result<(), String> {
        let mut watch = Watch::new(before, self.now().mono + self.checks_need(former));
        loop {
            sleep(LOOK_EVERY).await;
            let forwarder = self.forwarder.clone();
            let plane = self.blocking(move || forwarder.well()).await;
            match watch.look(self.now(), &self.usable(), plane) {
                Verdict::Wait => {}
                Verdict::Well => return Ok(()),
                Verdict::Ill(why) => return Err(format!("it is not well with it: {why}")),
            }
        }
    }
}
