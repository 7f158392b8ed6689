//! Places on servers with `maxconn <n> cluster`: the engine's desk decides, this counts.
//!
//! A round puts the node's limits in force on the servers, counts what is in use and what waits, and
//! lets the machine think. It comes several times a second, at once when a peer has said something or a
//! stream begins to wait, and every few milliseconds while somebody waits. Without a cluster the limit
//! is this node's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_cluster::Cluster;
use phalanx_engine::backend::Backend;
use phalanx_engine::permits::{Key, Permits};
use phalanx_engine::server::Server;
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Between two rounds while nothing goes on.
const QUIET: Duration = Duration::from_millis(100);
/// While somebody waits.
const BUSY: Duration = Duration::from_millis(5);
/// Not oftener than this, however many streams begin to wait.
const LEAST: Duration = Duration::from_millis(1);

/// Counts for as long as the node runs.
pub(super) async fn count(state: Arc<State>, cluster: Option<Cluster>, clock: Clock) {
    let news = Arc::new(Notify::new());
    let woken = news.clone();
    let bell: Arc<dyn Fn() + Send + Sync> = Arc::new(move || woken.notify_one());
    let Some(desk) = cluster.map(|cluster| cluster.share().desk().clone()) else {
        loop {
            for (_, server) in sharing(&state) {
                server.set_places(None);
            }
            sleep(QUIET).await;
        }
    };
    let ring = bell.clone();
    desk.wake_counter(move || ring());
    let mut known: BTreeMap<Key, (Arc<Backend>, Arc<Server>)> = BTreeMap::new();
    let mut looked = None;
    loop {
        let (mono, unix_us) = clock.now();
        // Many servers may be there that share nothing: not looked through in every round.
        if looked.is_none_or(|at| mono >= at + QUIET) {
            looked = Some(mono);
            follow(&state, &bell, &mut known);
        }
        let busy = desk.round(Now { mono, unix_us }, |machine| {
            known.retain(|key, (backend, server)| round(machine, key, backend, server));
        });
        sleep(LEAST).await;
        let _ = timeout(if busy { BUSY } else { QUIET }, news.notified()).await;
    }
}

fn sharing(state: &State) -> Vec<(Arc<Backend>, Arc<Server>)> {
    let plan = state.plan();
    let mut found = Vec::new();
    for backend in plan.proxies.iter().filter_map(|p| p.backend.as_ref()) {
        let shares = |s: &&Arc<Server>| s.shares_places();
        found.extend(backend.servers().iter().filter(shares).map(|s| (backend.clone(), s.clone())));
    }
    found
}

/// Servers that are new; one that is gone stays until its last place is free.
fn follow(
    state: &State,
    bell: &Arc<dyn Fn() + Send + Sync>,
    known: &mut BTreeMap<Key, (Arc<Backend>, Arc<Server>)>,
) {
    for (backend, server) in sharing(state) {
        let key = Key { backend: backend.name().clone(), server: server.name().clone() };
        backend.set_bell(bell);
        match known.get(&key) {
            Some((_, old)) if Arc::ptr_eq(old, &server) => {}
            // Its places are still in use under the same name: the new one waits for them.
            Some((_, old)) if old.served() > 0 => {}
            _ => _ = known.insert(key, (backend, server)),
        }
    }
}

/// Returns whether the server still matters.
fn round(machine: &mut Permits, key: &Key, backend: &Arc<Backend>, server: &Arc<Server>) -> bool {
    let shares = server.shares_places();
    let limit = if shares && !server.is_removed() { server.maxconn() } else { 0 };
    if !shares {
        // The configuration no longer says so.
        server.set_places(None);
        machine.observe(key, 0, 0, 0);
        return false;
    }
    server.set_places(Some(machine.places(key)));
    let served = server.served();
    // Whoever waits for any server of the backend would take a place on this one.
    let waiting = server.queued() + backend.queued();
    machine.observe(key, limit, served, waiting);
    if waiting > 0 {
        backend.serve_waiting();
    }
    limit > 0 || served > 0
}
