//! Noticing that another host claims an address: listening for ARP and neighbour advertisements, and
//! asking for them now and then, because who has an address by mistake says so only when asked.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::packet::{Step, listen, receive, send};
use super::{ETHERTYPE_ARP, ETHERTYPE_IPV6, checksum, ethernet};
use crate::netlink::route::Link;

/// Frames read at a time: what other hosts send must not keep the caller.
const AT_ONCE: usize = 64;

/// A socket that sees who claims an address on one interface.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    addr: IpAddr,
}

impl Watch {
    /// Opens it (`CAP_NET_RAW`).
    ///
    /// # Errors
    /// What the system said.
    pub fn open(link: &Link, addr: IpAddr) -> io::Result<Watch> {
        let (ethertype, steps): (_, &[Step]) = match addr {
            IpAddr::V4(_) => (ETHERTYPE_ARP, &[]),
            // All other IPv6 traffic would be copied to us too: next header, then the type behind Ethernet's
            // and IPv6's headers.
            IpAddr::V6(_) => (
                ETHERTYPE_IPV6,
                &[Step::Load(1, 14 + 6), Step::Is(58), Step::Load(1, 14 + 40), Step::Is(136)],
            ),
        };
        listen(link.index, ethertype, steps).map(|socket| Watch { socket, addr })
    }

    /// Who else has claimed the address since the last look: the first that is not `own`.
    pub fn claimed_by(&self, own: [u8; 6]) -> Option<[u8; 6]> {
        let mut found = None;
        for _ in 0..AT_ONCE {
            let mut frame = [0u8; 128];
            let Some(frame) = receive(&self.socket, &mut frame) else { break };
            let claimant = claimant(frame, self.addr).filter(|mac| *mac != own);
            found = found.or(claimant);
        }
        found
    }
}

/// Asks whether anybody else has an address, without claiming it (RFC 5227 section 2.1.1, RFC 4862 section 5.4).
///
/// # Errors
/// What the system said; `Unsupported` when the interface has no hardware address.
pub fn probe(link: &Link, addr: IpAddr) -> io::Result<()> {
    let mac = link.mac.ok_or(io::ErrorKind::Unsupported)?;
    match addr {
        IpAddr::V4(_) => send(link.index, ETHERTYPE_ARP, &question(mac, addr)),
        IpAddr::V6(_) => send(link.index, ETHERTYPE_IPV6, &question(mac, addr)),
    }
}

/// The frame that asks.
pub fn question(mac: [u8; 6], addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => {
            let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
            frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend_from_slice(&mac);
            frame.extend_from_slice(&[0; 10]);
            frame.extend_from_slice(&addr.octets());
            frame.resize(60, 0);
            frame
        }
        IpAddr::V6(addr) => {
            let o = addr.octets();
            // The solicited-node group of the address, and its Ethernet address.
            let mut to = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
            to[13..].copy_from_slice(&o[13..]);
            let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
            icmp.extend_from_slice(&o);
            let sum = checksum(&[&[0; 16], &to, &[0, 0, 0, icmp.len() as u8, 0, 0, 0, 58], &icmp]);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut frame = ethernet([0x33, 0x33, 0xff, o[13], o[14], o[15]], mac, ETHERTYPE_IPV6);
            frame.extend_from_slice(&[0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255]);
            frame.extend_from_slice(&[0; 16]);
            frame.extend_from_slice(&to);
            frame.extend_from_slice(&icmp);
            frame
        }
    }
}

/// Who claims `addr` in a frame: the sender of an ARP packet from that address, or of an advertisement of
/// it.
pub fn claimant(frame: &[u8], addr: IpAddr) -> Option<[u8; 6]> {
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    match addr {
        IpAddr::V4(addr) => {
            let arp = frame.get(14..42)?;
            let ethernet_and_ip = arp[..6] == [0, 1, 8, 0, 6, 4];
            (ethernet_and_ip && frame[12..14] == ETHERTYPE_ARP.to_be_bytes() && arp[14..18] == addr.octets())
                .then(|| arp[8..14].try_into().ok())
                .flatten()
        }
        IpAddr::V6(addr) => {
            let ip = frame.get(14..78)?;
            let advertises = frame[12..14] == ETHERTYPE_IPV6.to_be_bytes() && ip[6] == 58 && ip[40] == 136;
            (advertises && ip[48..64] == addr.octets()).then_some(source)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ArpKind, gratuitous_arp, unsolicited_advertisement};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn a_claim_is_an_arp_from_the_address_or_an_advertisement_of_it() {
        let v4: IpAddr = "192.0.2.10".parse().unwrap();
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        let arp = gratuitous_arp(MAC, "192.0.2.10".parse().unwrap(), ArpKind::Reply);
        let na = unsolicited_advertisement(MAC, "2001:db8::10".parse().unwrap());
        for (frame, addr, who) in [
            (&arp, v4, Some(MAC)),
            (&arp, "192.0.2.11".parse().unwrap(), None),
            (&arp, v6, None),
            (&na, v6, Some(MAC)),
            (&na, "2001:db8::11".parse().unwrap(), None),
            // Who asks claims nothing.
            (&question(MAC, v4), v4, None),
            (&question(MAC, v6), v6, None),
        ] {
            assert_eq!(claimant(frame, addr), who);
            for end in 0..42 {
                assert_eq!(claimant(&frame[..end], addr), None);
            }
        }
        assert_eq!(question(MAC, v4).len(), 60);
        let asked = question(MAC, v6);
        assert_eq!(asked[..6], [0x33, 0x33, 0xff, 0, 0, 0x10]);
    }
}
