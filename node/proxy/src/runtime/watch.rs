//! A descriptor that the loop waits for.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, Waker};

use phalanx_sys::epoll::{Epoll, Flags};

use super::sources::{NONE, Side, Source, Sources};
use super::with_work;

thread_local! {
    static SOURCES: RefCell<Sources> = const { RefCell::new(Sources::new()) };
}

/// What the thread's loop knows of a descriptor; nothing at first. It forgets it when this is dropped, and the
/// kernel when the descriptor is closed.
#[derive(Debug)]
pub(crate) struct Watch(Cell<u32>);

impl Watch {
    /// The loop does not know it yet.
    pub(crate) const fn new() -> Watch {
        Watch(Cell::new(NONE))
    }

    /// Whether the loop knows it.
    pub(crate) fn is_set(&self) -> bool {
        self.0.get() != NONE
    }

    /// Has the loop know of `fd`, which cannot be read from as far as is known; `writable` = it can be written
    /// to.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`; the thread has no loop.
    pub(crate) fn set(&self, fd: BorrowedFd<'_>, writable: bool) -> io::Result<()> {
        if self.is_set() {
            return Ok(());
        }
        let (place, token) = SOURCES.with_borrow_mut(|sources| {
            let place = sources.add();
            let source = sources.get(place);
            source.set_ready(Side::Write, writable);
            source.asks_writable = !writable;
            (place, sources.token(place))
        });
        self.0.set(place);
        let result = control(|epoll| epoll.add(fd, token, flags(!writable)));
        if result.is_err() {
            self.forget();
        }
        result
    }

    /// Ready if a call may be made, as far as is known; otherwise the task is woken when it may.
    pub(crate) fn poll_ready(&self, cx: &Context<'_>, side: Side) -> Poll<Ready> {
        let place = self.0.get();
        if place == NONE {
            return Poll::Ready(Ready::Call);
        }
        SOURCES.with_borrow_mut(|sources| {
            let source = sources.get(place);
            let ready = Ready::of(source, side);
            if ready.is_none() {
                source.wait(side, cx.waker());
            }
            ready.map_or(Poll::Pending, Poll::Ready)
        })
    }

    /// What is known of a side; `None` = a call would block.
    pub(crate) fn ready(&self, side: Side) -> Option<Ready> {
        match self.0.get() {
            NONE => Some(Ready::Call),
            place => SOURCES.with_borrow_mut(|sources| Ready::of(sources.get(place), side)),
        }
    }

    /// Whether the other end is known to send no more than is there.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.is_set() && SOURCES.with_borrow_mut(|sources| sources.get(self.0.get()).is_closed())
    }

    /// A call has moved less than it could have.
    pub(crate) fn drained(&self, side: Side) {
        if self.is_set() {
            SOURCES.with_borrow_mut(|sources| sources.get(self.0.get()).drained(side));
        }
    }

    /// A call would have blocked; nobody waits for it.
    pub(crate) fn spent(&self, side: Side) {
        if self.is_set() {
            SOURCES.with_borrow_mut(|sources| sources.get(self.0.get()).set_ready(side, false));
        }
    }

    /// A call would have blocked: the task is woken when it may be made again.
    ///
    /// # Errors
    /// As [`set`](Watch::set).
    pub(crate) fn blocked(&self, fd: BorrowedFd<'_>, cx: &Context<'_>, side: Side) -> io::Result<()> {
        // The kernel tells at once of what has come since.
        self.set(fd, side == Side::Read)?;
        let place = self.0.get();
        let ask = SOURCES.with_borrow_mut(|sources| {
            let source = sources.get(place);
            source.set_ready(side, false);
            source.wait(side, cx.waker());
            let ask = side == Side::Write && !std::mem::replace(&mut source.asks_writable, true);
            ask.then(|| sources.token(place))
        });
        match ask {
            Some(token) => control(|epoll| epoll.modify(fd, token, flags(true))),
            None => Ok(()),
        }
    }

    /// Ends it also where the descriptor has duplicates, which live on.
    pub(crate) fn end(&self, fd: BorrowedFd<'_>) {
        if self.is_set() {
            // It is in the set, or the loop has ended.
            let _ = control(|epoll| epoll.remove(fd));
            self.forget();
        }
    }

    fn forget(&self) {
        let place = self.0.replace(NONE);
        if place != NONE {
            // The thread may be ending.
            let _ = SOURCES.try_with(|sources| sources.borrow_mut().remove(place));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.forget();
    }
}

/// What is known of a side that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A call may be made.
    Call,
    /// It would say that this is the end.
    Ended,
}

impl Ready {
    fn of(source: &Source, side: Side) -> Option<Ready> {
        let ended = side == Side::Read && source.is_ended();
        source.is_ready(side).then_some(if ended { Ready::Ended } else { Ready::Call })
    }
}

/// Of writability the kernel is asked only once it has been waited for: it would tell of it with each new
/// connection.
fn flags(writable: bool) -> Flags {
    let all = Flags::IN | Flags::PRI | Flags::RDHUP | Flags::ET;
    if writable { all | Flags::OUT } else { all }
}

fn control(act: impl FnOnce(&Epoll) -> io::Result<()>) -> io::Result<()> {
    with_work(|work| act(&work.source.epoll))
        .unwrap_or_else(|| Err(io::Error::other("no event loop on this thread")))
}

/// The kernel says something of a descriptor: adds who is to be woken.
pub(super) fn heard(token: u64, flags: Flags, woken: &mut Vec<Waker>) {
    let [reader, writer] = SOURCES.with_borrow_mut(|sources| sources.heard(token, flags));
    woken.extend(reader);
    woken.extend(writer);
}
