//! Bytes from one socket to another through a pipe, without passing through the process.
//!
//! A [`Pipe`] knows how much is in it: filled only while it is empty and emptied only while it is not,
//! `EAGAIN` can only mean the socket. Even so it need not mean that nothing was received, nor 0 that the
//! peer has closed: `splice` never gets past urgent data, which [`Pipe::fill`] tells apart.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::RecvFlags;

/// A pipe that is read and written by [`Pipe::fill`] and [`Pipe::drain`] only.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in it.
    len: usize,
}

impl Pipe {
    /// An empty pipe, of `size` bytes where the system grants that.
    ///
    /// # Errors
    /// What `pipe2` said: mostly that there are no more descriptors.
    pub fn new(size: Option<usize>) -> io::Result<Pipe> {
        let mut fds = [0; 2];
        // SAFETY: the array has room for the two descriptors that the call writes.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were opened just now and nobody else has them.
        let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        if let Some(size) = size {
            let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
            // SAFETY: the descriptor is open, and the command takes an integer. That it fails for want
            // of rights leaves a pipe of the system's size.
            unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
        }
        Ok(Pipe { reader, writer, len: 0 })
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves up to `most` bytes that a socket has received into the pipe, which must be empty; 0 = the
    /// peer has closed.
    ///
    /// # Errors
    /// What `splice` said: `WouldBlock` when nothing was received, `InvalidInput` when the socket can't be
    /// spliced, or stands at urgent data, which only reading gets past, or the pipe is not empty.
    pub fn fill(&mut self, from: &impl AsFd, most: usize) -> io::Result<usize> {
        if !self.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut moved = splice(from, &self.writer, most);
        if is_nothing(&moved) && is_more(from)? {
            // It may have come just now.
            moved = splice(from, &self.writer, most);
            if is_nothing(&moved) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        self.len = moved?;
        Ok(self.len)
    }

    /// Moves bytes from the pipe, which must not be empty, to a socket. Nothing waits for what may follow
    /// (`SPLICE_F_MORE`): the sender may take its time for that.
    ///
    /// # Errors
    /// What `splice` said: `WouldBlock` when the socket takes no more.
    pub fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        if self.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let moved = splice(&self.reader, to, self.len)?;
        self.len -= moved.min(self.len);
        Ok(moved)
    }
}

/// Whether a call says that there are no bytes, now or any more.
fn is_nothing(moved: &io::Result<usize>) -> bool {
    match moved {
        Ok(n) => *n == 0,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Whether a socket has bytes to be read. The errors are the caller's to tell: asking takes them away.
fn is_more(socket: &impl AsFd) -> io::Result<bool> {
    match rustix::net::recv(socket, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, n)) => Ok(n > 0),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn splice(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: both descriptors are open for the whole call, and no offsets are given.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), most, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        (near, far)
    }

    #[test]
    fn bytes_go_from_socket_to_socket() {
        let ((mut client, from), (to, mut server)) = (pair(), pair());
        from.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new(Some(1 << 18)).unwrap();
        assert_eq!(pipe.fill(&from, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"hello").unwrap();
        let mut got = 0;
        while got == 0 {
            got = pipe.fill(&from, 4).unwrap_or(0);
        }
        assert_eq!((got, pipe.len()), (4, 4));
        assert_eq!(pipe.fill(&from, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput, "not empty");
        assert_eq!(pipe.drain(&to).unwrap(), 4);
        assert_eq!(pipe.drain(&to).unwrap_err().kind(), io::ErrorKind::InvalidInput, "empty");
        assert_eq!(pipe.fill(&from, 100).unwrap(), 1);
        assert_eq!(pipe.drain(&to).unwrap(), 1);
        drop(client);
        from.set_nonblocking(false).unwrap();
        assert_eq!(pipe.fill(&from, 100).unwrap(), 0, "closed");
        drop(to);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn urgent_data_is_neither_silence_nor_the_end() {
        for close in [false, true] {
            let ((mut client, from), (to, _server)) = (pair(), pair());
            from.set_nonblocking(true).unwrap();
            let mut pipe = Pipe::new(None).unwrap();
            let fill = |pipe: &mut Pipe| loop {
                match pipe.fill(&from, 1000) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    result => return result.map_err(|e| e.kind()),
                }
            };
            client.write_all(&[1; 100]).unwrap();
            assert_eq!(fill(&mut pipe), Ok(100));
            assert_eq!(pipe.drain(&to).unwrap(), 100);
            socket2::SockRef::from(&client).send_out_of_band(&[2]).unwrap();
            client.write_all(&[3; 100]).unwrap();
            if close {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
            assert_eq!(fill(&mut pipe), Err(io::ErrorKind::InvalidInput), "{close}");
            let mut rest = [0; 200];
            assert_eq!((&from).read(&mut rest).unwrap(), 100, "{close}");
            assert_eq!(rest[..100], [3; 100]);
        }
    }

    #[test]
    fn what_was_drained_arrives_before_anything_follows() {
        let ((mut client, from), (to, mut server)) = (pair(), pair());
        let mut pipe = Pipe::new(None).unwrap();
        client.write_all(&[1; 1000]).unwrap();
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap(), 1000);
        assert_eq!(pipe.drain(&to).unwrap(), 1000);
        // The kernel would hold a part of a segment back for 200 ms (`SPLICE_F_MORE`).
        server.set_read_timeout(Some(std::time::Duration::from_millis(150))).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
    }

    #[test]
    fn a_socket_that_takes_no_more_says_so() {
        let ((mut client, from), (to, _server)) = (pair(), pair());
        to.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        from.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new(None).unwrap();
        loop {
            let _ = client.write(&[0; 65536]);
            if pipe.is_empty() {
                let _ = pipe.fill(&from, 1 << 16);
            }
            match pipe.drain(&to) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
        assert!(!pipe.is_empty());
    }
}
