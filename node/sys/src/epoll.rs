//! `epoll(7)`: waiting for many descriptors at once, and a bell that other threads can ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
pub use rustix::event::epoll::EventFlags as Flags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// Events taken at once, as many as HAProxy takes by default (`tune.maxpollevents`).
const EVENTS: usize = 200;

/// A set of descriptors.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// Room for what comes at once.
pub struct Events(Vec<Event>);

impl Default for Events {
    fn default() -> Events {
        Events(Vec::with_capacity(EVENTS))
    }
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> io::Result<Epoll> {
        Ok(Epoll(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor, whose events come with `token`. It leaves the set by itself when the last
    /// duplicate of it is closed.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, flags: Flags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), flags)?)
    }

    /// Asks for other events of a descriptor that is in it.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, flags: Flags) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token), flags)?)
    }

    /// Takes a descriptor out; needed only where duplicates of it live on.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits until something has come, at most for `limit`, to the millisecond above; without one for as
    /// long as it takes. Hands out tokens and what came; a signal ends the wait with nothing. Whether there was
    /// no room for more, which is there at the next call.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`.
    pub fn wait(
        &self,
        limit: Option<Duration>,
        Events(events): &mut Events,
        mut each: impl FnMut(u64, Flags),
    ) -> io::Result<bool> {
        events.clear();
        let limit = limit.map(|limit| {
            let ms = limit.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i64;
            Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 }
        });
        match epoll::wait(&self.0, spare_capacity(events), limit.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        for event in events.iter() {
            each(event.data.u64(), event.flags);
        }
        Ok(events.len() == events.capacity())
    }
}

/// Ends the wait of a thread that has it in its [`Epoll`].
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell that nobody hears yet.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Has `epoll` hear it, from now on.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn tell(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        // Each ring is an edge of its own: it need not be read.
        epoll.add(self.0.as_fd(), token, Flags::IN | Flags::ET)
    }

    /// Rings it.
    pub fn ring(&self) {
        // It would fail after 2^64 rings.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn all(epoll: &Epoll, limit: Option<Duration>) -> Vec<(u64, Flags)> {
        let mut seen = Vec::new();
        epoll.wait(limit, &mut Events::default(), |token, flags| seen.push((token, flags))).unwrap();
        seen
    }

    #[test]
    fn a_bell_rings_across_threads_each_time() {
        let (bell, epoll) = (Bell::new().unwrap(), Epoll::new().unwrap());
        bell.tell(&epoll, 7).unwrap();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| bell.ring());
                assert_eq!(all(&epoll, None), [(7, Flags::IN)]);
            });
            assert_eq!(all(&epoll, Some(Duration::ZERO)), []);
        }
    }

    #[test]
    fn what_was_asked_for_comes_with_its_token_until_the_close() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(server.as_fd(), u64::MAX, Flags::IN | Flags::ET).unwrap();
        assert_eq!(all(&epoll, Some(Duration::ZERO)), []);
        client.write_all(b"x").unwrap();
        assert_eq!(all(&epoll, None), [(u64::MAX, Flags::IN)]);
        assert_eq!(all(&epoll, Some(Duration::from_micros(1))), [], "an edge comes once");
        epoll.modify(server.as_fd(), 3, Flags::OUT | Flags::ET).unwrap();
        assert_eq!(all(&epoll, None), [(3, Flags::OUT)]);
        epoll.remove(server.as_fd()).unwrap();
        epoll.add(server.as_fd(), 4, Flags::IN).unwrap();
        drop(server);
        assert_eq!(all(&epoll, Some(Duration::ZERO)), []);
    }
}
