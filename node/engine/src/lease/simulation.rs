//! Seeded simulation of a group of machines over a bad network, in true time.
//!
//! Nodes have clocks of different speed; messages are lost, doubled, delayed and reordered; workers and
//! guardians stop, pause and restart, together or alone; hosts go; the group is cut in two, nodes are cut
//! off, in one direction or both; nodes fall behind and are taken out of service; wall clocks step.
//!
//! What is wrong with a world is in proportion to its term: delays, stalls, lengths of faults and what every
//! act takes are written as for a term of [`TERM`], and stretched. So the power of the simulation does not
//! hang on which term is the default. Only what the kernel adds of its own is as it is ([`place`]).
//!
//! Ownership is recorded in true time where it happens, in the kernel of each node ([`place`]): while the
//! address is there and the kernel lets its traffic through, whatever became of who put it there.
//!
//! The members may change meanwhile: the registry and the gate are the real ones; what stands for raft
//! is a list of what was committed, which each node hears of when it likes, if at all, and the
//! leader's own knowledge, which is of those that it reaches at that moment.

mod place;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use self::place::Place;
use super::hands::Job;
use super::*;
use crate::membership::{Adopted, View as MembersView, settled};
use crate::registry::{Command, MemberCommand, Members, NewMember, Registry, Reply};

/// For which the times of a world are written down.
const TERM: Duration = Duration::from_millis(400);

/// Terms of bad worlds: the default, the shortest and the longest, and between; in long ones, what is planted
/// is not hidden by the margin that the kernel gets.
const TERMS: [Duration; 5] = [
    Timing::DEFAULT_LEASE,
    Duration::from_secs(2),
    Timing::DEFAULT_LEASE,
    Duration::from_secs(10),
    Duration::from_millis(60),
];

/// How members change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    /// Mean time between attempts.
    pub(super) every_us: u64,
    /// A node hears of a change within so long, unless it is cut off.
    pub(super) lag_us: u64,
    /// What is done wrong on purpose.
    pub(super) mutation: Option<Mutation>,
}

/// Faults that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// A change follows whatever the nodes have seen.
    SkipSettled,
    /// It is enough that one voter has seen the present configuration for a term.
    OneIsEnough,
    /// Two voters at once.
    TwoAtOnce,
    /// A node that restarts begins with the configuration that it was founded with.
    ForgetConfig,
}

/// What is wrong with the world.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) nodes: usize,
    pub(super) witness: Option<usize>,
    pub(super) prefer: Option<usize>,
    pub(super) timing: Timing,
    /// The other term of nodes, from one of their starts to the next.
    pub(super) other: Option<Duration>,
    /// Lost and doubled messages, in 1/1000.
    pub(super) loss: u32,
    pub(super) double: u32,
    /// Longest delay of most messages; one in so many takes up to twenty times as long.
    pub(super) delay_us: u64,
    pub(super) slow: u32,
    /// Clock speeds differ by so many 1/1000 each way.
    pub(super) drift: u32,
    /// Mean time between faults; 0 = none.
    pub(super) fault_us: u64,
    /// Wall clocks step meanwhile; nobody restarts then, as ballots rest on one or the other.
    pub(super) steps: bool,
    /// What carries a tenure out fails at times, or takes long.
    pub(super) flaky: bool,
    pub(super) length_us: u64,
    /// Before the end, so long without faults.
    pub(super) calm_us: u64,
    pub(super) changes: Option<Changes>,
    /// How many of the nodes are members at first.
    pub(super) founders: usize,
    /// What holders do without a majority.
    pub(super) on_quorum_loss: QuorumLoss,
}

impl World {
    pub(super) fn calm() -> World {
        World {
            nodes: 3,
            witness: None,
            prefer: None,
            timing: Timing::default(),
            other: None,
            loss: 0,
            double: 0,
            delay_us: 2_000,
            slow: 50,
            drift: 0,
            fault_us: 0,
            steps: false,
            flaky: false,
            length_us: 10_000_000,
            calm_us: 0,
            changes: None,
            founders: 3,
            on_quorum_loss: QuorumLoss::Release,
        }
    }

    /// So many microseconds, written for a term of [`TERM`], as long as they are in this world.
    pub(super) fn us(&self, us: u64) -> u64 {
        stretched(self.timing.lease, us)
    }

