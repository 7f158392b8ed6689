//! Replication of stick tables: what one node tells one peer, and what it makes of the answers.
//!
//! A [`Peer`] lives as long as the configuration names the node; streams come and go. The I/O shell
//! calls [`Peer::connected`], then [`Peer::handle`] for every message that comes and
//! [`Peer::poll_output`] until it is empty, and [`Peer::disconnected`]. Nothing here does I/O or holds
//! a table's lock between two calls.
//!
//! A node sends the slots that it writes itself, out of each table's update list, from where the peer
//! says that it stopped. Other nodes' slots travel only in a *teach*: when a table is new here, or when
//! digests stay different while both sides are quiet. Merging is idempotent, so whatever is sent twice,
//! late or by two teachers at once counts once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::message::{Batch, Define, Had, Hello, Message, VERSION};
use self::session::{Lesson, Mine, Session, Theirs};
pub use self::status::{Status, TableStatus};
use crate::planted::{self, Fault};
use crate::stick::codec::{self, Reading, Source};
use crate::stick::origin::{Hlc, SELF};
use crate::stick::{Table, Tables};
use crate::time::Now;

mod message;
mod session;
#[cfg(test)]
mod sim;
mod status;
#[cfg(test)]
mod tests;

/// A peer that says nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(5);
/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes on the way to a peer before it must acknowledge.
const WINDOW: usize = 1 << 20;
/// Entries taught per millisecond, and in one burst: what a CPU does between two looks at the clock.
const TEACH_RATE: f64 = 4_000.0;
const TEACH_BURST: f64 = 4096.0;
/// First pause between two repairs of one table; doubles while they do not help.
const REPAIR: Duration = Duration::from_secs(2);
const REPAIR_MAX: Duration = Duration::from_secs(300);
/// What a peer may declare.
const MAX_TABLES: u32 = 4_096;
const MAX_NAME: usize = 1024;
const MAX_LOGS: u32 = 256;

/// Why a conversation ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The peer speaks another version.
    Version(u32),
    /// Somebody else answered.
    WrongNode(String),
    /// It says what no peer says.
    Protocol(&'static str),
    /// Too many peers for one process.
    TooManyPeers,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Version(v) => write!(f, "it speaks version {v} of the peers protocol, expected {VERSION}"),
            Error::WrongNode(name) => write!(f, "node '{name}' answered"),
            Error::Protocol(what) => write!(f, "protocol error: {what}"),
            Error::TooManyPeers => write!(f, "more than {} peers", crate::stick::MAX_PEERS),
        }
    }
}

impl std::error::Error for Error {}

/// Another node, as long as the configuration names it.
pub struct Peer {
    tables: Arc<Tables>,
    name: String,
    index: usize,
    /// The run of the peer that `received` speaks of.
    incarnation: u64,
    received: BTreeMap<String, Received>,
    session: Option<Session>,
    warned: HashSet<String>,
    warnings: VecDeque<String>,
    repairs: BTreeMap<String, Repair>,
    totals: Totals,
}

/// How far we are in the peer's log of one table.
struct Received {
    epoch: u64,
    shards: Vec<u64>,
    /// Which table of ours it went into.
    into: u64,
    /// It has taught us all that it knew: from then on its log is enough.
    taught: bool,
}

/// Entries sent and received since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Own changes sent.
    pub updates_out: u64,
    /// Entries taught.
    pub taught_out: u64,
    /// Entries received, either way.
    pub entries_in: u64,
    /// Streams begun.
    pub sessions: u64,
    /// Teaches asked for because digests stayed different.
    pub repairs: u64,
}

#[derive(Default)]
struct Repair {
    /// Digests seen different: ours and theirs.
    seen: Option<(u64, u64)>,
    pause: Duration,
    not_before: Duration,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tables.release_peer(self.index);
    }
}

