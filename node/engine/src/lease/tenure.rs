//! The asking half of a lease: a candidacy, and the tenure that it leads to when a majority grants it.
//!
//! First it asks whether a majority would (`Prepare`), which binds nobody; then for the grants
//! (`Propose`); and with them it holds, and asks for them again and again. What an acknowledgement is
//! worth is counted from before its question was sent (the second obligation of [`super`]).

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt as _;

use super::{Ballot, Lease, Message, NodeId, Output, Refusal};
use crate::planted::{self, Fault};
use crate::time::Now;

#[derive(Debug)]
pub(super) enum Role {
    Idle,
    /// Asking whether a majority would grant.
    Preparing {
        ballot: Ballot,
        since: Duration,
        promised: Vec<bool>,
        refused: Vec<bool>,
        /// When a grant ends that somebody still gives another node.
        again: Option<Duration>,
    },
    /// Asking for grants, and once a majority has given them, holding.
    Tenure(Tenure),
    /// The driver is taking the address away.
    Withdrawing {
        ballot: Ballot,
        to: Option<NodeId>,
    },
}

#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) ballot: Ballot,
    pub(super) since: Duration,
    /// Rounds sent whose acknowledgement still counts, with the time before sending.
    pub(super) rounds: VecDeque<(u64, Duration)>,
    /// For every node, when the newest round that it acknowledged was sent.
    pub(super) acked: Vec<Option<Duration>>,
    /// Acknowledgements of earlier rounds belong to another configuration.
    pub(super) counts_from: u64,
    pub(super) refused: Vec<bool>,
    /// `None` until the first majority.
    pub(super) until: Option<Duration>,
}

impl Tenure {
    pub(super) fn last_sent(&self) -> Option<(u64, Duration)> {
        self.rounds.back().copied()
    }

    fn round(&self, number: u64) -> Option<&(u64, Duration)> {
        self.rounds.iter().find(|(round, _)| *round == number)
    }

    /// When the newest round that a majority has acknowledged was sent.
    fn majority_sent(&self, majority: usize) -> Option<Duration> {
        let mut sent: Vec<Duration> = self.acked.iter().flatten().copied().collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        sent.get(majority - 1).copied()
    }
}

/// Rounds remembered: more than fit into a term.
const ROUNDS: usize = 16;

impl Lease {
    pub(super) fn prepare(&mut self, now: Now) {
        self.candidacy = None;
        if !planted::is(Fault::ReuseBallot) || self.counter == 0 {
            self.counter = (self.counter + 1).max(now.unix_us / 1000);
        }
        let ballot =
            Ballot { counter: self.counter, node: self.group.me, incarnation: self.group.incarnation };
        let promised = vec![false; self.group.len()];
        let refused = promised.clone();
        self.role = Role::Preparing { ballot, since: now.mono, promised, refused, again: None };
        self.broadcast(Message::Prepare { ballot, config: self.group.config }, now);
    }

    /// Asks those again that would not yet.
    pub(super) fn prepare_again(&mut self, now: Now) {
        let Role::Preparing { ballot, refused, again, .. } = &mut self.role else { return };
        (*again, *refused) = (None, vec![false; refused.len()]);
        let ballot = *ballot;
        self.broadcast(Message::Prepare { ballot, config: self.group.config }, now);
    }

    pub(super) fn promised(&mut self, from: NodeId, about: Ballot, now: Now) {
        let majority = self.group.majority();
        let Some(place) = self.group.place(from) else { return };
        let Role::Preparing { ballot, since, promised, .. } = &mut self.role else { return };
        if *ballot != about {
            return;
        }
        promised[place] = true;
        if promised.iter().filter(|&&yes| yes).count() >= majority {
            self.role = Role::Tenure(Tenure {
                ballot: about,
                since: *since,
                rounds: VecDeque::with_capacity(ROUNDS),
                acked: vec![None; self.group.len()],
                counts_from: 0,
                refused: vec![false; self.group.len()],
                until: None,
            });
            self.propose(now);
        }
    }

