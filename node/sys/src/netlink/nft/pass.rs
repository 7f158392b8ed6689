//! Passing packets of a VIP on to the node that held it before: as long as connections go on there.
//!
//! A chain at the ingress of the VIP's interface knows, for VIPs of the sets `watch4` and `watch6`, the
//! connections that this host has taken since (the sets `mine4` and `mine6`, filled by each SYN that passes
//! and renewed by each packet); all other TCP packets to the VIP go, unchanged but for the hop count, to
//! the neighbour that the map `next4` or `next6` has for it. The kernel finds out the neighbour's hardware address and sends from its own, so
//! no switch sees an address where it is not. Errors of routers go where the packet went that they are
//! about. A packet that nobody knows dies at the last node of the chain, or when its hops are used up.
//!
//! A node from which the VIP has moved away sends home, to the holder (`home4`, `home6`), what still comes to
//! it from elsewhere than the other nodes (`peers`) and is not of its own connections: neighbours learn
//! of a move a moment later than the nodes do.
//!
//! Elements run out when they are not renewed: what nobody looks after ends by itself. The chains are there
//! from the start, because making one may wait long for the kernel's lock of all interfaces; packets
//! to a VIP that is not watched cost one look at an empty set.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::batch::{Base, Batch, Element, Hook, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV, REG, Set};
use super::{Nft, TABLE, TCP, errors, ip_offsets, key, octets, pair, present};

const HOOK_INGRESS: u32 = 0;
const PRIORITY: i32 = -500;

/// Hardware addresses of the other nodes.
const PEERS: &str = "peers";

const META_PROTOCOL: u32 = 1;
const META_TYPE: u32 = 19;
/// Of a packet: addressed to this host.
const TO_HOST: [u8; 1] = [0];

/// A connection that has not been answered yet is remembered for so long.
const BEGINNING: Duration = Duration::from_secs(5);

/// One that is quiet for longer must be told of by [`Nft::add_mine`].
pub const QUIET: Duration = Duration::from_secs(60);

/// Connections remembered at most, of each family.
const MOST: u32 = 1 << 20;

/// Connections in one message.
const PIECE: usize = 200;

/// One end of a connection, and the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Here: the VIP.
    pub local: SocketAddr,
    /// There.
    pub peer: SocketAddr,
}

/// What is to be done with packets of one family.
struct Kind {
    family: u8,
    /// As the frame says.
    ethertype: [u8; 2],
    watch: &'static str,
    mine: &'static str,
    next: &'static str,
    home: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        family: NFPROTO_IPV4,
        ethertype: [0x08, 0x00],
        watch: "watch4",
        mine: "mine4",
        next: "next4",
        home: "home4",
    },
    Kind {
        family: NFPROTO_IPV6,
        ethertype: [0x86, 0xdd],
        watch: "watch6",
        mine: "mine6",
        next: "next6",
        home: "home6",
    },
];

