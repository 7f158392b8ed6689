//! Stick tables: what workers track and stick to, shared with the other nodes.
//!
//! A [`Table`] is sharded, bounded by its `size`, and forgets by `expire`. Every value is kept per node
//! incarnation in a *slot* that only its origin writes; reading adds the slots up, so learning the same
//! thing twice changes nothing. Workers call [`Table`] and [`Tracked`] with short locks on one shard;
//! [`crate::replication`] reads the update log and merges what peers send. Nothing here blocks, sends
//! or reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
pub use phalanx_config::model::{DataType, KeyType};

pub use self::key::{Input, Key, Scratch};
pub use self::layout::{Column, Kind, Layout, TYPES, Type, by_name, describe};
pub use self::origin::Origin;
use self::origin::{CLEARED, SELF};
use self::shard::{Digest, Shard};
use self::tables::Shared;
pub use self::tables::{Spec, Tables};
use crate::time::Now;

pub(crate) mod codec;
pub(crate) mod hash;
mod key;
mod layout;
pub(crate) mod origin;
mod rate;
mod shard;
mod tables;
#[cfg(test)]
mod tests;

/// Peers that a table can feed at once.
pub const MAX_PEERS: usize = 16;
const MAX_SHARDS: usize = 64;
/// Entries per shard below which a table is not split: eviction order is exact within a shard.
const SHARD_ENTRIES: usize = 4096;
/// A table that nobody has begun to teach for so long knows all that can be known: the peers that it has
/// not heard from are dead or cut off.
const LEARN_LIMIT: Duration = Duration::from_secs(5);
/// Entries handled under one lock by walks over a whole table.
const WALK: u32 = 256;

/// One stick table.
pub struct Table {
    name: String,
    kind: KeyType,
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
    shared: Arc<Shared>,
}

/// One entry as `show table` tells it.
#[derive(Debug)]
pub struct Row<'a> {
    /// Stands for the entry's address.
    pub ptr: u64,
    /// The key.
    pub key: Key<'a>,
    /// Sessions that track it on this node.
    pub uses: u32,
    /// Time left, if the table expires.
    pub exp: Option<Duration>,
    /// Summed over the nodes, in the order of [`Table::layout`].
    pub values: &'a [u64],
}

/// One node's part of an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the node.
    pub node: String,
    /// Which run of it.
    pub incarnation: u64,
    /// Its values, in the order of [`Table::layout`].
    pub values: Vec<u64>,
}

/// What became of a wish to clear one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// It is gone, and will be on every node.
    Removed,
    /// Sessions of this node track it.
    InUse,
    /// There is no such entry.
    Absent,
}

/// Why a `set table` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// The table does not store this data type.
    NotStored(&'static str),
    /// The table is full and does not purge.
    Full,
}

impl Table {
    fn new(name: &str, spec: &Spec, shared: &Arc<Shared>, now: Now) -> Table {
        let shards = (spec.size / SHARD_ENTRIES).next_power_of_two().clamp(1, MAX_SHARDS);
        let shape = spec.shape();
        Table {
            name: name.to_string(),
            kind: spec.key,
            layout: shape.layout.clone(),
            shards: (0..shards)
                .map(|_| Mutex::new(Shard::new(spec.key, shape.clone(), shared.seed)))
                .collect(),
            size: AtomicUsize::new(spec.size.max(1)),
            nopurge: AtomicBool::new(spec.nopurge),
            used: AtomicUsize::new(0),
            floor: AtomicU64::new(0),
            epoch: shared.hlc.tick(now),
            pending: Default::default(),
            asked: AtomicU64::new(u64::MAX),
            learned: AtomicBool::new(!spec.shared),
            taught: AtomicBool::new(false),
            teacher: AtomicUsize::new(0),
            heard: AtomicU64::new(0),
            born: now.mono,
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
        }
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
        self.shards[0].lock().shape.shared
    }

