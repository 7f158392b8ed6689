//! Seeded simulation of changes of members: the real registry and the real steps, over a small raft.
//!
//! The raft is a model of what openraft promises (terms, votes and log on the disk; the last
//! configuration in the log counts; two sets of voters in between), short enough to be read as a whole.
//! Messages are lost, doubled, delayed and reordered; nodes restart; the group is cut in two; clients
//! send commands, operators let nodes join and leave. What was acknowledged is kept on the side.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::registry::{Command, NewMember, Registry, Reply};

/// Nodes that there are; three of them found the cluster.
const NODES: usize = 6;
const FOUNDERS: usize = 3;
const HEARTBEAT: u64 = 50;
const WAIT: u64 = 120;
/// Milliseconds of faults, and in all.
const ROUGH: u64 = 4_000;
const LENGTH: u64 = 9_000;

/// Faults that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// A command is answered when it stands in the leader's log.
    AnswerBeforeCommit,
    /// What one node has stored counts as committed by the majority.
    CommitAlone,
    /// A node votes for whoever asks, whatever is missing in its log.
    VoteForAnyLog,
    /// A node that restarts has lost the end of its log.
    LoseTail,
    /// The next change of voters does not wait for the one before to settle.
    SkipSettled,
    /// Half of the voters count as a majority.
    HalfIsEnough,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Blank,
    Client(u64),
    Member(MemberCommand),
    /// Voters, one set or two, and those without a vote.
    Voters(Vec<BTreeSet<usize>>, BTreeSet<usize>),
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    term: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Message {
    Ask { term: u64, last: (u64, usize) },
    Vote { term: u64, granted: bool },
    Append { term: u64, prev: (u64, usize), entries: Vec<Entry>, commit: usize },
    Ack { term: u64, matched: Option<usize>, floor: Adopted },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Follower,
    Candidate,
    Leader,
}

#[derive(Debug)]
struct Node {
    up: bool,
    // On the disk.
    log: Vec<Entry>,
    term: u64,
    voted: Option<usize>,
    floor: u64,
    // Forgotten by a restart.
    role: Role,
    commit: usize,
    applied: usize,
    registry: Registry,
    floor_since: u64,
    /// When it left each configuration behind, for the checker.
    left: BTreeMap<u64, u64>,
    heard: u64,
    patience: u64,
    votes: BTreeSet<usize>,
    matched: BTreeMap<usize, usize>,
    seen: BTreeMap<usize, (u64, Adopted)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize),
    Deliver { to: usize, from: usize, slot: usize },
    Fault,
    Start(usize),
    Heal,
    Client,
    Operator,
}

pub(super) struct Simulation {
    mutation: Option<Mutation>,
    now: u64,
    nodes: Vec<Node>,
    side: [bool; NODES],
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    messages: Vec<Message>,
    sequence: u64,
    rng: SmallRng,
    loss: u32,
    next_command: u64,
    acknowledged: BTreeSet<u64>,
    leaders: BTreeMap<u64, usize>,
    /// What was committed, by index.
    history: Vec<Entry>,
    /// The voters of each configuration that was committed.
    configs: BTreeMap<u64, BTreeSet<usize>>,
    /// Steps of leaders: a copy of one may come late.
    late: Vec<MemberCommand>,
    wrong: Option<String>,
    pub(super) changes: usize,
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("names are n0, n1, …")
}

fn new_member(node: usize) -> NewMember {
    NewMember { name: name(node), addr: format!("h{node}:1"), witness: false }
}

fn majority(set: &BTreeSet<usize>, has: impl Fn(usize) -> bool) -> bool {
    2 * set.iter().filter(|n| has(**n)).count() > set.len()
}

impl Node {
    fn last(&self) -> (u64, usize) {
        (self.log.last().map_or(0, |e| e.term), self.log.len())
    }

