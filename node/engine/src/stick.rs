//! Stick tables: what workers track and stick to, shared with the other nodes.
//!
//! A [`Table`] is sharded, bounded by its `size`, and forgets by `expire`. Every value is kept per node
//! incarnation in a *slot* that only its origin writes; reading adds the slots up, so learning the same
//! thing twice changes nothing. Workers call [`Table`] and [`Tracked`] with short locks on one shard;
//! [`crate::replication`] reads the update log and merges what peers send. Nothing here blocks, sends
//! or reads a clock.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
pub use phalanx_config::model::{DataType, KeyType, ServerKey};

pub use self::key::{Input, Key, OwnKey, Scratch};
pub use self::layout::{Column, Data, Kind, Layout, TYPES, Type, by_name};
pub use self::lookup::Stuck;
pub use self::origin::Origin;
use self::origin::SELF;
pub use self::runtime::{Cleared, Part, PartKind, Row, SetError};
use self::shard::Shard;
use self::tables::Shared;
pub use self::tables::{Spec, Tables};
pub use self::tracked::Tracked;
use crate::time::Now;

pub(crate) mod codec;
mod digest;
pub(crate) mod foreign;
pub(crate) mod hash;
mod key;
mod layout;
mod lookup;
pub(crate) mod origin;
mod rate;
mod reset;
mod rows;
mod runtime;
mod shard;
mod tables;
#[cfg(test)]
mod tests;
mod texts;
mod tracked;

/// Peers that a table can feed at once; the numbers of those that have gone are given to others.
pub const MAX_PEERS: usize = 64;
const MAX_SHARDS: usize = 64;
/// Entries per shard below which a table is not split: eviction order is exact within a shard.
const SHARD_ENTRIES: usize = 4096;
/// A table that nobody has begun to teach for so long knows all that can be known: the peers that it has
/// not heard from are dead or cut off.
const LEARN_LIMIT: Duration = Duration::from_secs(5);
/// A node that starts again waits for so long for peers that may know more of its earlier runs.
const FOLD_LIMIT: Duration = Duration::from_secs(600);
/// Earlier runs of this node above which it does not.
const MAX_PAST: usize = 16;
/// Entries looked at for folding in one sweep: updates of peers wait for it.
const FOLD_STEP: u32 = 2_048;
/// Entries handled under one lock by walks over a whole table.
const WALK: u32 = 256;

/// One stick table.
pub struct Table {
    name: String,
    kind: KeyType,
    server_key: ServerKey,
    layout: Layout,
    shards: Box<[Mutex<Shard>]>,
    size: AtomicUsize,
    nopurge: AtomicBool,
    used: AtomicUsize,
    /// Everything begun before this reading of the hybrid clock was cleared.
    floor: AtomicU64,
    /// Names this very table among those of its name over time: cursors of an earlier one say nothing.
    epoch: u64,
    /// Shards with news, one bit each, per peer.
    pending: [AtomicU64; MAX_PEERS],
    /// The count of changes when somebody last asked for a digest.
    asked: AtomicU64,
    /// Ready: taught by a peer, or none was there to teach it.
    learned: AtomicBool,
    /// A peer that knew all has taught it, or every peer what it knew.
    taught: AtomicBool,
    /// The peer that teaches it now, plus one.
    teacher: AtomicUsize,
    /// Peers that have told all that they knew, one bit each.
    heard: AtomicU64,
    born: Duration,
    /// Peers that have told what earlier runs of this node counted, one bit each.
    past: AtomicU64,
    /// How far the folding of those has come: shard and entry.
    folded: Mutex<Option<(usize, u32)>>,
    /// What took its place at a reload that changed what it stores.
    successor: OnceLock<Arc<Table>>,
    /// `write-to`: where registers that peers send go as well.
    write_to: Mutex<Weak<Table>>,
    /// The `peers` section that shares it; `None`: the cluster.
    section: Mutex<Option<String>>,
    shared: Arc<Shared>,
}

