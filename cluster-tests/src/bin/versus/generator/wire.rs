//! A non-blocking connection of the generator: bytes in and out at the least cost.
//!
//! What need not be looked at is thrown away inside the kernel, and large bodies go out of a file's pages:
//! generator and origin share one CPU, and whatever they save lets them load the proxy to its limit.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, recv, send};
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

use super::tls::Session;

/// `MSG_MORE`, which nix has no name for.
const MORE: MsgFlags = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);

/// One connection.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<Session>),
}

impl Wire {
    /// One that was accepted.
    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Wire::Plain(stream))
    }

    /// Begins to connect; over loopback it is mostly connected when this returns.
    pub(crate) fn connect(
        target: SocketAddr,
        source: Option<IpAddr>,
        tls: Option<ClientConnection>,
    ) -> io::Result<Wire> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), None)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            Err(e) => return Err(e),
        }
        let stream = socket.into();
        Ok(match tls {
            None => Wire::Plain(stream),
            Some(state) => Wire::Tls(Box::new(Session { stream, state })),
        })
    }

    /// Sends what was taken and has not gone out; whether some is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        match self {
            Wire::Plain(_) => Ok(false),
            Wire::Tls(session) => session.flush(),
        }
    }

    /// Whether it is TLS that took up an earlier connection's keys.
    pub(crate) fn resumed(&self) -> bool {
        matches!(self, Wire::Tls(session) if session.resumed())
    }

    /// Sends some; 0 when nothing can be sent now. `more` follows at once.
    pub(crate) fn send(&mut self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let flags = if more { MsgFlags::MSG_NOSIGNAL | MORE } else { MsgFlags::MSG_NOSIGNAL };
        let stream = match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(session) => return session.send(bytes),
        };
        settle(send(stream.as_raw_fd(), bytes, flags).map_err(io::Error::from))
    }

    /// Sends some of a file from `offset`, on plain connections only; 0 when nothing can be sent now.
    pub(crate) fn send_file(&mut self, file: &File, offset: u64, most: u64) -> io::Result<usize> {
        let mut offset = offset as i64;
        settle(sendfile64(&*self, file, Some(&mut offset), most as usize).map_err(io::Error::from))
    }

    /// Reads some; `None` when there is nothing now, 0 at the end.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Wire::Plain(stream) => later(stream.read(into)),
            Wire::Tls(session) => session.receive(into),
        }
    }

    /// As [`Wire::receive`], of bytes that nobody looks at: `into` is only as long as what may be taken.
    pub(crate) fn discard(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let stream = match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(session) => return session.receive(into),
        };
        later(recv(stream.as_raw_fd(), into, MsgFlags::MSG_TRUNC).map_err(io::Error::from))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Wire::Plain(stream) => stream.as_fd(),
            Wire::Tls(session) => session.stream.as_fd(),
        }
    }
}

fn later(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A connection that is not yet there takes nothing either.
fn settle(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotConnected => Ok(0),
        other => later(other).map(Option::unwrap_or_default),
    }
}