    /// A world whose badness is drawn from the seed.
    pub(super) fn bad(seed: u64) -> World {
        World::bad_of(TERMS[seed as usize % TERMS.len()], seed)
    }

    /// Such a world with this term.
    pub(super) fn bad_of(lease: Duration, seed: u64) -> World {
        let us = |us| stretched(lease, us);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xbad);
        let nodes = rng.random_range(1..=5);
        World {
            nodes,
            witness: (nodes > 2 && rng.random_bool(0.3)).then(|| rng.random_range(0..nodes)),
            prefer: rng.random_bool(0.5).then(|| rng.random_range(0..nodes)),
            timing: Timing::of(lease),
            other: None,
            loss: [0, 20, 100, 300][rng.random_range(0..4)],
            double: [0, 50, 300][rng.random_range(0..3)],
            delay_us: us([500, 5_000, 20_000, 20_000, 60_000, 200_000][rng.random_range(0..6)]),
            slow: [50, 4][rng.random_range(0..2)],
            // The guard of an eighth is for 6 % each way.
            drift: [0, 5, 30, 60][rng.random_range(0..4)],
            fault_us: us([200_000, 700_000, 3_000_000][rng.random_range(0..3)]),
            steps: rng.random_bool(0.2),
            flaky: true,
            length_us: us(30_000_000),
            calm_us: us(10_000_000),
            changes: None,
            founders: nodes,
            on_quorum_loss: QuorumLoss::Release,
        }
    }

    /// A bad world whose answers come late, and whose clocks differ as much as they may.
    pub(super) fn late(seed: u64) -> World {
        let bad = World::bad(seed);
        let (delay_us, fault_us) = (bad.us(60_000), bad.us(700_000));
        World { nodes: 3, founders: 3, witness: None, loss: 0, delay_us, slow: 4, drift: 60, fault_us, ..bad }
    }

    /// A bad world in which the term is being changed, node by node: each start of a node draws one of two.
    pub(super) fn of_two_terms(seed: u64) -> World {
        let bad = World::bad(seed);
        let other = TERMS[(seed as usize / TERMS.len() + 1) % TERMS.len()];
        // Majorities of nodes that agree are to come about, and to go.
        World { other: Some(other), nodes: 3, founders: 3, witness: None, ..bad }
    }

    /// A bad world whose members change.
    pub(super) fn changing(seed: u64, mutation: Option<Mutation>) -> World {
        let bad = World::bad(seed);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xc4a6e);
        let lag_us = bad.us([10_000, 400_000, 3_000_000][rng.random_range(0..3)]);
        let every_us = bad.us([30_000, 700_000][rng.random_range(0..2)]);
        World {
            nodes: 7,
            founders: rng.random_range(1..=5),
            witness: rng.random_bool(0.3).then(|| rng.random_range(0..7)),
            loss: [0, 20, 100][rng.random_range(0..3)],
            delay_us: bad.us([500, 5_000][rng.random_range(0..2)]),
            fault_us: bad.us([200_000, 700_000, 3_000_000][rng.random_range(0..3)]),
            // Where all voters are others than they were, only wall clocks make epochs rise.
            steps: false,
            changes: Some(Changes { every_us, lag_us, mutation }),
            ..bad
        }
    }
}

#[derive(Debug)]
struct Node {
    lease: Lease,
    place: Place,
    /// Of this life.
    term: Duration,
    rate: f64,
    skew_us: i64,
    /// Its worker lives, and is not stopped.
    up: bool,
    paused: bool,
    incarnation: u64,
    /// How much of what was committed it has heard of and stored.
    heard: usize,
}

/// A time without a break, in true time, in which a node answered to the address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned {
    pub(super) node: usize,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) epoch: Epoch,
    /// Which of the node's tenures.
    pub(super) tenure: usize,
    /// Since when it is kept without a majority.
    pub(super) kept: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize),
    Deliver { to: usize, from: usize, slot: usize },
    Act { node: usize, life: u64 },
    Guardian { node: usize, guardian: u64 },
    Tend { node: usize, life: u64 },
    Fault,
    Resume(usize),
    ResumeGuardian { node: usize, guardian: u64 },
    Calm,
    Fit(usize),
    Start(usize),
    Heal,
    Change,
    Hear(usize),
}

