//! Keeping what would begin a connection while an address is between two holders.
//!
//! A node that lets an address go, for another that is about to have it, keeps a copy of each SYN to it
//! that comes meanwhile, and sends them to the new holder once that one is ready. Clients would send them again
//! only after a second. Nothing is answered, and nothing is kept for longer than the caller keeps this.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::packet::{Step, listen, receive, send};
use super::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::netlink::nft::pass::Flow;
use crate::netlink::route::Link;

const ETHERTYPE_ALL: u16 = 3;
const ETHERNET: usize = 14;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// More of a frame is not looked at: such a SYN is not passed on.
const LONGEST: usize = 2048;

/// What is read at once, and for how long: under a flood of SYNs frames come faster than they are sent on,
/// and the caller has other things to do in time.
const AT_ONCE: usize = 16_384;
const NO_LONGER: Duration = Duration::from_millis(50);

/// So often the clock is read.
const CLOCK_EVERY: usize = 32;

/// SYNs to one address that came to an interface.
#[derive(Debug)]
pub struct Parked {
    socket: OwnedFd,
    link: Link,
    addr: IpAddr,
}

impl Parked {
    /// Keeps them from now on (`CAP_NET_RAW`).
    ///
    /// # Errors
    /// What the system said.
    pub fn open(link: &Link, addr: IpAddr) -> io::Result<Parked> {
        // Of a frame: addressed to this host. The kernel has that, not the frame.
        let to_host = [Step::Load(1, libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE), Step::Is(0)];
        let at = |offset: usize| (ETHERNET + offset) as i32;
        let mut steps = to_host.to_vec();
        match addr {
            IpAddr::V4(addr) => {
                steps.extend([Step::Load(2, 12), Step::Is(ETHERTYPE_IPV4.into())]);
                steps.extend([Step::Load(1, at(9)), Step::Is(TCP.into())]);
                // Later fragments.
                steps.extend([Step::Load(2, at(6)), Step::None(0x1fff)]);
                steps.extend([Step::Load(4, at(16)), Step::Is(addr.into())]);
                steps.extend([Step::Skip(ETHERNET as u32), Step::LoadBehind(ETHERNET as u32 + 13)]);
            }
            IpAddr::V6(addr) => {
                steps.extend([Step::Load(2, 12), Step::Is(ETHERTYPE_IPV6.into())]);
                steps.extend([Step::Load(1, at(6)), Step::Is(TCP.into())]);
                for (i, word) in addr.octets().chunks_exact(4).enumerate() {
                    let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
                    steps.extend([Step::Load(4, at(24 + 4 * i)), Step::Is(word)]);
                }
                steps.push(Step::Load(1, at(40 + 13)));
            }
        }
        steps.extend([Step::And(SYN_ACK.into()), Step::Is(SYN.into())]);
        // Of all protocols: those of one get frames only after filters have had them.
        let socket = listen(link.index, ETHERTYPE_ALL, &steps)?;
        Ok(Parked { socket, link: link.clone(), addr })
    }

    /// Sends what is kept to the neighbour with this hardware address, unless it is of a connection that
    /// `known` knows; returns how many. It ends even if ever more come: what is left is kept for the next
    /// time.
    pub fn send_on(&self, to: [u8; 6], known: impl Fn(&Flow) -> bool) -> usize {
        let Some(own) = self.link.mac else { return 0 };
        let ethertype = if self.addr.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let mut buf = [0u8; LONGEST];
        let mut sent = 0;
        let began = Instant::now();
        for read in 0..AT_ONCE {
            if read % CLOCK_EVERY == CLOCK_EVERY - 1 && began.elapsed() >= NO_LONGER {
                break;
            }
            let Some(frame) = receive(&self.socket, &mut buf) else { break };
            let Some(flow) = beginning(frame, self.addr).filter(|flow| !known(flow)) else { continue };
            let Some(frame) = readdress(frame, flow, to, own) else { continue };
            sent += usize::from(send(self.link.index, ethertype, &frame).is_ok());
        }
        sent
    }
}

/// Where the TCP header of an Ethernet frame begins, when it is one, and where its segment ends.
fn segment(frame: &[u8]) -> Option<(usize, usize)> {
    let ip = frame.get(ETHERNET..)?;
    let (header, end) = match ip.first()? >> 4 {
        4 => {
            let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff;
            if *ip.get(9)? != TCP || fragment != 0 {
                return None;
            }
            (usize::from(ip[0] & 0x0f) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])))
        }
        6 if *ip.get(6)? == TCP => (40, 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]))),
        _ => return None,
    };
    // Without what is longer than it says, which is padding.
    let whole = header >= 20 && end >= header + 20 && end <= ip.len();
    whole.then_some((ETHERNET + header, ETHERNET + end))
}

