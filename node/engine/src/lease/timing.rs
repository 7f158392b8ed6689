//! The times of the protocol, all from one: for how long a lease is granted.

use std::time::Duration;

use crate::planted::{self, Fault};

/// Times of the protocol; the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// What an acceptor grants, and the longest that it would.
    pub lease: Duration,
    /// What the holder leaves unused, for the drift of clocks and the time that withdrawing takes.
    pub guard: Duration,
    /// Between two proposals of the holder.
    pub renew: Duration,
    /// How long after its start a node does not vote.
    pub start_wait: Duration,
    /// How long a candidacy may take.
    pub attempt: Duration,
    /// Between the candidacies of nodes of different rank.
    pub step: Duration,
    /// First chance of the preferred node, or of the target of a planned move.
    pub head_start: Duration,
}

impl Timing {
    /// Default term: long enough for a machine that now and then does not run us for 200 ms, and short
    /// enough for a lost host to cost less than 400.
    pub const DEFAULT_LEASE: Duration = Duration::from_millis(350);

    /// The default of programs that did not say what theirs is.
    pub const FORMER_DEFAULT: Duration = Duration::from_millis(400);

    /// All times from the term. The range is [`phalanx_config::model::VIP_LEASE`]: safety holds for every
    /// term, a shorter one would just not be renewed in time. The guard of an eighth covers clocks that are 12 % apart.
    ///
    /// A renewal every fifth: three in a row may be lost, and a holder that stands still just before it would
    /// have renewed has two thirds of the term to come back.
    pub fn of(lease: Duration) -> Timing {
        Timing {
            lease,
            guard: lease / 8,
            renew: lease / 5,
            start_wait: lease + lease / 8,
            attempt: lease / 3,
            step: lease / 40,
            head_start: lease / 2,
        }
    }
}

impl Timing {
    /// The same times for a node whose earlier run may have granted for as long as `earlier`.
    pub fn after(self, earlier: Duration) -> Timing {
        if planted::is(Fault::ForgetTerm) {
            return self;
        }
        Timing { start_wait: self.start_wait.max(Timing::of(earlier).start_wait), ..self }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::of(Timing::DEFAULT_LEASE)
    }
}
