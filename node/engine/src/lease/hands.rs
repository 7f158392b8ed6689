//! The order in which a VIP is announced and taken away: what comes before what, and what is asked again.
//!
//! A pure machine between [`super::Lease`], which says what is held, and the thread that carries it out,
//! where every step may take long, fail, or be the last one that the process does. The driver starts a
//! [`Job`], carries out each [`Act`] that it is given, and tells how it went. Three rules make the other
//! layers safe: the guardian is told *before* anything can be seen of the VIP; the clock and the lease
//! are asked again *after* everything that may have taken long; the lease is told that the VIP is
//! withdrawn only *after* it has been taken away, however long that takes.

use std::collections::VecDeque;
use std::time::Duration;

use super::message::Ballot;
use crate::planted::{self, Fault};

/// What the lease wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Begin a tenure.
    Acquire {
        /// Of the tenure.
        ballot: Ballot,
        /// End of the lease as it stands.
        until: Duration,
    },
    /// Go on with it.
    Renew {
        /// Of the tenure.
        ballot: Ballot,
        /// New end of the lease.
        until: Duration,
    },
    /// End it.
    Withdraw {
        /// Of the tenure.
        ballot: Ballot,
    },
    /// Leave nothing behind: at the start of a process, for what an earlier one has left, and at its end.
    Clear,
}

/// One step, for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Tell the guardian that this is held until then.
    Guard {
        /// Of the tenure.
        ballot: Ballot,
        /// End of the lease as it stands.
        until: Duration,
    },
    /// Announce the address, for the kernel to enforce until then.
    Announce {
        /// Of the tenure.
        ballot: Ballot,
        /// End of the lease as it stands.
        until: Duration,
    },
    /// Let the kernel go on with it until then.
    Prolong {
        /// Of the tenure.
        ballot: Ballot,
        /// New end of the lease.
        until: Duration,
    },
    /// Take the address away; it is asked for again until that is done.
    TakeAway,
    /// Tell the guardian that it is gone from this node.
    LetGo,
    /// Call [`super::Lease::withdrawn`].
    Withdrawn {
        /// Of the tenure that ended.
        ballot: Ballot,
    },
    /// Call [`super::Lease::announce_failed`].
    Failed(String),
}

/// What is being done about one VIP.
#[derive(Debug, Default)]
pub struct Hands {
    announced: Option<Ballot>,
    /// The first one is being carried out.
    acts: VecDeque<Act>,
}

/// What the lease holds at this moment: [`super::Lease::held_until`].
type Holding = Option<(Ballot, Duration)>;

impl Hands {
    /// Begins with a job, when there is nothing else to do; `None`: nothing is to be done about it.
    pub fn start(&mut self, job: Job, now: Duration, holding: Holding) -> Option<Act> {
        debug_assert!(self.acts.is_empty(), "one job at a time");
        match job {
            Job::Acquire { ballot, until } if holds(holding, ballot, now) => {
                self.acts.extend([Act::Guard { ballot, until }, Act::Announce { ballot, until }]);
            }
            Job::Renew { ballot, until }
                if self.announced == Some(ballot) && now < until && holds(holding, ballot, now) =>
            {
                self.acts.extend([Act::Guard { ballot, until }, Act::Prolong { ballot, until }]);
            }
            Job::Acquire { .. } | Job::Renew { .. } => {}
            Job::Withdraw { ballot } if planted::is(Fault::TellBeforeTakeAway) => {
                self.acts.extend([Act::Withdrawn { ballot }, Act::TakeAway, Act::LetGo]);
            }
            Job::Withdraw { ballot } => {
                self.acts.extend([Act::TakeAway, Act::LetGo, Act::Withdrawn { ballot }]);
            }
            Job::Clear => self.acts.extend([Act::TakeAway, Act::LetGo]),
        }
        self.next()
    }

    /// Tells how the last act went; what comes next.
    pub fn done(&mut self, outcome: Result<(), String>, now: Duration, holding: Holding) -> Option<Act> {
        let act = self.acts.pop_front()?;
        match (act, outcome) {
            (Act::TakeAway, Err(_)) if !planted::is(Fault::TryOnce) => self.acts.push_front(Act::TakeAway),
            (Act::TakeAway, _) => self.announced = None,
            (Act::Prolong { .. }, Err(why)) => self.acts = VecDeque::from([Act::Failed(why)]),
            (Act::Guard { .. } | Act::Announce { .. }, Err(why)) => {
                // Of what is announced the lease decides: its withdrawal is a job of its own.
                let gone = [Act::TakeAway, Act::LetGo].into_iter().filter(|_| self.announced.is_none());
                self.acts = gone.chain([Act::Failed(why)]).collect();
            }
            // It took long, or the process slept: the lease may be over.
            (Act::Announce { ballot, .. } | Act::Prolong { ballot, .. }, Ok(())) => {
                self.announced = Some(ballot);
                // Under another ballot it is held on: what was kept without a majority has one again, and is
                // announced anew next, without a gap.
                if holding.is_none_or(|(_, until)| now >= until) {
                    self.acts.extend([Act::TakeAway, Act::LetGo]);
                }
            }
            _ => {}
        }
        self.next()
    }

    /// The tenure that is announced.
    pub fn announced(&self) -> Option<Ballot> {
        self.announced
    }

    fn next(&self) -> Option<Act> {
        self.acts.front().cloned()
    }
}

/// Whether this very tenure is still held, by the clock.
fn holds(holding: Holding, ballot: Ballot, now: Duration) -> bool {
    holding.is_some_and(|(held, until)| held == ballot && now < until)
}
