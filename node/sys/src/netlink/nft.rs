//! The kernel-enforced lease: nftables sets whose elements run out.
//!
//! For each VIP, rules drop traffic to and from it, and ARP or neighbour discovery for it, unless the
//! VIP is an element of the set `held`. The holder puts it there with a timeout that ends before its
//! lease does, and renews it with the lease. When every process of the holder stands still, the
//! element runs out and the host falls silent, to within a kernel tick.
//!
//! Each family has its table (`ip`, `ip6`, `arp`), because sets are not shared between tables. The
//! tables are ours alone; setting up replaces them.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::route::octets;
use super::{Builder, NLM_F_ACK, Netlink};

/// Name of our tables.
const TABLE: &str = "phalanx_vip";
const SET: &str = "held";
const SET_ID: u32 = 1;

const SUBSYS: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYS;
const DELTABLE: u16 = SUBSYS | 2;
const NEWCHAIN: u16 = SUBSYS | 3;
const NEWRULE: u16 = SUBSYS | 6;
const NEWSET: u16 = SUBSYS | 9;
const NEWSETELEM: u16 = SUBSYS | 12;
const DELSETELEM: u16 = SUBSYS | 14;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_IPV6: u8 = 10;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const HOOK_LOCAL_IN: u32 = 1;
const HOOK_LOCAL_OUT: u32 = 3;
/// Before connection tracking and everything that users put there.
const PRIORITY: i32 = -310;

/// A connection to nftables.
#[derive(Debug)]
pub struct Nft(Netlink);

/// Where in a packet an address stands that must be held.
struct Match {
    family: u8,
    chain: &'static str,
    /// Only packets whose byte here has this value.
    kind: Option<(u32, u32, u8)>,
    base: u32,
    offset: u32,
}

const V4: [Match; 4] = [
    Match { family: NFPROTO_IPV4, chain: "in", kind: None, base: PAYLOAD_NETWORK, offset: 16 },
    Match { family: NFPROTO_IPV4, chain: "out", kind: None, base: PAYLOAD_NETWORK, offset: 12 },
    // ARP over Ethernet: sender protocol address at 14, target protocol address at 24.
    Match { family: NFPROTO_ARP, chain: "in", kind: None, base: PAYLOAD_NETWORK, offset: 24 },
    Match { family: NFPROTO_ARP, chain: "out", kind: None, base: PAYLOAD_NETWORK, offset: 14 },
];

const V6: [Match; 3] = [
    Match { family: NFPROTO_IPV6, chain: "in", kind: None, base: PAYLOAD_NETWORK, offset: 24 },
    Match { family: NFPROTO_IPV6, chain: "out", kind: None, base: PAYLOAD_NETWORK, offset: 8 },
    // Neighbour solicitations (ICMPv6 type 135 after a plain header) go to a multicast address; the
    // target stands at 8 of the ICMPv6 message.
    Match {
        family: NFPROTO_IPV6,
        chain: "in",
        kind: Some((PAYLOAD_TRANSPORT, 0, 135)),
        base: PAYLOAD_TRANSPORT,
        offset: 8,
    },
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
        let mut batch = Batch::new(&mut self.0);
        let v4 = vips.iter().any(IpAddr::is_ipv4);
        let v6 = vips.iter().any(IpAddr::is_ipv6);
        for (wanted, family, key) in [(v4, NFPROTO_IPV4, 4), (v4, NFPROTO_ARP, 4), (v6, NFPROTO_IPV6, 16)] {
            if wanted {
                batch.table_with_set_and_chains(family, key);
            }
        }
        for vip in vips {
            for place in places(*vip) {
                batch.rule(place, &octets(*vip));
            }
        }
        batch.commit()
    }

    /// Lets traffic of a VIP through for `timeout` from now; renews what is there.
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when somebody removed our tables.
    pub fn hold(&mut self, vip: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0);
        for family in families(vip) {
            // An existing element keeps its old timeout on most kernels, and one that is missing cannot be
            // deleted: so add, delete, add, in one transaction.
            batch.element(NEWSETELEM, *family, vip, None);
            batch.element(DELSETELEM, *family, vip, None);
            batch.element(NEWSETELEM, *family, vip, Some(timeout));
        }
        batch.commit()
    }

    /// Silences a VIP now.
    ///
    /// # Errors
    /// What the kernel said, other than that the table is not there.
    pub fn drop_hold(&mut self, vip: IpAddr) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0);
        for family in families(vip) {
            batch.element(NEWSETELEM, *family, vip, None);
            batch.element(DELSETELEM, *family, vip, None);
        }
        match batch.commit() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes our tables.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_tables(&mut self) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0);
        for family in [NFPROTO_IPV4, NFPROTO_ARP, NFPROTO_IPV6] {
            // Added first, so that deleting it cannot fail.
            batch.object(NEWTABLE, NLM_F_CREATE, family).text(1, TABLE);
            batch.object(DELTABLE, 0, family).text(1, TABLE);
        }
        batch.commit()
    }
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

