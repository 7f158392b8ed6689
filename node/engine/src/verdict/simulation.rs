//! Seeded simulation: nodes that probe, crash, restart and are cut off from each other, over a network
//! that loses, doubles, delays and reorders.

use std::collections::BinaryHeap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::server::OpState;
use crate::testing::seeds;

const STEP: u64 = 25;

struct Node {
    machine: Option<Verdicts>,
    /// What it believes of each server: the state of its balancing.
    belief: BTreeMap<Subject, u32>,
}

struct World {
    seed: u64,
    rng: SmallRng,
    ms: u64,
    names: Vec<NodeName>,
    nodes: Vec<Node>,
    subjects: Vec<Subject>,
    /// In flight: due, number, from, incarnation, to, message.
    flying: BinaryHeap<Reverse<(u64, u64)>>,
    messages: BTreeMap<u64, (usize, u64, usize, Message)>,
    count: u64,
    cut: Option<usize>,
    loss: u32,
    delay: u64,
    trace: Vec<u64>,
}

fn at(ms: u64) -> Now {
    crate::testing::at(ms)
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let n = rng.random_range(1..=5);
        let names: Vec<NodeName> = (1..=n).map(|i| format!("n{i}").into()).collect();
        let subjects = (0..rng.random_range(1..12)).map(|i| Subject {
            backend: "b".into(),
            server: format!("s{i}").into(),
            kind: Kind::Health,
            how: 7,
        });
        let mut world = World {
            seed,
            ms: 0,
            subjects: subjects.collect(),
            nodes: names.iter().map(|_| Node { machine: None, belief: BTreeMap::new() }).collect(),
            names,
            flying: BinaryHeap::new(),
            messages: BTreeMap::new(),
            count: 0,
            cut: None,
            loss: [0, 20, 200][rng.random_range(0..3)],
            delay: [1, 40, 250][rng.random_range(0..3)],
            trace: Vec::new(),
            rng,
        };
        (0..world.nodes.len()).for_each(|i| world.start(i));
        world
    }

    fn start(&mut self, i: usize) {
        let mut machine = Verdicts::new(&self.names[i], 1000 + self.ms, at(self.ms));
        machine.set_peers(self.names.iter().map(|n| &**n), at(self.ms));
        machine.set_subjects(self.subjects.iter().cloned(), at(self.ms));
        self.nodes[i].machine = Some(machine);
        self.nodes[i].belief.clear();
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        self.cut.is_none_or(|cut| a != cut && b != cut)
    }

    fn send(&mut self, from: usize) {
        loop {
            let Some(machine) = &mut self.nodes[from].machine else { return };
            let Some((to, message)) = machine.poll_output() else { return };
            let incarnation = machine.incarnation;
            let to = self.names.iter().position(|n| *n == to).unwrap();
            let copies = if self.rng.random_ratio(self.loss / 2, 1000) { 2 } else { 1 };
            for _ in 0..copies {
                if self.rng.random_ratio(self.loss, 1000) || !self.connected(from, to) {
                    continue;
                }
                self.count += 1;
                let late = if self.rng.random_ratio(1, 50) { 20 } else { 1 };
                let due = self.ms + self.rng.random_range(0..=self.delay * late);
                self.flying.push(Reverse((due, self.count)));
                self.messages.insert(self.count, (from, incarnation, to, message.clone()));
            }
        }
    }

    /// One step; `probes` of the true state `truth` are made by whoever has the duty.
    fn step(&mut self, truth: u32) {
        self.ms += STEP;
        while let Some(Reverse((due, number))) = self.flying.peek().copied() {
            if due > self.ms {
                break;
            }
            self.flying.pop();
            let (from, incarnation, to, message) = self.messages.remove(&number).unwrap();
            if let Some(machine) = &mut self.nodes[to].machine
                && self.cut.is_none_or(|cut| from != cut && to != cut)
            {
                machine.handle(&self.names[from], incarnation, message, at(self.ms));
            }
        }
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            let Some(machine) = &mut node.machine else { continue };
            machine.tick(at(self.ms));
            for subject in &self.subjects {
                if machine.duty(subject) == Duty::Probe {
                    let verdict = Verdict { health: truth, op: OpState::Running, ..Verdict::default() };
                    machine.observe(subject, verdict);
                    node.belief.insert(subject.clone(), truth);
                } else if let Some((_, claim)) = machine.claim(subject, at(self.ms)) {
                    node.belief.insert(subject.clone(), claim.verdict.health);
                }
                self.trace.push(u64::from(machine.duty(subject) == Duty::Probe));
            }
            self.send(i);
        }
    }

    fn probers(&self, subject: &Subject) -> Vec<&NodeName> {
        let probes = |n: &&Node| n.machine.as_ref().is_some_and(|m| m.duty(subject) == Duty::Probe);
        self.nodes.iter().filter(probes).map(|n| &n.machine.as_ref().unwrap().me).collect()
    }

    fn run(&mut self, ms: u64, truth: u32) {
        let end = self.ms + ms;
        while self.ms < end {
            self.step(truth);
        }
    }

    /// After quiet, one node probes each server and all believe what it found.
    fn settled(&mut self, truth: u32) {
        (self.loss, self.delay, self.cut) = (0, 1, None);
        self.run(8000, truth);
        for subject in &self.subjects {
            let probers = self.probers(subject);
            assert_eq!(probers.len(), 1, "seed {}: {subject:?}: {probers:?}", self.seed);
            for node in self.nodes.iter().filter(|n| n.machine.is_some()) {
                assert_eq!(node.belief.get(subject), Some(&truth), "seed {}: {subject:?}", self.seed);
            }
        }
    }

    fn fault(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..6) {
            0 | 1 if self.nodes[i].machine.is_some() => self.nodes[i].machine = None,
            0..=2 => self.start(i),
            3 => self.cut = Some(i),
            4 => {
                let subject = &self.subjects[self.rng.random_range(0..self.subjects.len())];
                let apart = self.rng.random_bool(0.3);
                if let Some(machine) = &mut self.nodes[i].machine {
                    machine.set_apart(subject, apart, at(self.ms));
                }
            }
            _ => self.cut = None,
        }
    }
}

