//! Entries for peers that are no nodes: sums go out, absolute values come in ([`crate::peers`]).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use phalanx_config::model::KeyType;

use super::codec::Cut;
use super::key::Key;
use super::layout::{Column, Kind};
use super::origin::SELF;
use super::shard::{NIL, Shard};
use super::{Table, WALK, lookup, rate, shard};
use crate::peers::{Entry, wire};
use crate::time::Now;

/// Entries of one cut.
const CUT: u32 = 128;

/// A value as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A counter.
    Number(u64),
    /// A tag or an id: the last one written counts.
    Register(u64),
    /// A sliding window.
    Rate {
        /// Milliseconds since the current window began.
        age: u32,
        /// Its events.
        current: u32,
        /// Those of the window before.
        previous: u32,
    },
    /// A name.
    Text(Arc<str>),
}

impl Value {
    /// A number as that of a register.
    pub(crate) fn register(self) -> Value {
        match self {
            Value::Number(n) => Value::Register(n),
            other => other,
        }
    }

    /// What it is so many milliseconds later.
    pub(crate) fn aged(&self, since: u32) -> Value {
        match self {
            Value::Rate { age, current, previous } => {
                Value::Rate { age: age.saturating_add(since), current: *current, previous: *previous }
            }
            other => other.clone(),
        }
    }

    /// Whether somebody who has this value needs `ours`, that was `then` when they said so: `None` if
    /// it does; else whether this value is ahead of `ours`.
    pub(crate) fn supersedes(&self, ours: &Value, then: Option<&Value>, period: u32) -> Option<bool> {
        match (self, ours) {
            (Value::Number(theirs), Value::Number(n)) => match then {
                // Lowered here since then.
                Some(Value::Number(then)) if n < then => None,
                _ => (n <= theirs).then_some(n < theirs),
            },
            (Value::Rate { .. }, Value::Rate { .. }) => {
                let (theirs, n) = (self.reading(period), ours.reading(period));
                (n <= theirs).then_some(n < theirs)
            }
            _ if self == ours => Some(false),
            // As it was then: theirs is the later one, if it is a value at all.
            _ => (then == Some(ours) && *self != Value::Register(0)).then_some(true),
        }
    }

    /// Events per period of a window.
    fn reading(&self, period: u32) -> u64 {
        let Value::Rate { age, current, previous } = self else { return 0 };
        // Its age may be anything that a peer has sent.
        if *age / 2 > period {
            return 0;
        }
        rate::read(&[0u32.wrapping_sub(*age), *current, *previous], 0, period.max(1))
    }
}

/// A column that travels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignColumn {
    /// HAProxy's number of its data type.
    pub(crate) bit: u8,
    /// Milliseconds of a rate, else 0.
    pub(crate) period: u32,
    /// Its place among the table's columns.
    pub(crate) place: usize,
    /// The last one written counts.
    pub(crate) register: bool,
}

/// An entry that came.
pub(crate) struct Lesson<'a> {
    /// Milliseconds that it has left, if that was said.
    pub(crate) life: Option<u64>,
    /// Values by place among the table's columns.
    pub(crate) values: &'a [(usize, Value)],
}

/// Where a lesson went, and its position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) shard: u32,
    pub(crate) entry: u32,
    pub(crate) seq: u64,
}

impl Table {
    /// HAProxy's number of the key type and the bytes that a definition gives a key.
    pub(crate) fn foreign_key(&self) -> (u64, usize) {
        match self.kind {
            KeyType::Integer => (2, 4),
            KeyType::Ip => (4, 4),
            KeyType::Ipv6 => (5, 16),
            // With the byte that ends it.
            KeyType::String(len) => (6, len + 1),
            KeyType::Binary(len) => (7, len),
        }
    }

    /// The columns that travel: all but gauges.
    pub(crate) fn foreign_columns(&self) -> Vec<ForeignColumn> {
        let columns = self.layout.columns().iter().enumerate().filter(|(_, c)| c.of.kind != Kind::Gauge);
        let travels = |(place, c): (usize, &Column)| ForeignColumn {
            bit: c.of.bit,
            period: c.period,
            place,
            register: c.of.kind == Kind::Register,
        };
        columns.map(travels).collect()
    }

