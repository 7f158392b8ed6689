//! Digests of a table's content: equal on two nodes if and only if they hold the same, whatever the
//! order. Peers compare them when they are quiet; `show peers` shows them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::layout::{Column, Kind};
use super::origin::Origin;
use super::shard::{Digest, Shard};
use super::texts::Texts;
use super::{Table, hash};
use crate::time::Now;

impl Table {
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
                    fresh.value =
                        fresh.value.wrapping_add(entry_digest(shard, at, &origins, &self.shared.texts));
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

fn entry_digest(shard: &Shard, at: u32, origins: &[Arc<Origin>], texts: &Texts) -> u64 {
    let key = shard.keys.get(at).hash(0);
    let columns = shard.shape.layout.columns();
    let text = columns.iter().find(|c| c.of.kind == Kind::Text).map(Column::range);
    let mut sum = 0u64;
    for s in shard.chain(at) {
        let slot = shard.slots[s as usize];
        let Some(origin) = origins.get(usize::from(slot.origin)) else { continue };
        let mut h = hash::word(key ^ origin.id, slot.birth);
        let words = shard.slot_words(s);
        for (at, &w) in words.iter().enumerate() {
            // Numbers of texts are this process's own.
            match text.as_ref().filter(|range| range.start == at) {
                None => h = hash::word(h, u64::from(w)),
                Some(_) => h = hash::bytes(h, texts.get(w).unwrap_or_default().as_bytes()),
            }
        }
        sum = sum.wrapping_add(h);
    }
    sum
}