    /// The last configuration in the log, and where it stands.
    fn voters(&self) -> (usize, Vec<BTreeSet<usize>>, BTreeSet<usize>) {
        let found = self.log.iter().enumerate().rev().find_map(|(i, e)| match &e.kind {
            Kind::Voters(voters, learners) => Some((i + 1, voters.clone(), learners.clone())),
            _ => None,
        });
        found.unwrap_or_default()
    }

    fn adopted(&self, now: u64) -> Adopted {
        Adopted { config: self.floor, age: Duration::from_millis(now - self.floor_since) }
    }
}

impl Simulation {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>) -> Simulation {
        let mut rng = SmallRng::seed_from_u64(seed);
        let founders: BTreeSet<usize> = (0..FOUNDERS).collect();
        let found = MemberCommand::Found { id: 1, nodes: founders.iter().map(|n| new_member(*n)).collect() };
        let first = vec![
            Entry { term: 0, kind: Kind::Voters(vec![founders.clone()], BTreeSet::new()) },
            Entry { term: 0, kind: Kind::Member(found) },
        ];
        let node = |i: usize, rng: &mut SmallRng| Node {
            up: true,
            log: if i < FOUNDERS { first.clone() } else { Vec::new() },
            term: 0,
            voted: None,
            floor: 0,
            role: Role::Follower,
            commit: 0,
            applied: 0,
            registry: Registry::new(),
            floor_since: 0,
            left: BTreeMap::new(),
            heard: 0,
            patience: rng.random_range(150..300),
            votes: BTreeSet::new(),
            matched: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        let nodes = (0..NODES).map(|i| node(i, &mut rng)).collect();
        let loss = [0, 20, 100][rng.random_range(0..3)];
        let mut simulation = Simulation {
            mutation,
            now: 0,
            nodes,
            side: [false; NODES],
            queue: BinaryHeap::new(),
            messages: Vec::new(),
            sequence: 0,
            rng,
            loss,
            next_command: 1,
            acknowledged: BTreeSet::new(),
            leaders: BTreeMap::new(),
            history: first,
            configs: BTreeMap::from([(1, founders)]),
            late: Vec::new(),
            wrong: None,
            changes: 0,
        };
        (0..NODES).for_each(|i| simulation.at(1 + i as u64, Event::Tick(i)));
        for event in [Event::Fault, Event::Client, Event::Operator] {
            simulation.at(400, event);
        }
        simulation
    }

