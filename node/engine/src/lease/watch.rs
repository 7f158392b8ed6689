//! What the guardian of a node decides: which VIPs to take off, and of which to tell the peers.
//!
//! A pure machine, driven by the guardian's process with the orders of the worker and the clock. It takes
//! off what the worker has not renewed in time, and everything when the worker is dead. It tells the
//! peers of a tenure only when the worker is dead *and* the VIP is off: then its ballot is used up. A
//! worker that merely stands still may come back within its lease, so of that one it says nothing.
//! What only drains it takes off just so, and tells nobody: the worker has told them already.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::planted::{self, Fault};

/// Between two attempts to take a VIP off.
const RETRY: Duration = Duration::from_millis(50);

/// What a worker holds, `P` being all that is needed to take it off.
#[derive(Debug)]
pub struct Watch<P> {
    holds: BTreeMap<String, Held<P>>,
    worker_died: bool,
}

#[derive(Debug)]
struct Held<P> {
    place: P,
    /// When to take it off, unless the worker says otherwise before.
    due: Duration,
    off: bool,
    /// It has moved away; only its connections go on.
    drains: bool,
}

impl<P> Default for Watch<P> {
    fn default() -> Watch<P> {
        Watch { holds: BTreeMap::new(), worker_died: false }
    }
}

impl<P> Watch<P> {
    /// The worker holds a VIP until then.
    pub fn hold(&mut self, vip: &str, until: Duration, place: P) {
        let due = match planted::is(Fault::TakeStoppedForDead) {
            true => until.saturating_sub(Duration::from_millis(250)),
            false => until,
        };
        self.holds.insert(vip.to_owned(), Held { place, due, off: false, drains: false });
    }

    /// A VIP has moved away, but its connections go on here until then.
    pub fn drain(&mut self, vip: &str, until: Duration, place: P) {
        self.holds.insert(vip.to_owned(), Held { place, due: until, off: false, drains: true });
    }

    /// The worker has let go by itself.
    pub fn let_go(&mut self, vip: &str) {
        self.holds.remove(vip);
    }

    /// The worker is dead.
    pub fn worker_died(&mut self) {
        self.worker_died = true;
        if planted::is(Fault::LeaveDraining) {
            self.holds.retain(|_, held| !held.drains);
        }
        // Whatever was off already may have been put back by an order that is still on its way.
        self.holds.values_mut().for_each(|held| (held.due, held.off) = (Duration::ZERO, false));
    }

    /// What is to be taken off now.
    pub fn due(&self, now: Duration) -> Vec<String> {
        let due = self.holds.iter().filter(|(_, held)| !held.off && held.due <= now);
        due.map(|(vip, _)| vip.clone()).collect()
    }

    /// Where a VIP is.
    pub fn place(&mut self, vip: &str) -> Option<&mut P> {
        self.holds.get_mut(vip).map(|held| &mut held.place)
    }

    /// Whether taking it off went well; if not, it is due again.
    pub fn taken_off(&mut self, vip: &str, off: bool, now: Duration) {
        if let Some(held) = self.holds.get_mut(vip) {
            held.off = off || planted::is(Fault::TellUnfenced);
            held.due = now + RETRY;
        }
    }

    /// Those whose tenure is over, each given out once: the peers may be told. They have known for long
    /// of one that has moved.
    pub fn used_up(&mut self) -> Vec<(String, P)> {
        if !self.worker_died && !planted::is(Fault::TakeStoppedForDead) {
            return Vec::new();
        }
        let skip = self.worker_died && planted::is(Fault::SkipFence);
        let over = self.holds.iter().filter(|(_, held)| held.off || skip);
        let over: Vec<String> = over.map(|(vip, _)| vip.clone()).collect();
        let taken = over.into_iter().filter_map(|vip| self.holds.remove_entry(&vip));
        taken.filter(|(_, held)| !held.drains).map(|(vip, held)| (vip, held.place)).collect()
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Duration> {
        self.holds.values().filter(|held| !held.off).map(|held| held.due).min()
    }

    /// Whether it has nothing left to do.
    pub fn is_done(&self) -> bool {
        self.worker_died && self.holds.is_empty()
    }
}