impl Table {
    fn new(name: &str, spec: &Spec, shared: &Arc<Shared>, now: Now) -> Table {
        let shards = (spec.size / SHARD_ENTRIES).next_power_of_two().clamp(1, MAX_SHARDS);
        let shape = spec.shape();
        Table {
            name: name.to_string(),
            kind: spec.key,
            server_key: spec.server_key,
            layout: shape.layout.clone(),
            shards: (0..shards)
                .map(|_| Mutex::new(Shard::new(spec.key, shape.clone(), shared.seed)))
                .collect(),
            size: AtomicUsize::new(spec.size.max(1)),
            nopurge: AtomicBool::new(spec.nopurge),
            used: AtomicUsize::new(0),
            floor: AtomicU64::new(0),
            epoch: shared.hlc.tick(now),
            pending: [const { AtomicU64::new(0) }; MAX_PEERS],
            asked: AtomicU64::new(u64::MAX),
            learned: AtomicBool::new(!spec.shape().shared),
            taught: AtomicBool::new(false),
            teacher: AtomicUsize::new(0),
            heard: AtomicU64::new(0),
            born: now.mono,
            past: AtomicU64::new(0),
            folded: Mutex::new(None),
            successor: OnceLock::new(),
            write_to: Mutex::default(),
            section: Mutex::new(spec.section.clone()),
            shared: shared.clone(),
        }
    }

