//! Fetches and converters of stick tables (manual sections 7.3.1 and 7.3.3).

use std::sync::Arc;

use phalanx_config::{Counter, CounterFetch, CounterKey, Expr, Link};

use super::{Context, Value, evaluate};
use crate::stick::{Data, Input, Key, Scratch, Table, Tracked};
use crate::time::Now;

/// Calls `f` with the key that `expr` gives in `table`.
pub fn with_key<T>(expr: &Expr, at: &Context<'_>, table: &Table, f: impl FnOnce(&Key<'_>) -> T) -> Option<T> {
    with_value(&evaluate(expr, at)?, table, f)
}

/// Calls `f` with the key that a value is in `table`.
pub(super) fn with_value<T>(value: &Value<'_>, table: &Table, f: impl FnOnce(&Key<'_>) -> T) -> Option<T> {
    let input = match value {
        Value::Ip(ip) => Input::Ip(*ip),
        Value::Int(n) => Input::Int(*n),
        Value::Bool(is) => Input::Int(i64::from(*is)),
        Value::Str(text) | Value::Bin(text) => Input::Bytes(text),
    };
    let mut scratch = Scratch::default();
    table.key(input, &mut scratch).map(|key| f(&key))
}

/// The table of a proxy; of the one whose rule it is without a link.
pub(super) fn table<'a>(at: &Context<'a>, link: Option<&Link>) -> Option<&'a Arc<Table>> {
    let world = at.world?;
    match link {
        Some(link) => world.plan.linked(link)?.table.as_ref(),
        None => world.proxy.table.as_ref(),
    }
}

pub(super) fn fetch<'a>(counter: &Counter, at: &Context<'a>) -> Option<Value<'a>> {
    match counter.of {
        CounterKey::Src => {
            let table = table(at, counter.table.as_ref())?;
            of_key(&Value::Ip(at.src.ip().to_canonical()), table, counter.what, None, at.now)
        }
        CounterKey::Tracked(number) => {
            let tracked = at.memory.tracked(number).or_else(|| at.session.tracked(number));
            let Some(link) = counter.table.as_ref() else {
                return of_tracked(tracked, counter.what, at.now);
            };
            let wanted = table(at, Some(link))?;
            let same = tracked.filter(|tracked| Arc::ptr_eq(tracked.table(), wanted));
            // The key that is tracked elsewhere has no value here that could be known.
            of_tracked(same, counter.what, at.now)
        }
    }
}

/// A value of the tracked entry. Nothing when none is tracked or the table does not store it.
fn of_tracked<'a>(tracked: Option<&Tracked>, what: CounterFetch, now: Now) -> Option<Value<'a>> {
    if what == CounterFetch::Tracked {
        return Some(Value::Bool(tracked.is_some()));
    }
    let tracked = tracked?;
    let value = |data: Data| tracked.value(data, now);
    int(match what {
        CounterFetch::Value(name) => value(Data::named(name, 0)?)?,
        CounterFetch::Element(name, index) => value(Data::named(name, index)?)?,
        CounterFetch::Kilo(name) => value(Data::named(name, 0)?)? >> 10,
        CounterFetch::Inc(name) => tracked.inc(Data::named(name, 0)?, 1, now)?,
        CounterFetch::IncElement(index) => tracked.inc(Data::gpc(index), 1, now)?,
        CounterFetch::Clear(name) => tracked.clear(Data::named(name, 0)?, now)?,
        CounterFetch::ClearElement(index) => tracked.clear(Data::gpc(index), now)?,
        CounterFetch::Trackers => u64::from(tracked.trackers()),
        CounterFetch::Tracked | CounterFetch::UpdateConnCnt | CounterFetch::Expire | CounterFetch::Idle => {
            return None;
        }
    })
}

/// A value of a key that need not be tracked. 0 for a key that is not there; nothing when the table
/// does not store it.
pub(super) fn of_key<'a>(
    value: &Value<'_>,
    table: &Arc<Table>,
    what: CounterFetch,
    default: Option<i64>,
    now: Now,
) -> Option<Value<'a>> {
    let stored = |data: Data| table.stores(data).then_some(data);
    let n = with_value(value, table, |key| {
        let read = |data: Data| Some(table.value(key, stored(data)?, now).unwrap_or(0));
        match what {
            CounterFetch::Value(name) => read(Data::named(name, 0)?),
            CounterFetch::Element(name, index) => read(Data::named(name, index)?),
            CounterFetch::Kilo(name) => read(Data::named(name, 0)?).map(|n| n >> 10),
            CounterFetch::Inc(name) => table.inc(key, Data::named(name, 0)?, 1, now),
            CounterFetch::IncElement(index) => table.inc(key, Data::gpc(index), 1, now),
            CounterFetch::Clear(name) => table.clear_value(key, Data::named(name, 0)?, now),
            CounterFetch::ClearElement(index) => table.clear_value(key, Data::gpc(index), now),
            CounterFetch::Trackers => Some(table.trackers(key, now).map_or(0, u64::from)),
            CounterFetch::UpdateConnCnt => {
                stored(Data::CONN_CNT)?;
                let tracked = table.track(key, now)?;
                tracked.conn(now);
                tracked.value(Data::CONN_CNT, now)
            }
            CounterFetch::Expire => table.left(key, now).map(|left| left.as_millis() as u64),
            CounterFetch::Idle => table.idle(key, now).map(|idle| idle.as_millis() as u64),
            CounterFetch::Tracked => None,
        }
    });
    n.flatten().and_then(int).or_else(|| default.map(Value::Int))
}

fn int<'a>(n: u64) -> Option<Value<'a>> {
    Some(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

/// Whether a key is in a table.
pub(super) fn contains(value: &Value<'_>, table: &Table, now: Now) -> bool {
    with_value(value, table, |key| table.contains(key, now)).unwrap_or(false)
}
