//! HAProxy as a peer: its peers protocol 2.1, spoken by this node with a real HAProxy.
//!
//! HAProxy sends absolute values and takes what comes, the last one wins. Here counters add up over
//! nodes, so what HAProxy says is *learned*: it raises this node's own part of a counter until the sum
//! reaches what HAProxy has, and never lowers it. That is idempotent, so repeated lessons, echoes and
//! several HAProxys that tell each other count nothing twice; events that both sides count at the very
//! same moment may count once, as between two HAProxys. Registers are taken as they come. `conn_cur` is
//! not exchanged: what HAProxy has of it cannot be told from what it has learned.
//!
//! A [`Peer`] lives as long as the configuration names it; the I/O shell does the handshake
//! ([`handshake`]), then calls [`Peer::connected`], feeds bytes ([`Peer::receive`]), sends what
//! [`Peer::poll_output`] gives, and calls [`Peer::disconnected`]. Entries that were learned from any
//! HAProxy are not sent to HAProxys: they tell each other themselves ([`Learned`]). Nor is a HAProxy
//! ever sent less than it has just said ([`heard`]): its last writer wins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub(crate) use self::entries::Entry;
use self::entries::{corrected, note, periods, put_update, read_value, resolve, tell};
use self::heard::Heard;
use self::wire::{CONTROL, Control, Define, ERROR, Malformed, Message, Reader, kind};
use crate::stick::foreign::{Lesson, Value};
use crate::stick::{Table, Tables};
use crate::time::Now;

mod entries;
pub mod handshake;
mod heard;
#[cfg(test)]
mod tests;
pub mod wire;

