//! The lease of a floating IP: who holds it now, granted by a majority of the nodes.
//!
//! A pure machine per VIP and node, after PaxosLease (Trencseni, Gazso, Reinhardt 2012): no disk and
//! no synchronised clocks. The `cluster` crate drives it: messages in by [`Lease::handle`], time by
//! [`Lease::tick`], what to do out of [`Lease::poll_output`]. It must never be driven with time that
//! runs backwards, and the driver must carry outputs out in order.
//!
//! # What is promised, and why it holds
//! *Exclusion: at no moment of true time do two nodes hold the VIP.* The obligations:
//! 1. **An acceptor backs one node at a time.** A grant blocks proposals of all other nodes until it
//!    has run out by the acceptor's own clock, a full term after the proposal *arrived*, or until
//!    its owner has released that very ballot. It is never overwritten (`acceptor.rs`).
//! 2. **The holder counts shorter.** It counts the term from before the proposal was *sent*, less a
//!    guard for the drift of both clocks, over acknowledgements of that very round.
//! 3. **Majorities intersect.** If X and Y both held at time t, one acceptor would have granted both,
//!    each grant covering t: against (1). Majorities of one configuration do, and of two that
//!    follow each other, which differ by one node. Others need not: so an acceptor that has seen a
//!    configuration votes no more for who counts over an older one, and another is not made before
//!    a majority has seen the last one for a full term ([`crate::membership::settled`]). The configuration that a node has seen outlives its restart.
//! 4. **A restarted acceptor has forgotten its grants**, so it votes only after the longest term has
//!    passed since its start.
//! 5. **The holder is silent from `until` on**, whatever happens to its process: the driver hands
//!    `until` to the kernel (nftables timeout) and to the guardian, and the machine looks at the
//!    clock before anything else, so that a process that slept sees its lapse first.
//! 6. **A release is sent only after [`Lease::withdrawn`]**, and its ballot is never used again.
//!
//! *Fencing: epochs of successive tenures rise.* An acceptor lets a new tenure begin only with a
//! ballot that outranks every one it promised, and the accepting majorities of two tenures intersect.
//! Across the restart of a majority, or its replacement by other nodes, ballots rise because counters
//! start from the wall clock: there, and only there, a clock that was set back can make an epoch fall.
//!
//! *Progress: a connected majority with an eligible node gets a holder.* Candidates ask first
//! (`Prepare`), which costs a running holder nothing; ranks and jitter keep them from colliding.

mod acceptor;
mod group;
pub mod hands;
mod hold;
#[cfg(test)]
mod hold_tests;
mod message;
#[cfg(test)]
mod simulation;
mod tenure;
#[cfg(test)]
mod tests;
mod timing;
pub mod watch;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub use self::acceptor::Acceptor;
pub use self::group::{Group, Voter};
use self::hold::Kept;
pub use self::hold::QuorumLoss;
pub use self::message::{Ballot, Epoch, Message, NodeId, Refusal};
use self::tenure::{Role, Tenure};
pub use self::timing::Timing;
use crate::planted::{self, Fault};
use crate::time::Now;

/// Whether this node is fit to hold the VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It may take it.
    Yes,
    /// It may keep it but not take it, for these reasons.
    Keep(Vec<String>),
    /// It may not have it, for these reasons.
    No(Vec<String>),
}

impl Fit {
    /// Why not; empty for [`Fit::Yes`].
    pub fn reasons(&self) -> &[String] {
        match self {
            Fit::Yes => &[],
            Fit::Keep(reasons) | Fit::No(reasons) => reasons,
        }
    }
}