/// What was found wrong: by which checker, and what.
pub(super) type Broken = (&'static str, String);

pub(super) struct Simulation {
    world: World,
    pub(super) now_us: u64,
    nodes: Vec<Node>,
    side: Vec<bool>,
    /// Nodes that nobody hears, and nodes that hear nobody.
    mute: Vec<bool>,
    deaf: Vec<bool>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    messages: Vec<Message>,
    sequence: u64,
    rng: SmallRng,
    pub(super) owned: Vec<Owned>,
    /// When what must never happen was seen to happen.
    broken: Option<Broken>,
    tenures: usize,
    /// How often connections of a tenure that was over went on.
    pub(super) drained: usize,
    calm: bool,
    /// The lists that were committed, in order.
    committed: Vec<Members>,
    registry: Registry,
    pub(super) trace: Vec<String>,
}

impl Simulation {
    pub(super) fn new(world: World, seed: u64) -> Simulation {
        let mut rng = SmallRng::seed_from_u64(seed);
        let drift = f64::from(world.drift) / 1000.0;
        let registry = found(&world);
        let nodes: Vec<Node> = (0..world.nodes)
            .map(|i| {
                let rate = 1.0 + if drift > 0.0 { rng.random_range(-drift..drift) } else { 0.0 };
                let skew_us = rng.random_range(-50_000..50_000);
                let term = draw_term(&world, &mut rng);
                let (members, now) = (registry.members(), local(0, rate, skew_us));
                Node {
                    lease: machine(&world, members, i, 1, (timing(&world, term), rng.random()), now),
                    term,
                    rate,
                    skew_us,
                    place: Place::default(),
                    up: true,
                    paused: false,
                    incarnation: 1,
                    heard: 0,
                }
            })
            .collect();
        let mut simulation = Simulation {
            side: vec![false; world.nodes],
            mute: vec![false; world.nodes],
            deaf: vec![false; world.nodes],
            broken: None,
            tenures: 0,
            drained: 0,
            calm: false,
            now_us: 0,
            nodes,
            queue: BinaryHeap::new(),
            messages: Vec::new(),
            sequence: 0,
            rng,
            owned: Vec::new(),
            trace: Vec::new(),
            committed: vec![registry.members().clone()],
            registry,
            world,
        };
        for node in 0..simulation.nodes.len() {
            simulation.settle_in(node);
            simulation.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
            simulation.at(0, Event::Tick(node));
        }
        simulation.next_fault();
        simulation.next_change();
        if simulation.world.calm_us > 0 {
            simulation.at(simulation.world.length_us - simulation.world.calm_us, Event::Calm);
        }
        simulation
    }

    /// Runs to the end of the world.
    pub(super) fn run(mut self) -> Simulation {
        let end = self.world.length_us;
        self.run_until(end);
        self
    }

    pub(super) fn run_until(&mut self, until_us: u64) {
        while let Some(Reverse((at, _, _))) = self.queue.peek() {
            if *at > until_us {
                break;
            }
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now_us = at;
            self.step(event);
        }
        self.now_us = until_us;
    }

    /// Applies an input to a node's machine and carries out what comes of it.
    pub(super) fn drive<T>(&mut self, node: usize, input: impl FnOnce(&mut Lease, Now) -> T) -> T {
        let now = self.local(node);
        let result = input(&mut self.nodes[node].lease, now);
        self.carry_out(node);
        result
    }

    /// The worker is killed; its guardian hears of it.
    pub(super) fn kill(&mut self, node: usize) {
        self.note(node, "killed");
        self.nodes[node].up = false;
        self.orphan(node);
    }

    pub(super) fn start(&mut self, node: usize) {
        self.note(node, "started");
        let (now, seed, term) = (self.local(node), self.rng.random(), draw_term(&self.world, &mut self.rng));
        let n = &mut self.nodes[node];
        n.incarnation += 1;
        n.up = true;
        n.paused = false;
        if self.world.changes.is_some_and(|c| c.mutation == Some(Mutation::ForgetConfig)) {
            n.heard = 0;
        }
        let before = std::mem::replace(&mut n.term, term);
        let mut timing = timing(&self.world, term);
        if before != term {
            timing = timing.after(before);
        }
        let members = &self.committed[n.heard];
        n.lease = machine(&self.world, members, node, n.incarnation, (timing, seed), now);
        self.settle_in(node);
        self.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
        self.at(self.now_us, Event::Tick(node));
    }

    pub(super) fn cut_off(&mut self, node: usize) {
        self.side = vec![false; self.nodes.len()];
        self.side[node] = true;
    }

    /// Whether a node runs and reaches a majority of nodes that do.
    pub(super) fn reaches_majority(&self, node: usize) -> bool {
        let well =
            |at: usize| self.nodes[at].up && !self.nodes[at].paused && !self.mute[at] && !self.deaf[at];
        let reached =
            (0..self.nodes.len()).filter(|&at| well(at) && self.side[at] == self.side[node]).count();
        well(node) && reached > self.nodes.len() / 2
    }

    pub(super) fn heal(&mut self) {
        self.side.fill(false);
        self.mute.fill(false);
        self.deaf.fill(false);
    }

    /// Who owns the VIP at this very moment.
    pub(super) fn owner(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|&node| self.answers(node))
    }

    pub(super) fn view(&self, node: usize) -> View {
        self.nodes[node].lease.view(self.local(node))
    }

    /// How often the members changed.
    pub(super) fn changes(&self) -> usize {
        self.committed.len() - 1
    }

    /// Everything that must hold of the history.
    pub(super) fn check(&self) -> Result<(), Broken> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let mut spans = self.owned.clone();
        spans.retain(|o| o.to > o.from);
        spans.sort_by_key(|o| o.from);
        for pair in spans.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            if b.from < a.to && a.node != b.node {
                return Err(("one owner", format!("two own it: {a:?} and {b:?}")));
            }
            if b.tenure != a.tenure && b.epoch <= a.epoch {
                return Err(("epochs rise", format!("the epoch does not rise: {a:?} and {b:?}")));
            }
        }
        if self.calm
            && let Some(node) = (0..self.nodes.len()).find(|&node| self.nodes[node].place.is_left_over())
        {
            return Err(("drains end", format!("n{node} has the address for nothing")));
        }
        if let Some(o) = spans.iter().find(|o| Some(o.node) == self.world.witness) {
            return Err(("no witness", format!("a witness holds: {o:?}")));
        }
        let one_can = (0..self.nodes.len()).any(|node| Some(node) != self.world.witness);
        // Nodes of different terms may not get a majority from each other.
        let settles = self.world.changes.is_none() && self.world.other.is_none() && one_can;
        if self.calm && settles && self.owner().is_none() {
            return Err(("progress", "nobody owns it after all faults are over".to_owned()));
        }
        Ok(())
    }

    fn broke(&mut self, checker: &'static str, what: String) {
        let what = format!("at {:.3} ms: {what}", self.now_us as f64 / 1000.0);
        self.broken.get_or_insert((checker, what));
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                if self.nodes[node].up && !self.nodes[node].paused {
                    self.drive(node, |lease, now| lease.tick(now));
                }
                if self.nodes[node].up {
                    self.next_tick(node);
                }
            }
            Event::Deliver { to, from, slot } => {
                let n = &self.nodes[to];
                if n.paused {
                    // It waits in the socket buffer.
                    self.at(self.now_us + self.us(20_000), Event::Deliver { to, from, slot });
                } else if n.up {
                    let message = self.messages[slot];
                    self.drive(to, |lease, now| lease.handle(NodeId(from as u8), message, now));
                }
            }
            Event::Act { node, life } => self.acted(node, life),
            Event::Tend { node, life } => self.tend(node, life),
            Event::Guardian { node, guardian } => self.guardian_looks(node, guardian),
            Event::ResumeGuardian { node, guardian } => self.resume_guardian(node, guardian),
            Event::Calm => self.calm_down(),
            Event::Fit(node) => {
                if self.nodes[node].up && !self.nodes[node].paused {
                    self.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
                }
            }
            Event::Fault => self.fault(),
            Event::Resume(node) => {
                self.note(node, "resumed");
                self.nodes[node].paused = false;
            }
            Event::Start(node) => {
                if !self.nodes[node].up {
                    self.start(node);
                }
            }
            Event::Heal => self.heal(),
            Event::Change => {
                self.change();
                self.next_change();
            }
            Event::Hear(node) => self.hear(node),
        }
    }

    fn next_change(&mut self) {
        if let Some(changes) = self.world.changes {
            let wait = self.rng.random_range(1..2 * changes.every_us);
            self.at(self.now_us + wait, Event::Change);
        }
    }

    /// Takes a node in, and tells these of it at once, if `leader` finds after `wait` that it may.
    pub(super) fn join(&mut self, node: usize, leader: usize, told: &[usize], wait: Duration) -> bool {
        let may = settled(self.registry.members(), &Seen { simulation: self, leader }, wait).is_ok();
        if may {
            self.step_of(node);
            self.committed.push(self.registry.members().clone());
            told.iter().for_each(|&node| self.hear(node));
        }
        may
    }

    /// Some node leads, and takes another in or lets one go if it finds that it may.
    fn change(&mut self) {
        let Some(changes) = self.world.changes else { return };
        let leader = self.rng.random_range(0..self.nodes.len());
        let wait = self.world.timing.start_wait;
        let seen = Seen { simulation: self, leader };
        let may = match changes.mutation {
            Some(Mutation::SkipSettled) => true,
            Some(Mutation::OneIsEnough) => seen.one(wait),
            _ => settled(self.registry.members(), &seen, wait).is_ok(),
        };
        if !may {
            return;
        }
        let steps = if changes.mutation == Some(Mutation::TwoAtOnce) { 2 } else { 1 };
        for _ in 0..steps {
            let node = self.rng.random_range(0..self.nodes.len());
            self.step_of(node);
        }
        if self.committed.last() == Some(self.registry.members()) {
            return;
        }
        self.committed.push(self.registry.members().clone());
        let voters: Vec<&str> = self.registry.members().voters().map(|(name, _)| name).collect();
        let text = format!("is told: members are now {}", voters.join(" "));
        self.note(leader, &text);
        for node in 0..self.nodes.len() {
            let lag = self.rng.random_range(self.us(1_000)..changes.lag_us);
            self.at(self.now_us + lag, Event::Hear(node));
        }
    }

    fn step_of(&mut self, node: usize) {
        let name = format!("n{node}");
        let config = self.registry.members().config();
        let steps = match self.registry.members().get(&name) {
            None => [
                MemberCommand::Join { node: new_member(&self.world, node), replaces: None },
                MemberCommand::Promote { name, config },
            ],
            Some(_) => [MemberCommand::Leave { name: name.clone() }, MemberCommand::Remove { name, config }],
        };
        for step in steps {
            if matches!(self.registry.apply(&Command::Member(step)), Reply::Refused(_)) {
                return;
            }
        }
    }

    /// A node hears of what was committed, some of it or all, and stores it before it acts on it.
    fn hear(&mut self, node: usize) {
        let n = &self.nodes[node];
        if !n.up || n.paused || self.side[node] || self.deaf[node] {
            let later = self.now_us + self.rng.random_range(self.us(50_000)..self.us(500_000));
            if n.heard + 1 < self.committed.len() {
                self.at(later, Event::Hear(node));
            }
            return;
        }
        let newest = self.committed.len() - 1;
        if n.heard < newest {
            let heard = self.rng.random_range(n.heard + 1..=newest);
            self.nodes[node].heard = heard;
            let group = group(&self.world, &self.committed[heard], node, self.nodes[node].incarnation);
            self.drive(node, |lease, now| lease.reconfigure(group, now));
        }
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let node = self.rng.random_range(0..self.nodes.len());
        let soon = self.now_us + self.while_us();
        let awake = self.nodes[node].up && !self.nodes[node].paused;
        match self.rng.random_range(0..12) {
            0 | 1 if self.nodes[node].up && !self.world.steps => {
                self.kill(node);
                match self.rng.random_range(0..6) {
                    0 => self.host_gone(node),
                    1 => self.kill_guardian(node),
                    2 => self.stop_guardian(node, soon + self.us(400_000)),
                    _ => {}
                }
                self.at(soon, Event::Start(node));
            }
            2 | 3 if self.nodes[node].up => {
                self.note(node, "paused");
                self.nodes[node].paused = true;
                if self.rng.random_bool(0.4) {
                    let until = self.now_us + self.while_us();
                    self.stop_guardian(node, until);
                }
                self.at(soon, Event::Resume(node));
            }
            4 => {
                for side in &mut self.side {
                    *side = self.rng.random_bool(0.5);
                }
                self.at(soon, Event::Heal);
            }
            5 => {
                self.cut_off(node);
                self.at(soon, Event::Heal);
            }
            6 => {
                let both = self.rng.random_range(0..3);
                (self.mute[node], self.deaf[node]) = (both != 0, both != 1);
                self.note(node, "is cut one way");
                self.at(soon, Event::Heal);
            }
            7 if awake => {
                let to = self.rng.random_range(0..self.nodes.len()) as u8;
                let _ = self.drive(node, |lease, now| lease.resign(Some(NodeId(to)), now));
            }
            8 | 9 if awake => {
                // Maintenance, or behind with what the cluster has agreed on.
                let fit = match self.rng.random_range(0..2) {
                    0 => Fit::No(vec!["tried".into()]),
                    _ => Fit::Keep(vec!["behind".into()]),
                };
                self.note(node, &format!("is told {fit:?}"));
                self.drive(node, |lease, now| lease.set_fit(fit, now));
                self.at(soon, Event::Fit(node));
            }
            10 if self.rng.random_bool(0.5) => self.kill_guardian(node),
            10 => self.stop_guardian(node, soon),
            11 if self.world.steps => {
                self.note(node, "its wall clock steps");
                self.nodes[node].skew_us = self.rng.random_range(-3_600_000_000..3_600_000_000);
            }
            _ => {}
        }
        self.next_fault();
    }

    /// All faults are over: what must come of itself must come now.
    fn calm_down(&mut self) {
        self.calm = true;
        self.heal();
        (self.world.loss, self.world.flaky) = (0, false);
        self.world.delay_us = self.world.delay_us.min(self.us(5_000));
        for node in 0..self.nodes.len() {
            if !self.nodes[node].up {
                self.start(node);
            }
            self.nodes[node].paused = false;
            self.wake_guardians(node);
            self.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
        }
    }

    fn us(&self, us: u64) -> u64 {
        self.world.us(us)
    }

    /// How long a fault lasts.
    fn while_us(&mut self) -> u64 {
        self.rng.random_range(self.us(1_000)..self.us(2_500_000))
    }

    fn next_fault(&mut self) {
        if self.world.fault_us > 0 {
            let wait = self.rng.random_range(1..2 * self.world.fault_us);
            self.at(self.now_us + wait, Event::Fault);
        }
    }

    fn carry_out(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].lease.poll_output() {
            match output {
                Output::Send { to, message } => self.send(node, usize::from(to.0), message),
                Output::Acquired { ballot, until } => {
                    self.note(node, &format!("acquired {ballot:?}"));
                    if *self.nodes[node].lease.fit() != Fit::Yes {
                        self.broke("only the fit", format!("n{node} takes it over and is not fit"));
                    }
                    self.job(node, Job::Acquire { ballot, until });
                }
                Output::Renewed { ballot, until } => {
                    if self.nodes[node].lease.keeps() {
                        self.nodes[node].place.kept = Some(ballot);
                    }
                    self.job(node, Job::Renew { ballot, until });
                }
                Output::Withdraw { ballot, reason } => {
                    self.note(node, &format!("withdraws: {reason:?}"));
                    let planned = matches!(reason, Reason::Moved { .. } | Reason::Unfit(_));
                    let keep = planned && self.rng.random_bool(0.8);
                    self.job(node, Job::Withdraw { ballot, keep });
                }
            }
        }
        self.work(node);
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let cut = self.side[from] != self.side[to] || self.mute[from] || self.deaf[to];
        if cut || self.rng.random_range(0..1000) < self.world.loss {
            return;
        }
        let copies = if self.rng.random_range(0..1000) < self.world.double { 2 } else { 1 };
        for _ in 0..copies {
            let slow = if self.rng.random_range(0..self.world.slow) == 0 { 20 } else { 1 };
            let delay = self.rng.random_range(self.us(50)..=self.world.delay_us * slow);
            let slot = self.messages.len();
            self.messages.push(message);
            self.at(self.now_us + delay, Event::Deliver { to, from, slot });
        }
    }

    fn next_tick(&mut self, node: usize) {
        let deadline = self.nodes[node].lease.deadline(self.local(node));
        // The machine is late by up to 3 ms, and never idle for more than 100.
        let (soonest, latest) = (self.now_us + self.us(500), self.now_us + self.us(100_000));
        let due = self.true_time(node, deadline).clamp(soonest, latest);
        let late = self.rng.random_range(0..self.us(3_000));
        self.at(due + late, Event::Tick(node));
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at_us, self.sequence, event)));
    }

    fn local(&self, node: usize) -> Now {
        let n = &self.nodes[node];
        local(self.now_us, n.rate, n.skew_us)
    }

    /// The true time at which a node's clock shows `mono`.
    fn true_time(&self, node: usize, mono: Duration) -> u64 {
        (mono.as_nanos() as f64 / 1000.0 / self.nodes[node].rate).ceil() as u64
    }

    fn note(&mut self, node: usize, what: &str) {
        let line = format!("{:>10.3} n{node} {what}", self.now_us as f64 / 1000.0);
        self.trace.push(line);
    }
}

