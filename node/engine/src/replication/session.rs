//! One stream to a peer, from hello to its end: what is on the way, and what is to be said next.
//!
//! Driven by [`Peer`](super::Peer), which handles what comes; this side cuts batches of updates and of
//! lessons, bounded by the window and the rate of teaching. It never holds a shard's lock longer than
//! one cut takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::message::{Batch, Had, Message};
use super::{HEARTBEAT, Received, TEACH_BURST, TEACH_RATE, Totals};
use crate::stick::codec::{self, Reading};
use crate::stick::origin::SELF;
use crate::stick::{Table, Tables};
use crate::time::Now;

pub(super) struct Session {
    pub(super) queue: VecDeque<Message>,
    pub(super) greeted: bool,
    pub(super) generation: u64,
    pub(super) mine: Vec<Mine>,
    pub(super) theirs: BTreeMap<u32, Theirs>,
    /// Our local index for the peer's number.
    pub(super) origins: Vec<Option<u16>>,
    /// Our origins that the peer was told of.
    pub(super) told: Vec<bool>,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) flying: usize,
    pub(super) number: u64,
    pub(super) ack: Option<u64>,
    pub(super) teach: VecDeque<Lesson>,
    pub(super) tokens: f64,
    pub(super) refilled: Duration,
    pub(super) heartbeat: Duration,
    pub(super) heard: Duration,
    /// Which table to look at first, so that a busy one does not starve the others.
    pub(super) turn: usize,
    pub(super) had: Vec<Had>,
}

pub(super) struct Mine {
    pub(super) table: Option<Arc<Table>>,
    pub(super) dirty: u64,
    pub(super) floor: u64,
    pub(super) acked: Vec<u64>,
}

pub(super) struct Theirs {
    pub(super) name: String,
    pub(super) epoch: u64,
    pub(super) key: Option<phalanx_config::model::KeyType>,
    pub(super) columns: Vec<(String, u32)>,
    pub(super) into: Option<(Arc<Table>, Reading)>,
    pub(super) asked: bool,
    pub(super) asked_past: bool,
    pub(super) digest: Option<u64>,
}

pub(super) struct InFlight {
    pub(super) number: u64,
    pub(super) bytes: usize,
    pub(super) table: u32,
    pub(super) positions: Vec<(u32, u64)>,
    pub(super) at: Duration,
}

pub(super) struct Lesson {
    pub(super) table: u32,
    pub(super) shard: usize,
    pub(super) from: u64,
    /// Earlier runs of the peer, where it asks for these only.
    pub(super) runs: Option<Vec<u16>>,
}

/// Pieces of a table looked through in one go for the few entries that are asked for: changes wait for it.
const LOOKS: u32 = 8;

/// Collects the origins of a batch.
fn note(seen: &mut SmallVec<[u16; 8]>, origin: u16) {
    if origin != SELF && !seen.contains(&origin) {
        seen.push(origin);
    }
}

impl Session {
    pub(super) fn acknowledge(&mut self, upto: u64) {
        while self.in_flight.front().is_some_and(|f| f.number <= upto) {
            let Some(done) = self.in_flight.pop_front() else { break };
            self.flying -= done.bytes;
            for (shard, position) in done.positions {
                if let Some(acked) = self.mine[done.table as usize].acked.get_mut(shard as usize) {
                    *acked = position.max(*acked);
                }
            }
        }
    }

    pub(super) fn poll_floor(&mut self) -> Option<Message> {
        self.mine.iter_mut().enumerate().find_map(|(id, mine)| {
            let at = mine.table.as_ref()?.floor();
            if at == mine.floor {
                return None;
            }
            mine.floor = at;
            Some(Message::Floor { table: id as u32, at })
        })
    }

    /// Asks to be taught a table that is new here, unless another peer is at it.
    pub(super) fn poll_ask(&mut self, peer: usize, received: &BTreeMap<String, Received>) -> Option<Message> {
        self.theirs.values_mut().find_map(|theirs| {
            let (table, _) = theirs.into.as_ref()?;
            let done = received.get(&theirs.name).is_some_and(|r| r.taught) || table.is_taught();
            if theirs.asked || done || !table.claim(peer) {
                return None;
            }
            theirs.asked = true;
            Some(Message::Teach { table: theirs.name.clone(), scratch: true, past: false })
        })
    }

    /// Asks what earlier runs of this node counted, once this one knows the rest.
    pub(super) fn poll_past(&mut self, peer: usize) -> Option<Message> {
        self.theirs.values_mut().find_map(|theirs| {
            let (table, _) = theirs.into.as_ref()?;
            if theirs.asked_past || !table.is_learned() || !table.wants_past(peer) {
                return None;
            }
            theirs.asked_past = true;
            Some(Message::Teach { table: theirs.name.clone(), scratch: false, past: true })
        })
    }