    /// Its name: that of the proxy which declares it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its key type.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// Key type as `show table` names it.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            KeyType::Ip => "ip",
            KeyType::Ipv6 => "ipv6",
            KeyType::Integer => "integer",
            KeyType::String(_) => "string",
            KeyType::Binary(_) => "binary",
        }
    }

    /// The text that a value of `server_key` stands for.
    pub fn text(&self, value: u64) -> Option<Arc<str>> {
        self.shared.texts.get(u32::try_from(value).ok()?)
    }

    /// What `server_key` holds.
    pub fn server_key_is(&self) -> ServerKey {
        self.server_key
    }

    /// The stored data types.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Most entries it holds.
    pub fn size(&self) -> usize {
        self.size.load(Relaxed)
    }

    /// Entries it holds.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// `expire`.
    pub fn expire(&self) -> Option<Duration> {
        self.shards[0].lock().shape.ttl.map(Duration::from_millis)
    }

    /// Whether peers share it.
    pub fn is_shared(&self) -> bool {
        self.is_shared_in(None)
    }

    /// Whether a `peers` section shares it; `None` for the cluster.
    pub(crate) fn is_shared_in(&self, section: Option<&str>) -> bool {
        self.shards[0].lock().shape.shared && self.section.lock().as_deref() == section
    }

    /// Casts a sample to a key of this table.
    pub fn key<'a>(&self, input: Input<'a>, scratch: &'a mut Scratch) -> Option<Key<'a>> {
        Key::cast(self.kind, input, scratch)
    }

    // ---- upkeep and comparison ----

    /// Takes away what has expired, and keeps tracked entries alive on the peers. Called about every
    /// 100 ms by the control plane.
    pub fn sweep(&self, now: Now) {
        for index in 0..self.shards.len() {
            let mut shard = self.enter(index, now);
            let woken = shard.keep_tracked();
            self.leave(shard, index, woken);
        }
        if now.mono > self.born + LEARN_LIMIT && self.teacher.load(Relaxed) == 0 {
            self.learned.store(true, Relaxed);
        }
        self.fold(now);
    }

    /// Whether the peer has still to tell what earlier runs of this node counted.
    pub(crate) fn wants_past(&self, peer: usize) -> bool {
        self.past.load(Relaxed) & 1 << peer == 0
    }

    /// A peer has told what earlier runs of this node counted. When all have, nobody knows more.
    pub(crate) fn past_heard(&self, peer: usize, peers: usize) {
        let bit = 1 << peer;
        if (self.past.fetch_or(bit, Relaxed) | bit).count_ones() as usize >= peers {
            self.begin_folding();
        }
    }

    fn begin_folding(&self) {
        self.folded.lock().get_or_insert((0, 0));
    }

    /// Folds some more entries, once nobody can know more of earlier runs than this node; peers that
    /// are away are not waited for without end.
    fn fold(&self, now: Now) {
        let late = now.mono > self.born + FOLD_LIMIT
            || now.mono > self.born + LEARN_LIMIT && self.shared.origins.own_past() > MAX_PAST;
        let mut folded = self.folded.lock();
        if folded.is_none() && late && self.is_learned() {
            *folded = Some((0, 0));
        }
        let Some((index, from)) = &mut *folded else { return };
        // Where no earlier run is known no entry has to be looked at.
        let any = self.shared.origins.own_past() > 0;
        let mut left = FOLD_STEP;
        while *index < self.shards.len() && left > 0 {
            let mut shard = self.enter(*index, now);
            shard.folds = true;
            let all = shard.entries.len() as u32;
            let end = if any { (*from + WALK).min(all) } else { all };
            let mut woken = 0;
            for at in if any { *from..end } else { 0..0 } {
                if shard.has_past(at, &self.shared.origins) {
                    let birth = || self.shared.hlc.tick(now);
                    let own = shard.own(at, &self.shared.origins, birth);
                    shard.absorb(at, own, &self.shared.origins);
                    woken |= shard.publish(at);
                }
            }
            let done = end >= all;
            self.leave(shard, *index, woken);
            left = if any { left.saturating_sub(WALK) } else { left };
            (*index, *from) = if done { (*index + 1, 0) } else { (*index, end) };
        }
    }

    /// Memory held by entries, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.shards.iter().map(|s| s.lock().heap_bytes() + size_of::<Mutex<Shard>>()).sum()
    }

    /// Whether it knows what the cluster knows: a peer has taught it everything, or none was there.
    pub fn is_learned(&self) -> bool {
        self.learned.load(Relaxed)
    }

    /// Whether a peer that knew all has taught it, or every peer what it knew.
    pub(crate) fn is_taught(&self) -> bool {
        self.taught.load(Relaxed)
    }

    pub(crate) fn set_taught(&self) {
        self.taught.store(true, Relaxed);
        self.learned.store(true, Relaxed);
    }

    /// A peer has told all that it knew, which need not be all there is. Once each of them has, nobody
    /// knows more: so nodes that start together are ready at once.
    pub(crate) fn heard_from(&self, peer: usize, peers: usize) {
        let bit = 1 << peer;
        let heard = self.heard.fetch_or(bit, Relaxed) | bit;
        if heard.count_ones() as usize >= peers {
            self.set_taught();
        }
    }

    /// The peer is none any more, and what it said stands for nobody.
    fn forget_peer(&self, peer: usize) {
        self.detach(peer);
        self.heard.fetch_and(!(1 << peer), Relaxed);
        self.past.fetch_and(!(1 << peer), Relaxed);
        let _ = self.teacher.compare_exchange(peer + 1, 0, Relaxed, Relaxed);
        self.pending[peer].store(0, SeqCst);
    }

    /// Makes a peer the one that teaches this table; `false` while another is at it.
    pub(crate) fn claim(&self, peer: usize) -> bool {
        self.teacher.compare_exchange(0, peer + 1, Relaxed, Relaxed).is_ok()
    }

    /// The peer teaches no longer; whether it did.
    pub(crate) fn unclaim(&self, peer: usize) -> bool {
        self.teacher.compare_exchange(peer + 1, 0, Relaxed, Relaxed).is_ok()
    }

    /// Whether this peer teaches the table now.
    pub(crate) fn claimed_by(&self, peer: usize) -> bool {
        self.teacher.load(Relaxed) == peer + 1
    }

    // ---- inside ----

    /// Shard and hash of a key; `None` when it is not of this table's type.
    fn locate(&self, key: &Key) -> Option<(usize, u64)> {
        if !key.fits(self.kind) {
            return None;
        }
        let hash = key.hash(self.shared.seed);
        Some(((hash >> 40) as usize & (self.shards.len() - 1), hash))
    }

    /// Locks a shard and moves its time on.
    fn enter(&self, index: usize, now: Now) -> MutexGuard<'_, Shard> {
        let mut shard = self.shards[index].lock();
        shard.advance(now.ms());
        self.settle(&mut shard);
        shard
    }

    /// Brings the table's count of entries in line with a shard's.
    fn settle(&self, shard: &mut Shard) {
        let (before, after) = (shard.marked as usize, shard.live as usize);
        if after > before {
            self.used.fetch_add(after - before, Relaxed);
        } else if before > after {
            self.used.fetch_sub(before - after, Relaxed);
        }
        shard.marked = shard.live;
    }

    /// Settles, unlocks, and tells the peers' senders.
    fn leave(&self, mut shard: MutexGuard<'_, Shard>, index: usize, woken: u64) {
        self.settle(&mut shard);
        drop(shard);
        if woken != 0 {
            let mut left = woken;
            while left != 0 {
                // SeqCst: this store must be seen by a sender that has just re-armed the waker.
                self.pending[left.trailing_zeros() as usize].fetch_or(1 << index, SeqCst);
                left &= left - 1;
            }
            self.shared.wake();
        }
    }

    /// The live entry of a key, made if there is none.
    fn obtain(&self, key: &Key, now: Now) -> Option<(MutexGuard<'_, Shard>, usize, u32)> {
        let (index, hash) = self.locate(key)?;
        let mut shard = self.enter(index, now);
        if let Some(at) = shard.lookup(key, hash) {
            return Some((shard, index, at));
        }
        if self.used() >= self.size() {
            if self.nopurge.load(Relaxed) {
                self.leave(shard, index, 0);
                return None;
            }
            if !shard.evict() {
                // Nothing to evict here: another shard gives, never with two locks held.
                self.leave(shard, index, 0);
                if !self.evict_elsewhere(index, now) {
                    return None;
                }
                shard = self.enter(index, now);
                if let Some(at) = shard.lookup(key, hash) {
                    return Some((shard, index, at));
                }
            }
        }
        let expire = shard.horizon();
        let at = shard.create(key, hash, expire);
        Some((shard, index, at))
    }

    fn evict_elsewhere(&self, not: usize, now: Now) -> bool {
        (0..self.shards.len()).filter(|&i| i != not).any(|index| {
            let mut shard = self.enter(index, now);
            let done = shard.evict();
            self.leave(shard, index, 0);
            done
        })
    }

    /// Calls `each` with every index of every shard, a bounded number under one lock.
    fn walk(&self, now: Now, mut each: impl FnMut(usize, &Shard, u32)) {
        for index in 0..self.shards.len() {
            self.walk_shard(index, now, &mut each);
        }
    }

    fn walk_shard(&self, index: usize, now: Now, each: &mut impl FnMut(usize, &Shard, u32)) {
        let mut from = 0;
        loop {
            let shard = self.enter(index, now);
            let end = shard.entries.len() as u32;
            let to = (from + WALK).min(end);
            (from..to).for_each(|at| each(index, &shard, at));
            self.leave(shard, index, 0);
            if to >= end {
                return;
            }
            from = to;
        }
    }

    fn row<'a>(&self, index: usize, shard: &'a Shard, at: u32, values: &'a mut Vec<u64>) -> Row<'a> {
        let e = &shard.entries[at as usize];
        values.clear();
        values.extend(self.layout.columns().iter().map(|&c| shard.read(at, c, &self.shared.origins)));
        Row {
            ptr: (index as u64) << 36 | u64::from(at + 1) << 4,
            key: shard.keys.get(at),
            uses: e.uses,
            exp: shard.shape.ttl.map(|_| Duration::from_millis(e.expire.saturating_sub(shard.now))),
            values,
        }
    }

    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        let mut live = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            self.settle(&mut shard);
            shard.check_invariants();
            live += shard.live as usize;
        }
        assert_eq!(live, self.used());
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.name).field("used", &self.used()).finish_non_exhaustive()
    }
}

const _: () = assert!(SELF == 0);
