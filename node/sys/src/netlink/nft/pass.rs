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
//! of a move a moment later than the nodes do. What would begin a connection and cannot go home is lost
//! there (`closed4`, `closed6`): it must not be remembered as one of its own.
//!
//! While nodes hear of a move one after the other, a packet may come to where its connection is not, and
//! find no way on: for VIPs of the sets `settling4` and `settling6` it is lost, and comes again, where it would be answered
//! with a reset.
//!
//! Elements run out when they are not renewed: what nobody looks after ends by itself. The chains are there
//! from the start, because making one may wait long for the kernel's lock of all interfaces; packets
//! to a VIP that is not watched cost one look at an empty set.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::batch::{Base, Batch, Element, Hook, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV, REG, Set, keys};
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

/// Sets of each family.
const SETS: usize = 6;

/// Connections in one message.
const PIECE: usize = 200;

/// One end of a connection, and the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Here: the VIP.
    pub local: SocketAddr,
    /// There.
    pub peer: SocketAddr,
}

/// To which neighbours packets of unknown connections go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    /// To the one that held the VIP before.
    pub next: Option<IpAddr>,
    /// When the VIP has moved away: to the one that holds it, before all others, unless they come from a node.
    pub home: Option<IpAddr>,
    /// It has moved away: nothing begins here.
    pub closed: bool,
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
    settling: &'static str,
    closed: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        family: NFPROTO_IPV4,
        ethertype: [0x08, 0x00],
        watch: "watch4",
        mine: "mine4",
        next: "next4",
        home: "home4",
        settling: "settling4",
        closed: "closed4",
    },
    Kind {
        family: NFPROTO_IPV6,
        ethertype: [0x86, 0xdd],
        watch: "watch6",
        mine: "mine6",
        next: "next6",
        home: "home6",
        settling: "settling6",
        closed: "closed6",
    },
];

