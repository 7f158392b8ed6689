//! The order in which a VIP is announced and taken away: what comes before what, and what is asked again.
//!
//! A pure machine between [`super::Lease`], which says what is held, and the thread that carries it out,
//! where every step may take long, fail, or be the last one that the process does. The driver starts a
//! [`Job`], carries out each [`Act`] that it is given, and tells how it went. Three rules make the other
//! layers safe: the guardian is told *before* anything can be seen of the VIP; the clock and the lease
//! are asked again *after* everything that may have taken long; the lease is told that the VIP is
//! withdrawn only *after* it has been taken away, however long that takes.
//!
//! After a planned move its connections may go on: the VIP *drains*. Then it answers no more and takes no
//! new connection before the lease is told, as if it had been taken away, and it stays only as long as
//! the driver looks after it.

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
        /// Its connections are to go on here.
        keep: bool,
    },
    /// Look after what drains.
    Tend,
    /// Nothing is to drain any more.
    EndDrain,
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
    /// Answer for the address no more and take no new connection, but let those go on that there are, for
    /// [`KEPT`]. It fails where that cannot be done.
    Drain {
        /// Of the tenure that ends.
        ballot: Ballot,
    },
    /// Tell the guardian that this only drains, for [`KEPT`].
    GuardDrain {
        /// Of the tenure that ended.
        ballot: Ballot,
    },
    /// Let connections go on for another [`KEPT`].
    Tend {
        /// Of the tenure that ended.
        ballot: Ballot,
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

/// What drains ends after so long when nobody looks after it: by the kernel, and by the guardian.
pub const KEPT: Duration = Duration::from_secs(5);

/// What is being done about one VIP.
#[derive(Debug, Default)]
pub struct Hands {
    announced: Option<Ballot>,
    /// The tenure before, whose connections go on.
    draining: Option<Ballot>,
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
            Job::Withdraw { ballot, keep: true } if self.announced == Some(ballot) => {
                let told = Act::Withdrawn { ballot };
                let (drain, guard) = (Act::Drain { ballot }, Act::GuardDrain { ballot });
                self.acts.extend(match planted::is(Fault::TellBeforeDrain) {
                    true => [told, drain, guard],
                    false => [drain, guard, told],
                });
            }
            Job::Withdraw { ballot, .. } if planted::is(Fault::TellBeforeTakeAway) => {
                self.acts.extend([Act::Withdrawn { ballot }, Act::TakeAway, Act::LetGo]);
            }
            Job::Withdraw { ballot, .. } => {
                self.acts.extend([Act::TakeAway, Act::LetGo, Act::Withdrawn { ballot }]);
            }
            Job::Tend => {
                let tend = |ballot| [Act::GuardDrain { ballot }, Act::Tend { ballot }];
                self.acts.extend(self.draining.into_iter().flat_map(tend));
            }
            Job::EndDrain if self.draining.is_none() => {}
            Job::EndDrain | Job::Clear => self.acts.extend([Act::TakeAway, Act::LetGo]),
        }
        self.next()
    }

    /// Tells how the last act went; what comes next.
    pub fn done(&mut self, outcome: Result<(), String>, now: Duration, holding: Holding) -> Option<Act> {
        let act = self.acts.pop_front()?;
        match (act, outcome) {
            (Act::TakeAway, Err(_)) if !planted::is(Fault::TryOnce) => self.acts.push_front(Act::TakeAway),
            (Act::TakeAway, _) => (self.announced, self.draining) = (None, None),
            (Act::Drain { ballot }, outcome) if outcome.is_ok() || planted::is(Fault::DrainAnyhow) => {
                (self.announced, self.draining) = (None, Some(ballot));
            }
            // Then it ends like any other; what was to come after stays, but for the guardian.
            (Act::Drain { .. } | Act::GuardDrain { .. } | Act::Tend { .. }, Err(_)) => {
                let rest = self.acts.drain(..).filter(|act| matches!(act, Act::Withdrawn { .. }));
                self.acts = [Act::TakeAway, Act::LetGo].into_iter().chain(rest).collect();
            }
            (Act::Prolong { .. }, Err(why)) => self.acts = VecDeque::from([Act::Failed(why)]),
            (Act::Guard { .. } | Act::Announce { .. }, Err(why)) => {
                // Of what is announced the lease decides: its withdrawal is a job of its own.
                let gone = [Act::TakeAway, Act::LetGo].into_iter().filter(|_| self.announced.is_none());
                self.acts = gone.chain([Act::Failed(why)]).collect();
            }
            // It took long, or the process slept: the lease may be over. One that is given up before its
            // end waits for the withdrawal, which comes next and may leave connections where they are.
            (Act::Announce { ballot, until } | Act::Prolong { ballot, until }, Ok(())) => {
                (self.announced, self.draining) = (Some(ballot), None);
                // Under another ballot it is held on: what was kept without a majority has one again, and is
                // announced anew next, without a gap.
                if now >= until && holding.is_none_or(|(_, held)| now >= held) {
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

    /// The tenure that is over, but for its connections.
    pub fn draining(&self) -> Option<Ballot> {
        self.draining
    }

    fn next(&self) -> Option<Act> {
        self.acts.front().cloned()
    }
}

/// Whether this very tenure is still held, by the clock.
fn holds(holding: Holding, ballot: Ballot, now: Duration) -> bool {
    holding.is_some_and(|(held, until)| held == ballot && now < until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::NodeId;

    const SOON: Duration = Duration::from_secs(1);

    fn ballot(counter: u64) -> Ballot {
        Ballot { counter, node: NodeId(0), incarnation: 1 }
    }

    /// All acts of a job, of which those that match `fails` fail once.
    fn acts(hands: &mut Hands, job: Job, fails: impl Fn(&Act) -> bool) -> Vec<Act> {
        let holding = Some((
            ballot(match job {
                Job::Acquire { ballot, .. } => ballot.counter,
                _ => 1,
            }),
            SOON,
        ));
        let (mut acts, mut next) = (Vec::new(), hands.start(job, Duration::ZERO, holding));
        while let Some(act) = next {
            let fail = fails(&act) && !acts.contains(&act);
            acts.push(act);
            let outcome = if fail { Err("tried".to_owned()) } else { Ok(()) };
            next = hands.done(outcome, Duration::ZERO, holding);
        }
        acts
    }

    fn held(counter: u64) -> Hands {
        let mut hands = Hands::default();
        acts(&mut hands, Job::Acquire { ballot: ballot(counter), until: SOON }, |_| false);
        assert_eq!(hands.announced(), Some(ballot(counter)));
        hands
    }

    #[test]
    fn a_planned_move_silences_and_tells_the_guardian_before_the_lease() {
        let (mut hands, ballot) = (held(1), ballot(1));
        let moved = acts(&mut hands, Job::Withdraw { ballot, keep: true }, |_| false);
        assert_eq!(moved, [Act::Drain { ballot }, Act::GuardDrain { ballot }, Act::Withdrawn { ballot }]);
        assert_eq!((hands.announced(), hands.draining()), (None, Some(ballot)));
        let tended = acts(&mut hands, Job::Tend, |_| false);
        assert_eq!(tended, [Act::GuardDrain { ballot }, Act::Tend { ballot }]);
        assert_eq!(acts(&mut hands, Job::EndDrain, |_| false), [Act::TakeAway, Act::LetGo]);
        assert_eq!(hands.draining(), None);
        assert_eq!(acts(&mut hands, Job::Tend, |_| false), []);
    }

    #[test]
    fn what_cannot_drain_is_taken_away_before_the_lease_is_told() {
        let ballot = ballot(1);
        let gone = [Act::TakeAway, Act::LetGo, Act::Withdrawn { ballot }];
        let (drain, guard) = (Act::Drain { ballot }, Act::GuardDrain { ballot });
        for before in [vec![drain.clone()], vec![drain, guard]] {
            let mut hands = held(1);
            let fails = |act: &Act| Some(act) == before.last();
            let done = acts(&mut hands, Job::Withdraw { ballot, keep: true }, fails);
            assert_eq!(done, [&before[..], &gone[..]].concat());
            assert_eq!((hands.announced(), hands.draining()), (None, None));
        }
    }

    #[test]
    fn a_move_asked_for_while_it_is_announced_keeps_its_connections() {
        let (mut hands, ballot) = (Hands::default(), ballot(1));
        hands.start(Job::Acquire { ballot, until: SOON }, Duration::ZERO, Some((ballot, SOON)));
        hands.done(Ok(()), Duration::ZERO, Some((ballot, SOON)));
        assert_eq!(hands.done(Ok(()), SOON / 2, None), None, "given up, but not over");
        let moved = acts(&mut hands, Job::Withdraw { ballot, keep: true }, |_| false);
        assert_eq!(moved.first(), Some(&Act::Drain { ballot }));

        let mut hands = Hands::default();
        hands.start(Job::Acquire { ballot, until: SOON }, Duration::ZERO, Some((ballot, SOON)));
        hands.done(Ok(()), Duration::ZERO, Some((ballot, SOON)));
        assert_eq!(hands.done(Ok(()), SOON, None), Some(Act::TakeAway), "over");
    }

    #[test]
    fn what_drains_is_its_own_again_when_it_comes_back() {
        let mut hands = held(1);
        acts(&mut hands, Job::Withdraw { ballot: ballot(1), keep: true }, |_| false);
        acts(&mut hands, Job::Acquire { ballot: ballot(2), until: SOON }, |_| false);
        assert_eq!((hands.announced(), hands.draining()), (Some(ballot(2)), None));
        assert_eq!(acts(&mut hands, Job::EndDrain, |_| false), []);
    }
}
