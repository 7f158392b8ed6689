//! A wheel of timers: what is due when, to the millisecond, for very many.
//!
//! Each level has 64 slots, of which one is as long as the whole level below. Adding and removing takes the
//! same time whatever there is in it; an entry moves down a level when the slot that it is in begins, at
//! most six times. Knows no clock: time is a number of milliseconds that only grows. An entry takes 32
//! bytes, since each idle connection has one.

use slab::Slab;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// Enough for a century and more.
const LEVELS: usize = 7;
/// What is due later is due then.
const LAST: u64 = (1 << (BITS * LEVELS as u32)) - 1;
/// No entry.
const NONE: u32 = u32::MAX;
/// When an entry is due that is in no slot.
const OUT: u64 = u64::MAX;

/// The wheel. A `T` is handed out when it is due; its entry stays until it is removed.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    /// All that was due until then has been handed out.
    now: u64,
    levels: [Level; LEVELS],
    entries: Slab<Entry<T>>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    /// A bit for each slot that has entries.
    occupied: u64,
    first: [u32; SLOTS],
}

#[derive(Debug)]
struct Entry<T> {
    /// Or [`OUT`].
    due: u64,
    /// Neighbours in its slot.
    before: u32,
    after: u32,
    /// Gone when it was handed out.
    held: Option<T>,
}

impl<T> Wheel<T> {
    pub(super) fn new() -> Wheel<T> {
        let level = Level { occupied: 0, first: [NONE; SLOTS] };
        Wheel { now: 0, levels: [level; LEVELS], entries: Slab::new() }
    }

    /// Adds an entry; returns its number.
    pub(super) fn add(&mut self, due: u64, held: T) -> u32 {
        let due = self.later(due);
        // There are never as many: each is of a descriptor.
        let key = self.entries.insert(Entry { due, before: NONE, after: NONE, held: Some(held) }) as u32;
        self.link(key, due);
        key
    }

    /// When an entry is due; `None` if it was handed out.
    pub(super) fn due(&self, key: u32) -> Option<u64> {
        self.entries.get(key as usize).map(|entry| entry.due).filter(|due| *due != OUT)
    }

    /// Moves an entry that was not handed out.
    pub(super) fn move_to(&mut self, key: u32, due: u64) {
        let due = self.later(due);
        if self.unlink(key) {
            self.link(key, due);
        }
    }

    /// Adds an entry again that was handed out.
    pub(super) fn renew(&mut self, key: u32, due: u64, held: T) {
        let due = self.later(due);
        self.unlink(key);
        if let Some(entry) = self.entries.get_mut(key as usize) {
            entry.held = Some(held);
            self.link(key, due);
        }
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, key: u32) -> Option<T> {
        self.unlink(key);
        self.entries.try_remove(key as usize)?.held
    }

    /// When to advance next: no later than something is due, possibly earlier.
    pub(super) fn next(&self) -> Option<u64> {
        self.next_slot().map(|(_, _, begin)| begin)
    }

    /// Hands out what is due by `now`.
    pub(super) fn advance(&mut self, now: u64, mut out: impl FnMut(T)) {
        while let Some((level, slot, begin)) = self.next_slot().filter(|(_, _, begin)| *begin <= now) {
            self.now = begin;
            let slots = &mut self.levels[level];
            slots.occupied &= !(1 << slot);
            let mut key = std::mem::replace(&mut slots.first[slot], NONE);
            while let Some(entry) = self.entries.get_mut(key as usize) {
                let (this, due) = (key, entry.due);
                key = entry.after;
                if due <= begin {
                    entry.due = OUT;
                    entry.held.take().into_iter().for_each(&mut out);
                } else {
                    self.link(this, due);
                }
            }
        }
        self.now = self.now.max(now);
    }

