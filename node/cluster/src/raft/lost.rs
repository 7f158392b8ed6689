//! When a node that has lost its disk may vote all the same.
//!
//! It may have confirmed entries that it does not have any more; so by itself it does not vote before a
//! leader has taught it. That would leave a cluster without a leader for good where the others are no
//! majority without it: two nodes of which one lost its disk, or three while a dead one is being
//! replaced. So a candidate says with its request how it knows the other voters to stand, and the node
//! votes if nothing that was ever confirmed can be missing in the candidate's log: whatever the lost
//! disk had confirmed was on another voter's disk as well; each of them was asked after this node
//! came back; and none is ahead of the candidate. A voter that the operator is taking out, and that does
//! not answer, is not waited for: that is what taking it out says.
//!
//! Pure; [`super::network`] sends it, [`super::service`] asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an answer of a voter may have been under way before it came.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// What a candidate says of the voters in its configuration, joint or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Its own log has never lost anything.
    pub(crate) whole: bool,
    /// All of them but itself.
    pub(crate) others: Vec<Voter>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voter {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// It is being taken out, or is no member any more.
    pub(crate) leaves: bool,
    /// What it last said, and how many milliseconds ago; `None` while it does not answer.
    pub(crate) said: Option<Said>,
}

/// What a voter says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) ago_ms: u64,
    pub(crate) whole: bool,
    pub(crate) leads: bool,
    pub(crate) term: u64,
    /// Of its last entry.
    pub(crate) last: End,
}

/// Where a log ends: the term of its last entry, and the entry's index plus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) term: u64,
    pub(crate) next: u64,
}

/// What a candidate asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) term: u64,
    pub(crate) last: End,
}

/// Whether node `me`, which has lost its disk and is back for `up`, may vote for the candidate.
///
/// # Errors
/// Which voter is in the way.
pub(crate) fn may_vote(me: u64, up: Duration, asked: Asked, standing: &Standing) -> Result<(), String> {
    if !standing.whole {
        return Err("so has the candidate".to_owned());
    }
    let others: Vec<&Voter> = standing.others.iter().filter(|v| v.id != me).collect();
    if others.len() == standing.others.len() {
        return Err("the candidate does not count this node's vote".to_owned());
    }
    for voter in others {
        let name = &voter.name;
        let Some(said) = voter.said else {
            if voter.leaves {
                continue;
            }
            return Err(format!("node '{name}' does not answer, which may know more than the candidate"));
        };
        if Duration::from_millis(said.ago_ms).saturating_add(UNDER_WAY) >= up {
            return Err(format!("node '{name}' has not been asked since"));
        }
        if !said.whole {
            return Err(format!("so has node '{name}'"));
        }
        if said.last > asked.last {
            return Err(format!("node '{name}' knows more than the candidate"));
        }
        if said.leads || said.term > asked.term {
            return Err(format!("node '{name}' is in term {}", said.term));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Duration = Duration::from_secs(3);
    const ASKED: Asked = Asked { term: 7, last: End { term: 5, next: 40 } };

    fn voter(id: u64) -> Voter {
        let last = End { term: 5, next: 40 };
        let said = Said { ago_ms: 500, whole: true, leads: false, term: 6, last };
        Voter { id, name: format!("n{id}"), leaves: false, said: Some(said) }
    }

    /// Node 2 has lost its disk, node 1 asks, node 3 is as given.
    fn decide(third: Voter) -> Result<(), String> {
        may_vote(2, UP, ASKED, &Standing { whole: true, others: vec![voter(2), third] })
    }

    fn with(change: impl FnOnce(&mut Said)) -> Voter {
        let mut voter = voter(3);
        change(voter.said.as_mut().unwrap());
        voter
    }

    #[test]
    fn votes_when_nothing_can_be_missing() {
        assert_eq!(decide(voter(3)), Ok(()));
        // Two nodes of which one has lost its disk: the other has all.
        assert_eq!(may_vote(2, UP, ASKED, &Standing { whole: true, others: vec![voter(2)] }), Ok(()));
        assert_eq!(decide(with(|said| said.last = End { term: 4, next: 90 })), Ok(()));
        assert_eq!(decide(Voter { leaves: true, said: None, ..voter(3) }), Ok(()));
    }

    #[test]
    fn does_not_vote_when_something_may_be() {
        let refusals = [
            decide(Voter { said: None, ..voter(3) }),
            decide(with(|said| said.last.next += 1)),
            decide(with(|said| said.last.term += 1)),
            decide(with(|said| said.whole = false)),
            decide(with(|said| said.leads = true)),
            decide(with(|said| said.term = 8)),
            // Asked before this node's disk was lost, perhaps.
            decide(with(|said| said.ago_ms = 2_000)),
            decide(with(|said| said.ago_ms = u64::MAX)),
            // One that leaves, but answers, is asked like the others.
            decide(Voter { leaves: true, ..with(|said| said.last.next += 1) }),
            may_vote(2, UP, ASKED, &Standing { whole: false, others: vec![voter(2), voter(3)] }),
            may_vote(2, UP, ASKED, &Standing { whole: true, others: vec![voter(3)] }),
        ];
        for (i, refusal) in refusals.iter().enumerate() {
            assert!(refusal.is_err(), "case {i}");
        }
    }
}
