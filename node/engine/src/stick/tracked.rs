//! An entry that a session tracks: where events are counted.
//!
//! HAProxy counts `conn_*` when the tracking begins, `sess_*` when the connection rules are through,
//! `http_*` as requests and responses come, `bytes_*` when data has passed. Each is one call here, under
//! one short lock; what the table does not store costs a look at its layout.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::Table;
use super::key::OwnKey;
use super::layout::{Data, Kind};
use super::shard::{self, Shard};
use crate::time::Now;

/// An entry that a session tracks (`track-sc0`). While any is held the entry neither expires nor is
/// evicted; dropping the last one starts its time again.
pub struct Tracked {
    table: Arc<Table>,
    shard: u32,
    entry: u32,
    /// Counted in `conn_cur` until it is dropped.
    current: Cell<bool>,
    /// Bytes in and out that make no block of `brates-factor` yet.
    rest: Cell<(u16, u16)>,
}

impl Tracked {
    pub(super) fn new(table: &Arc<Table>, shard: usize, entry: u32) -> Tracked {
        Tracked {
            table: table.clone(),
            shard: shard as u32,
            entry,
            current: Cell::new(false),
            rest: Cell::new((0, 0)),
        }
    }

    /// Its connection is counted in `conn_cur`.
    pub(super) fn began(&self) {
        self.current.set(true);
    }

    /// Counts a connection, which lasts until this is dropped.
    pub fn conn(&self, now: Now) {
        let begins = !self.current.replace(true);
        let gauge = (Data::CONN_CUR, u64::from(begins));
        self.count(&[(Data::CONN_CNT, 1), (Data::CONN_RATE, 1), gauge], now);
    }

    /// Counts a session: a connection that the connection rules let pass.
    pub fn sess(&self, now: Now) {
        self.count(&[(Data::SESS_CNT, 1), (Data::SESS_RATE, 1)], now);
    }

    /// Counts an HTTP request.
    pub fn http_req(&self, now: Now) {
        self.count(&[(Data::HTTP_REQ_CNT, 1), (Data::HTTP_REQ_RATE, 1)], now);
    }

    /// Counts an HTTP error that the client caused.
    pub fn http_err(&self, now: Now) {
        self.count(&[(Data::HTTP_ERR_CNT, 1), (Data::HTTP_ERR_RATE, 1)], now);
    }

    /// Counts an HTTP failure of the server.
    pub fn http_fail(&self, now: Now) {
        self.count(&[(Data::HTTP_FAIL_CNT, 1), (Data::HTTP_FAIL_RATE, 1)], now);
    }

    /// Counts bytes from the client.
    pub fn bytes_in(&self, n: u64, now: Now) {
        let (mut rest, other) = self.rest.get();
        self.bytes([Data::BYTES_IN_CNT, Data::BYTES_IN_RATE], n, &mut rest, now);
        self.rest.set((rest, other));
    }

    /// Counts bytes to the client.
    pub fn bytes_out(&self, n: u64, now: Now) {
        let (other, mut rest) = self.rest.get();
        self.bytes([Data::BYTES_OUT_CNT, Data::BYTES_OUT_RATE], n, &mut rest, now);
        self.rest.set((other, rest));
    }

    /// Counts glitches of the front connection.
    pub fn glitches(&self, n: u64, now: Now) {
        self.count(&[(Data::GLITCH_CNT, n), (Data::GLITCH_RATE, n)], now);
    }

    /// Adds to a general purpose counter and to its rate; returns the counter's new sum, or the rate's
    /// when only that is stored. `None` when neither is.
    pub fn inc(&self, data: Data, n: u64, now: Now) -> Option<u64> {
        let rate = data.rate_of_gpc();
        self.count(&[(data, n), (rate, n)], now);
        self.value(data, now).or_else(|| self.value(rate, now))
    }

    /// Counts one more of whatever `gpc0` is used for; returns the cluster's sum.
    pub fn inc_gpc0(&self, now: Now) -> u64 {
        self.inc(Data::GPC0, 1, now).unwrap_or(0)
    }

