//! What nodes tell each other about places: plain data.

use std::sync::Arc;

use crate::verdict::NodeName;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Name of its backend.
    pub backend: Arc<str>,
    /// Its name.
    pub server: Arc<str>,
}

/// Number of an arbiter's time in office; never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Larger than every one that the node had heard of.
    pub counter: u64,
    /// The arbiter.
    pub node: NodeName,
}

impl Ballot {
    /// Of a peer, higher ones are not believed: no office could come after.
    pub(super) const LAST: u64 = u64::MAX / 2;
}

/// What a node has of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which.
    pub key: Key,
    /// `n` in the node's configuration; 0 = it is being removed there.
    pub limit: u32,
    /// Places that are the node's own.
    pub held: u32,
    /// In use.
    pub served: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// The last order carried out.
    pub applied: u64,
}

/// From node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A sign of life.
    Beat {
        /// The ballot that the sender obeys.
        promised: Ballot,
    },
    /// Arbiter to all: obey me, and report.
    Claim {
        /// Its ballot.
        ballot: Ballot,
    },
    /// To the arbiter.
    Report {
        /// The ballot that the sender obeys.
        ballot: Ballot,
        /// Counts the sender's reports.
        number: u64,
        /// All servers are named that the sender holds places on.
        full: bool,
        /// Server by server.
        lines: Vec<Line>,
    },
    /// Arbiter to a node.
    Order {
        /// The arbiter's ballot.
        ballot: Ballot,
        /// The run of the node that it is for.
        incarnation: u64,
        /// Grows with every order of the arbiter.
        number: u64,
        /// Which server.
        key: Key,
        /// The places that are the node's own from now on.
        held: u32,
        /// It shall use no more than so many, and give the others back.
        cap: u32,
    },
}

impl Message {
    pub(super) fn ballot(&self) -> &Ballot {
        match self {
            Message::Beat { promised: ballot }
            | Message::Claim { ballot }
            | Message::Report { ballot, .. }
            | Message::Order { ballot, .. } => ballot,
        }
    }
}
