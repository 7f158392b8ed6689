//! Who wrote a slot, and when: node incarnations, their clocks, and the hybrid logical clock.
//!
//! An origin is one run of one node. It gets a small local index, so a slot names it in two bytes;
//! index 0 is this process. Origins are never forgotten while the process lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use super::hash;
use crate::planted::{self, Fault};
use crate::time::Now;

/// One run of one node.
#[derive(Debug)]
pub struct Origin {
    /// Name of the node.
    pub node: String,
    /// Which run of it.
    pub incarnation: u64,
    /// Stands for both in content digests.
    pub(crate) id: u64,
    /// Our milliseconds minus its milliseconds.
    offset: AtomicU32,
    /// Our milliseconds when it last gave a sign of life.
    heard: AtomicU64,
    /// A later run of its node is known.
    superseded: AtomicBool,
}

/// A run that was not heard of for so long is taken for dead: the stream to it, which says something
/// every second and is given up after five, could not be renewed.
const DEAD: u64 = 6_000;

impl Origin {
    fn new(node: &str, incarnation: u64, theirs: u32, ours: u64) -> Arc<Origin> {
        let id = hash::bytes(incarnation, node.as_bytes());
        Arc::new(Origin {
            node: node.to_string(),
            incarnation,
            id,
            offset: AtomicU32::new((ours as u32).wrapping_sub(theirs)),
            heard: AtomicU64::new(ours),
            superseded: AtomicBool::new(false),
        })
    }

    /// Whether its gauges count: the node is heard of, and has not been started anew since.
    pub(crate) fn lives(&self, now: u64) -> bool {
        !self.superseded.load(Relaxed) && now < self.heard.load(Relaxed).saturating_add(DEAD)
    }

    /// It gave a sign of life at `now`.
    pub(crate) fn hear(&self, now: u64) {
        self.heard.fetch_max(now, Relaxed);
    }

    /// What its clock reads when ours reads `now`.
    pub(crate) fn clock(&self, now: u32) -> u32 {
        now.wrapping_sub(self.offset.load(Relaxed))
    }

    /// Its clock read `theirs` when ours read `ours`: the least distance seen is the best estimate,
    /// because delay only adds. `fresh` starts over.
    pub(crate) fn observe(&self, theirs: u32, ours: u32, fresh: bool) {
        let sample = ours.wrapping_sub(theirs);
        let old = self.offset.load(Relaxed);
        let step = sample.wrapping_sub(old) as i32;
        if fresh || step < 0 {
            self.offset.store(sample, Relaxed);
        } else if step > 0 {
            // Clocks drift apart too: follow slowly, so that queueing does not count as drift.
            self.offset.store(old.wrapping_add(1), Relaxed);
        }
    }
}

/// The origins that this process knows, by local index.
#[derive(Debug)]
pub(crate) struct Origins {
    list: ArcSwap<Vec<Arc<Origin>>>,
}

/// Local index of this process.
pub(crate) const SELF: u16 = 0;
/// Most origins that one process can know.
const MAX: usize = 65_000;

impl Origins {
    pub(crate) fn new(node: &str, incarnation: u64) -> Origins {
        let own = Origin::new(node, incarnation, 0, 0);
        own.heard.store(u64::MAX, Relaxed);
        Origins { list: ArcSwap::from_pointee(vec![own]) }
    }

    pub(crate) fn list(&self) -> arc_swap::Guard<Arc<Vec<Arc<Origin>>>> {
        self.list.load()
    }

    pub(crate) fn get(&self, index: u16) -> Option<Arc<Origin>> {
        self.list.load().get(usize::from(index)).cloned()
    }

    /// Whether `a` is an earlier run of the node of `b`.
    pub(crate) fn is_earlier(&self, a: u16, b: u16) -> bool {
        if a == b {
            return false;
        }
        let list = self.list.load();
        let (Some(a), Some(b)) = (list.get(usize::from(a)), list.get(usize::from(b))) else { return false };
        a.incarnation < b.incarnation && a.node == b.node
    }

    /// What our clock read when that of `origin` read `tick`.
    pub(crate) fn onto_ours(&self, origin: u16, tick: u32) -> u32 {
        let list = self.list.load();
        list.get(usize::from(origin)).map_or(tick, |o| tick.wrapping_add(o.offset.load(Relaxed)))
    }

    /// Runs of `node` before `incarnation` that are known.
    pub(crate) fn earlier_runs(&self, node: &str, incarnation: u64) -> Vec<u16> {
        let list = self.list.load();
        let of = |o: &&Arc<Origin>| o.node == node && o.incarnation < incarnation;
        (0..).zip(list.iter()).filter(|(_, o)| of(o)).map(|(at, _)| at).collect()
    }

    /// Runs of this node before this one that are known.
    pub(crate) fn own_past(&self) -> usize {
        let list = self.list.load();
        list.iter().skip(1).filter(|o| o.node == list[0].node).count()
    }

    /// The index of `node`'s run `incarnation`, registered with its clock if it is new. `None` when
    /// 65,000 are known already.
    pub(crate) fn intern(&self, node: &str, incarnation: u64, theirs: u32, ours: u64) -> Option<u16> {
        let same = |o: &Origin| o.incarnation == incarnation || planted::is(Fault::ForgetIncarnation);
        let find = |list: &[Arc<Origin>]| list.iter().position(|o| same(o) && o.node == node);
        loop {
            let list = self.list.load();
            if let Some(at) = find(&list) {
                return Some(at as u16);
            }
            if list.len() >= MAX {
                return None;
            }
            let mut grown = Vec::clone(&list);
            grown.push(Origin::new(node, incarnation, theirs, ours));
            let at = grown.len() - 1;
            let runs = || grown.iter().filter(|o| o.node == node);
            let last = runs().map(|o| o.incarnation).max().unwrap_or(incarnation);
            runs().filter(|o| o.incarnation < last).for_each(|o| o.superseded.store(true, Relaxed));
            let before = self.list.compare_and_swap(&*list, Arc::new(grown));
            if Arc::ptr_eq(&before, &list) {
                return Some(at as u16);
            }
        }
    }
}

/// A hybrid logical clock in microseconds: follows the wall clock, never goes back, and is always
/// ahead of every reading it has seen from another node.
#[derive(Debug, Default)]
pub(crate) struct Hlc(AtomicU64);

impl Hlc {
    /// A reading later than all before it, here or observed.
    pub(crate) fn tick(&self, now: Now) -> u64 {
        let step = |last: u64| Some(now.unix_us.max(last + 1));
        let last = self.0.fetch_update(Relaxed, Relaxed, step).unwrap_or_default();
        now.unix_us.max(last + 1)
    }

    /// Takes note of another node's reading.
    pub(crate) fn observe(&self, reading: u64) {
        if reading <= Hlc::LIMIT {
            self.0.fetch_max(reading, Relaxed);
        }
    }

    /// Readings beyond the year 3000 are nonsense, and refused where they come in.
    pub(crate) const LIMIT: u64 = 32_503_680_000_000_000;
}
