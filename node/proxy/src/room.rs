//! Places for connections: `maxconn` of the process and of the frontend.
//!
//! A listener that finds them taken stops accepting, so that connections wait in the kernel's queue
//! and not in memory; it is woken when a place is given back. Giving one back looks at one flag as long
//! as no listener waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    held: Option<(Connection, ProcessPlace)>,
    room: Arc<Room>,
}

impl Room {
    /// A place for one more connection, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, frontend: &Arc<Frontend>, process: &Arc<Process>) -> Option<Place> {
        let connection = frontend.enter()?;
        let place = process.enter()?;
        Some(Place { held: Some((connection, place)), room: self.clone() })
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

impl Drop for Place {
    fn drop(&mut self) {
        self.held = None;
        self.room.wake();
    }
}
