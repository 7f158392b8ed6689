//! Telling the neighbours that an address has moved here: gratuitous ARP, unsolicited NA; noticing who else
//! claims it ([`Watch`]); keeping what would begin a connection while nobody has it ([`Parked`]).
//!
//! Frames are built by pure functions and sent through a packet socket (`CAP_NET_RAW`), so they leave
//! with the right source even before the kernel would use the address.

mod packet;
mod park;
mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use self::packet::send;
pub use self::park::{Parked, beginning, readdress};
pub use self::watch::{Watch, claimant, probe, question};
use crate::netlink::route::Link;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Announces `addr` on an Ethernet interface; once, callers repeat it.
///
/// # Errors
/// What `socket` or `sendto` said; `Unsupported` when the interface has no hardware address.
pub fn announce(link: &Link, addr: IpAddr) -> io::Result<()> {
    let mac = link.mac.ok_or(io::ErrorKind::Unsupported)?;
    match addr {
        IpAddr::V4(addr) => {
            // Some neighbours only heed requests, some only replies.
            send(link.index, ETHERTYPE_ARP, &gratuitous_arp(mac, addr, ArpKind::Request))?;
            send(link.index, ETHERTYPE_ARP, &gratuitous_arp(mac, addr, ArpKind::Reply))
        }
        IpAddr::V6(addr) => send(link.index, ETHERTYPE_IPV6, &unsolicited_advertisement(mac, addr)),
    }
}

/// The two forms of a gratuitous ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpKind {
    /// "Who has ADDR? Tell ADDR".
    Request,
    /// "ADDR is at MAC".
    Reply,
}

/// An Ethernet frame (RFC 826, RFC 5227 section 3).
pub fn gratuitous_arp(mac: [u8; 6], addr: Ipv4Addr, kind: ArpKind) -> Vec<u8> {
    let target = if kind == ArpKind::Request { [0; 6] } else { mac };
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, if kind == ArpKind::Request { 1 } else { 2 }]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&addr.octets());
    frame.extend_from_slice(&target);
    frame.extend_from_slice(&addr.octets());
    // The shortest Ethernet frame.
    frame.resize(60, 0);
    frame
}

/// An Ethernet frame to all nodes, overriding what they know (RFC 4861 sections 4.4 and 7.2.6).
pub fn unsolicited_advertisement(mac: [u8; 6], addr: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend_from_slice(&addr.octets());
    icmp.extend_from_slice(&[2, 1]);
    icmp.extend_from_slice(&mac);
    let sum =
        checksum(&[&addr.octets(), &all_nodes.octets(), &[0, 0, 0, icmp.len() as u8, 0, 0, 0, 58], &icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255]);
    frame.extend_from_slice(&addr.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&icmp);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

/// The Internet checksum over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|p| p.chunks(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_names_the_address_twice() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(192, 0, 2, 10), ArpKind::Reply);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[20..22], [0, 2]);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn an_advertisement_has_a_right_checksum() {
        let addr: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, addr);
        let (ip, icmp) = frame[14..].split_at(40);
        assert_eq!(ip[7], 255, "hop limit");
        // Over everything, the sum included, the checksum of a right message is zero.
        assert_eq!(checksum(&[&ip[8..40], &[0, 0, 0, 32, 0, 0, 0, 58], icmp]), 0);
    }
}
