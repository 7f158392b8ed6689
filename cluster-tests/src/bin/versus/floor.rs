//! The least that a proxy has to ask of this kernel in cases a, b1, b2 and d-connect: what nobody can save.
//!
//! One thread and one epoll on the same sockets under the same load. Bytes go on as they are; nothing of them
//! is looked at but where a message ends. There are no timers, no errors told, no choice of servers, no
//! counters, no log: only what no proxy can leave out, in the order that takes the fewest system calls and
//! packets. Must never do what a proxy with all that could not. Works where a connect is over when the call
//! returns, as it is on loopback.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use memchr::memmem;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, connect, recv, send,
    socket_with, sockopt,
};

use crate::cases::Case;
use crate::generator::SMALL;

/// What it does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Both sides are kept.
    Kept,
    /// The client's is closed after a response.
    Pooled,
    /// Both are.
    Closed,
    /// Bytes, until the server ends.
    Tcp,
}

const HOWS: [(&str, How); 4] =
    [("a", How::Kept), ("b1", How::Pooled), ("b2", How::Closed), ("d-connect", How::Tcp)];

fn how(case: &str) -> Option<How> {
    HOWS.iter().find(|(id, _)| *id == case).map(|(_, how)| *how)
}

/// Whether there is one for a case.
pub(crate) fn has(case: &Case) -> bool {
    how(case.id).is_some()
}

/// Is the proxy of a case, until it is killed.
///
/// # Errors
/// The words are not a case, where to listen and where the server is; or the kernel does not give what it takes.
pub(crate) fn run(words: &[String]) -> Result<(), String> {
    let [case, web, origin] = words else { return Err("CASE WEB ORIGIN".into()) };
    let how = how(case).ok_or_else(|| format!("there is no floor for case {case}"))?;
    let addr = |word: &String| word.parse::<SocketAddr>().map_err(|e| format!("{word}: {e}"));
    let serve = Floor::new(how, addr(web)?, addr(origin)?).and_then(|mut floor| floor.serve());
    serve.map_err(|e| e.to_string())
}

/// One connection; its place is its descriptor.
struct End {
    socket: OwnedFd,
    /// The other side of what it carries.
    peer: Option<usize>,
    is_server: bool,
    watched: bool,
    /// Bytes of a response that are to come.
    left: usize,
}

struct Floor {
    how: How,
    origin: SocketAddr,
    listener: TcpListener,
    epoll: Epoll,
    ends: Vec<Option<End>>,
    /// Connections to the server that carry nothing.
    idle: Vec<usize>,
    buf: Vec<u8>,
}

const NEW: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
const LISTENER: u64 = u64::MAX;

