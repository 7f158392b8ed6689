//! Entries as bytes between nodes, and how they are merged into a table.
//!
//! ```text
//! entry := key life slots slot*
//! key   := 4 bytes (ip, integer) | 16 bytes (ipv6) | length bytes (string, binary)   little endian
//! life  := 0 (never expires) | 1 + milliseconds left
//! slot  := head birth column*     head = origin, as named before on the stream, times 8, plus the role;
//!                                 a role without columns (cleared) ends with its birth of 8 bytes
//! column:= counter value | tick(4 bytes) current previous | gauge value changes
//!        | register value clock(8 bytes) | length text clock(8 bytes)
//! ```
//! Bare numbers are LEB128. Columns come in the sender's order, which it declared with the table.
//! Reading trusts nothing: a short, long or impossible entry ends the batch with an error.

use std::sync::Arc;

use phalanx_config::model::KeyType;
use smallvec::SmallVec;

use super::key::{Key, OwnKey};
use super::layout::{Column, Data, Kind, Layout};
use super::origin::{Hlc, SELF};
use super::rate;
use super::shard::{NIL, Role, Shard, Slot, get64, hlc, put64};
use super::texts::{self, Texts};
use super::{Table, WALK};
use crate::planted::{self, Fault};
use crate::time::Now;

/// The peer's bytes are not entries of this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Slots one entry can have on the wire: five nodes and hundreds of restarts.
const MAX_SLOTS: u64 = 4096;
/// A batch is closed at this size.
pub(crate) const BATCH_BYTES: usize = 24 << 10;

/// How to read entries of a sender's table.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    key: KeyType,
    columns: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    kind: Kind,
    /// First word in our slots; `None` = not stored here.
    at: Option<usize>,
}

impl Reading {
    /// For a sender whose columns are these (name and period), of a kind that we know; `None` when it
    /// has one that we have never heard of, so that its width is unknown.
    pub(crate) fn new(key: KeyType, theirs: &[(String, u32)], ours: &Layout) -> Option<Reading> {
        let mut columns: Vec<Place> = Vec::with_capacity(theirs.len());
        for (at, (name, period)) in theirs.iter().enumerate() {
            let (name, factor) = match name.split_once('/') {
                Some((name, factor)) => (name, factor.parse().ok()?),
                None => (name.as_str(), 1),
            };
            let of = super::by_name(name)?;
            // Elements of an array are so many columns of one name.
            let before = theirs[..at].iter().filter(|(other, _)| other == name).count();
            let column = Data::named(name, u8::try_from(before).ok()?).and_then(|data| ours.exactly(data));
            let column = column.filter(|c| (c.period, c.factor) == (*period, factor));
            columns.push(Place { kind: of.kind, at: column.map(|c| c.at) });
        }
        Some(Reading { key, columns })
    }
}

/// The columns of a layout as [`Reading::new`] wants them.
pub(crate) fn columns(layout: &Layout) -> Vec<(String, u32)> {
    let name = |c: &Column| match c.factor {
        1 => c.of.name.to_string(),
        factor => format!("{}/{factor}", c.of.name),
    };
    layout.columns().iter().map(|c| (name(c), c.period)).collect()
}

/// What [`Table::merge`] needs besides the bytes.
pub(crate) struct Source<'a> {
    pub(crate) reading: &'a Reading,
    /// Local origin by the sender's number.
    pub(crate) origins: &'a dyn Fn(u16) -> Option<u16>,
    /// Milliseconds that the batch was held up on its way.
    pub(crate) late: u64,
}

/// One batch out of a table.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    pub(crate) entries: u32,
    /// The log position reached (updates) or the index to go on from (teaching).
    pub(crate) reached: u64,
    pub(crate) more: bool,
}

impl Table {
    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Shards with news for a peer, taken.
    pub(crate) fn take_pending(&self, peer: usize) -> u64 {
        self.pending[peer].swap(0, std::sync::atomic::Ordering::SeqCst)
    }