impl Peer {
    /// The peer called `name`, not connected.
    ///
    /// # Errors
    /// When there are more peers than a table can feed.
    pub fn new(tables: Arc<Tables>, name: &str) -> Result<Peer, Error> {
        let index = tables.peer_index(name).ok_or(Error::TooManyPeers)?;
        Ok(Peer {
            tables,
            name: name.to_string(),
            index,
            incarnation: 0,
            received: BTreeMap::new(),
            session: None,
            warned: HashSet::new(),
            warnings: VecDeque::new(),
            repairs: BTreeMap::new(),
            totals: Totals::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A stream to the peer is up. An older one is forgotten.
    pub fn connected(&mut self, now: Now) {
        self.disconnected();
        self.totals.sessions += 1;
        let had = |(name, r): (&String, &Received)| {
            let current = self.tables.get(name).is_some_and(|t| t.epoch() == r.into);
            current.then(|| Had { table: name.clone(), epoch: r.epoch, shards: r.shards.clone() })
        };
        let hello = Hello {
            version: VERSION,
            node: self.tables.node().to_string(),
            incarnation: self.tables.incarnation(),
            clock: now.ms() as u32,
            of: self.incarnation,
            had: self.received.iter().filter_map(had).collect(),
        };
        self.session = Some(Session {
            queue: VecDeque::from([Message::Hello(hello)]),
            greeted: false,
            generation: 0,
            mine: Vec::new(),
            theirs: BTreeMap::new(),
            origins: Vec::new(),
            told: vec![true],
            in_flight: VecDeque::new(),
            flying: 0,
            number: 0,
            ack: None,
            teach: VecDeque::new(),
            tokens: TEACH_BURST,
            refilled: now.mono,
            heartbeat: now.mono + HEARTBEAT,
            heard: now.mono,
            turn: 0,
            had: Vec::new(),
        });
    }

    /// The stream is gone.
    pub fn disconnected(&mut self) {
        let Some(session) = self.session.take() else { return };
        for mine in session.mine.iter().filter_map(|m| m.table.as_ref()) {
            mine.detach(self.index);
        }
        for theirs in session.theirs.values() {
            if let Some((table, _)) = &theirs.into
                && table.unclaim(self.index)
            {
                // Half taught: what came live meanwhile stands on nothing.
                self.received.remove(&theirs.name);
            }
        }
    }

    /// Whether the peer has said nothing for [`SILENCE`].
    pub fn is_silent(&self, now: Now) -> bool {
        self.session.as_ref().is_some_and(|s| now.mono > s.heard + SILENCE)
    }

    /// Something to tell the people who run this, once.
    pub fn poll_warning(&mut self) -> Option<String> {
        self.warnings.pop_front()
    }

    /// A message came.
    ///
    /// # Errors
    /// When the stream must be closed.
    pub fn handle(&mut self, message: Message, now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.heard = now.mono;
        if !session.greeted && !matches!(message, Message::Hello(_)) {
            return Err(Error::Protocol("the first message is not a hello"));
        }
        match message {
            Message::Hello(hello) => self.handle_hello(hello, now),
            Message::Define(define) => self.handle_define(define, now),
            Message::Origin { id, node, incarnation, clock } => {
                self.handle_origin(id, &node, incarnation, clock, now)
            }
            Message::Batch(batch) => self.handle_batch(batch, now),
            Message::Ack { upto } => {
                session.acknowledge(upto);
                Ok(())
            }
            Message::Teach { table, scratch, past } => self.handle_teach(&table, scratch, past),
            Message::Taught { table, past: true, .. } => {
                if let Some(table) = self.tables.get(&table) {
                    table.past_heard(self.index, self.tables.peer_count());
                }
                Ok(())
            }
            Message::Taught { table, complete, .. } => {
                self.handle_taught(&table, complete);
                Ok(())
            }
            Message::Floor { table, at } => self.handle_floor(table, at, now),
            Message::Heartbeat { clock, digests } => {
                self.observe(clock, now, false);
                self.compare(&digests, now);
                Ok(())
            }
        }
    }

    fn handle_hello(&mut self, hello: Hello, now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.greeted {
            return Err(Error::Protocol("a second hello"));
        }
        if hello.version != VERSION {
            return Err(Error::Version(hello.version));
        }
        if hello.node != self.name {
            return Err(Error::WrongNode(hello.node));
        }
        if hello.incarnation != self.incarnation {
            self.incarnation = hello.incarnation;
            self.received.clear();
        }
        let origins = self.tables.origins();
        let origin = origins.intern(&hello.node, hello.incarnation, hello.clock, now.ms());
        session.origins = vec![origin.filter(|&o| o != SELF)];
        session.greeted = true;
        if hello.of == self.tables.incarnation() {
            session.had = hello.had;
        }
        self.observe(hello.clock, now, true);
        Ok(())
    }

    /// The peer's clock reads `clock` now; returns how late the message is by the best estimate.
    fn observe(&self, clock: u32, now: Now, fresh: bool) -> u64 {
        let Some(Some(origin)) = self.session.as_ref().and_then(|s| s.origins.first().copied()) else {
            return 0;
        };
        let Some(origin) = self.tables.origins().get(origin) else { return 0 };
        let ours = now.ms() as u32;
        origin.observe(clock, ours, fresh);
        origin.hear(now.ms());
        let late = origin.clock(ours).wrapping_sub(clock) as i32;
        late.max(0) as u64
    }

    fn handle_define(&mut self, define: Define, now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if define.id >= MAX_TABLES || define.name.len() > MAX_NAME || define.shards > MAX_LOGS {
            return Err(Error::Protocol("a table out of bounds"));
        }
        if define.floor > Hlc::LIMIT {
            return Err(Error::Protocol("a clock out of bounds"));
        }
        let name = define.name.clone();
        let known = self.received.get(&name).is_some_and(|r| r.epoch == define.epoch);
        if !known {
            let shards = vec![0; define.shards as usize];
            self.received
                .insert(name.clone(), Received { epoch: define.epoch, shards, into: 0, taught: false });
        }
        let theirs = Theirs {
            name,
            epoch: define.epoch,
            key: message::key_type(define.key, define.key_len),
            columns: define.columns,
            into: None,
            asked: false,
            asked_past: false,
            digest: None,
        };
        session.theirs.insert(define.id, theirs);
        self.resolve(define.id);
        self.handle_floor(define.id, define.floor, now)
    }

    /// Finds the table of ours that a table of theirs goes into.
    fn resolve(&mut self, id: u32) {
        let Some(session) = &mut self.session else { return };
        let Some(theirs) = session.theirs.get_mut(&id) else { return };
        theirs.into = None;
        let mut problem = None;
        let same = |a, b| std::mem::discriminant(&a) == std::mem::discriminant(&b);
        match self.tables.get(&theirs.name).filter(|t| t.is_shared()) {
            None => problem = Some("there is no such table with 'peers' here".to_string()),
            Some(table) => match theirs.key {
                Some(key) if !same(key, table.key_type()) => {
                    problem = Some(format!("its key type is not '{}' as here", table.type_name()));
                }
                Some(key) => match Reading::new(key, &theirs.columns, table.layout()) {
                    Some(reading) => theirs.into = Some((table, reading)),
                    None => problem = Some("it stores a data type that is not known here".to_string()),
                },
                None => problem = Some("its key type is not known here".to_string()),
            },
        }
        if let (Some((table, _)), Some(received)) = (&theirs.into, self.received.get_mut(&theirs.name))
            && received.into != table.epoch()
        {
            // A reload made our table anew: what came before did not go into this one.
            received.into = table.epoch();
            received.shards.fill(0);
            received.taught = false;
            theirs.asked = false;
        }
        if let Some(problem) = problem {
            let text = format!("peer '{}': table '{}' is not replicated: {problem}", self.name, theirs.name);
            if self.warned.len() < 1000 && self.warned.insert(text.clone()) {
                self.warnings.push_back(text);
            }
        }
    }

    fn handle_origin(
        &mut self,
        id: u16,
        node: &str,
        incarnation: u64,
        clock: u32,
        now: Now,
    ) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if id == SELF || node.len() > MAX_NAME {
            return Err(Error::Protocol("an origin out of bounds"));
        }
        let origin = self.tables.origins().intern(node, incarnation, clock, now.ms());
        let id = usize::from(id);
        if session.origins.len() <= id {
            session.origins.resize(id + 1, None);
        }
        session.origins[id] = if planted::is(Fault::RelayAsOwn) { session.origins[0] } else { origin };
        Ok(())
    }

    fn handle_batch(&mut self, batch: Batch, now: Now) -> Result<(), Error> {
        let late = self.observe(batch.clock, now, false);
        let Some(session) = &mut self.session else { return Ok(()) };
        let theirs = session.theirs.get(&batch.table).ok_or(Error::Protocol("a batch of no table"))?;
        if let Some((table, reading)) = &theirs.into {
            let origins = |id: u16| session.origins.get(usize::from(id)).copied().flatten();
            let source = Source { reading, origins: &origins, late };
            let lost = planted::is(Fault::AckBeforeMerge) && batch.number % 5 == 4;
            let merged = if lost { Ok(0) } else { table.merge(&batch.entries, &source, now) };
            let merged = merged.map_err(|_| Error::Protocol("a batch that does not read"))?;
            self.totals.entries_in += merged as u64;
            if let Some(received) = self.received.get_mut(&theirs.name)
                && received.epoch == theirs.epoch
            {
                for (shard, position) in batch.positions {
                    if let Some(place) = received.shards.get_mut(shard as usize) {
                        *place = position.max(*place);
                    }
                }
            }
        }
        session.ack = Some(batch.number);
        Ok(())
    }

    fn handle_teach(&mut self, name: &str, scratch: bool, past: bool) -> Result<(), Error> {
        let runs = past.then(|| self.tables.origins().earlier_runs(&self.name, self.incarnation));
        let Some(session) = &mut self.session else { return Ok(()) };
        // Not defined, or gone since: the peer will hear of it by its absence.
        let named = |m: &Mine| m.table.as_ref().is_some_and(|t| t.name() == name);
        let Some(id) = session.mine.iter().position(named) else { return Ok(()) };
        let same = |lesson: &Lesson| lesson.table == id as u32 && lesson.runs.is_some() == past;
        if session.teach.iter().any(same) {
            return Ok(());
        }
        let mine = &mut session.mine[id];
        if let (true, false, Some(table)) = (scratch, past, &mine.table) {
            mine.acked = table.positions();
            table.attach(self.index, &[], true);
        }
        if planted::is(Fault::TeachNothing) {
            let table = name.to_string();
            session.queue.push_back(Message::Taught { table, complete: true, past });
            return Ok(());
        }
        session.teach.push_back(Lesson { table: id as u32, shard: 0, from: 0, runs });
        Ok(())
    }

    fn handle_taught(&mut self, name: &str, complete: bool) {
        let Some(table) = self.tables.get(name) else { return };
        if !table.unclaim(self.index) {
            return;
        }
        if let Some(received) = self.received.get_mut(name) {
            received.taught = true;
        }
        if complete {
            table.set_taught();
        } else {
            table.heard_from(self.index, self.tables.peer_count());
        }
        // The next teacher's turn.
        self.tables.wake();
    }

    fn handle_floor(&mut self, id: u32, at: u64, now: Now) -> Result<(), Error> {
        let Some(session) = &self.session else { return Ok(()) };
        if at > Hlc::LIMIT {
            return Err(Error::Protocol("a clock out of bounds"));
        }
        if let Some((table, _)) = session.theirs.get(&id).and_then(|t| t.into.as_ref()) {
            self.tables.hlc().observe(at);
            table.raise_floor(at, now);
        }
        Ok(())
    }

    /// Compares the peer's digests with ours. Different twice in the same way means that both are quiet
    /// and do not agree: then each asks the other to teach it.
    fn compare(&mut self, digests: &[(u32, u64)], now: Now) {
        let Some(session) = &mut self.session else { return };
        for &(id, theirs_digest) in digests {
            let Some(theirs) = session.theirs.get_mut(&id) else { continue };
            theirs.digest = Some(theirs_digest);
            let Some((table, _)) = &theirs.into else { continue };
            if codec::columns(table.layout()) != theirs.columns {
                continue;
            }
            let Some(ours) = table.quiet_digest(now) else { continue };
            let repair = self.repairs.entry(theirs.name.clone()).or_default();
            if ours == theirs_digest {
                *repair = Repair::default();
                continue;
            }
            let again = repair.seen == Some((ours, theirs_digest));
            repair.seen = Some((ours, theirs_digest));
            if again && now.mono >= repair.not_before {
                repair.pause = (repair.pause * 2).clamp(REPAIR, REPAIR_MAX);
                repair.not_before = now.mono + repair.pause;
                self.totals.repairs += 1;
                let table = theirs.name.clone();
                session.queue.push_back(Message::Teach { table, scratch: false, past: false });
            }
        }
    }

    // ---- output ----

    /// The next message to send, if any.
    pub fn poll_output(&mut self, now: Now) -> Option<Message> {
        let generation = self.tables.generation();
        let session = self.session.as_mut()?;
        if session.greeted && session.generation != generation {
            session.generation = generation;
            self.define();
        }
        let session = self.session.as_mut()?;
        if let Some(message) = session.queue.pop_front() {
            return Some(message);
        }
        if let Some(upto) = session.ack.take() {
            return Some(Message::Ack { upto });
        }
        if !session.greeted {
            return None;
        }
        let ask = session.poll_floor().or_else(|| session.poll_ask(self.index, &self.received));
        if let Some(message) = ask.or_else(|| session.poll_past(self.index)) {
            return Some(message);
        }
        if session.flying < WINDOW {
            let (tables, totals) = (&self.tables, &mut self.totals);
            if let Some(message) = session.poll_update(tables, self.index, totals, now) {
                return Some(message);
            }
            if let Some(message) = session.poll_teach(tables, totals, now) {
                return Some(message);
            }
        }
        session.poll_heartbeat(now)
    }

    /// When [`Peer::poll_output`] may have something without anything having happened.
    pub fn next_poll(&self, now: Now) -> Option<Duration> {
        let session = self.session.as_ref()?;
        Some(if !session.teach.is_empty() && session.flying < WINDOW {
            now.mono + Duration::from_millis(1)
        } else {
            session.heartbeat
        })
    }

    /// Whether the peer is being taught a whole table, so that it is sent something all the time. The few
    /// entries with earlier runs of its own come from here and there: nothing else goes along with those.
    pub fn is_teaching(&self) -> bool {
        let lesson = self.session.as_ref().and_then(|session| session.teach.front());
        lesson.is_some_and(|lesson| lesson.runs.is_none())
    }

    /// Tells the peer of tables that it does not know yet, and looks where its own go.
    fn define(&mut self) {
        let Some(session) = &mut self.session else { return };
        let tables: Vec<_> = self.tables.list().into_iter().filter(|t| t.is_shared()).collect();
        for mine in &mut session.mine {
            let gone = |t: &Arc<Table>| !tables.iter().any(|n| Arc::ptr_eq(n, t));
            if let Some(table) = mine.table.take_if(|t| gone(t)) {
                table.detach(self.index);
            }
        }
        for table in tables {
            let known = |m: &Mine| m.table.as_ref().is_some_and(|t| Arc::ptr_eq(t, &table));
            if session.mine.iter().any(known) {
                continue;
            }
            let shards = table.shard_count();
            let had = session.had.iter().find(|h| h.table == table.name() && h.epoch == table.epoch());
            let acked = had.filter(|h| h.shards.len() == shards).map(|h| h.shards.clone());
            let mut acked = acked.unwrap_or_else(|| vec![0; shards]);
            if planted::is(Fault::ResumeTooFar) {
                acked.iter_mut().for_each(|at| *at += 3);
            }
            let floor = table.floor();
            let (key, key_len) = message::key_code(table.key_type());
            table.attach(self.index, &acked, false);
            session.queue.push_back(Message::Define(Define {
                id: session.mine.len() as u32,
                name: table.name().to_string(),
                key,
                key_len,
                columns: codec::columns(table.layout()),
                shards: shards as u32,
                epoch: table.epoch(),
                floor,
            }));
            session.mine.push(Mine { floor, table: Some(table), dirty: 0, acked });
        }
        for id in session.theirs.keys().copied().collect::<Vec<_>>() {
            self.resolve(id);
        }
    }
}
