//! TCP sockets with the options that std does not offer.
//!
//! [`Listen`] opens listeners as `bind` lines want them (shared port, an address that is not on the
//! machine yet, one interface); [`Connect`] prepares sockets towards servers. All sockets come back
//! non-blocking and close-on-exec, ready for `tokio::net::*::from_std`.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, TcpKeepalive, Type};

/// How to open a listener.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Length of the accept queue, cut by the system to `net.core.somaxconn`.
    pub backlog: u32,
    /// `SO_REUSEPORT`: several listeners share the port and the kernel spreads connections.
    pub reuse_port: bool,
    /// `IP_FREEBIND`/`IPV6_FREEBIND`: the address need not be on this machine (yet).
    pub free_bind: bool,
    /// `SO_BINDTODEVICE`: only connections that arrive on this interface.
    pub interface: Option<String>,
    /// `IPV6_V6ONLY`; `None` leaves the system's default. Without meaning for IPv4.
    pub only_v6: Option<bool>,
    /// `TCP_DEFER_ACCEPT`: wake up only when the client has sent something.
    pub defer_accept: Option<Duration>,
}

impl Listen {
    /// A shared-port listener on `addr`.
    pub fn on(addr: SocketAddr) -> Listen {
        Listen {
            addr,
            backlog: 4096,
            reuse_port: true,
            free_bind: false,
            interface: None,
            only_v6: None,
            defer_accept: None,
        }
    }

    /// Opens it, listening.
    ///
    /// # Errors
    /// What the first failing system call said; nothing stays open.
    pub fn open(&self) -> io::Result<TcpListener> {
        let socket = self.bound()?;
        socket.listen(self.backlog.min(i32::MAX as u32) as i32)?;
        Ok(socket.into())
    }

    /// Bound to its address but not listening: with `reuse_port` it holds the port without taking
    /// connections.
    ///
    /// # Errors
    /// What the first failing system call said.
    pub fn bound(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let (SocketAddr::V6(_), Some(only)) = (self.addr, self.only_v6) {
            socket.set_only_v6(only)?;
        }
        if self.free_bind {
            match self.addr {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if let Some(wait) = self.defer_accept {
            set_defer_accept(&socket, wait)?;
        }
        socket.bind(&self.addr.into())?;
        Ok(socket)
    }
}

/// How to prepare a socket towards a server.
#[derive(Clone, Debug, Default)]
pub struct Connect {
    /// Source address (`source`); port 0 lets the system choose.
    pub source: Option<SocketAddr>,
    /// `SO_BINDTODEVICE`.
    pub interface: Option<String>,
    /// Options of the connection.
    pub tuning: Tuning,
}

impl Connect {
    /// An unconnected, non-blocking socket for `dest`, bound to its source.
    ///
    /// # Errors
    /// What the first failing system call said.
    pub fn socket(&self, dest: SocketAddr) -> io::Result<Socket> {
        // Non-blocking from birth: two system calls less per connection.
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(dest), kind, Some(Protocol::TCP))?;
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if let Some(source) = self.source {
            socket.set_reuse_address(true)?;
            if source.port() == 0 {
                set_bind_address_no_port(&socket)?;
            }
            socket.bind(&source.into())?;
        }
        self.tuning.apply(&socket)?;
        Ok(socket)
    }

    /// Starts connecting to `dest`: the stream becomes writable when it is established or failed
    /// (then [`TcpStream::take_error`] says why).
    ///
    /// # Errors
    /// Errors known at once, for instance no route to the host.
    pub fn start(&self, dest: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(dest)?;
        match socket.connect(&dest.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        Ok(socket.into())
    }
}

/// Options of a TCP connection, of either side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tuning {
    /// `TCP_NODELAY`: send small pieces at once.
    pub nodelay: bool,
    /// `SO_KEEPALIVE` with the system's timers (`option tcpka`).
    pub keepalive: bool,
    /// Idle time before the first keep-alive probe, when it is not to be the system's.
    pub keepalive_idle: Option<Duration>,
    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
    /// `TCP_QUICKACK` off: what the peer begins with is acknowledged by the answer, which saves a packet.
    pub slow_ack: bool,
}

impl Tuning {
    /// Sets the options on an open socket.
    ///
    /// # Errors
    /// What the first failing `setsockopt` said.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if self.keepalive {
            socket.set_keepalive(true)?;
        }
        if let Some(idle) = self.keepalive_idle {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        if let Some(timeout) = self.user_timeout {
            socket.set_tcp_user_timeout(Some(timeout))?;
        }
        if self.slow_ack {
            socket.set_tcp_quickack(false)?;
        }
        Ok(())
    }
}

/// Options that connections inherit from their listener; to be called again where they change.
///
/// # Errors
/// What the first failing `setsockopt` said.
pub fn tune_listener(listener: &impl AsFd, keepalive: bool, slow_ack: bool) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(keepalive)?;
    socket.set_tcp_quickack(!slow_ack)
}

