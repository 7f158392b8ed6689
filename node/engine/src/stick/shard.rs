//! One shard of a table: entries, their slots, and the lists they hang on. Everything here runs under
//! the shard's lock and touches a bounded amount of memory.
//!
//! An entry is on one *place* list: a wheel of buckets by expiry (the order of eviction too), the list
//! of tracked entries (which neither expire nor leave), or that of tombstones. And it is on the
//! *update* list (`shard/updates.rs`) once this node wrote it.

mod updates;

use hashbrown::HashTable;
use phalanx_config::model::KeyType;

use super::key::{Key, Keys};
use super::layout::{Column, Kind, Layout};
use super::origin::{Origins, SELF};
use super::rate;
pub(crate) use super::reset::Role;
use super::rows::{Rows, Words};
use crate::planted::{self, Fault};
use updates::Updates;

pub(crate) const NIL: u32 = u32::MAX;
const WHEEL: usize = 64;
const TRACKED: usize = WHEEL;
const TOMBS: usize = WHEEL + 1;
pub(crate) const MAX_TOMBS: u32 = 4096;
/// How long a tombstone of a table without `expire` is kept.
const TOMB_MS: u64 = 3_600_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Position in the update log; 0 = this node never wrote it.
    pub(crate) seq: u64,
    /// Monotonic milliseconds; `u64::MAX` = never.
    pub(crate) expire: u64,
    prev: u32,
    next: u32,
    older: u32,
    newer: u32,
    /// First slot.
    pub(crate) slots: u32,
    /// Sessions that track it; [`FREE`] = not in use.
    pub(crate) uses: u32,
    /// Low half of `expire` when it was last published.
    told: u32,
    list: u8,
}

const FREE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// When its origin began it: a later one takes the place of an earlier one.
    pub(crate) birth: u64,
    pub(crate) next: u32,
    pub(crate) origin: u16,
    pub(crate) role: Role,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

const EMPTY: List = List { head: NIL, tail: NIL };

/// What a shard needs to know of its table.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) layout: Layout,
    /// `expire` in milliseconds.
    pub(crate) ttl: Option<u64>,
    /// Goes to peers.
    pub(crate) shared: bool,
}

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) shape: Shape,
    index: HashTable<u32>,
    pub(crate) keys: Keys,
    pub(crate) entries: Rows<Entry>,
    free: u32,
    pub(crate) slots: Rows<Slot>,
    words: Words,
    free_slot: u32,
    lists: Box<[List; WHEEL + 2]>,
    /// Wheel buckets before this one have been emptied.
    swept: u64,
    pub(crate) updates: Updates,
    /// Latest time seen, in milliseconds.
    pub(crate) now: u64,
    pub(crate) live: u32,
    /// `live` as the table's own count last knew it.
    pub(crate) marked: u32,
    tombs: u32,
    /// When tracked entries are looked at next.
    keep_at: u64,
    /// What earlier runs of this node counted goes into its own slots.
    pub(crate) folds: bool,
    /// What is in it goes on in the table that took this one's place.
    pub(crate) moved: bool,
    /// Content changes so far.
    pub(crate) changes: u64,
    pub(crate) digest: Option<Digest>,
    seed: u64,
}

/// A digest of the content, good until something changes or expires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digest {
    pub(crate) changes: u64,
    pub(crate) until: u64,
    pub(crate) value: u64,
}

impl Shard {
    pub(crate) fn new(kind: KeyType, shape: Shape, seed: u64) -> Shard {
        let stride = shape.layout.stride();
        Shard {
            shape,
            index: HashTable::new(),
            keys: Keys::new(kind),
            entries: Rows::new(),
            free: NIL,
            slots: Rows::new(),
            words: Words::new(stride),
            free_slot: NIL,
            lists: Box::new([EMPTY; WHEEL + 2]),
            swept: 0,
            updates: Updates::new(),
            now: 0,
            live: 0,
            marked: 0,
            keep_at: 0,
            folds: false,
            moved: false,
            tombs: 0,
            changes: 0,
            digest: None,
            seed,
        }
    }

