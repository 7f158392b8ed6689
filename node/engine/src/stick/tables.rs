//! The tables of a process by name, kept across reloads, and what they share: origins, clock, seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use phalanx_config::model::{Config, DataType, KeyType, ServerKey};

use super::layout::Layout;
use super::origin::{Hlc, Origins};
use super::shard::Shape;
use super::texts::Texts;
use super::{MAX_PEERS, Table, codec};
use crate::time::Now;

/// How a table is declared.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// `type`.
    pub key: KeyType,
    /// `size`.
    pub size: usize,
    /// `expire`.
    pub expire: Option<Duration>,
    /// `nopurge`.
    pub nopurge: bool,
    /// Whether `peers` names the cluster.
    pub shared: bool,
    /// The `peers` section that it names otherwise.
    pub section: Option<String>,
    /// `store`, and what `stick` rules need.
    pub store: Vec<DataType>,
    /// `brates-factor`.
    pub brates_factor: u32,
    /// `srvkey`.
    pub server_key: ServerKey,
    /// `write-to`.
    pub write_to: Option<String>,
}

impl Spec {
    /// A table of `size` keys that stores `store`, and no more than that.
    pub fn new(key: KeyType, size: usize, store: &[DataType]) -> Spec {
        Spec {
            key,
            size,
            expire: None,
            nopurge: false,
            shared: false,
            section: None,
            store: store.to_vec(),
            brates_factor: 1,
            server_key: ServerKey::Name,
            write_to: None,
        }
    }

    pub(super) fn shape(&self) -> Shape {
        let ttl = self.expire.map(|d| (d.as_millis() as u64).max(1));
        Shape {
            layout: Layout::new(&self.store, self.brates_factor),
            ttl,
            shared: self.shared || self.section.is_some(),
        }
    }
}

/// What all tables of a process share.
pub(super) struct Shared {
    pub(super) origins: Origins,
    pub(super) hlc: Hlc,
    pub(super) seed: u64,
    pub(super) texts: Texts,
    wakers: RwLock<Vec<Box<dyn Fn() + Send + Sync>>>,
    woken: AtomicBool,
}

impl Shared {
    /// Tells the senders that there is something to send, once until they have looked.
    pub(super) fn wake(&self) {
        if !self.woken.swap(true, SeqCst) {
            self.wakers.read().iter().for_each(|waker| waker());
        }
    }
}

/// A number that peers have for their cursors, one after the other.
struct Place {
    name: String,
    /// Handles of that peer; 0 = it has gone, and another may have the number.
    users: usize,
}

/// The stick tables of this process.
pub struct Tables {
    node: String,
    incarnation: u64,
    shared: Arc<Shared>,
    by_name: RwLock<BTreeMap<String, Arc<Table>>>,
    peers: Mutex<Vec<Place>>,
    generation: AtomicU64,
}

impl Tables {
    /// No tables yet, on this run of `node`. `incarnation` must be greater at every start; `seed`
    /// keeps clients from aiming keys at one bucket.
    pub fn new(node: &str, incarnation: u64, seed: u64) -> Arc<Tables> {
        Arc::new(Tables {
            node: node.to_string(),
            incarnation,
            shared: Arc::new(Shared {
                origins: Origins::new(node, incarnation),
                hlc: Hlc::default(),
                seed,
                texts: Texts::default(),
                wakers: RwLock::default(),
                woken: AtomicBool::new(false),
            }),
            by_name: RwLock::default(),
            peers: Mutex::default(),
            generation: AtomicU64::new(1),
        })
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// This run of the node.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The table of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Table>> {
        self.by_name.read().get(name).cloned()
    }

    /// All tables, by name.
    pub fn list(&self) -> Vec<Arc<Table>> {
        self.by_name.read().values().cloned().collect()
    }

    /// Brings the tables in line with a configuration: same name and key type keep their entries,
    /// tables no longer declared go.
    pub fn configure(&self, config: &Config, now: Now) {
        let cluster = config.cluster.as_ref().map(|c| c.name.as_str());
        let mut specs = BTreeMap::new();
        for proxy in &config.proxies {
            let Some(table) = &proxy.stick_table else { continue };
            let mut store = table.store.clone();
            let stuck =
                |p: &phalanx_config::model::Proxy| p.stick_rules.iter().any(|r| r.table == proxy.name);
            if config.proxies.iter().any(|p| stuck(p)) {
                store.extend([DataType::ServerId, DataType::ServerKey]);
            }
            let spec = Spec {
                key: table.key,
                size: table.size,
                expire: table.expire,
                nopurge: table.nopurge,
                shared: table.peers.is_some() && table.peers.as_deref() == cluster,
                section: table.peers.clone().filter(|peers| cluster != Some(peers)),
                store,
                brates_factor: table.brates_factor,
                server_key: table.server_key,
                write_to: table.write_to.clone(),
            };
            specs.insert(proxy.name.clone(), spec);
        }
        self.apply(&specs, now);
    }