    /// Runs to the end, or to the first thing that is wrong.
    ///
    /// # Errors
    /// What was wrong.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut look = LENGTH;
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > look {
                // A late message can cost a leader at any moment: it need not be this one.
                let end = self.check_end();
                if end.is_ok() || at > LENGTH + 4_000 {
                    return end;
                }
                look += 100;
            }
            self.now = at;
            self.step(event);
            if let Some(wrong) = self.wrong.take() {
                return Err(format!("at {at} ms: {wrong}"));
            }
        }
        Err("there is nothing left to do".to_owned())
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick(i) => {
                if self.nodes[i].up {
                    self.tick(i);
                }
                let pause = self.rng.random_range(20..30);
                self.at(self.now + pause, Event::Tick(i));
            }
            Event::Deliver { to, from, slot } => {
                if self.nodes[to].up && self.side[to] == self.side[from] {
                    let message = self.messages[slot].clone();
                    self.handle(to, from, message);
                }
            }
            Event::Fault => self.fault(),
            Event::Start(i) => self.start(i),
            Event::Heal => self.side = [false; NODES],
            Event::Client => {
                let i = self.rng.random_range(0..NODES);
                if self.nodes[i].up && self.nodes[i].role == Role::Leader {
                    let id = self.next_command;
                    self.next_command += 1;
                    self.append(i, Kind::Client(id));
                    if self.mutation == Some(Mutation::AnswerBeforeCommit) {
                        self.acknowledged.insert(id);
                    }
                }
                self.at(self.now + 15, Event::Client);
            }
            Event::Operator => self.operator(),
        }
    }

    fn fault(&mut self) {
        if self.now > ROUGH {
            self.side = [false; NODES];
            self.loss = 0;
            return;
        }
        let i = self.rng.random_range(0..NODES);
        let soon = self.now + self.rng.random_range(20..900);
        match self.rng.random_range(0..4) {
            0 | 1 if self.nodes[i].up => {
                self.nodes[i].up = false;
                self.at(soon, Event::Start(i));
            }
            2 => {
                self.side = std::array::from_fn(|_| self.rng.random_bool(0.4));
                self.at(soon, Event::Heal);
            }
            3 => {
                self.side = [false; NODES];
                self.side[i] = true;
                self.at(soon, Event::Heal);
            }
            _ => {}
        }
        let next = self.now + self.rng.random_range(50..600);
        self.at(next, Event::Fault);
    }

    fn start(&mut self, i: usize) {
        let (now, lose) = (self.now, self.mutation == Some(Mutation::LoseTail));
        let node = &mut self.nodes[i];
        node.up = true;
        if lose {
            node.log.truncate(node.log.len().saturating_sub(3));
        }
        (node.role, node.commit, node.applied) = (Role::Follower, 0, 0);
        node.registry = Registry::new();
        (node.heard, node.floor_since) = (now, now);
        node.seen.clear();
    }

    /// Somebody asks a leader to take a node in, or to let one go.
    fn operator(&mut self) {
        let leader = self.rng.random_range(0..NODES);
        let node = self.rng.random_range(0..NODES);
        if self.now < ROUGH && self.nodes[leader].up && self.nodes[leader].role == Role::Leader {
            let members = self.nodes[leader].registry.members();
            let stays = members.iter().filter(|(_, m)| m.stage == Stage::Voter).count();
            let command = match members.get(&name(node)) {
                None => {
                    let replaces = members.voters().map(|(n, _)| n.to_owned()).next();
                    let replaces = replaces.filter(|_| self.rng.random_bool(0.2));
                    Some(MemberCommand::Join { node: new_member(node), replaces })
                }
                Some(_) if stays > 2 => Some(MemberCommand::Leave { name: name(node) }),
                Some(_) => None,
            };
            if let Some(command) = command {
                self.append(leader, Kind::Member(command));
            }
            // A late copy of what some leader decided, about a node of which it could be said again.
            let members = self.nodes[leader].registry.members();
            let stage = |name: &String| members.get(name).map(|m| m.stage);
            let fits = |c: &&MemberCommand| match c {
                MemberCommand::Promote { name, .. } => stage(name) == Some(Stage::Joining),
                MemberCommand::Remove { name, .. } => stage(name) == Some(Stage::Leaving),
                _ => false,
            };
            if let Some(copy) = self.late.iter().find(fits).cloned() {
                self.append(leader, Kind::Member(copy));
            }
        }
        let next = self.now + self.rng.random_range(30..300);
        self.at(next, Event::Operator);
    }

    fn tick(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.role == Role::Leader {
            self.lead(i);
            self.replicate(i);
            return;
        }
        let (_, voters, _) = node.voters();
        let votes = voters.iter().any(|set| set.contains(&i));
        if votes && self.now >= node.heard + node.patience {
            self.elect(i);
        }
    }

    fn elect(&mut self, i: usize) {
        let patience = self.rng.random_range(150..300);
        let node = &mut self.nodes[i];
        node.role = Role::Candidate;
        node.term += 1;
        node.voted = Some(i);
        node.votes = BTreeSet::from([i]);
        (node.heard, node.patience) = (self.now, patience);
        let (term, last) = (node.term, node.last());
        let (_, voters, _) = node.voters();
        for to in voters.into_iter().flatten().filter(|to| *to != i).collect::<BTreeSet<_>>() {
            self.send(i, to, Message::Ask { term, last });
        }
        self.count_votes(i);
    }

    fn elected(&self, voters: &[BTreeSet<usize>], has: impl Fn(usize) -> bool) -> bool {
        let half = |set: &BTreeSet<usize>| 2 * set.iter().filter(|n| has(**n)).count() >= set.len();
        let lax = self.mutation == Some(Mutation::HalfIsEnough);
        !voters.is_empty() && voters.iter().all(|set| majority(set, &has) || (lax && half(set)))
    }

    fn count_votes(&mut self, i: usize) {
        let node = &self.nodes[i];
        let (_, voters, _) = node.voters();
        if node.role != Role::Candidate || !self.elected(&voters, |n| node.votes.contains(&n)) {
            return;
        }
        let term = node.term;
        if let Some(other) = self.leaders.insert(term, i).filter(|other| *other != i) {
            self.wrong = Some(format!("n{other} and n{i} lead in term {term}"));
        }
        let ids: BTreeSet<u64> = node
            .log
            .iter()
            .filter_map(|e| if let Kind::Client(id) = e.kind { Some(id) } else { None })
            .collect();
        if let Some(lost) = self.acknowledged.difference(&ids).next() {
            self.wrong = Some(format!("n{i} leads in term {term} without the acknowledged command {lost}"));
        }
        let node = &mut self.nodes[i];
        node.role = Role::Leader;
        node.matched.clear();
        node.seen.clear();
        self.append(i, Kind::Blank);
    }

    fn append(&mut self, i: usize, kind: Kind) {
        let term = self.nodes[i].term;
        self.nodes[i].log.push(Entry { term, kind });
        self.commit(i);
    }

    fn replicate(&mut self, i: usize) {
        let (_, voters, learners) = self.nodes[i].voters();
        let to: BTreeSet<usize> = voters.into_iter().flatten().chain(learners).filter(|n| *n != i).collect();
        for to in to {
            let node = &self.nodes[i];
            let from = node.matched.get(&to).copied().unwrap_or(0).min(node.log.len());
            let prev = (if from == 0 { 0 } else { node.log[from - 1].term }, from);
            let entries = node.log[from..].iter().take(40).cloned().collect();
            let message = Message::Append { term: node.term, prev, entries, commit: node.commit };
            self.send(i, to, message);
        }
    }

    fn handle(&mut self, i: usize, from: usize, message: Message) {
        let (Message::Ask { term, .. }
        | Message::Vote { term, .. }
        | Message::Append { term, .. }
        | Message::Ack { term, .. }) = message;
        let now = self.now;
        let node = &mut self.nodes[i];
        // Who hears a leader does not listen to candidates.
        if matches!(message, Message::Ask { .. }) && (node.role == Role::Leader || now < node.heard + 140) {
            return;
        }
        if term > node.term {
            (node.term, node.voted, node.role) = (term, None, Role::Follower);
        }
        match message {
            Message::Ask { last, .. } => {
                let fresh = last >= node.last() || self.mutation == Some(Mutation::VoteForAnyLog);
                let granted = term == node.term && fresh && node.voted.is_none_or(|v| v == from);
                if granted {
                    node.voted = Some(from);
                    node.heard = now;
                }
                let term = node.term;
                self.send(i, from, Message::Vote { term, granted });
            }
            Message::Vote { granted, .. } => {
                if granted && term == node.term && node.role == Role::Candidate {
                    node.votes.insert(from);
                    self.count_votes(i);
                }
            }
            Message::Append { prev, entries, commit, .. } => {
                let matched = if term == node.term { self.store(i, prev, entries, commit) } else { None };
                let node = &self.nodes[i];
                let ack = Message::Ack { term: node.term, matched, floor: node.adopted(now) };
                self.send(i, from, ack);
            }
            Message::Ack { matched, floor, .. } => {
                if term == node.term && node.role == Role::Leader {
                    let known = node.matched.entry(from).or_default();
                    match matched {
                        Some(matched) => *known = (*known).max(matched),
                        // Back to where both logs are surely the same.
                        None => *known = 0,
                    }
                    node.seen.insert(from, (now, floor));
                    self.commit(i);
                }
            }
        }
    }

    fn store(&mut self, i: usize, prev: (u64, usize), entries: Vec<Entry>, commit: usize) -> Option<usize> {
        let node = &mut self.nodes[i];
        (node.role, node.heard) = (Role::Follower, self.now);
        let fits = prev.1 <= node.log.len() && (prev.1 == 0 || node.log[prev.1 - 1].term == prev.0);
        if !fits {
            return None;
        }
        let matched = prev.1 + entries.len();
        for (at, entry) in (prev.1..).zip(entries) {
            if node.log.get(at).is_some_and(|e| e.term != entry.term) {
                node.log.truncate(at);
            }
            if at == node.log.len() {
                node.log.push(entry);
            }
        }
        node.commit = node.commit.max(commit.min(matched));
        self.apply(i);
        Some(matched)
    }

    /// Whether the leader finds that more is committed.
    fn commit(&mut self, i: usize) {
        let node = &self.nodes[i];
        let (_, voters, _) = node.voters();
        let has = |upto: usize| move |n: usize| n == i || node.matched.get(&n).is_some_and(|m| *m >= upto);
        let done = |upto: &usize| {
            node.log[upto - 1].term == node.term
                && (self.mutation == Some(Mutation::CommitAlone) || self.elected(&voters, has(*upto)))
        };
        let newest = (node.commit + 1..=node.log.len()).rev().find(done);
        if let Some(newest) = newest {
            self.nodes[i].commit = newest;
            self.apply(i);
        }
    }

    fn apply(&mut self, i: usize) {
        while self.nodes[i].applied < self.nodes[i].commit {
            let at = self.nodes[i].applied;
            let entry = self.nodes[i].log[at].clone();
            match self.history.get(at) {
                Some(known) if *known != entry => {
                    self.wrong = Some(format!("n{i} applies {entry:?} where {known:?} was committed"));
                    return;
                }
                Some(_) => {}
                None => self.history.push(entry.clone()),
            }
            self.nodes[i].applied += 1;
            match entry.kind {
                Kind::Client(id) if self.nodes[i].role == Role::Leader => _ = self.acknowledged.insert(id),
                Kind::Member(command) => self.apply_member(i, command),
                _ => {}
            }
        }
    }

    fn apply_member(&mut self, i: usize, command: MemberCommand) {
        let now = self.now;
        let node = &mut self.nodes[i];
        let reply = node.registry.apply(&Command::Member(command));
        let members = node.registry.members();
        let config = members.config();
        if matches!(reply, Reply::Refused(_)) || config <= node.floor {
            return;
        }
        (node.floor..config).for_each(|old| _ = node.left.insert(old, now));
        (node.floor, node.floor_since) = (config, now);
        let voters: BTreeSet<usize> = members.voters().map(|(n, _)| number(n)).collect();
        if self.configs.insert(config, voters).is_none() {
            self.changes += 1;
            self.check_settled(config);
        }
    }

    /// When a configuration comes, no majority of the last but one may still vote in that, or have done so
    /// within the term of a lease: it need not meet a majority of the new one.
    fn check_settled(&mut self, config: u64) {
        let Some(old) = config.checked_sub(2).and_then(|c| self.configs.get(&c)) else { return };
        let held = |n: usize| self.nodes[n].left.get(&(config - 2)).is_none_or(|at| at + WAIT > self.now);
        if majority(old, held) {
            self.wrong = Some(format!(
                "configuration {config} is there while a majority of configuration {} votes on",
                config - 2
            ));
        }
    }

    fn lead(&mut self, i: usize) {
        let node = &self.nodes[i];
        let (at, voters, mut learners) = node.voters();
        // One change of raft's voters after the other, and the first after an entry of this term.
        if at > node.commit || node.commit == 0 || node.log[node.commit - 1].term != node.term {
            return;
        }
        if let [_, new] = &voters[..] {
            let uniform = Kind::Voters(vec![new.clone()], learners);
            return self.append(i, uniform);
        }
        let members = node.registry.members().clone();
        let wait = match self.mutation {
            Some(Mutation::SkipSettled) => None,
            _ => Some(Duration::from_millis(WAIT)),
        };
        let seen = Seen { node, me: i, now: self.now, settled: wait.is_none() };
        // A command of this leader is under way.
        if node.log[node.commit..].iter().any(|e| matches!(e.kind, Kind::Member(_))) {
            return;
        }
        match next_step(&members, &name(i), &seen, wait.unwrap_or_default()) {
            Step::Nothing | Step::Wait(_) => {}
            Step::Commit(command) => {
                self.late.push(command.clone());
                self.append(i, Kind::Member(command));
            }
            Step::AddLearner(new) => {
                learners.insert(number(&new));
                self.append(i, Kind::Voters(voters, learners));
            }
            Step::DropLearner(old) => {
                learners.remove(&number(&old));
                self.append(i, Kind::Voters(voters, learners));
            }
            Step::SetVoters(names) => {
                let new: BTreeSet<usize> = names.iter().map(|n| number(n)).collect();
                learners.retain(|n| !new.contains(n));
                self.append(i, Kind::Voters(vec![voters[0].clone(), new], learners));
            }
            Step::HandOver(heir) => {
                self.nodes[i].role = Role::Follower;
                self.nodes[i].heard = self.now;
                let heir = number(&heir);
                if self.nodes[heir].up && self.side[heir] == self.side[i] {
                    self.elect(heir);
                }
            }
        }
    }

    /// When all is calm, what was asked for is done, and all members know the same.
    fn check_end(&self) -> Result<(), String> {
        let Some(leader) = self.nodes.iter().filter(|n| n.role == Role::Leader).max_by_key(|n| n.term) else {
            return Err("nobody leads at the end".to_owned());
        };
        let members = leader.registry.members();
        if let Some((name, m)) = members.iter().find(|(_, m)| m.stage != Stage::Voter) {
            return Err(format!("{name} is still {:?} at the end", m.stage));
        }
        let voters: BTreeSet<usize> = members.voters().map(|(n, _)| number(n)).collect();
        if leader.voters().1 != [voters.clone()] {
            return Err(format!("raft counts {:?}, the members are {voters:?}", leader.voters().1));
        }
        for n in &voters {
            if self.nodes[*n].registry.members() != members {
                return Err(format!("n{n} knows other members at the end"));
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.side[from] != self.side[to] || self.rng.random_range(0..1000) < self.loss {
            return;
        }
        let copies = if self.rng.random_range(0..30) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let delay = if self.rng.random_range(0..40) == 0 { 150 } else { 8 };
            let delay = self.rng.random_range(1..=delay);
            let slot = self.messages.len();
            self.messages.push(message.clone());
            self.at(self.now + delay, Event::Deliver { to, from, slot });
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, event)));
    }
}

