//! What a worker looked into last, held by the worker itself.
//!
//! Taking hold of what another thread may replace costs two locked instructions for each look, and a
//! request has a look for every ACL. A worker keeps hold, and looks at a version instead. What it keeps is
//! bounded, is replaced by its next look, and is let go of with the plan.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::LocalKey;

use crate::{pattern, rules};

/// Things of a kind that a thread keeps hold of.
const KEPT: usize = 64;

/// What a thread keeps of one kind; empty in threads that look only now and then.
pub(crate) type Shelf<T> = RefCell<Vec<Option<Near<T>>>>;

/// A version of what somebody owns.
pub(crate) struct Near<T> {
    owner: u64,
    version: u64,
    held: Arc<T>,
}

/// This thread looks often.
pub fn keep() {
    pattern::INDEXES.with_borrow_mut(|shelf| shelf.resize_with(KEPT, || None));
    rules::FILTERS.with_borrow_mut(|shelf| shelf.resize_with(KEPT, || None));
}

/// Lets go of everything: others are looked into from now on.
pub fn let_go() {
    pattern::INDEXES.with_borrow_mut(|shelf| shelf.fill_with(|| None));
    rules::FILTERS.with_borrow_mut(|shelf| shelf.fill_with(|| None));
}

/// Calls `with` with this version of what `owner` has or a later one: with what is at hand, or with what
/// `load` gives from now on, also where nothing is kept.
pub(crate) fn look<T, R>(
    shelf: &'static LocalKey<Shelf<T>>,
    (owner, version): (u64, u64),
    load: impl FnOnce() -> Arc<T>,
    with: impl FnOnce(&T) -> R,
) -> R {
    shelf.with(|shelf| {
        // It is held while somebody makes something of what was found, and that might look, too.
        let mut near = shelf.try_borrow_mut();
        match near.as_mut().ok().and_then(|near| near.get_mut(owner as usize % KEPT)) {
            Some(Some(near)) if near.owner == owner && near.version == version => with(&near.held),
            Some(place) => with(&place.insert(Near { owner, version, held: load() }).held),
            None => with(&load()),
        }
    })
}
