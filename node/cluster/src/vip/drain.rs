//! Connections that a former holder of a VIP keeps, and to whom packets of unknown ones go.
//!
//! Each node tells the others, with its fitness, of which tenure it still has connections. From that
//! alone every node that has connections itself, the holder first of all, knows where packets go that
//! it does not know: to the node whose tenure was the last before its own. Epochs fall with every
//! hop, so that there is never a circle; and a holder that took over after a crash finds the
//! connections of earlier moves as well as one that was told to take over.
//!
//! Pure: time and messages come from the driver.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use phalanx_engine::lease::{Epoch, NodeId};

/// A node that is silent for longer has no connections any more, as far as others are concerned.
pub(super) const SILENT: Duration = Duration::from_secs(3);

/// What a node keeps of a tenure that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of the tenure.
    pub(super) epoch: Epoch,
    /// Connections that go on.
    pub(super) connections: u32,
}

/// How a node is reached on a VIP's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// An address of its own.
    pub(super) via: IpAddr,
    /// Its hardware address.
    pub(super) mac: [u8; 6],
}

/// Where packets go that are not of a node's own connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Paths {
    /// Of earlier tenures.
    pub(super) next: Option<IpAddr>,
    /// On a node that does not hold the VIP: what neighbours send there for the holder.
    pub(super) home: Option<IpAddr>,
    /// On such a node nothing begins.
    pub(super) closed: bool,
    /// The other nodes.
    pub(super) peers: Vec<[u8; 6]>,
}

/// What the others keep of one VIP, and how they are reached.
#[derive(Debug, Default)]
pub(super) struct Others {
    kept: BTreeMap<NodeId, (Kept, Duration)>,
    reach: BTreeMap<NodeId, Reach>,
    /// Who answered for it last, in the tenure of which epoch.
    announced: Option<(Epoch, NodeId)>,
}

impl Others {
    /// A node has said how it is reached.
    pub(super) fn reached(&mut self, from: NodeId, reach: Option<Reach>) {
        match reach {
            Some(reach) => drop(self.reach.insert(from, reach)),
            None => drop(self.reach.remove(&from)),
        }
    }

    /// A node has said what it keeps; tells whether it is of another tenure than before.
    pub(super) fn heard(&mut self, from: NodeId, kept: Option<Kept>, now: Duration) -> bool {
        let before = match kept {
            Some(kept) => self.kept.insert(from, (kept, now)),
            None => self.kept.remove(&from),
        };
        before.map(|(before, _)| before.epoch) != kept.map(|kept| kept.epoch)
    }

    /// A node says that it answers for the VIP; tells whether that is news. It counts until another does, in
    /// a later tenure: between two, the former knows best what belongs where.
    pub(super) fn announced(&mut self, from: NodeId, epoch: Epoch) -> bool {
        let later = self.announced.is_none_or(|(last, _)| epoch > last);
        if later {
            self.announced = Some((epoch, from));
        }
        later
    }

    /// The node that answers for the VIP in a tenure after this one, if one does.
    pub(super) fn successor(&self, epoch: Epoch) -> Option<Reach> {
        let (_, id) = self.announced.filter(|(announced, _)| *announced > epoch)?;
        self.reach.get(&id).copied()
    }

    /// Only these nodes are members.
    pub(super) fn retain(&mut self, members: &[NodeId]) {
        self.kept.retain(|id, _| members.contains(id));
        self.reach.retain(|id, _| members.contains(id));
        self.announced = self.announced.filter(|(_, id)| members.contains(id));
    }

    /// Those heard of lately.
    pub(super) fn iter(&self, now: Duration) -> impl Iterator<Item = (NodeId, Kept)> {
        let fresh = move |(id, (kept, heard)): (&NodeId, &(Kept, Duration))| {
            (now <= *heard + SILENT).then_some((*id, *kept))
        };
        self.kept.iter().filter_map(fresh)
    }

