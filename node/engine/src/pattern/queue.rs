//! Edits that rules ask for (`http-request set-map` and its like), on their way to the control plane.
//!
//! A worker never waits: [`Queue::push`] puts an edit into a bounded table, where a later edit of the
//! same key replaces an earlier one. The control plane takes what has gathered ([`Queue::poll`]) and
//! proposes it like a command, so the change is agreed on by all nodes and visible some milliseconds
//! later, not to the request that asked for it. When the table is full, by number or by bytes, edits are
//! dropped and counted. All workers share its lock: texts are made before it is taken.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;

/// Edits that may wait, all sets together.
const ROOM: usize = 16_384;

/// Bytes of their keys and values, all sets together.
const MAX_BYTES: usize = 16 << 20;

/// Longest key or value that a rule may set.
const LONGEST: usize = 8192;

/// An edit that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// `set-map`: the value of a key, whether or not it exists.
    SetMap(String),
    /// `add-acl`: a pattern, unless it exists.
    AddAcl,
    /// `del-map`, `del-acl`: without the key.
    Delete,
}

impl Edit {
    fn len(&self) -> usize {
        if let Edit::SetMap(value) = self { value.len() } else { 0 }
    }
}

/// The edits that wait.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// By set and key.
    edits: HashMap<(Arc<str>, String), Edit>,
    bytes: usize,
    waker: Option<Waker>,
}

/// An edit with the set and the key that it is for.
pub type Asked = ((Arc<str>, String), Edit);

impl Queue {
    /// Asks for an edit of a key of the set of this identity (its file's name). Never waits; `false` =
    /// it was dropped, and counted.
    pub fn push(&self, set: &Arc<str>, key: impl Into<String>, edit: Edit) -> bool {
        let key = key.into();
        if key.is_empty() || key.len() > LONGEST || edit.len() > LONGEST {
            return self.drop_one();
        }
        let more = key.len() + edit.len();
        let asked = (set.clone(), key);
        let mut inner = self.inner.lock();
        let Inner { edits, bytes, waker } = &mut *inner;
        let full = edits.len() >= ROOM;
        match edits.entry(asked) {
            Entry::Occupied(mut waiting) => {
                let after = *bytes - waiting.get().len() + edit.len();
                if after > MAX_BYTES {
                    drop(inner);
                    return self.drop_one();
                }
                *bytes = after;
                let before = waiting.insert(edit);
                drop(inner);
                drop(before);
            }
            Entry::Vacant(free) => {
                let after = *bytes + more;
                if full || after > MAX_BYTES {
                    drop(inner);
                    return self.drop_one();
                }
                *bytes = after;
                free.insert(edit);
                let waker = waker.take();
                drop(inner);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
        true
    }

    /// Counts an edit that was dropped.
    fn drop_one(&self) -> bool {
        self.dropped.fetch_add(1, Relaxed);
        false
    }

    /// Takes what waits, by set and key; one caller at a time.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Vec<Asked>> {
        let mut inner = self.inner.lock();
        if inner.edits.is_empty() {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let edits = std::mem::take(&mut inner.edits);
        inner.bytes = 0;
        drop(inner);
        let mut taken: Vec<_> = edits.into_iter().collect();
        taken.sort_by(|(a, _), (b, _)| a.cmp(b));
        Poll::Ready(taken)
    }

    /// Edits that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &Queue) -> Vec<Asked> {
        match queue.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(edits) => edits,
            Poll::Pending => Vec::new(),
        }
    }

    #[test]
    fn later_edits_replace_earlier_ones_and_a_full_queue_drops() {
        let (queue, set) = (Queue::default(), Arc::<str>::from("f"));
        assert!(taken(&queue).is_empty());
        for n in 0..3 {
            assert!(queue.push(&set, "k", Edit::SetMap(n.to_string())));
        }
        assert!(queue.push(&set, "a", Edit::Delete));
        assert_eq!(
            taken(&queue),
            [
                ((set.clone(), "a".into()), Edit::Delete),
                ((set.clone(), "k".into()), Edit::SetMap("2".into()))
            ]
        );
        assert!(!queue.push(&set, "k".repeat(LONGEST + 1), Edit::AddAcl));
        assert!((0..ROOM).all(|n| queue.push(&set, n.to_string(), Edit::AddAcl)));
        assert!(!queue.push(&set, "one more", Edit::AddAcl));
        assert!(queue.push(&set, "7", Edit::Delete), "a key that waits already");
        assert_eq!((queue.dropped(), taken(&queue).len()), (2, ROOM));
    }

    #[test]
    fn a_queue_is_bounded_in_bytes() {
        let (queue, set) = (Queue::default(), Arc::<str>::from("f"));
        let long = || Edit::SetMap("v".repeat(LONGEST));
        let all = MAX_BYTES / (LONGEST + 8);
        for _ in 0..2 {
            assert!((0..all).all(|n| queue.push(&set, format!("{n:08}"), long())));
            assert!(!queue.push(&set, "one more", long()));
            // What is replaced makes room, and what is taken too.
            assert!(queue.push(&set, "00000007", Edit::Delete));
            assert!(queue.push(&set, "more", long()));
            assert!(!queue.push(&set, "00000007", long()));
            assert_eq!(taken(&queue).len(), all + 1);
        }
        assert_eq!(queue.dropped(), 4);
    }
}
