//! What the Runtime API does with a table: `show`, `set` and `clear`, on the whole cluster.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::layout::{Column, Data, Kind};
use super::origin::CLEARED;
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
            let words = shard.slot_words(s);
            let clock = origin.clock(shard.now as u32);
            let live = origin.lives(shard.now);
            let read = |c: &Column| shard::value(&words[c.range()], *c, clock, live);
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
    pub fn set(&self, key: &Key, data: &[(Data, u64)], now: Now) -> Result<(), SetError> {
        for &(data, _) in data {
            self.layout.exactly(data).ok_or(SetError::NotStored(data))?;
        }
        let (mut shard, index, at) = self.obtain(key, now).ok_or(SetError::Full)?;
        shard.refresh(at);
        let (floor, birth) = (self.shared.hlc.tick(now), self.shared.hlc.tick(now));
        let mut words = vec![0; self.layout.stride()];
        for column in self.layout.columns() {
            let wish = data.iter().find(|(data, _)| *data == column.data()).map(|d| d.1);
            let wide = wish.unwrap_or_else(|| shard.read(at, *column, &self.shared.origins));
            let value = u32::try_from(wide / u64::from(column.factor)).unwrap_or(u32::MAX);
            let words = &mut words[column.range()];
            match column.of.kind {
                Kind::Counter => words[0] = value,
                Kind::Counter64 => shard::put64(words, wide),
                Kind::Gauge => words.copy_from_slice(&[value, 1]),
                Kind::Rate if value > 0 => words[..2].copy_from_slice(&[shard.now as u32, value]),
                Kind::Register | Kind::Text if value > 0 => {
                    words.copy_from_slice(&shard::register(value, birth));
                }
                Kind::Rate | Kind::Register | Kind::Text => {}
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
