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
use phalanx_engine::lease::hands::{self, Act, Job, KEPT};
use phalanx_sys::clock::boottime;
use tracing::{error, info, warn};

use super::core::{Shared, thread};
use super::drain::{Kept, Paths, Reach};
use super::guardian::{Guardian, Hold, Place};
use super::{Announcer, VipSettings};

/// How often a driver looks at what it needs, beside what the kernel tells by itself.
const INSPECT_EVERY: Duration = Duration::from_millis(100);

/// How often connections that are kept, and those passed on, are looked after.
const TEND_EVERY: Duration = Duration::from_millis(500);

/// How long listeners of a former holder stay open: long enough for the next one to listen, shorter
/// than clients wait before they ask again.
const LINGER: Duration = Duration::from_millis(200);

/// A VIP that has moved is looked after for so long, even without a connection.
const KEEP_AT_LEAST: Duration = Duration::from_secs(2);

/// How often it is looked whether a busy driver has become idle.
const BUSY: Duration = Duration::from_millis(5);

/// Between two attempts to take an address away.
const RETRY: Duration = Duration::from_millis(50);

/// What the thread has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Do(Job),
    /// Something has happened to its interface or to its address.
    Look,
    /// It is about to be moved away.
    Prepare,
    /// What others keep has changed.
    PassOn,
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
    /// A tenure is about to begin: connections that are not open here are not this node's.
    fn begin(&mut self) {}
    /// What is left to do after [`acquire`](Driver::acquire), and may take its time.
    fn acquired(&mut self) {}
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
    /// How other nodes reach this one for what is passed on.
    fn reach(&mut self) -> Option<Reach> {
        None
    }
    /// Takes nothing new from now on, but lets connections go on, for [`KEPT`]; tells whether that can be
    /// done.
    fn keep(&mut self) -> Result<bool, String> {
        Ok(false)
    }
    /// Keeps what would begin a connection, until [`unpark`](Driver::unpark): the one that is to have the
    /// address next cannot take it yet.
    fn park(&mut self) {}
    /// Sends what was kept to the node with this hardware address, which can take it now; how much it was.
    /// After the `last` time nothing is kept any more.
    fn unpark(&mut self, to: [u8; 6], last: bool) -> usize {
        let _ = (to, last);
        0
    }
    /// Begins nothing new any more, until it is released soon; tells whether that can be done.
    fn quiesce(&mut self) -> bool {
        false
    }
    /// How many connections there are.
    fn connections(&mut self) -> Result<u32, String> {
        Ok(0)
    }
    /// Prolongs [`keep`](Driver::keep).
    fn renew_kept(&mut self) -> Result<u32, String> {
        Ok(0)
    }
    /// Sees to it that a planned move takes no time however many connections there are; tells whether it is
    /// ready, and goes on by itself if it is not.
    fn prepare(&mut self) -> Result<bool, String> {
        Ok(true)
    }
    /// Something goes on by itself; at its end [`prepare`](Driver::prepare) and [`pass`](Driver::pass) get further.
    fn busy(&self) -> bool {
        false
    }
    /// Passes packets of connections that are not this node's on to others, for [`KEPT`]; tells whether it does,
    /// or, when that takes longer than `patience`, has yet to.
    fn pass(&mut self, paths: &Paths, patience: Duration) -> Result<bool, String> {
        let _ = (paths, patience);
        Ok(true)
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

    fn quiesce(&mut self) -> bool {
        self.announcer.quiesce(&self.vip)
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
        let same = |task: &Task| match task {
            Task::Do(Job::Renew { .. }) => 1,
            Task::PassOn => 2,
            Task::Look => 3,
            _ => 0,
        };
        if same(&task) != 0 && tasks.0.back().is_some_and(|last| same(last) == same(&task)) {
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
    (guardian, announcer): (Option<Arc<Guardian>>, Arc<dyn Announcer>),
) -> Result<(), String> {
    thread("vip-hands", move || {
        let vip = shared.settings_of(index);
        let mut worker = Worker {
            shared,
            index,
            vip,
            driver,
            guardian,
            announcer,
            decide: hands::Hands::default(),
            told: false,
            lingers: None,
            unready: Vec::new(),
            suspected: Vec::new(),
            kept: None,
            paths: Paths::default(),
            failed: None,
            preparing: false,
        };
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
    announcer: Arc<dyn Announcer>,
    decide: hands::Hands,
    /// That the address cannot be taken away.
    told: bool,
    /// Until when listeners that begin nothing new stay open, after a planned move.
    lingers: Option<Instant>,
    /// What the announcer said last that is not ready.
    unready: Vec<String>,
    suspected: Vec<String>,
    /// What is known of the connections that go on after a planned move.
    kept: Option<Connections>,
    /// Where packets of unknown connections go.
    paths: Paths,
    /// Why they don't, as was said.
    failed: Option<String>,
    /// Somebody waits until it can be moved away.
    preparing: bool,
}

/// Connections of a tenure that is over.
struct Connections {
    since: Duration,
    count: u32,
    /// How often in a row none was left.
    none: u32,
}

impl Worker {
    fn run(&mut self, hands: &Hands) {
        // Whatever an earlier life left behind is not ours now.
        self.carry_out(Job::Clear);
        let mut inspect = Instant::now();
        let mut tend = Instant::now();
        let mut busy = false;
        loop {
            if Instant::now() >= inspect {
                self.inspect();
                inspect = Instant::now() + INSPECT_EVERY;
            }
            if Instant::now() >= tend {
                self.tend();
                tend = Instant::now() + TEND_EVERY;
            }
            if self.lingers.is_some_and(|until| Instant::now() >= until) {
                self.carry_out(Job::EndDrain);
            }
            if std::mem::replace(&mut busy, self.driver.busy()) && !busy {
                self.pass_on();
                self.prepare();
                busy = self.driver.busy();
            }
            let next = self.lingers.map_or(inspect, |until| until.min(inspect));
            let wait = next.saturating_duration_since(Instant::now());
            match hands.next(if busy { wait.min(BUSY) } else { wait }) {
                Some(Task::Do(job)) => self.carry_out(job),
                Some(Task::Prepare) => {
                    self.preparing = true;
                    self.prepare();
                }
                Some(Task::PassOn) => self.pass_on(),
                Some(Task::Look) => self.look_again(),
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

    /// Says so when it can be moved away.
    fn prepare(&mut self) {
        if !self.preparing {
            return;
        }
        match self.driver.prepare() {
            Ok(false) => return,
            Ok(true) => {}
            Err(why) => {
                warn!("vip '{}' {}: moved without preparation: {why}", self.vip.name, self.vip.addr)
            }
        }
        self.preparing = false;
        self.shared.prepared(self.index);
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
        missing.extend(self.unready.iter().cloned());
        self.shared.set_missing(self.index, missing);
    }

    /// Something has happened to the interface: what is not there any more is put back, or left to others.
    fn look_again(&mut self) {
        self.inspect();
        if let Some((ballot, until)) = self.shared.held_until(self.index) {
            self.carry_out(Job::Renew { ballot, until });
        }
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
        if matches!(job, Job::Acquire { .. }) && self.lingers.is_some() {
            self.carry_out(Job::EndDrain);
        }
        let mut next = self.decide.start(job, boottime(), self.shared.held_until(self.index));
        while let Some(act) = next {
            let outcome = self.act(act);
            next = self.decide.done(outcome, boottime(), self.shared.held_until(self.index));
        }
        // After the others were told: counting may take long.
        if matches!(job, Job::Withdraw { .. }) && self.kept.is_some() {
            self.count_kept();
        }
    }

    fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Guard { ballot, until } => self.guard(ballot, until, None),
            Act::Announce { ballot, until } => {
                self.driver.begin();
                // Before the first packet of a connection that is elsewhere comes here.
                self.pass_on_of(ballot, false);
                let until = self.renewed(ballot, until)?;
                let fds = self.driver.acquire(ballot.epoch().0, until)?;
                if !fds.is_empty() {
                    self.guard(ballot, until, Some(fds))?;
                }
                // What it kept of an earlier tenure is its own again: nobody is to pass it on by itself.
                self.kept = None;
                self.shared.set_announced(self.index, Some(ballot.epoch()));
                self.driver.acquired();
                info!("vip '{}' {}: announced, epoch {}", self.vip.name, self.vip.addr, ballot.epoch());
                Ok(())
            }
            Act::Prolong { until, .. } => {
                let renewed = self.driver.renew(until);
                self.tell_noticed();
                renewed
            }
            Act::Drain { ballot } => self.drain(ballot),
            Act::GuardDrain { ballot } => self.guard_as(ballot, boottime() + KEPT, None, true),
            Act::Tend { ballot } => self.tend_kept(ballot).inspect_err(|why| {
                let (name, addr) = (&self.vip.name, self.vip.addr);
                warn!("vip '{name}' {addr}: its connections cannot go on here: {why}");
            }),
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

    /// Takes nothing new from now on, and lets connections go on, even if there are none: until the
    /// neighbours have heard of the next holder, what is for it comes here.
    fn drain(&mut self, ballot: Ballot) -> Result<(), String> {
        let (name, addr, epoch) = (self.vip.name.clone(), self.vip.addr, ballot.epoch());
        self.driver.park();
        // At a move by itself; what fails here fails again below.
        let _ = self.driver.prepare();
        // First, or what is for others would be answered with resets here.
        self.shared.set_announced(self.index, None);
        self.pass_on_of(ballot, true);
        match self.driver.keep() {
            Ok(true) => {
                self.kept = Some(Connections { since: boottime(), count: 0, none: 0 });
                self.shared.set_kept(self.index, Some(Kept { epoch, connections: 0 }));
                Ok(())
            }
            // Listeners stay open for a moment, so that nobody is refused before the next holder listens,
            // and what waits in them is accepted.
            Ok(false) if self.driver.quiesce() => {
                self.lingers = Some(Instant::now() + LINGER);
                Ok(())
            }
            Ok(false) => Err("nothing can go on here".to_owned()),
            Err(why) => {
                warn!("vip '{name}' {addr}: its connections cannot go on here: {why}");
                Err(why)
            }
        }
    }

    fn tend_kept(&mut self, ballot: Ballot) -> Result<(), String> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.count = self.driver.renew_kept()?;
        kept.none = if kept.count == 0 { kept.none + 1 } else { 0 };
        self.shared.set_kept(self.index, Some(Kept { epoch: ballot.epoch(), connections: kept.count }));
        Ok(())
    }

    fn count_kept(&mut self) {
        let (Some(kept), Some(ballot)) = (&mut self.kept, self.decide.draining()) else { return };
        let (name, addr, epoch) = (&self.vip.name, self.vip.addr, ballot.epoch());
        // What fails here fails again when they are looked after.
        kept.count = match self.driver.connections() {
            Ok(count) => count,
            Err(why) => {
                return warn!("vip '{name}' {addr}: not known what goes on here, epoch {epoch}: {why}");
            }
        };
        info!("vip '{name}' {addr}: {} connections go on here, epoch {epoch}", kept.count);
        self.shared.set_kept(self.index, Some(Kept { epoch, connections: kept.count }));
    }

    /// Looks after connections that go on here or elsewhere.
    fn tend(&mut self) {
        self.look_at_listeners();
        let reach = self.driver.reach();
        self.shared.set_reach(self.index, reach);
        self.pass_on();
        if self.lingers.is_some() {
            return;
        }
        self.carry_out(Job::Tend);
        let (Some(kept), Some(ballot)) = (&self.kept, self.decide.draining()) else { return };
        let at_most = self.shared.drain();
        let why = match kept {
            // Once may be a moment between two, and what comes late must be handed over first.
            Connections { none: 2.., since, .. } if boottime() >= *since + KEEP_AT_LEAST => {
                "all connections have ended".to_owned()
            }
            Connections { since, count, .. } if boottime() >= *since + at_most => {
                format!("{count} connections are left after 'vip-drain' {at_most:?}")
            }
            _ => return,
        };
        info!("vip '{}' {}: off this node, epoch {}: {why}", self.vip.name, self.vip.addr, ballot.epoch());
        self.carry_out(Job::EndDrain);
    }

    /// Asks what is not ready. Said twice, it counts: a reload may be under way.
    fn look_at_listeners(&mut self) {
        if self.lingers.is_some() {
            return;
        }
        let Some(unready) = self.announcer.unready(&self.vip) else { return };
        self.unready = unready.iter().filter(|why| self.suspected.contains(why)).cloned().collect();
        self.suspected = unready;
    }

    /// Passes packets on that belong to connections of earlier holders.
    fn pass_on(&mut self) {
        match (self.decide.announced(), self.decide.draining()) {
            (Some(ballot), _) => _ = self.pass_on_of(ballot, false),
            (None, Some(ballot)) => self.hand_over(ballot),
            (None, None) => {}
        }
    }

    /// What is not of this node's connections goes to the holder, as soon as one answers.
    fn hand_over(&mut self, ballot: Ballot) {
        let successor = self.shared.successor(self.index, ballot.epoch());
        let before = successor.map_or(0, |next| self.driver.unpark(next.mac, false));
        let by_itself = self.pass_on_of(ballot, true);
        let late = before + successor.map_or(0, |next| self.driver.unpark(next.mac, by_itself));
        if late > 0 {
            info!("vip '{}' {}: {late} connections began between two holders", self.vip.name, self.vip.addr);
        }
    }

    /// Tells whether there is nothing left to be done about it.
    fn pass_on_of(&mut self, ballot: Ballot, drains: bool) -> bool {
        let paths = self.shared.paths(self.index, ballot.epoch(), drains);
        let nowhere = |p: &Paths| p.next.is_none() && p.home.is_none();
        if nowhere(&paths) && nowhere(&self.paths) {
            return true;
        }
        if paths.next != self.paths.next {
            let (name, addr) = (&self.vip.name, self.vip.addr);
            match paths.next {
                Some(to) => {
                    info!("vip '{name}' {addr}: connections of earlier holders are passed on to {to}")
                }
                None => info!("vip '{name}' {addr}: earlier holders have no connections any more"),
            }
        }
        // Nobody holds it meanwhile; what was there before goes on.
        let begins = !drains && self.decide.announced().is_none();
        let patience = if begins { self.shared.timing.lease / 4 } else { Duration::ZERO };
        match self.driver.pass(&paths, patience) {
            Ok(done) => {
                (self.paths, self.failed) = (paths, None);
                return done;
            }
            Err(why) if self.failed.as_ref() == Some(&why) => {}
            Err(why) => {
                let (name, addr) = (&self.vip.name, self.vip.addr);
                warn!("vip '{name}' {addr}: connections of earlier holders are lost: {why}");
                self.failed = Some(why);
            }
        }
        true
    }

    /// Takes the address away, however long that takes: nobody is told that it is free before.
    fn take_away(&mut self) -> Result<(), String> {
        self.shared.set_announced(self.index, None);
        let released = self.driver.release();
        (self.paths, self.lingers) = (Paths::default(), None);
        if self.kept.take().is_some() {
            self.shared.set_kept(self.index, None);
        }
        let Err(why) = released else {
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

    /// The end of the lease as it stands by now: what came before may have taken long, and the renewals
    /// meanwhile wait behind it.
    fn renewed(&self, ballot: Ballot, until: Duration) -> Result<Duration, String> {
        match self.shared.held_until(self.index) {
            Some((held, later)) if held == ballot && later > until => {
                // First, or it would take off at the former end what is announced now.
                self.guard(ballot, later, None)?;
                Ok(later)
            }
            _ => Ok(until),
        }
    }

    fn guard(&self, ballot: Ballot, until: Duration, fds: Option<Vec<OwnedFd>>) -> Result<(), String> {
        self.guard_as(ballot, until, fds, false)
    }

    fn guard_as(
        &self,
        ballot: Ballot,
        until: Duration,
        fds: Option<Vec<OwnedFd>>,
        drains: bool,
    ) -> Result<(), String> {
        let Some(guardian) = &self.guardian else { return Ok(()) };
        let hold = Hold {
            vip: self.vip.name.clone(),
            counter: ballot.counter,
            incarnation: ballot.incarnation,
            until,
            place: self.driver.place(),
            drains,
        };
        guardian.hold(hold, fds).map_err(|why| {
            warn!("vip '{}': the guardian does not run: {why}", self.vip.name);
            format!("the guardian does not run: {why}")
        })
    }
}
