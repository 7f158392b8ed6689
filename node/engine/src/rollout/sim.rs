//! Seeded simulation of rollouts: nodes that die, start again, are cut off, fail to apply, fall ill or
//! crash with what they apply, while configurations are pushed.
//!
//! The log is one sequence that a majority can add to; each node sees a prefix of it. What must hold:
//! an epoch on which some node failed never comes into force; a rollout always ends; and once all is
//! quiet every node runs what is in force, or says why it can't.
//! `PHALANX_SEED=n` replays one, `PHALANX_SEEDS=n` runs more of them.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::registry::Reply;
use crate::registry::epochs::{Outcome, Push};

const TICK: u64 = 50;

/// What happens when a node applies an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    Fails,
    Ill,
    Crashes,
}

struct SimNode {
    name: String,
    up: bool,
    cut: bool,
    run: u64,
    agent: Agent,
    /// What is stored: survives a crash.
    disk: u64,
    /// The epoch that it began to apply, and how often; survives as well.
    trying: Option<(u64, u32)>,
    seen: usize,
    doing: Option<(u64, Action)>,
    /// When a dead one comes back.
    back_at: u64,
}

struct Sim {
    rng: SmallRng,
    ms: u64,
    nodes: Vec<SimNode>,
    /// State after each entry.
    states: Vec<Arc<Epochs>>,
    fates: BTreeMap<(u64, String), Fate>,
    bad: bool,
    faults: bool,
    trace: Vec<String>,
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(1..=5);
        let nodes = (1..=count).map(|n| {
            let name = format!("n{n}");
            SimNode {
                agent: Agent::new(&name, 1, 0, None, None),
                name,
                up: true,
                cut: false,
                run: 1,
                disk: 0,
                trying: None,
                seen: 0,
                doing: None,
                back_at: 0,
            }
        });
        let nodes = nodes.collect();
        let bad = rng.random_bool(0.7);
        Sim {
            rng,
            ms: 0,
            nodes,
            states: vec![Arc::default()],
            fates: BTreeMap::new(),
            bad,
            faults: true,
            trace: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now { mono: Duration::from_millis(self.ms), unix_us: self.ms * 1000 }
    }

    fn epochs(&self) -> &Epochs {
        self.states.last().expect("there is a first state")
    }

    fn majority(&self) -> bool {
        2 * self.nodes.iter().filter(|n| n.up && !n.cut).count() > self.nodes.len()
    }

    fn say(&mut self, text: String) {
        self.trace.push(format!("{:>7} {text}", self.ms));
    }

    /// Adds to the log, if this node can reach a majority.
    fn propose(&mut self, at: usize, command: ConfigCommand) -> Option<Reply> {
        if self.nodes[at].cut || !self.majority() {
            return None;
        }
        let mut epochs = Epochs::clone(self.epochs());
        let reply = epochs.apply(&command);
        assert!(epochs.consistent(), "after {command:?}: {epochs:?}");
        self.say(format!("{}: {command:?} -> {reply:?}", self.nodes[at].name));
        self.states.push(Arc::new(epochs));
        self.nodes[at].seen = self.states.len() - 1;
        Some(reply)
    }

    fn fate(&mut self, epoch: u64, node: &str) -> Fate {
        let (rng, bad) = (&mut self.rng, self.bad && self.faults);
        *self.fates.entry((epoch, node.to_owned())).or_insert_with(|| match rng.random_range(0..20) {
            0 if bad => Fate::Fails,
            1 if bad => Fate::Ill,
            2 if bad => Fate::Crashes,
            _ => Fate::Good,
        })
    }

    fn push(&mut self, at: usize) {
        let view = &self.states[self.nodes[at].seen];
        if view.rollout().is_some() {
            return;
        }
        let mut order: Vec<String> =
            self.nodes.iter().filter(|n| n.up && !n.cut).map(|n| n.name.clone()).collect();
        if !order.is_empty() {
            let turn = self.rng.random_range(0..order.len());
            order.rotate_left(turn);
        }
        let text = (!self.rng.random_bool(0.1)).then(|| "text".into());
        let push = Push {
            author: self.nodes[at].name.clone(),
            unix_us: 0,
            name: "a.cfg".into(),
            text,
            again: None,
            order,
            after: view.last(),
        };
        self.propose(at, ConfigCommand::Push(push));
    }

    fn die(&mut self, at: usize) {
        let back = self.ms + self.rng.random_range(100..20_000);
        let node = &mut self.nodes[at];
        (node.up, node.doing, node.back_at) = (false, None, back);
        let text = format!("{} dies", self.nodes[at].name);
        self.say(text);
    }

