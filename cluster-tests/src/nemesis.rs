//! What a seeded nemesis does to a cluster in the laboratory, and how it is undone.
//!
//! The [`Schedule`] follows from its seed alone; what a step hits (the holder at that time, or a node by
//! number) and how long it lasts are part of it. [`Nemesis`] carries steps out. It never takes the data
//! of a majority: what a node has synced stays, except where a log was torn so that the node refuses it
//! and its operator wipes it: no log is torn before all nodes are whole.

mod schedule;

use std::time::Duration;

use nix::sys::signal::Signal;

pub use self::schedule::{Fault, NAMES, Schedule, Step, Target};
use crate::lab::{Drops, Rig, corrupt_tail};

/// How long all nodes may take to be whole before a log is torn; else the node is only killed.
const WHOLE: Duration = Duration::from_secs(20);

/// How long a killed process may take to be gone: it may stand in a sync of a slow disk.
const ENDS: Duration = Duration::from_secs(30);

/// Carries steps out on a rig.
#[derive(Debug, Default)]
pub struct Nemesis {
    torn: Option<usize>,
    killed: Option<usize>,
    /// How often a node had to be wiped after its log was torn.
    pub wiped: usize,
}

impl Nemesis {
    /// Begins a step. Returns the node that it hits, where it is one.
    ///
    /// # Errors
    /// A tool failed; the cluster is not to blame.
    pub fn begin(&mut self, rig: &mut Rig, step: &Step) -> Result<usize, String> {
        let node = match step.target {
            Target::Node(node) => node,
            Target::Holder(otherwise) => rig.holder(Duration::from_secs(2)).unwrap_or(otherwise),
        };
        let lost = |from, to, percent| Drops { from, to, percent };
        // A guardian that is found after its worker has died would not be known.
        rig.stations[node].children();
        match step.fault {
            Fault::KillWorker => {
                rig.stations[node].signal(Signal::SIGKILL, true, false);
                // The end of a process that waits for its disk may come long after.
                self.killed = Some(node);
            }
            Fault::KillGuardian => rig.stations[node].signal(Signal::SIGKILL, false, true),
            Fault::KillNode => rig.stations[node].kill_all(),
            Fault::StopWorker => rig.stations[node].signal(Signal::SIGSTOP, true, false),
            Fault::StopGuardian => rig.stations[node].signal(Signal::SIGSTOP, false, true),
            Fault::StopNode => rig.stations[node].signal(Signal::SIGSTOP, true, true),
            Fault::Unplug => rig.network.unplug(node)?,
            Fault::Isolate => rig.network.isolate(node)?,
            Fault::Part => rig.network.part(node)?,
            Fault::CutFrom => {
                let others = (0..rig.stations.len()).filter(|n| *n != node);
                rig.network.lose(others.map(|o| lost(Some(node), Some(o), 100)).collect::<Vec<_>>())?;
            }
            Fault::CutTo => {
                let others = (0..rig.stations.len()).filter(|n| *n != node);
                rig.network.lose(others.map(|o| lost(Some(o), Some(node), 100)).collect::<Vec<_>>())?;
            }
            Fault::Lose(percent) => rig.network.lose([lost(None, None, percent)])?,
            Fault::Throttle => rig.network.throttle(node)?,
            Fault::StepClock(milliseconds) => rig.faults[node].step_clock(milliseconds),
            Fault::SlowSync(milliseconds) => rig.faults[node].slow_sync(milliseconds),
            Fault::FailSync => rig.faults[node].fail_sync(true),
            Fault::FillDisk => rig.disks[node].fill()?,
            Fault::TearLog => {
                // A node that was wiped and not yet taught has nothing: with a second log gone, a majority
                // has lost its data, and rightly no cluster comes back from that.
                let whole = rig.all_fit(WHOLE).is_ok();
                rig.stations[node].kill_all();
                rig.network.forget_address(node);
                // A node that was killed before it wrote anything has no log to tear.
                if whole && corrupt_tail(rig.disks[node].path(), step.random).is_ok() {
                    self.torn = Some(node);
                }
            }
            Fault::RollingRestart => self.rolling_restart(rig)?,
            Fault::KillAll => rig.stations.iter_mut().for_each(|s| s.kill_all()),
        }
        Ok(node)
    }

    /// Undoes whatever is disturbed, and starts what does not run.
    ///
    /// # Errors
    /// A tool failed, or a node does not start.
    pub fn undo(&mut self, rig: &mut Rig) -> Result<(), String> {
        rig.network.heal()?;
        rig.faults.iter().for_each(|f| f.clear());
        rig.disks.iter().for_each(|d| d.free());
        if let Some(node) = self.killed.take() {
            rig.stations[node].await_end(ENDS);
        }
        for index in 0..rig.stations.len() {
            let station = &mut rig.stations[index];
            // The guardian first: it decides by itself what the time that it slept means.
            station.signal(Signal::SIGCONT, false, true);
            station.signal(Signal::SIGCONT, true, false);
            if station.worker().is_none() {
                station.start()?;
            }
        }
        match self.torn.take() {
            Some(node) => self.mend_torn(rig, node),
            None => Ok(()),
        }
    }

    /// A node may refuse a log that lost what was synced; then its operator removes it.
    fn mend_torn(&mut self, rig: &mut Rig, node: usize) -> Result<(), String> {
        let deadline = rig.now() + Duration::from_secs(3);
        while rig.now() < deadline {
            if rig.stations[node].worker().is_none() {
                self.wiped += 1;
                let data = rig.disks[node].path().join("data");
                std::fs::remove_dir_all(&data).map_err(|e| format!("'{}': {e}", data.display()))?;
                return rig.stations[node].start();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One node after the other is told to end and started again when the others are fit.
    fn rolling_restart(&mut self, rig: &mut Rig) -> Result<(), String> {
        for index in 0..rig.stations.len() {
            rig.stations[index].signal(Signal::SIGTERM, true, false);
            rig.stations[index].await_end(Duration::from_secs(5));
            rig.stations[index].start()?;
            // Not an assertion: what the checkers see is what counts.
            let _ = rig.all_fit(Duration::from_secs(10));
        }
        Ok(())
    }
}