    /// Sets a general purpose counter to 0 on the whole cluster (`sc_clr_gpc0`); returns what it was.
    /// `None` when it is not stored.
    pub fn clear(&self, data: Data, now: Now) -> Option<u64> {
        self.with(now, |table, shard, entry| {
            let Some(column) = table.layout.column(data) else { return (None, false) };
            let was = shard.read(entry, column, &table.shared.origins);
            if was > 0 {
                table.put(shard, entry, &[(data, 0)], now);
            }
            shard.refresh(entry);
            (Some(was), was > 0 || shard.stale(entry))
        })?
    }

    /// Sets a general purpose tag. `false` when the table does not store it.
    pub fn set_gpt(&self, data: Data, value: u32, now: Now) -> bool {
        let done = self.with(now, |table, shard, entry| {
            let column = table.layout.column(data).filter(|c| c.of.kind == Kind::Register);
            let Some(column) = column else { return (false, false) };
            let hlc = table.shared.hlc.tick(now);
            let slot = shard.own(entry, &table.shared.origins, || hlc);
            shard.slot_words_mut(slot)[column.range()].copy_from_slice(&shard::register(value, hlc));
            shard.refresh(entry);
            (true, true)
        });
        done.unwrap_or(false)
    }

    /// A value, summed over the nodes; `None` when the table does not store it.
    pub fn value(&self, data: impl Into<Data>, now: Now) -> Option<u64> {
        let data = data.into();
        self.with(now, |table, shard, entry| {
            let read = |column| shard.read(entry, column, &table.shared.origins);
            (table.layout.column(data).map(read), false)
        })?
    }

    /// Sessions of this node that track the entry (`sc_trackers`).
    pub fn trackers(&self) -> u32 {
        self.table.shards[self.shard as usize].lock().entries[self.entry as usize].uses
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn bytes(&self, [count, rate]: [Data; 2], n: u64, rest: &mut u16, now: Now) {
        let factor = self.table.layout.column(rate).map_or(1, |c| u64::from(c.factor));
        let all = u64::from(*rest) + n;
        *rest = (all % factor) as u16;
        self.count(&[(count, n), (rate, all / factor)], now);
    }

    /// Calls `f` with the entry where it is now; what `f` returns beside its answer tells whether the
    /// peers have to hear of it.
    fn with<T>(&self, now: Now, f: impl FnOnce(&Table, &mut Shard, u32) -> (T, bool)) -> Option<T> {
        let shard = self.table.enter(self.shard as usize, now);
        if !shard.moved {
            return Some(act(&self.table, shard, self.shard as usize, self.entry, f));
        }
        let key = OwnKey::of(&shard.keys.get(self.entry));
        self.table.leave(shard, self.shard as usize, 0);
        let mut table = self.table.successor.get()?;
        loop {
            let (shard, index, at) = table.obtain(&key.borrow(), now)?;
            if !shard.moved {
                return Some(act(table, shard, index, at, f));
            }
            table.leave(shard, index, 0);
            table = table.successor.get()?;
        }
    }

    /// Adds to what the table stores of `events`.
    fn count(&self, events: &[(Data, u64)], now: Now) {
        self.with(now, |table, shard, entry| ((), table.record(shard, entry, events, now)));
    }
}

/// Calls `f` on an entry, settles and unlocks.
fn act<T>(
    table: &Table,
    mut shard: MutexGuard<'_, Shard>,
    index: usize,
    entry: u32,
    f: impl FnOnce(&Table, &mut Shard, u32) -> (T, bool),
) -> T {
    let (answer, news) = f(table, &mut shard, entry);
    let woken = if news { shard.publish(entry) } else { 0 };
    table.leave(shard, index, woken);
    answer
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // The shard's own time will do: dropping needs no clock.
        let now = Now { mono: Duration::ZERO, unix_us: 0 };
        self.with(now, |table, shard, entry| {
            let gauge = table.layout.column(Data::CONN_CUR).filter(|_| self.current.get());
            if let Some(c) = gauge
                && let Some(slot) = shard.slot_of(entry, super::SELF)
            {
                let w = &mut shard.slot_words_mut(slot)[c.range()];
                (w[0], w[1]) = (w[0].saturating_sub(1), w[1].wrapping_add(1));
            }
            // In a table that has taken another's place the entry may have found no room.
            if shard.entries[entry as usize].uses > 0 {
                shard.release(entry);
            }
            ((), gauge.is_some() || shard.stale(entry))
        });
    }
}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracked").field("table", &self.table.name).finish_non_exhaustive()
    }
}
