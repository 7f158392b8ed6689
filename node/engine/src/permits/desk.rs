//! The machine where what counts places and the streams to the peers meet.
//!
//! One lock, never held for more than a computation. The request path never comes here: it looks at
//! the limit that a round left in the server.

use std::fmt;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::{Message, Part, Permits};
use crate::time::Now;
use crate::verdict::NodeName;

type Wake = Box<dyn Fn() + Send + Sync>;

/// Shared by what counts and the cluster.
pub struct Desk {
    machine: Mutex<Permits>,
    carrier: OnceLock<Wake>,
    counter: OnceLock<Wake>,
}

impl Desk {
    /// The desk of a node.
    pub fn new(me: &str, incarnation: u64, now: Now) -> Desk {
        let machine = Mutex::new(Permits::new(me, incarnation, now));
        Desk { machine, carrier: OnceLock::new(), counter: OnceLock::new() }
    }

    /// `wake` is called when there may be messages to carry. Only the first one counts.
    pub fn wake_carrier(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.carrier.set(Box::new(wake));
    }

    /// `wake` is called when there should be a round. Only the first one counts.
    pub fn wake_counter(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.counter.set(Box::new(wake));
    }

    /// Puts the limits in force, counts, and lets time pass: `count` does the first two. Returns
    /// whether something is going on.
    pub fn round(&self, now: Now, count: impl FnOnce(&mut Permits)) -> bool {
        let mut machine = self.machine.lock();
        count(&mut machine);
        machine.tick(now);
        let busy = machine.is_busy();
        drop(machine);
        if let Some(wake) = self.carrier.get() {
            wake();
        }
        busy
    }

    /// Looks at it.
    pub fn look<T>(&self, look: impl FnOnce(&Permits) -> T) -> T {
        look(&self.machine.lock())
    }

    /// The other nodes, and what this one is among them.
    pub fn follow<'a>(&self, names: impl Iterator<Item = &'a str>, part: Part) {
        let mut machine = self.machine.lock();
        machine.set_peers(names);
        machine.set_part(part);
    }

    /// Whether this node leaves, has no places any more, and takes none.
    pub fn has_given_back(&self) -> bool {
        self.machine.lock().has_given_back()
    }

    /// The process of a node is known to have ended.
    pub fn set_gone(&self, node: &str, now: Now) {
        self.machine.lock().set_gone(node, now);
    }

    /// Takes a message of a peer.
    pub fn handle(&self, from: &str, incarnation: u64, message: Message, now: Now) {
        let calls = !matches!(message, Message::Beat { .. });
        self.machine.lock().handle(from, incarnation, message, now);
        if let Some(wake) = self.counter.get().filter(|_| calls) {
            wake();
        }
    }

    /// The next message to send.
    pub fn poll_output(&self) -> Option<(NodeName, Message)> {
        self.machine.lock().poll_output()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}