    /// The entry of a key, tombstones and expired ones included.
    pub(crate) fn find(&self, key: &Key, hash: u64) -> Option<u32> {
        self.index.find(hash, |&at| self.keys.get(at) == *key).copied()
    }

    /// The live entry of a key. An expired one is taken away on the spot.
    pub(crate) fn lookup(&mut self, key: &Key, hash: u64) -> Option<u32> {
        let at = self.find(key, hash)?;
        if self.expired(at) {
            self.remove(at);
            return None;
        }
        (self.entries[at as usize].list as usize != TOMBS).then_some(at)
    }

    /// Whether the entry's time is over. A tracked one's never is.
    pub(crate) fn expired(&self, at: u32) -> bool {
        let e = &self.entries[at as usize];
        e.uses == 0 && e.expire <= self.now
    }

    /// Whether the index holds a live entry.
    pub(crate) fn is_live(&self, at: u32) -> bool {
        let e = &self.entries[at as usize];
        e.uses != FREE && e.list as usize != TOMBS && !self.expired(at)
    }

    /// Whether the index holds an entry or a tombstone that still counts.
    pub(crate) fn holds(&self, at: u32) -> bool {
        self.entries[at as usize].uses != FREE && !self.expired(at)
    }

    /// Makes an entry live for a key that has none (or a tombstone), expiring at `expire`.
    pub(crate) fn create(&mut self, key: &Key, hash: u64, expire: u64) -> u32 {
        if let Some(at) = self.find(key, hash) {
            debug_assert_eq!(self.entries[at as usize].list as usize, TOMBS);
            self.unlink(at);
            self.tombs -= 1;
            self.live += 1;
            self.entries[at as usize].expire = expire;
            self.place(at);
            return at;
        }
        self.create_new(key, hash, expire)
    }

    /// As [`Shard::create`], for a key that `find` has just not found.
    pub(crate) fn create_new(&mut self, key: &Key, hash: u64, expire: u64) -> u32 {
        let at = self.add(key, hash, expire);
        self.live += 1;
        self.place(at);
        at
    }

    /// Whether an index that was this key's still is.
    pub(crate) fn is_key(&self, at: u32, key: &Key) -> bool {
        at != NIL && self.entries[at as usize].uses != FREE && self.keys.get(at) == *key
    }

    fn add(&mut self, key: &Key, hash: u64, expire: u64) -> u32 {
        let entry = Entry {
            seq: 0,
            expire,
            prev: NIL,
            next: NIL,
            older: NIL,
            newer: NIL,
            slots: NIL,
            uses: 0,
            told: 0,
            list: 0,
        };
        let at = if self.free == NIL {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let at = self.free;
            self.free = self.entries[at as usize].next;
            self.entries[at as usize] = entry;
            at
        };
        self.keys.put(at, key);
        let (keys, seed) = (&self.keys, self.seed);
        self.index.insert_unique(hash, at, |&i| keys.get(i).hash(seed));
        at
    }

    /// Takes an entry or tombstone away.
    pub(crate) fn remove(&mut self, at: u32) {
        self.changes += 1;
        let list = self.entries[at as usize].list as usize;
        if list == TOMBS {
            self.tombs -= 1;
        } else {
            self.live -= 1;
        }
        self.unlink(at);
        self.unlog(at);
        self.drop_slots(at, |_| true);
        let hash = self.keys.get(at).hash(self.seed);
        if let Ok(found) = self.index.find_entry(hash, |&i| i == at) {
            found.remove();
        }
        self.keys.free(at);
        let e = &mut self.entries[at as usize];
        e.uses = FREE;
        e.next = self.free;
        self.free = at;
    }

    /// Evicts the entry that is next to expire. `false` when all are tracked.
    pub(crate) fn evict(&mut self) -> bool {
        for step in 0..WHEEL as u64 {
            let head = self.lists[((self.swept + step) % WHEEL as u64) as usize].head;
            if head != NIL {
                self.remove(head);
                return true;
            }
        }
        false
    }