impl Kind {
    fn of(addr: IpAddr) -> &'static Kind {
        &KINDS[usize::from(addr.is_ipv6())]
    }

    fn sets(&self, id: u32) -> [Set; 4] {
        let (.., length) = ip_offsets(self.family);
        [
            Set { name: self.mine, id, key: 2 * length + 8, value: 0, dynamic: MOST },
            Set { name: self.next, id: id + 1, key: length, value: length, dynamic: 0 },
            Set { name: self.watch, id: id + 2, key: length, value: 0, dynamic: 0 },
            Set { name: self.home, id: id + 3, key: length, value: length, dynamic: 0 },
        ]
    }

    fn rules(&self, batch: &mut Batch<'_>, chain: &str, device: u32) {
        let (protocol, source, destination, length) = ip_offsets(self.family);
        let words = length / 4;
        // The connection in registers: VIP, peer, peer's port, port.
        let (peer, peer_port, port) = (REG + words, REG + 2 * words, REG + 2 * words + 1);
        let (spare, device_in) = (port + 1, port + 1 + words);
        let tcp = |r: &mut super::batch::Rule<'_>| {
            r.meta(META_PROTOCOL, &self.ethertype).meta(META_TYPE, &TO_HOST);
            r.is(Base::Network, protocol, &[TCP]);
        };
        let flow = |r: &mut super::batch::Rule<'_>| {
            r.load(Base::Network, destination, length, REG).load(Base::Network, source, length, peer);
            r.load(Base::Transport, 0, 2, peer_port).load(Base::Transport, 2, 2, port);
        };
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            r.meta(META_PROTOCOL, &self.ethertype).load(Base::Network, destination, length, REG);
            r.is_not_in(self.watch, REG).accept();
        });
        // What comes from elsewhere than a node, where the VIP has moved away, was meant for the holder: all
        // but the connections of this node.
        let home = |r: &mut super::batch::Rule<'_>| {
            r.load(Base::Link, 6, 6, REG).is_not_in(PEERS, REG);
            r.load(Base::Network, destination, length, REG).map(self.home, REG, spare);
            r.constant(device_in, device).forward(device_in, spare, self.family);
        };
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            r.begins(false);
            home(r);
        });
        // What begins is ours.
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            r.begins(false);
            flow(r);
            r.add_to(self.mine, REG, BEGINNING);
        });
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            r.begins(false).accept();
        });
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            flow(r);
            r.is_in(self.mine, REG).add_to(self.mine, REG, QUIET).accept();
        });
        let pass = |r: &mut super::batch::Rule<'_>| {
            r.load(Base::Network, destination, length, REG).map(self.next, REG, spare);
            r.constant(device_in, device).forward(device_in, spare, self.family);
        };
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            home(r);
        });
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            pass(r);
        });
        // After the 8 bytes of an ICMP error comes the beginning of the packet that it is about: one from
        // the VIP to the peer.
        let inner = 8;
        let error = |r: &mut super::batch::Rule<'_>| {
            r.meta(META_PROTOCOL, &self.ethertype).meta(META_TYPE, &TO_HOST);
            errors(r, self.family);
            r.is(Base::Transport, inner + protocol, &[TCP]);
        };
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            error(r);
            let inner_tcp = inner + if self.family == NFPROTO_IPV6 { 40 } else { 20 };
            r.load(Base::Transport, inner + source, length, REG);
            r.load(Base::Transport, inner + destination, length, peer);
            r.load(Base::Transport, inner_tcp + 2, 2, peer_port).load(Base::Transport, inner_tcp, 2, port);
            r.is_in(self.mine, REG).accept();
        });
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            error(r);
            pass(r);
        });
    }
}