#[test]
fn after_any_trouble_one_node_probes_and_all_believe_it() {
    for seed in seeds(60) {
        let mut world = World::new(seed);
        for round in 0..world.rng.random_range(2..20) {
            world.fault();
            let ms = world.rng.random_range(20..4000);
            world.run(ms, round);
        }
        for i in 0..world.nodes.len() {
            if world.nodes[i].machine.is_none() {
                world.start(i);
            }
            for subject in world.subjects.clone() {
                world.nodes[i].machine.as_mut().unwrap().set_apart(&subject, false, at(world.ms));
            }
        }
        world.settled(99);
    }
}

#[test]
fn a_dead_prober_is_replaced_in_time_by_one_that_knows_its_last_state() {
    for seed in seeds(20) {
        let mut world = World::new(seed);
        if world.nodes.len() < 2 {
            continue;
        }
        world.settled(5);
        let subject = world.subjects[0].clone();
        let prober = world.probers(&subject)[0].clone();
        let i = world.names.iter().position(|n| *n == prober).unwrap();
        world.nodes[i].machine = None;
        let died = world.ms;
        while world.probers(&subject).is_empty() {
            world.step(5);
            assert!(world.ms <= died + DEAD.as_millis() as u64 + 2 * STEP, "seed {seed}: nobody probes");
        }
        for node in world.nodes.iter().filter(|n| n.machine.is_some()) {
            assert_eq!(node.belief.get(&subject), Some(&5), "seed {seed}");
        }
        // It comes back: taught before it probes, and never a moment without a prober.
        world.run(3000, 5);
        world.start(i);
        let came = world.ms;
        while world.ms < came + 5000 {
            world.step(6);
            assert!(!world.probers(&subject).is_empty(), "seed {seed}: nobody probes");
            let me = &world.nodes[i];
            let probes = me.machine.as_ref().unwrap().duty(&subject) == Duty::Probe;
            assert!(!probes || world.ms > came + STEP, "seed {seed}: probes before it is taught");
        }
        world.settled(6);
        assert_eq!(world.probers(&subject), [&prober], "seed {seed}: the order does not depend on history");
    }
}

#[test]
fn who_cannot_reach_a_server_leaves_it_to_the_next_unless_nobody_can() {
    for seed in seeds(20) {
        let mut world = World::new(seed);
        if world.nodes.len() < 3 {
            continue;
        }
        world.settled(1);
        let subject = world.subjects[0].clone();
        let mut seen: Vec<NodeName> = Vec::new();
        for _ in 0..world.nodes.len() {
            let prober = world.probers(&subject)[0].clone();
            assert!(!seen.contains(&prober), "seed {seed}: {seen:?} {prober}");
            let i = world.names.iter().position(|n| *n == prober).unwrap();
            world.nodes[i].machine.as_mut().unwrap().set_apart(&subject, true, at(world.ms));
            seen.push(prober);
            world.settled(1);
        }
        // All were apart once: whoever was the last to be is the first to probe again, or the order.
        assert_eq!(world.probers(&subject).len(), 1);
    }
}

#[test]
fn a_node_alone_probes_everything() {
    let mut world = World::new(7);
    while world.nodes.len() < 3 {
        world = World::new(world.seed + 1);
    }
    world.settled(1);
    world.cut = Some(0);
    world.run(DEAD.as_millis() as u64 + 100, 1);
    let machine = world.nodes[0].machine.as_ref().unwrap();
    assert!(world.subjects.iter().all(|s| machine.duty(s) == Duty::Probe));
}

#[test]
fn many_subjects_come_in_several_messages_and_go_again() {
    let subject = |i: usize| Subject {
        backend: "b".into(),
        server: format!("s{i}").into(),
        kind: Kind::Health,
        how: 0,
    };
    let mut world = World::new(1);
    world.subjects = (0..3 * CHUNK + 7).map(subject).collect();
    world.names = vec!["n1".into(), "n2".into()];
    world.nodes = (0..2).map(|_| Node { machine: None, belief: BTreeMap::new() }).collect();
    (0..2).for_each(|i| world.start(i));
    world.settled(3);
    let shares: Vec<usize> = (0..2)
        .map(|i| {
            let machine = world.nodes[i].machine.as_ref().unwrap();
            world.subjects.iter().filter(|s| machine.duty(s) == Duty::Probe).count()
        })
        .collect();
    assert!(shares.iter().all(|n| *n > CHUNK), "shared out about evenly: {shares:?}");
    for i in 0..2 {
        world.nodes[i].machine.as_mut().unwrap().set_subjects((0..5).map(subject), at(world.ms));
    }
    world.subjects.truncate(5);
    world.settled(4);
    for i in 0..2 {
        let machine = world.nodes[i].machine.as_mut().unwrap();
        machine.set_subjects((0..5).map(subject), at(world.ms));
        assert!(machine.mine.len() <= 5 && machine.peers.values().all(|p| p.claims.len() <= 5));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut world = World::new(seed);
        for _ in 0..6 {
            world.fault();
            world.run(700, 1);
        }
        world.trace
    };
    assert_eq!(trace(11), trace(11));
}
