//! The nodes of the simulation, the streams between them, and what must be true of all of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::model::{DataType, KeyType};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::super::*;
use crate::stick::{Key, PartKind, Spec};

pub(super) struct Node {
    pub(super) name: String,
    pub(super) tables: Arc<Tables>,
    pub(super) peers: Vec<Option<Peer>>,
    /// Connections that go on, by key.
    pub(super) held: Vec<(u32, crate::stick::Tracked)>,
    /// World time minus its monotonic time, and wall clock skew.
    start: u64,
    skew: i64,
}

pub(super) struct World {
    seed: u64,
    pub(super) rng: SmallRng,
    pub(super) now: u64,
    pub(super) nodes: Vec<Node>,
    /// Streams between `a < b`, by pair.
    up: BTreeSet<(usize, usize)>,
    /// Pairs that cannot connect.
    pub(super) cut: BTreeSet<(usize, usize)>,
    wires: BTreeMap<(usize, usize), VecDeque<(u64, Message)>>,
    specs: BTreeMap<String, Spec>,
    /// True counts by (node, incarnation, key).
    pub(super) truth: BTreeMap<(String, u64, u32), u64>,
    /// Of runs that are over: the least that must have survived, by (node, key).
    least: BTreeMap<(String, u32), u64>,
    delay: u64,
}

pub(super) const KEYS: u32 = 24;
/// Where `http_req_cnt` stands among the values.
const COUNTS: usize = 2;