fn stretched(lease: Duration, us: u64) -> u64 {
    us * lease.as_micros() as u64 / TERM.as_micros() as u64
}

fn local(now_us: u64, rate: f64, skew_us: i64) -> Now {
    let mono = Duration::from_nanos((now_us as f64 * rate * 1000.0) as u64);
    Now { mono, unix_us: (1_700_000_000_000_000_u64 + now_us).saturating_add_signed(skew_us) }
}

fn new_member(world: &World, node: usize) -> NewMember {
    NewMember { name: format!("n{node}"), addr: format!("h{node}:1"), witness: Some(node) == world.witness }
}

fn found(world: &World) -> Registry {
    let mut registry = Registry::new();
    let nodes = (0..world.founders.min(world.nodes)).map(|i| new_member(world, i)).collect();
    registry.apply(&Command::Member(MemberCommand::Found { id: 1, nodes }));
    registry
}

/// The voters of a list. A node keeps its number here, however often it comes and goes.
fn group(world: &World, members: &Members, node: usize, incarnation: u64) -> Group {
    let number = |name: &str| NodeId(name[1..].parse().expect("names are n0, n1, …"));
    let mut voters: Vec<Voter> =
        members.voters().map(|(name, m)| Voter { id: number(name), witness: m.witness }).collect();
    voters.sort_by_key(|v| v.id);
    Group {
        me: NodeId(node as u8),
        incarnation,
        config: members.config(),
        voters,
        prefer: world.prefer.map(|i| NodeId(i as u8)),
    }
}

