//! One timer per connection, armed lazily.
//!
//! Timeouts are pushed back with every byte; a timer wheel entry need not be. The sleep stays armed
//! at the earliest moment it was ever asked for, and when it fires too early it is armed again for
//! what is left.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A moment that may be moved without touching the timer wheel.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The sleep has a waker of this task.
    polled: bool,
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
        self.at = at;
    }

    /// Ready once the moment has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() > at {
                    sleep.as_mut().reset(at);
                    self.polled = false;
                }
                sleep
            }
            None => self.sleep.insert(Box::pin(sleep_until(at))),
        };
        loop {
            if self.polled && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            if sleep.as_mut().poll(cx).is_pending() {
                self.polled = true;
                return Poll::Pending;
            }
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
            self.polled = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn the_last_setting_counts_whether_later_or_earlier() {
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
}