impl Nft {
    /// Makes the table, with chains for these interfaces (names and numbers), from which nothing is passed
    /// on yet. What it knew is forgotten.
    ///
    /// # Errors
    /// What the kernel said: it may have no `netdev` family, or cannot forward.
    pub fn set_up_passes(&mut self, interfaces: &[(String, u32)]) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.no_table(NFPROTO_NETDEV);
        batch.table(NFPROTO_NETDEV);
        batch.set(NFPROTO_NETDEV, &Set { name: PEERS, id: 1, key: 6, value: 0, dynamic: 0 });
        for (kind, id) in KINDS.iter().zip([2, 6]) {
            for set in kind.sets(id) {
                batch.set(NFPROTO_NETDEV, &set);
            }
        }
        for (name, index) in interfaces {
            let chain = format!("if{index}");
            let hook = Hook { chain: &chain, number: HOOK_INGRESS, priority: PRIORITY, device: Some(name) };
            batch.chain(NFPROTO_NETDEV, &hook);
            for kind in &KINDS {
                kind.rules(&mut batch, &chain, *index);
            }
        }
        batch.commit()
    }

    /// Remembers connections to a VIP that begin from now on, for `timeout`; renews it. Those that there
    /// are come by [`add_mine`](Nft::add_mine), after this and before [`pass`](Nft::pass).
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when the table is not there.
    pub fn watch(&mut self, vip: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.renew(NFPROTO_NETDEV, Kind::of(vip).watch, &[key(vip)], timeout);
        batch.commit()
    }

    /// Passes packets of unknown connections of a VIP on to the neighbour `to`, for `timeout` from now;
    /// renews it.
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when the table is not there.
    pub fn pass(&mut self, vip: IpAddr, to: IpAddr, timeout: Duration) -> io::Result<()> {
        self.put(Kind::of(vip).next, vip, to, timeout)
    }

    /// The VIP has moved away, to the neighbour `to`: what is not from one of the `peers` and not of a
    /// connection of this host goes there, for `timeout` from now; renews it.
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when the table is not there.
    pub fn send_home(
        &mut self,
        vip: IpAddr,
        to: IpAddr,
        peers: &[[u8; 6]],
        timeout: Duration,
    ) -> io::Result<()> {
        let peers: Vec<Element> =
            peers.iter().map(|mac| Element { key: mac.to_vec(), value: None }).collect();
        if !peers.is_empty() {
            let mut batch = Batch::new(&mut self.0, TABLE);
            batch.renew(NFPROTO_NETDEV, PEERS, &peers, timeout);
            batch.commit()?;
        }
        self.put(Kind::of(vip).home, vip, to, timeout)
    }

    fn put(&mut self, map: &str, vip: IpAddr, to: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.renew(NFPROTO_NETDEV, map, &[pair(vip, to)], timeout);
        match batch.commit() {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
            // It was passed on to another, whose entry cannot be renewed with this value. In one transaction:
            // what came between two would be answered with a reset.
            Err(_) => {
                let mut batch = Batch::new(&mut self.0, TABLE);
                batch.remove_present(NFPROTO_NETDEV, map, &[key(vip)]);
                batch.renew(NFPROTO_NETDEV, map, &[pair(vip, to)], timeout);
                batch.commit()
            }
        }
    }

    /// Passes nothing of a VIP on any more, unless it goes home.
    ///
    /// # Errors
    /// What the kernel said, other than that nothing was.
    pub fn end_next(&mut self, vip: IpAddr) -> io::Result<()> {
        self.end(&[Kind::of(vip).next], vip)
    }

    /// The VIP is here (again).
    ///
    /// # Errors
    /// What the kernel said, other than that it was not away.
    pub fn end_home(&mut self, vip: IpAddr) -> io::Result<()> {
        self.end(&[Kind::of(vip).home], vip)
    }

    /// Passes nothing of a VIP on any more.
    ///
    /// # Errors
    /// What the kernel said, other than that nothing was.
    pub fn end_pass(&mut self, vip: IpAddr) -> io::Result<()> {
        let kind = Kind::of(vip);
        self.end(&[kind.home, kind.next, kind.watch], vip)
    }

    fn end(&mut self, sets: &[&str], vip: IpAddr) -> io::Result<()> {
        for set in sets {
            let mut batch = Batch::new(&mut self.0, TABLE);
            batch.remove_present(NFPROTO_NETDEV, set, &[key(vip)]);
            present(batch.commit())?;
        }
        Ok(())
    }

    /// These connections are this host's, for [`QUIET`] from now.
    ///
    /// # Errors
    /// What the kernel said; some may have been added.
    pub fn add_mine(&mut self, flows: &[Flow]) -> io::Result<()> {
        for kind in &KINDS {
            let of_kind = |f: &&Flow| f.local.ip().is_ipv6() == (kind.family == NFPROTO_IPV6);
            let elements: Vec<Element> = flows.iter().filter(of_kind).map(element).collect();
            for piece in elements.chunks(PIECE) {
                let mut batch = Batch::new(&mut self.0, TABLE);
                batch.renew(NFPROTO_NETDEV, kind.mine, piece, QUIET);
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_passes(&mut self) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.no_table(NFPROTO_NETDEV);
        batch.commit()
    }
}

fn element(flow: &Flow) -> Element {
    let mut key = octets(flow.local.ip());
    key.extend(octets(flow.peer.ip()));
    for port in [flow.peer.port(), flow.local.port()] {
        key.extend(port.to_be_bytes());
        key.extend([0, 0]);
    }
    Element { key, value: None }
}