    /// When the entry that is next to be evicted expires.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let heads =
            (0..WHEEL as u64).map(|step| self.lists[((self.swept + step) % WHEEL as u64) as usize].head);
        heads.into_iter().find(|&head| head != NIL).map(|head| self.entries[head as usize].expire)
    }

    // ---- time ----

    /// Moves time on, and takes away what has expired.
    pub(crate) fn advance(&mut self, now: u64) {
        // Most often it has been done in this very millisecond.
        if now <= self.now && self.tombs <= MAX_TOMBS {
            return;
        }
        self.now = self.now.max(now);
        if let Some(grain) = self.grain() {
            let due = self.now / grain;
            self.swept = self.swept.max(due.saturating_sub(WHEEL as u64));
            while self.swept < due {
                let bucket = (self.swept % WHEEL as u64) as usize;
                while self.lists[bucket].head != NIL {
                    self.remove(self.lists[bucket].head);
                }
                self.swept += 1;
            }
        }
        while self.lists[TOMBS].head != NIL {
            let head = self.lists[TOMBS].head;
            if self.entries[head as usize].expire > self.now && self.tombs <= MAX_TOMBS {
                break;
            }
            self.remove(head);
        }
    }

    /// Milliseconds covered by one bucket: the wheel spans a little more than `expire`.
    fn grain(&self) -> Option<u64> {
        self.shape.ttl.map(|ttl| ttl / (WHEEL as u64 - 3) + 1)
    }

    /// When an entry refreshed now expires.
    pub(crate) fn horizon(&self) -> u64 {
        self.shape.ttl.map_or(u64::MAX, |ttl| self.now + ttl)
    }

    /// Gives the entry its full time again and makes it the last to be evicted.
    pub(crate) fn refresh(&mut self, at: u32) {
        self.set_expire(at, self.horizon());
    }

    /// Sets the moment of expiry.
    pub(crate) fn set_expire(&mut self, at: u32, expire: u64) {
        self.entries[at as usize].expire = expire;
        if self.entries[at as usize].list as usize >= WHEEL {
            return;
        }
        let list = self.wheel(expire);
        let e = &self.entries[at as usize];
        if e.list as usize != list || self.lists[list].tail != at {
            self.unlink(at);
            self.link(at, list);
        }
    }

    /// Whether a refresh is worth telling the peers: an eighth of the life since the last time.
    pub(crate) fn stale(&self, at: u32) -> bool {
        let e = &self.entries[at as usize];
        let Some(ttl) = self.shape.ttl else { return e.seq == 0 };
        e.seq == 0 || u64::from((e.expire as u32).wrapping_sub(e.told)) > ttl / 8
    }

    /// Tracked entries whose life on the peers has half run out; they are published again.
    pub(crate) fn keep_tracked(&mut self) -> u64 {
        let Some(ttl) = self.shape.ttl.filter(|_| self.now >= self.keep_at) else { return 0 };
        self.keep_at = self.now + ttl / 8;
        let (mut at, mut woken) = (self.lists[TRACKED].head, 0);
        while at != NIL {
            let next = self.entries[at as usize].next;
            if self.entries[at as usize].expire < self.now + ttl / 2 {
                self.entries[at as usize].expire = self.now + ttl;
                woken |= self.publish(at);
            }
            at = next;
        }
        woken
    }

    /// Changes `expire` of the whole shard (a reload did).
    pub(crate) fn retime(&mut self, ttl: Option<u64>) {
        let all: Vec<u32> = (0..self.entries.len() as u32)
            .filter(|&at| self.entries[at as usize].uses != FREE)
            .filter(|&at| (self.entries[at as usize].list as usize) < WHEEL)
            .collect();
        for &at in &all {
            self.unlink(at);
        }
        self.shape.ttl = ttl;
        self.keep_at = self.now;
        self.swept = self.grain().map_or(0, |grain| self.now / grain);
        let horizon = self.horizon();
        for at in all {
            let e = &mut self.entries[at as usize];
            // From "never" to a time: the life begins now. From a time to another: it is cut, not prolonged.
            e.expire = if ttl.is_none() { u64::MAX } else { e.expire.min(horizon) };
            self.place(at);
        }
    }

    // ---- lists ----

    fn wheel(&self, expire: u64) -> usize {
        match self.grain() {
            Some(grain) => {
                let due = (expire / grain).clamp(self.swept, self.swept + WHEEL as u64 - 1);
                (due % WHEEL as u64) as usize
            }
            None => 0,
        }
    }

    /// Puts an unlinked entry on the list where it belongs.
    fn place(&mut self, at: u32) {
        let e = &self.entries[at as usize];
        let list = if e.uses > 0 { TRACKED } else { self.wheel(e.expire) };
        self.link(at, list);
    }

    fn link(&mut self, at: u32, list: usize) {
        let tail = self.lists[list].tail;
        let e = &mut self.entries[at as usize];
        (e.prev, e.next, e.list) = (tail, NIL, list as u8);
        if tail == NIL {
            self.lists[list].head = at;
        } else {
            self.entries[tail as usize].next = at;
        }
        self.lists[list].tail = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { prev, next, list, .. } = self.entries[at as usize];
        match prev {
            NIL => self.lists[list as usize].head = next,
            prev => self.entries[prev as usize].next = next,
        }
        match next {
            NIL => self.lists[list as usize].tail = prev,
            next => self.entries[next as usize].prev = prev,
        }
    }

    /// One more session tracks the entry.
    pub(crate) fn hold(&mut self, at: u32) {
        self.entries[at as usize].uses += 1;
        if self.entries[at as usize].uses == 1 {
            self.unlink(at);
            self.link(at, TRACKED);
        }
    }

    /// Time until the entry expires, in a table where entries do.
    pub(crate) fn left(&self, at: u32) -> Option<std::time::Duration> {
        let left = self.entries[at as usize].expire.saturating_sub(self.now);
        self.shape.ttl.map(|_| std::time::Duration::from_millis(left))
    }

    /// One session less; the entry's time starts again.
    pub(crate) fn release(&mut self, at: u32) {
        self.entries[at as usize].expire = self.horizon();
        self.entries[at as usize].uses -= 1;
        if self.entries[at as usize].uses == 0 {
            self.unlink(at);
            self.place(at);
        }
    }

    /// The entry of a key, or a tombstone made for it.
    pub(crate) fn find_or_bury(&mut self, key: &Key, hash: u64) -> u32 {
        self.find(key, hash).unwrap_or_else(|| {
            let at = self.add(key, hash, self.now + self.keep());
            self.tombs += 1;
            self.link(at, TOMBS);
            at
        })
    }

    /// Makes an entry that nothing counts for any more a tombstone, which keeps what was cleared from
    /// coming back. A tracked one stays.
    pub(crate) fn bury(&mut self, at: u32) {
        let e = self.entries[at as usize];
        if e.uses > 0 || e.list as usize == TOMBS {
            return;
        }
        self.drop_others(at);
        self.unlink(at);
        self.entries[at as usize].expire = self.now + self.keep();
        self.link(at, TOMBS);
        self.live -= 1;
        self.tombs += 1;
    }

    /// Drops what others counted in an entry in which nothing counts. The own slot stays: peers may not
    /// have heard of its last change yet, and it goes on from where it was.
    pub(crate) fn drop_others(&mut self, at: u32) {
        self.drop_slots(at, |slot| slot.role.is_data() && slot.origin != SELF);
    }

    /// How long a tombstone is kept.
    fn keep(&self) -> u64 {
        self.shape.ttl.unwrap_or(TOMB_MS).max(1000)
    }

    // ---- slots ----

    /// The slots of an entry.
    pub(crate) fn chain(&self, at: u32) -> Chain<'_> {
        Chain { slots: &self.slots, at: self.entries[at as usize].slots }
    }

    /// The slot that an origin counts in.
    pub(crate) fn slot_of(&self, at: u32, origin: u16) -> Option<u32> {
        self.chain(at).find(|&s| {
            let slot = &self.slots[s as usize];
            slot.origin == origin && slot.role.is_data()
        })
    }

    /// Words of a slot.
    pub(crate) fn slot_words(&self, slot: u32) -> &[u32] {
        self.words.row(slot as usize)
    }

    /// Words of a slot, to be written.
    pub(crate) fn slot_words_mut(&mut self, slot: u32) -> &mut [u32] {
        self.words.row_mut(slot as usize)
    }

    /// A new, zeroed slot at the front of the entry's chain.
    pub(crate) fn add_slot(&mut self, at: u32, origin: u16, role: Role, birth: u64) -> u32 {
        let slot = Slot { birth, next: self.entries[at as usize].slots, origin, role };
        let index = if self.free_slot == NIL {
            self.slots.push(slot);
            self.words.push();
            (self.slots.len() - 1) as u32
        } else {
            let index = self.free_slot;
            self.free_slot = self.slots[index as usize].next;
            self.slots[index as usize] = slot;
            self.slot_words_mut(index).fill(0);
            index
        };
        self.entries[at as usize].slots = index;
        index
    }

    /// Drops the slots of an entry that `which` picks.
    pub(crate) fn drop_slots(&mut self, at: u32, which: impl Fn(&Slot) -> bool) {
        let mut prev = NIL;
        let mut s = self.entries[at as usize].slots;
        while s != NIL {
            let next = self.slots[s as usize].next;
            if which(&self.slots[s as usize]) {
                match prev {
                    NIL => self.entries[at as usize].slots = next,
                    prev => self.slots[prev as usize].next = next,
                }
                self.slots[s as usize].next = self.free_slot;
                self.free_slot = s;
            } else {
                prev = s;
            }
            s = next;
        }
    }

    /// This node's own slot, begun now if it has none.
    pub(crate) fn own(&mut self, at: u32, origins: &Origins, birth: impl FnOnce() -> u64) -> u32 {
        if let Some(slot) = self.slot_of(at, SELF) {
            return slot;
        }
        let role = if self.folds { Role::Voiding } else { Role::Data };
        let slot = self.add_slot(at, SELF, role, birth());
        if self.folds {
            self.absorb(at, slot, origins);
            if planted::is(Fault::FoldTwice) {
                let twice: Vec<u32> = self.slot_words(slot).iter().map(|w| w * 2).collect();
                self.slot_words_mut(slot)[..1].copy_from_slice(&twice[..1]);
            }
        }
        slot
    }

    /// What a column reads, over all nodes.
    pub(crate) fn read(&self, at: u32, column: Column, origins: &Origins) -> u64 {
        let sum = if matches!(column.of.kind, Kind::Register | Kind::Text) {
            self.latest(at, column, origins).map_or(0, |s| u64::from(self.slot_words(s)[column.at]))
        } else {
            let mut sum = 0u64;
            for s in self.chain(at) {
                let slot = &self.slots[s as usize];
                if !slot.role.is_data() {
                    return self.read_reset(at, column, origins);
                }
                let w = &self.slot_words(s)[column.range()];
                sum = sum.saturating_add(self.share(slot.origin, w, column, origins));
            }
            sum
        };
        match column.of.kind {
            Kind::Counter64 => sum,
            _ => sum.min(u64::from(u32::MAX) * u64::from(column.factor)),
        }
    }

    /// What words of a column say that are on the clock of `origin`.
    pub(crate) fn share(&self, origin: u16, w: &[u32], column: Column, origins: &Origins) -> u64 {
        let now = self.now as u32;
        match column.of.kind {
            Kind::Rate if origin != SELF => value(w, column, clock(origins, origin, now), true),
            Kind::Gauge if origin != SELF => value(w, column, now, lives(origins, origin, self.now)),
            _ => value(w, column, now, true),
        }
    }

    /// The slot with the register that was written last, after what was cleared.
    pub(crate) fn latest(&self, at: u32, column: Column, origins: &Origins) -> Option<u32> {
        let (mut latest, mut cleared) = (None::<(u64, u32)>, 0);
        for s in self.chain(at) {
            let slot = &self.slots[s as usize];
            if slot.role == Role::Cleared {
                cleared = slot.birth;
            }
            if !slot.role.is_data() {
                continue;
            }
            let hlc = hlc(&self.slot_words(s)[column.range()]);
            let later = latest.is_none_or(|(last, by)| {
                let hlc = if planted::is(Fault::RegisterByPlace) { 0 } else { hlc };
                hlc > last || hlc == last && beats(origins, slot.origin, self.slots[by as usize].origin)
            });
            if hlc != 0 && later {
                latest = Some((hlc, s));
            }
        }
        latest.filter(|(hlc, _)| *hlc > cleared).map(|(_, s)| s)
    }

    /// Memory held, in bytes.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.index.allocation_size()
            + self.keys.heap_bytes()
            + self.entries.capacity() * size_of::<Entry>()
            + self.slots.capacity() * size_of::<Slot>()
            + self.words.capacity() * 4
            + size_of_val(&*self.lists)
    }

    /// Panics if the shard contradicts itself.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        let mut linked = 0;
        for (list, ends) in self.lists.iter().enumerate() {
            let (mut at, mut prev) = (ends.head, NIL);
            while at != NIL {
                let e = &self.entries[at as usize];
                assert_eq!((e.list as usize, e.prev), (list, prev));
                assert_eq!(e.uses > 0, list == TRACKED && e.uses != FREE);
                linked += 1;
                (prev, at) = (at, e.next);
            }
            assert_eq!(ends.tail, prev);
        }
        assert_eq!(linked, self.live + self.tombs);
        assert_eq!(linked as usize, self.index.len());
        self.check_log();
        let chained: usize = (0..self.entries.len() as u32)
            .filter(|&at| self.entries[at as usize].uses != FREE)
            .map(|at| self.chain(at).count())
            .sum();
        let mut free = 0;
        let mut s = self.free_slot;
        while s != NIL {
            free += 1;
            s = self.slots[s as usize].next;
        }
        assert_eq!(chained + free, self.slots.len(), "no slot is lost");
    }
}