    fn revive(&mut self, at: usize) {
        let newest = self.states.len() - 1;
        let node = &mut self.nodes[at];
        node.run += 1;
        node.up = true;
        node.agent = Agent::new(&node.name, node.run, node.disk, None, node.trying);
        // It acts once it has what was committed when it came.
        node.seen = newest;
        let text = format!("{} starts with {}", node.name, node.disk);
        self.say(text);
    }

    fn tick(&mut self) {
        self.ms += TICK;
        let newest = self.states.len() - 1;
        for at in 0..self.nodes.len() {
            if self.faults {
                self.fault(at);
            }
            if !self.nodes[at].up {
                if self.ms >= self.nodes[at].back_at && !self.nodes[at].cut && self.majority_without(at) {
                    self.revive(at);
                }
                continue;
            }
            if !self.nodes[at].cut && self.rng.random_bool(0.7) {
                let seen = self.nodes[at].seen;
                self.nodes[at].seen = self.rng.random_range(seen..=newest.max(seen));
            }
            if self.nodes[at].doing.as_ref().is_some_and(|(end, _)| self.ms >= *end) {
                let (_, action) = self.nodes[at].doing.take().expect("just seen");
                self.finish(at, action);
            } else if self.nodes[at].doing.is_none() {
                self.begin(at);
            }
        }
    }

    /// A node takes part again when it and the others are a majority.
    fn majority_without(&self, at: usize) -> bool {
        let there = self.nodes.iter().enumerate().filter(|(i, n)| *i == at || (n.up && !n.cut)).count();
        2 * there > self.nodes.len() || !self.faults
    }

    fn fault(&mut self, at: usize) {
        match self.rng.random_range(0..4000) {
            0..4 if self.nodes[at].up => self.die(at),
            4..8 => self.nodes[at].cut = true,
            8..80 => self.nodes[at].cut = false,
            80..100 if self.nodes[at].up => self.push(at),
            _ => {}
        }
    }

    fn begin(&mut self, at: usize) {
        let now = self.now();
        let view = self.states[self.nodes[at].seen].clone();
        let here = !self.nodes[at].cut;
        let others: Vec<Peer> =
            self.nodes.iter().map(|n| Peer { reachable: here && n.up && !n.cut, run: Some(n.run) }).collect();
        let peer = |name: &str| {
            let number: usize = name[1..].parse().expect("names are n1, n2, …");
            others[number - 1]
        };
        let Some(action) = self.nodes[at].agent.poll(&view, &peer, now) else { return };
        let takes = match &action {
            Action::Yield { .. } => self.rng.random_range(0..500),
            Action::Apply { watch: true, .. } => self.rng.random_range(100..4000),
            Action::Apply { watch: false, .. } => self.rng.random_range(50..500),
            Action::Propose(_) => self.rng.random_range(0..300),
        };
        if let Action::Apply { epoch, .. } = action {
            let before = self.nodes[at].trying.filter(|(tried, _)| *tried == epoch);
            self.nodes[at].trying = Some((epoch, before.map_or(1, |(_, times)| times + 1)));
        }
        self.nodes[at].doing = Some((self.ms + takes, action));
    }

    fn finish(&mut self, at: usize, action: Action) {
        let now = self.now();
        match action {
            Action::Yield { epoch } => self.nodes[at].agent.yielded(epoch),
            Action::Propose(command) => {
                let reply = self.propose(at, command);
                // The answer may be lost, whatever became of it.
                let heard = !self.faults || !self.rng.random_bool(0.1);
                let taken = heard && reply.is_some_and(|r| !matches!(r, Reply::Refused(_)));
                self.nodes[at].agent.proposed(taken, now);
            }
            Action::Apply { epoch, watch } => {
                let name = self.nodes[at].name.clone();
                // What it ran before it can run again.
                let fate = if watch { self.fate(epoch, &name) } else { Fate::Good };
                self.say(format!("{name} applies {epoch}: {fate:?}"));
                let runs = self.nodes[at].agent.runs();
                if fate != Fate::Crashes {
                    self.nodes[at].trying = None;
                }
                match fate {
                    Fate::Good => {
                        self.nodes[at].disk = epoch;
                        self.nodes[at].agent.applied(epoch, epoch, None, now);
                    }
                    Fate::Fails | Fate::Ill => {
                        self.nodes[at].agent.applied(epoch, runs, Some(format!("{fate:?}")), now);
                    }
                    Fate::Crashes => self.die(at),
                }
            }
        }
    }