    /// Casts a sample to a key of this table.
    pub fn key<'a>(&self, input: Input<'a>, scratch: &'a mut Scratch) -> Option<Key<'a>> {
        Key::cast(self.kind, input, scratch)
    }

    // ---- stickiness ----

    /// The server id stuck to a key. A hit gives the entry its full time again.
    pub fn server_id(&self, key: &Key, now: Now) -> Option<u32> {
        let column = self.layout.bit(layout::SERVER_ID)?;
        let (index, hash) = self.locate(key)?;
        let mut shard = self.enter(index, now);
        let Some(at) = shard.lookup(key, hash) else {
            self.leave(shard, index, 0);
            return None;
        };
        shard.refresh(at);
        let id = shard.read(at, column, &self.shared.origins) as u32;
        let woken = if shard.stale(at) { shard.publish(at) } else { 0 };
        self.leave(shard, index, woken);
        (id != 0).then_some(id)
    }

    /// Sticks a key to a server. Silently nothing when the table is full and does not purge.
    pub fn set_server_id(&self, key: &Key, id: u32, now: Now) {
        let Some(column) = self.layout.bit(layout::SERVER_ID) else { return };
        let Some((mut shard, index, at)) = self.obtain(key, now) else { return };
        shard.refresh(at);
        let mut woken = 0;
        if shard.read(at, column, &self.shared.origins) as u32 != id {
            let hlc = self.shared.hlc.tick(now);
            let slot = shard.own(at, || hlc);
            let words = shard::register(id, hlc);
            shard.slot_words_mut(slot)[column.at..column.at + 3].copy_from_slice(&words);
            woken = shard.publish(at);
        } else if shard.stale(at) {
            woken = shard.publish(at);
        }
        self.leave(shard, index, woken);
    }

    // ---- tracking ----

    /// Tracks a key until the handle is dropped; makes the entry if there is none. `None` when the
    /// table is full and does not purge, or everything in it is tracked.
    pub fn track(self: &Arc<Table>, key: &Key, now: Now) -> Option<Tracked> {
        let (mut shard, index, at) = self.obtain(key, now)?;
        shard.refresh(at);
        shard.hold(at);
        let woken = if shard.stale(at) { shard.publish(at) } else { 0 };
        self.leave(shard, index, woken);
        Some(Tracked { table: self.clone(), shard: index as u32, entry: at })
    }

    /// A value of a key by data type name, without tracking or refreshing it (`table_*` converters).
    pub fn value(&self, key: &Key, data: &str, now: Now) -> Option<u64> {
        let column = self.layout.columns()[self.layout.find(data)?];
        let (index, hash) = self.locate(key)?;
        let mut shard = self.enter(index, now);
        let Some(at) = shard.lookup(key, hash) else {
            self.leave(shard, index, 0);
            return None;
        };
        let value = shard.read(at, column, &self.shared.origins);
        self.leave(shard, index, 0);
        Some(value)
    }

    // ---- Runtime API ----

    /// Calls `each` for every entry. A shard is locked for some hundreds of calls at a time, so `each`
    /// must only format.
    pub fn dump(&self, now: Now, mut each: impl FnMut(Row)) {
        let mut values = Vec::with_capacity(self.layout.columns().len());
        self.walk(now, |index, shard, at| {
            if shard.is_live(at) {
                each(self.row(index, shard, at, &mut values));
            }
        });
    }

    /// The entry of a key, handed to `each`; whether there is one.
    pub fn show(&self, key: &Key, now: Now, each: impl FnOnce(Row)) -> bool {
        let Some((index, hash)) = self.locate(key) else { return false };
        let mut shard = self.enter(index, now);
        let found = shard.lookup(key, hash);
        if let Some(at) = found {
            each(self.row(index, &shard, at, &mut Vec::new()));
        }
        self.leave(shard, index, 0);
        found.is_some()
    }

