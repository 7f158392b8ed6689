//! What carries a node's tenures out, as far as it decides who answers to the address: the hands of the
//! worker, the guardians, and the kernel, which goes on when all of these stand still.
//!
//! Every act takes its time and may fail. It takes effect at its end, if the process is awake then.

use std::collections::VecDeque;

use super::*;
use crate::lease::hands::{Act, Hands, KEPT};
use crate::lease::watch::Watch;

/// The one VIP.
const VIP: &str = "vip";

/// Left out at the end of a lease, as the kernel's timers are late, for whatever term.
const MARGIN: Duration = Duration::from_millis(12);

/// How late, in microseconds.
const LATE: u64 = 10_000;

/// How often what drains is looked after, in microseconds.
const TEND_EVERY: u64 = 500_000;

#[derive(Debug, Default)]
pub(super) struct Place {
    hands: Hands,
    jobs: VecDeque<Job>,
    act: Option<Act>,
    /// What the worker has told its guardian of.
    held: Option<Order>,
    guardians: Vec<Guardian>,
    guardian_count: u64,
    kernel: Kernel,
    /// Of the tenure that is announced: its place in the order of all.
    tenure: Option<(Ballot, usize)>,
    /// This life of the worker has taken off what earlier ones left.
    cleared: bool,
    /// What was kept last without a majority.
    pub(super) kept: Option<Ballot>,
}

/// The machine's own memory of it, which no process takes along.
#[derive(Debug, Default)]
struct Kernel {
    address: bool,
    /// In true time.
    through_until: u64,
    /// Place in `owned` of what is going on.
    open: Option<usize>,
    /// Until when connections of an earlier tenure go on, and nothing else, in true time.
    drains_until: u64,
}

/// A guardian, of this life of the worker or an earlier one.
#[derive(Debug)]
struct Guardian {
    number: u64,
    frozen: bool,
    watch: Watch<Ballot>,
    orders: VecDeque<Order>,
}

/// What has been written to a guardian and not been read yet.
#[derive(Clone, Copy, Debug)]
enum Order {
    Hold(Ballot, Duration),
    Drain(Ballot, Duration),
    LetGo,
    End,
}

impl Place {
    /// Whether the address is there though no tenure and no connection needs it, and nobody is at it.
    pub(super) fn is_left_over(&self) -> bool {
        let needed = self.hands.announced().is_some() || self.hands.draining().is_some();
        self.kernel.address && !needed && self.act.is_none() && self.jobs.is_empty()
    }
}

impl Simulation {
    /// A worker's life begins: it clears what an earlier one left.
    pub(super) fn settle_in(&mut self, node: usize) {
        let place = &mut self.nodes[node].place;
        (place.hands, place.act, place.held, place.tenure) = (Hands::default(), None, None, None);
        place.jobs = VecDeque::from([Job::Clear]);
        place.cleared = false;
        self.new_guardian(node);
        self.work(node);
    }

    pub(super) fn job(&mut self, node: usize, job: Job) {
        let jobs = &mut self.nodes[node].place.jobs;
        if let (Some(Job::Renew { .. }), Job::Renew { .. }) = (jobs.back(), job) {
            jobs.pop_back();
        }
        jobs.push_back(job);
    }

    /// The hands begin with the next job, if they are free.
    pub(super) fn work(&mut self, node: usize) {
        let now = self.local(node).mono;
        let n = &mut self.nodes[node];
        while n.place.act.is_none() {
            let Some(job) = n.place.jobs.pop_front() else { return };
            if let Some(act) = n.place.hands.start(job, now, n.lease.held_until()) {
                self.begin(node, act);
                return;
            }
        }
    }

    fn begin(&mut self, node: usize, act: Act) {
        let n = &mut self.nodes[node];
        n.place.act = Some(act);
        let life = n.incarnation;
        let slow = if self.unlucky(100) { 100 } else { 1 };
        let takes = self.rng.random_range(self.us(20)..self.us(3_000 * slow));
        self.at(self.now_us + takes, Event::Act { node, life });
    }

    /// The act of the hands comes to its end.
    pub(super) fn acted(&mut self, node: usize, life: u64) {
        let n = &mut self.nodes[node];
        if !n.up || n.incarnation != life {
            return;
        }
        if n.paused {
            self.at(self.now_us + self.us(7_000), Event::Act { node, life });
            return;
        }
        let Some(act) = n.place.act.take() else { return };
        let outcome = self.effect(node, &act);
        let now = self.local(node).mono;
        let n = &mut self.nodes[node];
        if let Some(next) = n.place.hands.done(outcome, now, n.lease.held_until()) {
            self.begin(node, next);
        }
        self.carry_out(node);
    }

    fn unlucky(&mut self, one_in: u32) -> bool {
        self.rng.random_range(0..one_in) == 0 && self.world.flaky
    }

