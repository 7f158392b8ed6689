//! Read buffers, pooled per thread.
//!
//! A buffer owns memory only while it holds bytes or is being read into, so an idle connection costs
//! none. Memory is zeroed once, when it is first allocated; after that it goes round through the
//! thread's pool.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use phalanx_sys::net;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Default size, `tune.bufsize`.
pub(crate) const SIZE: usize = 16 * 1024;
/// Size that a stream of full reads grows to.
pub(crate) const LARGE: usize = 128 * 1024;
/// Buffers kept per thread, of [`SIZE`] and texts; as many requests are often under way at once.
const KEPT: usize = 256;
/// Buffers of [`LARGE`] kept per thread.
const LARGE_KEPT: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LARGE_POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read and not yet used.
#[derive(Debug)]
pub(crate) struct Buffer {
    data: Option<Box<[u8]>>,
    // Shorter than pointers: an idle connection has one of these.
    start: u32,
    end: u32,
    size: u32,
}

impl Buffer {
    /// A buffer without memory.
    pub(crate) fn new(size: usize) -> Buffer {
        Buffer { data: None, start: 0, end: 0, size: u32::try_from(size).unwrap_or(u32::MAX) }
    }

    /// The bytes held.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |d| &d[self.start as usize..self.end as usize])
    }

    /// The bytes held, to be changed in place.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.as_mut().map_or(&mut [], |d| &mut d[self.start as usize..self.end as usize])
    }

    /// How many bytes are held.
    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether none are held.
    pub(crate) fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether nothing more fits in, even after moving the bytes to the front.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.size as usize
    }

    /// Forgets the first `n` bytes; gives the memory back when none are left.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n.min(self.len()) as u32;
        if self.is_empty() {
            self.release();
        }
    }

    /// Lets reads become larger: for bulk data.
    pub(crate) fn grow(&mut self) {
        if self.is_empty() && self.size < LARGE as u32 {
            self.release();
            self.size = LARGE as u32;
        }
    }

    /// Space to read into.
    fn space(&mut self) -> &mut [u8] {
        if self.data.is_none() {
            self.data = Some(take(self.size as usize));
        }
        let data = self.data.get_or_insert_default();
        if self.start > 0 && self.end as usize == data.len() {
            data.copy_within(self.start as usize..self.end as usize, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut data[self.end as usize..]
    }

    /// Reads once: how many bytes, of how many there was space for.
    pub(crate) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
        let space = self.space();
        let (result, room) = (net::recv(from, space), space.len());
        self.end += *result.as_ref().unwrap_or(&0) as u32;
        if self.is_empty() {
            self.release();
        }
        Ok((result?, room))
    }

    fn release(&mut self) {
        self.start = 0;
        self.end = 0;
        if let Some(data) = self.data.take() {
            give(data);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

fn take(size: usize) -> Box<[u8]> {
    let pool = if size == LARGE { &LARGE_POOL } else { &POOL };
    let pooled = pool.with_borrow_mut(Vec::pop);
    pooled.filter(|d| d.len() == size).unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

fn give(data: Box<[u8]>) {
    let (pool, kept) = if data.len() == LARGE { (&LARGE_POOL, LARGE_KEPT) } else { (&POOL, KEPT) };
    // The thread may be ending, its pools gone.
    let _ = pool.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < kept {
            pool.push(data);
        }
    });
}

/// A growing text from the thread's pool: heads on their way out, log lines. Empty when taken.
#[derive(Debug, Default)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    /// An empty text, with memory if the pool has some.
    pub(crate) fn take() -> Text {
        Text(TEXTS.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl std::ops::Deref for Text {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for Text {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if self.0.capacity() == 0 || self.0.capacity() > SIZE {
            return;
        }
        let mut text = std::mem::take(&mut self.0);
        text.clear();
        let _ = TEXTS.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(text);
            }
        });
    }
}

/// What [`poll_fill`] and [`poll_write`] work on.
pub(crate) trait Socket {
    /// Does `act` once, waiting as long as the socket would block. It gives how many bytes it moved, and
    /// how many it would have.
    fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        act: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>>;
}

impl Socket for TcpStream {
    fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        loop {
            // Also what makes a task that never has to wait give way.
            if interest.is_readable() {
                ready!(self.poll_read_ready(cx))?;
            }
            let mut moved = 0;
            let result = self.try_io(interest, || {
                let asked;
                (moved, asked) = act(self.as_fd())?;
                // There is no more, which spares the call that would say so.
                if 0 < moved && moved < asked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match result {
                Err(e) if moved == 0 && e.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(e)),
                Err(_) if moved == 0 => {}
                _ => return Poll::Ready(Ok(moved)),
            }
            if interest.is_writable() {
                ready!(self.poll_write_ready(cx))?;
            }
        }
    }
}

/// Reads what is there into `buf`; 0 = the peer has closed.
///
/// Memory is kept only if something was read, and the caller must not call this with a full buffer.
pub(crate) fn poll_fill(
    socket: &mut impl Socket,
    cx: &mut Context<'_>,
    buf: &mut Buffer,
) -> Poll<io::Result<usize>> {
    debug_assert!(!buf.is_full());
    socket.poll_io(cx, Interest::READABLE, |fd| buf.fill(fd))
}

/// Writes the bytes of `head` and then those of `body` with one system call. `last` = once they are written
/// the caller ends this direction at once, without waiting for anything: the end goes with them.
pub(crate) fn poll_write(
    socket: &mut impl Socket,
    cx: &mut Context<'_>,
    head: &[u8],
    body: &[u8],
    last: bool,
) -> Poll<io::Result<usize>> {
    let asked = head.len() + body.len();
    socket.poll_io(cx, Interest::WRITABLE, |fd| Ok((net::send(fd, head, body, last)?, asked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_held_only_while_there_are_bytes() {
        let mut buf = Buffer::new(64);
        assert!(buf.bytes().is_empty() && buf.data.is_none());
        buf.space()[..3].copy_from_slice(b"abc");
        buf.end += 3;
        buf.consume(1);
        assert_eq!(buf.bytes(), b"bc");
        buf.consume(2);
        assert!(buf.data.is_none());
        assert_eq!(POOL.with_borrow(Vec::len), 1);
    }

    #[test]
    fn bytes_move_to_the_front_when_the_end_is_reached() {
        let mut buf = Buffer::new(8);
        buf.space().copy_from_slice(b"12345678");
        buf.end = 8;
        assert!(buf.is_full());
        buf.consume(6);
        assert!(!buf.is_full());
        assert_eq!(buf.space().len(), 6);
        assert_eq!(buf.bytes(), b"78");
    }
}
