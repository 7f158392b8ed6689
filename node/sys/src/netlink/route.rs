//! Addresses and links (`NETLINK_ROUTE`): what a floating IP of `announce arp` consists of.
//!
//! Adding is idempotent and renews the lifetime; removing what is not there is not an error.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::{Builder, NLM_F_ACK, Netlink, array, attributes};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_GETLINK: u16 = 18;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
/// No duplicate detection: the lease has settled whose address it is, and waiting a second for
/// neighbours to object would be a second of outage.
const IFA_F_NODAD: u8 = 0x02;
const FOREVER: u32 = u32::MAX;

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub struct Route(Netlink);

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Hardware address, when it is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// Switched on by the administrator.
    pub up: bool,
    /// There is a carrier.
    pub running: bool,
}

impl Route {
    /// Opens it; needs no privilege, changing something does (`CAP_NET_ADMIN`).
    ///
    /// # Errors
    /// What `socket` said.
    pub fn open() -> io::Result<Route> {
        Netlink::open(SockProtocol::NetlinkRoute).map(Route)
    }

    /// Puts an address on an interface, or renews it; with `valid` the kernel removes it after so
    /// many whole seconds.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_address(
        &mut self,
        link: u32,
        addr: IpAddr,
        prefix: u8,
        valid: Option<Duration>,
    ) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut b = Builder::default();
        b.message(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, sequence);
        address(&mut b, link, addr, prefix);
        // IFA_CACHEINFO: preferred, valid, created, updated.
        let valid = valid.map_or(FOREVER, |v| v.as_secs().clamp(1, u64::from(FOREVER - 1)) as u32);
        let mut info = Vec::with_capacity(16);
        for word in [valid, valid, 0, 0] {
            info.extend_from_slice(&u32::to_ne_bytes(word));
        }
        b.attr(IFA_CACHEINFO, &info);
        self.0.send(b.finish())?;
        self.0.answers(sequence, sequence, |_, _| {})
    }

    /// Takes an address off an interface; tells whether it was there.
    ///
    /// # Errors
    /// What the kernel said, other than that it is not there.
    pub fn remove_address(&mut self, link: u32, addr: IpAddr, prefix: u8) -> io::Result<bool> {
        let sequence = self.0.next_sequence();
        let mut b = Builder::default();
        b.message(RTM_DELADDR, NLM_F_ACK, sequence);
        address(&mut b, link, addr, prefix);
        self.0.send(b.finish())?;
        match self.0.answers(sequence, sequence, |_, _| {}) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether an address is on an interface.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn has_address(&mut self, link: u32, addr: IpAddr) -> io::Result<bool> {
        let sequence = self.0.next_sequence();
        let mut b = Builder::default();
        b.message(RTM_GETADDR, NLM_F_DUMP, sequence).put(&[family(addr), 0, 0, 0]).put(&0u32.to_ne_bytes());
        self.0.send(b.finish())?;
        let mut found = false;
        self.0.answers(sequence, sequence, |kind, body| {
            if kind == RTM_NEWADDR && body.len() >= 8 && u32::from_ne_bytes(array(&body[4..8])) == link {
                let mut ours = attributes(&body[8..]).filter(|(k, _)| matches!(*k, IFA_LOCAL | IFA_ADDRESS));
                found |= ours.any(|(_, value)| value == octets(addr));
            }
        })?;
        Ok(found)
    }

    /// The addresses of an interface, of the family of `like`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn addresses(&mut self, link: u32, like: IpAddr) -> io::Result<Vec<IpAddr>> {
        let sequence = self.0.next_sequence();
        let mut b = Builder::default();
        b.message(RTM_GETADDR, NLM_F_DUMP, sequence).put(&[family(like), 0, 0, 0]).put(&0u32.to_ne_bytes());
        self.0.send(b.finish())?;
        let mut found = Vec::new();
        self.0.answers(sequence, sequence, |kind, body| {
            if kind == RTM_NEWADDR && body.len() >= 8 && u32::from_ne_bytes(array(&body[4..8])) == link {
                let of = |wanted| attributes(&body[8..]).find(|(k, _)| *k == wanted).map(|(_, value)| value);
                // IPv6 has only the second, where it is the address; IPv4 has the peer's there.
                let Some(value) = of(IFA_LOCAL).or(of(IFA_ADDRESS)) else { return };
                match value.len() {
                    4 => found.push(IpAddr::from(array::<4>(value))),
                    16 => found.push(IpAddr::from(array::<16>(value))),
                    _ => {}
                }
            }
        })?;
        Ok(found)
    }

    /// An interface by name.
    ///
    /// # Errors
    /// `interface 'NAME' does not exist`, or what the kernel said.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let sequence = self.0.next_sequence();
        let mut b = Builder::default();
        b.message(RTM_GETLINK, NLM_F_ACK, sequence).put(&[0; 16]).text(IFLA_IFNAME, name);
        self.0.send(b.finish())?;
        let mut link = None;
        let answer = self.0.answers(sequence, sequence, |_, body| {
            if body.len() < 16 {
                return;
            }
            let flags = u32::from_ne_bytes(array(&body[8..12]));
            let mac = attributes(&body[16..]).find(|(kind, _)| *kind == IFLA_ADDRESS);
            link = Some(Link {
                index: u32::from_ne_bytes(array(&body[4..8])),
                mac: mac.and_then(|(_, value)| value.try_into().ok()),
                up: flags & IFF_UP != 0,
                running: flags & IFF_RUNNING != 0,
            });
        });
        match answer {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => Err(e),
            _ => link.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("interface '{name}' does not exist"))
            }),
        }
    }
}

fn address(b: &mut Builder, link: u32, addr: IpAddr, prefix: u8) {
    let flags = if addr.is_ipv6() { IFA_F_NODAD } else { 0 };
    // ifaddrmsg: family, prefix length, flags, scope (universe), index.
    b.put(&[family(addr), prefix, flags, 0]).put(&link.to_ne_bytes());
    b.attr(IFA_LOCAL, &octets(addr)).attr(IFA_ADDRESS, &octets(addr));
}

fn family(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

pub(super) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
