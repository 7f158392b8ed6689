//! A hash table that is cheap to copy: a change copies one part of it and shares the others.
//!
//! Readers hold a copy that never changes; the writer makes the next one. With n entries there are
//! about as many parts as a part has entries, so one change of a hundred thousand entries copies some
//! hundred pointers.

use std::marker::PhantomData;
use std::sync::Arc;

use hashbrown::HashTable;

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

/// A part.
type Shard<K> = HashTable<(<K as Keyed>::Key, Slot)>;

#[derive(Debug)]
pub(super) struct Sharded<K: Keyed> {
    seed: u64,
    shards: Vec<Arc<Shard<K>>>,
    /// Distinct keys.
    keys: usize,
    kind: PhantomData<K>,
}

impl<K: Keyed> Clone for Sharded<K> {
    fn clone(&self) -> Self {
        Sharded { seed: self.seed, shards: self.shards.clone(), keys: self.keys, kind: PhantomData }
    }
}

/// Keys of a part, at most, per number of parts.
const FULL: usize = 4;

impl<K: Keyed> Sharded<K> {
    /// An empty one, made for so many entries.
    pub(super) fn new(seed: u64, expected: usize) -> Self {
        let shards = expected.isqrt().next_power_of_two().clamp(1, 4096);
        let one = Arc::new(HashTable::new());
        Sharded { seed, shards: vec![one; shards], keys: 0, kind: PhantomData }
    }

    /// Distinct keys.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    fn shard(&self, hash: u64) -> usize {
        // The table inside uses the lowest and the highest bits.
        (hash >> 32) as usize & (self.shards.len() - 1)
    }

    pub(super) fn find(&self, ask: K::Ask<'_>) -> Option<&Slot> {
        let hash = K::hash(ask, self.seed);
        let found = self.shards[self.shard(hash)]
            .find(hash, |(key, slot)| K::same(ask, K::ask(key, slot.first())))?;
        Some(&found.1)
    }

    pub(super) fn insert(&mut self, key: K::Key, entry: &Arc<Entry>) {
        let seed = self.seed;
        let hash = K::hash(K::ask(&key, entry), seed);
        let at = self.shard(hash);
        let table = Arc::make_mut(&mut self.shards[at]);
        let same = |(k, s): &(K::Key, Slot)| K::same(K::ask(&key, entry), K::ask(k, s.first()));
        if let Some((_, slot)) = table.find_mut(hash, same) {
            slot.add(entry);
            return;
        }
        let rehash = |(k, s): &(K::Key, Slot)| K::hash(K::ask(k, s.first()), seed);
        table.insert_unique(hash, (key, Slot::One(entry.clone())), rehash);
        self.keys += 1;
        if self.keys > FULL * self.shards.len() * self.shards.len() && self.shards.len() < 4096 {
            self.grow();
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, key: &K::Key, entry: &Arc<Entry>) {
        let ask = K::ask(key, entry);
        let hash = K::hash(ask, self.seed);
        let at = self.shard(hash);
        let table = Arc::make_mut(&mut self.shards[at]);
        let Ok(mut found) = table.find_entry(hash, |(k, s)| K::same(ask, K::ask(k, s.first()))) else {
            return;
        };
        if !found.get_mut().1.remove(entry.order()) {
            found.remove();
            self.keys -= 1;
        }
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.shards.iter().flat_map(|s| s.iter()).flat_map(|(_, slot)| slot.all())
    }

    fn grow(&mut self) {
        let mut larger = Sharded::<K>::new(self.seed, self.keys * FULL);
        for (key, slot) in self.shards.iter().flat_map(|s| s.iter()) {
            for entry in slot.all() {
                larger.insert(key.clone(), entry);
            }
        }
        *self = larger;
    }
}
