//! The voting half of a lease: every node has it, witnesses too.
//!
//! It backs at most one node at a time, and never takes a grant back before it has run out by its own
//! clock or was released by its owner. Exclusion rests on this file alone; keep it small.

use std::time::Duration;

use super::message::{Ballot, COUNTER_LIMIT, Message, NodeId, Refusal};
use crate::planted::{self, Fault};

/// One node's vote on one VIP.
#[derive(Debug)]
pub struct Acceptor {
    /// Grants of an earlier life may run until then.
    votes_from: Duration,
    longest: Duration,
    promised: Option<Ballot>,
    grant: Option<Grant>,
    /// The last ballot that was released: a late copy of its proposal must not bring it back.
    retired: Option<Ballot>,
    /// No vote for who counts majorities over an older configuration; since when.
    floor: (u64, Duration),
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    ballot: Ballot,
    until: Duration,
}

impl Acceptor {
    /// An acceptor that votes from `votes_from` on, for nodes of no older configuration than `floor`,
    /// and grants for `longest` at most.
    pub fn new(votes_from: Duration, longest: Duration, floor: u64, now: Duration) -> Acceptor {
        Acceptor { votes_from, longest, promised: None, grant: None, retired: None, floor: (floor, now) }
    }

    /// Votes no more in configurations older than `floor`.
    pub fn raise(&mut self, floor: u64, now: Duration) {
        if floor > self.floor.0 {
            self.floor = (floor, now);
        }
    }

    /// The oldest configuration that it votes in, and since when.
    pub fn floor(&self) -> (u64, Duration) {
        self.floor
    }

    /// Answers a `Prepare` or `Propose` that arrives at `now`.
    pub fn handle(&mut self, message: Message, now: Duration) -> Option<Message> {
        let ballot = message.ballot();
        let verdict = match message {
            Message::Prepare { config, .. } => self
                .current(config)
                .and_then(|()| self.prepare(ballot, now))
                .map(|()| Message::Promise { ballot }),
            Message::Propose { round, term, held, config, .. } => self
                .current(config)
                .and_then(|()| self.propose(ballot, term, held, now))
                .map(|()| Message::Accepted { ballot, round }),
            _ => return None,
        };
        Some(verdict.unwrap_or_else(|why| Message::Refused { ballot, why }))
    }

    /// Takes back the grant of exactly this ballot; tells whether there was one.
    pub fn release(&mut self, ballot: Ballot) -> bool {
        self.retired = Some(ballot);
        self.grant.take_if(|grant| grant.ballot == ballot).is_some()
    }

    /// Forgets a grant that has run out, and tells whose it was.
    pub fn expire(&mut self, now: Duration) -> Option<NodeId> {
        self.grant.take_if(|grant| grant.until <= now).map(|grant| grant.ballot.node)
    }

    /// Whether another node's grant runs.
    pub fn backs_other_than(&self, node: NodeId, now: Duration) -> bool {
        self.live(now).is_some_and(|grant| grant.ballot.node != node)
    }

    /// When its grant runs out.
    pub fn deadline(&self) -> Option<Duration> {
        self.grant.map(|grant| grant.until)
    }

    /// When it begins to vote.
    pub fn votes_from(&self) -> Duration {
        self.votes_from
    }

    /// Whether this ballot was the last to be released.
    pub fn is_retired(&self, ballot: Ballot) -> bool {
        self.retired == Some(ballot)
    }

    fn live(&self, now: Duration) -> Option<Grant> {
        self.grant.filter(|grant| grant.until > now)
    }

    /// The third condition: who counts over a former configuration might not meet a majority of the
    /// present one.
    fn current(&self, config: u64) -> Result<(), Refusal> {
        match config < self.floor.0 && !planted::is(Fault::VoteForOld) {
            true => Err(Refusal::Outdated { config: self.floor.0 }),
            false => Ok(()),
        }
    }

    fn prepare(&mut self, ballot: Ballot, now: Duration) -> Result<(), Refusal> {
        self.open_to(ballot, now)?;
        if !self.outranks_promise(ballot) {
            return Err(self.outranked());
        }
        if !planted::is(Fault::ForgetPromise) {
            self.promised = Some(ballot);
        }
        Ok(())
    }

    fn propose(&mut self, ballot: Ballot, term: Duration, held: bool, now: Duration) -> Result<(), Refusal> {
        self.open_to(ballot, now)?;
        if term > self.longest && !planted::is(Fault::GrantTooLong) {
            return Err(Refusal::TooLong { longest: self.longest });
        }
        // A renewal needs no rank: its tenure began with one that sufficed, and a candidate that never
        // got further than asking must not end it.
        if self.retired == Some(ballot) || !(held || self.outranks_promise(ballot)) {
            return Err(self.outranked());
        }
        let mut until = now + if planted::is(Fault::GrantShort) { term * 3 / 4 } else { term };
        if let Some(grant) = self.live(now) {
            // The same node's (see `open_to`). A late copy from an earlier tenure changes nothing.
            if grant.ballot.rank() > ballot.rank() {
                return Err(self.outranked());
            }
            until = until.max(grant.until);
        }
        if self.promised.is_none_or(|promised| promised.rank() < ballot.rank())
            && !planted::is(Fault::ForgetPromise)
        {
            self.promised = Some(ballot);
        }
        self.grant = Some(Grant { ballot, until });
        Ok(())
    }

    /// The two conditions of safety: no vote before the start wait is over, no vote beside a grant.
    fn open_to(&self, ballot: Ballot, now: Duration) -> Result<(), Refusal> {
        if now < self.votes_from && !planted::is(Fault::VoteWhileStarting) {
            return Err(Refusal::Starting { left: self.votes_from - now });
        }
        match self.live(now) {
            Some(_) if planted::is(Fault::GrantBeside) => Ok(()),
            Some(grant) if planted::is(Fault::Overwrite) && grant.ballot.rank() < ballot.rank() => Ok(()),
            Some(grant) if grant.ballot.node != ballot.node => {
                Err(Refusal::Held { by: grant.ballot, left: grant.until - now })
            }
            _ if ballot.counter >= COUNTER_LIMIT => Err(self.outranked()),
            _ => Ok(()),
        }
    }

    fn outranks_promise(&self, ballot: Ballot) -> bool {
        self.promised.is_none_or(|promised| ballot == promised || ballot.rank() > promised.rank())
    }

    fn outranked(&self) -> Refusal {
        Refusal::Outranked { counter: self.promised.map_or(0, |promised| promised.counter) }
    }
}
