//! Planned moves of VIPs, and how a node that stops gives them up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use phalanx_engine::lease::{Epoch, Lease, NodeId, Timing};
use tracing::info;

use super::{One, Shared, now};
use crate::vip::hands::{Hands, Task};
use crate::vip::{MoveError, NodeFitness};

/// How long a planned move may take, beside its preparation.
fn move_deadline(timing: Timing) -> Duration {
    3 * timing.lease + Duration::from_millis(500)
}

/// How long a holder that is to move a VIP away may prepare for that; after it, it moves all the same.
pub(super) const PREPARE_WITHIN: Duration = Duration::from_secs(5);

/// How long the holder may take to answer who asks it to move a VIP away.
pub(in crate::vip) fn answer_deadline(timing: Timing) -> Duration {
    PREPARE_WITHIN + move_deadline(timing) + Duration::from_millis(500)
}

/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(5);

impl Shared {
    /// Name of the node that holds a VIP.
    pub(in crate::vip) fn holder_of(&self, vip: &str) -> Result<Option<String>, MoveError> {
        let core = self.core.lock();
        let Some(one) = core.vips.iter().find(|one| one.settings.name == vip) else {
            let known: Vec<_> = core.vips.iter().map(|one| one.settings.name.as_str()).collect();
            return Err(MoveError(format!("no vip '{vip}', expects one of: {}", known.join(", "))));
        };
        let names = self.names.load();
        Ok(one.lease.view(now()).holder.map(|id| names.name(id).to_owned()))
    }

    /// Moves a VIP that this node holds.
    pub(in crate::vip) async fn move_here(
        &self,
        vip: &str,
        to: Option<&str>,
        asked_by: &str,
    ) -> Result<(String, Epoch), MoveError> {
        let i = self.index(vip).ok_or_else(|| MoveError(format!("no vip '{vip}'")))?;
        let (target, epoch) = {
            let core = self.core.lock();
            let target = self.target(&core.vips[i], to)?;
            (target, core.vips[i].lease.view(now()).epoch.unwrap_or_default())
        };
        info!("vip '{vip}': planned move to {}, asked by {asked_by}", self.names.load().name(target));
        self.prepare(i).await;
        self.decide(i, |lease, now| lease.resign(Some(target), now))
            .map_err(|why| MoveError(format!("vip '{vip}': {why}")))?;
        let deadline = Instant::now() + move_deadline(self.timing);
        while Instant::now() < deadline {
            let view = self.core.lock().vips[i].lease.view(now());
            if let (Some(holder), Some(new)) = (view.holder, view.epoch)
                && new > epoch
            {
                return Ok((self.names.load().name(holder).to_owned(), new));
            }
            tokio::time::sleep(POLL).await;
        }
        Err(MoveError(format!("vip '{vip}': let go, but no node has taken it yet; see show vip")))
    }

    /// Gets the hands ready for moving VIP `i` away, which is held and renewed meanwhile.
    async fn prepare(&self, i: usize) {
        {
            let one = &mut self.core.lock().vips[i];
            one.preparing = true;
            one.hands.push(Task::Prepare);
        }
        let deadline = Instant::now() + PREPARE_WITHIN;
        while self.core.lock().vips[i].preparing && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }

    /// The hands are ready for moving VIP `i` away.
    pub(in crate::vip) fn prepared(&self, i: usize) {
        let mut core = self.core.lock();
        core.vips[i].preparing = false;
        if let Some(at) = &mut core.vips[i].parting {
            *at = (*at).min(now().mono);
            self.refit(&mut core, i);
        }
    }

