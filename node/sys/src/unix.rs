//! Unix sockets: listeners with mode and owner, and descriptors sent over them.
//!
//! A listener is created under a temporary name and renamed, so that the path never leads to a
//! socket with the wrong permissions, and a process that is being replaced keeps its own until the
//! last moment. Received descriptors are close-on-exec and owned at once.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message.
pub const MAX_FDS: usize = 64;

/// Permissions of a socket's path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// `mode`, else what the umask leaves.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

/// Opens a non-blocking listener at `path`, replacing a socket that is already there.
///
/// # Errors
/// What failed, with the path in front. A file that is not a socket is never replaced.
pub fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    listen_inner(path, access).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn listen_inner(path: &Path, access: Access) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "exists and is not a socket"));
    }
    let temporary = Temporary::beside(path);
    let listener = UnixListener::bind(&temporary.0)?;
    if let Some(mode) = access.mode {
        std::fs::set_permissions(&temporary.0, std::fs::Permissions::from_mode(mode))?;
    }
    if access.uid.is_some() || access.gid.is_some() {
        std::os::unix::fs::chown(&temporary.0, access.uid, access.gid)?;
    }
    listener.set_nonblocking(true)?;
    std::fs::rename(&temporary.0, path)?;
    Ok(listener)
}

/// A name that disappears again if the listener does not come about.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path) -> Temporary {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let _ = std::fs::remove_file(&name);
        Temporary(name.into())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sends `data` and descriptors in one message. `data` must not be empty: a stream socket drops
/// descriptors that come without a byte.
///
/// # Errors
/// What `sendmsg` said; `InvalidInput` for no data or more than [`MAX_FDS`] descriptors.
pub fn send_fds(socket: &UnixStream, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if data.is_empty() || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let sent =
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(data)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(sent)
}

/// Receives into `buf`; returns its length (0 at the end of the stream) and the descriptors.
///
/// # Errors
/// What `recvmsg` said.
pub fn recv_fds(socket: &UnixStream, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buf)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                // SAFETY: the kernel has just made this descriptor for us, so it is open, and
                // nobody else in the process knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, fds))
}

/// Two connected sockets that keep messages apart (`SOCK_SEQPACKET`), to talk to a child process.
///
/// # Errors
/// What `socketpair` said.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Credentials of the connecting process (`SO_PEERCRED`).
///
/// # Errors
/// What `getsockopt` said.
pub fn peer(socket: &impl std::os::fd::AsFd) -> io::Result<Peer> {
    let found = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Peer { pid: found.pid(), uid: found.uid(), gid: found.gid() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("phalanx-sys-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn listen_sets_mode_and_replaces_only_sockets() {
        let dir = scratch("listen");
        let path = dir.join("a.sock");
        let _first = listen(&path, Access { mode: Some(0o600), ..Access::default() }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = listen(&path, Access { mode: Some(0o660), ..Access::default() }).unwrap();
        UnixStream::connect(&path).unwrap();
        second.accept().expect("the path leads to the newest listener");
        let file = dir.join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(listen(&file, Access::default()).unwrap_err().to_string().contains("is not a socket"));
        let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "no temporary name stays: {names:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn descriptors_travel() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        send_fds(&a, b"hello", &[right.as_fd()]).unwrap();
        drop(right);
        let mut buf = [0; 16];
        let (n, fds) = recv_fds(&b, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"hello");
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        left.write_all(b"through").unwrap();
        drop(left);
        let mut text = String::new();
        UnixStream::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(peer(&a).unwrap().pid, std::process::id() as i32);
        drop(a);
        assert_eq!(recv_fds(&b, &mut buf).unwrap().0, 0);
    }
}
