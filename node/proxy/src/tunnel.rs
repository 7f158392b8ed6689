//! Full-duplex forwarding between a client and a server: TCP mode and upgraded connections.
//!
//! Each direction ends on its own (half-close); the tunnel ends when both have, when a side fails, or
//! when a side has been silent too long.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_config::Timeouts;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::state::sessions::Session;

use crate::buffer::{Buffer, poll_fill, poll_write};
use crate::deadline::Deadline;
use crate::pipes::{Conduit, Filled};
use crate::runtime;
use crate::stream::Stream;

/// Pieces moved in one turn: others want theirs.
const PIECES: u32 = 16;

/// One direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    buf: Buffer,
    /// What goes past the buffer, while that is empty.
    conduit: Conduit,
    /// The sender has closed.
    eof: bool,
    /// The receiver has been told.
    shut: bool,
    /// Bytes written to the receiver.
    pub(crate) bytes: u64,
}

impl Pipe {
    /// A direction that begins with what `buf` holds; `eof` = its sender has closed already.
    pub(crate) fn new(buf: Buffer, eof: bool, conduit: Conduit) -> Pipe {
        Pipe { buf, conduit, eof, shut: false, bytes: 0 }
    }

    /// Bytes that were spliced.
    pub(crate) fn spliced(&self) -> u64 {
        self.conduit.bytes
    }

    /// Moves bytes as far as both sockets let it, or a turn's worth.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        receiver_closed: bool,
    ) -> Result<Moved, Failure> {
        let mut moved = Moved::default();
        for _ in 0..PIECES {
            moved.progress = false;
            if !self.eof && self.conduit.is_empty() {
                self.receive(cx, from, &mut moved)?;
                // The end is often there with the last bytes: the receiver is to get it with them, too.
                if !self.eof
                    && !self.buf.is_empty()
                    && !self.buf.is_full()
                    && let Err(failure) = self.receive(cx, from, &mut moved)
                {
                    let _ = self.send(cx, to, &mut moved);
                    return Err(failure);
                }
            }
            self.send(cx, to, &mut moved)?;
            if self.eof && !self.blocked() && !self.shut {
                self.shut = true;
                // Where the receiver has closed as well, the tunnel ends and close says it.
                if !receiver_closed {
                    to.end_sending();
                }
            }
            if self.shut || !moved.progress {
                break;
            }
        }
        if moved.progress && !self.shut {
            cx.waker().wake_by_ref();
        }
        self.conduit.rest();
        Ok(moved)
    }

    /// One piece from the sender.
    fn receive(&mut self, cx: &mut Context<'_>, from: &Stream, moved: &mut Moved) -> Result<(), Failure> {
        if self.buf.is_empty() && self.conduit.wanted(0) {
            match self.conduit.poll_fill(cx, from, u64::MAX) {
                Poll::Ready(Ok(Filled::Copy)) => {}
                Poll::Ready(Ok(filled)) => {
                    self.eof = filled == Filled::End;
                    (moved.read, moved.progress) = (true, true);
                    return Ok(());
                }
                Poll::Ready(Err(_)) => return Err(Failure::Sender),
                Poll::Pending => return Ok(()),
            }
        }
        if self.buf.is_full() {
            return Ok(());
        }
        if self.conduit.is_bulk() {
            self.buf.grow();
        }
        match poll_fill(from, cx, &mut self.buf) {
            Poll::Ready(Ok(n)) => {
                self.eof = n == 0;
                (moved.read, moved.progress) = (true, true);
            }
            Poll::Ready(Err(_)) => return Err(Failure::Sender),
            Poll::Pending => return Ok(()),
        }
        self.conduit.copied(self.buf.is_full());
        Ok(())
    }

    /// What there is to the receiver.
    fn send(&mut self, cx: &mut Context<'_>, to: &Stream, moved: &mut Moved) -> Result<(), Failure> {
        while self.blocked() {
            let sent = if self.conduit.is_empty() {
                poll_write(to, cx, &[], self.buf.bytes(), self.eof)
            } else {
                self.conduit.poll_drain(cx, to)
            };
            match sent {
                Poll::Ready(Ok(n)) => {
                    // Nothing, if it went through the pipe: then the buffer is empty.
                    self.buf.consume(n);
                    self.bytes += n as u64;
                    (moved.written, moved.progress) = (true, true);
                }
                Poll::Ready(Err(_)) => return Err(Failure::Receiver),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Whether bytes wait for the receiver.
    fn blocked(&self) -> bool {
        !self.buf.is_empty() || !self.conduit.is_empty()
    }
}

#[derive(Clone, Copy, Default)]
struct Moved {
    read: bool,
    written: bool,
    /// In the last piece.
    progress: bool,
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
    client: &Stream,
    server: &Stream,
    up: &mut Pipe,
    down: &mut Pipe,
    limits: Limits,
    deadline: &mut Deadline,
    session: &Session,
) -> impl Future<Output = End> {
    let mut client_seen = runtime::instant();
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
            let now = runtime::instant();
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
    client: &Stream,
    server: &Stream,
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::buffer::SIZE;
    use crate::deadline::within;
    use crate::runtime::{block_on, yield_now};

    /// Connected sockets, the first of them outside of the event loop.
    fn pair() -> (std::net::TcpStream, Stream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, Stream::new(near))
    }

    #[test]
    fn bulk_that_is_copied_goes_in_large_pieces() {
        let ((mut client, from), (_server, to)) = (pair(), pair());
        let writer = std::thread::spawn(move || while client.write_all(&[0; 65536]).is_ok() {});
        let mut pipe = Pipe::new(Buffer::new(SIZE), false, Conduit::default());
        // Nobody reads: in the end the buffer is full.
        let grows = poll_fn(|cx| {
            assert!(pipe.poll(cx, &from, &to, false).is_ok());
            if pipe.buf.len() > SIZE { Poll::Ready(()) } else { Poll::Pending }
        });
        block_on(within(Duration::from_secs(10), grows)).unwrap().expect("the buffer grows");
        drop((from, to));
        writer.join().unwrap();
    }

    /// Waits until a connection is known to have ended.
    async fn ended(stream: &Stream) {
        stream.watch().unwrap();
        while !stream.is_closed() {
            yield_now().await;
        }
    }

    #[test]
    fn the_end_goes_with_the_last_bytes() {
        let ((mut client, from), (mut server, to)) = (pair(), pair());
        client.write_all(b"last").unwrap();
        drop(client);
        let mut pipe = Pipe::new(Buffer::new(SIZE), false, Conduit::default());
        let mut turns = 0;
        let test = async {
            ended(&from).await;
            poll_fn(|cx| {
                turns += 1;
                assert!(pipe.poll(cx, &from, &to, false).is_ok());
                if pipe.shut { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        };
        block_on(test).unwrap();
        assert_eq!((turns, pipe.bytes), (1, 4));
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"last");
    }

    #[test]
    fn what_came_before_a_reset_is_passed_on() {
        let ((mut client, from), (mut server, to)) = (pair(), pair());
        client.write_all(b"last").unwrap();
        phalanx_sys::net::reset_on_close(&client).unwrap();
        drop(client);
        let mut pipe = Pipe::new(Buffer::new(SIZE), false, Conduit::default());
        let test = async {
            ended(&from).await;
            poll_fn(|cx| match pipe.poll(cx, &from, &to, false) {
                Ok(_) if pipe.shut => Poll::Ready(false),
                Ok(_) => Poll::Pending,
                Err(failure) => Poll::Ready(matches!(failure, Failure::Sender)),
            })
            .await
        };
        assert!(block_on(test).unwrap());
        drop(to);
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"last");
    }
}
