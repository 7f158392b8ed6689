//! What nodes tell each other about probes: plain data.

use std::sync::Arc;

use crate::health::Report;
use crate::server::OpState;

/// What is probed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Name of the backend.
    pub backend: Arc<str>,
    /// Name of the server.
    pub server: Arc<str>,
    /// By what kind of probe.
    pub kind: Kind,
    /// Where and how: nodes whose configurations differ in it don't rely on each other.
    pub how: u64,
}

/// Kinds of probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `check`.
    #[default]
    Health,
    /// `agent-check`.
    Agent,
}

/// How a node stands to a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// It leaves it to others.
    #[default]
    Idle,
    /// It probes it for all.
    Probing,
    /// It cannot reach it although others can.
    Apart,
}

/// What the node that probes knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The counter of rise and fall.
    pub health: u32,
    /// Up, down or stopping.
    pub op: OpState,
    /// The last probe; `None` = none yet.
    pub report: Option<Report>,
    /// Revision of the last `set server … health` that the node has carried out.
    pub forced: u64,
    /// What the server's agent said last; empty for other kinds.
    pub said: String,
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict { health: 0, op: OpState::Running, report: None, forced: 0, said: String::new() }
    }
}

impl Verdict {
    /// Equal, but for how long the probe took.
    pub fn is_like(&self, other: &Verdict) -> bool {
        let seen = |v: &Verdict| v.report.as_ref().map(|r| (r.status, r.code, r.info.clone()));
        (self.health, self.op, self.forced, &self.said) == (other.health, other.op, other.forced, &other.said)
            && seen(self) == seen(other)
    }
}

/// A node's stance to a subject, and its verdict if it probes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub subject: Subject,
    /// How the node stands to it.
    pub stance: Stance,
    /// What it knows.
    pub verdict: Verdict,
    /// Grows with every change of any claim of the node.
    pub version: u64,
}

/// From node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A sign of life, and an acknowledgement.
    Beat {
        /// The sender's claims are at this version.
        version: u64,
        /// The run of the receiver that `acked` is about.
        of: u64,
        /// The receiver's claims are known up to this version.
        acked: u64,
    },
    /// Claims that changed after `base`, up to `upto`; `base` 0 = all there are.
    Claims {
        /// What the receiver must have.
        base: u64,
        /// What it has then.
        upto: u64,
        /// In order of version.
        claims: Vec<Claim>,
    },
}