    fn target(&self, one: &One, to: Option<&str>) -> Result<NodeId, MoveError> {
        let vip = &one.settings.name;
        let names = self.names();
        let fitness: BTreeMap<NodeId, NodeFitness> =
            names.ids().into_iter().zip(self.fitness_of(one)).collect();
        let eligible = |id: NodeId| fitness.get(&id).is_some_and(|f| f.eligible);
        if let Some(to) = to {
            let id = names.id(to).ok_or_else(|| {
                MoveError(format!("no node '{to}', expects one of: {}", names.all().join(", ")))
            })?;
            if Some(id) == names.me() {
                return Err(MoveError(format!("vip '{vip}' is already on node '{to}'")));
            }
            if !eligible(id) {
                let reasons = fitness.get(&id).map(|f| f.reasons.join(", ")).unwrap_or_default();
                return Err(MoveError(format!("node '{to}' is not eligible for vip '{vip}': {reasons}")));
            }
            return Ok(id);
        }
        let me = names.me();
        // The next in line, and round again.
        let mut ids: Vec<NodeId> = fitness.keys().copied().filter(|id| Some(*id) != me).collect();
        let after_me = ids.partition_point(|id| Some(*id) < me);
        ids.rotate_left(after_me);
        ids.into_iter().find(|id| eligible(*id)).ok_or_else(|| {
            let settings = self.settings();
            let others = fitness.values().filter(|f| f.node != settings.node);
            let why: Vec<_> = others.map(|f| format!("{}: {}", f.node, f.reasons.join(", "))).collect();
            MoveError(format!("no other node is eligible for vip '{vip}' ({})", why.join("; ")))
        })
    }

    /// The process stops: VIP by VIP, what this node holds goes to another, as at a planned move. Comes
    /// back when it is off this node. `prepared`: when another holds it; what nobody else can take is given up.
    pub(in crate::vip) async fn depart(&self, prepared: bool) {
        let count = {
            let mut core = self.core.lock();
            core.departing = true;
            (0..core.vips.len()).for_each(|i| self.refit(&mut core, i));
            core.vips.len()
        };
        futures_util::future::join_all((0..count).map(|i| self.depart_from(i, prepared))).await;
    }

    async fn depart_from(&self, i: usize, prepared: bool) {
        let holding = || self.core.lock().vips[i].lease.held_until();
        let target = || self.target(&self.core.lock().vips[i], None);
        let Some((ballot, _)) = holding() else { return };
        let name = self.settings_of(i).name;
        if prepared && target().is_ok() {
            self.prepare(i).await;
        }
        let by_another = match target() {
            Ok(to) => {
                info!("vip '{name}': planned move to {}, for the node stops", self.names.load().name(to));
                // It may have been lost meanwhile.
                let _ = self.decide(i, |lease, now| lease.resign(Some(to), now));
                prepared
            }
            // It is given up a moment later.
            Err(_) if !prepared => return,
            Err(MoveError(why)) => {
                info!("vip '{name}': given up, for the node stops: {why}");
                self.decide(i, Lease::stop);
                false
            }
        };
        let deadline = Instant::now() + move_deadline(self.timing);
        let moved = || {
            let core = self.core.lock();
            let view = core.vips[i].lease.view(now());
            let elsewhere = view.holder.is_some() && view.epoch > Some(ballot.epoch());
            if by_another { elsewhere } else { !core.vips[i].lease.is_withdrawing() }
        };
        while !moved() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Comes back when no connection of what was moved away goes on here, or at the deadline.
    pub(in crate::vip) async fn drained(&self, deadline: Instant) {
        let drains = || self.core.lock().vips.iter().any(|one| one.drains.is_some());
        while drains() && Instant::now() < deadline {
            tokio::time::sleep(10 * POLL).await;
        }
    }

    pub(in crate::vip) fn stop(&self, deadline: Instant) {
        let hands: Vec<Arc<Hands>> = {
            let mut core = self.core.lock();
            self.stopping.store(true, Ordering::Release);
            let now = now();
            for i in 0..core.vips.len() {
                core.vips[i].lease.stop(now);
                self.carry_out(&mut core, i, now);
                core.vips[i].hands.push(Task::Quit);
            }
            self.wake.notify_all();
            core.vips.iter().map(|one| one.hands.clone()).collect()
        };
        for hands in hands {
            hands.wait_finished(deadline);
        }
    }
}