/// A peer that has sent nothing for so long is gone (`doc/peers.txt`, heartbeats).
pub const SILENCE: Duration = Duration::from_secs(5);
/// After so long without a message of ours a heartbeat is sent.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long a lesson that was asked for may pause before another peer is asked.
const RESYNC: Duration = Duration::from_secs(5);
/// Batches on the way before the peer must acknowledge some.
const FLIGHTS: usize = 512;
/// Output is cut at this size.
const BURST: usize = 64 << 10;
/// Lessons that may wait for their time; beyond it no more is to be read.
const MAX_WAITING: usize = 1 << 16;
/// Entries that are marked as learned and not yet passed by a session.
const MAX_LEARNED: usize = 1 << 20;

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The peer sends what the protocol does not allow.
    Protocol(&'static str),
    /// The peer says that we did.
    Refused(&'static str),
}

impl From<Malformed> for Error {
    fn from(what: Malformed) -> Error {
        Error::Protocol(what.0)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Protocol(what) => write!(f, "protocol error: {what}"),
            Error::Refused(what) => write!(f, "it reports a {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// What was learned from HAProxys and not changed here since, so that it is not sent to them: log
/// position by table, shard and entry. Shared by all peers of a node; every peer passes every entry.
#[derive(Debug, Default)]
pub struct Learned(Mutex<HashMap<(u64, u32, u32), u64>>);

impl Learned {
    fn mark(&self, table: u64, shard: u32, entry: u32, seq: u64) {
        let mut marks = self.0.lock();
        // Marks of entries that are gone stay behind: beyond the bound all are forgotten, which costs
        // one echo each.
        if marks.len() >= MAX_LEARNED {
            marks.clear();
        }
        marks.insert((table, shard, entry), seq);
    }

    fn is_marked(&self, table: u64, shard: u32, entry: u32, seq: u64) -> bool {
        self.0.lock().get(&(table, shard, entry)) == Some(&seq)
    }
}

/// What to tell of a peer (`show peers`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sessions since the start.
    pub sessions: u64,
    /// Entries sent.
    pub updates_out: u64,
    /// Entries received.
    pub updates_in: u64,
    /// Entries taught on request.
    pub taught_out: u64,
    /// Heartbeats sent and received.
    pub heartbeats: (u64, u64),
}

/// Whether this node takes what a HAProxy says: one node of a cluster does, or all would count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes it.
    Learner,
    /// Another node does.
    Bystander,
}

/// A HAProxy, as long as the configuration names it.
pub struct Peer {
    tables: Arc<Tables>,
    learned: Arc<Learned>,
    /// Its `peers` section; `None`: it is a peer of the cluster.
    section: Option<String>,
    name: String,
    index: usize,
    mine: Vec<Mine>,
    /// What comes is learned so much later: the other nodes must have told their part of it before, or
    /// it would count as the HAProxy's own.
    delay: Duration,
    heard: Heard,
    session: Option<Session>,
    totals: Totals,
    warnings: VecDeque<String>,
    warned: Vec<String>,
}

/// A table of ours and how much of it the peer has. Outlives sessions.
struct Mine {
    table: Arc<Table>,
    /// Number of the last update sent.
    update: u32,
    /// Log position by shard up to which the peer has acknowledged.
    acked: Vec<u64>,
}

struct Session {
    input: Vec<u8>,
    output: Vec<u8>,
    scratch: Vec<u8>,
    theirs: BTreeMap<u64, Theirs>,
    /// Their table that updates belong to now.
    at: Option<u64>,
    dirty: Vec<u64>,
    flights: VecDeque<Flight>,
    waiting: VecDeque<(Duration, Waiting)>,
    teach: Option<Teach>,
    /// Their dictionary of `server_key` texts.
    dictionary: HashMap<u64, Arc<str>>,
    /// We asked to be taught, and heard the last of it then.
    asked: Option<Duration>,
    heard: Duration,
    spoke: Duration,
}

struct Theirs {
    define: Define,
    into: Option<Into>,
    update: u32,
    /// The last update that was handled and not acknowledged yet.
    unacked: Option<u32>,
}

/// What came and is handled when its time has come, in order.
enum Waiting {
    Update {
        of: u64,
        update: u32,
        learn: Option<Arrived>,
    },
    /// The end of a resync.
    Taught(u8),
}

struct Arrived {
    table: Arc<Table>,
    key: Arc<[u8]>,
    life: Option<u64>,
    values: Vec<(usize, Value)>,
}

struct Into {
    table: Arc<Table>,
    /// For each value of an update, our column.
    places: Vec<Option<usize>>,
}

struct Flight {
    table: usize,
    shard: u32,
    update: u32,
    reached: u64,
}

#[derive(Default)]
struct Teach {
    table: usize,
    shard: usize,
    from: u64,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tables.release_peer(self.index);
    }
}

impl Peer {
    /// The HAProxy called `name`, of a `peers` section or (`None`) of the cluster, not connected;
    /// what it says is learned after `delay`.
    ///
    /// # Errors
    /// When there are more peers than a table can feed; says so.
    pub fn new(
        tables: Arc<Tables>,
        learned: Arc<Learned>,
        section: Option<&str>,
        name: &str,
        delay: Duration,
    ) -> Result<Peer, String> {
        let index = tables.peer_index(&format!("{}/{name}", section.unwrap_or_default()));
        let index = index.ok_or_else(|| format!("more than {} peers", crate::stick::MAX_PEERS))?;
        Ok(Peer {
            tables,
            learned,
            section: section.map(str::to_string),
            name: name.to_string(),
            index,
            mine: Vec::new(),
            delay,
            heard: Heard::default(),
            session: None,
            totals: Totals::default(),
            warnings: VecDeque::new(),
            warned: Vec::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a session is up.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// What happened since the start.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Something to tell the people who run this, once.
    pub fn poll_warning(&mut self) -> Option<String> {
        self.warnings.pop_front()
    }

    /// A handshake with the peer has succeeded; an older session is forgotten.
    pub fn connected(&mut self, now: Now) {
        self.disconnected();
        self.totals.sessions += 1;
        self.session = Some(Session {
            input: Vec::new(),
            output: Vec::new(),
            scratch: Vec::new(),
            theirs: BTreeMap::new(),
            at: None,
            dirty: Vec::new(),
            flights: VecDeque::new(),
            waiting: VecDeque::new(),
            teach: None,
            dictionary: HashMap::new(),
            asked: None,
            heard: now.mono,
            spoke: now.mono,
        });
        self.look_for_tables();
        for mine in &self.mine {
            mine.table.attach(self.index, &mine.acked, false);
        }
    }

    /// The session is over.
    pub fn disconnected(&mut self) {
        if self.session.take().is_some() {
            for mine in &self.mine {
                mine.table.detach(self.index);
            }
        }
    }

    /// Whether the peer has said nothing for [`SILENCE`].
    pub fn is_silent(&self, now: Now) -> bool {
        self.session.as_ref().is_some_and(|s| now.mono > s.heard + SILENCE)
    }

    /// When [`Peer::poll_output`] may have something without anything having happened.
    pub fn next_poll(&self, now: Now) -> Duration {
        let Some(session) = &self.session else { return now.mono + HEARTBEAT };
        let beat = session.spoke + HEARTBEAT;
        session.waiting.front().map_or(beat, |(due, _)| beat.min(*due))
    }

    /// Whether so much waits for its time that no more is to be read now.
    pub fn is_full(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.waiting.len() >= MAX_WAITING)
    }

    /// Handles what has waited long enough.
    pub fn handle_timeout(&mut self, role: Role, now: Now) {
        let Some(session) = &mut self.session else { return };
        let mut handled = false;
        while session.waiting.front().is_some_and(|(due, _)| *due <= now.mono) {
            let Some((_, waiting)) = session.waiting.pop_front() else { break };
            handled = true;
            match waiting {
                Waiting::Update { of, update, learn } => {
                    if let Some(theirs) = session.theirs.get_mut(&of) {
                        theirs.unacked = Some(update);
                    }
                    if let Some(arrived) = learn.filter(|_| role == Role::Learner) {
                        let lesson = Lesson { life: arrived.life, values: &arrived.values };
                        if let Some(mark) = arrived.table.learn(&arrived.key, &lesson, now) {
                            self.learned.mark(arrived.table.epoch(), mark.shard, mark.entry, mark.seq);
                        }
                    }
                }
                Waiting::Taught(kind) => {
                    session.output.extend_from_slice(&[CONTROL, Control::ResyncConfirm as u8]);
                    if kind == 1 && session.asked.take().is_some() {
                        self.mine.iter().for_each(|mine| mine.table.set_taught());
                    }
                }
            }
        }
        if handled {
            session.acknowledge();
        }
    }

    /// Bytes came.
    ///
    /// # Errors
    /// When the session must be closed; what is to be said before is in the output.
    pub fn receive(&mut self, bytes: &[u8], role: Role, now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.heard = now.mono;
        session.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut session.input);
        let mut used = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() {
            match wire::cut(&input[used..]) {
                Ok(Some((message, len))) => {
                    used += len;
                    outcome = self.handle(message, now);
                }
                Ok(None) => break,
                Err(what) => outcome = Err(what.into()),
            }
        }
        let Some(session) = &mut self.session else { return outcome };
        session.input = input;
        session.input.drain(..used);
        if matches!(outcome, Err(Error::Protocol(_))) {
            session.output.extend_from_slice(&[ERROR, 0]);
        }
        self.handle_timeout(role, now);
        outcome
    }

    fn handle(&mut self, message: Message, now: Now) -> Result<(), Error> {
        match message {
            Message::Short(CONTROL, kind) => {
                self.handle_control(kind, now);
                Ok(())
            }
            Message::Short(ERROR, 1) => Err(Error::Refused("message above its limit")),
            Message::Short(ERROR, _) => Err(Error::Refused("protocol error")),
            // Later versions may say more; what is not known is skipped, as its length is.
            Message::Short(..) | Message::Other => Ok(()),
            Message::Table(kind, body) => self.handle_table(kind, body, now),
        }
    }

    fn handle_control(&mut self, kind: u8, now: Now) {
        let Some(session) = &mut self.session else { return };
        match kind {
            0 => session.teach = Some(Teach::default()),
            1 | 2 => session.waiting.push_back((now.mono + self.delay, Waiting::Taught(kind))),
            4 => self.totals.heartbeats.1 += 1,
            _ => {}
        }
    }

    fn handle_table(&mut self, kind: u8, body: &[u8], now: Now) -> Result<(), Error> {
        match kind {
            kind::DEFINE => self.handle_define(body),
            kind::SWITCH => {
                let id = Reader(body).number().ok_or(Malformed("a switch that does not read"))?;
                let Some(session) = &mut self.session else { return Ok(()) };
                if !session.theirs.contains_key(&id) {
                    return Err(Error::Protocol("a switch to no table"));
                }
                session.at = Some(id);
                Ok(())
            }
            kind::ACK => {
                let mut input = Reader(body);
                let ack = input.number().zip(input.word());
                let (id, update) = ack.ok_or(Malformed("an acknowledgement that does not read"))?;
                self.handle_ack(id, update);
                Ok(())
            }
            kind::UPDATE | kind::INCREMENTAL | kind::UPDATE_TIMED | kind::INCREMENTAL_TIMED => {
                self.handle_update(kind, body, now)
            }
            _ => Ok(()),
        }
    }

    fn handle_define(&mut self, body: &[u8]) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(define) = Define::read(body)? else {
            session.at = None;
            self.warn("it shares a table with a data type that is not known here".to_string());
            return Ok(());
        };
        let id = define.id;
        if session.theirs.len() >= 4096 && !session.theirs.contains_key(&id) {
            return Err(Error::Protocol("more than 4096 tables"));
        }
        session.at = Some(id);
        if session.theirs.get(&id).is_some_and(|t| t.define == define && t.into.is_some()) {
            return Ok(());
        }
        let (into, problem) = resolve(&self.tables, self.section.as_deref(), &define);
        session.theirs.insert(id, Theirs { define, into, update: 0, unacked: None });
        if let Some(problem) = problem {
            self.warn(problem);
        }
        Ok(())
    }

    fn handle_ack(&mut self, id: u64, update: u32) {
        let Some(session) = &mut self.session else { return };
        let Some(table) = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)) else { return };
        let done = |f: &Flight| f.table == table && update.wrapping_sub(f.update) as i32 >= 0;
        for flight in session.flights.iter().filter(|f| done(f)) {
            if let Some(acked) = self.mine[table].acked.get_mut(flight.shard as usize) {
                *acked = flight.reached.max(*acked);
            }
        }
        session.flights.retain(|f| !done(f));
    }

    fn handle_update(&mut self, kind: u8, body: &[u8], now: Now) -> Result<(), Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(of) = session.at else { return Ok(()) };
        let Some(theirs) = session.theirs.get_mut(&of) else { return Ok(()) };
        let short = Malformed("an update that does not read");
        let mut input = Reader(body);
        let incremental = matches!(kind, kind::INCREMENTAL | kind::INCREMENTAL_TIMED);
        theirs.update =
            if incremental { theirs.update.wrapping_add(1) } else { input.word().ok_or(short)? };
        let update = theirs.update;
        let timed = matches!(kind, kind::UPDATE_TIMED | kind::INCREMENTAL_TIMED);
        let life = if timed { Some(u64::from(input.word().ok_or(short)?)) } else { None };
        self.totals.updates_in += 1;
        let key = match theirs.define.key {
            6 => {
                let len = input.length(wire::MAX_MESSAGE).ok_or(short)?;
                input.bytes(len).ok_or(short)?
            }
            2 => input.bytes(4).ok_or(short)?,
            _ => input.bytes(theirs.define.key_len).ok_or(short)?,
        };
        let mut values = Vec::with_capacity(theirs.define.fields.len());
        let mut place = 0;
        let places = theirs.into.as_ref().map(|into| &*into.places);
        for field in &theirs.define.fields {
            for _ in 0..field.count {
                let value = read_value(&mut input, field.bit, &mut session.dictionary).ok_or(short)?;
                let column = places.and_then(|places| places.get(place).copied().flatten());
                if let (Some(column), Some(value)) = (column, value) {
                    values.push((column, value));
                }
                place += 1;
            }
        }
        let learn = theirs.into.as_ref().map(|into| {
            let (table, key) = (into.table.clone(), Arc::from(key));
            Arrived { table, key, life, values }
        });
        if let Some(arrived) = learn.as_ref().filter(|_| !self.delay.is_zero()) {
            note(&mut self.heard, arrived, now);
        }
        session.waiting.push_back((now.mono + self.delay, Waiting::Update { of, update, learn }));
        Ok(())
    }

    /// The next bytes to send, appended; whether there is more at once.
    pub fn poll_output(&mut self, out: &mut Vec<u8>, now: Now) -> bool {
        self.look_for_tables();
        let Some(session) = &mut self.session else { return false };
        out.append(&mut session.output);
        let learned = self.mine.iter().all(|mine| mine.table.is_learned());
        if !learned && session.asked.is_none_or(|at| now.mono > at.max(session.heard) + RESYNC) {
            session.asked = Some(now.mono);
            out.extend_from_slice(&[CONTROL, Control::ResyncRequest as u8]);
        }
        while out.len() < BURST && self.teach(out, learned, now) {}
        while out.len() < BURST && self.update(out, now) {}
        let Some(session) = &mut self.session else { return false };
        if out.is_empty() && now.mono >= session.spoke + HEARTBEAT {
            out.extend_from_slice(&[CONTROL, Control::Heartbeat as u8]);
            self.totals.heartbeats.0 += 1;
        }
        if !out.is_empty() {
            session.spoke = now.mono;
        }
        out.len() >= BURST
    }

    /// Sends some changes of our own; whether it did.
    fn update(&mut self, out: &mut Vec<u8>, now: Now) -> bool {
        let Some(session) = &mut self.session else { return false };
        if session.flights.len() >= FLIGHTS {
            return false;
        }
        session.dirty.resize(self.mine.len(), 0);
        for (id, mine) in self.mine.iter_mut().enumerate() {
            session.dirty[id] |= mine.table.take_pending(self.index);
            if session.dirty[id] == 0 {
                continue;
            }
            let shard = session.dirty[id].trailing_zeros();
            let epoch = mine.table.epoch();
            let mut entries = Vec::new();
            let periods = periods(&mine.table);
            let cut = mine.table.cut_sums(self.index, shard as usize, now, |entry| {
                if self.learned.is_marked(epoch, shard, entry.at, entry.seq) {
                    return;
                }
                let sent = self.heard.correct(epoch, entry.key, entry.values, &periods, now.mono);
                if let Some(entry) = corrected(&sent, entry) {
                    let first = entries.is_empty();
                    mine.update = mine.update.wrapping_add(1);
                    let kind = if first { kind::UPDATE } else { kind::INCREMENTAL };
                    let update = first.then_some(mine.update);
                    put_update(&mut entries, &mut session.scratch, kind, update, None, &entry);
                    self.totals.updates_out += 1;
                }
            });
            if !cut.more {
                session.dirty[id] &= !(1 << shard);
            }
            if !entries.is_empty() {
                tell(session, id, mine, out);
                out.append(&mut entries);
                session.flights.push_back(Flight {
                    table: id,
                    shard,
                    update: mine.update,
                    reached: cut.reached,
                });
            } else if session.flights.iter().all(|f| f.table != id || f.shard != shard) {
                mine.acked[shard as usize] = cut.reached.max(mine.acked[shard as usize]);
            }
            return true;
        }
        false
    }

    /// Teaches some of what was asked for; whether it did.
    fn teach(&mut self, out: &mut Vec<u8>, learned: bool, now: Now) -> bool {
        let Some(session) = &mut self.session else { return false };
        let Some(teach) = &mut session.teach else { return false };
        let Some(mine) = self.mine.get_mut(teach.table) else {
            session.teach = None;
            let end = if learned { Control::ResyncFinished } else { Control::ResyncPartial };
            out.extend_from_slice(&[CONTROL, end as u8]);
            return true;
        };
        let (id, shard, from) = (teach.table, teach.shard, teach.from);
        let mut entries = Vec::new();
        let (epoch, periods) = (mine.table.epoch(), periods(&mine.table));
        let cut = mine.table.cut_all_sums(shard, from, now, |entry| {
            let sent = self.heard.correct(epoch, entry.key, entry.values, &periods, now.mono);
            let Some(entry) = corrected(&sent, entry) else { return };
            let first = entries.is_empty();
            let kind = if first { kind::UPDATE_TIMED } else { kind::INCREMENTAL_TIMED };
            // Taught entries are not numbered: the number is that of the last update, as HAProxy acks it.
            put_update(
                &mut entries,
                &mut session.scratch,
                kind,
                first.then_some(mine.update),
                Some(entry.life),
                &entry,
            );
            self.totals.taught_out += 1;
        });
        (teach.from, teach.shard) = if cut.more { (cut.reached, shard) } else { (0, shard + 1) };
        if teach.shard >= mine.table.shard_count() {
            (teach.table, teach.shard) = (id + 1, 0);
        }
        if !entries.is_empty() {
            tell(session, id, mine, out);
            out.append(&mut entries);
        }
        true
    }

    /// Takes up shared tables that are new, and those that a reload made anew.
    fn look_for_tables(&mut self) {
        let section = self.section.as_deref();
        for table in self.tables.list().into_iter().filter(|t| t.is_shared_in(section)) {
            let place = self.mine.iter().position(|m| m.table.name() == table.name());
            if place.is_some_and(|at| Arc::ptr_eq(&self.mine[at].table, &table)) {
                continue;
            }
            let acked = vec![0; table.shard_count()];
            if self.session.is_some() {
                table.attach(self.index, &acked, false);
            }
            match place {
                Some(at) => {
                    // Positions of the one before mean nothing here, and it may have had more shards.
                    // The numbers go on, so that a late acknowledgement is of nothing.
                    let mine = &mut self.mine[at];
                    (mine.table, mine.acked) = (table, acked);
                    if let Some(session) = &mut self.session {
                        session.forget(at);
                    }
                }
                None => self.mine.push(Mine { table, update: 0, acked }),
            }
            if let Some(session) = &mut self.session {
                for theirs in session.theirs.values_mut() {
                    theirs.into = resolve(&self.tables, section, &theirs.define).0;
                }
            }
        }
    }

    fn warn(&mut self, problem: String) {
        if self.warned.len() < 1000 && !self.warned.contains(&problem) {
            self.warned.push(problem.clone());
            self.warnings.push_back(format!("peer '{}': {problem}", self.name));
        }
    }
}

impl Session {
    /// Another table has taken the place of table `at`: nothing of the one before is on its way.
    fn forget(&mut self, at: usize) {
        self.flights.retain(|flight| flight.table != at);
        if let Some(dirty) = self.dirty.get_mut(at) {
            *dirty = 0;
        }
        if let Some(teach) = self.teach.as_mut().filter(|teach| teach.table == at) {
            (teach.shard, teach.from) = (0, 0);
        }
    }

    /// Acknowledges what has come.
    fn acknowledge(&mut self) {
        for (id, theirs) in &mut self.theirs {
            if let Some(update) = theirs.unacked.take() {
                wire::put_message(&mut self.output, kind::ACK, &mut self.scratch, |out| {
                    wire::put_number(out, *id);
                    out.extend_from_slice(&update.to_be_bytes());
                });
            }
        }
    }
}