    /// The next own changes for a peer out of one shard.
    pub(crate) fn cut_updates(
        &self,
        peer: usize,
        index: usize,
        now: Now,
        out: &mut Vec<u8>,
        origin: impl FnMut(u16),
    ) -> Cut {
        let mut origin = origin;
        let own = |slot: &Slot| slot.origin == SELF || !slot.role.is_data();
        let mut shard = self.enter(index, now);
        let mut cut = Cut::default();
        let Some(mut at) = shard.updates.cursors.get(peer).filter(|c| c.active).map(|c| c.next) else {
            self.leave(shard, index, 0);
            return cut;
        };
        while at != NIL && cut.entries < WALK && out.len() < BATCH_BYTES {
            cut.reached = shard.entries[at as usize].seq;
            if shard.holds(at) {
                encode(&shard, at, own, &self.shared.texts, out, &mut origin);
                cut.entries += 1;
            }
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

    /// The next entries of one shard, with all that is known of them, from index `from` on. With `runs`
    /// only the slots of these, and entries that have some.
    pub(crate) fn cut_teach(
        &self,
        index: usize,
        from: u64,
        runs: Option<&[u16]>,
        now: Now,
        out: &mut Vec<u8>,
        origin: impl FnMut(u16),
    ) -> Cut {
        let mut origin = origin;
        let wanted = |slot: &Slot| runs.is_none_or(|runs| slot.role.is_data() && runs.contains(&slot.origin));
        let shard = self.enter(index, now);
        let (mut at, end) = (from, shard.entries.len() as u64);
        let mut cut = Cut::default();
        // What is passed over is cheap, but not free: the lock is let go in between.
        let far = if runs.is_some() { 4 } else { 2 } * u64::from(WALK);
        while at < end && at - from < far && cut.entries < WALK && out.len() < BATCH_BYTES {
            let any = || runs.is_none() || shard.chain(at as u32).any(|s| wanted(&shard.slots[s as usize]));
            if shard.holds(at as u32) && any() {
                encode(&shard, at as u32, wanted, &self.shared.texts, out, &mut origin);
                cut.entries += 1;
            }
            at += 1;
        }
        (cut.reached, cut.more) = (at, at < end);
        self.leave(shard, index, 0);
        cut
    }

    /// The peer listens from now on, and has what came before `positions` (none = nothing; `skip` = it
    /// will be taught everything, so that only what changes from now on is news).
    pub(crate) fn attach(&self, peer: usize, positions: &[u64], skip: bool) {
        let mut pending = 0;
        for (index, shard) in self.shards.iter().enumerate() {
            let mut shard = shard.lock();
            let seq = if skip { u64::MAX } else { positions.get(index).copied().unwrap_or(0) };
            if shard.rewind(peer, seq) {
                pending |= 1 << index;
            }
        }
        self.pending[peer].fetch_or(pending, std::sync::atomic::Ordering::SeqCst);
    }

    /// The peer is gone: nothing is kept for it.
    pub(crate) fn detach(&self, peer: usize) {
        for shard in &self.shards {
            if let Some(cursor) = shard.lock().updates.cursors.get_mut(peer) {
                cursor.active = false;
            }
        }
    }

    /// The log position of every shard.
    pub(crate) fn positions(&self) -> Vec<u64> {
        self.shards.iter().map(|s| s.lock().updates.seq).collect()
    }

    /// Merges a batch of entries.
    ///
    /// # Errors
    /// When the bytes are not what was declared; what came before the fault is merged.
    pub(crate) fn merge(&self, bytes: &[u8], from: &Source, now: Now) -> Result<usize, Malformed> {
        let mut input = Input(bytes);
        let mut count = 0;
        let target = self.write_to.lock().upgrade();
        let mut incoming = Incoming::default();
        while !input.0.is_empty() {
            let mut read = Ok(());
            incoming.clear();
            while read.is_ok() && !input.0.is_empty() && incoming.entries.len() < AT_ONCE {
                read = incoming.read(&mut input, from, self);
            }
            self.shared.hlc.observe(incoming.latest);
            self.merge_read(&mut incoming, now);
            if let Some(target) = &target {
                incoming.entries.iter().for_each(|entry| self.write_on(&entry.key, target, now));
            }
            count += incoming.entries.len();
            read?;
        }
        Ok(count)
    }

    /// Merges what was read, shard by shard: one lock for all that goes into it, and the places in
    /// memory looked up one after the other before any is written, so that the processor waits for
    /// several of them at once.
    fn merge_read(&self, incoming: &mut Incoming, now: Now) {
        let Incoming { entries, slots, words, order, .. } = incoming;
        let mut ends = [0u32; super::MAX_SHARDS + 1];
        entries.iter().for_each(|entry| ends[entry.shard + 1] += 1);
        (1..ends.len()).for_each(|at| ends[at] += ends[at - 1]);
        order.clear();
        order.resize(entries.len(), 0);
        let mut next = ends;
        for (at, entry) in entries.iter().enumerate() {
            order[next[entry.shard] as usize] = at as u32;
            next[entry.shard] += 1;
        }
        for index in 0..self.shards.len() {
            let here = &order[ends[index] as usize..ends[index + 1] as usize];
            if here.is_empty() {
                continue;
            }
            let floor = self.floor();
            let mut shard = self.enter(index, now);
            for &at in here {
                let entry = &mut entries[at as usize];
                entry.seen = shard.find(&entry.key, entry.hash).unwrap_or(NIL);
            }
            let mut touched = 0u32;
            for &at in here {
                let seen = entries[at as usize].seen;
                if seen != NIL {
                    touched ^= shard.entries[seen as usize].slots;
                }
            }
            std::hint::black_box(touched);
            for &at in here {
                let entry = &entries[at as usize];
                let slots = &slots[entry.slots.clone()];
                if slots.iter().all(|slot| slot.birth > floor) {
                    self.merge_entry(&mut shard, entry, &News { slots, words });
                } else {
                    let kept: Vec<_> = slots.iter().filter(|slot| slot.birth > floor).cloned().collect();
                    self.merge_entry(&mut shard, entry, &News { slots: &kept, words });
                }
            }
            self.leave(shard, index, 0);
        }
    }

    /// `write-to`: what an entry has in registers goes into another table's entry of the same key.
    fn write_on(&self, key: &Key, target: &Table, now: Now) {
        let Some((index, hash)) = self.locate(key) else { return };
        let mut shard = self.enter(index, now);
        let mut values: SmallVec<[(Data, u32); 4]> = SmallVec::new();
        if let Some(at) = shard.lookup(key, hash) {
            let is_register = |c: &&Column| matches!(c.of.kind, Kind::Register | Kind::Text);
            let read = |c: &Column| (c.data(), shard.read(at, *c, &self.shared.origins) as u32);
            let registers = self.layout.columns().iter().filter(is_register);
            values.extend(registers.map(read).filter(|(_, value)| *value != 0));
        }
        self.leave(shard, index, 0);
        if !values.is_empty() {
            target.write_registers(key, &values, now);
        }
    }

    fn merge_entry(&self, shard: &mut Shard, entry: &IncomingEntry, news: &News) {
        let (key, hash) = (&entry.key, entry.hash);
        let expire = match (shard.shape.ttl, entry.life) {
            (None, _) => u64::MAX,
            (Some(_), None) => shard.horizon(),
            (Some(_), Some(_)) if planted::is(Fault::LifeAnew) => shard.horizon(),
            (Some(ttl), Some(left)) => shard.now + left.min(ttl),
        };
        if news.slots.is_empty() || expire <= shard.now {
            return;
        }
        // An entry before it in the same batch may have changed what was there.
        let still = Some(entry.seen).filter(|at| shard.is_key(*at, key));
        let mut seen = still.or_else(|| shard.find(key, hash));
        if let Some(at) = seen.filter(|at| shard.expired(*at)) {
            shard.remove(at);
            seen = None;
        }
        let found = seen.filter(|at| shard.is_live(*at));
        let plain = news.slots.iter().all(|slot| slot.role.is_data());
        if let Some(at) = found {
            if expire > shard.entries[at as usize].expire {
                shard.set_expire(at, expire);
            }
            self.merge_slots(shard, at, news);
            if !plain && shard.is_void(at, &self.shared.origins) {
                shard.bury(at);
            }
        } else if plain && seen.is_none() {
            if self.make_room(shard, expire) {
                let at = shard.create_new(key, hash, expire);
                self.merge_slots(shard, at, news);
            }
        } else {
            // First into a tombstone, then it shows whether anything counts in it.
            let at = shard.find_or_bury(key, hash);
            self.merge_slots(shard, at, news);
            if shard.is_void(at, &self.shared.origins) {
                shard.drop_others(at);
            } else if self.make_room(shard, expire) {
                shard.create(key, hash, expire);
            } else {
                shard.remove(at);
            }
        }
    }

    /// Whether the table takes one more entry from a peer. A full one gives up an entry for one that
    /// lasts longer, so that nodes with the same news end up with the same entries.
    fn make_room(&self, shard: &mut Shard, expire: u64) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        // What this shard has made or lost since it was locked is not in the table's count yet.
        let used = self.used() + shard.live as usize - shard.marked as usize;
        if used < self.size() {
            return true;
        }
        if self.nopurge.load(Relaxed) {
            return false;
        }
        let oldest = shard.oldest();
        oldest.is_some_and(|oldest| expire >= oldest) && shard.evict()
    }

    fn merge_slots(&self, shard: &mut Shard, at: u32, entry: &News) {
        let origins = &self.shared.origins;
        let mut changed = false;
        if let Some(set) = entry.slots.iter().find(|slot| slot.role == Role::Set) {
            changed |= self.merge_reset(shard, at, set, entry);
        }
        let mut voids = false;
        for slot in entry.slots {
            match slot.role {
                Role::Cleared if planted::is(Fault::ForgetCleared) => {}
                Role::Cleared => changed |= shard.raise_cleared(at, slot.birth),
                Role::Base | Role::Set => voids = true,
                _ if shard.is_voided(at, slot.origin, origins) => {}
                _ => {
                    voids |= slot.role != Role::Data;
                    changed |= self.merge_slot(shard, at, slot, &entry.words[slot.words.clone()]);
                }
            }
        }
        if voids {
            shard.drop_voided(at, origins);
        }
        shard.changes += u64::from(changed);
    }

    /// Takes the reset of an entry if it is the later one.
    fn merge_reset(&self, shard: &mut Shard, at: u32, set: &IncomingSlot, entry: &News) -> bool {
        let bases = || entry.slots.iter().filter(|slot| slot.role == Role::Base);
        if shard.supersedes(at, set.birth, set.origin, &self.shared.origins) {
            shard.drop_slots(at, |slot| matches!(slot.role, Role::Base | Role::Set));
            for slot in bases().chain([set]) {
                let s = shard.add_slot(at, slot.origin, slot.role, slot.birth);
                shard.slot_words_mut(s).copy_from_slice(&entry.words[slot.words.clone()]);
            }
            return true;
        }
        let same = shard.one(at, Role::Set).map(|s| shard.slots[s as usize]);
        if same.is_some_and(|mine| (mine.birth, mine.origin) == (set.birth, set.origin)) {
            // Of the same reset only bases that no longer matter are ever dropped.
            let theirs: SmallVec<[(u16, u64); 8]> = bases().map(|b| (b.origin, b.birth)).collect();
            let before = shard.chain(at).count();
            shard.drop_slots(at, |slot| {
                slot.role == Role::Base && !theirs.contains(&(slot.origin, slot.birth))
            });
            return shard.chain(at).count() != before;
        }
        false
    }

    fn merge_slot(&self, shard: &mut Shard, at: u32, slot: &IncomingSlot, theirs: &[u32]) -> bool {
        let Some(mine) = shard.slot_of(at, slot.origin) else {
            let s = shard.add_slot(at, slot.origin, slot.role, slot.birth);
            shard.slot_words_mut(s).copy_from_slice(theirs);
            return true;
        };
        let Slot { birth, role, .. } = shard.slots[mine as usize];
        if slot.birth < birth {
            return false;
        }
        let words = shard.slot_words_mut(mine);
        if slot.birth > birth {
            words.copy_from_slice(theirs);
            (shard.slots[mine as usize].birth, shard.slots[mine as usize].role) = (slot.birth, slot.role);
            return true;
        }
        // Only its origin writes a slot, so the greater value is the later one.
        let mut changed = false;
        for c in self.layout.columns() {
            changed |= merge_column(c.of.kind, &mut words[c.range()], &theirs[c.range()]);
        }
        shard.slots[mine as usize].role = role.max(slot.role);
        changed || slot.role > role
    }
}

/// Takes `theirs` if it is a later state of what one origin writes. Returns whether anything changed.
fn merge_column(kind: Kind, mine: &mut [u32], theirs: &[u32]) -> bool {
    if planted::is(Fault::AddInPlaceOfMax) && kind == Kind::Counter {
        mine[0] += theirs[0];
        return theirs[0] > 0;
    }
    let newer = match kind {
        _ if planted::is(Fault::TakeOlderStates) && kind == Kind::Counter => true,
        Kind::Counter => theirs[0] > mine[0],
        Kind::Counter64 => get64(theirs) > get64(mine),
        Kind::Gauge => theirs[1].wrapping_sub(mine[1]) as i32 > 0,
        Kind::Register | Kind::Text => hlc(theirs) > hlc(mine),
        Kind::Rate => return rate::merge(mine, theirs),
    };
    if newer {
        mine.copy_from_slice(theirs);
    }
    newer
}

/// Moves what two tables have in common: a reload changed what the second one stores. Sessions that
/// track an entry of the first one go on in the second, from the moment on that its shard is moved.
pub(super) fn carry(old: &Table, new: &Arc<Table>, now: Now) {
    let Some(reading) = Reading::new(old.kind, &columns(&old.layout), &new.layout) else { return };
    let source = Source { reading: &reading, origins: &|origin| Some(origin), late: 0 };
    let _ = old.successor.set(new.clone());
    for index in 0..old.shards.len() {
        // Under one lock, so that no count is made between the copy and the move. Workers that need this
        // shard wait for some milliseconds at most: 1/64 of a large table.
        let mut shard = old.enter(index, now);
        let (mut bytes, mut held) = (Vec::new(), Vec::new());
        for at in (0..shard.entries.len() as u32).filter(|&at| shard.holds(at)) {
            encode(&shard, at, |_| true, &old.shared.texts, &mut bytes, &mut |_| {});
            let uses = shard.entries[at as usize].uses;
            if uses > 0 {
                held.push((OwnKey::of(&shard.keys.get(at)), uses));
            }
        }
        let merged = new.merge(&bytes, &source, now);
        debug_assert!(merged.is_ok(), "what we encode we can read");
        for (key, uses) in held {
            // One that found no room, or that stores nothing here, begins anew.
            if let Some((mut shard, index, at)) = new.obtain(&key.borrow(), now) {
                (0..uses).for_each(|_| shard.hold(at));
                new.leave(shard, index, 0);
            }
        }
        shard.moved = true;
        old.leave(shard, index, 0);
    }
}

// ---- writing ----

fn encode(
    shard: &Shard,
    at: u32,
    which: impl Fn(&Slot) -> bool,
    texts: &Texts,
    out: &mut Vec<u8>,
    origin: &mut impl FnMut(u16),
) {
    match shard.keys.get(at) {
        Key::V4(n) | Key::Int(n) => out.extend_from_slice(&n.to_le_bytes()),
        Key::V6(n) => out.extend_from_slice(&n.to_le_bytes()),
        Key::Str(text) => string(out, text),
    }
    let e = &shard.entries[at as usize];
    number(out, if e.expire == u64::MAX { 0 } else { 1 + e.expire.saturating_sub(shard.now) });
    let sent = |s: &u32| which(&shard.slots[*s as usize]);
    number(out, shard.chain(at).filter(sent).count() as u64);
    for s in shard.chain(at).filter(sent) {
        let slot = shard.slots[s as usize];
        number(out, u64::from(slot.origin) << 3 | slot.role as u64);
        out.extend_from_slice(&slot.birth.to_le_bytes());
        if slot.role == Role::Cleared {
            continue;
        }
        origin(slot.origin);
        let words = shard.slot_words(s);
        for c in shard.shape.layout.columns() {
            let w = &words[c.range()];
            match c.of.kind {
                Kind::Counter => number(out, u64::from(w[0])),
                Kind::Counter64 => number(out, get64(w)),
                Kind::Gauge => w.iter().for_each(|&w| number(out, u64::from(w))),
                Kind::Rate => {
                    out.extend_from_slice(&w[0].to_le_bytes());
                    number(out, u64::from(w[1]));
                    number(out, u64::from(w[2]));
                }
                Kind::Register => {
                    number(out, u64::from(w[0]));
                    out.extend_from_slice(&hlc(w).to_le_bytes());
                }
                Kind::Text => {
                    string(out, texts.get(w[0]).unwrap_or_default().as_bytes());
                    out.extend_from_slice(&hlc(w).to_le_bytes());
                }
            }
        }
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    number(out, text.len() as u64);
    out.extend_from_slice(text);
}

fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

// ---- reading ----

#[derive(Clone, Debug)]
struct IncomingSlot {
    origin: u16,
    role: Role,
    birth: u64,
    words: std::ops::Range<usize>,
}

/// What is told of one entry.
struct News<'a> {
    slots: &'a [IncomingSlot],
    words: &'a [u32],
}

/// One entry as read.
#[derive(Debug)]
struct IncomingEntry<'a> {
    key: Key<'a>,
    hash: u64,
    shard: usize,
    life: Option<u64>,
    slots: std::ops::Range<usize>,
    /// Where the table has the key, or `NIL`.
    seen: u32,
}