    /// What must hold at all times.
    fn check(&self) {
        for epoch in self.epochs().history().filter(|e| e.outcome == Outcome::Done) {
            for node in &self.nodes {
                let fate = self.fates.get(&(epoch.number, node.name.clone()));
                let reported = self.states.iter().any(|s| {
                    s.rollout().is_some_and(|r| {
                        r.epoch == epoch.number && r.step(&node.name) == Some(&Step::Applied)
                    })
                });
                assert!(
                    !(reported && fate.is_some_and(|f| *f != Fate::Good)),
                    "epoch {} is in force although it failed on {}",
                    epoch.number,
                    node.name
                );
            }
        }
    }

    /// All is quiet: everything comes to an end.
    fn settle(&mut self) {
        self.faults = false;
        for node in &mut self.nodes {
            node.cut = false;
            node.back_at = node.back_at.min(self.ms);
        }
        let end = self.ms + 300_000;
        while self.ms < end {
            self.tick();
        }
        self.check();
        let epochs = self.epochs().clone();
        assert!(epochs.rollout().is_none(), "a rollout does not end: {:?}", epochs.rollout());
        for node in &self.nodes {
            let fate = self.fates.get(&(epochs.in_force(), node.name.clone())).copied();
            if node.agent.runs() != epochs.in_force() {
                let died = node.trying.is_some_and(|(_, times)| times >= MAX_DEATHS);
                assert!(died || matches!(fate, Some(Fate::Fails | Fate::Ill)), "{} stays behind", node.name);
                let mark = epochs.mark(&node.name).expect("it has said so");
                assert!(mark.error.is_some() && mark.runs == node.agent.runs(), "{mark:?}");
            } else if epochs.in_force() != 0 {
                assert_eq!(epochs.mark(&node.name).map(|m| m.runs), Some(epochs.in_force()));
            }
        }
    }
}

fn run(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.push(0);
    while sim.ms < 120_000 {
        sim.tick();
    }
    sim.check();
    sim.settle();
    sim
}

#[test]
fn rollouts_end_and_nodes_agree_whatever_happens() {
    let seeds = crate::testing::seeds(150);
    let (runs, mut done, mut taken_back) = (seeds.end - seeds.start, 0, 0);
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(sim) => {
                let history = sim.epochs().history();
                let good = history.filter(|e| e.outcome == Outcome::Done).count();
                done += good;
                taken_back += sim.epochs().history().count() - good;
            }
            Err(why) => {
                eprintln!("PHALANX_SEED={seed}");
                std::panic::resume_unwind(why);
            }
        }
    }
    println!("{done} epochs came into force, {taken_back} were taken back");
    let many = runs as usize;
    assert!(many == 1 || (done > many && taken_back > many / 2), "{done} {taken_back}: too calm a world");
}

#[test]
fn the_same_seed_gives_the_same_story() {
    assert_eq!(run(7).trace, run(7).trace);
}

#[test]
fn a_good_configuration_comes_into_force_on_all_in_calm() {
    let mut sim = Sim::new(3);
    (sim.bad, sim.faults) = (false, false);
    sim.push(0);
    while sim.ms < 60_000 {
        sim.tick();
    }
    assert_eq!(sim.epochs().in_force(), 1);
    assert!(sim.nodes.iter().all(|n| n.agent.runs() == 1 && n.agent.settled(sim.epochs())));
}

#[test]
fn a_watch_finds_what_got_lost_and_forgives_a_moment() {
    let usable = |n: usize| Usable::from([("app".to_owned(), n), ("old".to_owned(), 0)]);
    let at = |ms: u64| Now { mono: Duration::from_millis(ms), unix_us: 0 };
    let mut watch = Watch::new(usable(2), Duration::from_millis(1000));
    assert_eq!(watch.look(at(0), &usable(2), Ok(())), Verdict::Wait);
    for _ in 0..2 {
        assert_eq!(watch.look(at(100), &usable(0), Ok(())), Verdict::Wait);
    }
    assert_eq!(watch.look(at(300), &usable(1), Ok(())), Verdict::Wait);
    for _ in 0..2 {
        assert_eq!(watch.look(at(900), &usable(0), Ok(())), Verdict::Wait);
    }
    let ill = Verdict::Ill("backend 'app' has no usable server any more".into());
    assert_eq!(watch.look(at(1000), &usable(0), Ok(())), ill);
    let mut watch = Watch::new(usable(2), Duration::from_millis(1000));
    assert_eq!(watch.look(at(1000), &Usable::new(), Ok(())), Verdict::Well, "the backend is gone on purpose");
    for _ in 0..2 {
        watch.look(at(0), &usable(2), Err("a worker does not answer".into()));
    }
    let ill = watch.look(at(0), &usable(2), Err("a worker does not answer".into()));
    assert_eq!(ill, Verdict::Ill("a worker does not answer".into()));
}