impl World {
    pub(super) fn new(seed: u64, expire: Option<Duration>) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let store = vec![
            DataType::HttpReqCnt,
            DataType::HttpReqRate(Duration::from_secs(2)),
            DataType::ServerId,
            DataType::ConnCur,
        ];
        let spec = Spec { expire, shared: true, ..Spec::new(KeyType::Integer, 1000, &store) };
        let count = rng.random_range(3..=4);
        let delay = *[0, 1, 5, 40].get(rng.random_range(0..4usize)).unwrap();
        let mut world = World {
            seed,
            rng,
            now: 100_000,
            nodes: Vec::new(),
            up: BTreeSet::new(),
            cut: BTreeSet::new(),
            wires: BTreeMap::new(),
            specs: BTreeMap::from([("t".to_string(), spec)]),
            truth: BTreeMap::new(),
            least: BTreeMap::new(),
            delay,
        };
        for i in 0..count {
            let node = world.node(i, 1, count);
            world.nodes.push(node);
        }
        world
    }

    fn node(&mut self, i: usize, incarnation: u64, count: usize) -> Node {
        let name = format!("n{i}");
        let tables = Tables::new(&name, incarnation, self.rng.random());
        let start = self.now - self.rng.random_range(0..50_000);
        let mut node = Node {
            name,
            tables,
            peers: Vec::new(),
            held: Vec::new(),
            start,
            skew: self.rng.random_range(-3_000..3_000),
        };
        node.tables.apply(&self.specs, node.at(self.now));
        for j in 0..count {
            let peer = (j != i).then(|| Peer::new(node.tables.clone(), &format!("n{j}")).unwrap());
            node.peers.push(peer);
        }
        node
    }

    pub(super) fn table(&self, i: usize) -> Arc<Table> {
        self.nodes[i].tables.get("t").unwrap()
    }

    pub(super) fn drop_stream(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        if self.up.remove(&pair) {
            self.wires.remove(&(a, b));
            self.wires.remove(&(b, a));
            self.nodes[a].peers[b].as_mut().unwrap().disconnected();
            self.nodes[b].peers[a].as_mut().unwrap().disconnected();
        }
    }

    fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if !self.cut.contains(&(a, b)) && self.up.insert((a, b)) {
                    for (x, y) in [(a, b), (b, a)] {
                        let now = self.nodes[x].at(self.now);
                        self.nodes[x].peers[y].as_mut().unwrap().connected(now);
                    }
                }
            }
        }
    }

    /// Lets everything that is due be said and heard.
    fn pump(&mut self) {
        for _ in 0..4 {
            for &(a, b) in &self.up.clone() {
                for (x, y) in [(a, b), (b, a)] {
                    self.talk(x, y);
                }
            }
        }
    }

    fn talk(&mut self, from: usize, to: usize) {
        if !self.up.contains(&(from.min(to), from.max(to))) {
            return;
        }
        let now = self.nodes[from].at(self.now);
        let wire = self.wires.entry((from, to)).or_default();
        let mut due = wire.back().map_or(0, |w| w.0);
        while let Some(message) = self.nodes[from].peers[to].as_mut().unwrap().poll_output(now) {
            // A stream keeps its order, whatever the delay of one message.
            due = due.max(self.now + self.rng.random_range(0..=self.delay));
            wire.push_back((due, message));
        }
        let now = self.nodes[to].at(self.now);
        while wire.front().is_some_and(|w| w.0 <= self.now) {
            let (_, message) = wire.pop_front().unwrap();
            let peer = self.nodes[to].peers[from].as_mut().unwrap();
            if let Err(error) = peer.handle(message, now) {
                panic!("seed {}: n{to} refuses n{from}: {error}", self.seed);
            }
        }
    }

    pub(super) fn run(&mut self, ms: u64, step: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += step;
            self.connect_all();
            for node in &self.nodes {
                node.tables.sweep(node.at(self.now));
            }
            self.pump();
        }
        for i in 0..self.nodes.len() {
            self.table(i).check_invariants();
        }
    }

    pub(super) fn count(&mut self) {
        let i = self.rng.random_range(0..self.nodes.len());
        let key = self.rng.random_range(0..KEYS);
        let now = self.nodes[i].at(self.now);
        let tracked = self.table(i).track(&Key::Int(key), now).unwrap();
        for _ in 0..self.rng.random_range(1..4) {
            tracked.http_req(now);
            let node = &self.nodes[i];
            *self.truth.entry((node.name.clone(), node.tables.incarnation(), key)).or_default() += 1;
        }
        if self.rng.random_bool(0.1) {
            tracked.conn(now);
            self.nodes[i].held.push((key, tracked));
        }
    }

    pub(super) fn restart(&mut self, i: usize) {
        for j in 0..self.nodes.len() {
            if j != i {
                self.drop_stream(i, j);
            }
        }
        let incarnation = self.nodes[i].tables.incarnation() + 1;
        let count = self.nodes.len();
        self.nodes[i] = self.node(i, incarnation, count);
        // Of runs that are over, what the living know must survive; nothing else can.
        let mut least = BTreeMap::new();
        for (k, node) in self.nodes.iter().enumerate() {
            for ((name, incarnation, key), seen) in self.parts(k) {
                let Some(of) = self.nodes.iter().find(|n| n.name == name) else { continue };
                let alive = of.tables.incarnation() == incarnation;
                // What the living have taken over lies in their own slot, beyond what they counted.
                let own = self.truth.get(&(name.clone(), incarnation, key)).copied().unwrap_or(0);
                let past = if !alive {
                    seen
                } else if name == node.name {
                    seen.saturating_sub(own)
                } else {
                    0
                };
                *least.entry((name, key, k)).or_insert(0) += past;
            }
        }
        self.least.clear();
        for ((name, key, _), past) in least {
            let at = self.least.entry((name, key)).or_insert(0);
            *at = past.max(*at);
        }
    }

    /// One random step of trouble.
    pub(super) fn trouble(&mut self, p: f64) {
        let count = self.nodes.len();
        let (a, b) = (self.rng.random_range(0..count), self.rng.random_range(0..count));
        if a != b && self.rng.random_bool(0.04 * p) {
            self.drop_stream(a, b);
        }
        if self.rng.random_bool(0.01 * p) {
            // A partition: one side of the nodes no longer sees the other.
            let side: Vec<bool> = (0..count).map(|_| self.rng.random_bool(0.5)).collect();
            for x in 0..count {
                for y in x + 1..count {
                    if side[x] != side[y] {
                        self.cut.insert((x, y));
                        self.drop_stream(x, y);
                    }
                }
            }
        }
        if self.rng.random_bool(0.02 * p) {
            self.cut.clear();
        }
        if self.rng.random_bool(0.006 * p) {
            self.restart(a);
        }
        if self.rng.random_bool(0.1) {
            self.nodes[a].held.clear();
        }
    }

    /// Heals everything and waits until all nodes hold the same.
    pub(super) fn settle(&mut self) {
        self.cut.clear();
        for node in &mut self.nodes {
            node.held.clear();
        }
        for _ in 0..600 {
            self.run(200, 50);
            let digests: BTreeSet<u64> =
                (0..self.nodes.len()).map(|i| self.table(i).digest(self.nodes[i].at(self.now))).collect();
            if digests.len() == 1 {
                return;
            }
        }
        let differ = self.differences();
        panic!("seed {}: tables never converge: {differ}", self.seed);
    }

    /// The keys that nodes hold differently, with all their slots.
    pub(super) fn differences(&self) -> String {
        let mut differ = String::new();
        for key in 0..KEYS {
            let chains: Vec<_> =
                (0..self.nodes.len()).map(|i| self.table(i).chain_text(&Key::Int(key))).collect();
            if chains.iter().any(|c| *c != chains[0]) {
                differ += &format!("key {key}: {chains:#?}\n");
            }
        }
        differ
    }

    /// Counts by node and key, whatever its run.
    pub(super) fn sums(&self, i: usize) -> BTreeMap<(String, u32), u64> {
        let mut all = BTreeMap::new();
        for ((node, _, key), n) in self.parts(i).into_iter().filter(|(_, n)| *n > 0) {
            *all.entry((node, key)).or_insert(0) += n;
        }
        all
    }

    pub(super) fn parts(&self, i: usize) -> BTreeMap<(String, u64, u32), u64> {
        let mut all = BTreeMap::new();
        for key in 0..KEYS {
            let parts = self.table(i).detail(&Key::Int(key), self.nodes[i].at(self.now));
            for part in parts.into_iter().filter(|part| part.kind != PartKind::Set) {
                all.insert((part.node, part.incarnation, key), part.values[COUNTS]);
            }
        }
        all
    }

    /// Every node holds every count of the living once, and of runs that are over what could survive.
    pub(super) fn check_conserved(&self) {
        let seed = self.seed;
        for i in 0..self.nodes.len() {
            let parts = self.parts(i);
            for node in &self.nodes {
                for key in 0..KEYS {
                    let mine = |of: &BTreeMap<(String, u64, u32), u64>, now: bool| -> u64 {
                        let run = node.tables.incarnation();
                        let counts = of.iter().filter(|(s, _)| s.0 == node.name && s.2 == key);
                        counts.filter(|(s, _)| now == (s.1 == run)).map(|(_, n)| n).sum()
                    };
                    let seen = mine(&parts, true) + mine(&parts, false);
                    let (live, dead) = (mine(&self.truth, true), mine(&self.truth, false));
                    let least = self.least.get(&(node.name.clone(), key)).copied().unwrap_or(0);
                    let (least, most) = (live + least, live + dead);
                    let fits = (least..=most).contains(&seen);
                    assert!(fits, "seed {seed}: {} key {key} on n{i}: {seen} of {least}..={most}", node.name);
                }
            }
            for key in 0..KEYS {
                let sum: u64 = parts.iter().filter(|(s, _)| s.2 == key).map(|(_, n)| n).sum();
                let read = self.table(i).value(&Key::Int(key), "http_req_cnt", self.nodes[i].at(self.now));
                assert_eq!(read.unwrap_or(0), sum, "seed {seed}: key {key} on n{i}");
            }
        }
    }
}

impl Node {
    pub(super) fn at(&self, world: u64) -> Now {
        let unix = 1_700_000_000_000_i64 + world as i64 + self.skew;
        Now { mono: Duration::from_millis(world - self.start), unix_us: unix as u64 * 1000 }
    }
}
