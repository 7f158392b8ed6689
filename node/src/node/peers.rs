//! `peers` sections: stick tables shared with HAProxys, beside or without a cluster.

use std::sync::Arc;
use std::time::Duration;

use phalanx_cluster::haproxy::{Handle, Settings};
use phalanx_config::Config;
use phalanx_config::model::Peers;
use phalanx_engine::peers::Role;
use phalanx_engine::stick::Tables;
use phalanx_sys::clock::Clock;
use tokio::sync::watch;

/// Starts the sessions of every section that this node is in. They end with `stop`'s sender.
pub(super) fn start(
    config: &Config,
    node: &str,
    tables: &Arc<Tables>,
    clock: Clock,
    stop: &watch::Receiver<bool>,
) -> Vec<Handle> {
    let sections = config.peers.iter().filter(|section| !section.disabled);
    let started = sections.filter_map(|section| {
        let Some(addr) = own_address(section, node) else {
            tracing::warn!("Removing incomplete section 'peers {}' (no peer named '{node}').", section.name);
            return None;
        };
        let others = section.peers.iter().filter(|peer| peer.name != node);
        let settings = Settings {
            section: Some(section.name.clone()),
            bind: Some(addr),
            local: node.to_owned(),
            peers: others.filter_map(|peer| Some((peer.name.clone(), peer.addr.clone()?))).collect(),
            delay: Duration::ZERO,
        };
        let handle = Handle::new(settings, tables.clone(), clock, Box::new(|| Role::Learner), stop.clone());
        tokio::spawn(handle.clone().run());
        tokio::spawn(handle.clone().listen());
        Some(handle)
    });
    started.collect()
}

/// Where this node listens: its own line says it, or `bind`.
fn own_address(section: &Peers, node: &str) -> Option<String> {
    let own = section.peers.iter().find(|peer| peer.name == node)?;
    own.addr.clone().or_else(|| section.bind.clone())
}