    /// The next entries of one shard that this node has changed, for a peer that is no node. As
    /// [`Table::cut_updates`], with sums over all nodes.
    pub(crate) fn cut_sums(&self, peer: usize, index: usize, now: Now, mut each: impl FnMut(Entry)) -> Cut {
        let mut shard = self.enter(index, now);
        let mut cut = Cut::default();
        let Some(mut at) = shard.updates.cursors.get(peer).filter(|c| c.active).map(|c| c.next) else {
            self.leave(shard, index, 0);
            return cut;
        };
        while at != NIL && cut.entries < CUT {
            cut.reached = shard.entries[at as usize].seq;
            if shard.is_live(at) {
                self.foreign(&shard, at, &mut each);
            }
            // Cleared and expired ones count too: a cut ends.
            cut.entries += 1;
            at = shard.newer(at);
        }
        shard.updates.cursors[peer].next = at;
        cut.more = at != NIL;
        if !cut.more {
            cut.reached = shard.updates.seq;
        }
        self.leave(shard, index, 0);
        cut
    }

    /// The next entries of one shard from index `from` on, with sums over all nodes.
    pub(crate) fn cut_all_sums(&self, index: usize, from: u64, now: Now, mut each: impl FnMut(Entry)) -> Cut {
        let shard = self.enter(index, now);
        let (mut at, end) = (from, shard.entries.len() as u64);
        let mut cut = Cut::default();
        while at < end && at - from < 2 * u64::from(WALK) && cut.entries < CUT {
            if shard.is_live(at as u32) {
                self.foreign(&shard, at as u32, &mut each);
                cut.entries += 1;
            }
            at += 1;
        }
        (cut.reached, cut.more) = (at, at < end);
        self.leave(shard, index, 0);
        cut
    }

    fn foreign(&self, shard: &Shard, at: u32, each: &mut impl FnMut(Entry)) {
        let mut key = Vec::with_capacity(20);
        match shard.keys.get(at) {
            Key::V4(n) | Key::Int(n) => key.extend_from_slice(&n.to_be_bytes()),
            Key::V6(n) => key.extend_from_slice(&n.to_be_bytes()),
            Key::Str(text) => {
                if matches!(self.kind, KeyType::String(_)) {
                    wire::put_number(&mut key, text.len() as u64);
                }
                key.extend_from_slice(text);
            }
        }
        let value = |c: &Column| match c.of.kind {
            Kind::Rate => self.window(shard, at, *c),
            Kind::Text => {
                let text = self.shared.texts.get(shard.read(at, *c, &self.shared.origins) as u32);
                Value::Text(text.unwrap_or_else(|| "".into()))
            }
            Kind::Register => Value::Register(shard.read(at, *c, &self.shared.origins)),
            _ => Value::Number(shard.read(at, *c, &self.shared.origins)),
        };
        let columns = self.layout.columns().iter().filter(|c| c.of.kind != Kind::Gauge);
        let values: Vec<Value> = columns.map(value).collect();
        let e = &shard.entries[at as usize];
        let life = match (shard.shape.ttl, e.uses) {
            (None, _) => u64::from(u32::MAX),
            (Some(ttl), 1..) => ttl,
            (Some(_), 0) => e.expire.saturating_sub(shard.now),
        };
        let life = u32::try_from(life).unwrap_or(u32::MAX);
        each(Entry { at, seq: e.seq, key: &key, life, values: &values });
    }

    /// One window that reads as the sum of all nodes' windows do now: the age of the busiest of them.
    fn window(&self, shard: &Shard, at: u32, column: Column) -> Value {
        let (mut age, mut current, mut previous, mut most) = (0, 0u32, 0u32, 0);
        for s in shard.chain(at) {
            let slot = &shard.slots[s as usize];
            if !slot.role.is_data() {
                // Set or cleared: only the sum says what is left of the windows.
                let sum = shard.read(at, column, &self.shared.origins) / u64::from(column.factor.max(1));
                let current = u32::try_from(sum).unwrap_or(u32::MAX);
                return Value::Rate { age: 0, current, previous: 0 };
            }
            let origin = slot.origin;
            let now = shard.now as u32;
            let now = if origin == SELF { now } else { shard::clock(&self.shared.origins, origin, now) };
            let w = &shard.slot_words(s)[column.range()];
            let elapsed = (now.wrapping_sub(w[0]) as i32).max(0) as u32;
            let (elapsed, now_in, before) = match elapsed / column.period.max(1) {
                0 => (elapsed, w[1], w[2]),
                1 => (elapsed - column.period, 0, w[1]),
                _ => (0, 0, 0),
            };
            if now_in + before > most {
                (most, age) = (now_in + before, elapsed);
            }
            current = current.saturating_add(now_in);
            previous = previous.saturating_add(before);
        }
        Value::Rate { age, current, previous }
    }

