//! The hands of a VIP: a thread that announces it, renews and withdraws it, and minds the guardian.
//!
//! One thread per VIP, because announcing may block (netlink, listeners of busy workers), and neither
//! the machines nor another VIP may wait for that. What comes before what, and after what the clock is
//! asked again, is decided by [`phalanx_engine::lease::hands`], whose acts it carries out.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use phalanx_engine::lease::Ballot;
use phalanx_engine::lease::hands::{self, Act, Job};
use phalanx_sys::clock::boottime;
use tracing::{error, info, warn};

use super::core::{Shared, thread};
use super::guardian::{Guardian, Hold, Place};
use super::{Announcer, VipSettings};

/// How often a driver looks at what it needs.
const INSPECT_EVERY: Duration = Duration::from_millis(500);

/// Between two attempts to take an address away.
const RETRY: Duration = Duration::from_millis(50);

/// What the thread has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Do(Job),
    Quit,
}

/// How an address is announced.
pub(super) trait Driver: Send {
    /// What is missing on this node; empty: nothing.
    fn missing(&mut self) -> Vec<String>;
    /// Looks at what others do with the address, and puts it right where it can; called now and then.
    fn look(&mut self) {}
    /// What was noticed and done since the last time.
    fn noticed(&mut self) -> Vec<String> {
        Vec::new()
    }
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

/// Tasks of the thread, and whether it has ended.
#[derive(Default)]
pub(super) struct Hands {
    tasks: Mutex<(VecDeque<Task>, bool)>,
    wake: Condvar,
}

impl Hands {
    /// Queues a task. A renewal replaces one that waits, so the queue stays as short as a tenure's
    /// begin and end.
    pub(super) fn push(&self, task: Task) {
        let mut tasks = self.tasks.lock();
        let renewal = |task: &Task| matches!(task, Task::Do(Job::Renew { .. }));
        if renewal(&task) && tasks.0.back().is_some_and(renewal) {
            tasks.0.pop_back();
        }
        tasks.0.push_back(task);
        self.wake.notify_all();
    }

    pub(super) fn wait_finished(&self, deadline: Instant) {
        let mut tasks = self.tasks.lock();
        while !tasks.1 && !self.wake.wait_until(&mut tasks, deadline).timed_out() {}
    }

    fn next(&self, wait: Duration) -> Option<Task> {
        let mut tasks = self.tasks.lock();
        if tasks.0.is_empty() {
            self.wake.wait_for(&mut tasks, wait);
        }
        tasks.0.pop_front()
    }

    fn finish(&self) {
        self.tasks.lock().1 = true;
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
        let mut worker =
            Worker { shared, index, vip, driver, guardian, decide: hands::Hands::default(), told: false };
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
    decide: hands::Hands,
    /// That the address cannot be taken away.
    told: bool,
}

impl Worker {
    fn run(&mut self, hands: &Hands) {
        // Whatever an earlier life left behind is not ours now.
        self.carry_out(Job::Clear);
        let mut inspect = Instant::now();
        loop {
            if Instant::now() >= inspect {
                self.inspect();
                inspect = Instant::now() + INSPECT_EVERY;
            }
            match hands.next(inspect.saturating_duration_since(Instant::now())) {
                Some(Task::Do(job)) => self.carry_out(job),
                Some(Task::Quit) => break,
                None => {}
            }
        }
        self.carry_out(Job::Clear);
        self.driver.close();
        if let Some(guardian) = &self.guardian {
            guardian.farewell(&self.vip.name);
        }
    }

    fn inspect(&mut self) {
        self.driver.look();
        self.tell_noticed();
        let mut missing = self.driver.missing();
        if let Some(guardian) = &self.guardian
            && let Err(why) = guardian.check()
        {
            missing.push(format!("the guardian does not run: {why}"));
        }
        self.shared.set_missing(self.index, missing);
    }

    fn tell_noticed(&mut self) {
        for text in self.driver.noticed() {
            warn!("vip '{}': {text}", self.vip.name);
            self.shared.note(self.index, text);
        }
    }

    fn carry_out(&mut self, job: Job) {
        if matches!(job, Job::Withdraw { .. }) {
            self.driver.reason(&self.shared.reason_of(self.index));
        }
        let mut next = self.decide.start(job, boottime(), self.shared.held_until(self.index));
        while let Some(act) = next {
            let outcome = self.act(act);
            next = self.decide.done(outcome, boottime(), self.shared.held_until(self.index));
        }
    }

    fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Guard { ballot, until } => self.guard(ballot, until, None),
            Act::Announce { ballot, until } => {
                let fds = self.driver.acquire(ballot.epoch().0, until)?;
                if !fds.is_empty() {
                    self.guard(ballot, until, Some(fds))?;
                }
                info!("vip '{}' {}: announced, epoch {}", self.vip.name, self.vip.addr, ballot.epoch());
                Ok(())
            }
            Act::Prolong { until, .. } => {
                let renewed = self.driver.renew(until);
                self.tell_noticed();
                renewed
            }
            Act::TakeAway => self.take_away(),
            Act::LetGo => {
                if let Some(guardian) = &self.guardian {
                    guardian.let_go(&self.vip.name);
                }
                Ok(())
            }
            Act::Withdrawn { ballot } => {
                info!("vip '{}' {}: withdrawn, epoch {}", self.vip.name, self.vip.addr, ballot.epoch());
                self.shared.withdrawn(self.index);
                Ok(())
            }
            Act::Failed(why) => {
                self.shared.announce_failed(self.index, why);
                Ok(())
            }
        }
    }

    /// Takes the address away, however long that takes: nobody is told that it is free before.
    fn take_away(&mut self) -> Result<(), String> {
        let Err(why) = self.driver.release() else {
            self.told = false;
            return Ok(());
        };
        // It was tried once; trying on would change nothing.
        if self.driver.releases_once() {
            warn!("vip '{}' {}: {why}", self.vip.name, self.vip.addr);
            return Ok(());
        }
        // Without the capability it was never put there.
        if self.decide.announced().is_none() && !self.driver.missing().is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.told, true) {
            error!("vip '{}' {}: cannot be taken away, trying on: {why}", self.vip.name, self.vip.addr);
        }
        std::thread::sleep(RETRY);
        Err(why)
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