    /// Each node's part of a key's values.
    pub fn detail(&self, key: &Key, now: Now) -> Vec<Part> {
        let Some((index, hash)) = self.locate(key) else { return Vec::new() };
        let mut shard = self.enter(index, now);
        let Some(at) = shard.lookup(key, hash) else {
            self.leave(shard, index, 0);
            return Vec::new();
        };
        let mut parts = Vec::new();
        for s in shard.chain(at) {
            let slot = shard.slots[s as usize];
            let Some(origin) = self.shared.origins.get(slot.origin) else { continue };
            let words = shard.slot_words(s);
            let clock = origin.clock(shard.now as u32);
            let read = |c: &Column| match c.of.kind {
                Kind::Rate => rate::read(&words[c.at..c.at + 3], clock, c.period),
                Kind::Counter | Kind::Register => u64::from(words[c.at]),
            };
            parts.push(Part {
                node: origin.node.clone(),
                incarnation: origin.incarnation,
                values: self.layout.columns().iter().map(read).collect(),
            });
        }
        self.leave(shard, index, 0);
        parts.sort_by(|a, b| (&a.node, a.incarnation).cmp(&(&b.node, b.incarnation)));
        parts
    }

    /// Sets values of a key on the whole cluster (`set table`), making the entry if there is none.
    /// The entry is begun anew: this node takes over what all had counted, and puts the values in.
    ///
    /// # Errors
    /// When a data type is not stored, or there is no room.
    pub fn set(&self, key: &Key, data: &[(&'static str, u64)], now: Now) -> Result<(), SetError> {
        for (name, _) in data {
            self.layout.find(name).ok_or(SetError::NotStored(name))?;
        }
        let (mut shard, index, at) = self.obtain(key, now).ok_or(SetError::Full)?;
        shard.refresh(at);
        let (floor, birth) = (self.shared.hlc.tick(now), self.shared.hlc.tick(now));
        let mut words = vec![0; self.layout.stride()];
        for column in self.layout.columns() {
            let wish = data.iter().find(|(name, _)| *name == column.of.name).map(|d| d.1);
            let value = wish.unwrap_or_else(|| shard.read(at, *column, &self.shared.origins));
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            match column.of.kind {
                Kind::Counter => words[column.at] = value,
                Kind::Rate if value > 0 => {
                    words[column.at..column.at + 2].copy_from_slice(&[shard.now as u32, value]);
                }
                Kind::Register if value > 0 => {
                    words[column.at..column.at + 3].copy_from_slice(&shard::register(value, birth));
                }
                Kind::Rate | Kind::Register => {}
            }
        }
        shard.drop_slots(at, |slot| slot.origin != CLEARED);
        shard.raise_floor(at, floor);
        let slot = shard.own(at, || birth);
        shard.slot_words_mut(slot).copy_from_slice(&words);
        let woken = shard.publish(at);
        self.leave(shard, index, woken);
        Ok(())
    }

    /// Removes a key on the whole cluster (`clear table … key`).
    pub fn clear_key(&self, key: &Key, now: Now) -> Cleared {
        let Some((index, hash)) = self.locate(key) else { return Cleared::Absent };
        let mut shard = self.enter(index, now);
        let (answer, woken) = match shard.lookup(key, hash) {
            None => (Cleared::Absent, 0),
            Some(at) if shard.entries[at as usize].uses > 0 => (Cleared::InUse, 0),
            Some(_) => {
                let at = shard.bury(key, hash, self.shared.hlc.tick(now));
                (Cleared::Removed, shard.publish(at))
            }
        };
        self.leave(shard, index, woken);
        answer
    }

    /// Removes the entries that `pick` picks (`clear table … data.…`); returns how many it could not
    /// because they are tracked.
    pub fn clear_where(&self, now: Now, mut pick: impl FnMut(&Row) -> bool) -> usize {
        let (mut in_use, mut values) = (0, Vec::new());
        for index in 0..self.shards.len() {
            let mut from = 0;
            loop {
                let mut shard = self.enter(index, now);
                let to = (from + WALK).min(shard.entries.len() as u32);
                let mut woken = 0;
                for at in from..to {
                    if !shard.is_live(at) || !pick(&self.row(index, &shard, at, &mut values)) {
                        continue;
                    }
                    if shard.entries[at as usize].uses > 0 {
                        in_use += 1;
                        continue;
                    }
                    let mut bytes = Vec::new();
                    let key = own_key(shard.keys.get(at), &mut bytes);
                    let at = shard.bury(&key, key.hash(self.shared.seed), self.shared.hlc.tick(now));
                    woken |= shard.publish(at);
                }
                let done = to as usize >= shard.entries.len();
                self.leave(shard, index, woken);
                if done {
                    break;
                }
                from = to;
            }
        }
        in_use
    }

    /// Removes all entries on the whole cluster (`clear table`). Tracked ones stay, emptied.
    pub fn clear(&self, now: Now) {
        self.raise_floor(self.shared.hlc.tick(now), now);
        self.shared.wake();
    }

    /// Whatever began before `floor` is cleared.
    pub(crate) fn raise_floor(&self, floor: u64, now: Now) {
        if self.floor.fetch_max(floor, Relaxed) >= floor {
            return;
        }
        for index in 0..self.shards.len() {
            let mut shard = self.enter(index, now);
            for at in 0..shard.entries.len() as u32 {
                if !shard.holds(at) {
                    continue;
                }
                shard.drop_slots(at, |slot| slot.birth <= floor);
                let e = shard.entries[at as usize];
                if e.uses == 0 && e.slots == shard::NIL {
                    shard.remove(at);
                }
            }
            shard.changes += 1;
            self.leave(shard, index, 0);
        }
    }

    /// The moment of the last `clear table`.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Relaxed)
    }

    /// Which table of its name it is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
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
    }

