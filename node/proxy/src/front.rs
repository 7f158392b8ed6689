//! The client's side of a session: its socket, what it has sent ahead, and the one timer.

use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::buffer::{Buffer, poll_fill};
use crate::deadline::Deadline;

/// A client connection.
pub(crate) struct Front {
    pub(crate) stream: TcpStream,
    /// Bytes received and not yet used.
    pub(crate) buf: Buffer,
    /// The client has closed its side.
    pub(crate) eof: bool,
    /// Part of a request was left unread: the close must linger.
    pub(crate) abandoned: bool,
    pub(crate) deadline: Deadline,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
}

/// What reading ahead found out about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It closed its side; it may still read.
    HalfClosed,
    /// Its connection failed.
    Reset,
}

impl Front {
    /// Ready when the client closes or fails; what it sends meanwhile is kept, up to a buffer full.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        while !self.eof && !self.buf.is_full() {
            match poll_fill(&mut self.stream, cx, &mut self.buf) {
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

    /// Whether a client that is gone ends the session while it waits for a server: a reset does, a
    /// half-close only with `option abortonclose`.
    pub(crate) fn poll_abort(&mut self, cx: &mut Context<'_>, abortonclose: bool) -> Poll<()> {
        match self.poll_gone(cx) {
            Poll::Ready(Gone::Reset) => Poll::Ready(()),
            Poll::Ready(Gone::HalfClosed) if abortonclose => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}