    /// Where packets go from a node of this tenure, which is over if it `drains`. Nothing goes to a
    /// successor before that one answers: it would not know yet what is its own.
    pub(super) fn paths(&self, epoch: Epoch, drains: bool, vip: IpAddr, now: Duration) -> Paths {
        let of_kind = |r: &Reach| (r.via.is_ipv4() == vip.is_ipv4()).then_some(r.via);
        let via = |id: NodeId| self.reach.get(&id).and_then(of_kind);
        let earlier = self.iter(now).filter(|(_, kept)| kept.epoch < epoch);
        let usable = earlier.filter_map(|(id, kept)| Some((kept.epoch, via(id)?)));
        Paths {
            next: usable.max_by_key(|(epoch, _)| *epoch).map(|(_, via)| via),
            home: self.successor(epoch).filter(|_| drains).as_ref().and_then(of_kind),
            closed: drains,
            peers: self.reach.values().map(|r| r.mac).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 100));

    fn kept(epoch: u64) -> Option<Kept> {
        Some(Kept { epoch: Epoch(epoch), connections: 1 })
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn others(via: &[&str]) -> Others {
        let mut others = Others::default();
        for (id, via) in (1..).zip(via) {
            others.reached(NodeId(id), Some(Reach { via: via.parse().unwrap(), mac: [2, 0, 0, 0, 0, id] }));
        }
        others
    }

    #[test]
    fn packets_go_to_the_tenure_before_and_never_in_circles() {
        let mut others = others(&["192.0.2.1", "192.0.2.2"]);
        assert!(others.heard(NodeId(1), kept(1), seconds(9)));
        assert!(!others.heard(NodeId(1), kept(1), seconds(10)));
        assert!(others.heard(NodeId(2), kept(2), seconds(10)));
        let next = |others: &Others, epoch, now| {
            others.paths(Epoch(epoch), false, VIP, seconds(now)).next.map(|ip| ip.to_string())
        };
        assert_eq!(next(&others, 3, 11).as_deref(), Some("192.0.2.2"));
        assert_eq!(next(&others, 2, 11).as_deref(), Some("192.0.2.1"));
        assert_eq!(next(&others, 1, 11), None);
        // The first holds it again: its old connections are its own.
        assert!(others.heard(NodeId(1), None, seconds(11)));
        assert_eq!(next(&others, 4, 11).as_deref(), Some("192.0.2.2"));
        assert_eq!(next(&others, 2, 11), None);
        assert_eq!(next(&others, 4, 13).as_deref(), Some("192.0.2.2"), "silent for three seconds");
        assert_eq!(next(&others, 4, 14), None, "and no longer");
    }

    #[test]
    fn what_is_not_for_a_former_holder_goes_to_the_present_one() {
        let mut others = others(&["192.0.2.1", "192.0.2.2"]);
        let home = |others: &Others, drains| others.paths(Epoch(1), drains, VIP, seconds(0)).home;
        assert_eq!(home(&others, true), None, "nobody answers yet");
        others.announced(NodeId(2), Epoch(2));
        assert_eq!(home(&others, true), Some([192, 0, 2, 2].into()));
        assert_eq!(home(&others, false), None, "it is the present one itself");
        let peers = others.paths(Epoch(1), true, VIP, seconds(0)).peers;
        assert_eq!(peers, [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]);
        others.announced(NodeId(3), Epoch(3));
        assert_eq!(home(&others, true), None, "it has not said how it is reached");
    }

    #[test]
    fn the_successor_is_who_answers_in_a_later_tenure() {
        let mut others = others(&["192.0.2.1", "192.0.2.2"]);
        let mac = |others: &Others, epoch| others.successor(Epoch(epoch)).map(|reach| reach.mac[5]);
        assert!(others.announced(NodeId(1), Epoch(4)) && !others.announced(NodeId(1), Epoch(4)));
        assert_eq!((mac(&others, 4), mac(&others, 3)), (None, Some(1)));
        assert!(others.announced(NodeId(2), Epoch(5)) && !others.announced(NodeId(1), Epoch(4)));
        assert_eq!((mac(&others, 5), mac(&others, 3)), (None, Some(2)), "the last one");
        others.retain(&[NodeId(1)]);
        assert_eq!(mac(&others, 3), None);
    }

    #[test]
    fn an_address_of_the_other_family_is_no_use() {
        let mut others = others(&["fe80::1", "192.0.2.2"]);
        others.heard(NodeId(1), kept(1), seconds(0));
        assert_eq!(others.paths(Epoch(2), false, VIP, seconds(0)).next, None);
        others.heard(NodeId(2), kept(1), seconds(0));
        others.retain(&[NodeId(1)]);
        assert_eq!(others.iter(seconds(0)).map(|(id, _)| id).collect::<Vec<_>>(), [NodeId(1)]);
    }
}