impl Kind {
    fn of(addr: IpAddr) -> &'static Kind {
        &KINDS[usize::from(addr.is_ipv6())]
    }

    fn sets(&self, id: u32) -> [Set; SETS] {
        let (.., length) = ip_offsets(self.family);
        [
            Set { name: self.mine, id, key: 2 * length + 8, value: 0, dynamic: MOST },
            Set { name: self.next, id: id + 1, key: length, value: length, dynamic: 0 },
            Set { name: self.watch, id: id + 2, key: length, value: 0, dynamic: 0 },
            Set { name: self.home, id: id + 3, key: length, value: length, dynamic: 0 },
            Set { name: self.settling, id: id + 4, key: length, value: 0, dynamic: 0 },
            Set { name: self.closed, id: id + 5, key: length, value: 0, dynamic: 0 },
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
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            r.begins(false);
            r.load(Base::Network, destination, length, REG).is_in(self.closed, REG).drop();
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
        batch.rule(NFPROTO_NETDEV, chain, |r| {
            tcp(r);
            r.load(Base::Network, destination, length, REG).is_in(self.settling, REG).drop();
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
        for (kind, id) in KINDS.iter().zip([2, 2 + SETS as u32]) {
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
    /// are come by [`add_mine`](Nft::add_mine), after this and before [`pass`](Nft::pass). By itself it changes
    /// nothing of what becomes of packets.
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when the table is not there.
    pub fn watch(&mut self, vip: IpAddr, timeout: Duration) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.renew(NFPROTO_NETDEV, Kind::of(vip).watch, &[key(vip)], timeout);
        batch.commit()
    }

    /// Passes packets of unknown connections of a VIP on, for `timeout` from now, as `to` says; `before` is what was
    /// said last, and may have run out. Those of which it does not say where are lost for the time of `settling`.
    /// All at once: what came in between would be answered with a reset. Renews [`watch`](Nft::watch).
    ///
    /// # Errors
    /// What the kernel said; `NotFound` when the table is not there.
    pub fn pass(
        &mut self,
        vip: IpAddr,
        before: Passing,
        to: Passing,
        peers: &[[u8; 6]],
        (timeout, settling): (Duration, Option<Duration>),
    ) -> io::Result<()> {
        let kind = Kind::of(vip);
        let maps = [(kind.next, before.next, to.next), (kind.home, before.home, to.home)];
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.renew(NFPROTO_NETDEV, kind.watch, &[key(vip)], timeout);
        if let Some(settling) = settling {
            batch.renew(NFPROTO_NETDEV, kind.settling, &[key(vip)], settling);
        }
        if to.home.is_some() && !peers.is_empty() {
            let element = |mac: &[u8; 6]| Element { key: mac.to_vec(), value: None };
            let peers: Vec<Element> = peers.iter().map(element).collect();
            batch.renew(NFPROTO_NETDEV, PEERS, &peers, timeout);
        }
        match (before.closed, to.closed) {
            (_, true) => batch.renew(NFPROTO_NETDEV, kind.closed, &[key(vip)], timeout),
            (true, false) => batch.remove_present(NFPROTO_NETDEV, kind.closed, &[key(vip)]),
            (false, false) => {}
        }
        for (map, before, to) in maps {
            // An entry cannot be renewed with another value.
            if before.is_some() && before != to {
                batch.remove_present(NFPROTO_NETDEV, map, &[key(vip)]);
            }
            if let Some(to) = to {
                batch.renew(NFPROTO_NETDEV, map, &[pair(vip, to)], timeout);
            }
        }
        if batch.commit().is_ok() {
            return Ok(());
        }
        self.watch(vip, timeout)?;
        self.end(kind.closed, vip)?;
        if to.closed {
            let mut batch = Batch::new(&mut self.0, TABLE);
            batch.renew(NFPROTO_NETDEV, kind.closed, &[key(vip)], timeout);
            batch.commit()?;
        }
        for (map, _, to) in maps {
            self.end(map, vip)?;
            if let Some(to) = to {
                let mut batch = Batch::new(&mut self.0, TABLE);
                batch.renew(NFPROTO_NETDEV, map, &[pair(vip, to)], timeout);
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// Passes nothing of a VIP on any more; `before` is what was said last.
    ///
    /// # Errors
    /// What the kernel said, other than that nothing was.
    pub fn end_pass(&mut self, vip: IpAddr, before: Passing) -> io::Result<()> {
        let kind = Kind::of(vip);
        let there = [
            (kind.closed, before.closed),
            (kind.home, before.home.is_some()),
            (kind.next, before.next.is_some()),
            (kind.watch, true),
        ];
        let mut batch = Batch::new(&mut self.0, TABLE);
        for (set, _) in there.iter().filter(|(_, there)| *there) {
            batch.remove_present(NFPROTO_NETDEV, set, &[key(vip)]);
        }
        if batch.commit().is_ok() {
            return Ok(());
        }
        [kind.closed, kind.home, kind.next, kind.watch].into_iter().try_for_each(|set| self.end(set, vip))
    }

    fn end(&mut self, set: &str, vip: IpAddr) -> io::Result<()> {
        let mut batch = Batch::new(&mut self.0, TABLE);
        batch.remove_present(NFPROTO_NETDEV, set, &[key(vip)]);
        present(batch.commit())
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

/// What is remembered of a VIP's connections.
#[derive(Debug)]
pub struct Remembered(IpAddr, Vec<Vec<u8>>);

impl Nft {
    /// The connections to a VIP that are remembered at this moment.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remembered(&mut self, vip: IpAddr) -> io::Result<Remembered> {
        let (prefix, mut all) = (octets(vip), Vec::new());
        keys(&mut self.0, (NFPROTO_NETDEV, TABLE, Kind::of(vip).mine), |key| {
            all.extend(key.starts_with(&prefix).then(|| key.to_vec()));
        })?;
        Ok(Remembered(vip, all))
    }

    /// Forgets what was remembered, but for these connections, which are looked up after it: those that begin
    /// meanwhile stay. A client may have used a port again, for a connection to another host.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn forget_others(&mut self, remembered: Remembered, flows: &[Flow]) -> io::Result<()> {
        let Remembered(vip, all) = remembered;
        let known: HashSet<Vec<u8>> = flows.iter().map(|flow| element(flow).key).collect();
        let stale = all.into_iter().filter(|key| !known.contains(key));
        let stale: Vec<Element> = stale.map(|key| Element { key, value: None }).collect();
        for piece in stale.chunks(PIECE) {
            let mut batch = Batch::new(&mut self.0, TABLE);
            batch.remove(NFPROTO_NETDEV, Kind::of(vip).mine, piece);
            batch.commit()?;
        }
        Ok(())
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
