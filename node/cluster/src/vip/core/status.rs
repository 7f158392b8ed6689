//! What a node knows of its VIPs, for people and for its peers.

use std::time::Duration;

use phalanx_engine::lease::Fit;
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::lease_message::Kind;

use super::{Core, One, Shared, now};
use crate::vip::{Draining, NodeFitness, VipStatus};

impl Shared {
    pub(super) fn fitness_of(&self, one: &One) -> Vec<NodeFitness> {
        let names = self.names.load();
        let fitness = names.ids().into_iter().map(|id| {
            if Some(id) == names.me() {
                return own_fitness(one, names.name(id).to_owned());
            }
            one.fitness.get(&id).cloned().unwrap_or_else(|| NodeFitness {
                node: names.name(id).to_owned(),
                eligible: false,
                reasons: vec!["not connected".into()],
            })
        });
        fitness.collect()
    }

    pub(in crate::vip) fn status(&self) -> Vec<VipStatus> {
        let core = self.core.lock();
        let now = now();
        let status = core.vips.iter().map(|one| {
            let view = one.lease.view(now);
            VipStatus {
                name: one.settings.name.clone(),
                addr: one.settings.addr,
                prefix: one.settings.prefix,
                announce: one.settings.announce.name(),
                holder: view.holder.map(|id| self.names.load().name(id).to_owned()),
                epoch: view.epoch.unwrap_or_default().0,
                left: view.left,
                kept: one.kept,
                draining: self.draining(one, now.mono),
                nodes: self.fitness_of(one),
                moves: one.moves.iter().cloned().collect(),
                notices: one.notices.iter().cloned().collect(),
                waiting: core.waiting.clone(),
            }
        });
        status.collect()
    }

    fn draining(&self, one: &One, now: Duration) -> Vec<Draining> {
        let names = self.names.load();
        let own = one.drains.and_then(|kept| Some((names.me()?, kept)));
        let mut all: Vec<_> = own.into_iter().chain(one.others.iter(now)).collect();
        all.sort_by_key(|(_, kept)| kept.epoch);
        let draining = all.into_iter().map(|(id, kept)| Draining {
            node: names.name(id).to_owned(),
            epoch: kept.epoch.0,
            connections: kept.connections,
        });
        draining.collect()
    }
}

fn own_fitness(one: &One, node: String) -> NodeFitness {
    let fit = one.lease.fit();
    NodeFitness { node, eligible: *fit == Fit::Yes, reasons: fit.reasons().to_vec() }
}

pub(super) fn fitness(core: &Core) -> pb::LeaseMessage {
    let vips = core.vips.iter().map(|one| {
        let own = own_fitness(one, String::new());
        pb::VipFitness {
            vip: one.settings.name.clone(),
            eligible: own.eligible,
            reasons: own.reasons,
            kept: one.drains.map(|k| pb::Kept { epoch: k.epoch.0, connections: k.connections }),
            via: one.reach.map(|r| r.via.to_string()).unwrap_or_default(),
            mac: one.reach.map(|r| r.mac.to_vec().into()).unwrap_or_default(),
            announced: one.announced.unwrap_or_default().0,
        }
    });
    pb::LeaseMessage { kind: Some(Kind::Fitness(pb::Fitness { vips: vips.collect() })) }
}
