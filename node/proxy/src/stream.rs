//! A TCP connection of a session, of which the event loop hears only when there is something to wait for.
//!
//! Under load a request has arrived by the time its connection is accepted, and the answer is sent before
//! the client does anything else: such a connection never has to be waited for, which spares a system
//! call and what the event loop keeps for it. A socket is read and written directly as long as that goes;
//! the first time that it would block the event loop hears of it, for good.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use phalanx_sys::net;

use crate::buffer::{Buffer, poll_write};
use crate::runtime::{Ready, Side, Watch, poll_call};

/// A non-blocking socket.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    watch: Watch,
    /// `TCP_NODELAY` is to be set before anything more is sent.
    delays: Cell<bool>,
}

impl Stream {
    /// A connection that the event loop does not know.
    pub(crate) fn new(socket: TcpStream) -> Stream {
        Stream { socket, watch: Watch::new(), delays: Cell::new(false) }
    }

    /// As [`new`](Stream::new), of a connection without `TCP_NODELAY`: what is sent first, if it fits into a
    /// packet, goes out at once all the same, and mostly nothing follows it.
    pub(crate) fn delayed(socket: TcpStream) -> Stream {
        Stream { delays: Cell::new(true), ..Stream::new(socket) }
    }

    /// Whether the event loop wakes who waits for it.
    pub(crate) fn is_watched(&self) -> bool {
        self.watch.is_set()
    }

