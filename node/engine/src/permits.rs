//! Places on servers with `maxconn <n> cluster`: never more than `n` in use on all nodes together.
//!
//! A place belongs to one node at a time, and stays its own until it gives it back or is known to be
//! dead. So nothing runs out: a node that is cut off goes on with the places it has, and nobody else
//! can have them. One node keeps the book (the *arbiter*): it orders nodes with idle places to give
//! some back, and those where requests wait to use them. Safety does not depend on there being one
//! arbiter: a node obeys only the highest [`Ballot`] it has heard of, and a new arbiter hands out
//! nothing before every node has told it what it holds or is known to be dead.
//!
//! Why the sum holds. An arbiter's entry for a node is an upper bound of what the node holds: it is
//! raised before the order that allows more is sent, and lowered only by a report of a node that has
//! carried out the last order. Reports and orders are numbered, so late ones change nothing. A node
//! lowers what it holds only below the places in use, and only when no request can take one of them
//! any more. The arbiter raises an entry only while the sum of all entries is below `n`.
//!
//! A node that leaves gives back all that it has before it is taken out of the list: whoever reads a list
//! without it counts nothing of it. For the same reason only a node that stands in the agreed list
//! becomes the arbiter: one that is to join may know a few of the nodes alone.
//!
//! A node counts as dead only when it was found so after all others had promised: before, an earlier
//! arbiter could have given places to its next process.
//!
//! What is said of a server that is gone is forgotten by both sides: by the node when it has told that it
//! holds nothing, by the arbiter when it knows that and no order is on its way. Orders are numbered over all
//! servers, so that one about an earlier server of the same name is known to be late ([`Permits::floor`]).
//!
//! Messages may be lost, doubled, delayed and reordered. Clocks only pace things.

mod book;
mod desk;
mod message;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::book::{Book, Order};
pub use self::desk::Desk;
pub use self::message::{Ballot, Key, Line, Message};
use crate::time::Now;
use crate::verdict::{DEAD, NodeName};

/// Signs of life.
const BEAT: Duration = Duration::from_millis(250);
/// How long a started node listens before it may become the arbiter.
const START: Duration = Duration::from_millis(750);
/// An arbiter that was outranked does not try again at once.
const BACK_OFF: Duration = Duration::from_millis(1000);
/// Places of a node that is known to be dead are used again after this time: the servers have to see
/// its connections end.
pub const GRACE: Duration = Duration::from_millis(1000);

/// One node's part.
#[derive(Debug)]
pub struct Permits {
    me: NodeName,
    incarnation: u64,
    peers: BTreeMap<NodeName, Peer>,
    mine: BTreeMap<Key, Held>,
    /// The last order about a server that was forgotten, under the ballot promised: earlier ones are late.
    floor: u64,
    /// Orders of lower ballots are not obeyed.
    promised: Ballot,
    /// When the arbiter of that ballot was last heard from as such.
    claimed: Option<Duration>,
    /// Of this node's reports.
    reports: u64,
    /// The arbiter waits for a full report.
    asked: bool,
    beat_at: Option<Duration>,
    not_before: Duration,
    part: Part,
    /// When this node is the arbiter.
    book: Option<Book>,
    outputs: VecDeque<(NodeName, Message)>,
}

/// What a node is in the list of members, as far as it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// It does not know the agreed list, or is not in it yet: it has what the arbiter gives it.
    #[default]
    Outside,
    /// It may be the arbiter.
    Member,
    /// It gives back what it has, and takes nothing.
    Leaving,
    /// As before, and it is in the list no more.
    Gone,
}

#[derive(Debug, Default)]
struct Peer {
    incarnation: u64,
    heard: Option<Duration>,
    /// It is known to be dead: the first and the last time that this was found.
    gone: Option<(Duration, Duration)>,
}

impl Peer {
    fn lives(&self, now: Duration) -> bool {
        self.heard.is_some_and(|heard| now < heard + DEAD)
    }
}

