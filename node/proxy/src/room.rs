//! Places for connections: `maxconn` of the process and of the frontend.
//!
//! A listener that finds them taken stops accepting, so that connections wait in the kernel's queue
//! and not in memory; it is woken when a place is given back. Giving one back looks at one flag as long
//! as no listener waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use phalanx_engine::frontend::{Connection, Frontend};
use phalanx_engine::state::{Process, ProcessPlace};

/// Listeners that wait for a place, of all workers.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

/// `maxconn` of one `bind` line, over all workers.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    /// 0 = no limit.
    max: AtomicU32,
    used: AtomicU32,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    held: Option<(Connection, ProcessPlace)>,
    limit: Arc<Limit>,
    room: Arc<Room>,
}

impl Room {
    /// A place for one more connection, if there is one.
    pub(crate) fn enter(
        self: &Arc<Self>,
        limit: &Arc<Limit>,
        frontend: &Arc<Frontend>,
        process: &Arc<Process>,
    ) -> Option<Place> {
        if !limit.enter() {
            return None;
        }
        // From here on a failure gives the limit back by dropping the place.
        let mut place = Place { held: None, limit: limit.clone(), room: self.clone() };
        place.held = frontend.enter().and_then(|connection| Some((connection, process.enter()?)));
        place.held.is_some().then_some(place)
    }

    /// Has `waker` called when a place may have become free. The caller tries once more after this.
    pub(crate) fn wait(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock();
        if !wakers.iter().any(|w| w.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        self.waiting.store(true, Ordering::SeqCst);
    }

    /// Wakes the listeners that wait.
    pub(crate) fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) {
            let wakers = {
                let mut wakers = self.wakers.lock();
                self.waiting.store(false, Ordering::SeqCst);
                std::mem::take(&mut *wakers)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Limit {
    /// Sets the limit; `None` = none.
    pub(crate) fn set(&self, max: Option<u32>) {
        self.max.store(max.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        max == 0 || self.used.load(Ordering::SeqCst) < max
    }

    fn enter(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let grown = |used| (max == 0 || used < max).then_some(used + 1);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grown).is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held = None;
        self.limit.used.fetch_sub(1, Ordering::SeqCst);
        self.room.wake();
    }
}
