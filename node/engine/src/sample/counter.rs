//! Fetches and converters of stick tables (manual sections 7.3.1 and 7.3.3).

use std::net::IpAddr;
use std::sync::Arc;

use phalanx_config::{Counter, CounterFetch, CounterKey, Expr};

use super::{Context, Value, evaluate};
use crate::stick::{Input, Key, Scratch, Table, Tracked};
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

/// The table of a proxy; of the one whose rule it is without a name.
pub(super) fn table<'a>(at: &Context<'a>, name: Option<&str>) -> Option<&'a Arc<Table>> {
    let world = at.world?;
    match name.filter(|name| !name.is_empty()) {
        Some(name) => world.plan.proxy(name)?.table.as_ref(),
        None => world.proxy.table.as_ref(),
    }
}

pub(super) fn fetch<'a>(counter: &Counter, at: &Context<'a>) -> Option<Value<'a>> {
    match counter.of {
        CounterKey::Src => {
            let table = table(at, counter.table.as_deref())?;
            by_src(at.src.ip().to_canonical(), table, counter.what, at.now)
        }
        CounterKey::Tracked(number) => {
            let tracked = at.memory.tracked(number).or_else(|| at.session.tracked(number));
            let Some(name) = counter.table.as_deref() else {
                return of_tracked(tracked, counter.what, at.now);
            };
            let wanted = table(at, Some(name))?;
            let same = tracked.filter(|tracked| Arc::ptr_eq(tracked.table(), wanted));
            // The key that is tracked elsewhere has no value here that could be known.
            of_tracked(same, counter.what, at.now)
        }
    }
}

fn of_tracked<'a>(tracked: Option<&Tracked>, what: CounterFetch, now: Now) -> Option<Value<'a>> {
    if what == CounterFetch::Tracked {
        return Some(Value::Bool(tracked.is_some()));
    }
    let tracked = tracked?;
    let n = match what {
        CounterFetch::Value(name) => tracked.value(name, now)?,
        CounterFetch::Inc("gpc0") => tracked.inc_gpc0(now),
        _ => return None,
    };
    Some(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

fn by_src<'a>(ip: IpAddr, table: &Arc<Table>, what: CounterFetch, now: Now) -> Option<Value<'a>> {
    of_key(&Value::Ip(ip), table, what, now)
}

/// A value of a key that need not be tracked; one that is not in the table has none.
pub(super) fn of_key<'a>(
    value: &Value<'_>,
    table: &Arc<Table>,
    what: CounterFetch,
    now: Now,
) -> Option<Value<'a>> {
    let n = with_value(value, table, |key| match what {
        CounterFetch::Value(name) => {
            table.layout().find(name)?;
            Some(table.value(key, name, now).unwrap_or(0))
        }
        CounterFetch::Inc("gpc0") => {
            table.layout().find("gpc0")?;
            table.track(key, now).map(|tracked| tracked.inc_gpc0(now))
        }
        _ => None,
    })??;
    Some(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))
}

/// Whether a key is in a table.
pub(super) fn contains(value: &Value<'_>, table: &Table, now: Now) -> bool {
    with_value(value, table, |key| table.show(key, now, |_| {})).unwrap_or(false)
}