    /// [`Tables::configure`] from bare declarations.
    pub fn apply(&self, specs: &BTreeMap<String, Spec>, now: Now) {
        let mut tables = self.by_name.write();
        let mut next = BTreeMap::new();
        for (name, spec) in specs {
            let shape = spec.shape();
            let table = match tables.get(name) {
                Some(old)
                    if old.kind == spec.key
                        && old.server_key == spec.server_key
                        && old.layout == shape.layout =>
                {
                    old.reshape(spec);
                    old.clone()
                }
                other => {
                    let table = Arc::new(Table::new(name, spec, &self.shared, now));
                    if let Some(old) = other
                        && old.kind == spec.key
                    {
                        codec::carry(old, &table, now);
                    }
                    table
                }
            };
            next.insert(name.clone(), table);
        }
        for (name, spec) in specs {
            let target =
                spec.write_to.as_ref().and_then(|target| next.get(target)).filter(|t| t.kind == spec.key);
            *next[name].write_to.lock() = target.map(Arc::downgrade).unwrap_or_default();
            next[name].section.lock().clone_from(&spec.section);
        }
        *tables = next;
        drop(tables);
        self.generation.fetch_add(1, Relaxed);
        self.shared.wake();
    }

    /// Takes away what has expired from every table; call it about every 100 ms.
    pub fn sweep(&self, now: Now) {
        for table in self.list() {
            table.sweep(now);
        }
    }

    /// Whether every shared table knows what the cluster knows: a node that is not there yet should not
    /// take over a floating IP.
    pub fn is_learned(&self) -> bool {
        self.by_name.read().values().all(|t| !t.is_shared() || t.is_learned())
    }

    /// `waker` is called, from whichever thread, when there is something to send to peers: all wakers
    /// once, until [`Tables::rearm`].
    pub fn add_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.shared.wakers.write().push(Box::new(waker));
    }

    /// The senders are about to look: the next change wakes them again.
    pub fn rearm(&self) {
        self.shared.woken.store(false, SeqCst);
    }

    /// Changes whenever tables come or go.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// A small number for a peer, for its cursors, until it is released as often as it was asked for;
    /// `None` when there are too many peers at a time.
    pub(crate) fn peer_index(&self, name: &str) -> Option<usize> {
        let mut peers = self.peers.lock();
        let place = peers.iter().position(|p| p.users > 0 && p.name == name);
        if let Some(at) = place.or_else(|| peers.iter().position(|p| p.users == 0)) {
            peers[at].users += 1;
            peers[at].name = name.to_string();
            return Some(at);
        }
        if peers.len() >= MAX_PEERS {
            return None;
        }
        peers.push(Place { name: name.to_string(), users: 1 });
        Some(peers.len() - 1)
    }

    /// A peer does not use its number any more: what tables know under it is forgotten, because the next
    /// to have it may be another peer.
    pub(crate) fn release_peer(&self, index: usize) {
        let mut peers = self.peers.lock();
        let Some(place) = peers.get_mut(index) else { return };
        place.users = place.users.saturating_sub(1);
        if place.users == 0 {
            self.by_name.read().values().for_each(|table| table.forget_peer(index));
        }
    }

    /// How many peers there are.
    pub(crate) fn peer_count(&self) -> usize {
        self.peers.lock().iter().filter(|p| p.users > 0).count()
    }

    /// Has the senders look, though no entry has changed.
    pub(crate) fn wake(&self) {
        self.shared.wake();
    }

    pub(crate) fn origins(&self) -> &Origins {
        &self.shared.origins
    }

    pub(crate) fn hlc(&self) -> &Hlc {
        &self.shared.hlc
    }
}

impl Table {
    /// Takes over what a reload may change in place.
    fn reshape(&self, spec: &Spec) {
        self.size.store(spec.size.max(1), Relaxed);
        self.nopurge.store(spec.nopurge, Relaxed);
        let shape = spec.shape();
        for (index, shard) in self.shards.iter().enumerate() {
            let mut shard = shard.lock();
            shard.shape.shared = shape.shared;
            if shard.shape.ttl != shape.ttl {
                shard.retime(shape.ttl);
            }
            self.leave(shard, index, 0);
        }
        while self.used() > self.size() {
            if !(0..self.shards.len()).any(|index| {
                let mut shard = self.shards[index].lock();
                let done = shard.evict();
                self.leave(shard, index, 0);
                done
            }) {
                break;
            }
        }
    }
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("node", &self.node)
            .field("tables", &self.list())
            .finish_non_exhaustive()
    }
}