    /// Has the event loop know it now, to be woken by what comes: nothing has until now.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn watch(&self) -> io::Result<()> {
        self.watch.set(self.socket.as_fd(), true)
    }

    /// As [`watch`](Stream::watch), of a connection that is being established.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(crate) fn watch_connecting(&self) -> io::Result<()> {
        self.watch.set(self.socket.as_fd(), false)
    }

    /// Waits until it is established.
    ///
    /// # Errors
    /// Why it was not.
    pub(crate) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.watch.poll_ready(cx, Side::Write));
        Poll::Ready(self.socket.take_error().and_then(|error| error.map_or(Ok(()), Err)))
    }

    /// Does `act` once, waiting as long as the socket would block. It gives how many bytes it moved, and
    /// how many it would have.
    pub(crate) fn poll_io(
        &self,
        cx: &mut Context<'_>,
        side: Side,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        if ready!(self.watch.poll_ready(cx, side)) == Ready::Ended {
            return Poll::Ready(Ok(0));
        }
        // Who always has something must not keep the others waiting.
        ready!(poll_call(cx));
        if side == Side::Write && self.delays.replace(false) {
            // A connection that is gone can't be told.
            let _ = self.socket.set_nodelay(true);
        }
        loop {
            match act(self.socket.as_fd()) {
                Ok((moved, asked)) => {
                    // There is no more, which spares the call that would say so.
                    if 0 < moved && moved < asked {
                        self.watch.drained(side);
                    }
                    return Poll::Ready(Ok(moved));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.watch.blocked(self.socket.as_fd(), cx, side)?;
                    return Poll::Pending;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Reads what is there, without waiting; 0 = the other end has closed. Without a system call where the
    /// event loop knows that there is nothing.
    ///
    /// # Errors
    /// Those of `recv(2)`: `WouldBlock` when there is nothing.
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.watch.ready(Side::Read) {
            None => return Err(io::ErrorKind::WouldBlock.into()),
            Some(Ready::Ended) => return Ok(0),
            Some(Ready::Call) => {}
        }
        let read = net::recv(&self.socket, buf);
        match &read {
            Ok(n) if 0 < *n && *n < buf.len() => self.watch.drained(Side::Read),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.watch.spent(Side::Read),
            _ => {}
        }
        read
    }

    /// As [`try_read`](Stream::try_read), also what has come since the event loop looked.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub(crate) fn read_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        net::recv(&self.socket, buf)
    }

    /// As [`read_now`](Stream::read_now), into a buffer.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub(crate) fn fill_now(&self, buf: &mut Buffer) -> io::Result<usize> {
        Ok(buf.fill(self.socket.as_fd())?.0)
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// The connection failed.
    pub(crate) async fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        poll_fn(|cx| {
            while !rest.is_empty() {
                let sent = ready!(poll_write(self, cx, rest, &[], false))?;
                rest = &rest[sent..];
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end_sending(&self) {
        // A connection that is gone can't be told.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The close is to be a reset.
    pub(crate) fn reset_on_close(&self) {
        // A connection that is gone can't be told.
        let _ = net::reset_on_close(&self.socket);
    }

    /// What is sent from now on gets no further than this many routers.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        let _ = self.socket.set_ttl(ttl);
    }

    /// Whether the other end is known to send no more than is there.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.watch.is_closed()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::rc::Rc;

    use super::*;
    use crate::buffer::poll_fill;
    use crate::runtime::{block_on, spawn, yield_now};

    fn pair() -> (TcpStream, Stream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = net::accept(&listener).unwrap();
        (client, Stream::new(socket))
    }

    /// One read.
    async fn read(stream: &Stream) -> Vec<u8> {
        let mut buf = Buffer::new(64);
        let n = poll_fn(|cx| poll_fill(stream, cx, &mut buf)).await.unwrap();
        assert_eq!(n, buf.len());
        buf.bytes().to_vec()
    }

    #[test]
    fn only_who_waits_is_watched() {
        let (mut client, stream) = pair();
        let (done, finished) = tokio::sync::oneshot::channel();
        let test = async {
            client.write_all(b"ping").unwrap();
            assert_eq!(read(&stream).await, b"ping");
            stream.send_all(b"pong").await.unwrap();
            assert!(!stream.is_watched(), "there was nothing to wait for");
            let mut buf = [0; 4];
            client.read_exact(&mut buf).unwrap();
            assert_eq!(&buf, b"pong");
            spawn(async move {
                let late = read(&stream).await;
                let _ = done.send((stream.is_watched(), late, read(&stream).await));
            });
            yield_now().await;
            client.write_all(b"late").unwrap();
            yield_now().await;
            drop(client);
            finished.await.unwrap()
        };
        assert_eq!(block_on(test).unwrap(), (true, b"late".to_vec(), Vec::new()));
    }

    #[test]
    fn what_is_watched_is_asked_only_when_something_has_come() {
        let (mut client, stream) = pair();
        let test = async {
            stream.watch().unwrap();
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            client.write_all(b"ping").unwrap();
            assert!(stream.try_read(&mut [0; 8]).is_err(), "nobody has said so");
            let mut buf = Buffer::new(2);
            assert_eq!(stream.fill_now(&mut buf).unwrap(), 2, "who must know asks the kernel");
            assert_eq!(stream.read_now(&mut [0; 1]).unwrap(), 1);
            while stream.try_read(&mut [0; 8]).is_err() {
                yield_now().await;
            }
            client.write_all(b"last").unwrap();
            drop(client);
            while !stream.is_closed() {
                yield_now().await;
            }
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 4);
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0, "its end is not forgotten");
        };
        block_on(test).unwrap();
    }

    #[test]
    fn what_is_sent_later_is_not_held_back() {
        let (client, _stream) = pair();
        client.set_nonblocking(true).unwrap();
        let stream = Stream::delayed(client);
        block_on(async {
            assert!(!stream.socket.nodelay().unwrap());
            stream.send_all(b"second").await.unwrap();
            assert!(stream.socket.nodelay().unwrap());
        })
        .unwrap();
    }

    /// All that comes, and whether its end was known before a call said so.
    async fn rest(stream: &Stream) -> (Vec<u8>, bool) {
        stream.watch().unwrap();
        while !stream.is_closed() {
            yield_now().await;
        }
        let mut all = Vec::new();
        loop {
            let known = stream.watch.ready(Side::Read) == Some(Ready::Ended);
            match read(stream).await {
                last if last.is_empty() => return (all, known),
                more => all.extend(more),
            }
        }
    }

    #[test]
    fn an_end_that_came_with_the_last_bytes_is_known() {
        let (mut client, stream) = pair();
        client.write_all(b"last").unwrap();
        drop(client);
        assert_eq!(block_on(rest(&stream)).unwrap(), (b"last".to_vec(), true));
    }

    #[test]
    fn urgent_data_are_no_end() {
        let (mut client, stream) = pair();
        client.write_all(b"before").unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(b"behind").unwrap();
        drop(client);
        assert_eq!(block_on(rest(&stream)).unwrap(), (b"beforebehind".to_vec(), false));
    }

    #[test]
    fn what_is_behind_urgent_data_does_not_wait_for_more() {
        let (mut client, stream) = pair();
        let test = async {
            stream.watch().unwrap();
            client.write_all(b"before").unwrap();
            socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
            client.write_all(b"behind").unwrap();
            let mut all = Vec::new();
            while all.len() < 12 {
                all.extend(read(&stream).await);
            }
            all
        };
        let all = block_on(crate::deadline::within(std::time::Duration::from_secs(10), test)).unwrap();
        assert_eq!(all.as_deref(), Some(&b"beforebehind"[..]));
    }

    #[test]
    fn a_write_that_would_block_waits_for_room() {
        let (mut client, stream) = pair();
        let sent: Vec<u8> = (0..=250).cycle().take(32 << 20).collect();
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            client.read_to_end(&mut received).map(|_| received)
        });
        let test = async {
            let (mut head, mut body) = sent.split_at(8 << 20);
            while !body.is_empty() {
                let n = poll_fn(|cx| poll_write(&stream, cx, head, body, false)).await.unwrap();
                let of_head = n.min(head.len());
                (head, body) = (&head[of_head..], &body[n - of_head..]);
            }
            assert!(stream.is_watched());
            stream.end_sending();
        };
        block_on(test).unwrap();
        assert!(reading.join().unwrap().unwrap() == sent, "arrived otherwise than it was sent");
    }

    #[test]
    fn who_never_has_to_wait_gives_way_all_the_same() {
        let (mut client, stream) = pair();
        client.write_all(&[7; 4096]).unwrap();
        let others = Rc::new(Cell::new(false));
        let ran = others.clone();
        let test = async {
            let mut buf = Buffer::new(1);
            spawn(async move { ran.set(true) });
            for _ in 0..4096 {
                buf.consume(1);
                poll_fn(|cx| poll_fill(&stream, cx, &mut buf)).await.unwrap();
            }
            assert!(!stream.is_watched() && others.get());
        };
        block_on(test).unwrap();
    }

    #[test]
    fn a_connection_that_is_refused_says_so() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let test = async {
            // The kernel may say it at once.
            let Ok(socket) = net::Connect::default().start(closed) else {
                return io::ErrorKind::ConnectionRefused;
            };
            let stream = Stream::new(socket);
            stream.watch_connecting().unwrap();
            poll_fn(|cx| stream.poll_connected(cx)).await.unwrap_err().kind()
        };
        assert_eq!(block_on(test).unwrap(), io::ErrorKind::ConnectionRefused);
    }
}