/// Slots of one entry.
pub(crate) struct Chain<'a> {
    slots: &'a Rows<Slot>,
    at: u32,
}

impl Iterator for Chain<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let at = self.at;
        if at == NIL {
            return None;
        }
        self.at = self.slots[at as usize].next;
        Some(at)
    }
}

/// What one slot's words of a column say, on the clock of its origin; a gauge's if it `lives`.
pub(crate) fn value(w: &[u32], column: Column, now: u32, lives: bool) -> u64 {
    match column.of.kind {
        Kind::Counter | Kind::Register | Kind::Text => u64::from(w[0]),
        Kind::Counter64 => get64(w),
        Kind::Gauge if lives => u64::from(w[0]),
        Kind::Gauge => 0,
        Kind::Rate => rate::read(w, now, column.period) * u64::from(column.factor),
    }
}

/// A number of two words.
pub(crate) fn get64(w: &[u32]) -> u64 {
    u64::from(w[0]) | u64::from(w[1]) << 32
}

/// Writes a number of two words.
pub(crate) fn put64(w: &mut [u32], n: u64) {
    (w[0], w[1]) = (n as u32, (n >> 32) as u32);
}

/// The hybrid logical clock of a register.
pub(crate) fn hlc(w: &[u32]) -> u64 {
    u64::from(w[1]) | u64::from(w[2]) << 32
}

/// A register's words.
pub(crate) fn register(value: u32, hlc: u64) -> [u32; 3] {
    [value, hlc as u32, (hlc >> 32) as u32]
}

fn lives(origins: &Origins, origin: u16, now: u64) -> bool {
    let list = origins.list();
    list.get(usize::from(origin)).is_some_and(|o| o.lives(now) || planted::is(Fault::GaugeOfTheDead))
}

pub(crate) fn clock(origins: &Origins, origin: u16, now: u32) -> u32 {
    origins.list().get(usize::from(origin)).map_or(now, |o| o.clock(now))
}

/// Whether `a` wins over `b` when both wrote at the same reading of the clock.
pub(crate) fn beats(origins: &Origins, a: u16, b: u16) -> bool {
    let list = origins.list();
    let name = |i: u16| list.get(usize::from(i)).map(|o| (&o.node, o.incarnation));
    name(a) > name(b)
}
