//! Read buffers, pooled per thread.
//!
//! A buffer owns memory only while it holds bytes or is being read into, so an idle connection costs
//! none. Memory is zeroed once, when it is first allocated; after that it goes round through the
//! thread's pool.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use phalanx_sys::net;

use crate::runtime::Side;
use crate::stream::Stream;

/// Default size, `tune.bufsize`.
pub(crate) const SIZE: usize = 16 * 1024;
/// Size that a stream of full reads grows to.
pub(crate) const LARGE: usize = 128 * 1024;
/// Buffers kept per thread, of [`SIZE`] and texts; as many requests are often under way at once.
const KEPT: usize = 256;
/// Buffers of [`LARGE`] kept per thread.
const LARGE_KEPT: usize = 64;

thread_local! {
    #[allow(clippy::vec_box, reason = "moved as pointers")]
    static POOL: RefCell<Vec<Box<Held>>> = const { RefCell::new(Vec::new()) };
    #[allow(clippy::vec_box, reason = "moved as pointers")]
    static LARGE_POOL: RefCell<Vec<Box<Held>>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read and not yet used.
#[derive(Debug)]
pub(crate) struct Buffer {
    // A pointer alone: an idle connection has one of these.
    held: Option<Box<Held>>,
    size: u32,
}

/// Memory with bytes in it.
#[derive(Debug)]
struct Held {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Held {
    fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Space to read into.
    fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.end == self.data.len() {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.data[self.end..]
    }
}

impl Buffer {
    /// A buffer without memory.
    pub(crate) fn new(size: usize) -> Buffer {
        Buffer { held: None, size: u32::try_from(size).unwrap_or(u32::MAX) }
    }

    /// The bytes held.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.held.as_ref().map_or(&[], |held| held.bytes())
    }

    /// The bytes held, to be changed in place.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.held.as_mut().map_or(&mut [], |held| &mut held.data[held.start..held.end])
    }

    /// How many bytes are held.
    pub(crate) fn len(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.end - held.start)
    }

    /// Whether none are held.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// How many bytes are read ahead at most.
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// Whether nothing more is to be read.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.size()
    }

    /// Forgets the first `n` bytes; gives the memory back when none are left.
    pub(crate) fn consume(&mut self, n: usize) {
        if let Some(held) = &mut self.held {
            held.start += n.min(held.end - held.start);
            if held.start == held.end {
                self.release();
            }
        }
    }

    /// Lets reads become larger: for bulk data.
    pub(crate) fn grow(&mut self) {
        if self.is_empty() && self.size < LARGE as u32 {
            self.size = LARGE as u32;
        }
    }

    /// Takes back what [`grow`](Buffer::grow) did. More bytes may be held already.
    pub(crate) fn shrink(&mut self, size: usize) {
        self.size = self.size.min(u32::try_from(size).unwrap_or(u32::MAX));
    }

    /// Reads once: how many bytes, of how many there was space for.
    pub(crate) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
        let held = self.held.get_or_insert_with(|| take(self.size as usize));
        let space = held.space();
        let (result, room) = (net::recv(from, space), space.len());
        held.end += *result.as_ref().unwrap_or(&0);
        if held.start == held.end {
            self.release();
        }
        Ok((result?, room))
    }

    fn release(&mut self) {
        if let Some(mut held) = self.held.take() {
            (held.start, held.end) = (0, 0);
            give(held);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

fn take(size: usize) -> Box<Held> {
    let pool = if size == LARGE { &LARGE_POOL } else { &POOL };
    let pooled = pool.with_borrow_mut(Vec::pop);
    let fresh = || Box::new(Held { data: vec![0; size].into_boxed_slice(), start: 0, end: 0 });
    pooled.filter(|held| held.data.len() == size).unwrap_or_else(fresh)
}

fn give(held: Box<Held>) {
    let (pool, kept) = if held.data.len() == LARGE { (&LARGE_POOL, LARGE_KEPT) } else { (&POOL, KEPT) };
    // The thread may be ending, its pools gone.
    let _ = pool.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < kept {
            pool.push(held);
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

/// Reads what is there into `buf`; 0 = the peer has closed.
///
/// Memory is kept only if something was read, and the caller must not call this with a full buffer.
pub(crate) fn poll_fill(socket: &Stream, cx: &mut Context<'_>, buf: &mut Buffer) -> Poll<io::Result<usize>> {
    debug_assert!(!buf.is_full());
    socket.poll_io(cx, Side::Read, |fd| buf.fill(fd))
}

/// Writes the bytes of `head` and then those of `body` with one system call. `last` = once they are written
/// the caller ends this direction at once, without waiting for anything: the end goes with them.
pub(crate) fn poll_write(
    socket: &Stream,
    cx: &mut Context<'_>,
    head: &[u8],
    body: &[u8],
    last: bool,
) -> Poll<io::Result<usize>> {
    let asked = head.len() + body.len();
    socket.poll_io(cx, Side::Write, |fd| Ok((net::send(fd, head, body, last)?, asked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts bytes in as a read does.
    fn put(buf: &mut Buffer, bytes: &[u8]) {
        let held = buf.held.get_or_insert_with(|| take(buf.size as usize));
        held.space()[..bytes.len()].copy_from_slice(bytes);
        held.end += bytes.len();
    }

    #[test]
    fn memory_is_held_only_while_there_are_bytes() {
        let mut buf = Buffer::new(64);
        assert!(buf.bytes().is_empty() && buf.held.is_none());
        put(&mut buf, b"abc");
        buf.consume(1);
        assert_eq!(buf.bytes(), b"bc");
        buf.consume(2);
        assert!(buf.held.is_none());
        assert_eq!(POOL.with_borrow(Vec::len), 1);
        assert_eq!(size_of::<Buffer>(), 16);
    }

    #[test]
    fn bytes_move_to_the_front_when_the_end_is_reached() {
        let mut buf = Buffer::new(8);
        put(&mut buf, b"12345678");
        assert!(buf.is_full());
        buf.consume(6);
        assert!(!buf.is_full());
        assert_eq!(buf.held.as_mut().unwrap().space().len(), 6);
        assert_eq!(buf.bytes(), b"78");
    }

    #[test]
    fn what_has_grown_shrinks_again() {
        let mut buf = Buffer::new(SIZE);
        buf.grow();
        put(&mut buf, &[7; SIZE + 1]);
        buf.shrink(SIZE);
        assert!(buf.is_full() && buf.len() == SIZE + 1, "what is held stays");
        buf.consume(2);
        assert!(!buf.is_full());
        assert!(!buf.held.as_mut().unwrap().space().is_empty());
        buf.consume(SIZE);
        put(&mut buf, b"x");
        assert_eq!(buf.held.as_ref().unwrap().data.len(), SIZE);
    }
}