/// Entries that are merged together.
const AT_ONCE: usize = 1024;

/// Entries as read; reused for the whole batch.
#[derive(Debug, Default)]
struct Incoming<'a> {
    entries: Vec<IncomingEntry<'a>>,
    slots: Vec<IncomingSlot>,
    words: Vec<u32>,
    /// The entries by shard.
    order: Vec<u32>,
    /// Latest reading of a clock in them.
    latest: u64,
}

impl<'a> Incoming<'a> {
    fn clear(&mut self) {
        self.entries.clear();
        self.slots.clear();
        self.words.clear();
        self.latest = 0;
    }

    fn read(&mut self, input: &mut Input<'a>, from: &Source, table: &Table) -> Result<(), Malformed> {
        let (first, stride) = (self.slots.len(), table.layout.stride());
        let key = input.key(from.reading.key)?;
        let life = input.number()?.checked_sub(1).map(|left| left.saturating_sub(from.late));
        let count = input.number()?;
        if count > MAX_SLOTS {
            return Err(Malformed);
        }
        for _ in 0..count {
            let head = input.number()?;
            let role = *Role::ALL.get((head & 7) as usize).ok_or(Malformed)?;
            let origin = u16::try_from(head >> 3).map_err(|_| Malformed)?;
            let birth = input.clock()?;
            self.latest = self.latest.max(birth);
            let start = self.words.len();
            if role == Role::Cleared {
                self.slots.push(IncomingSlot { origin: SELF, role, birth, words: start..start });
                continue;
            }
            self.words.resize(start + stride, 0);
            for place in &from.reading.columns {
                let words = input.column(place.kind, &table.shared.texts)?;
                if matches!(place.kind, Kind::Register | Kind::Text) {
                    self.latest = self.latest.max(hlc(&words));
                }
                if let Some(at) = place.at {
                    let width = place.kind.words();
                    self.words[start + at..start + at + width].copy_from_slice(&words[..width]);
                }
            }
            let origin = (from.origins)(origin).ok_or(Malformed)?;
            self.slots.push(IncomingSlot { origin, role, birth, words: start..start + stride });
        }
        // A key that is not of this table's type has no place in it.
        if let Some((shard, hash)) = table.locate(&key) {
            let slots = first..self.slots.len();
            self.entries.push(IncomingEntry { key, hash, shard, life, slots, seen: NIL });
        }
        Ok(())
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let [b] = self.array()?;
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(Malformed)
    }

