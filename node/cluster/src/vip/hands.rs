//! The hands of a VIP: a thread that announces it, renews and withdraws it, and minds the guardian.
//!
//! One thread per VIP, because announcing may block (netlink, listeners of busy workers), and neither
//! the machines nor another VIP may wait for that. It does what the machine says, in order, and asks
//! the clock again after everything that could have taken long.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use phalanx_engine::lease::Ballot;
use phalanx_sys::clock::boottime;
use tracing::{error, info, warn};

use super::core::{Shared, thread};
use super::guardian::{Guardian, Hold, Place};
use super::{Announcer, VipSettings};

/// How often a driver looks at what it needs.
const INSPECT_EVERY: Duration = Duration::from_millis(500);

/// Between two attempts to take an address away.
const RETRY: Duration = Duration::from_millis(50);

/// What the machine wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Acquire { ballot: Ballot, until: Duration },
    Renew { ballot: Ballot, until: Duration },
    Withdraw { ballot: Ballot },
    Quit,
}

/// How an address is announced.
pub(super) trait Driver: Send {
    /// What is missing on this node; empty: nothing.
    fn missing(&mut self) -> Vec<String>;
    /// Announces it, for the kernel to enforce until then; the descriptors are for the guardian.
    fn acquire(&mut self, epoch: u64, until: Duration) -> Result<Vec<OwnedFd>, String>;
    /// Prolongs it.
    fn renew(&mut self, until: Duration) -> Result<(), String>;
    /// Takes it away; harmless when it is not there.
    fn release(&mut self) -> Result<(), String>;
    /// Why it is taken away, before [`Driver::release`].
    fn reason(&mut self, _: &str) {}
    /// Taking it away is not tried again when it fails.
    fn releases_once(&self) -> bool {
        false
    }
    /// Where the guardian finds it.
    fn place(&self) -> Place;
    /// The process ends.
    fn close(&mut self) {}
}

/// `announce listen`, by the node's own [`Announcer`].
pub(super) struct Listen {
    vip: VipSettings,
    announcer: Arc<dyn Announcer>,
}

impl Listen {
    pub(super) fn new(vip: VipSettings, announcer: Arc<dyn Announcer>) -> Listen {
        Listen { vip, announcer }
    }
}

impl Driver for Listen {
    fn missing(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn acquire(&mut self, epoch: u64, _: Duration) -> Result<Vec<OwnedFd>, String> {
        self.announcer.acquire(&self.vip, epoch)
    }

    fn renew(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        self.announcer.release(&self.vip)
    }

    fn place(&self) -> Place {
        Place::Listen
    }
}

/// Jobs of the thread, and whether it has ended.
#[derive(Default)]
pub(super) struct Hands {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    wake: Condvar,
}

impl Hands {
    /// Queues a job. A renewal replaces one that waits, so the queue stays as short as a tenure's
    /// begin and end.
    pub(super) fn push(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        if let (Some(Job::Renew { .. }), Job::Renew { .. }) = (jobs.0.back(), job) {
            jobs.0.pop_back();
        }
        jobs.0.push_back(job);
        self.wake.notify_all();
    }

    pub(super) fn wait_finished(&self, deadline: Instant) {
        let mut jobs = self.jobs.lock();
        while !jobs.1 && !self.wake.wait_until(&mut jobs, deadline).timed_out() {}
    }

    fn next(&self, wait: Duration) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        if jobs.0.is_empty() {
            self.wake.wait_for(&mut jobs, wait);
        }
        jobs.0.pop_front()
    }

    fn finish(&self) {
        self.jobs.lock().1 = true;
        self.wake.notify_all();
    }
}

/// Starts the thread of VIP `index`.
pub(super) fn start(
    shared: Arc<Shared>,
    index: usize,
    hands: Arc<Hands>,
    driver: Box<dyn Driver>,
    guardian: Option<Arc<Guardian>>,
) -> Result<(), String> {
    thread("vip-hands", move || {
        let vip = shared.settings_of(index);
        let mut worker = Worker { shared, index, vip, driver, guardian, announced: None };
        worker.run(&hands);
        hands.finish();
    })
}

struct Worker {
    shared: Arc<Shared>,
    index: usize,
    vip: VipSettings,
    driver: Box<dyn Driver>,
    guardian: Option<Arc<Guardian>>,
    announced: Option<Ballot>,
}