/// Why a holder lets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No majority renewed the lease in time.
    Lapsed,
    /// A planned move.
    Moved {
        /// Where to.
        to: Option<NodeId>,
    },
    /// The node is not fit any more.
    Unfit(Vec<String>),
    /// Announcing the address failed.
    AnnounceFailed(String),
    /// The process stops.
    Stopping,
    /// It was kept without a majority, and another node holds it by one, or is about to.
    Superseded(NodeId),
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send to another node; may be lost.
    Send {
        /// Receiver.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// The VIP is ours until `until` (monotonic): announce it.
    Acquired {
        /// Of the tenure that begins.
        ballot: Ballot,
        /// End of the lease as it stands.
        until: Duration,
    },
    /// The lease was prolonged: tell kernel and guardian.
    Renewed {
        /// Of the tenure.
        ballot: Ballot,
        /// New end of the lease.
        until: Duration,
    },
    /// Take the address away, then call [`Lease::withdrawn`].
    Withdraw {
        /// Of the tenure that ends.
        ballot: Ballot,
        /// Why.
        reason: Reason,
    },
}

/// What a node knows of a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Who holds it.
    pub holder: Option<NodeId>,
    /// Fencing token of the tenure.
    pub epoch: Option<Epoch>,
    /// Left of the lease; what an acceptor sees is a little longer than what the holder counts.
    pub left: Duration,
}

/// A move that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMoved {
    /// This node does not hold the VIP.
    NotHolder,
    /// The target is this node.
    AlreadyThere,
}

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotMoved::NotHolder => "this node does not hold it",
            NotMoved::AlreadyThere => "it is already there",
        })
    }
}

/// The lease of one VIP on one node: its acceptor, and its candidacy or tenure.
#[derive(Debug)]
pub struct Lease {
    group: Group,
    timing: Timing,
    acceptor: Acceptor,
    /// When the acceptor leaves older configurations behind.
    raise: Option<Duration>,
    role: Role,
    fit: Fit,
    /// Why the VIP is without a holder, which decides who goes first.
    free: Free,
    /// When to become a candidate.
    candidacy: Option<Duration>,
    /// Not before this.
    not_before: Duration,
    /// Highest ballot counter seen.
    counter: u64,
    /// Who said that it holds, until when that may be so.
    known: Option<(Ballot, Duration)>,
    rng: SmallRng,
    outputs: VecDeque<Output>,
    on_quorum_loss: QuorumLoss,
    /// What is kept without a majority.
    kept: Option<Kept>,
}

/// Why a VIP is, or last was, without a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// Nobody was seen to hold it since this node started.
    Initially,
    /// The holder's lease ran out.
    Expired(NodeId),
    /// The holder let go.
    Released {
        /// Who that was.
        by: NodeId,
        /// For whom.
        to: Option<NodeId>,
    },
}

impl Lease {
    /// A machine that starts now: it votes only after the start wait.
    pub fn new(group: Group, timing: Timing, seed: u64, now: Now) -> Lease {
        Lease {
            acceptor: Acceptor::new(now.mono + timing.start_wait, timing.lease, group.config, now.mono),
            raise: None,
            role: Role::Idle,
            fit: Fit::No(vec!["starting".into()]),
            free: Free::Initially,
            candidacy: None,
            not_before: now.mono + timing.start_wait,
            counter: 0,
            known: None,
            rng: SmallRng::seed_from_u64(seed),
            outputs: VecDeque::new(),
            on_quorum_loss: QuorumLoss::default(),
            kept: None,
            group,
            timing,
        }
    }

    /// Takes a message in.
    pub fn handle(&mut self, from: NodeId, message: Message, now: Now) {
        if self.group.place(from).is_none() {
            return;
        }
        self.lapse(now);
        self.counter = self.counter.max(message.counter());
        self.heed_others(from, message, now);
        match message {
            Message::Prepare { .. } | Message::Propose { .. } => {
                // Only its maker may use a ballot.
                if message.ballot().node == from {
                    self.vote(from, message, now);
                }
            }
            Message::Release { ballot, to } => self.released(ballot, to, now),
            Message::Promise { ballot } => self.promised(from, ballot, now),
            Message::Accepted { ballot, round } => self.accepted(from, ballot, round, now),
            Message::Refused { ballot, why } => self.refused(from, ballot, why, now),
        }
        self.tick(now);
    }