impl Floor {
    fn new(how: How, web: SocketAddr, origin: SocketAddr) -> io::Result<Floor> {
        let listener = TcpListener::bind(web)?;
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
        listener.set_nonblocking(true)?;
        // Connections inherit it.
        sockopt::set_tcp_quickack(&listener, false)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let (ends, idle, buf) = (Vec::new(), Vec::new(), vec![0; 16 * 1024]);
        Ok(Floor { how, origin, listener, epoll, ends, idle, buf })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => 0,
                result => result?,
            };
            for event in &events[..count] {
                if event.data() == LISTENER {
                    self.accept()?;
                } else {
                    self.readable(event.data() as usize, event.events().contains(EpollFlags::EPOLLRDHUP))?;
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        // One, and the kernel speaks of the next: an accept that finds none costs more than a look at all.
        match accept_with(&self.listener, NEW) {
            Ok(socket) => {
                let client = self.place(socket, false);
                // What it begins with has mostly come with it.
                self.readable(client, false)
            }
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn place(&mut self, socket: OwnedFd, is_server: bool) -> usize {
        let at = socket.as_raw_fd() as usize;
        if self.ends.len() <= at {
            self.ends.resize_with(at + 1, || None);
        }
        self.ends[at] = Some(End { socket, peer: None, is_server, watched: false, left: 0 });
        at
    }

    /// One read. `ended`: it is known that there is no more after what is there.
    fn readable(&mut self, at: usize, ended: bool) -> io::Result<()> {
        // Gone in the same batch, maybe.
        let Some(Some(end)) = self.ends.get(at) else { return Ok(()) };
        match recv(&end.socket, self.buf.as_mut_slice(), RecvFlags::empty()) {
            Err(Errno::AGAIN) => self.watch(at),
            Ok((_, 0)) | Err(_) => {
                self.end(at);
                Ok(())
            }
            Ok((_, n)) if end.is_server => {
                self.down(at, n, ended);
                Ok(())
            }
            Ok((_, n)) => self.up(at, n),
        }
    }

    /// What a client sent to its server, or to one that is free.
    fn up(&mut self, client: usize, n: usize) -> io::Result<()> {
        if self.how != How::Tcp && memmem::find(&self.buf[..n], b"\r\n\r\n").is_none() {
            return Err(io::Error::other("a head in pieces"));
        }
        if self.how == How::Kept {
            self.watch(client)?;
        }
        let peer = self.ends[client].as_ref().and_then(|end| end.peer);
        let server = match peer.or_else(|| self.idle.pop()) {
            Some(server) => server,
            None => self.connect()?,
        };
        let [Some(one), Some(other)] =
            self.ends.get_disjoint_mut([client, server]).map_err(io::Error::other)?
        else {
            return Err(io::Error::other("a side that is gone"));
        };
        (one.peer, other.peer) = (Some(server), Some(client));
        if send(&other.socket, &self.buf[..n], SendFlags::NOSIGNAL) != Ok(n) {
            self.end(client);
            return Ok(());
        }
        self.watch(server)
    }

    /// What a server sent to its client; with the last of it both know what comes of them.
    fn down(&mut self, server: usize, n: usize, ended: bool) {
        let Some(end) = &mut self.ends[server] else { return };
        let bytes = &self.buf[..n];
        if self.how != How::Tcp && end.left == 0 {
            let head = memmem::find(bytes, b"\r\n\r\n").unwrap_or(n);
            end.left = head + 4 + SMALL as usize;
        }
        end.left = end.left.saturating_sub(n);
        let last = if self.how == How::Tcp { ended } else { end.left == 0 };
        let Some(client) = end.peer else { return self.end(server) };
        let closes = last && self.how != How::Kept;
        // The end goes with the last bytes.
        let flags = if closes { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
        let sent = self.ends[client].as_ref().map(|client| send(&client.socket, bytes, flags));
        if sent != Some(Ok(n)) || closes && self.how != How::Pooled {
            return self.end(server);
        }
        if last {
            self.part(server, client);
            self.idle.push(server);
            if closes {
                self.ends[client] = None;
            }
        }
    }

    fn part(&mut self, one: usize, other: usize) {
        for at in [one, other] {
            if let Some(end) = &mut self.ends[at] {
                end.peer = None;
            }
        }
    }

    fn connect(&mut self) -> io::Result<usize> {
        let family = if self.origin.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, NEW, None)?;
        // What there is to send goes with the end of the handshake.
        sockopt::set_tcp_quickack(&socket, false)?;
        match connect(&socket, &self.origin) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(self.place(socket, true)),
            Err(e) => Err(e.into()),
        }
    }

    /// Has the kernel say when there is something to read: once, for as long as it is open.
    fn watch(&mut self, at: usize) -> io::Result<()> {
        let Some(end) = &mut self.ends[at] else { return Ok(()) };
        if end.watched {
            return Ok(());
        }
        end.watched = true;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(&end.socket, EpollEvent::new(flags, at as u64))?)
    }

    /// Closes it and what it is joined with: that ends the kernel's watch, too.
    fn end(&mut self, at: usize) {
        self.idle.retain(|idle| *idle != at);
        if let Some(peer) = self.ends[at].take().and_then(|end| end.peer) {
            self.ends[peer] = None;
        }
    }
}
