//! What the kernel tells by itself of links and addresses (`RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`,
//! `RTMGRP_IPV6_IFADDR`), a moment after it has happened.
//!
//! It may lose some when much happens at once, and then says so: who listens must look by itself as well.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use super::{HEADER, Netlink, align, array, attributes};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// An interface came, went, or is in another state.
    Link(String),
    /// An address was put on an interface, or renewed.
    Added(IpAddr),
    /// An address was taken off an interface.
    Removed(IpAddr),
    /// More than could be told.
    Lost,
}

/// A connection on which the kernel tells what happens.
#[derive(Debug)]
pub struct Feed(Netlink);

impl Feed {
    /// Opens it; needs no privilege.
    ///
    /// # Errors
    /// What the system said.
    pub fn open() -> io::Result<Feed> {
        Netlink::open_with(SockProtocol::NetlinkRoute, GROUPS).map(Feed)
    }

    /// Waits until something happens, or for [`super::PATIENCE`]; hands it to `each`.
    ///
    /// # Errors
    /// What the system said.
    pub fn wait(&mut self, mut each: impl FnMut(News)) -> io::Result<()> {
        let mut buf = vec![0u8; 32 * 1024];
        match self.0.receive(&mut buf) {
            Ok(n) => {
                read(&buf[..n], &mut each);
                Ok(())
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                each(News::Lost);
                Ok(())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Messages in a row; what is not understood is passed over.
fn read(mut bytes: &[u8], each: &mut impl FnMut(News)) {
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes(array(&bytes[0..4])) as usize;
        if length < HEADER || length > bytes.len() {
            return;
        }
        let kind = u16::from_ne_bytes(array(&bytes[4..6]));
        if let Some(news) = message(kind, &bytes[HEADER..length]) {
            each(news);
        }
        bytes = &bytes[align(length).min(bytes.len())..];
    }
}

fn message(kind: u16, body: &[u8]) -> Option<News> {
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let (_, name) = attributes(body.get(16..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
            let name = name.split(|b| *b == 0).next()?;
            Some(News::Link(String::from_utf8_lossy(name).into_owned()))
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let of = |wanted| attributes(body.get(8..)?).find(|(k, _)| *k == wanted).map(|(_, value)| value);
            // IPv6 has only the second, where it is the address; IPv4 has the peer's there.
            let addr = match of(IFA_LOCAL).or(of(IFA_ADDRESS))? {
                value if value.len() == 4 => IpAddr::from(array::<4>(value)),
                value if value.len() == 16 => IpAddr::from(array::<16>(value)),
                _ => return None,
            };
            Some(if kind == RTM_NEWADDR { News::Added(addr) } else { News::Removed(addr) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Builder;
    use super::*;

    fn told(bytes: &[u8]) -> Vec<News> {
        let mut told = Vec::new();
        read(bytes, &mut |news| told.push(news));
        told
    }

    #[test]
    fn messages_are_read_and_any_bytes_survive() {
        let mut b = Builder::default();
        b.message(RTM_NEWLINK, 0, 0).put(&[0; 16]).text(IFLA_IFNAME, "eth0");
        b.message(RTM_DELADDR, 0, 0).put(&[0; 8]).attr(IFA_ADDRESS, &[192, 0, 2, 9]);
        b.attr(IFA_LOCAL, &[192, 0, 2, 1]);
        b.message(RTM_NEWADDR, 0, 0).put(&[0; 8]).attr(IFA_ADDRESS, &[0xfd; 16]);
        b.message(99, 0, 0).put(&[0; 8]);
        let bytes = b.finish().to_vec();
        let expected = [
            News::Link("eth0".into()),
            News::Removed([192, 0, 2, 1].into()),
            News::Added(IpAddr::from([0xfd; 16])),
        ];
        assert_eq!(told(&bytes), expected);
        let mut state = 5u32;
        for _ in 0..20_000 {
            let mut some = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize % some.len();
                some[at] = (state >> 16) as u8;
            }
            some.truncate(some.len() - (state >> 5) as usize % some.len());
            told(&some);
        }
    }
}