/// `IP_TRANSPARENT`: a listener takes connections to addresses that are not this machine's, as TPROXY
/// rules send them.
///
/// # Errors
/// What `setsockopt` said (it needs `CAP_NET_ADMIN`); IPv6 is not supported.
pub fn set_transparent(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if socket.domain()? == Domain::IPV6 {
        let message = "'transparent' is supported on IPv4 addresses only";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    socket.set_ip_transparent_v4(true)
}

/// Whether a connection is there; one that is being established, or has failed, is not.
pub fn is_connected(socket: &impl AsFd) -> bool {
    SockRef::from(socket).peer_addr().is_ok()
}

/// Whether connections to a socket are accepted: it listens, and nobody has shut it down.
pub fn is_listening(socket: &impl AsFd) -> bool {
    SockRef::from(socket).is_listener().unwrap_or(false)
}

/// Makes `close` send a RST in place of a FIN, dropping what is unsent (`option nolinger`, `reject`).
///
/// # Errors
/// What `setsockopt` said.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// `shutdown(2)` in both directions: a listener stops listening at once, in every process that has a
/// duplicate of it; waiting connections are reset.
///
/// # Errors
/// What `shutdown` said; a socket that is not connected or listening any more is not an error.
pub fn shutdown(socket: &impl AsFd) -> io::Result<()> {
    match SockRef::from(socket).shutdown(std::net::Shutdown::Both) {
        Err(e) if e.raw_os_error() != Some(libc::ENOTCONN) => Err(e),
        _ => Ok(()),
    }
}

/// A listener begins no connection any more: each SYN is lost on it, as if on the way, so that the
/// client asks again. Connections that have begun can still be accepted.
///
/// # Errors
/// What `setsockopt` said.
pub fn refuse_new(listener: &impl AsFd) -> io::Result<()> {
    // A classic packet filter, which sees the TCP header: flags at 13, of which SYN (2) is set and ACK (16)
    // is not. Accepted sockets inherit it, which is no harm: they get none.
    const NO_SYN: [SockFilter; 5] = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x54, 0, 0, 0x12),
        SockFilter::new(0x15, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&NO_SYN)
}

/// Takes a connection that waits, whatever an event loop knows about it; non-blocking, as is what is
/// taken.
///
/// # Errors
/// What `accept` said: `WouldBlock` when none waits.
pub fn accept(listener: &impl AsFd) -> io::Result<(TcpStream, SocketAddr)> {
    let listener = listener.as_fd().as_raw_fd();
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the closure is handed a storage of the length that it passes on with it, and the kernel
    // writes the length of what it put there.
    let (socket, peer) = unsafe {
        SockAddr::try_init(|storage, len| match libc::accept4(listener, storage.cast(), len, flags) {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel opened it just now, and nobody else has it.
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        })
    }?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket.into(), peer))
}

/// How many connections wait to be taken; an accept too many costs as much as one that takes something.
///
/// # Errors
/// What `getsockopt` said; `InvalidInput` for a socket that does not listen.
pub fn waiting(listener: &impl AsFd) -> io::Result<u32> {
    // The beginning of `tcp_info`: its first byte is the state, its fifth number after eight bytes what waits.
    const LISTEN: u8 = 10;
    let mut info = [0u32; 7];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the descriptor is open for the whole call; pointer and length describe live memory, of which any
    // bits are valid numbers.
    let rc = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    if len as usize != size_of_val(&info) || info[0].to_ne_bytes()[0] != LISTEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(info[6])
}

/// Reads what is there; 0 = the peer has closed. Straight to the kernel: the C library's `recv` is a
/// cancellation point, which costs more than the call around it.
///
/// # Errors
/// Those of `recv(2)`.
#[inline]
pub fn recv(socket: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let (_, n) = rustix::net::recv(socket, into, RecvFlags::empty())?;
    Ok(n)
}

/// Writes `head` and then `body` with one call, as far as there is room; see [`recv`]. With `more` the last
/// packet waits for what follows at once: more bytes or the end.
///
/// # Errors
/// Those of `sendmsg(2)`; a connection that is gone raises no signal.
#[inline]
pub fn send(socket: impl AsFd, head: &[u8], body: &[u8], more: bool) -> io::Result<usize> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    Ok(match (head, body) {
        (one, []) | ([], one) => rustix::net::send(socket, one, flags)?,
        _ => {
            let pieces = [io::IoSlice::new(head), io::IoSlice::new(body)];
            rustix::net::sendmsg(socket, &pieces, &mut SendAncillaryBuffer::default(), flags)?
        }
    })
}