    /// The first slot to come that has entries, and when it begins. Lower levels come first.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let (level, slots) = self.levels.iter().enumerate().find(|(_, slots)| slots.occupied != 0)?;
        // Nothing is in a slot that has begun, and levels do not wrap: the next one is the lowest.
        let slot = slots.occupied.trailing_zeros() as usize;
        let above = BITS * (level as u32 + 1);
        Some((level, slot, (self.now >> above << above) | (slot as u64) << (BITS * level as u32)))
    }

    /// A moment for which there is a slot: after now.
    fn later(&self, due: u64) -> u64 {
        due.max(self.now + 1).min(LAST)
    }

    /// Where an entry is: the highest level at which its slot is not the present one.
    fn place(&self, due: u64) -> (usize, usize) {
        let differing = 63 - ((self.now ^ due) | 1).leading_zeros();
        let level = ((differing / BITS) as usize).min(LEVELS - 1);
        (level, (due >> (BITS * level as u32)) as usize % SLOTS)
    }

    fn link(&mut self, key: u32, due: u64) {
        let (level, slot) = self.place(due);
        let slots = &mut self.levels[level];
        slots.occupied |= 1 << slot;
        let after = std::mem::replace(&mut slots.first[slot], key);
        if let Some(entry) = self.entries.get_mut(after as usize) {
            entry.before = key;
        }
        if let Some(entry) = self.entries.get_mut(key as usize) {
            (entry.due, entry.before, entry.after) = (due, NONE, after);
        }
    }

    /// Takes an entry out of its slot; `false` = it was in none.
    fn unlink(&mut self, key: u32) -> bool {
        let Some(entry) = self.entries.get_mut(key as usize).filter(|entry| entry.due != OUT) else {
            return false;
        };
        let (due, before, after) = (std::mem::replace(&mut entry.due, OUT), entry.before, entry.after);
        if let Some(next) = self.entries.get_mut(after as usize) {
            next.before = before;
        }
        match self.entries.get_mut(before as usize) {
            Some(previous) => previous.after = after,
            None => {
                let (level, slot) = self.place(due);
                let slots = &mut self.levels[level];
                slots.first[slot] = after;
                if after == NONE {
                    slots.occupied &= !(1 << slot);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::task::Waker;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Beside a list of what is due when: nothing comes early, late, twice or after it was removed.
    #[test]
    fn all_comes_when_it_is_due() {
        for seed in 0..200 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut wheel = Wheel::new();
            // By number of the entry.
            let mut waiting: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
            let mut out: Vec<u32> = Vec::new();
            let mut now = 0;
            for id in 0..2000 {
                let ahead = |random: &mut SmallRng| {
                    let far = random.random_range(0..30);
                    random.random_range(0..=1_u64 << far)
                };
                match random.random_range(0..10) {
                    0..=4 => {
                        let due = now + ahead(&mut random);
                        let key = match out.pop() {
                            Some(key) => {
                                wheel.renew(key, due, id);
                                key
                            }
                            None => wheel.add(due, id),
                        };
                        waiting.insert(key, (due.max(now + 1), id));
                    }
                    action @ 5..=7 => {
                        let nth = random.random_range(0..waiting.len().max(1));
                        let Some((&key, &(due, id))) = waiting.iter().nth(nth) else { continue };
                        assert_eq!(wheel.due(key), Some(due), "seed {seed}");
                        if action == 5 {
                            assert_eq!(wheel.remove(key), Some(id), "seed {seed}");
                            waiting.remove(&key);
                        } else {
                            let due = now + ahead(&mut random);
                            wheel.move_to(key, due);
                            waiting.insert(key, (due.max(now + 1), id));
                        }
                    }
                    _ => {
                        let first = waiting.values().map(|(due, _)| *due).min();
                        assert!(wheel.next() <= first && wheel.next().is_some() == first.is_some());
                        let next = wheel.next().filter(|_| random.random_range(0..2) == 0);
                        now = next.unwrap_or(now + ahead(&mut random));
                        let mut came = Vec::new();
                        wheel.advance(now, |id| came.push(id));
                        let is_due = |(_, (due, _)): &(&u32, &(u64, u32))| *due <= now;
                        let expected: Vec<_> = waiting.iter().filter(is_due).collect();
                        let keys: Vec<u32> = expected.iter().map(|(key, _)| **key).collect();
                        let mut expected: Vec<u32> = expected.iter().map(|(_, (_, id))| *id).collect();
                        came.sort_unstable();
                        expected.sort_unstable();
                        assert_eq!(came, expected, "seed {seed}, at {now}");
                        for key in keys {
                            assert_eq!(wheel.due(key), None);
                            waiting.remove(&key);
                            out.push(key);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_never_due_is_in_the_last_slot() {
        let mut wheel = Wheel::new();
        let key = wheel.add(u64::MAX - 1, "far");
        assert_eq!(wheel.due(key), Some(LAST));
        wheel.advance(LAST - 1, |_| panic!("early"));
        let mut came = None;
        wheel.advance(LAST, |held| came = Some(held));
        assert_eq!((came, wheel.next(), wheel.remove(key)), (Some("far"), None, None));
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Entry<Waker>>(), 32);
        assert_eq!(size_of::<(u8, Entry<Waker>)>() - 8, 32);
    }
}
