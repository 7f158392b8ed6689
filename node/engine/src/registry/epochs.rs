//! The agreed part of a configuration that the cluster holds: its texts, numbered as *epochs*, which
//! one is in force, and how far the nodes are with taking over a new one.
//!
//! Every decision about a rollout is made here, by commands in log order, so that there is nobody who
//! directs it and whose death could leave it half done: the nodes apply one after the other in the
//! order that the push names, each says when it starts and how it went, and anybody may say that a node
//! is gone. A node that fails or dies while it applies turns the rollout back, for all. What a node
//! does with it is [`rollout`](crate::rollout)'s.
//!
//! Epoch 0 is what each node finds in its own files; an epoch without a text means the same.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Members, Reply};

/// Largest text of a configuration.
pub const MAX_TEXT: usize = 1 << 20;

/// Epochs that are remembered.
pub const MAX_EPOCHS: usize = 32;

/// Bytes of text that are remembered; the oldest epochs go first.
pub const MAX_TEXTS: usize = 8 << 20;

/// Nodes that are remembered: more than any cluster has.
const MAX_NODES: usize = 256;

/// Longest reason that is kept.
const MAX_WHY: usize = 2000;

/// A command about the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigCommand {
    /// A new epoch, which every node that answered has checked.
    Push(Push),
    /// A node whose turn it is begins to apply.
    Start {
        /// Which.
        epoch: u64,
        /// The node.
        node: String,
        /// The run of its process.
        run: u64,
    },
    /// A node says what it runs now.
    Report {
        /// The epoch that it was to apply.
        wanted: u64,
        /// The one that it runs.
        runs: u64,
        /// The node.
        node: String,
        /// The run of its process.
        run: u64,
        /// Why it does not run what it was to.
        error: Option<String>,
    },
    /// Another node says that one does not take part: it cannot be reached, or was started again.
    Lost {
        /// Of the rollout.
        epoch: u64,
        /// The node that is gone.
        node: String,
        /// The run that is gone; `None` = it had not begun.
        run: Option<u64>,
        /// What was seen of it.
        why: String,
    },
}

/// A new epoch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The node that took the command.
    pub author: String,
    /// When, in microseconds since the Unix epoch.
    pub unix_us: u64,
    /// Name of the text, for messages.
    pub name: String,
    /// The text; `None` = back to each node's own files.
    pub text: Option<Arc<str>>,
    /// The epoch whose text this is again.
    pub again: Option<u64>,
    /// The nodes that checked it, in the order in which they apply it.
    pub order: Vec<String>,
    /// The newest epoch when it was checked: another one since then means that it has to be checked
    /// again.
    pub after: u64,
}

impl fmt::Debug for Push {
    /// Without the text, which nobody wants in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.as_ref().map(|t| t.len());
        let Push { author, name, again, order, after, .. } = self;
        write!(f, "Push {{ {author} {name:?} {text:?} bytes, again {again:?}, {order:?}, after {after} }}")
    }
}

/// One configuration of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1.
    pub number: u64,
    /// The node that took the command.
    pub author: String,
    /// When, in microseconds since the Unix epoch.
    pub unix_us: u64,
    /// Name of the text, for messages.
    pub name: String,
    /// The text; `None` = each node's own files.
    pub text: Option<Arc<str>>,
    /// The epoch whose text this is again.
    pub again: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
}

impl Epoch {
    /// Tells texts apart at a glance.
    pub fn hash(&self) -> u64 {
        hash(self.text.as_deref().unwrap_or_default().as_bytes())
    }
}

/// What became of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The nodes are applying it.
    Rolling,
    /// All nodes that took part have applied it.
    Done,
    /// It was taken back on all nodes; why.
    TakenBack(String),
}

/// What a node last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The epoch that it was to apply.
    pub wanted: u64,
    /// The one that it runs.
    pub runs: u64,
    /// Why they differ.
    pub error: Option<String>,
}

/// An epoch on its way to the nodes, or back from them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Which.
    pub epoch: u64,
    /// The epoch before it.
    pub from: u64,
    /// Why it goes back.
    pub back: Option<String>,
    /// The nodes, in order, and how far each is.
    pub steps: Vec<(String, Step)>,
}