/// Sends datagrams of `size` bytes with one call over a connected UDP socket, the last one with what is left:
/// they go through the kernel as one and are cut up at the end of the way (`UDP_SEGMENT`).
///
/// # Errors
/// Those of `sendmsg(2)`, where also what does not fit into a packet, and ways that can't do it, are found out:
/// nothing was sent then.
pub fn send_cut(socket: &impl AsFd, bytes: &[u8], size: u16) -> io::Result<()> {
    let cut = [ControlMessage::UdpGsoSegments(&size)];
    let socket = socket.as_fd().as_raw_fd();
    nix::sys::socket::sendmsg::<()>(socket, &[io::IoSlice::new(bytes)], &cut, MsgFlags::empty(), None)?;
    Ok(())
}

/// Index of a network interface.
///
/// # Errors
/// `interface 'NAME' does not exist`.
pub fn interface_index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("interface '{name}' does not exist")))
}

fn set_defer_accept(socket: &Socket, wait: Duration) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, wait.as_secs().clamp(1, 3600) as libc::c_int)
}

/// The port is chosen at connect, when the destination is known too, so that one source address
/// serves more than 64k connections.
fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_int(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the value pointer and length describe
    // one live c_int.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn loopback() -> Listen {
        Listen::on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    #[test]
    fn listeners_share_a_port() {
        let first = loopback().open().unwrap();
        let addr = first.local_addr().unwrap();
        let _second = Listen::on(addr).open().unwrap();
        let mut alone = Listen::on(addr);
        alone.reuse_port = false;
        assert_eq!(alone.open().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn free_bind_takes_a_foreign_address() {
        for foreign in ["192.0.2.77:0", "[2001:db8::77]:0"] {
            let mut listen = Listen::on(foreign.parse().unwrap());
            assert_eq!(listen.open().unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
            listen.free_bind = true;
            listen.open().unwrap();
        }
    }

    #[test]
    fn connect_reaches_the_listener() {
        let listener = loopback().open().unwrap();
        listener.set_nonblocking(false).unwrap();
        let connect = Connect {
            source: Some(SocketAddr::from(([127, 0, 0, 9], 0))),
            tuning: Tuning {
                nodelay: true,
                keepalive: true,
                keepalive_idle: Some(Duration::from_secs(30)),
                user_timeout: Some(Duration::from_secs(5)),
                slow_ack: true,
            },
            ..Connect::default()
        };
        let mut out = connect.start(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), std::net::IpAddr::from([127, 0, 0, 9]));
        assert!(out.nodelay().unwrap());
        out.set_nonblocking(false).unwrap();
        out.write_all(b"x").unwrap();
        let mut buf = [0];
        accepted.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"x");
    }

    #[test]
    fn connections_that_wait_are_counted() {
        let listener = loopback().open().unwrap();
        assert_eq!(waiting(&listener).unwrap(), 0);
        let addr = listener.local_addr().unwrap();
        let clients = [(); 3].map(|()| TcpStream::connect(addr).unwrap());
        assert_eq!(waiting(&listener).unwrap(), 3);
        accept(&listener).unwrap();
        assert_eq!(waiting(&listener).unwrap(), 2);
        assert_eq!(waiting(&clients[0]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn shutdown_closes_a_listener_through_a_duplicate() {
        let listener = loopback().open().unwrap();
        let addr = listener.local_addr().unwrap();
        let dup = listener.as_fd().try_clone_to_owned().unwrap();
        TcpStream::connect(addr).unwrap();
        shutdown(&dup).unwrap();
        assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        shutdown(&dup).unwrap();
    }

    #[test]
    fn a_listener_that_refuses_new_connections_keeps_those_that_wait() {
        let listener = loopback().open().unwrap();
        let addr = listener.local_addr().unwrap();
        let mut waiting = TcpStream::connect(addr).unwrap();
        refuse_new(&listener).unwrap();
        let error = TcpStream::connect_timeout(&addr, Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "lost, not refused");
        waiting.write_all(b"x").unwrap();
        let (mut taken, peer) = accept(&listener).unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        taken.set_nonblocking(false).unwrap();
        taken.write_all(b"y").unwrap();
        let mut buf = [0];
        taken.read_exact(&mut buf).unwrap();
        waiting.read_exact(&mut buf).unwrap();
        assert_eq!(accept(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn datagrams_are_cut_up_on_the_way() {
        let [from, to] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        from.connect(to.local_addr().unwrap()).unwrap();
        to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        send_cut(&from, b"onetwoxyz!", 3).unwrap();
        let read = [(); 4].map(|()| {
            let mut buf = [0; 64];
            let n = to.recv(&mut buf).unwrap();
            buf[..n].to_vec()
        });
        assert_eq!(read, [&b"one"[..], b"two", b"xyz", b"!"]);
    }

    #[test]
    fn interfaces_are_found_by_name() {
        assert_eq!(interface_index("lo").unwrap(), 1);
        assert_eq!(interface_index("nope0").unwrap_err().to_string(), "interface 'nope0' does not exist");
    }
}
