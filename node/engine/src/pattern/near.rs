//! The indexes that a worker looked into last, held by the worker itself.
//!
//! Taking hold of what another thread may replace costs two locked instructions for each look, and a
//! request has a look for every ACL. A worker keeps hold, and looks at a version instead. What it keeps is
//! bounded, is replaced by its next look, and is let go of with the plan.

use std::cell::RefCell;
use std::sync::Arc;

use super::index::Index;

/// Indexes that a thread keeps hold of.
const KEPT: usize = 64;

struct Near {
    matcher: u64,
    version: u64,
    index: Arc<Index>,
}

thread_local! {
    /// Empty in threads that look only now and then.
    static NEAR: RefCell<Vec<Option<Near>>> = const { RefCell::new(Vec::new()) };
}

/// This thread looks often.
pub fn keep_near() {
    NEAR.with_borrow_mut(|near| near.resize_with(KEPT, || None));
}

/// Lets go of everything: other matchers are looked into from now on.
pub fn let_go() {
    NEAR.with_borrow_mut(|near| near.fill_with(|| None));
}

/// Calls `with` with this version of a matcher's index or a later one: with what is at hand, or with what
/// `load` gives from now on. Gives `with` back where nothing is kept.
pub(super) fn look<R, F: FnOnce(&Index) -> R>(
    matcher: u64,
    version: u64,
    load: impl FnOnce() -> Arc<Index>,
    with: F,
) -> Result<R, F> {
    NEAR.with(|near| {
        // It is held while somebody makes something of an entry, and that might look, too.
        let Ok(mut near) = near.try_borrow_mut() else { return Err(with) };
        let Some(place) = near.get_mut(matcher as usize % KEPT) else { return Err(with) };
        match place {
            Some(near) if near.matcher == matcher && near.version == version => Ok(with(&near.index)),
            place => Ok(with(&place.insert(Near { matcher, version, index: load() }).index)),
        }
    })
}
