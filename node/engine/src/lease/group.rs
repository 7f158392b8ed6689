//! Who takes part in a lease, and what a majority of them is.

use super::message::NodeId;
use crate::planted::{self, Fault};

/// A node with a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its number.
    pub id: NodeId,
    /// It votes but never holds.
    pub witness: bool,
}

/// Who takes part, seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// This node.
    pub me: NodeId,
    /// Different for each start of the process.
    pub incarnation: u64,
    /// Number of the configuration.
    pub config: u64,
    /// Those that vote, in order of [`NodeId`].
    pub voters: Vec<Voter>,
    /// Node with the first chance at a VIP that nobody has held yet.
    pub prefer: Option<NodeId>,
}

impl Group {
    pub(super) fn len(&self) -> usize {
        self.voters.len()
    }

    pub(super) fn majority(&self) -> usize {
        let less = usize::from(planted::is(Fault::MinorityIsEnough) && self.len() > 1);
        self.len() / 2 + 1 - less
    }

    /// Place of a node among the voters.
    pub(super) fn place(&self, id: NodeId) -> Option<usize> {
        self.voters.binary_search_by_key(&id, |v| v.id).ok()
    }

    /// Whether this node may be a candidate at all.
    pub(super) fn may_hold(&self) -> bool {
        self.place(self.me).is_some_and(|at| !self.voters[at].witness || planted::is(Fault::WitnessHolds))
    }
}