    pub(super) fn poll_update(
        &mut self,
        tables: &Tables,
        peer: usize,
        totals: &mut Totals,
        now: Now,
    ) -> Option<Message> {
        for step in 0..self.mine.len() {
            let id = (self.turn + step) % self.mine.len();
            let mine = &mut self.mine[id];
            let Some(table) = mine.table.clone() else { continue };
            mine.dirty |= table.take_pending(peer);
            if mine.dirty == 0 {
                continue;
            }
            // Changes are spread over all shards: one message for what has come up in each of them.
            let (mut entries, mut positions, mut count) = (Vec::new(), Vec::new(), 0);
            let mut seen = SmallVec::new();
            while mine.dirty != 0 && entries.len() < codec::BATCH_BYTES {
                let shard = mine.dirty.trailing_zeros();
                let cut = table.cut_updates(peer, shard as usize, now, &mut entries, |o| note(&mut seen, o));
                if !cut.more {
                    mine.dirty &= !(1 << shard);
                }
                positions.push((shard, cut.reached));
                count += cut.entries;
            }
            self.turn = id + 1;
            totals.updates_out += u64::from(count);
            let batch = self.batch(id as u32, positions, count, entries, now);
            return Some(self.introduce(tables, &seen, batch, now));
        }
        None
    }

    pub(super) fn poll_teach(&mut self, tables: &Tables, totals: &mut Totals, now: Now) -> Option<Message> {
        let lesson = self.teach.front_mut()?;
        let waited = now.mono.saturating_sub(self.refilled).as_secs_f64() * 1000.0;
        self.tokens = (self.tokens + waited * TEACH_RATE).min(TEACH_BURST);
        self.refilled = now.mono;
        if self.tokens < 1.0 {
            return None;
        }
        let id = lesson.table;
        let Some(table) = self.mine[id as usize].table.clone() else {
            self.teach.pop_front();
            return None;
        };
        let (mut entries, mut seen) = (Vec::with_capacity(codec::BATCH_BYTES), SmallVec::new());
        let (mut count, mut looks) = (0, 0);
        let runs = lesson.runs.as_deref();
        if runs.is_some_and(<[u16]>::is_empty) {
            lesson.shard = table.shard_count();
        }
        while entries.len() < codec::BATCH_BYTES && lesson.shard < table.shard_count() && looks < LOOKS {
            looks += u32::from(runs.is_some());
            let see = |o| note(&mut seen, o);
            let cut = table.cut_teach(lesson.shard, lesson.from, runs, now, &mut entries, see);
            count += cut.entries;
            lesson.from = cut.reached;
            if !cut.more {
                (lesson.shard, lesson.from) = (lesson.shard + 1, 0);
            }
        }
        if count == 0 {
            if lesson.shard < table.shard_count() {
                return None;
            }
            let past = lesson.runs.is_some();
            self.teach.pop_front();
            let (table, complete) = (table.name().to_string(), table.is_learned());
            return Some(Message::Taught { table, complete, past });
        }
        self.tokens -= f64::from(count);
        totals.taught_out += u64::from(count);
        let batch = self.batch(id, Vec::new(), count, entries, now);
        Some(self.introduce(tables, &seen, batch, now))
    }

    /// Names origins of a batch that the peer does not know yet, before it.
    fn introduce(&mut self, tables: &Tables, seen: &[u16], batch: Message, now: Now) -> Message {
        let before = self.queue.len();
        for &origin in seen {
            let at = usize::from(origin);
            if self.told.len() <= at {
                self.told.resize(at + 1, false);
            }
            if !std::mem::replace(&mut self.told[at], true)
                && let Some(o) = tables.origins().get(origin)
            {
                let (node, clock) = (o.node.clone(), o.clock(now.ms() as u32));
                self.queue.push_back(Message::Origin { id: origin, node, incarnation: o.incarnation, clock });
            }
        }
        if self.queue.len() == before {
            return batch;
        }
        self.queue.push_back(batch);
        self.queue.pop_front().expect("something was put in")
    }

    pub(super) fn batch(
        &mut self,
        table: u32,
        positions: Vec<(u32, u64)>,
        count: u32,
        entries: Vec<u8>,
        now: Now,
    ) -> Message {
        self.number += 1;
        let bytes = entries.len() + 32;
        self.flying += bytes;
        let number = self.number;
        self.in_flight.push_back(InFlight {
            number,
            bytes,
            table,
            positions: positions.clone(),
            at: now.mono,
        });
        let clock = now.ms() as u32;
        Message::Batch(Batch { number, table, positions, clock, count, entries: entries.into() })
    }

    pub(super) fn poll_heartbeat(&mut self, now: Now) -> Option<Message> {
        if now.mono < self.heartbeat {
            return None;
        }
        self.heartbeat = now.mono + HEARTBEAT;
        let quiet = |(id, mine): (usize, &Mine)| {
            let digest = mine.table.as_ref()?.quiet_digest(now)?;
            Some((id as u32, digest))
        };
        let digests = self.mine.iter().enumerate().filter_map(quiet).collect();
        Some(Message::Heartbeat { clock: now.ms() as u32, digests })
    }
}
