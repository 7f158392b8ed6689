//! What one node does about the configuration that the cluster holds: a pure machine.
//!
//! [`Agent`] compares what the node runs with what the [`Epochs`] say that it should, and asks for one
//! [`Action`] at a time; whoever drives it (the program, or a simulation) carries that out and says
//! how it went. All agreement is in the epochs: two agents never talk, none directs the others, and
//! one that starts anew finds its way from what is stored. It also keeps an eye on the node whose turn
//! it is, and says when it is gone, so that a rollout never waits for a dead one.
//!
//! [`Watch`] decides whether a node is well with what it has just applied.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::registry::epochs::{ConfigCommand, Epochs, Step};
use crate::time::Now;

/// A node that is unreachable for this long counts as gone.
pub const LOST_AFTER: Duration = Duration::from_secs(4);

/// A node that is there may take this long over its turn, and for going back.
pub const STUCK_AFTER: Duration = Duration::from_secs(90);

/// Pause after a proposal that was not taken.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Pause before an epoch that failed on this node is tried again, outside a rollout.
const FAILED_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A node that dies so often while it applies an epoch does not try again by itself.
pub const MAX_DEATHS: u32 = 3;

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Move the floating IPs that this node holds to others, for the epoch that it is about to apply;
    /// answered by [`Agent::yielded`].
    Yield {
        /// Which.
        epoch: u64,
    },
    /// Apply an epoch and store that it is applied; answered by [`Agent::applied`].
    Apply {
        /// Which; 0 = the node's own files.
        epoch: u64,
        /// Whether to watch the node's health before it counts as applied, and to return to the
        /// former configuration when it is not well.
        watch: bool,
    },
    /// Have the cluster agree; answered by [`Agent::proposed`].
    Propose(ConfigCommand),
}

/// Another node as this one sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// It answers.
    pub reachable: bool,
    /// The run of its process, as far as it is known.
    pub run: Option<u64>,
}

/// What one node does.
#[derive(Debug)]
pub struct Agent {
    node: String,
    run: u64,
    /// What the node runs; 0 = its own files.
    runs: u64,
    /// An epoch that its own files, changed since, have put aside.
    declined: Option<u64>,
    /// An action is under way.
    busy: bool,
    /// Not before this moment: a proposal was not taken.
    pause: Option<Duration>,
    /// Floating IPs were moved for this epoch.
    yielded: Option<u64>,
    /// The last epoch that could not be applied, when, and why.
    failed: Option<(u64, Duration, String)>,
    /// An epoch with which this node died, and how often.
    died: Option<(u64, u32)>,
    /// The node that is waited for, in which rollout and direction, since when, and since when it is
    /// unreachable.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    key: (u64, bool, String),
    since: Duration,
    gone: Option<Duration>,
}

impl Agent {
    /// The agent of a node that has just started, in its `run`, with epoch `runs`; `declined` is an
    /// epoch that its own files, changed by hand since, have put aside, `died` one that the node died
    /// while applying, and how often.
    pub fn new(node: &str, run: u64, runs: u64, declined: Option<u64>, died: Option<(u64, u32)>) -> Agent {
        Agent {
            node: node.to_owned(),
            run,
            runs,
            declined,
            busy: false,
            pause: None,
            yielded: None,
            failed: None,
            died,
            waiting: None,
        }
    }

    /// The node runs its own files from now on, which put `epoch` aside.
    pub fn declined(&mut self, epoch: u64) {
        (self.runs, self.declined) = (0, Some(epoch));
    }

    /// The epoch that it runs; 0 = its own files.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// The epoch that this node is to run: 0 in place of one that its files have put aside.
    pub fn target(&self, epochs: &Epochs) -> u64 {
        let desired = epochs.desired(&self.node);
        if self.declined == Some(desired) { 0 } else { desired }
    }

    /// Whether it runs what it should, or can't.
    pub fn settled(&self, epochs: &Epochs) -> bool {
        let target = self.target(epochs);
        self.runs == target || self.has_failed(target) || self.kills(target)
    }

