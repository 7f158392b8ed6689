//! What rules remember of a session or request: tracked stick-table entries and variables.
//!
//! Interior mutability, so that an expression may set a variable while others are being read. Costs a
//! pointer until something is remembered. Belongs to one session, hence to one worker.

use std::cell::{OnceCell, RefCell};
use std::net::IpAddr;

use phalanx_config::{VarScope, Variable};
use smallvec::SmallVec;

use crate::sample::Value;
use crate::stick::Tracked;

/// Stick counters and variables.
#[derive(Default)]
pub struct Memory(OnceCell<Box<Inner>>);

#[derive(Default)]
struct Inner {
    counters: [OnceCell<Tracked>; 3],
    variables: RefCell<SmallVec<[(Variable, Stored); 1]>>,
}

/// Most bytes that the variables of one session or request take, as a bound of what a client can make
/// the proxy keep.
const MAX_BYTES: usize = 64 << 10;

/// A value that outlives what it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stored {
    Bool(bool),
    Int(i64),
    Ip(IpAddr),
    Str(Box<[u8]>),
    Bin(Box<[u8]>),
}

impl Memory {
    fn inner(&self) -> &Inner {
        self.0.get_or_init(Box::default)
    }

    /// The entry that counter `number` tracks.
    pub fn tracked(&self, number: u8) -> Option<&Tracked> {
        self.0.get()?.counters.get(usize::from(number))?.get()
    }

    /// Everything tracked.
    pub fn all_tracked(&self) -> impl Iterator<Item = &Tracked> {
        self.0.get().into_iter().flat_map(|inner| inner.counters.iter().filter_map(OnceCell::get))
    }

    /// Tracks an entry; the first one for a counter stays.
    pub fn track(&self, number: u8, tracked: Tracked) {
        if let Some(counter) = self.inner().counters.get(usize::from(number)) {
            let _ = counter.set(tracked);
        }
    }

    /// A variable's value.
    pub fn variable(&self, wanted: &Variable) -> Option<Value<'static>> {
        let variables = self.0.get()?.variables.borrow();
        let (_, value) = variables.iter().find(|(name, _)| name == wanted)?;
        Some(match value {
            Stored::Bool(is) => Value::Bool(*is),
            Stored::Int(n) => Value::Int(*n),
            Stored::Ip(ip) => Value::Ip(*ip),
            Stored::Str(text) => Value::Str(text.to_vec().into()),
            Stored::Bin(bytes) => Value::Bin(bytes.to_vec().into()),
        })
    }

    /// Sets a variable; silently not when the session has no room left for it, as in HAProxy.
    pub fn set(&self, name: &Variable, value: Value<'_>) {
        let stored = match value {
            Value::Bool(is) => Stored::Bool(is),
            Value::Int(n) => Stored::Int(n),
            Value::Ip(ip) => Stored::Ip(ip),
            Value::Str(text) => Stored::Str(text.into()),
            Value::Bin(bytes) => Stored::Bin(bytes.into()),
        };
        let mut variables = self.inner().variables.borrow_mut();
        let others: usize = variables.iter().filter(|(other, _)| other != name).map(|(_, v)| v.len()).sum();
        if others + stored.len() > MAX_BYTES {
            return;
        }
        match variables.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => *old = stored,
            None => variables.push((name.clone(), stored)),
        }
    }

    /// Forgets a variable.
    pub fn unset(&self, name: &Variable) {
        if let Some(inner) = self.0.get() {
            inner.variables.borrow_mut().retain(|(other, _)| *other != *name);
        }
    }

    /// Forgets the variables of a scope that is over.
    pub fn end(&self, scope: VarScope) {
        if let Some(inner) = self.0.get() {
            inner.variables.borrow_mut().retain(|(other, _)| other.scope != scope);
        }
    }
}

impl Stored {
    fn len(&self) -> usize {
        match self {
            Stored::Str(bytes) | Stored::Bin(bytes) => bytes.len() + 16,
            Stored::Bool(_) | Stored::Int(_) | Stored::Ip(_) => 16,
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("tracked", &self.all_tracked().count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_set_replaced_and_bounded() {
        let name = |name: &str| Variable { scope: VarScope::Txn, name: name.into() };
        let memory = Memory::default();
        assert_eq!(memory.variable(&name("a")), None);
        memory.set(&name("a"), Value::Int(1));
        memory.set(&name("a"), Value::Str(b"x"[..].into()));
        assert_eq!(memory.variable(&name("a")), Some(Value::Str(b"x"[..].into())));
        memory.set(&name("b"), Value::Str(vec![b'x'; MAX_BYTES].into()));
        assert_eq!(memory.variable(&name("b")), None, "no room");
        memory.end(VarScope::Req);
        assert!(memory.variable(&name("a")).is_some());
        memory.end(VarScope::Txn);
        assert_eq!(memory.variable(&name("a")), None);
    }
}
