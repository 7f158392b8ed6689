//! The kernel-enforced lease: nftables sets whose elements run out.
//!
//! For each VIP, rules drop traffic to and from it, and ARP or neighbour discovery for it, unless the
//! VIP is an element of the set `held`. The holder puts it there with a timeout that ends before its
//! lease does, and renews it with the lease. When every process of the holder stands still, the
//! element runs out and the host falls silent, to within a kernel tick.
//!
//! A VIP that has moved away while its connections here go on is an element of `draining`, with a
//! timeout too: everything of its connections passes, but nothing that would begin one, and
//! neighbours are asked in the name of another address of this host (`own`) and never answered.
//!
//! Each family has its table (`ip`, `ip6`, `arp`), because sets are not shared between tables. The
//! tables are ours alone; setting up replaces them. How a new holder passes packets on: [`pass`].

mod batch;
pub mod pass;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use self::batch::{Base, Batch, Element, Hook, NFPROTO_ARP, NFPROTO_IPV4, NFPROTO_IPV6, REG, Set};
use super::Netlink;
use super::route::octets;

/// Name of our tables.
const TABLE: &str = "phalanx_vip";
const HELD: &str = "held";
const DRAINING: &str = "draining";
const OWN: &str = "own";

const HOOK_LOCAL_IN: u32 = 1;
const HOOK_LOCAL_OUT: u32 = 3;
/// Before connection tracking and everything that users put there.
const PRIORITY: i32 = -310;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Of ICMP: a packet could not be delivered, which is how the size of packets on a path is learned.
const UNREACHABLE: u8 = 3;
/// Of ICMPv6: the errors are 1 to 4.
const LAST_ERROR6: u8 = 4;
const SOLICITATION: u8 = 135;

/// A connection to nftables.
#[derive(Debug)]
pub struct Nft(Netlink);

/// Where in a packet an address stands that must be held.
struct Match {
    family: u8,
    chain: &'static str,
    /// Only neighbour solicitations.
    solicitation: bool,
    base: Base,
    offset: u32,
}

const V4: [Match; 4] = [
    Match { family: NFPROTO_IPV4, chain: "in", solicitation: false, base: Base::Network, offset: 16 },
    Match { family: NFPROTO_IPV4, chain: "out", solicitation: false, base: Base::Network, offset: 12 },
    // ARP over Ethernet: sender protocol address at 14, target protocol address at 24.
    Match { family: NFPROTO_ARP, chain: "in", solicitation: false, base: Base::Network, offset: 24 },
    Match { family: NFPROTO_ARP, chain: "out", solicitation: false, base: Base::Network, offset: 14 },
];

const V6: [Match; 3] = [
    Match { family: NFPROTO_IPV6, chain: "in", solicitation: false, base: Base::Network, offset: 24 },
    Match { family: NFPROTO_IPV6, chain: "out", solicitation: false, base: Base::Network, offset: 8 },
    // They go to a multicast address; the target stands at 8 of the ICMPv6 message.
    Match { family: NFPROTO_IPV6, chain: "in", solicitation: true, base: Base::Transport, offset: 8 },
];