/// How far a node is with a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Its turn has not come.
    Waiting,
    /// It applies.
    Applying {
        /// The run of its process.
        run: u64,
    },
    /// It has applied it and is well.
    Applied,
    /// It was not there when its turn came, and takes it when it is back.
    Absent,
    /// It has the old one again, has never left it, or was gone while the others went back.
    Back,
}

impl Rollout {
    /// The node whose turn it is, while the rollout goes forward.
    pub fn turn(&self) -> Option<(&str, &Step)> {
        let mut open = self.steps.iter().filter(|(_, s)| matches!(s, Step::Waiting | Step::Applying { .. }));
        open.next().filter(|_| self.back.is_none()).map(|(node, step)| (node.as_str(), step))
    }

    /// How far a node is; `None` = it takes no part.
    pub fn step(&self, node: &str) -> Option<&Step> {
        self.steps.iter().find(|(name, _)| name == node).map(|(_, step)| step)
    }

    /// The nodes that have yet to go back.
    pub fn to_go_back(&self) -> impl Iterator<Item = &str> {
        let back = self.back.is_some();
        let open = self.steps.iter().filter(move |(_, step)| back && *step != Step::Back);
        open.map(|(node, _)| node.as_str())
    }

    fn set(&mut self, node: &str, to: Step) {
        if let Some((_, step)) = self.steps.iter_mut().find(|(name, _)| name == node) {
            *step = to;
        }
    }

    /// Turns it back: those who have not begun have nothing to undo.
    fn turn_back(&mut self, why: String) {
        self.back = Some(why);
        for (_, step) in &mut self.steps {
            if matches!(step, Step::Waiting | Step::Absent) {
                *step = Step::Back;
            }
        }
    }
}

/// All that is agreed about the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    last: u64,
    in_force: u64,
    epochs: BTreeMap<u64, Epoch>,
    rollout: Option<Rollout>,
    marks: BTreeMap<String, Mark>,
}

impl Epochs {
    /// Number of the newest epoch; 0 = there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Number of the epoch in force; 0 = each node's own files.
    pub fn in_force(&self) -> u64 {
        self.in_force
    }

    /// The epoch of this number, if it is still remembered.
    pub fn epoch(&self, number: u64) -> Option<&Epoch> {
        self.epochs.get(&number)
    }