    fn effect(&mut self, node: usize, act: &Act) -> Result<(), String> {
        let now = self.local(node);
        match *act {
            Act::Guard { ballot, until } => {
                self.guard(node, Order::Hold(ballot, until));
            }
            Act::Drain { .. } if self.unlucky(20) => return Err("tried".to_owned()),
            Act::Drain { .. } => self.drain(node),
            Act::GuardDrain { ballot } => {
                self.guard(node, Order::Drain(ballot, now.mono + KEPT));
                let life = self.nodes[node].incarnation;
                self.at(self.now_us + TEND_EVERY, Event::Tend { node, life });
            }
            Act::Tend { .. } if self.unlucky(50) => return Err("tried".to_owned()),
            Act::Tend { .. } => {
                // By hand, or by the guardian of a worker that stood still, it may have been taken off.
                self.nodes[node].place.kernel.address = true;
                self.nodes[node].place.kernel.drains_until = self.now_us + KEPT.as_micros() as u64;
            }
            Act::Announce { ballot, until } | Act::Prolong { ballot, until } => {
                if now.mono + MARGIN >= until || self.unlucky(200) {
                    return Err("tried".to_owned());
                }
                self.answer(node, ballot, until);
            }
            Act::TakeAway if self.unlucky(20) => return Err("tried".to_owned()),
            Act::TakeAway => {
                self.take_off(node);
                self.nodes[node].place.cleared = true;
            }
            Act::LetGo => {
                self.nodes[node].place.held = None;
                self.order(node, Order::LetGo);
            }
            Act::Withdrawn { .. } => self.nodes[node].lease.withdrawn(now),
            Act::Failed(ref why) => self.nodes[node].lease.announce_failed(why.clone(), now),
        }
        Ok(())
    }

    /// The kernel answers to the address until shortly before `until`.
    fn answer(&mut self, node: usize, ballot: Ballot, until: Duration) {
        let late = self.rng.random_range(0..LATE);
        let to = self.true_time(node, until - MARGIN) + late;
        let now_us = self.now_us;
        let kept = (self.nodes[node].place.kept == Some(ballot)).then_some(now_us);
        let place = &mut self.nodes[node].place;
        let tenure = match place.tenure {
            Some((announced, tenure)) if announced == ballot => tenure,
            _ => {
                self.tenures += 1;
                place.tenure = Some((ballot, self.tenures));
                self.tenures
            }
        };
        let kernel = &mut place.kernel;
        (kernel.address, kernel.through_until, kernel.drains_until) = (true, to, 0);
        match kernel.open.map(|open| &mut self.owned[open]) {
            Some(open) if open.tenure == tenure && open.to >= now_us => {
                (open.to, open.kept) = (to, open.kept.or(kept));
            }
            open => {
                if let Some(open) = open {
                    open.to = open.to.min(now_us);
                }
                kernel.open = Some(self.owned.len());
                self.owned.push(Owned { node, from: now_us, to, epoch: ballot.epoch(), tenure, kept });
            }
        }
    }

    fn guard(&mut self, node: usize, order: Order) {
        self.nodes[node].place.held = Some(order);
        match self.has_guardian(node) {
            true => self.order(node, order),
            false => self.new_guardian(node),
        }
    }

    /// The kernel lets only connections go on that there are.
    fn drain(&mut self, node: usize) {
        let there = self.nodes[node].place.kernel.address;
        self.take_off(node);
        let kernel = &mut self.nodes[node].place.kernel;
        kernel.address = there;
        kernel.drains_until = self.now_us + KEPT.as_micros() as u64;
        self.drained += 1;
        self.note(node, "drains");
    }

    /// The worker looks after what drains; at some time all connections have ended.
    pub(super) fn tend(&mut self, node: usize, life: u64) {
        let n = &self.nodes[node];
        if !n.up || n.incarnation != life || n.place.hands.draining().is_none() {
            return;
        }
        if n.paused {
            self.at(self.now_us + 20_000, Event::Tend { node, life });
            return;
        }
        let job = if self.rng.random_bool(0.8) { Job::Tend } else { Job::EndDrain };
        self.job(node, job);
        self.work(node);
    }

    fn take_off(&mut self, node: usize) {
        let kernel = &mut self.nodes[node].place.kernel;
        (kernel.address, kernel.through_until, kernel.drains_until) = (false, 0, 0);
        if let Some(open) = kernel.open.take() {
            self.owned[open].to = self.owned[open].to.min(self.now_us);
        }
    }

    /// All that own the VIP at this very moment, and whether they keep it without a majority.
    pub(in crate::lease) fn owners(&self) -> Vec<(usize, bool)> {
        let owning = (0..self.nodes.len()).filter(|&node| self.answers(node));
        let span = |node: usize| self.nodes[node].place.kernel.open.map(|open| &self.owned[open]);
        owning.map(|node| (node, span(node).is_some_and(|o| o.kept.is_some()))).collect()
    }