/// The connection that a frame would begin, to `addr`.
pub fn beginning(frame: &[u8], addr: IpAddr) -> Option<Flow> {
    let (tcp, _) = segment(frame)?;
    let ip = &frame[ETHERNET..];
    let (from, to): (IpAddr, IpAddr) = if ip[0] >> 4 == 4 {
        let at = |i: usize| Ipv4Addr::new(ip[i], ip[i + 1], ip[i + 2], ip[i + 3]);
        (at(12).into(), at(16).into())
    } else {
        let at = |i: usize| <[u8; 16]>::try_from(&ip[i..i + 16]).map(Ipv6Addr::from);
        (at(8).ok()?.into(), at(24).ok()?.into())
    };
    let port = |i: usize| u16::from_be_bytes([frame[tcp + i], frame[tcp + i + 1]]);
    (to == addr && frame[tcp + 13] & SYN_ACK == SYN)
        .then(|| Flow { local: SocketAddr::new(to, port(2)), peer: SocketAddr::new(from, port(0)) })
}

/// The frame with other hardware addresses. The checksum is made anew: one from this very machine may not
/// have been made yet.
pub fn readdress(frame: &[u8], flow: Flow, to: [u8; 6], from: [u8; 6]) -> Option<Vec<u8>> {
    let (tcp, end) = segment(frame)?;
    let mut frame = frame[..end].to_vec();
    frame[0..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[tcp + 16..tcp + 18].fill(0);
    let mut pseudo = match (flow.peer.ip(), flow.local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => return None,
    };
    pseudo.extend((end as u32 - tcp as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, TCP]);
    let mut segment = frame[tcp..].to_vec();
    if segment.len() % 2 == 1 {
        segment.push(0);
    }
    let sum = super::checksum(&[&pseudo, &segment]);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN, with some bytes behind it, whose checksum is wrong.
    fn syn(flow: Flow, flags: u8, padding: usize) -> Vec<u8> {
        let mut frame = vec![9u8; 12];
        let tcp_length = 21u16;
        match (flow.peer.ip(), flow.local.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend([0x45, 0]);
                frame.extend((20 + tcp_length).to_be_bytes());
                frame.extend([0, 7, 0x40, 0, 64, TCP, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(tcp_length.to_be_bytes());
                frame.extend([TCP, 64]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => unreachable!(),
        }
        frame.extend(flow.peer.port().to_be_bytes());
        frame.extend(flow.local.port().to_be_bytes());
        frame.extend([1, 2, 3, 4, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0xab, 0xcd, 0, 0, b'x']);
        frame.resize(frame.len() + padding, 0);
        frame
    }

    fn flows() -> [Flow; 2] {
        [("192.0.2.10:443", "192.0.2.1:40000"), ("[2001:db8::10]:443", "[2001:db8::1]:40000")]
            .map(|(local, peer)| Flow { local: local.parse().unwrap(), peer: peer.parse().unwrap() })
    }

    #[test]
    fn only_what_begins_a_connection_to_the_address_is_kept() {
        for flow in flows() {
            let addr = flow.local.ip();
            assert_eq!(beginning(&syn(flow, SYN, 5), addr), Some(flow));
            assert_eq!(beginning(&syn(flow, SYN_ACK, 0), addr), None);
            assert_eq!(beginning(&syn(flow, 0x10, 0), addr), None);
            assert_eq!(beginning(&syn(flow, SYN, 0), "192.0.2.99".parse().unwrap()), None);
        }
    }

    #[test]
    fn it_is_sent_on_with_a_right_checksum_and_without_padding() {
        for flow in flows() {
            let frame = syn(flow, SYN, 5);
            let sent = readdress(&frame, flow, [1; 6], [2; 6]).unwrap();
            assert_eq!((&sent[..6], &sent[6..12]), (&[1; 6][..], &[2; 6][..]));
            assert_eq!(sent.len(), frame.len() - 5);
            // Over everything, the sum included, the checksum of a right segment is zero.
            let pseudo = match (flow.peer.ip(), flow.local.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
                (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
                _ => unreachable!(),
            };
            let mut segment = sent[sent.len() - 21..].to_vec();
            segment.push(0);
            assert_eq!(super::super::checksum(&[&pseudo, &[0, 0, 0, 21, 0, 0, 0, TCP], &segment]), 0);
        }
    }

    #[test]
    fn any_bytes_are_read() {
        let mut state = 7u32;
        for flow in flows() {
            let whole = syn(flow, SYN, 0);
            for round in 0..40_000 {
                let mut frame = whole.clone();
                for _ in 0..round % 4 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = (state >> 8) as usize % frame.len();
                    frame[at] = (state >> 16) as u8;
                }
                frame.truncate(frame.len() - (state >> 4) as usize % frame.len());
                if let Some(flow) = beginning(&frame, flow.local.ip()) {
                    let _ = readdress(&frame, flow, [1; 6], [2; 6]);
                }
            }
        }
    }
}
