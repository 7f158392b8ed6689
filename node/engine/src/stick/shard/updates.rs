//! A shard's update list, which is the replication log: every entry that this node wrote is in it once,
//! in the order of its newest change. Peers hold cursors into it. So the log is always coalesced, never
//! longer than the table, and costs nothing for a peer that is away.

use smallvec::SmallVec;

use super::{Entry, NIL, Shard};
use crate::planted::{self, Fault};

/// Where a peer stands in the update list: the next entry to send, or `NIL` when it has them all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    pub(crate) next: u32,
    pub(crate) active: bool,
}

/// Both ends of the list, and where every peer stands in it.
#[derive(Debug)]
pub(crate) struct Updates {
    head: u32,
    tail: u32,
    pub(crate) seq: u64,
    pub(crate) cursors: SmallVec<[Cursor; 4]>,
}

impl Updates {
    pub(super) fn new() -> Updates {
        Updates { head: NIL, tail: NIL, seq: 0, cursors: SmallVec::new() }
    }
}

impl Shard {
    /// This node changed the entry: it is now the newest of the log. Returns the peers (one bit each)
    /// that were caught up until now.
    pub(crate) fn publish(&mut self, at: u32) -> u64 {
        self.changes += 1;
        let logged = self.entries[at as usize].seq != 0;
        if !self.shape.shared || logged && planted::is(Fault::PublishOnce) {
            return 0;
        }
        if self.updates.tail != at || self.entries[at as usize].seq == 0 {
            self.unlog(at);
            let tail = self.updates.tail;
            let e = &mut self.entries[at as usize];
            (e.older, e.newer) = (tail, NIL);
            match tail {
                NIL => self.updates.head = at,
                tail => self.entries[tail as usize].newer = at,
            }
            self.updates.tail = at;
        }
        self.updates.seq += 1;
        let e = &mut self.entries[at as usize];
        e.seq = self.updates.seq;
        e.told = e.expire as u32;
        let mut woken = 0;
        for (peer, cursor) in self.updates.cursors.iter_mut().enumerate() {
            if cursor.active && cursor.next == NIL {
                cursor.next = at;
                woken |= 1 << peer;
            }
        }
        woken
    }

    /// Takes an entry out of the log; cursors on it go on to the next one.
    pub(super) fn unlog(&mut self, at: u32) {
        let Entry { seq, older, newer, .. } = self.entries[at as usize];
        if seq == 0 {
            return;
        }
        for cursor in &mut self.updates.cursors {
            if cursor.next == at {
                cursor.next = newer;
            }
        }
        match older {
            NIL => self.updates.head = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NIL => self.updates.tail = older,
            newer => self.entries[newer as usize].older = older,
        }
        self.entries[at as usize].seq = 0;
    }

    /// The peer has everything up to `seq`: its cursor goes to what came after. Returns whether there
    /// is any.
    pub(crate) fn rewind(&mut self, peer: usize, seq: u64) -> bool {
        let cursors = &mut self.updates.cursors;
        while cursors.len() <= peer {
            cursors.push(Cursor { next: NIL, active: false });
        }
        let mut next = NIL;
        if seq == 0 {
            next = self.updates.head;
        } else {
            let mut at = self.updates.tail;
            while at != NIL && self.entries[at as usize].seq > seq {
                next = at;
                at = self.entries[at as usize].older;
            }
        }
        self.updates.cursors[peer] = Cursor { next, active: true };
        next != NIL
    }

    /// The entry after this one in the log.
    pub(crate) fn newer(&self, at: u32) -> u32 {
        self.entries[at as usize].newer
    }

    /// Panics if the log contradicts itself.
    #[cfg(test)]
    pub(super) fn check_log(&self) {
        let (mut at, mut seq) = (self.updates.head, 0);
        while at != NIL {
            assert!(self.entries[at as usize].seq > seq, "the log is in order");
            seq = self.entries[at as usize].seq;
            at = self.entries[at as usize].newer;
        }
        assert!(seq <= self.updates.seq);
    }
}
