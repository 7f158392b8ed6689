//! A client's socket, which the event loop hears of only when there is something to wait for.
//!
//! Under load a request has arrived by the time its connection is accepted, and the answer is sent before
//! the client does anything else: such a connection never has to be waited for, which spares two system
//! calls and what the event loop keeps for it. A socket is read and written directly as long as that goes;
//! the first time that it would block it is handed to the event loop, for good.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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

    /// Ready when a read may bring something; a socket that nobody watches is simply read.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            State::Watched(stream) => stream.poll_read_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Fresh(socket) => Some(socket.as_fd()),
            State::Watched(stream) => Some(stream.as_fd()),
            State::Lost => None,
        }
    }

    /// Tries `act` on a fresh socket; hands the socket over if it would block. `None` = it is watched.
    fn direct(
        &mut self,
        mut act: impl FnMut(&mut &std::net::TcpStream) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        while let State::Fresh(socket) = &self.0 {
            match act(&mut &*socket) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                result => return Some(result),
            }
        }
        self.watch().err().map(Err)
    }

    fn poll_on(
        &mut self,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.watch() {
            Ok(stream) => poll(Pin::new(stream)),
            Err(e) => Poll::Ready(Err(e)),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.direct(|socket| socket.read(buf.initialize_unfilled())) {
            Some(Ok(n)) => {
                buf.advance(n);
                return Poll::Ready(Ok(()));
            }
            Some(Err(e)) => return Poll::Ready(Err(e)),
            None => {}
        }
        match this.watch() {
            Ok(stream) => Pin::new(stream).poll_read(cx, buf),
            Err(e) => Poll::Ready(Err(e)),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.direct(|socket| socket.write(buf)) {
            Some(result) => Poll::Ready(result),
            None => this.poll_on(|stream| stream.poll_write(cx, buf)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.direct(|socket| socket.write_vectored(bufs)) {
            Some(result) => Poll::Ready(result),
            None => this.poll_on(|stream| stream.poll_write_vectored(cx, bufs)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (std::net::TcpStream, Stream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = phalanx_sys::net::accept(&listener).unwrap();
        (client, Stream::new(socket))
    }

    #[tokio::test]
    async fn only_who_waits_is_watched() {
        let (mut client, mut stream) = pair();
        client.write_all(b"ping").unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
        assert!(!stream.is_watched(), "there was nothing to wait for");
        client.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"pong");
        let reading = tokio::task::spawn(async move {
            let mut buf = [0; 4];
            stream.read_exact(&mut buf).await.map(|_| (stream.is_watched(), buf))
        });
        tokio::task::yield_now().await;
        client.write_all(b"late").unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), (true, *b"late"));
    }

    #[tokio::test]
    async fn a_write_that_would_block_waits_for_room() {
        let (mut client, mut stream) = pair();
        let sent = vec![7; 32 << 20];
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            client.read_to_end(&mut received).map(|_| received.len())
        });
        stream.write_all(&sent).await.unwrap();
        assert!(stream.is_watched());
        stream.shutdown().await.unwrap();
        assert_eq!(reading.join().unwrap().unwrap(), sent.len());
    }
}
