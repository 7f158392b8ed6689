//! What happens when, out of a seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the worker.
    KillWorker,
    /// `kill -9` of the guardian.
    KillGuardian,
    /// `kill -9` of both at once: nobody cleans up.
    KillNode,
    /// The worker stands still.
    StopWorker,
    /// The guardian stands still.
    StopGuardian,
    /// Both stand still, as in a frozen machine.
    StopNode,
    /// The link is down, and the node sees it.
    Unplug,
    /// Everything from and to the node is lost.
    Isolate,
    /// Everything between it and the other nodes is lost.
    Part,
    /// What it sends to other nodes is lost.
    CutFrom,
    /// What other nodes send to it is lost.
    CutTo,
    /// So many of a hundred packets are lost, everywhere.
    Lose(u8),
    /// Its link is slow and queues.
    Throttle,
    /// Its wall clock is so many milliseconds ahead, or behind.
    StepClock(i64),
    /// Its syncs take so many milliseconds more.
    SlowSync(u32),
    /// Its syncs fail.
    FailSync,
    /// Its disk is full.
    FillDisk,
    /// It is killed, and the end of its log is garbage when it comes back.
    TearLog,
    /// All nodes end and start again in turn.
    RollingRestart,
    /// `kill -9` of all nodes at once.
    KillAll,
}

/// Names of all faults, as `--only` takes them.
pub const NAMES: [&str; 20] = [
    "kill-worker",
    "kill-guardian",
    "kill-node",
    "stop-worker",
    "stop-guardian",
    "stop-node",
    "unplug",
    "isolate",
    "part",
    "cut-from",
    "cut-to",
    "loss",
    "throttle",
    "clock",
    "slow-sync",
    "fail-sync",
    "disk-full",
    "torn-log",
    "rolling-restart",
    "kill-all",
];

impl Fault {
    /// As `--only` takes it.
    pub fn name(self) -> &'static str {
        NAMES[self.place()]
    }

    fn place(self) -> usize {
        match self {
            Fault::KillWorker => 0,
            Fault::KillGuardian => 1,
            Fault::KillNode => 2,
            Fault::StopWorker => 3,
            Fault::StopGuardian => 4,
            Fault::StopNode => 5,
            Fault::Unplug => 6,
            Fault::Isolate => 7,
            Fault::Part => 8,
            Fault::CutFrom => 9,
            Fault::CutTo => 10,
            Fault::Lose(_) => 11,
            Fault::Throttle => 12,
            Fault::StepClock(_) => 13,
            Fault::SlowSync(_) => 14,
            Fault::FailSync => 15,
            Fault::FillDisk => 16,
            Fault::TearLog => 17,
            Fault::RollingRestart => 18,
            Fault::KillAll => 19,
        }
    }

    fn draw(place: usize, rng: &mut StdRng) -> Fault {
        match place {
            0 => Fault::KillWorker,
            1 => Fault::KillGuardian,
            2 => Fault::KillNode,
            3 => Fault::StopWorker,
            4 => Fault::StopGuardian,
            5 => Fault::StopNode,
            6 => Fault::Unplug,
            7 => Fault::Isolate,
            8 => Fault::Part,
            9 => Fault::CutFrom,
            10 => Fault::CutTo,
            11 => Fault::Lose(rng.random_range(5..=40)),
            12 => Fault::Throttle,
            13 => {
                Fault::StepClock(*[-3_600_000, -5_000, -700, 700, 5_000, 3_600_000].choose(rng).expect("six"))
            }
            14 => Fault::SlowSync(rng.random_range(20..=1_500)),
            15 => Fault::FailSync,
            16 => Fault::FillDisk,
            17 => Fault::TearLog,
            18 => Fault::RollingRestart,
            _ => Fault::KillAll,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Fault::Lose(percent) => write!(f, " {percent}%"),
            Fault::StepClock(ms) => write!(f, " {:+} s", *ms as f64 / 1000.0),
            Fault::SlowSync(ms) => write!(f, " {ms} ms"),
            _ => Ok(()),
        }
    }
}

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Who holds the address then; this one when nobody does.
    Holder(usize),
    /// A node.
    Node(usize),
}

/// One fault of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub fault: Fault,
    /// Whom.
    pub target: Target,
    /// How long until it is undone.
    pub lasts: Duration,
    /// How long until the next, after that.
    pub pause: Duration,
    /// For what the fault decides itself.
    pub random: u64,
}

/// An endless list of steps.
#[derive(Debug)]
pub struct Schedule {
    rng: StdRng,
    nodes: usize,
    places: Vec<usize>,
}

impl Schedule {
    /// For so many nodes, of the faults with these names; of all where none is named.
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(seed: u64, nodes: usize, only: &[String]) -> Result<Schedule, String> {
        let place = |name: &String| {
            let known = || format!("no fault '{name}', expected one of {}", NAMES.join(", "));
            NAMES.iter().position(|n| n == name).ok_or_else(known)
        };
        let mut places = only.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        if places.is_empty() {
            // The whole cluster's end is rare: it says little about two holders.
            places = (0..18).chain(0..18).chain(0..18).chain(18..20).collect();
        }
        Ok(Schedule { rng: StdRng::seed_from_u64(seed), nodes, places })
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let place = *self.places.choose(&mut self.rng)?;
        let fault = Fault::draw(place, &mut self.rng);
        let node = self.rng.random_range(0..self.nodes);
        let target = if self.rng.random_bool(0.7) { Target::Holder(node) } else { Target::Node(node) };
        // Shorter than a lease, about as long, and much longer.
        let lasts = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(20..300),
            1 => self.rng.random_range(300..900),
            _ => self.rng.random_range(900..2500),
        };
        let pause = self.rng.random_range(50..700);
        let random = self.rng.random();
        let ms = Duration::from_millis;
        Some(Step { fault, target, lasts: ms(lasts), pause: ms(pause), random })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_follows_from_the_seed() {
        let take = |seed| Schedule::new(seed, 3, &[]).unwrap().take(500).collect::<Vec<_>>();
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
        for name in NAMES {
            assert!(take(7).iter().any(|s| s.fault.name() == name), "{name} never comes");
        }
    }

    #[test]
    fn only_what_was_asked_for_comes() {
        let only = ["part".to_owned(), "clock".to_owned()];
        assert!(
            Schedule::new(1, 3, &only).unwrap().take(50).all(|s| only.contains(&s.fault.name().to_owned()))
        );
        assert!(Schedule::new(1, 3, &["nonsense".to_owned()]).unwrap_err().contains("kill-worker"));
    }
}
