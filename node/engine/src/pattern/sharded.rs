//! A hash table that is cheap to copy: a change copies one part of it and shares the others.
//!
//! Readers hold a copy that never changes; the writer makes the next one. With n entries there are
//! about as many parts as a part has entries, so one change of a hundred thousand entries copies some
//! hundred pointers. A part is one array (open addressing, a piece of each hash beside the entry): a look
//! into a large table costs one cache miss there and one at the entry.

use std::marker::PhantomData;
use std::sync::Arc;

use super::entry::{Entry, Slot};

/// How keys are stored, asked for and compared.
pub(super) trait Keyed {
    /// What is stored beside the entries of the key.
    type Key: Clone + std::fmt::Debug + Send + Sync;
    /// What is looked up.
    type Ask<'a>: Copy;
    /// What a stored key answers to.
    fn ask<'a>(key: &'a Self::Key, first: &'a Entry) -> Self::Ask<'a>;
    fn hash(ask: Self::Ask<'_>, seed: u64) -> u64;
    fn same(a: Self::Ask<'_>, b: Self::Ask<'_>) -> bool;
}

/// A key with its entries.
#[derive(Clone, Debug)]
struct Cell<Key> {
    /// The upper half of its hash.
    tag: u32,
    key: Key,
    slot: Slot,
}

/// A part: an array that is never full.
#[derive(Debug)]
struct Part<K: Keyed> {
    cells: Arc<[Option<Cell<K::Key>>]>,
    used: usize,
}

impl<K: Keyed> Clone for Part<K> {
    fn clone(&self) -> Self {
        Part { cells: self.cells.clone(), used: self.used }
    }
}

impl<K: Keyed> Part<K> {
    /// Where a key is, or the free place where it belongs; `None` only in an array of no length.
    fn place(&self, hash: u64, ask: K::Ask<'_>) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            match self.cells.get(at)? {
                Some(cell)
                    if cell.tag != tag(hash) || !K::same(ask, K::ask(&cell.key, cell.slot.first())) =>
                {
                    at = self.after(at);
                }
                _ => return Some(at),
            }
        }
    }

    /// Where a key of this hash is looked for first.
    fn home(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.cells.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 < self.cells.len() { at + 1 } else { 0 }
    }

    /// Makes room for one more.
    fn make_room(&mut self, seed: u64) {
        if self.used * 4 < self.cells.len() * 3 {
            return;
        }
        let room = (self.cells.len() * 3 / 2).max(4);
        let mut larger: Part<K> = Part { cells: std::iter::repeat_n(None, room).collect(), used: 0 };
        for cell in self.cells.iter().flatten() {
            larger.add(K::hash(K::ask(&cell.key, cell.slot.first()), seed), cell.clone());
        }
        *self = larger;
    }

    /// Adds a key that is not in it.
    fn add(&mut self, hash: u64, cell: Cell<K::Key>) {
        let mut at = self.home(hash);
        while self.cells[at].is_some() {
            at = self.after(at);
        }
        Arc::make_mut(&mut self.cells)[at] = Some(cell);
        self.used += 1;
    }

    /// Takes a key out, and moves up those behind it that are looked for from before its place.
    fn take_out(&mut self, mut hole: usize, seed: u64) {
        let all = self.cells.len();
        let mut at = self.after(hole);
        while let Some(cell) = &self.cells[at] {
            let home = self.home(K::hash(K::ask(&cell.key, cell.slot.first()), seed));
            if (at + all - home) % all >= (at + all - hole) % all {
                Arc::make_mut(&mut self.cells).swap(hole, at);
                hole = at;
            }
            at = self.after(at);
        }
        Arc::make_mut(&mut self.cells)[hole] = None;
        self.used -= 1;
    }
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[derive(Debug)]
pub(super) struct Sharded<K: Keyed> {
    seed: u64,
    parts: Vec<Part<K>>,
    /// Distinct keys.
    keys: usize,
    kind: PhantomData<K>,
}

impl<K: Keyed> Clone for Sharded<K> {
    fn clone(&self) -> Self {
        Sharded { seed: self.seed, parts: self.parts.clone(), keys: self.keys, kind: PhantomData }
    }
}

/// Keys of a part, at most, per number of parts.
const FULL: usize = 4;

impl<K: Keyed> Sharded<K> {
    /// An empty one, made for so many entries.
    pub(super) fn new(seed: u64, expected: usize) -> Self {
        let parts = expected.isqrt().next_power_of_two().clamp(1, 4096);
        let one = Part { cells: Arc::from(Vec::new()), used: 0 };
        Sharded { seed, parts: vec![one; parts], keys: 0, kind: PhantomData }
    }

    /// Distinct keys.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    fn part(&self, hash: u64) -> usize {
        // Inside a part the lowest bits count first.
        (hash >> 32) as usize & (self.parts.len() - 1)
    }

    pub(super) fn find(&self, ask: K::Ask<'_>) -> Option<&Slot> {
        let hash = K::hash(ask, self.seed);
        let part = &self.parts[self.part(hash)];
        let found = part.cells[part.place(hash, ask)?].as_ref()?;
        Some(&found.slot)
    }

    pub(super) fn insert(&mut self, key: K::Key, entry: &Arc<Entry>) {
        let ask = K::ask(&key, entry);
        let hash = K::hash(ask, self.seed);
        let at = self.part(hash);
        let part = &mut self.parts[at];
        if let Some(place) = part.place(hash, ask)
            && part.cells[place].is_some()
        {
            if let Some(cell) = &mut Arc::make_mut(&mut part.cells)[place] {
                cell.slot.add(entry);
            }
            return;
        }
        part.make_room(self.seed);
        part.add(hash, Cell { tag: tag(hash), key, slot: Slot::One(entry.clone()) });
        self.keys += 1;
        if self.keys > FULL * self.parts.len() * self.parts.len() && self.parts.len() < 4096 {
            self.grow();
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, key: &K::Key, entry: &Arc<Entry>) {
        let ask = K::ask(key, entry);
        let hash = K::hash(ask, self.seed);
        let at = self.part(hash);
        let part = &mut self.parts[at];
        let Some(place) = part.place(hash, ask).filter(|&place| part.cells[place].is_some()) else { return };
        let Some(cell) = &mut Arc::make_mut(&mut part.cells)[place] else { return };
        if !cell.slot.remove(entry.order()) {
            part.take_out(place, self.seed);
            self.keys -= 1;
        }
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.cells().flat_map(|cell| cell.slot.all())
    }

    /// All keys, in no order.
    pub(super) fn all_keys(&self) -> impl Iterator<Item = K::Ask<'_>> {
        self.cells().map(|cell| K::ask(&cell.key, cell.slot.first()))
    }

    fn cells(&self) -> impl Iterator<Item = &Cell<K::Key>> {
        self.parts.iter().flat_map(|part| part.cells.iter().flatten())
    }

    fn grow(&mut self) {
        let mut larger = Sharded::<K>::new(self.seed, self.keys * FULL);
        for cell in self.cells() {
            for entry in cell.slot.all() {
                larger.insert(cell.key.clone(), entry);
            }
        }
        *self = larger;
    }
}