/// What a leader sees: those that answered lately, as they were then.
struct Seen<'a> {
    node: &'a Node,
    me: usize,
    now: u64,
    settled: bool,
}

impl View for Seen<'_> {
    fn reachable(&self, node: &str) -> bool {
        let n = number(node);
        n == self.me || self.node.seen.get(&n).is_some_and(|(at, _)| at + 4 * HEARTBEAT > self.now)
    }

    fn adopted(&self, node: &str) -> Option<Adopted> {
        let n = number(node);
        match n == self.me {
            _ if self.settled => Some(Adopted { config: u64::MAX, age: Duration::MAX }),
            true => Some(self.node.adopted(self.now)),
            false => self.node.seen.get(&n).map(|(_, adopted)| *adopted),
        }
    }

    fn caught_up(&self, node: &str) -> bool {
        let n = number(node);
        n == self.me || self.node.matched.get(&n).is_some_and(|m| m + 4 >= self.node.log.len())
    }

    fn keeps(&self, _: &str) -> Option<&'static str> {
        None
    }

    fn voters(&self) -> Option<BTreeSet<String>> {
        match &self.node.voters().1[..] {
            [voters] => Some(voters.iter().map(|n| name(*n)).collect()),
            _ => None,
        }
    }

    fn learners(&self) -> BTreeSet<String> {
        self.node.voters().2.iter().map(|n| name(*n)).collect()
    }
}
