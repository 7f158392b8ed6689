//! A client's socket, which the event loop hears of only when there is something to wait for.
//!
//! Under load a request has arrived by the time its connection is accepted, and the answer is sent before
//! the client does anything else: such a connection never has to be waited for, which spares two system
//! calls and what the event loop keeps for it. A socket is read and written directly as long as that goes;
//! the first time that it would block it is handed to the event loop, for good.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::task::coop::poll_proceed;

use crate::buffer::{Buffer, Socket};

/// The socket.
#[derive(Debug)]
pub(crate) struct Stream(State);

#[derive(Debug)]
enum State {
    /// Unknown to the event loop.
    Fresh(std::net::TcpStream),
    /// Known to it.
    Watched(TcpStream),
    /// The event loop did not take it: closed.
    Lost,
}

impl Stream {
    /// A non-blocking socket just accepted.
    pub(crate) fn new(socket: std::net::TcpStream) -> Stream {
        Stream(State::Fresh(socket))
    }

    /// Whether the event loop wakes who waits for it.
    pub(crate) fn is_watched(&self) -> bool {
        !matches!(self.0, State::Fresh(_))
    }

    /// The socket as the event loop knows it, which hears of it now at the latest.
    pub(crate) fn watch(&mut self) -> io::Result<&mut TcpStream> {
        if let State::Fresh(_) = self.0
            && let State::Fresh(socket) = std::mem::replace(&mut self.0, State::Lost)
        {
            self.0 = State::Watched(TcpStream::from_std(socket)?);
        }
        match &mut self.0 {
            State::Watched(stream) => Ok(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Reads what is there, without waiting.
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            State::Fresh(socket) => (&*socket).read(buf),
            State::Watched(stream) => stream.try_read(buf),
            State::Lost => Ok(0),
        }
    }

    /// Reads what is there into an empty buffer, without waiting; 0 = the client has closed.
    pub(crate) fn try_fill(&self, buf: &mut Buffer) -> io::Result<usize> {
        let Some(socket) = self.socket() else { return Ok(0) };
        Ok(buf.fill(socket)?.0)
    }

    /// The close is to be a reset.
    pub(crate) fn reset_on_close(&self) {
        if let Some(socket) = self.socket() {
            // A connection that is gone can't be told.
            let _ = phalanx_sys::net::reset_on_close(&socket);
        }
    }

    /// What is sent from now on gets no further than this many routers.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        let _ = match &self.0 {
            State::Fresh(socket) => socket.set_ttl(ttl),
            State::Watched(stream) => stream.set_ttl(ttl),
            State::Lost => Ok(()),
        };
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Fresh(socket) => Some(socket.as_fd()),
            State::Watched(stream) => Some(stream.as_fd()),
            State::Lost => None,
        }
    }

    /// Tries `act` on a fresh socket; hands the socket over if it would block. `None` = it is watched.
    fn direct<T>(
        &mut self,
        mut act: impl FnMut(&mut &std::net::TcpStream) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        while let State::Fresh(socket) = &self.0 {
            match act(&mut &*socket) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                result => return Some(result),
            }
        }
        self.watch().err().map(Err)
    }
}

impl Socket for Stream {
    fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        if let State::Watched(stream) = &mut self.0 {
            return stream.poll_io(cx, interest, act);
        }
        // A client that always has something must not keep the others waiting.
        ready!(poll_proceed(cx)).made_progress();
        match self.direct(|socket| act(socket.as_fd())) {
            Some(result) => Poll::Ready(result.map(|(moved, _)| moved)),
            None => self.watch()?.poll_io(cx, interest, act),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.direct(|socket| socket.write(buf)) {
            Some(result) => Poll::Ready(result),
            None => Pin::new(this.watch()?).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            State::Fresh(socket) => Poll::Ready(socket.shutdown(std::net::Shutdown::Write)),
            State::Watched(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Lost => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::buffer::{poll_fill, poll_write};

    fn pair() -> (std::net::TcpStream, Stream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = phalanx_sys::net::accept(&listener).unwrap();
        (client, Stream::new(socket))
    }

    /// One read.
    async fn read(stream: &mut Stream) -> Vec<u8> {
        let mut buf = Buffer::new(64);
        let n = poll_fn(|cx| poll_fill(stream, cx, &mut buf)).await.unwrap();
        assert_eq!(n, buf.len());
        buf.bytes().to_vec()
    }

    #[tokio::test]
    async fn only_who_waits_is_watched() {
        let (mut client, mut stream) = pair();
        client.write_all(b"ping").unwrap();
        assert_eq!(read(&mut stream).await, b"ping");
        stream.write_all(b"pong").await.unwrap();
        assert!(!stream.is_watched(), "there was nothing to wait for");
        let mut buf = [0; 4];
        client.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"pong");
        let reading = tokio::task::spawn(async move {
            let late = read(&mut stream).await;
            (stream.is_watched(), late, read(&mut stream).await)
        });
        tokio::task::yield_now().await;
        client.write_all(b"late").unwrap();
        tokio::task::yield_now().await;
        drop(client);
        assert_eq!(reading.await.unwrap(), (true, b"late".to_vec(), Vec::new()));
    }

    #[tokio::test]
    async fn a_write_that_would_block_waits_for_room() {
        let (mut client, mut stream) = pair();
        let sent: Vec<u8> = (0..=250).cycle().take(32 << 20).collect();
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            client.read_to_end(&mut received).map(|_| received)
        });
        let (mut head, mut body) = sent.split_at(8 << 20);
        while !body.is_empty() {
            let n = poll_fn(|cx| poll_write(&mut stream, cx, head, body, false)).await.unwrap();
            let of_head = n.min(head.len());
            (head, body) = (&head[of_head..], &body[n - of_head..]);
        }
        assert!(stream.is_watched());
        stream.shutdown().await.unwrap();
        assert!(reading.join().unwrap().unwrap() == sent, "arrived otherwise than it was sent");
    }

    #[tokio::test]
    async fn who_never_has_to_wait_gives_way_all_the_same() {
        let (mut client, mut stream) = pair();
        client.write_all(&[7; 4096]).unwrap();
        let mut buf = Buffer::new(1);
        let others = tokio::task::spawn(async {});
        for _ in 0..4096 {
            buf.consume(1);
            poll_fn(|cx| poll_fill(&mut stream, cx, &mut buf)).await.unwrap();
        }
        assert!(!stream.is_watched() && others.is_finished());
    }
}
