//! Seeded simulation: three to five nodes whose clients take places, over a bad network, with nodes
//! that die, freeze, come back and are cut off, and members that join and leave. Servers with ever new names
//! come and go beside it, and sometimes the server itself. At every step the places in use on all processes
//! that live are counted: they are never more than there are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::testing::seeds;

struct Node {
    machine: Option<Permits>,
    incarnation: u64,
    frozen: bool,
    /// Ends of the requests that are served: in ms.
    served: Vec<u64>,
    waiting: u32,
    /// Its configuration does not have the server at present.
    gone: bool,
    /// The limit in force on the request path.
    places: u32,
    /// Requests that come in 100 ms.
    load: u32,
    died: Option<u64>,
    /// The list of members that it knows: how many changes it has seen.
    version: usize,
}

/// What is left out, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    /// Who leaves is taken out at once.
    RemoveAtOnce,
    /// Who leaves goes on with what it has.
    KeepPlaces,
    /// Who is to join may be the arbiter of the nodes that it knows.
    StandOutside,
}

struct World {
    seed: u64,
    rng: SmallRng,
    ms: u64,
    limit: u32,
    names: Vec<NodeName>,
    nodes: Vec<Node>,
    flying: BinaryHeap<Reverse<(u64, u64)>>,
    messages: BTreeMap<u64, (usize, u64, usize, Message)>,
    count: u64,
    cut: Option<usize>,
    loss: u32,
    delay: u64,
    /// Longest time of a request.
    takes: u64,
    in_use: u64,
    steps: u64,
    /// What was agreed, one list after the other: each member, and whether it leaves.
    agreed: Vec<BTreeMap<usize, bool>>,
    planted: Option<Planted>,
    most: usize,
}

fn key() -> Key {
    Key { backend: "b".into(), server: "s".into() }
}