    /// What to do now, if anything. `peer` tells of the other nodes.
    pub fn poll(&mut self, epochs: &Epochs, peer: &dyn Fn(&str) -> Peer, now: Now) -> Option<Action> {
        if self.busy || self.pause.is_some_and(|until| now.mono < until) {
            return None;
        }
        let action = self.own(epochs, now).or_else(|| self.others(epochs, peer, now))?;
        self.busy = true;
        Some(action)
    }

    /// The floating IPs are elsewhere, or nobody else can take them.
    pub fn yielded(&mut self, epoch: u64) {
        self.busy = false;
        self.yielded = Some(epoch);
    }

    /// What came of [`Action::Apply`]: the epoch that the node runs now, and why it is not the one that
    /// was asked for.
    pub fn applied(&mut self, asked: u64, runs: u64, error: Option<String>, now: Now) {
        self.busy = false;
        self.runs = runs;
        self.died = None;
        self.failed = error.map(|why| (asked, now.mono, why));
    }

    /// Whether the cluster took a proposal. One that was refused is outdated: the epochs say why.
    pub fn proposed(&mut self, taken: bool, now: Now) {
        self.busy = false;
        self.pause = (!taken).then_some(now.mono + RETRY_AFTER);
    }

    /// What this node has to do for itself.
    fn own(&mut self, epochs: &Epochs, now: Now) -> Option<Action> {
        if let Some(rollout) = epochs.rollout().filter(|r| r.back.is_none()) {
            let epoch = rollout.epoch;
            match rollout.turn().filter(|(node, _)| *node == self.node).map(|(_, step)| step) {
                Some(Step::Waiting) if self.yielded != Some(epoch) => return Some(Action::Yield { epoch }),
                Some(Step::Waiting) => {
                    // What it could not do before says nothing about this time.
                    (self.failed, self.died) = (None, None);
                    let (node, run) = (self.node.clone(), self.run);
                    return Some(Action::Propose(ConfigCommand::Start { epoch, node, run }));
                }
                Some(Step::Applying { run }) if *run != self.run => {
                    let why = "was started again while it applied".to_owned();
                    let (node, run) = (self.node.clone(), Some(*run));
                    return Some(Action::Propose(ConfigCommand::Lost { epoch, node, run, why }));
                }
                Some(Step::Applying { .. }) if self.runs != epoch && !self.has_failed(epoch) => {
                    return Some(Action::Apply { epoch, watch: true });
                }
                Some(Step::Applying { .. }) => return Some(self.report(epoch)),
                _ => {}
            }
        }
        let target = self.target(epochs);
        let going_back = epochs.rollout().is_some_and(|r| r.back.is_some());
        if self.runs != target && self.may_try(target, now) {
            return Some(Action::Apply { epoch: target, watch: !going_back });
        }
        let desired = epochs.desired(&self.node);
        let due = epochs.rollout().is_some_and(|r| r.to_go_back().any(|node| node == self.node));
        let said = epochs.mark(&self.node);
        let current =
            said.is_some_and(|m| (m.wanted, m.runs) == (desired, self.runs) && m.error == self.error(target));
        // A node that never had anything to do with epochs need not say so.
        let nothing = said.is_none() && desired == 0 && self.runs == 0;
        (due || !(current || nothing)).then(|| self.report(desired))
    }

    fn has_failed(&self, epoch: u64) -> bool {
        self.failed.as_ref().is_some_and(|(failed, _, _)| *failed == epoch)
    }

    /// Whether the node has died with it too often to try again by itself.
    fn kills(&self, epoch: u64) -> bool {
        self.died.is_some_and(|(died, times)| died == epoch && times >= MAX_DEATHS)
    }

    fn may_try(&self, epoch: u64, now: Now) -> bool {
        if self.kills(epoch) {
            return false;
        }
        let failed = self.failed.as_ref().filter(|(failed, _, _)| *failed == epoch);
        failed.is_none_or(|(_, at, _)| now.mono >= *at + FAILED_AGAIN_AFTER)
    }