    /// The epochs that are remembered, oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Epoch> {
        self.epochs.values()
    }

    /// The rollout that is under way.
    pub fn rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
    }

    /// What a node last said.
    pub fn mark(&self, node: &str) -> Option<&Mark> {
        self.marks.get(node)
    }

    /// The epoch that was in force before the one that is; 0 = each node's own files.
    pub fn previous(&self) -> u64 {
        let before = self.epochs.range(..self.in_force);
        before.rev().find(|(_, e)| e.outcome == Outcome::Done).map_or(0, |(number, _)| *number)
    }

    /// The epoch that a node is to run now.
    pub fn desired(&self, node: &str) -> u64 {
        match &self.rollout {
            None => self.in_force,
            Some(rollout) if rollout.back.is_some() => rollout.from,
            Some(rollout) => match rollout.step(node) {
                Some(Step::Applying { .. } | Step::Applied) => rollout.epoch,
                _ => rollout.from,
            },
        }
    }

    pub(crate) fn apply(&mut self, command: &ConfigCommand) -> Reply {
        let reply = match command {
            ConfigCommand::Push(push) => self.push(push),
            ConfigCommand::Start { epoch, node, run } => self.start(*epoch, node, *run),
            ConfigCommand::Report { wanted, runs, node, run, error } => {
                let error = error.as_deref().map(bounded);
                self.report(node, *run, Mark { wanted: *wanted, runs: *runs, error })
            }
            ConfigCommand::Lost { epoch, node, run, why } => self.lost(*epoch, node, *run, why),
        };
        self.finish();
        reply
    }

    /// What a node said that is no member any more makes room for others.
    pub(super) fn forget(&mut self, members: &Members) {
        if members.founded() {
            self.marks.retain(|node, _| members.get(node).is_some());
        }
    }

    fn push(&mut self, push: &Push) -> Reply {
        if let Some(rollout) = &self.rollout {
            return Reply::Refused(format!(
                "Epoch {} is being applied; try again when it is.",
                rollout.epoch
            ));
        }
        if push.after != self.last {
            return Reply::Refused(format!("Epoch {} came first; try again.", self.last));
        }
        if push.text.as_ref().is_some_and(|t| t.len() > MAX_TEXT) {
            return Reply::Refused(format!("The text is longer than {MAX_TEXT} bytes."));
        }
        if push.order.is_empty() || push.order.len() > MAX_NODES {
            return Reply::refused("No node has checked it.");
        }
        self.last += 1;
        let number = self.last;
        let epoch = Epoch {
            number,
            author: push.author.clone(),
            unix_us: push.unix_us,
            name: push.name.clone(),
            text: push.text.clone(),
            again: push.again,
            outcome: Outcome::Rolling,
        };
        self.epochs.insert(number, epoch);
        let mut steps: Vec<(String, Step)> = Vec::new();
        for node in &push.order {
            if !steps.iter().any(|(name, _)| name == node) {
                steps.push((node.clone(), Step::Waiting));
            }
        }
        self.rollout = Some(Rollout { epoch: number, from: self.in_force, back: None, steps });
        self.trim();
        Reply::Text(number.to_string())
    }

    fn start(&mut self, epoch: u64, node: &str, run: u64) -> Reply {
        let Some(rollout) = self.rollout.as_mut().filter(|r| r.epoch == epoch) else {
            return Reply::refused("This epoch is not being applied.");
        };
        match rollout.turn() {
            Some((turn, Step::Waiting)) if turn == node => rollout.set(node, Step::Applying { run }),
            Some((turn, Step::Applying { run: began })) if turn == node && *began == run => {}
            _ => return Reply::refused("It is not this node's turn."),
        }
        Reply::Ok
    }

    fn report(&mut self, node: &str, run: u64, mark: Mark) -> Reply {
        if let Some(rollout) = &mut self.rollout {
            let step = rollout.step(node).cloned();
            if rollout.back.is_some() {
                // Whether it could go back or not: it has tried, and the others don't wait.
                if mark.wanted == rollout.from && step.is_some() {
                    rollout.set(node, Step::Back);
                }
            } else if mark.wanted == rollout.epoch && step == Some(Step::Applying { run }) {
                match &mark.error {
                    None => rollout.set(node, Step::Applied),
                    Some(why) => rollout.turn_back(format!("node '{node}': {why}")),
                }
            }
        }
        if self.marks.contains_key(node) || self.marks.len() < MAX_NODES {
            self.marks.insert(node.to_owned(), mark);
        }
        Reply::Ok
    }

    fn lost(&mut self, epoch: u64, node: &str, run: Option<u64>, why: &str) -> Reply {
        let Some(rollout) = self.rollout.as_mut().filter(|r| r.epoch == epoch) else {
            return Reply::refused("This epoch is not being applied.");
        };
        if rollout.back.is_some() {
            rollout.set(node, Step::Back);
            return Reply::Ok;
        }
        match rollout.turn() {
            Some((turn, Step::Waiting)) if turn == node && run.is_none() => rollout.set(node, Step::Absent),
            Some((turn, Step::Applying { run: began })) if turn == node && run == Some(*began) => {
                rollout.turn_back(format!("node '{node}': {}", bounded(why)));
            }
            _ => return Reply::refused("It is not this node's turn."),
        }
        Reply::Ok
    }

    /// Ends a rollout that has nobody left to wait for.
    fn finish(&mut self) {
        let Some(rollout) = &mut self.rollout else { return };
        if rollout.back.is_none() && rollout.turn().is_none() {
            if rollout.steps.iter().any(|(_, step)| *step == Step::Applied) {
                self.in_force = rollout.epoch;
                self.end(Outcome::Done);
                return;
            }
            rollout.turn_back("no node was there to apply it".to_owned());
        }
        if let Some(why) = rollout.back.clone()
            && rollout.to_go_back().next().is_none()
        {
            self.end(Outcome::TakenBack(why));
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(rollout) = self.rollout.take() else { return };
        if let Some(epoch) = self.epochs.get_mut(&rollout.epoch) {
            epoch.outcome = outcome;
        }
    }

    /// Forgets the oldest epochs that nobody runs.
    fn trim(&mut self) {
        let rolling = self.rollout.as_ref().map(|r| r.epoch);
        loop {
            let bytes: usize = self.epochs.values().filter_map(|e| Some(e.text.as_ref()?.len())).sum();
            if self.epochs.len() <= MAX_EPOCHS && bytes <= MAX_TEXTS {
                return;
            }
            let needed = |number: &u64| *number == self.in_force || Some(*number) == rolling;
            let Some(oldest) = self.epochs.keys().copied().find(|n| !needed(n)) else { return };
            self.epochs.remove(&oldest);
        }
    }

    /// What must hold after every command.
    pub(crate) fn consistent(&self) -> bool {
        let rolling = self.rollout.as_ref();
        let applying =
            rolling.map_or(0, |r| r.steps.iter().filter(|(_, s)| matches!(s, Step::Applying { .. })).count());
        self.in_force <= self.last
            && (self.in_force == 0 || self.epochs.contains_key(&self.in_force))
            && self.epochs.values().filter(|e| e.outcome == Outcome::Rolling).count()
                == usize::from(rolling.is_some())
            && rolling.is_none_or(|r| r.epoch == self.last && r.from == self.in_force)
            && applying <= 1
    }
}