    pub(super) fn propose(&mut self, now: Now) {
        let Role::Tenure(tenure) = &mut self.role else { return };
        let round = tenure.last_sent().map_or(1, |(round, _)| round + 1);
        if tenure.rounds.len() == ROUNDS {
            tenure.rounds.pop_front();
        }
        // The lease is counted from here: before anything has left this node.
        tenure.rounds.push_back((round, now.mono));
        let (ballot, held) = (tenure.ballot, tenure.until.is_some());
        let config = self.group.config;
        self.broadcast(Message::Propose { ballot, config, round, term: self.timing.lease, held }, now);
    }

    pub(super) fn accepted(&mut self, from: NodeId, about: Ballot, round: u64, now: Now) {
        let majority = self.group.majority();
        let Some(place) = self.group.place(from) else { return };
        let Role::Tenure(tenure) = &mut self.role else { return };
        if tenure.ballot != about || round < tenure.counts_from {
            return;
        }
        let round = if planted::is(Fault::AnyRound) { tenure.rounds.back() } else { tenure.round(round) };
        let Some(&(_, sent)) = round else { return };
        let sent = if planted::is(Fault::CountFromReceipt) { now.mono } else { sent };
        let slot = &mut tenure.acked[place];
        *slot = (*slot).max(Some(sent));
        let Some(sent) = tenure.majority_sent(majority) else { return };
        let guard = if planted::is(Fault::IgnoreGuard) { Duration::ZERO } else { self.timing.guard };
        let until = sent + self.timing.lease.saturating_sub(guard);
        if until <= now.mono || tenure.until.is_some_and(|old| old >= until) {
            return;
        }
        let ballot = tenure.ballot;
        let first = tenure.until.replace(until).is_none();
        if first {
            (self.known, self.kept) = (None, None);
            self.outputs.push_back(Output::Acquired { ballot, until });
            // Tell the others at once that it has a holder.
            self.propose(now);
        } else {
            tenure.refused.fill(false);
            self.outputs.push_back(Output::Renewed { ballot, until });
        }
    }

    pub(super) fn refused(&mut self, from: NodeId, about: Ballot, why: Refusal, now: Now) {
        let hopeless = self.group.len() - self.group.majority() + 1;
        let Some(place) = self.group.place(from) else { return };
        let refused = match &mut self.role {
            Role::Preparing { ballot, refused, again, since, .. } if *ballot == about => {
                // Grants to one holder do not end everywhere in the same moment: where one holds for a little
                // longer, a candidacy that waited for its own end would cost more than that little.
                if let Refusal::Held { left, .. } = why
                    && now.mono + left < *since + self.timing.attempt
                {
                    *again = Some(again.map_or(now.mono + left, |at| at.max(now.mono + left)));
                }
                refused
            }
            Role::Tenure(t) if t.ballot == about && t.until.is_none() => &mut t.refused,
            Role::Tenure(t) if t.ballot == about => {
                // Those that have just started know nothing; the others say that this node is not to hold it.
                t.refused[place] |= !matches!(why, Refusal::Starting { .. });
                return;
            }
            _ => return,
        };
        refused[place] = true;
        if refused.iter().filter(|&&no| no).count() < hopeless {
            return;
        }
        self.abandon(now);
        if let Refusal::Held { by, left } = why
            && by.node != self.group.me
            && !self.acceptor.is_retired(by)
        {
            // Cut: a peer cannot keep us from being a candidate by claiming a long lease.
            self.learn(by, now.mono + left.min(self.timing.lease));
        }
    }

    /// Gives a candidacy up, and tries again a random while later.
    pub(super) fn back_off(&mut self, now: Now) {
        self.role = Role::Idle;
        let wait = self.timing.attempt.mul_f64(self.rng.random_range(0.1..0.7));
        self.candidacy = Some(now.mono + wait);
    }

    /// Gives a candidacy up that may have grants already: hands them back.
    pub(super) fn abandon(&mut self, now: Now) {
        let ballot = match &self.role {
            Role::Tenure(t) if t.until.is_none() => t.ballot,
            Role::Preparing { ballot, .. } => *ballot,
            _ => return,
        };
        self.back_off(now);
        self.broadcast(Message::Release { ballot, to: None }, now);
    }
}
