//! `set` and `clear` of an entry, and the folding of runs that are over.
//!
//! Counters only grow, so that merging is a maximum; what is set or cleared is therefore put *beside*
//! them: a reset holds, by the hybrid clock, what was set, and for every origin how far its slot was
//! when the one who set it looked (a *base*). A counter reads as what was set, plus what each slot grew
//! since its base. So a node that was away brings back nothing of what was cleared, and what it
//! counted meanwhile is kept. The last reset of an entry wins as a whole; it holds for columns that it
//! was not about what held before.
//!
//! A node that starts again takes what its earlier runs counted into its own slot (*folds*), once it
//! has learned from every peer what that is. From then on its slot voids those of the earlier runs
//! wherever it is merged, so that their number does not grow with restarts. Bases of an earlier run
//! then count for the slot that took it in.

use super::layout::{Column, Kind};
use super::origin::{Origins, SELF};
use super::rate;
use super::shard::{Shard, beats, get64, hlc, put64};

/// What a slot of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Role {
    /// What its origin counted.
    Data,
    /// The same; slots of earlier runs of the same node are void.
    Voiding,
    /// The same; it contains what slots of earlier runs had.
    Folded,
    /// How far the slot of its origin was at the reset.
    Base,
    /// A reset: born when it was made, by its origin, with what was set.
    Set,
    /// Registers written up to its birth are cleared.
    Cleared,
}

impl Role {
    /// Whether an origin counts in it.
    pub(crate) fn is_data(self) -> bool {
        self <= Role::Folded
    }

    pub(crate) const ALL: [Role; 6] =
        [Role::Data, Role::Voiding, Role::Folded, Role::Base, Role::Set, Role::Cleared];
}

impl Shard {
    /// The entry's slot of a role that it has once at most.
    pub(crate) fn one(&self, at: u32, role: Role) -> Option<u32> {
        self.chain(at).find(|&s| self.slots[s as usize].role == role)
    }

    /// When the entry was last cleared; 0 = never.
    pub(crate) fn cleared(&self, at: u32) -> u64 {
        self.one(at, Role::Cleared).map_or(0, |s| self.slots[s as usize].birth)
    }

    /// Notes that registers written up to `when` are cleared.
    pub(crate) fn raise_cleared(&mut self, at: u32, when: u64) -> bool {
        let before = self.cleared(at);
        match self.one(at, Role::Cleared) {
            _ if when <= before => return false,
            Some(s) => self.slots[s as usize].birth = when,
            None => _ = self.add_slot(at, SELF, Role::Cleared, when),
        }
        true
    }

    /// What a column reads where the entry was reset.
    pub(crate) fn read_reset(&self, at: u32, column: Column, origins: &Origins) -> u64 {
        let mut sum = 0i128;
        for s in self.chain(at) {
            let slot = self.slots[s as usize];
            match slot.role {
                Role::Set => {
                    let w = &self.slot_words(s)[column.range()];
                    // A gauge that was set stays what it was set to, whoever lives.
                    let origin = if column.of.kind == Kind::Gauge { SELF } else { slot.origin };
                    sum += i128::from(self.share(origin, w, column, origins));
                }
                role if role.is_data() => sum += self.grown(at, s, column, origins),
                _ => {}
            }
        }
        u64::try_from(sum.max(0)).unwrap_or(u64::MAX)
    }

    /// What one slot adds to an entry; of a register what it holds.
    pub(crate) fn part(&self, at: u32, s: u32, column: Column, origins: &Origins) -> u64 {
        let (slot, w) = (self.slots[s as usize], &self.slot_words(s)[column.range()]);
        match column.of.kind {
            Kind::Register | Kind::Text => u64::from(w[0]),
            // A gauge that was set stays what it was set to, whoever lives.
            Kind::Gauge if slot.role == Role::Set => u64::from(w[0]),
            _ if slot.role == Role::Set => self.share(slot.origin, w, column, origins),
            _ => u64::try_from(self.grown(at, s, column, origins).max(0)).unwrap_or(u64::MAX),
        }
    }

    /// What a slot grew since its base.
    fn grown(&self, at: u32, s: u32, column: Column, origins: &Origins) -> i128 {
        let slot = self.slots[s as usize];
        let w = &self.slot_words(s)[column.range()];
        let base = self.chain(at).find(|&b| {
            let base = &self.slots[b as usize];
            base.role == Role::Base && base.origin == slot.origin && base.birth >= slot.birth
        });
        if base.is_some_and(|b| self.slots[b as usize].birth > slot.birth) {
            return 0;
        }
        let base = base.map(|b| &self.slot_words(b)[column.range()]);
        match column.of.kind {
            Kind::Rate => {
                let w = base.map_or([w[0], w[1], w[2]], |base| rate::since(w, base, column.period));
                i128::from(self.share(slot.origin, &w, column, origins))
            }
            Kind::Gauge => {
                let list = origins.list();
                let of = list.get(usize::from(slot.origin));
                let lives = slot.origin == SELF || of.is_some_and(|o| o.lives(self.now));
                let taken = base.map_or(0, |base| i128::from(base[0]));
                if lives { i128::from(w[0]) - taken } else { 0 }
            }
            Kind::Counter | Kind::Counter64 => {
                let mut left = number(w, column.of.kind);
                left = left.saturating_sub(base.map_or(0, |base| number(base, column.of.kind)));
                if slot.role == Role::Folded {
                    for b in self.chain(at).filter(|&b| self.is_earlier_base(b, slot.origin, origins)) {
                        left =
                            left.saturating_sub(number(&self.slot_words(b)[column.range()], column.of.kind));
                    }
                }
                i128::from(left)
            }
            Kind::Register | Kind::Text => 0,
        }
    }