    /// Lets time pass; call it at [`Lease::deadline`], and as often as you like.
    pub fn tick(&mut self, now: Now) {
        self.lapse(now);
        if self.raise.is_some_and(|at| now.mono >= at) {
            self.raise = None;
            self.acceptor.raise(self.group.config, now.mono);
        }
        if let Some(holder) = self.acceptor.expire(now.mono) {
            self.freed(Free::Expired(holder));
        }
        if let Some((ballot, _)) = self.known.filter(|&(_, until)| until <= now.mono) {
            self.known = None;
            self.freed(Free::Expired(ballot.node));
        }
        self.tick_kept(now);
        match &self.role {
            Role::Preparing { since, .. } if now.mono >= *since + self.timing.attempt => self.back_off(now),
            Role::Preparing { again: Some(at), .. } if now.mono >= *at => self.prepare_again(now),
            Role::Tenure(t) if t.until.is_none() && now.mono >= t.since + self.timing.attempt => {
                self.abandon(now)
            }
            Role::Tenure(t) if t.last_sent().is_none_or(|(_, at)| now.mono >= at + self.timing.renew) => {
                self.propose(now);
            }
            Role::Idle => self.consider(now),
            _ => {}
        }
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Lease::tick`] next.
    pub fn deadline(&self, now: Now) -> Duration {
        let own = match &self.role {
            Role::Idle => self.candidacy.map(|at| at.max(self.not_before)),
            Role::Preparing { since, again, .. } => {
                let end = *since + self.timing.attempt;
                Some(again.map_or(end, |at| at.min(end)))
            }
            Role::Tenure(t) => {
                let renewal = t.last_sent().map_or(now.mono, |(_, at)| at + self.timing.renew);
                let end = t.until.map(|until| self.decided_at(until));
                Some(renewal.min(end.unwrap_or(t.since + self.timing.attempt)))
            }
            Role::Withdrawing { .. } => None,
        };
        let known = self.known.map(|(_, until)| until);
        let kept = self.kept.as_ref().map(Kept::next);
        [own, known, self.acceptor.deadline(), self.raise, kept]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now.mono + self.timing.lease)
    }

    /// Tells whether the node is fit; a holder that is not lets go.
    pub fn set_fit(&mut self, fit: Fit, now: Now) {
        self.lapse(now);
        if let Fit::No(reasons) = &fit
            && self.holds()
        {
            let reason = Reason::Unfit(reasons.clone());
            self.withdraw(reason, None, now);
        }
        if fit != Fit::Yes {
            self.abandon(now);
        }
        self.fit = fit;
        self.tick(now);
    }

    /// Lets go, for `to` or for anybody else: a planned move.
    ///
    /// # Errors
    /// When there is nothing to let go of, or nowhere to go.
    pub fn resign(&mut self, to: Option<NodeId>, now: Now) -> Result<(), NotMoved> {
        self.lapse(now);
        if !self.holds() {
            return Err(NotMoved::NotHolder);
        }
        if to == Some(self.group.me) {
            return Err(NotMoved::AlreadyThere);
        }
        self.withdraw(Reason::Moved { to }, to, now);
        Ok(())
    }

    /// Lets go, and is not a candidate for a while: the address could not be announced.
    pub fn announce_failed(&mut self, why: String, now: Now) {
        if self.holds() {
            self.withdraw(Reason::AnnounceFailed(why), None, now);
        }
        self.not_before = self.not_before.max(now.mono + 5 * self.timing.lease);
    }

    /// Lets go because the process stops; it never becomes a candidate again.
    pub fn stop(&mut self, now: Now) {
        self.fit = Fit::No(vec!["stopping".into()]);
        if self.holds() {
            self.withdraw(Reason::Stopping, None, now);
        } else {
            self.abandon(now);
        }
    }

    /// The driver has taken the address away: others may have it.
    pub fn withdrawn(&mut self, now: Now) {
        if let Role::Withdrawing { ballot, to } = self.role {
            self.role = Role::Idle;
            self.freed(Free::Released { by: self.group.me, to });
            self.broadcast(Message::Release { ballot, to }, now);
        }
    }

    /// The cluster has another configuration: from now on this node counts majorities over it.
    ///
    /// The caller has stored it, so that it is there after a restart. A tenure goes on. The acceptor
    /// leaves the older configuration a little later, so that a holder that hears of the new one
    /// somewhat after us does not lose its lease.
    pub fn reconfigure(&mut self, group: Group, now: Now) {
        self.lapse(now);
        if group.config <= self.group.config {
            return;
        }
        self.abandon(now);
        let first = self.group.config == 0;
        let old = std::mem::replace(&mut self.group, group);
        if planted::is(Fault::OldVotersCount) && !first {
            self.group.voters = old.voters;
        }
        self.candidacy = None;
        self.raise = Some(now.mono + if first { Duration::ZERO } else { self.timing.lease / 2 });
        if self.holds() && !self.group.may_hold() {
            let reason = Reason::Unfit(vec!["not a member that may hold it".into()]);
            self.withdraw(reason, None, now);
        }
        let voters = self.group.len();
        if let Role::Tenure(tenure) = &mut self.role {
            // What was granted before was counted over other nodes: `until` stands, nothing else does.
            tenure.counts_from = tenure.last_sent().map_or(0, |(round, _)| round + 1);
            tenure.acked = vec![None; voters];
            tenure.refused = vec![false; voters];
            self.propose(now);
        }
        self.tick(now);
    }

    /// The oldest configuration in which this node votes, and since when.
    pub fn floor(&self) -> (u64, Duration) {
        self.acceptor.floor()
    }

    /// What this node knows of the VIP.
    pub fn view(&self, now: Now) -> View {
        let known = match &self.role {
            Role::Tenure(Tenure { ballot, until: Some(until), .. }) => Some((*ballot, *until)),
            _ => self.held_until().or(self.known),
        };
        match known {
            Some((ballot, until)) if until > now.mono => {
                View { holder: Some(ballot.node), epoch: Some(ballot.epoch()), left: until - now.mono }
            }
            _ => View::default(),
        }
    }

    /// End of the lease when this node holds it.
    pub fn held_until(&self) -> Option<(Ballot, Duration)> {
        match &self.role {
            Role::Tenure(Tenure { ballot, until: Some(until), .. }) => Some((*ballot, *until)),
            _ => self.kept.as_ref().map(Kept::held),
        }
    }

    /// Whether this node has let go, and the address is still being taken away.
    pub fn is_withdrawing(&self) -> bool {
        matches!(self.role, Role::Withdrawing { .. })
    }

    /// Why the VIP is without a holder, or was before the present one.
    pub fn free(&self) -> Free {
        self.free
    }

    /// Whether the node is fit, as last told.
    pub fn fit(&self) -> &Fit {
        &self.fit
    }

    /// Whether this node only votes, or is no member.
    pub fn is_witness(&self) -> bool {
        !self.group.may_hold()
    }

    fn holds(&self) -> bool {
        self.held_until().is_some()
    }

    /// First of all things: a lease that has run out is not held, whatever else has arrived.
    fn lapse(&mut self, now: Now) {
        self.keep(now);
        let lapsed = self.held_until().is_some_and(|(_, until)| now.mono >= until);
        if lapsed && !planted::is(Fault::RenewAfterLapse) {
            self.withdraw(Reason::Lapsed, None, now);
        }
    }

    /// Ends the tenure. The ballot is used up: nothing that still arrives about it counts.
    fn withdraw(&mut self, reason: Reason, to: Option<NodeId>, now: Now) {
        if self.kept.is_some() {
            // The candidacy for having it with a majority again.
            self.abandon(now);
        }
        let ballot = match (&self.role, self.kept.take()) {
            (_, Some(kept)) => kept.held().0,
            (Role::Tenure(tenure), None) => tenure.ballot,
            _ => return,
        };
        // Whoever lets go gives the others time to take over.
        let pause = if reason == Reason::Lapsed { self.timing.attempt } else { 2 * self.timing.lease };
        self.not_before = self.not_before.max(now.mono + pause);
        self.role = Role::Withdrawing { ballot, to };
        self.outputs.push_back(Output::Withdraw { ballot, reason });
        if planted::is(Fault::ReleaseFirst) {
            self.broadcast(Message::Release { ballot, to }, now);
        }
    }

    fn consider(&mut self, now: Now) {
        if self.fit != Fit::Yes && !planted::is(Fault::TakeWhileBehind) || self.is_witness() {
            self.candidacy = None;
            return;
        }
        if self.kept.is_some()
            || self.known.is_some()
            || self.acceptor.backs_other_than(self.group.me, now.mono)
        {
            self.candidacy = None;
            return;
        }
        let at = match self.candidacy {
            Some(at) => at.max(self.not_before),
            None => {
                let at = self.not_before.max(now.mono) + self.patience();
                self.candidacy = Some(at);
                at
            }
        };
        if now.mono >= at {
            self.prepare(now);
        }
    }

    /// How long to let others go first, once the VIP is free.
    fn patience(&mut self) -> Duration {
        let me = self.group.me;
        let first = match self.free {
            Free::Initially => self.group.prefer,
            Free::Released { to, .. } => to,
            Free::Expired(_) => None,
        };
        let head_start = match first {
            Some(first) if first == me => return Duration::ZERO,
            Some(_) => self.timing.head_start,
            None => Duration::ZERO,
        };
        let last = match self.free {
            Free::Expired(last) | Free::Released { by: last, .. } => Some(last),
            Free::Initially => None,
        };
        // The one that follows the last holder goes first: two that fail in turn do not toss the
        // VIP to and fro while a third is well.
        let voters = &self.group.voters;
        let after = last.map_or(0, |last| voters.partition_point(|v| v.id <= last));
        let mine = voters.partition_point(|v| v.id < me);
        let nodes = voters.len().max(1);
        let rank = ((mine + nodes - after % nodes) % nodes) as u32;
        let jitter = self.timing.step.mul_f64(self.rng.random_range(0.0..0.5));
        head_start + self.timing.step * rank + jitter
    }

    /// Votes, and answers.
    fn vote(&mut self, from: NodeId, message: Message, now: Now) {
        let me = self.group.me;
        if let Message::Propose { ballot, held: true, term, .. } = message
            && from != me
            && !self.holds()
            && !self.acceptor.is_retired(ballot)
        {
            self.learn(ballot, now.mono + term.min(self.timing.lease));
        }
        let Some(answer) = self.acceptor.handle(message, now.mono) else { return };
        if from == me {
            match answer {
                Message::Promise { ballot } => self.promised(me, ballot, now),
                Message::Accepted { ballot, round } => self.accepted(me, ballot, round, now),
                Message::Refused { ballot, why } => self.refused(from, ballot, why, now),
                _ => {}
            }
        } else {
            self.outputs.push_back(Output::Send { to: from, message: answer });
        }
    }

    fn released(&mut self, ballot: Ballot, to: Option<NodeId>, now: Now) {
        let freed = self.acceptor.release(ballot);
        let was_known = self.known.is_some_and(|(known, _)| known == ballot);
        if was_known {
            self.known = None;
        }
        // Only the end of a tenure, not of a mere candidacy, gives the target its head start.
        if was_known || (freed && to.is_some()) {
            self.freed(Free::Released { by: ballot.node, to });
            if to == Some(self.group.me) {
                self.not_before = self.not_before.min(now.mono.max(self.acceptor.votes_from()));
            }
        }
    }

    fn learn(&mut self, ballot: Ballot, until: Duration) {
        self.candidacy = None;
        self.known = match self.known {
            Some((known, old)) if known == ballot => Some((known, old.max(until))),
            Some((known, old)) if known.rank() > ballot.rank() => Some((known, old)),
            _ => Some((ballot, until)),
        };
    }

    fn freed(&mut self, free: Free) {
        self.free = free;
        self.candidacy = None;
    }

    fn broadcast(&mut self, message: Message, now: Now) {
        let me = self.group.me;
        for to in self.group.voters.iter().map(|v| v.id).filter(|&to| to != me) {
            self.outputs.push_back(Output::Send { to, message });
        }
        match message {
            Message::Release { ballot, .. } => {
                self.acceptor.release(ballot);
            }
            _ => self.vote(me, message, now),
        }
    }
}