/// What this node has of a server.
#[derive(Clone, Debug, Default)]
struct Held {
    /// `n` as this node's configuration has it; 0 = the server is being removed.
    limit: u32,
    /// Its own: nobody else may use them. At least `served`.
    held: u32,
    /// It may use so many; fewer than `held` while it gives some back.
    cap: u32,
    /// Last order carried out, under the ballot promised.
    applied: u64,
    served: u32,
    waiting: u32,
    /// What was reported last.
    told: (u32, u32, u32, u64),
}

impl Permits {
    /// The machine of node `me`; `incarnation` is larger than that of every earlier run.
    pub fn new(me: &str, incarnation: u64, now: Now) -> Permits {
        Permits {
            me: me.into(),
            incarnation,
            peers: BTreeMap::new(),
            mine: BTreeMap::new(),
            floor: 0,
            promised: Ballot::default(),
            claimed: None,
            reports: 0,
            asked: false,
            beat_at: None,
            not_before: now.mono + START,
            part: Part::Outside,
            book: None,
            outputs: VecDeque::new(),
        }
    }

    /// The other nodes, as they are now. One that is no longer a member holds nothing.
    pub fn set_peers<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let names: Vec<NodeName> = names.filter(|n| **n != *self.me).map(Into::into).collect();
        self.peers.retain(|name, _| names.contains(name));
        for name in names {
            self.peers.entry(name).or_default();
        }
        if let Some(book) = &mut self.book {
            book.retain(|name| *name == self.me || self.peers.contains_key(name));
        }
    }

    /// What this node is from now on.
    pub fn set_part(&mut self, part: Part) {
        self.part = part;
        if self.gives_back() {
            // In force from the next round on, which counts what is in use after that.
            self.mine.values_mut().for_each(|held| held.cap = 0);
        }
    }

    fn gives_back(&self) -> bool {
        matches!(self.part, Part::Leaving | Part::Gone)
    }

    /// Whether it leaves, has nothing any more, and takes nothing.
    pub fn has_given_back(&self) -> bool {
        self.gives_back() && self.mine.values().all(|held| held.held == 0)
    }

    /// The process of a node was found dead at this moment; counts while nothing else is heard of it.
    /// To be told again and again, because a new process may be there a moment later.
    pub fn set_gone(&mut self, node: &str, then: Now) {
        if let Some(peer) = self.peers.get_mut(node).filter(|p| !p.lives(then.mono)) {
            let (first, last) = peer.gone.unwrap_or((then.mono, then.mono));
            peer.gone = Some((first, last.max(then.mono)));
        }
    }

    /// How many places this node may use. To be in force before [`Permits::observe`] counts.
    pub fn places(&self, key: &Key) -> u32 {
        self.mine.get(key).map_or(0, |held| held.cap)
    }

    /// Tells how many places are in use, counted after [`Permits::places`] was put in force, and how
    /// many requests wait. `limit` is what the configuration says.
    pub fn observe(&mut self, key: &Key, limit: u32, served: u32, waiting: u32) {
        let limit = if self.gives_back() { 0 } else { limit };
        let held = match self.mine.get_mut(key) {
            Some(held) => held,
            None if limit == 0 => return,
            None => self.mine.entry(key.clone()).or_insert(Held { applied: self.floor, ..Held::default() }),
        };
        held.limit = limit;
        if limit == 0 {
            held.cap = 0;
        }
        (held.served, held.waiting) = (served, waiting);
        if held.held > held.cap {
            // Nobody can take one above `cap` any more, so these are free for good.
            held.held = held.cap.max(served.min(held.held));
        }
    }

    /// The servers that it has places on, or could have.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.mine.iter().filter(|(_, h)| h.limit > 0 || h.held > 0).map(|(key, _)| key)
    }

    /// `(own, usable, in the whole cluster if this node keeps the book)`.
    pub fn view(&self, key: &Key) -> (u32, u32, Option<u32>) {
        let (held, cap) = self.mine.get(key).map_or((0, 0), |h| (h.held, h.cap));
        (held, cap, self.book.as_ref().map(|book| book.total(key)))
    }

    /// The node that keeps the book, if it is heard from.
    pub fn arbiter(&self, now: Now) -> Option<&NodeName> {
        let known = self.book.is_some() || self.claimed.is_some_and(|at| now.mono < at + DEAD);
        known.then_some(&self.promised.node)
    }

    /// Nodes whose places nobody can use, because they are neither heard from nor known to be dead.
    pub fn missing(&self, now: Now) -> impl Iterator<Item = &NodeName> {
        let lost = move |p: &Peer| !p.lives(now.mono) && p.gone.is_none_or(|(at, _)| now.mono < at + GRACE);
        self.peers.iter().filter(move |(_, p)| lost(p)).map(|(name, _)| name)
    }

    /// Whether something is going on that should not wait for the next beat.
    pub fn is_busy(&self) -> bool {
        self.asked
            || self.mine.values().any(|h| h.waiting > 0 || h.held > h.cap)
            || self.book.as_ref().is_some_and(Book::is_short)
    }

    /// Takes a message of node `from`, in its run `incarnation`.
    pub fn handle(&mut self, from: &str, incarnation: u64, message: Message, now: Now) {
        if message.ballot().counter > Ballot::LAST {
            return;
        }
        let Some(peer) = self.peers.get_mut(from).filter(|p| p.incarnation <= incarnation) else { return };
        *peer = Peer { incarnation, heard: Some(now.mono), gone: None };
        let name: NodeName = from.into();
        match message {
            Message::Beat { promised } => self.outranked(&promised, now),
            Message::Claim { ballot } => self.promise(ballot, now),
            Message::Report { ballot, number, full, lines } => {
                self.outranked(&ballot, now);
                if let Some(book) = self.book.as_mut().filter(|b| b.ballot == ballot) {
                    book.report(&name, incarnation, number, full, lines, now);
                }
            }
            Message::Order { ballot, incarnation, number, key, held, cap } => {
                if incarnation == self.incarnation && ballot == self.promised {
                    self.obey(&key, number, held, cap);
                }
            }
        }
    }

    /// Lets time pass; after [`Permits::observe`] for every server.
    pub fn tick(&mut self, now: Now) {
        let beat = self.beat_at.is_none_or(|at| now.mono >= at + BEAT);
        if beat {
            self.beat_at = Some(now.mono);
        }
        if self.mine.is_empty() && self.book.is_none() {
            self.report(now, false);
            return;
        }
        if beat {
            let promised = self.promised.clone();
            self.broadcast(&Message::Beat { promised });
        }
        self.stand(now);
        self.report(now, beat);
        if let Some(book) = &mut self.book {
            book.presence(&self.me, &self.peers, now);
            if book.wants_reports(now, beat) {
                let message = Message::Claim { ballot: book.ballot.clone() };
                self.asked = true;
                self.broadcast(&message);
                self.report(now, false);
            }
        }
        self.settle(now);
        self.check_invariants();
    }

    /// The next message to send, and to whom. One that can't be sent may be dropped.
    pub fn poll_output(&mut self) -> Option<(NodeName, Message)> {
        self.outputs.pop_front()
    }

    /// Becomes the arbiter when there is none.
    fn stand(&mut self, now: Now) {
        let may = matches!(self.part, Part::Member | Part::Leaving);
        if !may || self.book.is_some() || self.mine.is_empty() || now.mono < self.not_before {
            return;
        }
        let lives = |name: &NodeName| self.peers.get(name).is_some_and(|p| p.lives(now.mono));
        let first = !self.peers.keys().any(|name| *name < self.me && lives(name));
        // It may be there and no arbiter any more: started again.
        let has_one = self.claimed.is_some_and(|at| now.mono < at + DEAD);
        if has_one || !first {
            return;
        }
        let counter = (self.promised.counter + 1).max(now.unix_us);
        let ballot = Ballot { counter, node: self.me.clone() };
        self.promise(ballot.clone(), now);
        self.book = Some(Book::new(ballot));
    }

    /// Another node obeys a higher ballot than this arbiter's: it is one no more.
    fn outranked(&mut self, ballot: &Ballot, now: Now) {
        if self.book.as_ref().is_some_and(|book| *ballot > book.ballot) {
            self.book = None;
            self.not_before = now.mono + BACK_OFF;
            // Its own ballot is over for itself as well, or it would wait for itself.
            if *ballot > self.promised {
                self.promise(ballot.clone(), now);
            }
        }
    }

    fn promise(&mut self, ballot: Ballot, now: Now) {
        if ballot >= self.promised {
            self.claimed = Some(now.mono);
        }
        if ballot > self.promised {
            self.outranked(&ballot, now);
            self.promised = ballot;
            self.floor = 0;
            self.mine.values_mut().for_each(|held| held.applied = 0);
            self.asked = true;
        } else if ballot == self.promised {
            self.asked = true;
        }
    }

    fn obey(&mut self, key: &Key, number: u64, held: u32, cap: u32) {
        let none = self.gives_back();
        let Some(mine) = self.mine.get_mut(key) else {
            if number > self.floor {
                // Of a server that is gone: the arbiter hears that it has nothing of it.
                self.mine.insert(key.clone(), Held { applied: number, ..Held::default() });
            }
            return;
        };
        if mine.applied >= number {
            return;
        }
        mine.applied = number;
        debug_assert!(held >= mine.held, "{key:?}: the arbiter's entry is an upper bound");
        // What it gave back meanwhile, without the arbiter having heard of it, is its own again.
        mine.held = held.max(mine.held);
        mine.cap = if mine.limit == 0 || none { 0 } else { cap.min(mine.held) };
    }

    /// Tells the arbiter what has changed.
    fn report(&mut self, now: Now, beat: bool) {
        let full = std::mem::take(&mut self.asked) || beat;
        let mut lines = Vec::new();
        for (key, held) in &mut self.mine {
            let tell = (held.held, held.served, held.waiting, held.applied);
            // How many are served matters only beside what it holds and who waits.
            let news = (tell.0, tell.2, tell.3) != (held.told.0, held.told.2, held.told.3);
            if full || news {
                held.told = tell;
                lines.push(Line {
                    key: key.clone(),
                    limit: held.limit,
                    held: held.held,
                    served: held.served,
                    waiting: held.waiting,
                    applied: held.applied,
                });
            }
        }
        if lines.is_empty() && !full {
            return;
        }
        let floor = &mut self.floor;
        self.mine.retain(|_, held| {
            let keep = held.limit > 0 || held.held > 0 || held.served > 0;
            if !keep {
                *floor = held.applied.max(*floor);
            }
            keep
        });
        self.reports += 1;
        let (ballot, number) = (self.promised.clone(), self.reports);
        match &mut self.book {
            Some(book) if book.ballot == ballot => {
                book.report(&self.me, self.incarnation, number, full, lines, now);
            }
            _ if self.peers.contains_key(&ballot.node) => {
                let to = ballot.node.clone();
                self.outputs.push_back((to, Message::Report { ballot, number, full, lines }));
            }
            _ => {}
        }
    }

    /// Carries out what the book says.
    fn settle(&mut self, now: Now) {
        let Some(book) = &mut self.book else { return };
        book.settle(now);
        for order in std::mem::take(&mut book.orders) {
            if order.to == self.me {
                self.obey(&order.key, order.number, order.held, order.cap);
            } else {
                let Order { to, incarnation, number, key, held, cap } = order;
                let ballot = self.promised.clone();
                let message = Message::Order { ballot, incarnation, number, key, held, cap };
                self.outputs.push_back((to, message));
            }
        }
    }

    fn broadcast(&mut self, message: &Message) {
        for name in self.peers.keys() {
            self.outputs.push_back((name.clone(), message.clone()));
        }
    }

    fn check_invariants(&self) {
        debug_assert!(self.mine.values().all(|h| h.cap <= h.held));
        debug_assert!(self.book.as_ref().is_none_or(|b| b.ballot == self.promised));
    }
}
