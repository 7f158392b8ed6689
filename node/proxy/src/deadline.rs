//! One timer per connection, armed lazily.
//!
//! Timeouts are pushed back with every byte; the entry in the thread's [`wheel`] need not be. It stays
//! armed at the earliest moment that was ever asked for, and when that comes too early it is armed again
//! for what is left. The event loop has one timer for all of them, which [`run`] keeps: one of its own for
//! each connection takes four times as much memory.

mod wheel;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::wheel::Wheel;

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
    /// When [`run`] looks next.
    looks: Cell<u64>,
    /// That is too late.
    earlier: Arc<Notify>,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { wheel: RefCell::new(Wheel::new()), looks: Cell::new(NEVER), earlier: Arc::default() }
    }
}

impl Timers {
    /// Has [`run`] look by then.
    fn look_by(&self, tick: u64) {
        if tick < self.looks.get() {
            self.looks.set(tick);
            self.earlier.notify_one();
        }
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
        self.set_from(Instant::now(), after);
    }

    /// Expires so long from `now`; never with `None`.
    pub(crate) fn set_from(&mut self, now: Instant, after: Option<Duration>) {
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
                None if since_start(Instant::now()) >= self.at => return Poll::Ready(()),
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

/// Wakes those of this thread whose moment has come, as long as it runs.
pub(crate) async fn run() {
    let earlier = TIMERS.with(|timers| timers.earlier.clone());
    let mut sleep = pin!(sleep_until(*START));
    loop {
        let mut due = Vec::new();
        let next = TIMERS.with(|timers| {
            let mut wheel = timers.wheel.borrow_mut();
            wheel.advance(since_start(Instant::now()) / NANOS_PER_TICK, |waker| due.push(waker));
            let next = wheel.next();
            timers.looks.set(next.unwrap_or(NEVER));
            next
        });
        due.into_iter().for_each(Waker::wake);
        let mut heard = pin!(earlier.notified());
        let at = next.and_then(|tick| START.checked_add(Duration::from_millis(tick)));
        if let Some(at) = at {
            sleep.as_mut().reset(at);
        }
        poll_fn(|cx| {
            let slept = at.is_some() && sleep.as_mut().poll(cx).is_ready();
            if heard.as_mut().poll(cx).is_ready() || slept { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_setting_counts_whether_later_or_earlier() {
        tokio::spawn(run());
        let start = Instant::now();
        let mut deadline = Deadline::default();
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
        assert!(start.elapsed() < Duration::from_secs(100));
    }

    #[tokio::test]
    async fn many_of_one_thread_come_in_order() {
        tokio::spawn(run());
        let mut tasks = Vec::new();
        for nth in (0..50_u64).rev() {
            tasks.push(tokio::spawn(async move {
                let (start, after) = (Instant::now(), Duration::from_millis(3 * nth));
                let mut deadline = Deadline::default();
                deadline.set_from(start, Some(after));
                poll_fn(|cx| deadline.poll(cx)).await;
                assert!(start.elapsed() >= after);
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(30), task).await.expect("it comes").unwrap();
        }
        let left = TIMERS.with(|timers| timers.wheel.borrow().next());
        assert_eq!(left, None, "who is gone leaves nothing");
    }

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Deadline>(), 16);
    }
}
