//! One forwarding thread: its runtime, listeners, connection pool and view of the plan.
//!
//! Everything a session touches on its way is owned by its worker and not shared, or is an atomic
//! of the engine. The [`Forwarder`](crate::Forwarder) talks to a worker through a channel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_engine::counters;
use phalanx_engine::frontend::Frontend;
use phalanx_engine::near;
use phalanx_engine::plan::Plan;
use phalanx_engine::state::State;
use phalanx_engine::time::Now;
use phalanx_sys::clock::Clock;
use tokio::sync::mpsc;

use crate::deadline;
use crate::listener::{Key, Listener, Target};
use crate::log::Sink;
use crate::pool::Pool;
use crate::room::Room;
use crate::runtime::{self, EventLoop, spawn};

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    pub(crate) logs: Sink,
    pub(crate) room: Arc<Room>,
}

/// What a session reaches of its worker.
pub(crate) struct Worker {
    pub(crate) id: counters::Worker,
    pub(crate) shared: Shared,
    pub(crate) pool: Pool,
    /// Held once per worker, so that sessions do not contend for its count of references.
    plan: RefCell<Rc<View>>,
    draw: Cell<u64>,
    /// Both clocks when the wall clock was last read.
    wall: Cell<Now>,
    /// Those of a turn, by when it began.
    turn: Cell<Option<(Instant, Now)>>,
}

/// A plan as the sessions of one worker hold it.
pub(crate) struct View(Arc<Plan>);

impl std::ops::Deref for View {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.0
    }
}

/// An order to a worker; `done` tells that it was carried out.
pub(crate) struct Order {
    /// The listeners that are to be open: those not named are closed.
    pub(crate) listeners: Vec<Wanted>,
    /// Receives nothing; dropped when done.
    pub(crate) done: std::sync::mpsc::SyncSender<()>,
}

/// A listener that is to be open.
pub(crate) struct Wanted {
    pub(crate) key: Key,
    pub(crate) target: Target,
    /// The socket, if the worker does not have it yet.
    pub(crate) socket: Option<std::net::TcpListener>,
}

impl Worker {
    fn new(id: usize, shared: Shared) -> Worker {
        let plan = Rc::new(View(shared.state.plan_owned()));
        let seed = shared.state.seed() ^ (id as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Worker {
            id: counters::Worker(id),
            shared,
            pool: Pool::default(),
            plan: RefCell::new(plan),
            draw: Cell::new(seed | 1),
            wall: Cell::new(Now::default()),
            turn: Cell::new(None),
        }
    }

    /// When this turn of the event loop began.
    pub(crate) fn now(&self) -> Now {
        let began = runtime::instant();
        match self.turn.get() {
            Some((at, now)) if at == began => now,
            _ => {
                let now = self.both_clocks(began);
                self.turn.set(Some((began, now)));
                now
            }
        }
    }

    fn both_clocks(&self, at: Instant) -> Now {
        let mono = self.shared.clock.mono_at(at);
        carried_on(self.wall.get(), mono).unwrap_or_else(|| {
            let (read, unix_us) = self.shared.clock.now();
            let since = read.saturating_sub(mono).as_micros() as u64;
            self.wall.set(Now { mono, unix_us: unix_us.saturating_sub(since) });
            self.wall.get()
        })
    }

    /// The plan in force.
    pub(crate) fn plan(&self) -> Rc<View> {
        let mut held = self.plan.borrow_mut();
        if held.epoch != self.shared.state.epoch() {
            *held = Rc::new(View(self.shared.state.plan_owned()));
            near::let_go();
        }
        held.clone()
    }

    /// Whether the plan in force still has the frontend of a session that began with `plan`.
    pub(crate) fn still_has(&self, frontend: &Frontend, plan: &View) -> bool {
        plan.epoch == self.shared.state.epoch() || self.plan().frontend(frontend.name()).is_some()
    }

    /// A random number for balancing (xorshift).
    pub(crate) fn draw(&self) -> u64 {
        let mut x = self.draw.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.draw.set(x);
        x
    }
}

/// How long the wall clock is not looked at; less than a second.
const WALL_KEPT: Duration = Duration::from_millis(10);

/// Both clocks at `mono`, if the wall clock was read shortly before: it goes on with the other, and where
/// somebody sets it is noticed soon enough.
fn carried_on(read: Now, mono: Duration) -> Option<Now> {
    let since = mono.saturating_sub(read.mono);
    let unix_us = read.unix_us + u64::from(since.subsec_micros());
    (read.unix_us != 0 && since < WALL_KEPT).then_some(Now { mono, unix_us })
}

/// How long a worker's turn on a CPU is when others want it too.
const TURN: Duration = Duration::from_micros(100);

/// The body of a worker's thread.
pub(crate) fn run(id: usize, shared: Shared, orders: mpsc::Receiver<Order>, event_loop: EventLoop) {
    // Requests are short and many; peers are taught and raft is driven on the same CPUs.
    if let Err(e) = phalanx_sys::process::short_turns(TURN) {
        tracing::debug!("worker {id}: turns as long as the kernel likes: {e}");
    }
    crate::pipes::begin(shared.state.process());
    near::keep();
    if let Err(e) = event_loop.run(serve(Rc::new(Worker::new(id, shared)), orders)) {
        tracing::error!("worker {id}: {e}");
    }
}

/// How often what is idle for too long is looked for.
const PURGE: Duration = Duration::from_secs(1);

/// Carries out orders until the forwarder is gone; sessions run beside.
async fn serve(worker: Rc<Worker>, mut orders: mpsc::Receiver<Order>) {
    let mut listeners: HashMap<Key, Listener> = HashMap::new();
    spawn(crate::nursery::run());
    spawn(worker.shared.logs.clone().gather());
    spawn(purge(worker.clone()));
    while let Some(order) = orders.recv().await {
        carry_out(&worker, &mut listeners, order.listeners);
        drop(order.done);
    }
}

async fn purge(worker: Rc<Worker>) {
    loop {
        deadline::sleep(PURGE).await;
        worker.pool.purge();
        crate::pipes::purge();
    }
}

fn carry_out(worker: &Rc<Worker>, listeners: &mut HashMap<Key, Listener>, wanted: Vec<Wanted>) {
    let mut kept = HashMap::with_capacity(wanted.len());
    for wanted in wanted {
        match (listeners.remove(&wanted.key), wanted.socket) {
            (Some(listener), _) => {
                listener.retarget(wanted.target);
                kept.insert(wanted.key, listener);
            }
            (None, Some(socket)) => match Listener::start(worker, socket, wanted.target) {
                Ok(listener) => drop(kept.insert(wanted.key, listener)),
                Err(e) => {
                    tracing::error!("worker {}: cannot listen on {}: {e}", worker.id.0, wanted.key.addr)
                }
            },
            (None, None) => {}
        }
    }
    for (_, listener) in std::mem::replace(listeners, kept) {
        listener.close(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_goes_on_with_the_other_for_a_while() {
        let read = Now { mono: Duration::from_secs(7), unix_us: 1_700_000_000_999_000 };
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(carried_on(read, at(7000)), Some(read));
        let later = Now { mono: at(7009), unix_us: 1_700_000_001_008_000 };
        assert_eq!(carried_on(read, at(7009)), Some(later));
        assert_eq!(carried_on(read, at(7010)), None);
        assert_eq!(carried_on(Now::default(), at(1)), None, "it was never read");
    }
}