    /// A hash of everything replicated in the table, whatever the order: equal on two nodes if and only
    /// if they hold the same. Costs a walk over the shards that have changed since the last one.
    pub fn digest(&self, now: Now) -> u64 {
        let origins = self.shared.origins.list();
        let mut sum = 0u64;
        for index in 0..self.shards.len() {
            let cached = self.shards[index].lock().digest;
            let shard = self.enter(index, now);
            if let Some(d) = cached.filter(|d| d.changes == shard.changes && d.until > shard.now) {
                sum = sum.wrapping_add(d.value);
                self.leave(shard, index, 0);
                continue;
            }
            let changes = shard.changes;
            self.leave(shard, index, 0);
            let mut fresh = Digest { changes, until: u64::MAX, value: 0 };
            self.walk_shard(index, now, &mut |_, shard, at| {
                if shard.is_live(at) {
                    fresh.value = fresh.value.wrapping_add(entry_digest(shard, at, &origins));
                    let e = &shard.entries[at as usize];
                    fresh.until = fresh.until.min(if e.uses > 0 { u64::MAX } else { e.expire });
                }
            });
            sum = sum.wrapping_add(fresh.value);
            self.shards[index].lock().digest = Some(fresh);
        }
        sum
    }

    /// The digest if nothing has changed since the last call, else `None`: what nodes compare when they
    /// are quiet.
    pub(crate) fn quiet_digest(&self, now: Now) -> Option<u64> {
        let changes = self.shards.iter().map(|s| s.lock().changes).sum();
        let quiet = self.asked.swap(changes, Relaxed) == changes;
        quiet.then(|| self.digest(now))
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
    fn leave(&self, mut shard: MutexGuard<'_, Shard>, index: usize, woken: u32) {
        self.settle(&mut shard);
        drop(shard);
        if woken != 0 {
            for peer in 0..MAX_PEERS {
                if woken & 1 << peer != 0 {
                    // SeqCst: this store must be seen by a sender that has just re-armed the waker.
                    self.pending[peer].fetch_or(1 << index, SeqCst);
                }
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

fn own_key<'a>(key: Key, bytes: &'a mut Vec<u8>) -> Key<'a> {
    match key {
        Key::V4(n) => Key::V4(n),
        Key::V6(n) => Key::V6(n),
        Key::Int(n) => Key::Int(n),
        Key::Str(text) => {
            bytes.extend_from_slice(text);
            Key::Str(bytes)
        }
    }
}

fn entry_digest(shard: &Shard, at: u32, origins: &[Arc<Origin>]) -> u64 {
    let key = shard.keys.get(at).hash(0);
    let mut sum = 0u64;
    for s in shard.chain(at) {
        let slot = shard.slots[s as usize];
        let Some(origin) = origins.get(usize::from(slot.origin)) else { continue };
        let mut h = hash::word(key ^ origin.id, slot.birth);
        for &w in shard.slot_words(s) {
            h = hash::word(h, u64::from(w));
        }
        sum = sum.wrapping_add(h);
    }
    sum
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.name).field("used", &self.used()).finish_non_exhaustive()
    }
}

/// An entry that a session tracks (`track-sc0`). While any is held the entry neither expires nor is
/// evicted; dropping the last one starts its time again.
pub struct Tracked {
    table: Arc<Table>,
    shard: u32,
    entry: u32,
}

impl Tracked {
    /// Counts a connection.
    pub fn conn(&self, now: Now) {
        self.count(now, layout::CONN_CNT, layout::CONN_RATE);
    }