    fn error(&self, target: u64) -> Option<String> {
        if self.declined.is_some() && target == 0 && self.runs == 0 {
            return Some("its own file was changed since, and is in force there".to_owned());
        }
        if self.kills(target) {
            return Some(format!("the node died {MAX_DEATHS} times while it applied it"));
        }
        self.failed.as_ref().filter(|(epoch, _, _)| *epoch == target).map(|(_, _, why)| why.clone())
    }

    fn report(&self, wanted: u64) -> Action {
        let target = if self.declined == Some(wanted) { 0 } else { wanted };
        Action::Propose(ConfigCommand::Report {
            wanted,
            runs: self.runs,
            node: self.node.clone(),
            run: self.run,
            error: self.error(target),
        })
    }

    /// What to say of the node that the rollout waits for.
    fn others(&mut self, epochs: &Epochs, peer: &dyn Fn(&str) -> Peer, now: Now) -> Option<Action> {
        let Some(rollout) = epochs.rollout() else {
            self.waiting = None;
            return None;
        };
        let back = rollout.back.is_some();
        let (node, began) = match rollout.turn() {
            Some((node, Step::Applying { run })) => (node, Some(*run)),
            Some((node, _)) => (node, None),
            None => (rollout.to_go_back().find(|node| *node != self.node)?, None),
        };
        if node == self.node {
            self.waiting = None;
            return None;
        }
        let key = (rollout.epoch, back, node.to_owned());
        if self.waiting.as_ref().is_none_or(|w| w.key != key) {
            self.waiting = Some(Waiting { key, since: now.mono, gone: None });
        }
        let waiting = self.waiting.as_mut()?;
        let seen = peer(node);
        let why = if seen.reachable {
            waiting.gone = None;
            match (began, seen.run) {
                (Some(began), Some(run)) if began != run => "was started again while it applied".to_owned(),
                _ if now.mono >= waiting.since + STUCK_AFTER => {
                    format!("takes longer than {} s", STUCK_AFTER.as_secs())
                }
                _ => return None,
            }
        } else {
            let gone = *waiting.gone.get_or_insert(now.mono);
            if now.mono < gone + LOST_AFTER {
                return None;
            }
            match began {
                Some(_) => "cannot be reached any more while it applied".to_owned(),
                None => "cannot be reached".to_owned(),
            }
        };
        let (epoch, node) = (rollout.epoch, node.to_owned());
        Some(Action::Propose(ConfigCommand::Lost { epoch, node, run: began, why }))
    }
}

/// How often a node that has just applied a configuration is looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks in a row that have to find the same fault.
const SURE_AFTER: u32 = 3;

/// Usable servers of each backend.
pub type Usable = BTreeMap<String, usize>;

/// Decides whether a node is well after it applied a configuration.
///
/// It is when, until the end of the time given, its listeners and workers answer, and every backend
/// that had usable servers before still has one. A backend without usable servers before, or without
/// any in the new configuration, proves nothing.
#[derive(Debug)]
pub struct Watch {
    before: Usable,
    end: Duration,
    bad: u32,
}

/// What a look at a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again in a moment.
    Wait,
    /// It is well.
    Well,
    /// It is not; why.
    Ill(String),
}

impl Watch {
    /// Watches until `end`; `before` is what there was before the change.
    pub fn new(before: Usable, end: Duration) -> Watch {
        Watch { before, end, bad: 0 }
    }

    /// Takes a look: what there is now, and what is wrong with listeners and workers.
    pub fn look(&mut self, now: Now, usable: &Usable, plane: Result<(), String>) -> Verdict {
        let lost = |(name, count): (&String, &usize)| {
            (*count > 0 && usable.get(name) == Some(&0)).then(|| name.clone())
        };
        let fault = match plane {
            Err(why) => Some(why),
            Ok(()) => self
                .before
                .iter()
                .find_map(lost)
                .map(|name| format!("backend '{name}' has no usable server any more")),
        };
        let Some(why) = fault else {
            self.bad = 0;
            return if now.mono >= self.end { Verdict::Well } else { Verdict::Wait };
        };
        self.bad += 1;
        if self.bad >= SURE_AFTER { Verdict::Ill(why) } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod sim;
