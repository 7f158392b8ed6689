//! Stick and track rules carried out on a connection or request.

use std::sync::Arc;

use phalanx_config::{Expr, ServerKey, StickKind};
use phalanx_engine::backend::Backend;
use phalanx_engine::plan::{Stick, Track};
use phalanx_engine::sample::{Context, Value, evaluate};
use phalanx_engine::server::Server;
use phalanx_engine::stick::{Data, Input, Key, Scratch, Table, Tracked};
use phalanx_engine::time::Now;

/// The `sc0`..`sc2` of a session or request.
#[derive(Debug, Default)]
pub(crate) struct Counters([Option<Tracked>; 3]);

/// The server that the first rule with a usable entry leads to.
pub(crate) fn stick_match(
    rules: &[Stick],
    at: &Context<'_>,
    now: Now,
    backend: &Backend,
    persist: bool,
) -> Option<Arc<Server>> {
    rules.iter().filter(|s| s.rule.kind != StickKind::StoreRequest).find_map(|s| {
        let stuck = with_key(&s.rule.expr, at, &s.table, |key| s.table.stuck(key, now))??;
        let server = backend.stuck_server(&stuck, s.table.server_key_is())?;
        (server.accepts_persistent() || persist).then_some(server)
    })
}

/// Stores the server that was reached, once per table.
pub(crate) fn stick_store(rules: &[Stick], at: &Context<'_>, server: &Server, now: Now) {
    for (i, s) in rules.iter().enumerate().filter(|(_, s)| s.rule.kind != StickKind::Match) {
        let same = |o: &Stick| o.rule.kind != StickKind::Match && Arc::ptr_eq(&o.table, &s.table);
        if rules[..i].iter().any(same) {
            continue;
        }
        let stick = |text: &str| {
            with_key(&s.rule.expr, at, &s.table, |key| s.table.stick(key, server.id(), text, now));
        };
        match s.table.server_key_is() {
            _ if !s.table.stores(Data::SERVER_KEY) => stick(""),
            ServerKey::Name => stick(server.name()),
            ServerKey::Address => stick(&server.addr().to_string()),
        }
    }
}

impl Counters {
    /// Executes the rules: the first for a counter wins. `count` is called for what is newly tracked.
    pub(crate) fn track(&mut self, rules: &[Track], at: &Context<'_>, now: Now, count: impl Fn(&Tracked)) {
        for rule in rules {
            let Some(slot @ None) = self.0.get_mut(usize::from(rule.rule.counter)) else { continue };
            if let Some(Some(tracked)) =
                with_key(&rule.rule.expr, at, &rule.table, |key| rule.table.track(key, now))
            {
                count(&tracked);
                *slot = Some(tracked);
            }
        }
    }

    /// What is tracked.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.0.iter().flatten()
    }
}

/// Calls `f` with the key that `expr` gives in `table`.
fn with_key<T>(expr: &Expr, at: &Context<'_>, table: &Table, f: impl FnOnce(&Key<'_>) -> T) -> Option<T> {
    let value = evaluate(expr, at)?;
    let input = match &value {
        Value::Ip(ip) => Input::Ip(*ip),
        Value::Int(n) => Input::Int(*n),
        Value::Str(text) => Input::Bytes(text),
    };
    let mut scratch = Scratch::default();
    table.key(input, &mut scratch).map(|key| f(&key))
}