    /// Counts an HTTP request.
    pub fn http_req(&self, now: Now) {
        self.count(now, layout::HTTP_REQ_CNT, layout::HTTP_REQ_RATE);
    }

    /// Counts one more of whatever `gpc0` is used for; returns the cluster's sum.
    pub fn inc_gpc0(&self, now: Now) -> u64 {
        self.count(now, layout::GPC0, layout::GPC0);
        self.value("gpc0", now).unwrap_or(0)
    }

    /// A value by data type name, summed over the nodes; `None` when the table does not store it.
    pub fn value(&self, data: &str, now: Now) -> Option<u64> {
        let column = self.table.layout.columns()[self.table.layout.find(data)?];
        let shard = self.table.enter(self.shard as usize, now);
        let value = shard.read(self.entry, column, &self.table.shared.origins);
        self.table.leave(shard, self.shard as usize, 0);
        Some(value)
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn count(&self, now: Now, counter: u8, rate: u8) {
        let layout = &self.table.layout;
        let (counter, rate) = (layout.bit(counter), layout.bit(rate).filter(|c| c.of.kind == Kind::Rate));
        let mut shard = self.table.enter(self.shard as usize, now);
        shard.refresh(self.entry);
        let mut woken = 0;
        if counter.is_some() || rate.is_some() {
            let slot = shard.own(self.entry, || self.table.shared.hlc.tick(now));
            let tick = shard.now as u32;
            let words = shard.slot_words_mut(slot);
            if let Some(c) = counter {
                words[c.at] = words[c.at].saturating_add(1);
            }
            if let Some(c) = rate {
                rate::add(&mut words[c.at..c.at + 3], 1, tick, c.period);
            }
            woken = shard.publish(self.entry);
        } else if shard.stale(self.entry) {
            woken = shard.publish(self.entry);
        }
        self.table.leave(shard, self.shard as usize, woken);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut shard = self.table.shards[self.shard as usize].lock();
        shard.release(self.entry);
        let woken = if shard.stale(self.entry) { shard.publish(self.entry) } else { 0 };
        self.table.leave(shard, self.shard as usize, woken);
    }
}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracked").field("table", &self.table.name).finish_non_exhaustive()
    }
}

const _: () = assert!(SELF == 0);
