//! One timer per connection, armed lazily.
//!
//! Timeouts are pushed back with every byte; the entry in the thread's [`wheel`] need not be. It stays
//! armed at the earliest moment that was ever asked for, and when that comes too early it is armed again
//! for what is left. The event loop calls [`wake_due`] in each of its turns.

mod wheel;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use self::wheel::Wheel;
use crate::runtime;

/// The beginning of time. Shorter than an [`Instant`]: an idle connection has one of these.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// At no time.
const NEVER: u64 = u64::MAX;
/// No entry.
const UNARMED: u32 = u32::MAX;
const NANOS_PER_TICK: u64 = 1_000_000;

thread_local! {
    static TIMERS: Timers = Timers::default();
}

struct Timers {
    /// In milliseconds since the start.
    wheel: RefCell<Wheel<Waker>>,
    /// Nothing is due before.
    looks: Cell<u64>,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { wheel: RefCell::new(Wheel::new()), looks: Cell::new(NEVER) }
    }
}

impl Timers {
    /// Something is due then.
    fn look_by(&self, tick: u64) {
        self.looks.set(self.looks.get().min(tick));
    }
}

/// A moment that may be moved without touching the wheel.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// In nanoseconds since the start.
    at: u64,
    /// Number of its entry.
    key: u32,
}

impl Default for Deadline {
    fn default() -> Deadline {
        Deadline { at: NEVER, key: UNARMED }
    }
}

impl Deadline {
    /// Expires so long from now; never with `None`.
    pub(crate) fn set(&mut self, after: Option<Duration>) {
        self.set_from(runtime::instant(), after);
    }

    /// Expires so long from `now`; never with `None`.
    fn set_from(&mut self, now: Instant, after: Option<Duration>) {
        self.set_at(after.and_then(|d| now.checked_add(d)));
    }

    /// Expires at this moment; never with `None`.
    pub(crate) fn set_at(&mut self, at: Option<Instant>) {
        self.at = at.map_or(NEVER, since_start);
    }

    /// Ready once the moment has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.at == NEVER {
            return Poll::Pending;
        }
        let tick = self.at.div_ceil(NANOS_PER_TICK);
        TIMERS.with(|timers| {
            let mut wheel = timers.wheel.borrow_mut();
            match wheel.due(self.key) {
                Some(due) if due <= tick => return Poll::Pending,
                Some(_) => wheel.move_to(self.key, tick),
                None if since_start(runtime::instant()) >= self.at => return Poll::Ready(()),
                None if self.key == UNARMED => self.key = wheel.add(tick, cx.waker().clone()),
                None => wheel.renew(self.key, tick, cx.waker().clone()),
            }
            drop(wheel);
            timers.look_by(tick);
            Poll::Pending
        })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if self.key != UNARMED {
            // The thread may be ending, its timers gone. A waker is dropped with nothing borrowed.
            let _ = TIMERS.try_with(|timers| {
                let waker = timers.wheel.borrow_mut().remove(self.key);
                drop(waker);
            });
        }
    }
}

fn since_start(at: Instant) -> u64 {
    at.saturating_duration_since(*START).as_nanos() as u64
}

/// How long it is at least until one of this thread has come; `None` = there are none.
pub(crate) fn until_next() -> Option<Duration> {
    let next = TIMERS.with(|timers| timers.looks.get());
    let at = (next != NEVER).then(|| next * NANOS_PER_TICK);
    at.map(|at| Duration::from_nanos(at.saturating_sub(since_start(Instant::now()))))
}

/// Wakes those of this thread whose moment has come.
pub(crate) fn wake_due() {
    TIMERS.with(|timers| {
        if timers.looks.get() == NEVER {
            return;
        }
        let tick = since_start(runtime::instant()) / NANOS_PER_TICK;
        if tick < timers.looks.get() {
            return;
        }
        let mut due = Vec::new();
        let mut wheel = timers.wheel.borrow_mut();
        wheel.advance(tick, |waker| due.push(waker));
        timers.looks.set(wheel.next().unwrap_or(NEVER));
        drop(wheel);
        due.into_iter().for_each(Waker::wake);
    })
}

/// Waits.
pub(crate) async fn sleep(time: Duration) {
    let mut deadline = Deadline::default();
    deadline.set(Some(time));
    poll_fn(|cx| deadline.poll(cx)).await;
}

/// What a future comes to, if it does within this time.
pub(crate) async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    let mut deadline = Deadline::default();
    deadline.set(Some(time));
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll(cx).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::runtime::{block_on, spawn, yield_now};

    #[test]
    fn the_last_setting_counts_whether_later_or_earlier() {
        let start = Instant::now();
        let mut deadline = Deadline::default();
        let test = async {
            deadline.set(Some(Duration::from_millis(10)));
            poll_fn(|cx| {
                assert!(deadline.poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            deadline.set(Some(Duration::from_millis(50)));
            poll_fn(|cx| deadline.poll(cx)).await;
            assert!(start.elapsed() >= Duration::from_millis(50));
            deadline.set(Some(Duration::from_secs(100)));
            poll_fn(|cx| {
                assert!(deadline.poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            deadline.set(Some(Duration::from_millis(20)));
            poll_fn(|cx| deadline.poll(cx)).await;
        };
        block_on(test).unwrap();
        assert!(start.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn many_of_one_thread_come_in_order() {
        const MANY: u64 = 50;
        let came = Rc::new(RefCell::new(Vec::new()));
        let test = async {
            for nth in (0..MANY).rev() {
                let came = came.clone();
                spawn(async move {
                    let (start, after) = (Instant::now(), Duration::from_millis(3 * nth));
                    let mut deadline = Deadline::default();
                    deadline.set_from(start, Some(after));
                    poll_fn(|cx| deadline.poll(cx)).await;
                    assert!(start.elapsed() >= after);
                    came.borrow_mut().push(nth);
                });
                yield_now().await;
            }
            while came.borrow().len() < MANY as usize {
                sleep(Duration::from_millis(1)).await;
            }
        };
        block_on(within(Duration::from_secs(30), test)).unwrap().expect("they come");
        assert!(came.borrow().is_sorted_by_key(|nth| *nth));
        let left = TIMERS.with(|timers| timers.wheel.borrow().next());
        assert_eq!(left, None, "who is gone leaves nothing");
    }

    #[test]
    fn what_takes_too_long_is_dropped() {
        let test = async {
            assert_eq!(within(Duration::from_secs(30), async { 7 }).await, Some(7));
            assert_eq!(within(Duration::from_millis(1), std::future::pending::<()>()).await, None);
        };
        block_on(test).unwrap();
    }

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Deadline>(), 16);
    }
}
