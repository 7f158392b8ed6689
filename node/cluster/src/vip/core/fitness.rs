//! Whether this node is fit to hold its VIPs, and what follows when it is not.
//!
//! What somebody asks for (maintenance, leaving the cluster) waits until the hands are ready for it, as a
//! planned move does: until then the node takes nothing and keeps what it has. What is out of order
//! waits for nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use phalanx_engine::lease::{Fit, NodeId, Timing};
use phalanx_engine::time::Now;
use tracing::warn;

use super::moves::PREPARE_WITHIN;
use super::{Core, One, Shared, now, status};
use crate::vip::hands::Task;

impl Shared {
    /// A driver tells what is missing here.
    pub(in crate::vip) fn set_missing(&self, i: usize, missing: Vec<String>) {
        let mut core = self.core.lock();
        if core.vips[i].missing == missing {
            return;
        }
        if !missing.is_empty() && !core.vips[i].lease.is_witness() {
            let vip = &core.vips[i].settings;
            warn!("vip '{}' {}: not eligible here: {}", vip.name, vip.addr, missing.join(", "));
        }
        core.vips[i].missing = missing;
        self.refit(&mut core, i);
    }

    pub(in crate::vip) fn set_behind(&self, reasons: Vec<String>) {
        let mut core = self.core.lock();
        if core.behind != reasons {
            core.behind = reasons;
            (0..core.vips.len()).for_each(|i| self.refit(&mut core, i));
        }
    }

    pub(in crate::vip) fn set_waiting(&self, why: Option<String>) {
        self.core.lock().waiting = why;
    }

    pub(in crate::vip) fn set_leaving(&self, on: bool) {
        let mut core = self.core.lock();
        if core.leaving != on {
            core.leaving = on;
            (0..core.vips.len()).for_each(|i| self.refit(&mut core, i));
        }
    }

    pub(in crate::vip) fn set_maintenance(&self, on: bool) {
        let mut core = self.core.lock();
        if core.maintenance != on {
            core.maintenance = on;
            (0..core.vips.len()).for_each(|i| self.refit(&mut core, i));
        }
    }

    pub(super) fn refit(&self, core: &mut Core, i: usize) {
        if self.stopping.load(Ordering::Acquire) {
            return;
        }
        let mut behind = core.behind.clone();
        behind.extend(self.odd_term(core));
        if core.departing {
            behind.push("stopping".into());
        }
        let one = &mut core.vips[i];
        let mut never = one.missing.clone();
        let settings = self.settings.load();
        if settings.this().is_some_and(|n| n.witness) {
            never = vec!["witness".into()];
        } else if one.lease.is_witness() {
            never.push("no member".into());
        }
        let now = now();
        let parts = match (core.leaving, core.maintenance) {
            (true, _) => Some("leaves the cluster"),
            (false, true) => Some("maintenance"),
            (false, false) => None,
        };
        if let Some(why) = parts.filter(|_| !one.lease.is_witness()) {
            let prepares = never.is_empty() && one.prepares_to_part(now);
            if prepares { &mut behind } else { &mut never }.push(why.into());
        } else {
            one.parting = None;
        }
        let fit = match (never.is_empty(), behind.is_empty()) {
            (false, _) => Fit::No(never),
            (true, false) => Fit::Keep(behind),
            (true, true) => Fit::Yes,
        };
        one.lease.set_fit(fit, now);
        self.carry_out(core, i, now);
        self.tell_fitness(core);
        self.wake.notify_all();
    }

    /// A peer says for how long it asks for leases. Acceptors grant no longer than their own, so that
    /// nodes which differ are safe, but they may not get a majority from each other.
    pub(super) fn heed_term(&self, from: NodeId, lease_us: u64) {
        let term = match lease_us {
            0 => Timing::FORMER_DEFAULT,
            us => Duration::from_micros(us),
        };
        let mut core = self.core.lock();
        if core.terms.insert(from, term) == Some(term) {
            return;
        }
        if term != self.timing.lease {
            warn!(
                "leases: node '{}' has 'vip-lease' {term:?}, this node {:?}: it is to be the same on all nodes",
                self.names.load().name(from),
                self.timing.lease
            );
        }
        (0..core.vips.len()).for_each(|i| self.refit(&mut core, i));
    }

    /// Why this node leaves VIPs to others: more of them have another `vip-lease` than have its own.
    fn odd_term(&self, core: &Core) -> Option<String> {
        let names = self.names.load();
        let others: Vec<_> = core.terms.iter().filter(|(_, term)| **term != self.timing.lease).collect();
        if others.len() <= core.terms.len() - others.len() + 1 {
            return None;
        }
        let others: Vec<String> =
            others.into_iter().map(|(id, term)| format!("{term:?} on {}", names.name(*id))).collect();
        Some(format!("'vip-lease' is {:?} here, {}", self.timing.lease, others.join(", ")))
    }

    /// Tells all peers how fit this node is.
    pub(super) fn tell_fitness(&self, core: &mut Core) {
        let message = status::fitness(core);
        for links in core.links.values_mut() {
            for link in links {
                let _ = link.queue.try_send(message.clone());
            }
        }
    }

    /// Gives VIP `i` up that is to be and that could not be prepared in time.
    pub(super) fn part_at_last(&self, core: &mut Core, i: usize, now: Now) {
        let one = &core.vips[i];
        let due = one.parting.is_some_and(|at| now.mono >= at);
        if due && matches!(one.lease.fit(), Fit::Keep(_)) {
            self.refit(core, i);
        }
    }
}

impl One {
    /// Whether this node, which is not to hold it any more, does so until its hands are ready.
    fn prepares_to_part(&mut self, now: Now) -> bool {
        if self.lease.held_until().is_none() {
            return false;
        }
        match self.parting {
            Some(at) => now.mono < at,
            None => {
                self.parting = Some(now.mono + PREPARE_WITHIN);
                self.preparing = true;
                self.hands.push(Task::Prepare);
                true
            }
        }
    }
}
