//! Edits that rules ask for (`http-request set-map` and its like), on their way to the control plane.
//!
//! A worker never waits: [`Queue::push`] puts an edit into a bounded table, where a later edit of the
//! same key replaces an earlier one. The control plane takes what has gathered ([`Queue::poll`]) and
//! proposes it like a command, so the change is agreed on by all nodes and visible some milliseconds
//! later, not to the request that asked for it. When the table is full, edits are dropped and counted.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use hashbrown::HashMap;
use parking_lot::Mutex;

/// Edits that may wait, all sets together.
const ROOM: usize = 16_384;

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
    waker: Option<Waker>,
}

/// An edit with the set and the key that it is for.
pub type Asked = ((Arc<str>, String), Edit);

impl Queue {
    /// Asks for an edit of a key of the set of this identity (its file's name). Never waits; `false` =
    /// it was dropped, and counted.
    pub fn push(&self, set: &Arc<str>, key: &str, edit: Edit) -> bool {
        let value = if let Edit::SetMap(value) = &edit { value.len() } else { 0 };
        let mut inner = self.inner.lock();
        let full = inner.edits.len() >= ROOM;
        match inner.edits.get_mut(&(set.clone(), key.to_owned())) {
            _ if key.len() > LONGEST || value > LONGEST || key.is_empty() => {}
            Some(waiting) => {
                *waiting = edit;
                return true;
            }
            None if !full => {
                inner.edits.insert((set.clone(), key.to_owned()), edit);
                let waker = inner.waker.take();
                drop(inner);
                if let Some(waker) = waker {
                    waker.wake();
                }
                return true;
            }
            None => {}
        }
        drop(inner);
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
        let mut taken: Vec<_> = std::mem::take(&mut inner.edits).into_iter().collect();
        drop(inner);
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
        assert!(!queue.push(&set, &"k".repeat(LONGEST + 1), Edit::AddAcl));
        assert!((0..ROOM).all(|n| queue.push(&set, &n.to_string(), Edit::AddAcl)));
        assert!(!queue.push(&set, "one more", Edit::AddAcl));
        assert!(queue.push(&set, "7", Edit::Delete), "a key that waits already");
        assert_eq!((queue.dropped(), taken(&queue).len()), (2, ROOM));
    }
}
