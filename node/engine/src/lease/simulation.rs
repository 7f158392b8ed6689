//! Seeded simulation of a group of machines over a bad network, in true time.
//!
//! Nodes have clocks of different speed; messages are lost, doubled, delayed and reordered; nodes
//! stop, pause and restart; the group is cut in two. Ownership is recorded in true time as the rest of
//! the system enforces it: from `Acquired` to `Withdraw`, the lease's own end, or the node's death,
//! whichever is first. A paused node goes on owning until the end of its lease, as the kernel lets it.
//!
//! The members may change meanwhile: the registry and the gate are the real ones; what stands for raft
//! is a list of what was committed, which each node hears of when it likes, if at all, and the
//! leader's own knowledge, which is of those that it reaches at that moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::membership::{Adopted, View as MembersView, settled};
use crate::registry::{Command, MemberCommand, Members, NewMember, Registry, Reply};

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
    /// Acceptors vote for nodes of any configuration.
    VoteForOld,
}

/// What is wrong with the world.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) nodes: usize,
    pub(super) witness: Option<usize>,
    pub(super) prefer: Option<usize>,
    pub(super) timing: Timing,
    /// Lost and doubled messages, in 1/1000.
    pub(super) loss: u32,
    pub(super) double: u32,
    /// Longest delay of most messages; one in fifty takes up to twenty times as long.
    pub(super) delay_us: u64,
    /// Clock speeds differ by so many 1/1000 each way.
    pub(super) drift: u32,
    /// Mean time between faults; 0 = none.
    pub(super) fault_us: u64,
    pub(super) length_us: u64,
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
            loss: 0,
            double: 0,
            delay_us: 2_000,
            drift: 0,
            fault_us: 0,
            length_us: 10_000_000,
            changes: None,
            founders: 3,
            on_quorum_loss: QuorumLoss::Release,
        }
    }

    /// A world whose badness is drawn from the seed.
    pub(super) fn bad(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xbad);
        let nodes = rng.random_range(1..=5);
        World {
            nodes,
            witness: (nodes > 2 && rng.random_bool(0.3)).then(|| rng.random_range(0..nodes)),
            prefer: rng.random_bool(0.5).then(|| rng.random_range(0..nodes)),
            timing: Timing::default(),
            loss: [0, 20, 100, 300][rng.random_range(0..4)],
            double: [0, 50, 300][rng.random_range(0..3)],
            delay_us: [500, 5_000, 60_000, 200_000][rng.random_range(0..4)],
            drift: [0, 5, 30][rng.random_range(0..3)],
            fault_us: [200_000, 700_000, 3_000_000][rng.random_range(0..3)],
            length_us: 40_000_000,
            changes: None,
            founders: nodes,
            on_quorum_loss: QuorumLoss::Release,
        }
    }

    /// A bad world whose members change.
    pub(super) fn changing(seed: u64, mutation: Option<Mutation>) -> World {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0xc4a6e);
        let lag_us = [10_000, 400_000, 3_000_000][rng.random_range(0..3)];
        let every_us = [30_000, 700_000][rng.random_range(0..2)];
        World {
            nodes: 7,
            founders: rng.random_range(1..=5),
            witness: rng.random_bool(0.3).then(|| rng.random_range(0..7)),
            loss: [0, 20, 100][rng.random_range(0..3)],
            delay_us: [500, 5_000][rng.random_range(0..2)],
            fault_us: [200_000, 700_000, 3_000_000][rng.random_range(0..3)],
            changes: Some(Changes { every_us, lag_us, mutation }),
            ..World::bad(seed)
        }
    }
}

#[derive(Debug)]
struct Node {
    lease: Lease,
    rate: f64,
    skew_us: i64,
    up: bool,
    paused: bool,
    incarnation: u64,
    /// Withdrawing takes a moment: its end, in true time.
    withdrawn_at: Option<u64>,
    /// How much of what was committed it has heard of and stored.
    heard: usize,
}

/// One tenure, in true time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owned {
    pub(super) node: usize,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) epoch: Epoch,
    /// Since when it is kept without a majority.
    pub(super) kept: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize),
    Deliver { to: usize, from: usize, slot: usize },
    Withdrawn(usize),
    Fault,
    Resume(usize),
    Start(usize),
    Heal,
    Change,
    Hear(usize),
}