    /// The key that these bytes on the wire are, if it may be in this table.
    fn foreign_bytes<'a>(&self, key: &'a [u8]) -> Option<Key<'a>> {
        let key = match self.kind {
            KeyType::Ip => Key::V4(Ipv4Addr::from(<[u8; 4]>::try_from(key).ok()?).to_bits()),
            KeyType::Integer => Key::Int(u32::from_be_bytes(key.try_into().ok()?)),
            KeyType::Ipv6 => Key::V6(Ipv6Addr::from(<[u8; 16]>::try_from(key).ok()?).to_bits()),
            KeyType::String(_) | KeyType::Binary(_) => Key::Str(key),
        };
        key.fits(self.kind).then_some(key)
    }

    /// The sums of a key, given by its bytes on the wire, in the order of [`Table::foreign_columns`];
    /// none if there is no entry.
    pub(crate) fn foreign_sums(&self, key: &[u8], now: Now) -> Vec<Value> {
        let Some(key) = self.foreign_bytes(key) else { return Vec::new() };
        let Some((index, hash)) = self.locate(&key) else { return Vec::new() };
        let mut shard = self.enter(index, now);
        let mut sums = Vec::new();
        if let Some(at) = shard.lookup(&key, hash) {
            self.foreign(&shard, at, &mut |entry: Entry| sums = entry.values.to_vec());
        }
        self.leave(shard, index, 0);
        sums
    }

    /// Takes what a peer that is no node has of a key, given by its bytes on the wire: this node's part of
    /// every counter grows until the sum is no less than the peer's, and its registers become the peer's.
    /// Returns where it went, if it changed anything.
    pub(crate) fn learn(&self, key: &[u8], lesson: &Lesson, now: Now) -> Option<Mark> {
        let key = self.foreign_bytes(key).filter(|_| lesson.life != Some(0))?;
        let (mut shard, index, at) = self.obtain(&key, now)?;
        let fresh = shard.entries[at as usize].seq == 0 && shard.slot_of(at, SELF).is_none();
        match (lesson.life, shard.shape.ttl) {
            (Some(life), Some(ttl)) => {
                let expire = shard.now + life.min(ttl);
                if fresh || expire > shard.entries[at as usize].expire {
                    shard.set_expire(at, expire);
                }
            }
            _ => shard.refresh(at),
        }
        let mut changed = false;
        for (place, value) in lesson.values {
            let Some(column) = self.layout.columns().get(*place).copied() else { continue };
            changed |= self.learn_value(&mut shard, at, column, value, now);
        }
        let woken = if changed || shard.stale(at) { shard.publish(at) } else { 0 };
        let seq = shard.entries[at as usize].seq;
        self.leave(shard, index, woken);
        (changed && seq != 0).then_some(Mark { shard: index as u32, entry: at, seq })
    }

    fn learn_value(&self, shard: &mut Shard, at: u32, column: Column, value: &Value, now: Now) -> bool {
        let have = shard.read(at, column, &self.shared.origins);
        let tick = shard.now as u32;
        let own = |shard: &mut Shard| shard.own(at, &self.shared.origins, || self.shared.hlc.tick(now));
        match (column.of.kind, value) {
            (Kind::Counter | Kind::Counter64, Value::Number(n)) if *n > have => {
                let slot = own(shard);
                lookup::add(shard.slot_words_mut(slot), column, n - have, tick);
            }
            (Kind::Rate, Value::Rate { age, current, previous }) => {
                let theirs = [tick.wrapping_sub(*age), *current, *previous];
                let read =
                    if *age > 2 * column.period { 0 } else { rate::read(&theirs, tick, column.period) };
                if read <= have {
                    return false;
                }
                let slot = own(shard);
                let words = shard.slot_words_mut(slot);
                if have == 0 {
                    // Nobody else counts: the peer's own window, with its age.
                    words[column.range()].copy_from_slice(&theirs);
                } else {
                    lookup::add(words, column, read - have, tick);
                }
            }
            (Kind::Register, Value::Number(n) | Value::Register(n)) if *n != have && *n != 0 => {
                let (id, hlc) = (u32::try_from(*n).unwrap_or(u32::MAX), self.shared.hlc.tick(now));
                let slot = own(shard);
                shard.slot_words_mut(slot)[column.range()].copy_from_slice(&shard::register(id, hlc));
            }
            (Kind::Text, Value::Text(text)) if !text.is_empty() => {
                let id = self.shared.texts.intern(text);
                if u64::from(id) == have {
                    return false;
                }
                let hlc = self.shared.hlc.tick(now);
                let slot = own(shard);
                shard.slot_words_mut(slot)[column.range()].copy_from_slice(&shard::register(id, hlc));
            }
            _ => return false,
        }
        true
    }
}
