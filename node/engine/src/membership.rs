//! The next step of a change of members: what the leader of the cluster does about nodes that join and
//! leave.
//!
//! A pure decision over what the leader sees ([`View`]); the `cluster` crate asks for it some times a
//! second, carries it out, and asks again. A step may fail, be repeated or be lost with the leader:
//! everything that it rests on is in the registry, so that the next leader goes on from there.
//!
//! Two things must hold at each step. *Raft's majorities*: openraft changes voters by joint consensus,
//! and nothing is removed that would leave no reachable majority. *Leases' majorities*: one voter at a
//! time, and only when the step before is [`settled`]; [`MemberCommand::Promote`] and
//! [`MemberCommand::Remove`] name the configuration that was, and count for no other.

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::registry::{MemberCommand, Members, Stage};

/// What a node says of the configurations that its leases have left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The oldest configuration in which it votes.
    pub config: u64,
    /// Since when.
    pub age: Duration,
}

/// What the leader sees.
pub trait View {
    /// Whether the node answers.
    fn reachable(&self, node: &str) -> bool;
    /// What it last said of its leases.
    fn adopted(&self, node: &str) -> Option<Adopted>;
    /// Whether it has all of the log but what is just being written.
    fn caught_up(&self, node: &str) -> bool;
    /// What it still has to give up, as long as it is given time for that: floating IPs and their connections,
    /// places on servers.
    fn keeps(&self, node: &str) -> Option<&'static str>;
    /// The voters of raft's membership; `None` while two sets count.
    fn voters(&self) -> Option<BTreeSet<String>>;
    /// The nodes that raft replicates to without a vote.
    fn learners(&self) -> BTreeSet<String>;
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is nothing to do.
    Nothing,
    /// Not yet, for this reason.
    Wait(String),
    /// Raft replicates to this node too.
    AddLearner(String),
    /// Raft replicates to this node no more.
    DropLearner(String),
    /// These are to be raft's voters.
    SetVoters(BTreeSet<String>),
    /// The registry says so.
    Commit(MemberCommand),
    /// Another node is to lead.
    HandOver(String),
}

/// Whether another configuration may follow: a majority of the voters has seen the present one, and
/// votes in no older one, for a term of leases. Such a majority meets every majority of the one before;
/// so nobody holds anything that was counted over that, and nobody ever will.
///
/// # Errors
/// What is to be waited for.
pub fn settled(members: &Members, view: &dyn View, wait: Duration) -> Result<(), String> {
    let has = |name: &str| {
        let adopted = view.adopted(name).unwrap_or_default();
        adopted.config >= members.config() && adopted.age >= wait
    };
    let there = members.voters().filter(|(name, _)| has(name)).count();
    match 2 * there > members.voters().count() {
        true => Ok(()),
        false => Err(format!(
            "until a majority has known configuration {} for {} ms, so that no lease is counted over an older one",
            members.config(),
            wait.as_millis(),
        )),
    }
}

/// What the leader `me` does next. `wait` is the longest term of a lease, with what clocks may be
/// apart.
pub fn next_step(members: &Members, me: &str, view: &dyn View, wait: Duration) -> Step {
    if !members.founded() {
        return Step::Nothing;
    }
    let target: BTreeSet<String> = members.voters().map(|(name, _)| name.to_owned()).collect();
    let voters = view.voters();
    let learners = view.learners();
    let present =
        |name: &String| voters.as_ref().is_some_and(|v| v.contains(name)) || learners.contains(name);
    if voters.as_ref() != Some(&target) {
        // A voter that raft does not know was taken in by a leader that is gone.
        return match target.iter().find(|name| voters.is_some() && !present(name)) {
            Some(missing) => Step::AddLearner(missing.clone()),
            None => Step::SetVoters(target),
        };
    }
    if let Some(stranger) = learners.iter().find(|name| members.get(name).is_none()) {
        return Step::DropLearner(stranger.clone());
    }
    let next = |stage: Stage| {
        let mut nodes: Vec<_> = members.iter().filter(|(_, m)| m.stage == stage).collect();
        nodes.sort_by_key(|(_, m)| m.since);
        nodes.into_iter().map(|(name, _)| name.to_owned())
    };
    let mut waits = Vec::new();
    for name in next(Stage::Leaving) {
        match leave(members, &name, me, view, wait) {
            Step::Wait(why) => waits.push(format!("'{name}' leaves: {why}")),
            step => return step,
        }
    }
    for name in next(Stage::Joining) {
        match join(members, &name, view, &learners, wait) {
            Step::Wait(why) => waits.push(format!("'{name}' joins: {why}")),
            step => return step,
        }
    }
    if waits.is_empty() { Step::Nothing } else { Step::Wait(waits.join("; ")) }
}

fn leave(members: &Members, name: &str, me: &str, view: &dyn View, wait: Duration) -> Step {
    if let Err(why) = quorum_without(members, name, view) {
        return Step::Wait(why);
    }
    if let Some(what) = view.keeps(name).filter(|_| view.reachable(name)) {
        return Step::Wait(format!("until it has given up its {what}"));
    }
    if let Err(why) = settled(members, view, wait) {
        return Step::Wait(why);
    }
    if name == me {
        // A node that stays; a witness only when there is no other.
        let mut heirs: Vec<_> = members
            .iter()
            .filter(|(heir, m)| m.stage == Stage::Voter && view.reachable(heir) && view.caught_up(heir))
            .collect();
        heirs.sort_by_key(|(_, m)| m.witness);
        return match heirs.first() {
            Some((heir, _)) => Step::HandOver((*heir).to_owned()),
            None => Step::Wait("until another node can lead".to_owned()),
        };
    }
    Step::Commit(MemberCommand::Remove { name: name.to_owned(), config: members.config() })
}

fn join(members: &Members, name: &str, view: &dyn View, learners: &BTreeSet<String>, wait: Duration) -> Step {
    if !learners.contains(name) {
        return Step::AddLearner(name.to_owned());
    }
    if !view.reachable(name) {
        return Step::Wait("until it can be reached".to_owned());
    }
    if !view.caught_up(name) {
        return Step::Wait("until it has caught up with the log".to_owned());
    }
    let there = 1 + members.voters().filter(|(n, _)| view.reachable(n)).count();
    let all = 1 + members.voters().count();
    if 2 * there <= all {
        return Step::Wait(format!(
            "with it {there} of {all} voters would be reachable, which is no majority"
        ));
    }
    if let Err(why) = settled(members, view, wait) {
        return Step::Wait(why);
    }
    Step::Commit(MemberCommand::Promote { name: name.to_owned(), config: members.config() })
}

/// Whether the cluster could go on without this node.
///
/// # Errors
/// Why not.
pub fn quorum_without(members: &Members, name: &str, view: &dyn View) -> Result<(), String> {
    let rest = || members.voters().filter(|(n, _)| *n != name);
    let (all, there) = (rest().count(), rest().filter(|(n, _)| view.reachable(n)).count());
    match 2 * there > all {
        true => Ok(()),
        false => Err(format!(
            "without '{name}' {there} of the {all} voters that are left would be reachable, which is no majority"
        )),
    }
}