fn bounded(why: &str) -> String {
    why.chars().take(MAX_WHY).collect()
}

/// FNV-1a, 64 bits: the same on every node.
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(epochs: &Epochs, text: &str, order: &[&str]) -> ConfigCommand {
        ConfigCommand::Push(Push {
            author: "n1".into(),
            unix_us: 1,
            name: "a.cfg".into(),
            text: Some(text.into()),
            again: None,
            order: order.iter().map(|n| (*n).to_owned()).collect(),
            after: epochs.last(),
        })
    }

    fn start(epoch: u64, node: &str) -> ConfigCommand {
        ConfigCommand::Start { epoch, node: node.into(), run: 1 }
    }

    fn report(wanted: u64, runs: u64, node: &str, error: Option<&str>) -> ConfigCommand {
        ConfigCommand::Report { wanted, runs, node: node.into(), run: 1, error: error.map(str::to_owned) }
    }

    fn lost(epoch: u64, node: &str, run: Option<u64>) -> ConfigCommand {
        ConfigCommand::Lost { epoch, node: node.into(), run, why: "unreachable".into() }
    }

    fn apply(epochs: &mut Epochs, command: &ConfigCommand) -> bool {
        let reply = epochs.apply(command);
        assert!(epochs.consistent(), "after {command:?}: {epochs:?}");
        !matches!(reply, Reply::Refused(_))
    }

    fn roll(epochs: &mut Epochs, text: &str) {
        let push = push(epochs, text, &["n1"]);
        assert!(apply(epochs, &push));
        let number = epochs.last();
        assert!(apply(epochs, &start(number, "n1")) && apply(epochs, &report(number, number, "n1", None)));
    }

    #[test]
    fn nodes_apply_in_turn_and_then_it_is_in_force() {
        let mut e = Epochs::default();
        let first = push(&e, "one", &["n1", "n2"]);
        assert!(apply(&mut e, &first));
        assert!(!apply(&mut e, &first), "one at a time");
        assert!(!apply(&mut e, &start(1, "n2")), "not its turn");
        assert!(apply(&mut e, &start(1, "n1")) && apply(&mut e, &start(1, "n1")), "a repetition is harmless");
        assert_eq!((e.desired("n1"), e.desired("n2"), e.in_force()), (1, 0, 0));
        assert!(!apply(&mut e, &start(1, "n2")), "one at a time");
        assert!(apply(&mut e, &report(1, 1, "n1", None)) && apply(&mut e, &start(1, "n2")));
        assert!(apply(&mut e, &report(1, 1, "n2", None)));
        assert_eq!((e.in_force(), e.rollout(), e.desired("n3")), (1, None, 1));
        assert_eq!(e.epoch(1).unwrap().outcome, Outcome::Done);
        assert!(!apply(&mut e, &first), "checked against something older");
    }

    #[test]
    fn a_failure_turns_it_back_everywhere() {
        let mut e = Epochs::default();
        roll(&mut e, "one");
        let second = push(&e, "two", &["n1", "n2", "n3"]);
        apply(&mut e, &second);
        apply(&mut e, &start(2, "n1"));
        apply(&mut e, &report(2, 2, "n1", None));
        apply(&mut e, &start(2, "n2"));
        apply(&mut e, &report(2, 1, "n2", Some("cannot bind")));
        let back: Vec<&str> = e.rollout().unwrap().to_go_back().collect();
        assert_eq!(back, ["n1", "n2"], "n3 has nothing to undo");
        assert_eq!((e.desired("n1"), e.desired("n2"), e.desired("n3")), (1, 1, 1));
        assert!(!apply(&mut e, &start(2, "n3")), "nobody goes on");
        apply(&mut e, &report(1, 1, "n1", None));
        apply(&mut e, &report(1, 1, "n2", None));
        assert_eq!((e.rollout(), e.in_force()), (None, 1));
        assert_eq!(e.epoch(2).unwrap().outcome, Outcome::TakenBack("node 'n2': cannot bind".into()));
    }

    #[test]
    fn a_node_that_dies_while_it_applies_turns_it_back_and_one_that_was_not_there_does_not() {
        let mut e = Epochs::default();
        let first = push(&e, "one", &["n1", "n2", "n3"]);
        apply(&mut e, &first);
        assert!(apply(&mut e, &lost(1, "n1", None)), "was not there");
        apply(&mut e, &start(1, "n2"));
        assert!(!apply(&mut e, &lost(1, "n2", None)) && !apply(&mut e, &lost(1, "n2", Some(9))));
        assert!(!apply(&mut e, &lost(1, "n1", None)), "no longer its turn");
        apply(&mut e, &report(1, 1, "n2", None));
        apply(&mut e, &start(1, "n3"));
        assert!(apply(&mut e, &lost(1, "n3", Some(1))));
        assert!(e.rollout().unwrap().back.is_some());
        apply(&mut e, &report(0, 0, "n2", None));
        assert!(e.rollout().is_some(), "n3 may come back with it");
        assert!(apply(&mut e, &lost(1, "n3", None)), "and is not waited for for ever");
        assert_eq!((e.rollout(), e.in_force(), e.last()), (None, 0, 1));
    }

    #[test]
    fn an_epoch_that_nobody_applied_is_not_in_force() {
        let mut e = Epochs::default();
        let first = push(&e, "one", &["n1"]);
        apply(&mut e, &first);
        apply(&mut e, &lost(1, "n1", None));
        assert_eq!((e.in_force(), e.rollout()), (0, None));
        assert!(matches!(e.epoch(1).unwrap().outcome, Outcome::TakenBack(_)));
    }

    #[test]
    fn history_is_bounded_and_keeps_what_is_in_force() {
        let mut e = Epochs::default();
        for n in 0..100 {
            roll(&mut e, &format!("text {n}"));
        }
        assert_eq!((e.history().count(), e.in_force(), e.previous()), (MAX_EPOCHS, 100, 99));
        let big = "x".repeat(MAX_TEXT);
        for _ in 0..20 {
            roll(&mut e, &big);
            let bytes: usize = e.history().map(|e| e.text.as_ref().unwrap().len()).sum();
            assert!(bytes <= MAX_TEXTS, "{bytes}");
        }
        let longer = push(&e, &format!("{big}x"), &["n1"]);
        assert!(!apply(&mut e, &longer));
        assert!(e.epoch(e.in_force()).is_some());
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let mut e = Epochs::default();
        roll(&mut e, "one");
        let second = push(&e, "two", &["n1", "n2"]);
        apply(&mut e, &second);
        let bytes = postcard::to_allocvec(&e).unwrap();
        assert_eq!(postcard::from_bytes::<Epochs>(&bytes).unwrap(), e);
    }
}