/// A transaction: all of it or nothing.
struct Batch<'a> {
    socket: &'a mut Netlink,
    builder: Builder,
    first: u32,
    last: u32,
}

impl<'a> Batch<'a> {
    fn new(socket: &'a mut Netlink) -> Batch<'a> {
        let first = socket.next_sequence();
        let mut builder = Builder::default();
        builder.message(BATCH_BEGIN, 0, first).put(&nfgenmsg(0, 10));
        Batch { socket, builder, first, last: first }
    }

    fn object(&mut self, kind: u16, flags: u16, family: u8) -> &mut Builder {
        self.last = self.socket.next_sequence();
        self.builder.message(kind, flags | NLM_F_ACK, self.last).put(&nfgenmsg(family, 0))
    }

    fn table_with_set_and_chains(&mut self, family: u8, key: u32) {
        self.object(NEWTABLE, NLM_F_CREATE, family).text(1, TABLE);
        // NFTA_SET_*: table 1, name 2, flags 3 (timeout), key type 4 (7 = ipv4_addr, 8 = ipv6_addr), key
        // length 5, id 10.
        let set = self.object(NEWSET, NLM_F_CREATE, family).text(1, TABLE).text(2, SET).be32(3, 0x10);
        set.be32(4, if key == 4 { 7 } else { 8 }).be32(5, key).be32(10, SET_ID);
        let (hook_in, hook_out) =
            if family == NFPROTO_ARP { (0, 1) } else { (HOOK_LOCAL_IN, HOOK_LOCAL_OUT) };
        for (name, hook) in [("in", hook_in), ("out", hook_out)] {
            // NFTA_CHAIN_*: table 1, name 3, hook 4 {number 1, priority 2}, policy 5, type 7.
            let chain = self.object(NEWCHAIN, NLM_F_CREATE, family).text(1, TABLE).text(3, name);
            chain.nest(4, |b| {
                b.be32(1, hook).attr(2, &PRIORITY.to_be_bytes());
            });
            chain.be32(5, NF_ACCEPT).text(7, "filter");
        }
    }

    fn rule(&mut self, place: &Match, vip: &[u8]) {
        // NFTA_RULE_*: table 1, chain 2, expressions 4.
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        let rule = self.object(NEWRULE, flags, place.family).text(1, TABLE).text(2, place.chain);
        let length = vip.len() as u32;
        rule.nest(4, |b| {
            if let Some((base, offset, value)) = place.kind {
                payload(b, base, offset, 1);
                equals(b, &[value]);
            }
            payload(b, place.base, place.offset, length);
            equals(b, vip);
            // NFTA_LOOKUP_*: set 1, source register 2, set id 4, flags 5 (inverted).
            expression(b, "lookup", |b| {
                b.text(1, SET).be32(2, REG_1).be32(4, SET_ID).be32(5, 1);
            });
            // NFTA_IMMEDIATE_*: destination 1, data 2 { verdict 2 { code 1 } }.
            expression(b, "immediate", |b| {
                b.be32(1, REG_VERDICT).nest(2, |b| {
                    b.nest(2, |b| {
                        b.be32(1, NF_DROP);
                    });
                });
            });
        });
    }

    fn element(&mut self, kind: u16, family: u8, vip: IpAddr, timeout: Option<Duration>) {
        // NFTA_SET_ELEM_LIST_*: table 1, set 2, elements 3; NFTA_SET_ELEM_*: key 1 { value 1 }, timeout 4.
        let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
        self.object(kind, flags, family).text(1, TABLE).text(2, SET).nest(3, |b| {
            b.nest(1, |b| {
                b.nest(1, |b| {
                    b.attr(1, &octets(vip));
                });
                if let Some(timeout) = timeout {
                    b.attr(4, &(timeout.as_millis().max(1) as u64).to_be_bytes());
                }
            });
        });
    }

    fn commit(mut self) -> io::Result<()> {
        let end = self.socket.next_sequence();
        self.builder.message(BATCH_END, 0, end).put(&nfgenmsg(0, 10));
        self.socket.send(self.builder.finish())?;
        self.socket.answers(self.first, self.last, |_, _| {})
    }
}

fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn expression(b: &mut Builder, name: &str, data: impl FnOnce(&mut Builder)) {
    // NFTA_LIST_ELEM 1 { NFTA_EXPR_NAME 1, NFTA_EXPR_DATA 2 }.
    b.nest(1, |b| {
        b.text(1, name).nest(2, data);
    });
}

fn payload(b: &mut Builder, base: u32, offset: u32, length: u32) {
    expression(b, "payload", |b| {
        b.be32(1, REG_1).be32(2, base).be32(3, offset).be32(4, length);
    });
}

fn equals(b: &mut Builder, value: &[u8]) {
    // NFTA_CMP_*: source register 1, operator 2 (0 = equal), data 3 { value 1 }.
    expression(b, "cmp", |b| {
        b.be32(1, REG_1).be32(2, 0).nest(3, |b| {
            b.attr(1, value);
        });
    });
}