    fn word(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn clock(&mut self) -> Result<u64, Malformed> {
        let reading = u64::from_le_bytes(self.array()?);
        if reading > Hlc::LIMIT { Err(Malformed) } else { Ok(reading) }
    }

    fn column(&mut self, kind: Kind, texts: &Texts) -> Result<[u32; 3], Malformed> {
        Ok(match kind {
            Kind::Counter => [self.word()?, 0, 0],
            Kind::Counter64 => {
                let mut words = [0; 3];
                put64(&mut words, self.number()?);
                words
            }
            Kind::Gauge => [self.word()?, self.word()?, 0],
            Kind::Rate => [u32::from_le_bytes(self.array()?), self.word()?, self.word()?],
            Kind::Register => {
                let value = self.word()?;
                super::shard::register(value, self.clock()?)
            }
            Kind::Text => {
                let text = self.string(texts::LONGEST)?;
                let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
                super::shard::register(texts.intern(text), self.clock()?)
            }
        })
    }

    fn string(&mut self, longest: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        if len > longest { Err(Malformed) } else { self.take(len) }
    }

    fn key(&mut self, kind: KeyType) -> Result<Key<'a>, Malformed> {
        Ok(match kind {
            KeyType::Ip => Key::V4(u32::from_le_bytes(self.array()?)),
            KeyType::Integer => Key::Int(u32::from_le_bytes(self.array()?)),
            KeyType::Ipv6 => Key::V6(u128::from_le_bytes(self.array()?)),
            KeyType::String(_) | KeyType::Binary(_) => Key::Str(self.string(usize::MAX)?),
        })
    }
}
