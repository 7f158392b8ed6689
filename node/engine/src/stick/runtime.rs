//! What the Runtime API does with a table: `show`, `set` and `clear`, on the whole cluster.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::layout::{Column, Data, Kind};
use super::origin::SELF;
use super::shard::Role;
use super::{Key, Table, WALK, shard};
use crate::time::Now;

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

/// What a part of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// What a run of a node that is heard of has counted.
    Live,
    /// What a run that is over, or that is not heard of, has counted: its gauges do not count.
    Dead,
    /// What `set` or `clear` left; what nodes had counted then is in no part any more.
    Set,
}

/// One node's part of an entry. Parts add up to what the entry shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the node.
    pub node: String,
    /// Which run of it.
    pub incarnation: u64,
    /// What it is.
    pub kind: PartKind,
    /// Its values, in the order of [`Table::layout`]; of registers what it wrote last.
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
    NotStored(Data),
    /// The table is full and does not purge.
    Full,
}

impl Table {
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
            let kind = match slot.role {
                Role::Set => PartKind::Set,
                role if !role.is_data() => continue,
                _ if origin.lives(shard.now) => PartKind::Live,
                _ => PartKind::Dead,
            };
            let read = |c: &Column| shard.part(at, s, *c, &self.shared.origins);
            let values = self.layout.columns().iter().map(read).collect();
            parts.push(Part { node: origin.node.clone(), incarnation: origin.incarnation, kind, values });
        }
        self.leave(shard, index, 0);
        parts.sort_by(|a, b| (&a.node, a.incarnation).cmp(&(&b.node, b.incarnation)));
        parts
    }

    /// Sets values of a key on the whole cluster (`set table`), making the entry if there is none. What
    /// other nodes count from then on adds to them, and what this node does not know yet.
    ///
    /// # Errors
    /// When a data type is not stored, or there is no room.
    pub fn set(&self, key: &Key, data: &[(Data, u64)], now: Now) -> Result<(), SetError> {
        for &(data, _) in data {
            self.layout.exactly(data).ok_or(SetError::NotStored(data))?;
        }
        let (mut shard, index, at) = self.obtain(key, now).ok_or(SetError::Full)?;
        shard.refresh(at);
        self.put(&mut shard, at, data, now);
        let woken = shard.publish(at);
        self.leave(shard, index, woken);
        Ok(())
    }

    /// Puts values into an entry.
    pub(super) fn put(&self, shard: &mut shard::Shard, at: u32, data: &[(Data, u64)], now: Now) {
        let hlc = self.shared.hlc.tick(now);
        let mut words = vec![0; self.layout.stride()];
        let mut named = Vec::new();
        for &(data, wide) in data {
            let Some(column) = self.layout.column(data) else { continue };
            let value = u32::try_from(wide / u64::from(column.factor)).unwrap_or(u32::MAX);
            let words = &mut words[column.range()];
            match column.of.kind {
                Kind::Register | Kind::Text => {
                    let slot = shard.own(at, &self.shared.origins, || hlc);
                    shard.slot_words_mut(slot)[column.range()].copy_from_slice(&shard::register(value, hlc));
                    continue;
                }
                Kind::Counter | Kind::Gauge => words[0] = value,
                Kind::Counter64 => shard::put64(words, wide),
                Kind::Rate if value > 0 => words[..2].copy_from_slice(&[shard.now as u32, value]),
                Kind::Rate => {}
            }
            named.push(column.at);
        }
        if !named.is_empty() {
            let named = |c: &Column| named.contains(&c.at);
            shard.reset(at, hlc, &words, named, false, &self.shared.origins);
        }
    }

    /// Clears an entry: what counts from now on, and what other nodes have counted that is not known
    /// here yet, stays. Gauges do: what goes on goes on.
    fn clear_entry(&self, shard: &mut shard::Shard, at: u32, now: Now) {
        let hlc = self.shared.hlc.tick(now);
        let words = vec![0; self.layout.stride()];
        shard.reset(at, hlc, &words, |c| c.of.kind != Kind::Gauge, true, &self.shared.origins);
    }

    /// Removes a key on the whole cluster (`clear table … key`).
    pub fn clear_key(&self, key: &Key, now: Now) -> Cleared {
        let Some((index, hash)) = self.locate(key) else { return Cleared::Absent };
        let mut shard = self.enter(index, now);
        let (answer, woken) = match shard.lookup(key, hash) {
            None => (Cleared::Absent, 0),
            Some(at) if shard.entries[at as usize].uses > 0 => (Cleared::InUse, 0),
            Some(at) => {
                self.clear_entry(&mut shard, at, now);
                (Cleared::Removed, shard.publish(at))
            }
        };
        self.leave(shard, index, woken);
        answer
    }

    /// Removes the entries that `pick` picks (`clear table … data.…`); returns how many it could not
    /// because they are tracked.
    pub fn clear_where(&self, now: Now, mut pick: impl FnMut(&Row) -> bool) -> usize {
        let mut values = Vec::new();
        let mut in_use = 0;
        self.clear_each(now, |index, shard, at| {
            if !pick(&self.row(index, shard, at, &mut values)) {
                return false;
            }
            let tracked = shard.entries[at as usize].uses > 0;
            in_use += usize::from(tracked);
            !tracked
        });
        in_use
    }

    /// Removes all entries on the whole cluster (`clear table`). Tracked ones stay, emptied.
    ///
    /// A table of so many entries that there is no room to remember each of them is cleared as a whole,
    /// by the clock: then what other nodes have counted in what began before is dropped with the rest.
    pub fn clear(&self, now: Now) {
        if self.used() <= self.shards.len() * shard::MAX_TOMBS as usize / 2 {
            self.clear_each(now, |_, _, _| true);
        } else {
            self.raise_floor(self.shared.hlc.tick(now), now);
            self.shared.wake();
        }
    }

    fn clear_each(&self, now: Now, mut pick: impl FnMut(usize, &shard::Shard, u32) -> bool) {
        for index in 0..self.shards.len() {
            let mut from = 0;
            loop {
                let mut shard = self.enter(index, now);
                let to = (from + WALK).min(shard.entries.len() as u32);
                let mut woken = 0;
                for at in from..to {
                    if shard.is_live(at) && pick(index, &shard, at) {
                        self.clear_entry(&mut shard, at, now);
                        woken |= shard.publish(at);
                    }
                }
                let done = to as usize >= shard.entries.len();
                self.leave(shard, index, woken);
                if done {
                    break;
                }
                from = to;
            }
        }
    }

    /// Whatever began before `floor` is cleared.
    pub(crate) fn raise_floor(&self, floor: u64, now: Now) {
        if self.floor.fetch_max(floor, Relaxed) >= floor {
            return;
        }
        for index in 0..self.shards.len() {
            let mut shard = self.enter(index, now);
            let mut woken = 0;
            for at in 0..shard.entries.len() as u32 {
                if !shard.holds(at) {
                    continue;
                }
                let gauges = self.own_gauges(&shard, at);
                shard.drop_slots(at, |slot| slot.birth <= floor);
                let e = shard.entries[at as usize];
                if !gauges.is_empty() {
                    // What goes on here goes on, in a slot begun anew.
                    let birth = self.shared.hlc.tick(now);
                    let slot = shard.own(at, &self.shared.origins, || birth);
                    for (column, words) in gauges {
                        shard.slot_words_mut(slot)[column.range()].copy_from_slice(&words);
                    }
                    woken |= shard.publish(at);
                } else if e.uses == 0 && e.slots == shard::NIL {
                    shard.remove(at);
                }
            }
            shard.changes += 1;
            self.leave(shard, index, woken);
        }
    }

    fn own_gauges(&self, shard: &shard::Shard, at: u32) -> Vec<(Column, Vec<u32>)> {
        let Some(own) = shard.slot_of(at, SELF) else { return Vec::new() };
        let words = |c: &Column| (*c, shard.slot_words(own)[c.range()].to_vec());
        let gauges = self.layout.columns().iter().filter(|c| c.of.kind == Kind::Gauge).map(words);
        gauges.filter(|(_, words)| words[0] > 0).collect()
    }

    /// The moment of the last `clear table`.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Relaxed)
    }

    /// Which table of its name it is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}
