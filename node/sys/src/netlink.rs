//! A compact netlink: building messages, sending them, reading acknowledgements.
//!
//! Only what floating IPs need ([`route`]: addresses and links; [`nft`]: the kernel-enforced lease;
//! [`diag`]: the connections of an address; [`news`]: what happens to links and addresses).
//! Every request is answered by an acknowledgement and waits at most [`PATIENCE`] for it.

pub mod diag;
pub mod news;
pub mod nft;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

/// How long the kernel gets to answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// A netlink socket.
#[derive(Debug)]
struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open(protocol: SockProtocol) -> io::Result<Netlink> {
        Netlink::open_with(protocol, 0)
    }

    /// With what the kernel tells by itself to these groups.
    fn open_with(protocol: SockProtocol, groups: u32) -> io::Result<Netlink> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))?;
        Ok(Netlink { fd, sequence: 0 })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.fd.as_raw_fd(), buf, MsgFlags::empty())?)
    }

    /// Reads answers until `last` is acknowledged, or one from `first` on failed. Other messages that
    /// answer them go to `each`.
    fn answers(&self, first: u32, last: u32, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buf = vec![0u8; 32 * 1024];
        loop {
            let n = self.receive(&mut buf)?;
            let mut rest = &buf[..n];
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes(array(&rest[0..4])) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let kind = u16::from_ne_bytes(array(&rest[4..6]));
                let sequence = u32::from_ne_bytes(array(&rest[8..12]));
                let body = &rest[HEADER..length];
                rest = &rest[align(length).min(rest.len())..];
                // Late answers to a request that was given up are not ours.
                if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match kind {
                    NLMSG_ERROR if body.len() >= 4 => {
                        let code = i32::from_ne_bytes(array(&body[..4]));
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        if sequence == last {
                            return Ok(());
                        }
                    }
                    NLMSG_DONE if sequence == last => return Ok(()),
                    _ => each(kind, body),
                }
            }
        }
    }
}

/// A message, or several in a row, under construction.
#[derive(Debug, Default)]
struct Builder {
    bytes: Vec<u8>,
    message: usize,
}

impl Builder {
    /// Begins a message; the one before is complete.
    fn message(&mut self, kind: u16, flags: u16, sequence: u32) -> &mut Builder {
        self.finish();
        self.message = self.bytes.len();
        self.put(&0u32.to_ne_bytes()).put(&kind.to_ne_bytes()).put(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.put(&sequence.to_ne_bytes()).put(&0u32.to_ne_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Builder {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Builder {
        let length = (4 + value.len()) as u16;
        self.put(&length.to_ne_bytes()).put(&kind.to_ne_bytes()).put(value).pad()
    }

    /// A number in network order, as nftables wants them.
    fn be32(&mut self, kind: u16, value: u32) -> &mut Builder {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A string with its terminating zero.
    fn text(&mut self, kind: u16, value: &str) -> &mut Builder {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Builder)) -> &mut Builder {
        let start = self.bytes.len();
        self.put(&0u16.to_ne_bytes()).put(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) -> &mut Builder {
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    fn finish(&mut self) -> &[u8] {
        if !self.bytes.is_empty() {
            let length = (self.bytes.len() - self.message) as u32;
            self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
        }
        &self.bytes
    }
}

/// The attributes in `bytes`; stops at the first that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = usize::from(u16::from_ne_bytes(array(&bytes[..2])));
        let kind = u16::from_ne_bytes(array(&bytes[2..4])) & 0x3fff;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let value = &bytes[4..length];
        bytes = &bytes[align(length).min(bytes.len())..];
        Some((kind, value))
    })
}

fn align(n: usize) -> usize {
    n.next_multiple_of(4)
}

fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    slice.try_into().expect("callers slice exactly N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_any_bytes() {
        let mut b = Builder::default();
        b.attr(1, b"abc").nest(2, |b| {
            b.be32(3, 7).text(4, "xy");
        });
        let found: Vec<_> = attributes(&b.bytes).collect();
        assert_eq!(found[0], (1, &b"abc"[..]));
        assert_eq!(found[1].0, 2);
        let inner: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(inner, [(3, &[0, 0, 0, 7][..]), (4, &b"xy\0"[..])]);
        let mut state = 9u32;
        for _ in 0..20_000 {
            let mut bytes = b.bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize % bytes.len();
                bytes[at] = (state >> 16) as u8;
            }
            attributes(&bytes).for_each(|(_, value)| attributes(value).for_each(|_| ()));
        }
    }
}