    pub(super) fn answers(&self, node: usize) -> bool {
        let kernel = &self.nodes[node].place.kernel;
        kernel.address && kernel.through_until > self.now_us
    }

    /// The machine is gone, with all that ran on it.
    pub(super) fn host_gone(&mut self, node: usize) {
        self.note(node, "its host is gone");
        self.take_off(node);
        self.nodes[node].place.guardians.clear();
    }

    fn has_guardian(&self, node: usize) -> bool {
        let place = &self.nodes[node].place;
        place.guardians.last().is_some_and(|g| g.number == place.guardian_count)
    }

    /// The worker starts a guardian and tells it what it holds.
    fn new_guardian(&mut self, node: usize) {
        let place = &mut self.nodes[node].place;
        place.guardian_count += 1;
        let number = place.guardian_count;
        let orders = place.held.into_iter().collect();
        place.guardians.push(Guardian { number, frozen: false, watch: Watch::default(), orders });
        self.at(self.now_us + self.us(1_000), Event::Guardian { node, guardian: number });
    }

    fn order(&mut self, node: usize, order: Order) {
        if !self.has_guardian(node) {
            return;
        }
        let delay = self.rng.random_range(self.us(10)..self.us(1_500));
        if let Some(guardian) = self.nodes[node].place.guardians.last_mut() {
            guardian.orders.push_back(order);
            let guardian = guardian.number;
            self.at(self.now_us + delay, Event::Guardian { node, guardian });
        }
    }

    /// The worker of this guardian is dead.
    pub(super) fn orphan(&mut self, node: usize) {
        self.order(node, Order::End);
    }

    pub(super) fn kill_guardian(&mut self, node: usize) {
        self.note(node, "its guardian is killed");
        self.nodes[node].place.guardians.pop();
    }

    pub(super) fn stop_guardian(&mut self, node: usize, until: u64) {
        if let Some(guardian) = self.nodes[node].place.guardians.last_mut() {
            guardian.frozen = true;
            let guardian = guardian.number;
            self.note(node, "its guardian is stopped");
            self.at(until, Event::ResumeGuardian { node, guardian });
        }
    }

    pub(super) fn resume_guardian(&mut self, node: usize, number: u64) {
        if let Some(guardian) = self.guardian(node, number) {
            guardian.frozen = false;
            self.guardian_looks(node, number);
        }
    }

    pub(super) fn wake_guardians(&mut self, node: usize) {
        let numbers: Vec<u64> = self.nodes[node].place.guardians.iter().map(|g| g.number).collect();
        numbers.into_iter().for_each(|number| self.resume_guardian(node, number));
    }

    fn guardian(&mut self, node: usize, number: u64) -> Option<&mut Guardian> {
        self.nodes[node].place.guardians.iter_mut().find(|g| g.number == number)
    }

    /// A guardian reads its orders, then looks at the clock, as the process does.
    pub(super) fn guardian_looks(&mut self, node: usize, number: u64) {
        let now = self.local(node).mono;
        let Some(guardian) = self.guardian(node, number).filter(|g| !g.frozen) else { return };
        for order in std::mem::take(&mut guardian.orders) {
            match order {
                Order::Hold(ballot, until) => guardian.watch.hold(VIP, until, ballot),
                Order::Drain(ballot, until) => guardian.watch.drain(VIP, until, ballot),
                Order::LetGo => guardian.watch.let_go(VIP),
                Order::End => guardian.watch.worker_died(),
            }
        }
        let mut told = guardian.watch.used_up();
        for vip in guardian.watch.due(now) {
            let off = !self.unlucky(20);
            if off {
                self.note(node, "its guardian takes it off");
                self.take_off(node);
            }
            if let Some(guardian) = self.guardian(node, number) {
                guardian.watch.taken_off(&vip, off, now);
            }
        }
        let Some(guardian) = self.guardian(node, number) else { return };
        told.extend(guardian.watch.used_up());
        let (done, deadline) = (guardian.watch.is_done(), guardian.watch.deadline());
        for (_, ballot) in told {
            self.note(node, "its guardian tells the others");
            for to in (0..self.nodes.len()).filter(|&to| to != node) {
                self.send(node, to, Message::Release { ballot, to: None });
            }
        }
        if done {
            let n = &self.nodes[node];
            // What an earlier life left, whose guardian was killed too, this one was never told of: the kernel
            // is silent about it, and the next life takes it off.
            let knew = n.place.cleared && n.place.guardian_count == number;
            if !n.up && knew && n.place.kernel.address {
                self.broke("drains end", format!("n{node}: its worker is dead, and the address is there"));
            }
            self.nodes[node].place.guardians.retain(|g| g.number != number);
        } else if let Some(deadline) = deadline {
            let late = self.rng.random_range(0..self.us(1_000));
            let at = self.true_time(node, deadline).max(self.now_us + self.us(500));
            self.at(at + late, Event::Guardian { node, guardian: number });
        }
    }
}