/// The term of a node's life.
fn draw_term(world: &World, rng: &mut SmallRng) -> Duration {
    match world.other {
        Some(other) if rng.random() => other,
        _ => world.timing.lease,
    }
}

fn timing(world: &World, term: Duration) -> Timing {
    if term == world.timing.lease { world.timing } else { Timing::of(term) }
}

fn machine(
    world: &World,
    members: &Members,
    node: usize,
    incarnation: u64,
    (timing, seed): (Timing, u64),
    now: Now,
) -> Lease {
    let mut lease = Lease::new(group(world, members, node, incarnation), timing, seed, now);
    lease.set_on_quorum_loss(world.on_quorum_loss);
    lease
}

/// What a leader knows of the others: of those that it reaches.
struct Seen<'a> {
    simulation: &'a Simulation,
    leader: usize,
}

impl Seen<'_> {
    fn node(&self, name: &str) -> Option<usize> {
        let at: usize = name[1..].parse().ok()?;
        let s = self.simulation;
        let cut = s.side[at] != s.side[self.leader] || s.mute[at] || s.deaf[at];
        (s.nodes[at].up && !cut).then_some(at)
    }

    fn one(&self, wait: Duration) -> bool {
        let members = self.simulation.registry.members();
        let has =
            |name: &str| self.adopted(name).is_some_and(|a| a.config >= members.config() && a.age >= wait);
        members.voters().any(|(n, _)| has(n))
    }
}

impl MembersView for Seen<'_> {
    fn reachable(&self, node: &str) -> bool {
        self.node(node).is_some()
    }

    fn adopted(&self, node: &str) -> Option<Adopted> {
        let at = self.node(node)?;
        let (config, since) = self.simulation.nodes[at].lease.floor();
        Some(Adopted { config, age: self.simulation.local(at).mono.saturating_sub(since) })
    }

    fn caught_up(&self, node: &str) -> bool {
        self.reachable(node)
    }

    fn keeps(&self, _: &str) -> Option<&'static str> {
        None
    }

    fn voters(&self) -> Option<std::collections::BTreeSet<String>> {
        None
    }

    fn learners(&self) -> std::collections::BTreeSet<String> {
        std::collections::BTreeSet::new()
    }
}
