//! The client's side of a session: its socket, what it has sent ahead, and the one timer.

use std::io;
use std::task::{Context, Poll};

use crate::buffer::{Buffer, poll_fill};
use crate::deadline::Deadline;
use crate::nursery;
use crate::stream::Stream;

/// A client connection.
pub(crate) struct Front {
    pub(crate) stream: Stream,
    /// Bytes received and not yet used.
    pub(crate) buf: Buffer,
    /// The client has closed its side.
    pub(crate) eof: bool,
    /// Part of a request was left unread: the close must linger.
    pub(crate) abandoned: bool,
    /// It has said that it sends nothing more.
    pub(crate) said_last: bool,
    pub(crate) deadline: Deadline,
    /// At the end of which it is watched if it is not until then.
    round: u32,
}

/// None yet.
const NO_ROUND: u32 = u32::MAX;

/// What reading ahead found out about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It closed its side; it may still read.
    HalfClosed,
    /// Its connection failed.
    Reset,
}

impl Front {
    /// A connection just accepted.
    pub(crate) fn new(stream: Stream, bufsize: usize) -> Front {
        Front {
            stream,
            buf: Buffer::new(bufsize),
            eof: false,
            abandoned: false,
            said_last: false,
            deadline: Deadline::default(),
            round: NO_ROUND,
        }
    }

    /// Takes what a client has sent already. Its end is left to whoever waits for it, and will be there again.
    ///
    /// # Errors
    /// Its connection failed.
    pub(crate) fn take_first(&mut self) -> io::Result<()> {
        if self.stream.is_watched() || !self.buf.is_empty() {
            return Ok(());
        }
        match self.stream.fill_now(&mut self.buf) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether the client has sent more, of which the event loop may not have told yet.
    pub(crate) fn has_more(&mut self) -> bool {
        !self.buf.is_empty() || self.stream.fill_now(&mut self.buf).is_ok_and(|n| n > 0)
    }

    /// Ready when the client closes or fails; what it sends meanwhile is kept, up to a buffer full.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        while !self.eof && !self.buf.is_full() {
            match poll_fill(&self.stream, cx, &mut self.buf) {
                Poll::Ready(Ok(0)) => {
                    self.eof = true;
                    return Poll::Ready(Gone::HalfClosed);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => {
                    self.eof = true;
                    return Poll::Ready(Gone::Reset);
                }
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// As [`poll_gone`](Front::poll_gone), of a client that waits for its answer: one that is not watched is
    /// looked at only after a while.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.eof || self.stream.is_watched() {
            return self.poll_gone(cx);
        }
        if self.round == NO_ROUND {
            self.round = nursery::enter(cx.waker());
        }
        if nursery::is_over(self.round) { self.poll_gone(cx) } else { Poll::Pending }
    }

    /// Whether a client that is gone ends the session while it waits for a server: a reset does, a
    /// half-close only with `option abortonclose`.
    pub(crate) fn poll_abort(&mut self, cx: &mut Context<'_>, abortonclose: bool) -> Poll<()> {
        match self.poll_left(cx) {
            Poll::Ready(Gone::Reset) => Poll::Ready(()),
            Poll::Ready(Gone::HalfClosed) if abortonclose => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}
