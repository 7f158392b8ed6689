//! How a name is resolved (manual section 5.3.2): which question goes out next, when a resolution
//! has failed, and for how long an old answer outweighs a failure.
//!
//! [`Lookup`] is one resolution, asked of all name servers at once; [`Memory`] is what lasts from one
//! to the next. Whoever sends the questions drives both.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use phalanx_config::model::Hold;

use super::{Id, Instance};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Targets of an SRV label.
    Srv,
}

impl Kind {
    /// The type that is asked for when this one has no answer.
    fn other(self) -> Option<Kind> {
        match self {
            Kind::A => Some(Kind::Aaaa),
            Kind::Aaaa => Some(Kind::A),
            Kind::Srv => None,
        }
    }
}

/// Why a resolution failed; the text is HAProxy's reason for taking a server out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// NXDOMAIN.
    Nx,
    /// REFUSED.
    Refused,
    /// No answer in time.
    Timeout,
    /// Everything else, an answer without records included.
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Nx => "DNS NX status",
            Failure::Refused => "DNS refused status",
            Failure::Timeout => "DNS time out status",
            Failure::Other => "unspecified DNS error",
        })
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for other answers, or for `timeout retry` to run out.
    Wait,
    /// Ask all name servers for this, and wait for `timeout retry` anew.
    Ask(Kind),
    /// It has failed.
    Failed(Failure),
}

/// One resolution. The first valid answer ends it: the caller just drops it.
#[derive(Clone, Debug)]
pub struct Lookup {
    preferred: Kind,
    kind: Kind,
    servers: usize,
    /// Name servers that have not answered the present question.
    waiting: usize,
    /// Rounds left, this one included.
    rounds: u32,
    failure: Option<Failure>,
}

impl Lookup {
    /// Asks `servers` name servers, at first for `preferred`, in up to `retries` rounds.
    pub fn new(preferred: Kind, servers: usize, retries: u32) -> Lookup {
        Lookup {
            preferred,
            kind: preferred,
            servers,
            waiting: servers,
            rounds: retries.max(1),
            failure: None,
        }
    }

    /// What is asked for now.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A name server did not give a valid answer.
    pub fn handle_failure(&mut self, failure: Failure) -> Step {
        self.waiting = self.waiting.saturating_sub(1);
        self.failure = Some(failure);
        if self.waiting > 0 {
            return Step::Wait;
        }
        match self.fall_back() {
            Some(step) => step,
            // The next round begins with `timeout retry`, so that errors are not asked for in a loop.
            None if self.rounds > 1 => Step::Wait,
            None => Step::Failed(failure),
        }
    }

    /// `timeout retry` has run out since the last question.
    pub fn handle_timeout(&mut self) -> Step {
        if self.waiting > 0
            && self.failure.is_some()
            && let Some(step) = self.fall_back()
        {
            return step;
        }
        self.rounds -= 1;
        if self.rounds == 0 {
            return Step::Failed(self.failure.unwrap_or(Failure::Timeout));
        }
        self.failure = None;
        self.ask(self.preferred)
    }

    /// The other type, once in a round and not after mere silence.
    fn fall_back(&mut self) -> Option<Step> {
        let other = self.kind.other()?;
        let may = self.kind == self.preferred && self.failure != Some(Failure::Timeout);
        may.then(|| self.ask(other))
    }

    fn ask(&mut self, kind: Kind) -> Step {
        (self.kind, self.waiting) = (kind, self.servers);
        Step::Ask(kind)
    }
}

/// What is known of one name.
#[derive(Clone, Debug)]
pub struct Memory {
    hold: Hold,
    /// When each was last in an answer.
    seen: BTreeMap<Id, (Instance, Duration)>,
    /// The last valid answer.
    valid_at: Duration,
}

impl Memory {
    /// `known` counts as answered just now: whoever found it may be gone.
    pub fn new(hold: Hold, known: &[Instance], now: Duration) -> Memory {
        let seen = known.iter().map(|i| (i.id(), (i.clone(), now))).collect();
        Memory { hold, seen, valid_at: now }
    }

    /// Takes a valid answer.
    pub fn handle_answer(&mut self, answer: Vec<Instance>, now: Duration) {
        self.valid_at = now;
        for instance in answer {
            self.seen.insert(instance.id(), (instance, now));
        }
        let obsolete = self.hold.obsolete;
        self.seen.retain(|_, (_, at)| *at == now || now.saturating_sub(*at) < obsolete);
    }

    /// Takes a failure; whether what was known is lost with it.
    pub fn handle_failure(&mut self, failure: Failure, now: Duration) -> bool {
        let hold = match failure {
            Failure::Nx => self.hold.nx,
            Failure::Refused => self.hold.refused,
            Failure::Timeout => self.hold.timeout,
            Failure::Other => self.hold.other,
        };
        let lost = now.saturating_sub(self.valid_at) >= hold;
        if lost {
            self.seen.clear();
        }
        lost
    }