impl Nft {
    /// Opens it.
    ///
    /// # Errors
    /// What `socket` said: the kernel may have no netfilter.
    pub fn open() -> io::Result<Nft> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Nft)
    }

    /// Makes our tables anew, with rules for these VIPs, none of which is held.
    ///
    /// # Errors
    /// What the kernel said: no permission, or no nftables.
    pub fn set_up(&mut self, vips: &[IpAddr]) -> io::Result<()> {
        self.remove_tables()?;
        let mut batch = Batch::new(&mut self.0, TABLE);
        if vips.iter().any(IpAddr::is_ipv4) {
            sets_and_chains(&mut batch, NFPROTO_IPV4);
            sets_and_chains(&mut batch, NFPROTO_ARP);
            draining_rules(&mut batch, NFPROTO_IPV4);
            // An ARP packet tells the neighbours who has its sender's address.
            batch.rule(NFPROTO_ARP, "out", |r| {
                r.load(Base::Network, 14, 4, REG).map(OWN, REG, REG);
                r.write(REG, Base::Network, 14, 4, false);
            });
        }
        if vips.iter().any(IpAddr::is_ipv6) {
            sets_and_chains(&mut batch, NFPROTO_IPV6);
            // As a solicitation does.
            batch.rule(NFPROTO_IPV6, "out", |r| {
                r.is(Base::Network, 6, &[ICMP6]).is(Base::Transport, 0, &[SOLICITATION]);
                r.load(Base::Network, 8, 16, REG).map(OWN, REG, REG);
                r.write(REG, Base::Network, 8, 16, true);
            });
            draining_rules(&mut batch, NFPROTO_IPV6);
        }
        for vip in vips {
            for place in places(*vip) {
                let vip = octets(*vip);
                batch.rule(place.family, place.chain, |r| {
                    if place.solicitation {
                        r.is(Base::Transport, 0, &[SOLICITATION]);
                    }
                    r.is(place.base, place.offset, &vip).is_not_in(HELD, REG).drop();
                });
            }
        }
        batch.commit()
    }

    /// Lets traffic of a VIP through for `timeout` from now; renews what is there.
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when somebody removed our tables.
    pub fn hold(&mut self, vip: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        for family in families(vip) {
            batch.renew(*family, HELD, &[key(vip)], timeout);
        }
        batch.commit()
    }

    /// Silences a VIP now.
    ///
    /// # Errors
    /// What the kernel said, other than that the table is not there.
    pub fn drop_hold(&mut self, vip: IpAddr) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        for family in families(vip) {
            batch.remove(*family, HELD, &[key(vip)]);
        }
        present(batch.commit())
    }

    /// From now on, and for `timeout`, a VIP only has the connections that it has: nothing that would
    /// begin one passes. It is not held any more; neighbours are asked in the name of `own`. Renews what
    /// is there, as long as `own` is the same.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn drain(&mut self, vip: IpAddr, own: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        for family in families(vip) {
            batch.renew(*family, OWN, &[pair(vip, own)], timeout);
            if *family != NFPROTO_ARP {
                batch.renew(*family, DRAINING, &[key(vip)], timeout);
            }
            batch.remove(*family, HELD, &[key(vip)]);
        }
        batch.commit()
    }

    /// Ends [`drain`](Nft::drain): the VIP is held again, or gone.
    ///
    /// # Errors
    /// What the kernel said, other than that it was not draining.
    pub fn end_drain(&mut self, vip: IpAddr) -> io::Result<()> {
        let of = |family: &u8| if *family == NFPROTO_ARP { &[OWN][..] } else { &[OWN, DRAINING][..] };
        let sets = || families(vip).iter().flat_map(|family| of(family).iter().map(|set| (*family, *set)));
        let mut batch = Batch::new(&mut self.0, TABLE);
        for (family, set) in sets() {
            batch.remove_present(family, set, &[key(vip)]);
        }
        if batch.commit().is_ok() {
            return Ok(());
        }
        for (family, set) in sets() {
            let mut batch = Batch::new(&mut self.0, TABLE);
            batch.remove_present(family, set, &[key(vip)]);
            present(batch.commit())?;
        }
        Ok(())
    }

    /// Removes our tables.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_tables(&mut self) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        for family in [NFPROTO_IPV4, NFPROTO_ARP, NFPROTO_IPV6] {
            batch.no_table(family);
        }
        batch.commit()?;
        // Not every kernel has it; then we never made one.
        let _ = self.remove_passes();
        Ok(())
    }
}

/// That it is not there is as good as removed.
fn present(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sets_and_chains(batch: &mut Batch<'_>, family: u8) {
    let key = if family == NFPROTO_IPV6 { 16 } else { 4 };
    batch.table(family);
    batch.set(family, &Set { name: HELD, id: 1, key, value: 0, dynamic: 0 });
    batch.set(family, &Set { name: OWN, id: 2, key, value: key, dynamic: 0 });
    if family != NFPROTO_ARP {
        batch.set(family, &Set { name: DRAINING, id: 3, key, value: 0, dynamic: 0 });
    }
    let (hook_in, hook_out) = if family == NFPROTO_ARP { (0, 1) } else { (HOOK_LOCAL_IN, HOOK_LOCAL_OUT) };
    for (chain, number) in [("in", hook_in), ("out", hook_out)] {
        batch.chain(family, &Hook { chain, number, priority: PRIORITY, device: None });
    }
}

/// What passes of a draining VIP: its connections, and what routers say about them.
fn draining_rules(batch: &mut Batch<'_>, family: u8) {
    let (protocol, source, destination, length) = ip_offsets(family);
    batch.rule(family, "in", |r| {
        r.is(Base::Network, protocol, &[TCP]).begins(true);
        r.load(Base::Network, destination, length, REG).is_in(DRAINING, REG).accept();
    });
    batch.rule(family, "in", |r| {
        errors(r, family);
        r.load(Base::Network, destination, length, REG).is_in(DRAINING, REG).accept();
    });
    batch.rule(family, "out", |r| {
        r.is(Base::Network, protocol, &[TCP]);
        r.load(Base::Network, source, length, REG).is_in(DRAINING, REG).accept();
    });
}

/// The packet is an ICMP error.
fn errors(r: &mut batch::Rule<'_>, family: u8) {
    if family == NFPROTO_IPV6 {
        r.is(Base::Network, 6, &[ICMP6]).load(Base::Transport, 0, 1, REG).at_most(&[LAST_ERROR6]);
    } else {
        r.is(Base::Network, 9, &[ICMP]).is(Base::Transport, 0, &[UNREACHABLE]);
    }
}

/// In an IP header: offsets of the protocol, the source and the destination, and how long these are.
fn ip_offsets(family: u8) -> (u32, u32, u32, u32) {
    if family == NFPROTO_IPV6 { (6, 8, 24, 16) } else { (9, 12, 16, 4) }
}

fn places(vip: IpAddr) -> &'static [Match] {
    match vip {
        IpAddr::V4(_) => &V4,
        IpAddr::V6(_) => &V6,
    }
}

fn families(vip: IpAddr) -> &'static [u8] {
    match vip {
        IpAddr::V4(_) => &[NFPROTO_IPV4, NFPROTO_ARP],
        IpAddr::V6(_) => &[NFPROTO_IPV6],
    }
}

fn key(addr: IpAddr) -> Element {
    Element { key: octets(addr), value: None }
}

fn pair(key: IpAddr, value: IpAddr) -> Element {
    Element { key: octets(key), value: Some(octets(value)) }
}
