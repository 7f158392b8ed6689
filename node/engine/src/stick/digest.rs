//! Digests of a table's content: equal on two nodes if and only if they hold the same, whatever the
//! order. Peers compare them when they are quiet; `show peers` shows them.

use std::sync::atomic::Ordering::Relaxed;

use super::layout::{Column, Kind};
use super::shard::{Digest, Role, Shard};
use super::tables::Shared;
use super::{Table, hash};
use crate::time::Now;

impl Table {
    /// The slots of a key as text, in an order of their own: for tests that show where two nodes differ.
    #[cfg(test)]
    pub(crate) fn chain_text(&self, key: &super::Key) -> Vec<String> {
        let Some((index, hash)) = self.locate(key) else { return Vec::new() };
        let shard = self.shards[index].lock();
        let Some(at) = shard.find(key, hash) else { return Vec::new() };
        let origins = self.shared.origins.list();
        let text = |s: u32| {
            let slot = shard.slots[s as usize];
            let (by, words) = (&origins[usize::from(slot.origin)], shard.slot_words(s));
            match slot.role {
                Role::Cleared => format!("Cleared @{}", slot.birth),
                role => format!("{role:?} {}/{} @{} {words:?}", by.node, by.incarnation, slot.birth),
            }
        };
        let mut all: Vec<_> = shard.chain(at).map(text).collect();
        all.sort();
        all
    }

    /// A hash of everything replicated in the table, whatever the order: equal on two nodes if and only
    /// if they hold the same. Costs a walk over the shards that have changed since the last one.
    pub fn digest(&self, now: Now) -> u64 {
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
                    fresh.value = fresh.value.wrapping_add(entry_digest(shard, at, &self.shared));
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
}

fn entry_digest(shard: &Shard, at: u32, shared: &Shared) -> u64 {
    let key = shard.keys.get(at).hash(0);
    let columns = shard.shape.layout.columns();
    let text = columns.iter().find(|c| c.of.kind == Kind::Text).map(Column::range);
    // One that was cleared while it is tracked is a tombstone elsewhere.
    if shard.is_void(at, &shared.origins) {
        return 0;
    }
    let origins = shared.origins.list();
    let reset = shard.chain(at).any(|s| !shard.slots[s as usize].role.is_data());
    let cleared = if reset { shard.cleared(at) } else { 0 };
    let mut sum = 0u64;
    for s in shard.chain(at) {
        let slot = shard.slots[s as usize];
        // What adds nothing is dropped sooner or later.
        if reset && slot.role.is_data() && shard.is_covered(at, s, cleared, &shared.origins) {
            continue;
        }
        let of = origins.get(usize::from(slot.origin)).map_or(0, |origin| origin.id);
        let by = if slot.role == Role::Cleared { 0 } else { of };
        let mut h = hash::word(hash::word(key ^ by, slot.birth), slot.role as u64);
        for (at, &w) in shard.slot_words(s).iter().enumerate() {
            // Numbers of texts are this process's own.
            match text.as_ref().filter(|range| range.start == at) {
                None => h = hash::word(h, u64::from(w)),
                Some(_) => h = hash::bytes(h, shared.texts.get(w).unwrap_or_default().as_bytes()),
            }
        }
        sum = sum.wrapping_add(h);
    }
    sum
}