pub(super) struct Simulation {
    world: World,
    pub(super) now_us: u64,
    nodes: Vec<Node>,
    side: Vec<bool>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    messages: Vec<Message>,
    sequence: u64,
    rng: SmallRng,
    pub(super) owned: Vec<Owned>,
    open: Vec<Option<usize>>,
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
                Node {
                    lease: machine(&world, registry.members(), i, 1, rng.random(), local(0, rate, skew_us)),
                    rate,
                    skew_us,
                    up: true,
                    paused: false,
                    incarnation: 1,
                    withdrawn_at: None,
                    heard: 0,
                }
            })
            .collect();
        let mut simulation = Simulation {
            side: vec![false; world.nodes],
            open: vec![None; world.nodes],
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
            simulation.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
            simulation.at(0, Event::Tick(node));
        }
        simulation.next_fault();
        simulation.next_change();
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

    pub(super) fn kill(&mut self, node: usize) {
        self.note(node, "killed");
        self.end_ownership(node);
        self.nodes[node].up = false;
    }

    pub(super) fn start(&mut self, node: usize) {
        self.note(node, "started");
        let (now, seed) = (self.local(node), self.rng.random());
        let n = &mut self.nodes[node];
        n.incarnation += 1;
        n.up = true;
        n.paused = false;
        n.withdrawn_at = None;
        if self.world.changes.is_some_and(|c| c.mutation == Some(Mutation::ForgetConfig)) {
            n.heard = 0;
        }
        n.lease = machine(&self.world, &self.committed[n.heard], node, n.incarnation, seed, now);
        self.drive(node, |lease, now| lease.set_fit(Fit::Yes, now));
        self.at(self.now_us, Event::Tick(node));
    }

    pub(super) fn cut_off(&mut self, node: usize) {
        self.side = vec![false; self.nodes.len()];
        self.side[node] = true;
    }

    /// Whether a node runs and reaches a majority of nodes that do.
    pub(super) fn reaches_majority(&self, node: usize) -> bool {
        let well = |at: usize| self.nodes[at].up && !self.nodes[at].paused;
        let reached =
            (0..self.nodes.len()).filter(|&at| well(at) && self.side[at] == self.side[node]).count();
        well(node) && reached > self.nodes.len() / 2
    }

    /// All that own the VIP at this very moment, and whether they keep it without a majority.
    pub(super) fn owners(&self) -> Vec<(usize, bool)> {
        let open = self.open.iter().flatten().map(|&i| self.owned[i]).filter(|o| o.to > self.now_us);
        open.map(|o| (o.node, o.kept.is_some())).collect()
    }

    pub(super) fn heal(&mut self) {
        self.side = vec![false; self.nodes.len()];
    }

    /// Who owns the VIP at this very moment.
    pub(super) fn owner(&self) -> Option<usize> {
        self.open.iter().position(|o| o.is_some_and(|i| self.owned[i].to > self.now_us))
    }

    pub(super) fn view(&self, node: usize) -> View {
        self.nodes[node].lease.view(self.local(node))
    }

    /// How often the members changed.
    pub(super) fn changes(&self) -> usize {
        self.committed.len() - 1
    }

    /// Everything that must hold of the history.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut spans = self.owned.clone();
        spans.sort_by_key(|o| o.from);
        for pair in spans.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            if b.from < a.to && a.node != b.node {
                return Err(format!("two holders: {a:?} and {b:?}"));
            }
            if b.epoch <= a.epoch {
                return Err(format!("the epoch does not rise: {a:?} and {b:?}"));
            }
        }
        match spans.iter().find(|o| Some(o.node) == self.world.witness) {
            Some(o) => Err(format!("a witness holds: {o:?}")),
            None => Ok(()),
        }
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
                    self.at(self.now_us + 20_000, Event::Deliver { to, from, slot });
                } else if n.up {
                    let message = self.delivered(slot);
                    self.drive(to, |lease, now| lease.handle(NodeId(from as u8), message, now));
                }
            }
            Event::Withdrawn(node) => {
                let n = &self.nodes[node];
                if n.paused {
                    self.at(self.now_us + 20_000, Event::Withdrawn(node));
                } else if n.up && n.withdrawn_at == Some(self.now_us) || n.withdrawn_at.is_some() {
                    self.nodes[node].withdrawn_at = None;
                    self.end_ownership(node);
                    self.drive(node, |lease, now| lease.withdrawn(now));
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
            let lag = self.rng.random_range(1_000..changes.lag_us);
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
        if !n.up || n.paused || self.side[node] {
            let later = self.now_us + self.rng.random_range(50_000..500_000);
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

    fn delivered(&self, slot: usize) -> Message {
        let mut message = self.messages[slot];
        if self.world.changes.is_some_and(|c| c.mutation == Some(Mutation::VoteForOld))
            && let Message::Prepare { config, .. } | Message::Propose { config, .. } = &mut message
        {
            *config = u64::MAX;
        }
        message
    }

    fn fault(&mut self) {
        let node = self.rng.random_range(0..self.nodes.len());
        let soon = self.now_us + self.rng.random_range(1_000..2_500_000);
        match self.rng.random_range(0..6) {
            0 if self.nodes[node].up => {
                self.kill(node);
                self.at(soon, Event::Start(node));
            }
            1 if self.nodes[node].up => {
                self.note(node, "paused");
                self.nodes[node].paused = true;
                self.at(soon, Event::Resume(node));
            }
            2 => {
                let sides: Vec<bool> = self.side.iter().map(|_| self.rng.random_bool(0.5)).collect();
                self.side = sides;
                self.at(soon, Event::Heal);
            }
            3 => {
                self.cut_off(node);
                self.at(soon, Event::Heal);
            }
            4 if self.nodes[node].up && !self.nodes[node].paused => {
                let to = self.rng.random_range(0..self.nodes.len()) as u8;
                let _ = self.drive(node, |lease, now| lease.resign(Some(NodeId(to)), now));
            }
            5 if self.nodes[node].up && !self.nodes[node].paused => {
                let fit = if self.rng.random_bool(0.3) { Fit::No(vec!["tried".into()]) } else { Fit::Yes };
                self.drive(node, |lease, now| lease.set_fit(fit, now));
            }
            _ => {}
        }
        self.next_fault();
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
                    assert!(
                        self.nodes[node].withdrawn_at.is_none(),
                        "acquired before the withdrawal was done"
                    );
                    self.note(node, &format!("acquired {ballot:?}"));
                    let to = self.true_time(node, until);
                    // It may be one that it kept.
                    self.end_ownership(node);
                    self.open[node] = Some(self.owned.len());
                    self.owned.push(Owned { node, from: self.now_us, to, epoch: ballot.epoch(), kept: None });
                }
                Output::Renewed { until, .. } => {
                    let to = self.true_time(node, until);
                    let open = self.open[node].expect("only a holder renews");
                    assert!(self.owned[open].to <= to, "a lease never gets shorter");
                    self.owned[open].to = to;
                    if self.nodes[node].lease.keeps() {
                        self.owned[open].kept.get_or_insert(self.now_us);
                    }
                }
                Output::Withdraw { reason, .. } => {
                    self.note(node, &format!("withdraws: {reason:?}"));
                    // Taking the address away takes up to 5 ms; until then, or the lease's end, it owns.
                    let at = self.now_us + self.rng.random_range(0..5_000);
                    self.nodes[node].withdrawn_at = Some(at);
                    self.at(at, Event::Withdrawn(node));
                }
            }
        }
    }

    fn end_ownership(&mut self, node: usize) {
        if let Some(open) = self.open[node].take() {
            self.owned[open].to = self.owned[open].to.min(self.now_us);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.side[from] != self.side[to] || self.rng.random_range(0..1000) < self.world.loss {
            return;
        }
        let copies = if self.rng.random_range(0..1000) < self.world.double { 2 } else { 1 };
        for _ in 0..copies {
            let slow = if self.rng.random_range(0..50) == 0 { 20 } else { 1 };
            let delay = self.rng.random_range(50..=self.world.delay_us * slow);
            let slot = self.messages.len();
            self.messages.push(message);
            self.at(self.now_us + delay, Event::Deliver { to, from, slot });
        }
    }

    fn next_tick(&mut self, node: usize) {
        let deadline = self.nodes[node].lease.deadline(self.local(node));
        // The machine is late by up to 3 ms, and never idle for more than 100.
        let due = self.true_time(node, deadline).clamp(self.now_us + 500, self.now_us + 100_000);
        let late = self.rng.random_range(0..3_000);
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

fn local(now_us: u64, rate: f64, skew_us: i64) -> Now {
    let mono = Duration::from_nanos((now_us as f64 * rate * 1000.0) as u64);
    Now { mono, unix_us: (1_700_000_000_000_000 + now_us).saturating_add_signed(skew_us) }
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

fn machine(world: &World, members: &Members, node: usize, incarnation: u64, seed: u64, now: Now) -> Lease {
    let mut lease = Lease::new(group(world, members, node, incarnation), world.timing, seed, now);
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
        (s.nodes[at].up && s.side[at] == s.side[self.leader]).then_some(at)
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

    fn holds(&self, _: &str) -> bool {
        false
    }

    fn voters(&self) -> Option<std::collections::BTreeSet<String>> {
        None
    }

    fn learners(&self) -> std::collections::BTreeSet<String> {
        std::collections::BTreeSet::new()
    }
}