    /// Whether a slot is the base of an earlier run of the node of `origin`.
    fn is_earlier_base(&self, b: u32, origin: u16, origins: &Origins) -> bool {
        let base = &self.slots[b as usize];
        base.role == Role::Base && origins.is_earlier(base.origin, origin)
    }

    /// Whether nothing counts in the entry: it was cleared and nothing has grown since.
    pub(crate) fn is_void(&self, at: u32, origins: &Origins) -> bool {
        let (Some(set), cleared) = (self.one(at, Role::Set), self.cleared(at)) else { return false };
        if self.slots[set as usize].birth != cleared {
            return false;
        }
        self.chain(at)
            .filter(|&s| self.slots[s as usize].role.is_data())
            .all(|s| self.is_covered(at, s, cleared, origins))
    }

    /// Whether a data slot adds nothing to what the reset of its entry says.
    pub(crate) fn is_covered(&self, at: u32, s: u32, cleared: u64, origins: &Origins) -> bool {
        let words = self.slot_words(s);
        self.shape.layout.columns().iter().all(|&c| match c.of.kind {
            Kind::Register | Kind::Text => hlc(&words[c.range()]) <= cleared,
            Kind::Gauge => words[c.at] == 0,
            Kind::Rate => match self.base_of(at, s) {
                Some(b) => {
                    let left = rate::since(&words[c.range()], &self.slot_words(b)[c.range()], c.period);
                    (left[1], left[2]) == (0, 0)
                }
                None => (words[c.at + 1], words[c.at + 2]) == (0, 0) || self.is_stale(at, s),
            },
            Kind::Counter | Kind::Counter64 => self.grown(at, s, c, origins) == 0,
        })
    }

    /// The base of a data slot, if it is of the same birth.
    fn base_of(&self, at: u32, s: u32) -> Option<u32> {
        let slot = self.slots[s as usize];
        self.chain(at).find(|&b| {
            let base = &self.slots[b as usize];
            base.role == Role::Base && (base.origin, base.birth) == (slot.origin, slot.birth)
        })
    }

    /// Whether a data slot has been begun anew since, as its base tells.
    fn is_stale(&self, at: u32, s: u32) -> bool {
        let slot = self.slots[s as usize];
        self.chain(at).any(|b| {
            let base = &self.slots[b as usize];
            base.role == Role::Base && base.origin == slot.origin && base.birth > slot.birth
        })
    }

    /// Resets columns of an entry to `values`: all of `named` get what stands there, all others keep
    /// what they have. `clears` drops registers too.
    pub(crate) fn reset(
        &mut self,
        at: u32,
        birth: u64,
        values: &[u32],
        named: impl Fn(&Column) -> bool,
        clears: bool,
        origins: &Origins,
    ) {
        self.changes += 1;
        let layout = self.shape.layout.clone();
        let columns =
            || layout.columns().iter().filter(|c| !matches!(c.of.kind, Kind::Register | Kind::Text));
        let mut words = values.to_vec();
        let old = self.one(at, Role::Set);
        for c in columns().filter(|c| !named(c)) {
            let kept = old.map(|s| self.slot_words(s)[c.range()].to_vec());
            words[c.range()].fill(0);
            if let Some(mut kept) = kept {
                if let (Kind::Rate, Some(s)) = (c.of.kind, old) {
                    // The tick is on the clock of who set it; from now on that is this node.
                    let by = self.slots[s as usize].origin;
                    kept[0] = origins.onto_ours(by, kept[0]);
                }
                words[c.range()].copy_from_slice(&kept);
            }
        }
        let slots: Vec<u32> = self.chain(at).filter(|&s| self.slots[s as usize].role.is_data()).collect();
        let mut bases = Vec::with_capacity(slots.len());
        for &s in &slots {
            let (slot, mut base) = (self.slots[s as usize], self.slot_words(s).to_vec());
            for c in columns().filter(|c| !named(c)) {
                let before = self.base_of(at, s).map(|b| self.slot_words(b)[c.range()].to_vec());
                base[c.range()].fill(0);
                if let Some(before) = before {
                    base[c.range()].copy_from_slice(&before);
                }
                if slot.role == Role::Folded && matches!(c.of.kind, Kind::Counter | Kind::Counter64) {
                    for b in self.chain(at).filter(|&b| self.is_earlier_base(b, slot.origin, origins)) {
                        let more = number(&self.slot_words(b)[c.range()], c.of.kind);
                        add(&mut base[c.range()], c.of.kind, more);
                    }
                }
            }
            bases.push((slot.origin, slot.birth, base));
        }
        let covered = |base: &super::shard::Slot| {
            slots.iter().any(|&s| {
                let slot = &self.slots[s as usize];
                slot.origin == base.origin
                    || slot.role != Role::Data && origins.is_earlier(base.origin, slot.origin)
            })
        };
        let mut kept = Vec::new();
        for b in self.chain(at) {
            let base = self.slots[b as usize];
            if base.role == Role::Base && !covered(&base) {
                kept.push((base.origin, base.birth, self.slot_words(b).to_vec()));
            }
        }
        self.drop_slots(at, |slot| matches!(slot.role, Role::Base | Role::Set));
        for (origin, birth, words) in kept.into_iter().chain(bases) {
            let b = self.add_slot(at, origin, Role::Base, birth);
            self.slot_words_mut(b).copy_from_slice(&words);
        }
        let set = self.add_slot(at, SELF, Role::Set, birth);
        self.slot_words_mut(set).copy_from_slice(&words);
        if clears {
            self.raise_cleared(at, birth);
        }
        if self.is_void(at, origins) {
            self.bury(at);
        }
    }