    /// What is to be used.
    pub fn instances(&self) -> Vec<Instance> {
        self.seen.values().map(|(instance, _)| instance.clone()).collect()
    }
}

/// The weight of a server from that of an SRV record, as HAProxy makes it.
pub fn srv_weight(weight: u16) -> u32 {
    u32::from(weight).div_ceil(256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Failure::{Nx, Other, Refused, Timeout};

    /// Answers of each question in order: failures of name servers, `None` = the timer.
    fn play(mut lookup: Lookup, events: &[Option<Failure>]) -> Vec<Step> {
        events
            .iter()
            .map(|event| match event {
                Some(failure) => lookup.handle_failure(*failure),
                None => lookup.handle_timeout(),
            })
            .collect()
    }

    #[test]
    fn the_manuals_scenarios() {
        use Step::{Ask, Failed, Wait};
        for (kind, servers, retries, events, steps) in [
            // NX, then truncated (other): a new type.
            (Kind::A, 2, 3, &[Some(Nx), Some(Other)][..], &[Wait, Ask(Kind::Aaaa)][..]),
            // NX, then silence: a new type.
            (Kind::A, 2, 3, &[Some(Nx), None], &[Wait, Ask(Kind::Aaaa)]),
            // Silence: the same type.
            (Kind::A, 2, 3, &[None], &[Ask(Kind::A)]),
            (Kind::A, 2, 2, &[None, None], &[Ask(Kind::A), Failed(Timeout)]),
            // Both types, the preferred one again, then it is over.
            (
                Kind::Aaaa,
                1,
                2,
                &[Some(Other), Some(Nx), None, Some(Other), Some(Nx)],
                &[Ask(Kind::A), Wait, Ask(Kind::Aaaa), Ask(Kind::A), Failed(Nx)],
            ),
            // There is no other type for SRV.
            (
                Kind::Srv,
                1,
                2,
                &[Some(Refused), None, Some(Refused)],
                &[Wait, Ask(Kind::Srv), Failed(Refused)],
            ),
            (Kind::Srv, 2, 1, &[Some(Nx), None], &[Wait, Failed(Nx)]),
        ] {
            assert_eq!(play(Lookup::new(kind, servers, retries), events), steps, "{kind:?} {events:?}");
        }
    }

    #[test]
    fn every_lookup_ends() {
        let failures = [Nx, Refused, Timeout, Other];
        for seed in 0..500u64 {
            let mut state = seed;
            let mut draw = |n: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % n
            };
            let kind = [Kind::A, Kind::Aaaa, Kind::Srv][draw(3) as usize];
            let servers = 1 + draw(4) as usize;
            let mut lookup = Lookup::new(kind, servers, 1 + draw(4) as u32);
            let mut open = servers;
            let ended = (0..200).any(|_| {
                let step = match open {
                    0 => lookup.handle_timeout(),
                    _ if draw(3) == 0 => lookup.handle_timeout(),
                    _ => {
                        open -= 1;
                        lookup.handle_failure(failures[draw(4) as usize])
                    }
                };
                if let Step::Ask(_) = step {
                    open = servers;
                }
                matches!(step, Step::Failed(_))
            });
            assert!(ended, "seed {seed}");
        }
    }

    #[test]
    fn holds_outweigh_failures_for_as_long_as_they_say() {
        let s = Duration::from_secs;
        let hold = Hold { nx: s(3), obsolete: s(2), ..Hold::default() };
        let at = |n: u8| Instance::at([10, 0, 0, n].into(), 0, None);
        let mut memory = Memory::new(hold, &[at(9)], s(0));
        assert_eq!(memory.instances(), [at(9)], "what was agreed before counts");
        memory.handle_answer(vec![at(1), at(2)], s(1));
        assert_eq!(memory.instances(), [at(1), at(2), at(9)], "held");
        memory.handle_answer(vec![at(1)], s(2));
        assert_eq!(memory.instances(), [at(1), at(2)]);
        memory.handle_answer(vec![at(1)], s(3));
        assert_eq!(memory.instances(), [at(1)]);
        assert!(!memory.handle_failure(Nx, s(5)) && !memory.handle_failure(Timeout, s(30)));
        assert_eq!(memory.instances(), [at(1)]);
        assert!(memory.handle_failure(Nx, s(6)));
        assert_eq!(memory.instances(), []);
    }

    #[test]
    fn weights_of_srv_records() {
        let seen = [(0, 0), (1, 1), (10, 1), (256, 1), (257, 2), (512, 2), (65535, 256)];
        for (weight, expected) in seen {
            assert_eq!(srv_weight(weight), expected, "{weight}");
        }
    }
}
