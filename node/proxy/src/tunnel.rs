//! Full-duplex forwarding between a client and a server: TCP mode and upgraded connections.
//!
//! Each direction ends on its own (half-close); the tunnel ends when both have, when a side fails, or
//! when a side has been silent too long.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_config::Timeouts;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::state::sessions::Session;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::buffer::{Buffer, poll_fill, poll_write};
use crate::deadline::Deadline;

/// One direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    buf: Buffer,
    /// The sender has closed.
    eof: bool,
    /// The receiver has been told.
    shut: bool,
    full_reads: u8,
    /// Bytes written to the receiver.
    pub(crate) bytes: u64,
}

impl Pipe {
    /// A direction that begins with what `buf` holds; `eof` = its sender has closed already.
    pub(crate) fn new(buf: Buffer, eof: bool) -> Pipe {
        Pipe { buf, eof, shut: false, full_reads: 0, bytes: 0 }
    }

    /// Moves bytes as far as both sockets let it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        receiver_closed: bool,
    ) -> Result<Moved, Failure> {
        let mut moved = Moved::default();
        loop {
            let mut progress = false;
            if !self.eof && !self.buf.is_full() {
                match poll_fill(from, cx, &mut self.buf) {
                    Poll::Ready(Ok(0)) => {
                        self.eof = true;
                        progress = true;
                        moved.read = true;
                    }
                    Poll::Ready(Ok(_)) => {
                        progress = true;
                        moved.read = true;
                    }
                    Poll::Ready(Err(_)) => return Err(Failure::Sender),
                    Poll::Pending => {}
                }
            }
            let filled = self.buf.is_full();
            while !self.buf.is_empty() {
                match poll_write(to, cx, &[], self.buf.bytes()) {
                    Poll::Ready(Ok(n)) => {
                        self.buf.consume(n);
                        self.bytes += n as u64;
                        progress = true;
                        moved.written = true;
                    }
                    Poll::Ready(Err(_)) => return Err(Failure::Receiver),
                    Poll::Pending => break,
                }
            }
            // Two full buffers in a row: bulk data, which is cheaper in larger pieces.
            self.full_reads = if filled { self.full_reads.saturating_add(1) } else { 0 };
            if self.full_reads > 1 {
                self.buf.grow();
            }
            if self.eof && self.buf.is_empty() && !self.shut {
                self.shut = true;
                // Where the receiver has closed as well, the tunnel ends and close says it.
                if !receiver_closed {
                    let _ = Pin::new(&mut *to).poll_shutdown(cx);
                }
            }
            if self.shut || !progress {
                return Ok(moved);
            }
        }
    }

    /// Whether bytes wait for the receiver.
    fn blocked(&self) -> bool {
        !self.buf.is_empty()
    }
}

#[derive(Clone, Copy, Default)]
struct Moved {
    read: bool,
    written: bool,
}

enum Failure {
    Sender,
    Receiver,
}

/// The inactivity limits of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    client: Option<Duration>,
    server: Option<Duration>,
    client_fin: Option<Duration>,
    server_fin: Option<Duration>,
}

impl Limits {
    /// `timeout tunnel` supersedes `client` and `server` once both sides may talk at will.
    pub(crate) fn new(front: &Timeouts, back: &Timeouts) -> Limits {
        let tunnel = back.tunnel;
        let client = tunnel.or(front.client);
        let server = tunnel.or(back.server);
        Limits {
            client,
            server,
            client_fin: front.client_fin.or(client),
            server_fin: back.server_fin.or(server),
        }
    }
}

/// Forwards until the end and says what ended it.
pub(crate) fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    up: &mut Pipe,
    down: &mut Pipe,
    limits: Limits,
    deadline: &mut Deadline,
    session: &Session,
) -> impl Future<Output = End> {
    let mut client_seen = Instant::now();
    let mut server_seen = client_seen;
    poll_fn(move |cx| {
        if session.poll_killed(cx.waker()) {
            return Poll::Ready(End::new(session.kill_cause(), Phase::Data));
        }
        let (upward, downward) = match move_both(cx, client, server, up, down) {
            Ok(moved) => moved,
            Err(end) => return Poll::Ready(end),
        };
        if up.shut && down.shut {
            return Poll::Ready(End::NORMAL);
        }
        if upward.read || upward.written || downward.read || downward.written {
            let now = Instant::now();
            if upward.read || downward.written {
                client_seen = now;
            }
            if upward.written || downward.read {
                server_seen = now;
            }
        }
        let half = up.shut || down.shut;
        let limit = if half { limits.client_fin } else { limits.client };
        let client_end = limit.filter(|_| down.blocked() || !up.eof).map(|d| client_seen + d);
        let limit = if half { limits.server_fin } else { limits.server };
        let waits_for_server = up.blocked() || !(down.eof || down.blocked());
        let server_end = limit.filter(|_| waits_for_server).map(|d| server_seen + d);
        let first = match (client_end, server_end) {
            (Some(c), Some(s)) => Some(c.min(s)),
            (c, s) => c.or(s),
        };
        deadline.set_at(first);
        std::task::ready!(deadline.poll(cx));
        let cause = if client_end == first { Cause::ClientTimeout } else { Cause::ServerTimeout };
        Poll::Ready(End::new(cause, Phase::Data))
    })
}

fn move_both(
    cx: &mut Context<'_>,
    client: &mut TcpStream,
    server: &mut TcpStream,
    up: &mut Pipe,
    down: &mut Pipe,
) -> Result<(Moved, Moved), End> {
    let upward = up.poll(cx, client, server, down.shut).map_err(|f| {
        let cause = match f {
            Failure::Sender => Cause::ClientAbort,
            Failure::Receiver => Cause::ServerAbort,
        };
        End::new(cause, Phase::Data)
    })?;
    let downward = down.poll(cx, server, client, up.shut).map_err(|f| {
        let cause = match f {
            Failure::Sender => Cause::ServerAbort,
            Failure::Receiver => Cause::ClientAbort,
        };
        End::new(cause, Phase::Data)
    })?;
    Ok((upward, downward))
}