    /// Takes what slots of earlier runs of this node hold into its own slot, which voids them.
    pub(crate) fn absorb(&mut self, at: u32, own: u32, origins: &Origins) {
        let now = self.now as u32;
        let past: Vec<u32> = self
            .chain(at)
            .filter(|&s| {
                let slot = &self.slots[s as usize];
                slot.role.is_data() && origins.is_earlier(slot.origin, SELF)
            })
            .collect();
        if past.is_empty() {
            return;
        }
        self.slots[own as usize].role = Role::Folded;
        for c in self.shape.layout.clone().columns() {
            for &s in &past {
                let origin = self.slots[s as usize].origin;
                let mut theirs = [0; 3];
                let width = c.of.kind.words();
                theirs[..width].copy_from_slice(&self.slot_words(s)[c.range()]);
                if c.of.kind == Kind::Rate {
                    theirs[0] = origins.onto_ours(origin, theirs[0]);
                }
                let mine = &mut self.slot_words_mut(own)[c.range()];
                match c.of.kind {
                    Kind::Counter | Kind::Counter64 => {
                        let more = number(&theirs, c.of.kind);
                        add(mine, c.of.kind, more);
                    }
                    Kind::Rate => rate::fold(mine, &theirs, now, c.period),
                    Kind::Register | Kind::Text if hlc(&theirs) > hlc(mine) => mine.copy_from_slice(&theirs),
                    // What went on in a run that is over has ended.
                    Kind::Register | Kind::Text | Kind::Gauge => {}
                }
            }
        }
        self.drop_slots(at, |slot| slot.role.is_data() && origins.is_earlier(slot.origin, SELF));
    }

    /// Whether an entry has slots of earlier runs of this node.
    pub(crate) fn has_past(&self, at: u32, origins: &Origins) -> bool {
        self.is_live(at)
            && self.chain(at).any(|s| {
                let slot = &self.slots[s as usize];
                slot.role.is_data() && origins.is_earlier(slot.origin, SELF)
            })
    }

    /// Drops slots that another one in the chain voids, and bases of runs of which nothing was taken in.
    pub(crate) fn drop_voided(&mut self, at: u32, origins: &Origins) {
        let voiding: Vec<(u16, Role)> = self
            .chain(at)
            .map(|s| (self.slots[s as usize].origin, self.slots[s as usize].role))
            .filter(|(_, role)| matches!(role, Role::Voiding | Role::Folded))
            .collect();
        if voiding.is_empty() {
            return;
        }
        self.drop_slots(at, |slot| {
            voiding.iter().any(|&(by, role)| match slot.role {
                Role::Base => role == Role::Voiding && origins.is_earlier(slot.origin, by),
                of => of.is_data() && origins.is_earlier(slot.origin, by),
            })
        });
    }

    /// Whether a slot of `origin` would be void in this entry.
    pub(crate) fn is_voided(&self, at: u32, origin: u16, origins: &Origins) -> bool {
        self.chain(at).map(|s| self.slots[s as usize]).any(|slot| {
            matches!(slot.role, Role::Voiding | Role::Folded) && origins.is_earlier(origin, slot.origin)
        })
    }

    /// Whether a reset made at `birth` by `origin` supersedes that of the entry.
    pub(crate) fn supersedes(&self, at: u32, birth: u64, origin: u16, origins: &Origins) -> bool {
        self.one(at, Role::Set).is_none_or(|s| {
            let set = &self.slots[s as usize];
            birth > set.birth
                || birth == set.birth && origin != set.origin && beats(origins, origin, set.origin)
        })
    }
}

fn number(w: &[u32], kind: Kind) -> u64 {
    if kind == Kind::Counter64 { get64(w) } else { u64::from(w[0]) }
}

fn add(w: &mut [u32], kind: Kind, n: u64) {
    match kind {
        Kind::Counter64 => put64(w, get64(w).saturating_add(n)),
        _ => w[0] = w[0].saturating_add(u32::try_from(n).unwrap_or(u32::MAX)),
    }
}
