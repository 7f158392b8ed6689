//! `on-quorum-loss hold`: the last holder keeps the VIP when it can reach no majority any more.
//!
//! A node cannot tell whether the others are dead or only cut off from it. So whoever chooses this
//! chooses that two nodes may hold the VIP while the cluster is cut in two, one of them by a majority
//! and one, the last holder, without. What still holds:
//! * Of those that hold by a majority there is never more than one: keeping is no part of the protocol
//!   and changes nothing that an acceptor does.
//! * It is only kept by who still holds it: a lease that ran out, in a process that slept, is gone.
//! * Where a majority answers but says no, there is a quorum, and the holder lets go.
//! * The keeper goes on telling all that it holds, so those that (re)start see it before they vote and
//!   leave it the VIP; and it is a candidate all the time, with ballots of its own, so that the first
//!   majority that it reaches makes it a holder again, under a new epoch.
//! * It gives up the moment it hears of another holder, or of one that is about to be, of a later epoch.

use std::time::Duration;

use super::{Ballot, Fit, Lease, Message, NodeId, Output, Reason, Refusal, Role, Tenure};
use crate::time::Now;

/// What the holder does when no majority renews its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuorumLoss {
    /// It lets go: there are never two.
    #[default]
    Release,
    /// It keeps the VIP: there may be two while the cluster is cut in two.
    Hold,
}

/// Kernel and guardian take the VIP away a little before the lease ends: a holder that is to keep it says
/// so before them.
const LEAD: Duration = Duration::from_millis(20);

/// A VIP that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Of the tenure that a majority gave.
    ballot: Ballot,
    until: Duration,
    /// When to prolong it, and to tell.
    next: Duration,
    round: u64,
}

impl Kept {
    pub(super) fn held(&self) -> (Ballot, Duration) {
        (self.ballot, self.until)
    }

    pub(super) fn next(&self) -> Duration {
        self.next
    }
}

impl Lease {
    /// What to do without a majority; said once, before the first message.
    pub fn set_on_quorum_loss(&mut self, policy: QuorumLoss) {
        self.on_quorum_loss = policy;
    }

    /// Whether this node holds the VIP without a majority.
    pub fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// When a lease that ends at `until` is decided about.
    pub(super) fn decided_at(&self, until: Duration) -> Duration {
        match self.on_quorum_loss {
            QuorumLoss::Release => until,
            QuorumLoss::Hold => until.saturating_sub(LEAD.max(self.timing.guard)),
        }
    }

    /// Keeps a lease that is about to run out because nobody answers.
    pub(super) fn keep(&mut self, now: Now) {
        let Role::Tenure(Tenure { ballot, until: Some(until), refused, rounds, .. }) = &self.role else {
            return;
        };
        let (ballot, until) = (*ballot, *until);
        let due = self.on_quorum_loss == QuorumLoss::Hold && now.mono >= self.decided_at(until);
        if !due || now.mono >= until {
            return;
        }
        let against = refused.iter().filter(|&&no| no).count();
        if against > self.group.len() - self.group.majority() {
            return;
        }
        let round = rounds.back().map_or(1, |(round, _)| round + 1);
        self.role = Role::Idle;
        self.candidacy = None;
        self.kept = Some(Kept { ballot, until, next: now.mono, round });
        self.tick_kept(now);
    }

    /// Prolongs what is kept, says so, and tries to get it from a majority.
    pub(super) fn tick_kept(&mut self, now: Now) {
        let Some(kept) = self.kept.as_mut().filter(|kept| now.mono >= kept.next && now.mono < kept.until)
        else {
            return;
        };
        kept.until = kept.until.max(now.mono + self.timing.lease);
        kept.next = now.mono + self.timing.renew;
        kept.round += 1;
        let Kept { ballot, until, round, .. } = *kept;
        self.outputs.push_back(Output::Renewed { ballot, until });
        let (config, term) = (self.group.config, self.timing.lease);
        self.broadcast(Message::Propose { ballot, config, round, term, held: true }, now);
        if matches!(self.role, Role::Idle) && !matches!(self.fit, Fit::No(_)) {
            self.prepare(now);
        }
    }

    /// A keeper hears of another holder.
    pub(super) fn heed_others(&mut self, from: NodeId, message: Message, now: Now) {
        let Some(kept) = &self.kept else { return };
        let other = match message {
            Message::Propose { ballot, .. } if ballot.node == from => ballot,
            Message::Refused { ballot, why: Refusal::Held { by, .. } } if ballot.node == self.group.me => by,
            _ => return,
        };
        if other.node != self.group.me && other.rank() > kept.ballot.rank() {
            self.withdraw(Reason::Superseded(other.node), None, now);
        }
    }
}
