//! Places for connections: `maxconn` of the process and of the frontend.
//!
//! A listener that finds them taken stops accepting, so that connections wait in the kernel's queue
//! and not in memory; it is woken when a place is given back. Giving one back looks at one flag as long
//! as no listener waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use phalanx_engine::frontend::Frontend;
use phalanx_engine::state::Process;

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

/// The place of one connection, given back when it is dropped.
pub(crate) struct Place<'a> {
    room: &'a Room,
    limit: &'a Arc<Limit>,
    frontend: &'a Frontend,
    process: &'a Process,
}

impl Room {
    /// A place for one more connection, if there is one.
    pub(crate) fn enter<'a>(
        &'a self,
        limit: &'a Arc<Limit>,
        frontend: &'a Frontend,
        process: &'a Process,
    ) -> Option<Place<'a>> {
        // Looked at before the line's place is taken: giving that back wakes those who wait for it, and who asks
        // again and again would wake itself.
        if frontend.conns() >= frontend.maxconn() || process.conns() >= process.maxconn() || !limit.enter() {
            return None;
        }
        let in_frontend = frontend.enter();
        if in_frontend && process.enter() {
            return Some(Place { room: self, limit, frontend, process });
        }
        if in_frontend {
            frontend.leave();
        }
        limit.leave();
        // Another listener may have found the line full because of this one. Otherwise nobody missed anything,
        // and whoever is about to wait is not to wake itself.
        if limit.is_set() {
            self.wake();
        }
        None
    }

    /// Gives a place back that was [`kept`](Place::keep).
    pub(crate) fn leave(&self, limit: &Limit, frontend: &Frontend, process: &Process) {
        process.leave();
        frontend.leave();
        limit.leave();
        self.wake();
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

    fn is_set(&self) -> bool {
        self.max.load(Ordering::Relaxed) != 0
    }

    fn leave(&self) {
        self.used.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Place<'_> {
    /// Makes it a session's, which gives it [back](Room::leave): it knows most of where that is.
    pub(crate) fn keep(self) -> Arc<Limit> {
        let limit = self.limit.clone();
        std::mem::forget(self);
        limit
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.leave(self.limit, self.frontend, self.process);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use phalanx_config::{Balance, Proxy, ProxyKind};
    use phalanx_engine::state::{Setup, State};
    use phalanx_engine::stick::Tables;
    use phalanx_engine::testing::{at, config, section};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_is_woken_by_a_place_and_not_by_asking_again() {
        let setup = Setup { workers: 1, seed: 7, default_maxconn: 1000, node: "n1".into() };
        let section = Proxy { kind: ProxyKind::Listen, ..section(Balance::RoundRobin, vec![]) };
        let state = State::new(config(section), setup, Tables::new("n1", 1, 7), at(0));
        let plan = state.plan_owned();
        let frontend = plan.frontend("b").expect("a frontend");
        let (room, limit, count) = (Room::default(), Arc::new(Limit::default()), Arc::new(Count::default()));
        limit.set(Some(5));
        frontend.set_maxconn(1);
        let place = room.enter(&limit, frontend, state.process()).expect("the first place");
        for _ in 0..3 {
            room.wait(&count.clone().into());
            assert!(room.enter(&limit, frontend, state.process()).is_none());
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        drop(place);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(room.enter(&limit, frontend, state.process()).is_some());
    }
}
