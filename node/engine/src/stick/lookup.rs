//! What workers read and write by key: stickiness, `src_*` fetches, `table_*` converters. What is tracked
//! goes through [`super::Tracked`].

use std::sync::Arc;
use std::time::Duration;

use super::layout::{Column, Data, Kind};
use super::{Key, Table, Tracked, shard};
use crate::time::Now;

/// The server that a key is stuck to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stuck {
    /// Its numeric id, 0 for none.
    pub id: u32,
    /// Its name or address, as `srvkey` says.
    pub key: Option<Arc<str>>,
}

impl Table {
    // ---- stickiness ----

    /// The server id stuck to a key. A hit gives the entry its full time again.
    pub fn server_id(&self, key: &Key, now: Now) -> Option<u32> {
        self.stuck(key, now).map(|stuck| stuck.id).filter(|&id| id != 0)
    }

    /// The server stuck to a key. A hit gives the entry its full time again.
    pub fn stuck(&self, key: &Key, now: Now) -> Option<Stuck> {
        let id = self.layout.column(Data::SERVER_ID);
        let text = self.layout.column(Data::SERVER_KEY);
        let (index, hash) = self.locate(key)?;
        let mut shard = self.enter(index, now);
        let Some(at) = shard.lookup(key, hash) else {
            self.leave(shard, index, 0);
            return None;
        };
        shard.refresh(at);
        let read = |c: Column| shard.read(at, c, &self.shared.origins) as u32;
        let id = id.map_or(0, read);
        let text = text.map_or(0, read);
        let woken = if shard.stale(at) { shard.publish(at) } else { 0 };
        self.leave(shard, index, woken);
        let key = self.shared.texts.get(text);
        (id != 0 || key.is_some()).then_some(Stuck { id, key })
    }

    /// Sticks a key to a server. Silently nothing when the table is full and does not purge.
    pub fn set_server_id(&self, key: &Key, id: u32, now: Now) {
        self.stick(key, id, "", now);
    }

    /// Sticks a key to a server by its id and, if not empty, its name or address.
    pub fn stick(&self, key: &Key, id: u32, text: &str, now: Now) {
        let text = if text.is_empty() { 0 } else { self.shared.texts.intern(text) };
        self.write_registers(key, &[(Data::SERVER_ID, id), (Data::SERVER_KEY, text)], now);
    }

    /// Writes the registers that have another value, making and refreshing the entry. 0 is left alone.
    pub(super) fn write_registers(&self, key: &Key, values: &[(Data, u32)], now: Now) {
        let Some((mut shard, index, at)) = self.obtain(key, now) else { return };
        shard.refresh(at);
        let mut news = shard.stale(at);
        for &(data, value) in values {
            let Some(column) = self.layout.column(data).filter(|_| value != 0) else { continue };
            if shard.read(at, column, &self.shared.origins) as u32 != value {
                let hlc = self.shared.hlc.tick(now);
                let slot = shard.own(at, &self.shared.origins, || hlc);
                shard.slot_words_mut(slot)[column.range()].copy_from_slice(&shard::register(value, hlc));
                news = true;
            }
        }
        let woken = if news { shard.publish(at) } else { 0 };
        self.leave(shard, index, woken);
    }

    // ---- tracking ----

    /// Tracks a key until the handle is dropped; makes the entry if there is none. `None` when the
    /// table is full and does not purge, or everything in it is tracked.
    pub fn track(self: &Arc<Table>, key: &Key, now: Now) -> Option<Tracked> {
        self.track_counting(key, &[], now)
    }

    /// As [`Table::track`] for a connection, which is counted like [`Tracked::conn`] does, and with
    /// `request` for a request, as [`Tracked::http_req`]: all under one lock.
    pub fn track_begun(self: &Arc<Table>, key: &Key, request: bool, now: Now) -> Option<Tracked> {
        const BEGUN: [(Data, u64); 5] = [
            (Data::CONN_CNT, 1),
            (Data::CONN_RATE, 1),
            (Data::CONN_CUR, 1),
            (Data::HTTP_REQ_CNT, 1),
            (Data::HTTP_REQ_RATE, 1),
        ];
        let tracked = self.track_counting(key, if request { &BEGUN } else { &BEGUN[..3] }, now)?;
        tracked.began();
        Some(tracked)
    }

    fn track_counting(self: &Arc<Table>, key: &Key, events: &[(Data, u64)], now: Now) -> Option<Tracked> {
        let (mut shard, index, at) = self.obtain(key, now)?;
        if shard.moved {
            self.leave(shard, index, 0);
            return self.successor.get()?.track_counting(key, events, now);
        }
        // Held first: what is tracked hangs on no wheel, where its new time would move it.
        shard.hold(at);
        let news = self.record(&mut shard, at, events, now);
        let woken = if news { shard.publish(at) } else { 0 };
        self.leave(shard, index, woken);
        Some(Tracked::new(self, index, at))
    }