/// One of the servers that are there for a moment.
fn passing(number: u64) -> Key {
    Key { backend: "b".into(), server: format!("p{number}").into() }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let n = rng.random_range(3..=5);
        let mut world = World {
            seed,
            ms: 0,
            limit: rng.random_range(1..40),
            names: (1..=n).map(|i| format!("n{i}").into()).collect(),
            nodes: Vec::new(),
            flying: BinaryHeap::new(),
            messages: BTreeMap::new(),
            count: 0,
            cut: None,
            loss: [0, 20, 200][rng.random_range(0..3)],
            delay: [1, 10, 100][rng.random_range(0..3)],
            takes: [5, 50, 3000][rng.random_range(0..3)],
            in_use: 0,
            steps: 0,
            agreed: vec![(0..n).map(|i| (i, false)).collect()],
            planted: None,
            most: 0,
            rng,
        };
        for i in 0..n {
            world.nodes.push(Node {
                machine: None,
                incarnation: 0,
                frozen: false,
                served: Vec::new(),
                waiting: 0,
                gone: false,
                places: 0,
                load: world.rng.random_range(0..60),
                died: None,
                version: 0,
            });
            world.start(i);
        }
        world
    }

    fn now(&self) -> Now {
        crate::testing::at(self.ms)
    }

    fn start(&mut self, i: usize) {
        self.kill(i);
        let incarnation = 1000 + self.ms + 1;
        let mut machine = Permits::new(&self.names[i], incarnation, self.now());
        machine.set_peers(self.names.iter().map(|n| &**n));
        machine.set_part(Part::Member);
        let node = &mut self.nodes[i];
        (node.machine, node.incarnation, node.frozen, node.died) = (Some(machine), incarnation, false, None);
        node.places = 0;
        self.follow(i);
    }

    /// The kernel closes its connections.
    fn kill(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        (node.machine, node.waiting, node.frozen) = (None, 0, false);
        node.served.clear();
        node.died = Some(self.ms);
    }

    fn apart(&self, a: usize, b: usize) -> bool {
        self.cut.is_some_and(|cut| a == cut || b == cut)
    }

    fn send(&mut self, from: usize) {
        loop {
            let node = &mut self.nodes[from];
            let Some((to, message)) = node.machine.as_mut().and_then(Permits::poll_output) else { return };
            let incarnation = node.incarnation;
            let to = self.names.iter().position(|n| *n == to).unwrap();
            for _ in 0..if self.rng.random_ratio(self.loss / 2, 1000) { 2 } else { 1 } {
                if self.rng.random_ratio(self.loss, 1000) || self.apart(from, to) {
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

    fn step(&mut self) {
        self.ms += 1;
        let now = self.now();
        while let Some(Reverse((due, number))) = self.flying.peek().copied().filter(|m| m.0.0 <= self.ms) {
            self.flying.pop();
            debug_assert!(due <= self.ms);
            let (from, incarnation, to, message) = self.messages.remove(&number).unwrap();
            if self.apart(from, to) || self.nodes[to].frozen {
                continue;
            }
            if let Some(machine) = &mut self.nodes[to].machine {
                machine.handle(&self.names[from], incarnation, message, now);
            }
        }
        for i in 0..self.nodes.len() {
            self.hear_of_members(i);
            self.serve(i);
            self.look_for_the_dead(i);
            let node = &mut self.nodes[i];
            let Some(machine) = node.machine.as_mut().filter(|_| !node.frozen) else { continue };
            // As the program: a round now and then, sooner when something goes on.
            if self.rng.random_ratio(if machine.is_busy() { 1 } else { 5 }, 5) {
                node.places = machine.places(&key());
                let limit = if node.gone { 0 } else { self.limit };
                machine.observe(&key(), limit, node.served.len() as u32, node.waiting);
                let passing = passing(self.ms / 300);
                let old = |k: &&Key| **k != key() && **k != passing;
                let old: Vec<Key> = machine.mine.keys().filter(old).cloned().collect();
                old.iter().for_each(|key| machine.observe(key, 0, 0, 0));
                machine.observe(&passing, 3, 0, 0);
                machine.tick(now);
            }
            self.send(i);
        }
        let used: usize = self.nodes.iter().map(|n| n.served.len()).sum();
        self.most = self.most.max(used);
        let fine = used <= self.limit as usize || self.planted.is_some();
        assert!(fine, "seed {}: {used} of {} at {}", self.seed, self.limit, self.ms);
        self.in_use += used as u64;
        self.steps += 1;
    }

    /// Tells a node what it knows of the members. One that is not in the list knows the first of them alone.
    fn follow(&mut self, i: usize) {
        let version = self.nodes[i].version;
        let list = &self.agreed[version];
        let ever = self.agreed[..=version].iter().any(|list| list.contains_key(&i));
        let keeps = self.planted == Some(Planted::KeepPlaces);
        let part = match list.get(&i) {
            Some(true) if !keeps => Part::Leaving,
            Some(_) => Part::Member,
            None if ever && !keeps => Part::Gone,
            None if !ever && self.planted == Some(Planted::StandOutside) => Part::Member,
            None => Part::Outside,
        };
        let known = list.keys().take(if ever { usize::MAX } else { 1 });
        let Some(machine) = &mut self.nodes[i].machine else { return };
        machine.set_peers(known.map(|n| &*self.names[*n]));
        machine.set_part(part);
    }

    /// What is agreed comes to each node a little later.
    fn hear_of_members(&mut self, i: usize) {
        let frozen = self.nodes[i].frozen || self.nodes[i].machine.is_none();
        if frozen || self.nodes[i].version + 1 == self.agreed.len() || !self.rng.random_ratio(1, 50) {
            return;
        }
        self.nodes[i].version += 1;
        self.follow(i);
    }

    /// A node starts that knows one of the others, and soon is to join them.
    fn join(&mut self) {
        let i = self.nodes.len();
        self.names.push(format!("n{}", i + 1).into());
        let load = self.rng.random_range(20..100);
        self.nodes.push(Node {
            machine: None,
            incarnation: 0,
            frozen: false,
            served: Vec::new(),
            waiting: 0,
            gone: false,
            places: 0,
            load,
            died: None,
            version: self.agreed.len() - 1,
        });
        self.start(i);
        let ms = self.rng.random_range(0..2000);
        self.run(ms);
        let mut list = self.agreed.last().unwrap().clone();
        list.insert(i, false);
        self.agreed.push(list);
    }

    /// A node is to leave, and is taken out when it says that it has given back its places, or has died.
    fn leave(&mut self) {
        let mut list = self.agreed.last().unwrap().clone();
        if list.len() < 3 {
            return;
        }
        let i = *list.keys().nth(self.rng.random_range(0..list.len())).unwrap();
        list.insert(i, true);
        self.agreed.push(list.clone());
        for round in 0.. {
            assert!(round < 1000, "seed {}: {} keeps its places", self.seed, self.names[i]);
            self.run(10);
            let given = self.nodes[i].machine.as_ref().is_none_or(Permits::has_given_back);
            if given || matches!(self.planted, Some(Planted::RemoveAtOnce | Planted::KeepPlaces)) {
                break;
            }
        }
        // The leader hears of it by its next question.
        let ms = self.rng.random_range(0..300);
        self.run(ms);
        list.remove(&i);
        self.agreed.push(list);
    }

    /// Requests end and come; they take what places there are.
    fn serve(&mut self, i: usize) {
        let (ms, node) = (self.ms, &mut self.nodes[i]);
        if node.frozen || node.machine.is_none() {
            return;
        }
        node.served.retain(|end| *end > ms);
        if self.rng.random_ratio(node.load.min(100), 100) {
            node.waiting = (node.waiting + 1).min(100);
        }
        while node.waiting > 0 && !node.gone && (node.served.len() as u32) < node.places {
            node.waiting -= 1;
            node.served.push(ms + 1 + self.rng.random_range(0..self.takes));
        }
    }

    /// A refused connection tells the others that a process is dead; not while they cannot reach it.
    fn look_for_the_dead(&mut self, i: usize) {
        let now = self.now();
        for j in 0..self.nodes.len() {
            let dead = self.nodes[j].died.is_some_and(|at| self.ms > at + 20);
            if dead && !self.apart(i, j) {
                let name = self.names[j].clone();
                if let Some(machine) = &mut self.nodes[i].machine {
                    machine.set_gone(&name, now);
                }
            }
        }
    }

    fn fault(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        match self.rng.random_range(0..11) {
            0 | 1 => self.kill(i),
            2 | 3 => self.start(i),
            4 => self.cut = Some(i),
            5 => self.cut = None,
            6 => self.nodes[i].frozen = self.nodes[i].machine.is_some() && !self.nodes[i].frozen,
            // All or one of them, as a configuration or command comes to them.
            7 => self.nodes[i].gone = !self.nodes[i].gone,
            8 => {
                let gone = self.rng.random();
                self.nodes.iter_mut().for_each(|n| n.gone = gone);
            }
            9 => self.nodes[i].load = [0, 5, 100][self.rng.random_range(0..3)],
            _ => self.delay = [1, 10, 100][self.rng.random_range(0..3)],
        }
    }

    fn run(&mut self, ms: u64) {
        (self.in_use, self.steps) = (0, 0);
        (0..ms).for_each(|_| self.step());
    }

    fn picture(&self) -> String {
        let node = |n: &Node| format!("{} waiting, {} served, {:#?}\n", n.waiting, n.served.len(), n.machine);
        self.nodes.iter().map(node).collect()
    }

    fn utilisation(&self) -> f64 {
        self.in_use as f64 / (self.steps as f64 * f64::from(self.limit))
    }
}

#[test]
fn never_more_than_there_are_and_after_any_trouble_all_of_them() {
    for seed in seeds(30) {
        let mut world = World::new(seed);
        for _ in 0..world.rng.random_range(2..15) {
            world.fault();
            let ms = world.rng.random_range(20..2000);
            world.run(ms);
        }
        // Quiet: whoever is dead is known to be.
        (world.loss, world.delay, world.cut) = (0, 2, None);
        world.nodes.iter_mut().for_each(|n| (n.frozen, n.gone) = (false, false));
        if world.nodes.iter().all(|n| n.machine.is_none()) {
            world.start(0);
        }
        world.takes = 150;
        for node in &mut world.nodes {
            node.load = 100;
        }
        world.run(9000);
        world.run(1000);
        assert!(world.utilisation() > 0.95, "seed {seed}: {}\n{}", world.utilisation(), world.picture());
        for machine in world.nodes.iter().filter_map(|n| n.machine.as_ref()) {
            let servers = (machine.mine.len(), machine.book.as_ref().map_or(0, Book::servers));
            assert!(servers.0 <= 4 && servers.1 <= 4, "seed {seed}: {servers:?} are remembered");
        }
    }
}

/// Members come and go under load, with faults if there are to be some; says how many places were in use
/// at the most, of how many.
fn change_members(seed: u64, planted: Option<Planted>) -> (usize, usize) {
    let mut world = World::new(seed);
    (world.planted, world.takes) = (planted, world.takes.min(300));
    world.nodes.iter_mut().for_each(|n| n.load = 60);
    world.run(2500);
    for _ in 0..world.rng.random_range(2..6) {
        match world.rng.random_range(0..3) {
            0 => world.join(),
            1 => world.leave(),
            _ => world.fault(),
        }
        // Who left the cluster while nobody could ask it is another story.
        world.nodes.iter_mut().for_each(|n| (n.frozen, n.gone) = (false, false));
        world.cut = None;
        let ms = world.rng.random_range(20..1500);
        world.run(ms);
    }
    (world.loss, world.delay, world.takes) = (0, 2, 150);
    let members = world.agreed.last().unwrap().clone();
    for i in 0..world.nodes.len() {
        match members.contains_key(&i) {
            true if world.nodes[i].machine.is_none() => world.start(i),
            _ => {}
        }
        world.nodes[i].load = 100;
    }
    world.run(8000);
    let seen = world.most;
    if planted.is_none() {
        world.run(1000);
        assert!(world.utilisation() > 0.95, "seed {seed}: {}\n{}", world.utilisation(), world.picture());
        let strangers = (0..world.nodes.len()).filter(|i| !members.contains_key(i));
        for i in strangers {
            assert_eq!(world.nodes[i].served.len(), 0, "seed {seed}: {} left", world.names[i]);
        }
    }
    (seen, world.limit as usize)
}

#[test]
fn members_that_come_and_go_take_no_place_twice() {
    for seed in seeds(60) {
        let (most, limit) = change_members(seed, None);
        assert!(most <= limit, "seed {seed}");
    }
}

#[test]
fn what_is_given_back_stays_given_back() {
    for seed in seeds(30) {
        let mut world = World::new(seed);
        world.takes = world.takes.min(300);
        world.nodes.iter_mut().for_each(|n| n.load = 60);
        world.run(2500);
        // Any of them, also the arbiter.
        let i = seed as usize % world.nodes.len();
        let mut list = world.agreed.last().unwrap().clone();
        list.insert(i, true);
        world.agreed.push(list);
        let given = |world: &World| world.nodes[i].machine.as_ref().unwrap().has_given_back();
        let mut ms = 0;
        while !given(&world) {
            ms += 10;
            assert!(ms < 3000, "seed {seed}: it keeps them\n{}", world.picture());
            world.run(10);
        }
        // Orders that were on their way; late reports of it let the arbiter send some more.
        world.run(u64::from(60 * world.delay as u32));
        for _ in 0..1000 {
            world.run(1);
            assert!(given(&world), "seed {seed}: it got places again at {}", world.ms);
        }
        (world.loss, world.delay, world.takes) = (0, 2, 150);
        world.nodes.iter_mut().for_each(|n| n.load = 100);
        world.run(4000);
        world.run(1000);
        assert!(world.utilisation() > 0.95, "seed {seed}: the others use all: {}", world.utilisation());
        assert!(given(&world), "seed {seed}: it got places again");
    }
}

#[test]
fn what_is_left_out_of_joining_and_leaving_is_found() {
    for planted in [Planted::RemoveAtOnce, Planted::KeepPlaces, Planted::StandOutside] {
        let found = (0..60).find(|seed| {
            let (most, limit) = change_members(*seed, Some(planted));
            most > limit
        });
        println!("{planted:?}: seed {found:?}");
        assert!(found.is_some(), "{planted:?} is not found");
    }
}

#[test]
fn places_go_where_requests_wait() {
    for seed in seeds(8) {
        let mut world = World::new(seed);
        (world.loss, world.delay, world.takes) = (0, 1, 40);
        world.nodes.iter_mut().for_each(|n| n.load = 0);
        world.run(3000);
        assert_eq!(world.nodes.iter().map(|n| n.places).sum::<u32>(), world.limit, "seed {seed}: spread");
        for i in [0, 2, 1] {
            world.nodes.iter_mut().for_each(|n| n.load = 0);
            // Enough to keep all places in use.
            world.nodes[i].load = 100;
            world.takes = 2 * u64::from(world.limit) + 20;
            world.run(300);
            world.run(2000);
            let got = world.utilisation();
            assert!(got > 0.95, "seed {seed}: node {i} alone: {got}");
        }
    }
}

#[test]
fn places_of_the_dead_are_used_again_and_those_of_the_lost_are_not() {
    for seed in seeds(8) {
        let mut world = World::new(seed);
        (world.loss, world.delay, world.takes, world.limit) = (0, 1, 50, 30);
        world.nodes.iter_mut().for_each(|n| n.load = 100);
        world.run(3000);
        let victim = world.rng.random_range(0..world.nodes.len());
        let held = world.nodes[victim].places;
        assert!(held > 0, "seed {seed}");
        world.cut = Some(victim);
        world.run(8000);
        let others: u32 = world.nodes.iter().map(|n| n.places).sum::<u32>() - world.nodes[victim].places;
        assert_eq!(others, 30 - held, "seed {seed}: cut off, it keeps its own");
        assert_eq!(world.nodes[victim].places, held, "seed {seed}: and goes on with them");
        world.cut = None;
        world.run(2000);
        world.kill(victim);
        world.run(DEAD.as_millis() as u64 + GRACE.as_millis() as u64 + 2000);
        world.run(1000);
        assert!(world.utilisation() > 0.95, "seed {seed}: {}", world.utilisation());
    }
}

#[test]
fn a_lower_limit_is_kept_at_once_by_new_requests() {
    let mut world = World::new(3);
    (world.loss, world.delay, world.takes, world.limit) = (0, 1, 20, 30);
    world.nodes.iter_mut().for_each(|n| n.load = 100);
    world.run(3000);
    let machine = |w: &World| w.nodes.iter().map(|n| n.places).sum::<u32>();
    assert_eq!(machine(&world), 30);
    world.limit = 12;
    // Not asserted meanwhile: what runs, runs on.
    for _ in 0..300 {
        let now = world.now().after(Duration::from_millis(1));
        world.ms += 1;
        for i in 0..world.nodes.len() {
            let node = &mut world.nodes[i];
            let machine = node.machine.as_mut().unwrap();
            node.served.retain(|end| *end > world.ms);
            node.places = machine.places(&key());
            machine.observe(&key(), world.limit, node.served.len() as u32, node.waiting);
            machine.tick(now);
            while let Some((to, message)) = world.nodes[i].machine.as_mut().unwrap().poll_output() {
                let (from, incarnation) = (world.names[i].clone(), world.nodes[i].incarnation);
                let to = world.names.iter().position(|n| *n == to).unwrap();
                world.nodes[to].machine.as_mut().unwrap().handle(&from, incarnation, message, now);
            }
        }
    }
    assert_eq!(machine(&world), 12);
    world.run(500);
}