impl Worker {
    fn run(&mut self, hands: &Hands) {
        // Whatever an earlier life left behind is not ours now.
        self.take_away();
        let mut inspect = Instant::now();
        loop {
            if Instant::now() >= inspect {
                self.inspect();
                inspect = Instant::now() + INSPECT_EVERY;
            }
            match hands.next(inspect.saturating_duration_since(Instant::now())) {
                Some(Job::Acquire { ballot, until }) => self.acquire(ballot, until),
                Some(Job::Renew { ballot, until }) => self.renew(ballot, until),
                Some(Job::Withdraw { ballot }) => self.withdraw(ballot),
                Some(Job::Quit) => break,
                None => {}
            }
        }
        self.take_away();
        self.driver.close();
        if let Some(guardian) = &self.guardian {
            guardian.farewell(&self.vip.name);
        }
    }

    fn inspect(&mut self) {
        let mut missing = self.driver.missing();
        if let Some(guardian) = &self.guardian
            && let Err(why) = guardian.check()
        {
            missing.push(format!("the guardian does not run: {why}"));
        }
        self.shared.set_missing(self.index, missing);
    }

    fn acquire(&mut self, ballot: Ballot, until: Duration) {
        if !self.shared.holds(self.index, ballot) {
            return;
        }
        let announced = self.guard(ballot, until, None).and_then(|()| {
            self.announced = Some(ballot);
            let fds = self.driver.acquire(ballot.epoch().0, until)?;
            if fds.is_empty() { Ok(()) } else { self.guard(ballot, until, Some(fds)) }
        });
        match announced {
            // It took long, or the process slept: the lease may be over.
            Ok(()) if !self.shared.holds(self.index, ballot) => self.take_away(),
            Ok(()) => info!("vip '{}' {}: announced, epoch {}", self.vip.name, self.vip.addr, ballot.epoch()),
            Err(why) => {
                self.take_away();
                self.shared.announce_failed(self.index, why);
            }
        }
    }

    fn renew(&mut self, ballot: Ballot, until: Duration) {
        if self.announced != Some(ballot) || boottime() >= until || !self.shared.holds(self.index, ballot) {
            return;
        }
        let renewed = self.guard(ballot, until, None).and_then(|()| self.driver.renew(until));
        match renewed {
            Ok(()) if boottime() >= until => self.take_away(),
            Ok(()) => {}
            Err(why) => self.shared.announce_failed(self.index, why),
        }
    }

    fn withdraw(&mut self, ballot: Ballot) {
        self.driver.reason(&self.shared.reason_of(self.index));
        self.take_away();
        info!("vip '{}' {}: withdrawn, epoch {}", self.vip.name, self.vip.addr, ballot.epoch());
        self.shared.withdrawn(self.index);
    }

    /// Takes the address away, however long that takes: nobody is told that it is free before.
    fn take_away(&mut self) {
        let mut told = false;
        while let Err(why) = self.driver.release() {
            // It was tried once; trying on would change nothing.
            if self.driver.releases_once() {
                warn!("vip '{}' {}: {why}", self.vip.name, self.vip.addr);
                break;
            }
            // Without the capability it was never put there.
            if !self.driver.missing().is_empty() && self.announced.is_none() {
                break;
            }
            if !std::mem::replace(&mut told, true) {
                error!("vip '{}' {}: cannot be taken away, trying on: {why}", self.vip.name, self.vip.addr);
            }
            std::thread::sleep(RETRY);
        }
        if self.announced.take().is_some()
            && let Some(guardian) = &self.guardian
        {
            guardian.let_go(&self.vip.name);
        }
    }

    fn guard(&self, ballot: Ballot, until: Duration, fds: Option<Vec<OwnedFd>>) -> Result<(), String> {
        let Some(guardian) = &self.guardian else { return Ok(()) };
        let hold = Hold {
            vip: self.vip.name.clone(),
            counter: ballot.counter,
            incarnation: ballot.incarnation,
            until,
            place: self.driver.place(),
        };
        guardian.hold(hold, fds).map_err(|why| {
            warn!("vip '{}': the guardian does not run: {why}", self.vip.name);
            format!("the guardian does not run: {why}")
        })
    }
}
