//! What nodes say to each other about a lease. The `cluster` crate turns it into protobuf and back.

use std::fmt;
use std::time::Duration;

/// A node, by the number that it was given when it became a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

/// Identity of one candidacy, and of the tenure that it may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ballot {
    /// Rises from candidacy to candidacy.
    pub counter: u64,
    /// Who made it.
    pub node: NodeId,
    /// Life of that node; part of the identity, not of the rank.
    pub incarnation: u64,
}

impl Ballot {
    /// What ballots are ordered by.
    pub fn rank(self) -> (u64, NodeId) {
        (self.counter, self.node)
    }

    /// The fencing token: ordered as ballots are.
    pub fn epoch(self) -> Epoch {
        Epoch(self.counter.saturating_mul(256).saturating_add(u64::from(self.node.0)))
    }
}

/// Fencing token of a tenure: a later tenure has a higher one. Fits into 53 bits, as JSON readers want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A message about one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Candidate to all: would you grant me the lease?
    Prepare {
        /// The candidacy.
        ballot: Ballot,
        /// The sender's configuration: over whom it counts majorities.
        config: u64,
    },
    /// Yes.
    Promise {
        /// As asked.
        ballot: Ballot,
    },
    /// Candidate or holder to all: grant me the lease (again).
    Propose {
        /// The candidacy or tenure.
        ballot: Ballot,
        /// The sender's configuration: over whom it counts majorities.
        config: u64,
        /// To be echoed.
        round: u64,
        /// For how long.
        term: Duration,
        /// The sender holds the lease: this renews it.
        held: bool,
    },
    /// Granted.
    Accepted {
        /// As asked.
        ballot: Ballot,
        /// As asked.
        round: u64,
    },
    /// No.
    Refused {
        /// As asked.
        ballot: Ballot,
        /// Why not.
        why: Refusal,
    },
    /// The maker of the ballot has let go, and never uses it again.
    Release {
        /// Used up.
        ballot: Ballot,
        /// Who gets the first chance.
        to: Option<NodeId>,
    },
}

/// Why an acceptor says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has just started, and votes in so long.
    Starting {
        /// Left of the start wait.
        left: Duration,
    },
    /// It has promised a ballot with this counter.
    Outranked {
        /// Of the promised ballot.
        counter: u64,
    },
    /// Another node's lease runs.
    Held {
        /// Whose.
        by: Ballot,
        /// For how long.
        left: Duration,
    },
    /// It would not grant for so long.
    TooLong {
        /// What it would.
        longest: Duration,
    },
    /// The sender counts majorities over nodes that are no longer those of the cluster.
    Outdated {
        /// The oldest configuration that it votes in.
        config: u64,
    },
}

impl Message {
    /// What it is about.
    pub fn ballot(&self) -> Ballot {
        match *self {
            Message::Prepare { ballot, .. }
            | Message::Promise { ballot }
            | Message::Propose { ballot, .. }
            | Message::Accepted { ballot, .. }
            | Message::Refused { ballot, .. }
            | Message::Release { ballot, .. } => ballot,
        }
    }

    /// Highest counter that it mentions.
    pub(super) fn counter(&self) -> u64 {
        let other = match self {
            Message::Refused { why: Refusal::Outranked { counter }, .. } => *counter,
            Message::Refused { why: Refusal::Held { by, .. }, .. } => by.counter,
            _ => 0,
        };
        // A counter near the end of its range can only come from a broken peer; taking it over would
        // leave no higher ballot.
        [self.ballot().counter, other].into_iter().filter(|&c| c < COUNTER_LIMIT).max().unwrap_or(0)
    }
}

/// No honest counter comes near: it is milliseconds since 1970, for some ten thousand years more.
pub(super) const COUNTER_LIMIT: u64 = 1 << 48;