    /// Gives an entry its full time again and adds to what the table stores of `events`; whether the
    /// peers have to hear of it.
    pub(super) fn record(&self, shard: &mut shard::Shard, at: u32, events: &[(Data, u64)], now: Now) -> bool {
        shard.refresh(at);
        let mut news = shard.stale(at);
        let mut own = None;
        for &(data, n) in events.iter().filter(|(_, n)| *n > 0) {
            let Some(column) = self.layout.column(data) else { continue };
            let slot =
                own.unwrap_or_else(|| shard.own(at, &self.shared.origins, || self.shared.hlc.tick(now)));
            own = Some(slot);
            let tick = shard.now as u32;
            add(shard.slot_words_mut(slot), column, n, tick);
            news = true;
        }
        news
    }

    // ---- without tracking ----

    /// Whether the table stores this value: fetches of one that it does not store never match.
    pub fn stores(&self, data: impl Into<Data>) -> bool {
        self.layout.find(data).is_some()
    }

    /// A value of a key, without tracking or refreshing it (`src_*`, `table_*`). `None` when there is no
    /// entry, for which HAProxy says 0, or the value is not stored ([`Table::stores`]).
    pub fn value(&self, key: &Key, data: impl Into<Data>, now: Now) -> Option<u64> {
        let column = self.layout.column(data)?;
        self.peek(key, now, |shard, at| shard.read(at, column, &self.shared.origins))
    }

    /// Whether there is an entry (`in_table`).
    pub fn contains(&self, key: &Key, now: Now) -> bool {
        self.peek(key, now, |_, _| ()).is_some()
    }

    /// Sessions of this node that track a key (`table_trackers`).
    pub fn trackers(&self, key: &Key, now: Now) -> Option<u32> {
        self.peek(key, now, |shard, at| shard.entries[at as usize].uses)
    }

    /// Time until a key expires (`table_expire`); zero in a table without `expire`.
    pub fn left(&self, key: &Key, now: Now) -> Option<Duration> {
        self.peek(key, now, |shard, at| shard.left(at).unwrap_or_default())
    }

    /// Time since a key was last refreshed (`table_idle`); zero in a table without `expire`.
    pub fn idle(&self, key: &Key, now: Now) -> Option<Duration> {
        self.peek(key, now, |shard, at| {
            let ttl = shard.shape.ttl.map(Duration::from_millis);
            ttl.zip(shard.left(at)).map_or(Duration::ZERO, |(ttl, left)| ttl.saturating_sub(left))
        })
    }

    /// The server of a key by name or address (`table_server_id` has the number).
    pub fn server_key(&self, key: &Key, now: Now) -> Option<Arc<str>> {
        let text = self.value(key, Data::SERVER_KEY, now)?;
        self.shared.texts.get(text as u32)
    }

    /// Room for so many more entries (`table_avl`).
    pub fn available(&self) -> usize {
        self.size().saturating_sub(self.used())
    }

    /// Adds to a general purpose counter of a key and to its rate, making the entry if there is none
    /// (`src_inc_gpc0`); returns the new sum. `None` when neither is stored or there is no room.
    pub fn inc(self: &Arc<Table>, key: &Key, data: Data, n: u64, now: Now) -> Option<u64> {
        if !self.stores(data) && !self.stores(data.rate_of_gpc()) {
            return None;
        }
        self.track(key, now)?.inc(data, n, now)
    }

    /// Sets a general purpose counter of a key to 0 on the whole cluster (`src_clr_gpc0`), making the
    /// entry if there is none; returns what it was.
    pub fn clear_value(self: &Arc<Table>, key: &Key, data: Data, now: Now) -> Option<u64> {
        if !self.stores(data) {
            return None;
        }
        self.track(key, now)?.clear(data, now)
    }

    fn peek<T>(&self, key: &Key, now: Now, read: impl FnOnce(&shard::Shard, u32) -> T) -> Option<T> {
        let (index, hash) = self.locate(key)?;
        let mut shard = self.enter(index, now);
        let found = shard.lookup(key, hash).map(|at| read(&shard, at));
        self.leave(shard, index, 0);
        found
    }

    /// Whether bytes are counted in it at all.
    pub fn counts_bytes(&self) -> bool {
        let of = [Data::BYTES_IN_CNT, Data::BYTES_IN_RATE, Data::BYTES_OUT_CNT, Data::BYTES_OUT_RATE];
        of.into_iter().any(|data| self.stores(data))
    }
}

/// Adds `n` to a column of a slot.
pub(super) fn add(words: &mut [u32], c: Column, n: u64, tick: u32) {
    let small = u32::try_from(n).unwrap_or(u32::MAX);
    let w = &mut words[c.range()];
    match c.of.kind {
        // A counter that wrapped would be the lesser one in a merge: it stays at its highest.
        Kind::Counter => w[0] = w[0].saturating_add(small),
        Kind::Counter64 => shard::put64(w, shard::get64(w).saturating_add(n)),
        Kind::Rate => super::rate::add(w, small, tick, c.period),
        Kind::Gauge => (w[0], w[1]) = (w[0].wrapping_add(small), w[1].wrapping_add(1)),
        Kind::Register | Kind::Text => {}
    }
}
