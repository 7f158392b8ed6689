//! What systemd hears of a running node: that it is well, and how it stands.
//!
//! The watchdog is fed only after every worker has carried out an order, every listener that is to be open
//! accepts, and the control plane has said what it knows of the cluster and of the leases; so a worker that
//! is stuck, or a lock that nobody gives back, ends the feeding, and systemd restarts the node. Without
//! quorum a node forwards and is well. It never decides anything itself.

use std::sync::Arc;
use std::time::Duration;

use phalanx_cluster::Cluster;
use phalanx_proxy::Forwarder;
use tokio::time::{MissedTickBehavior, interval};

use crate::notify::Notifier;

/// Between two looks, when the watchdog does not ask for shorter.
const LOOK: Duration = Duration::from_secs(2);

/// Feeds the watchdog.
pub(super) struct Watchdog {
    pub notifier: Arc<Notifier>,
    pub forwarder: Arc<Forwarder>,
    pub cluster: Option<Cluster>,
}

impl Watchdog {
    /// Goes on until the process ends; at once over when nobody listens.
    pub(super) async fn run(self) {
        if !self.notifier.is_heard() {
            return;
        }
        // Three chances, so that one moment of bad luck is no restart.
        let every = self.notifier.watchdog().map_or(LOOK, |limit| (limit / 3).min(LOOK));
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let status = match self.look().await {
                Ok(status) => {
                    if self.notifier.watchdog().is_some() {
                        self.notifier.alive();
                    }
                    status
                }
                Err(why) => format!("Not well: {why}."),
            };
            if status != told {
                self.notifier.status(&status);
                told = status;
            }
        }
    }

    /// Whether the node does its work, and what there is to say of it.
    async fn look(&self) -> Result<String, String> {
        let forwarder = self.forwarder.clone();
        tokio::task::spawn_blocking(move || forwarder.well()).await.map_err(|e| e.to_string())??;
        let Some(cluster) = &self.cluster else { return Ok("Forwarding.".to_owned()) };
        let status = cluster.status();
        let leader = status.leader.as_deref().unwrap_or("none");
        let held: Vec<String> = cluster
            .vips()
            .map(|vips| vips.status())
            .unwrap_or_default()
            .into_iter()
            .filter(|vip| vip.holder.as_deref() == Some(cluster.node()))
            .map(|vip| vip.name)
            .collect();
        let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
        Ok(format!("Forwarding; cluster '{}', leader {leader}; floating IPs here: {held}.", status.cluster))
    }
}
