//! When one peer is sent what has changed: at once, gathered with what follows, or along with a lesson.
//!
//! Driven by [`super::Inner::carry`], which says what happens and asks what to do; time is an argument.
//! It must never hold a change back for longer than [`GATHER_BUSY`].

use std::time::{Duration, Instant};

/// Changes that follow each other are gathered for so long before they are sent, timers' grain apart.
const GATHER: Duration = Duration::from_millis(1);
/// As long while they come fast: half of what one costs is its share of a message, and of the waking of
/// two processes.
const GATHER_BUSY: Duration = Duration::from_millis(4);
/// Changes sent in one go that are fast.
const FAST: u32 = 32;
/// Changes sent without being gathered, one more for each [`GATHER`] that passes: a request that changes
/// an entry twice must not hold up the next one.
const AT_ONCE: f64 = 4.0;

/// Of one stream.
#[derive(Debug)]
pub(super) struct Pace {
    flushed: Instant,
    /// Until when changes are gathered.
    gathering: Option<Instant>,
    /// Changes that went out in the last turn that had some.
    changes: u32,
    at_once: f64,
    teaching: bool,
}

impl Pace {
    /// Nothing was sent yet.
    pub(super) fn new(now: Instant) -> Pace {
        let flushed = now.checked_sub(GATHER).unwrap_or(now);
        Pace { flushed, gathering: None, changes: 0, at_once: AT_ONCE, teaching: false }
    }

    /// Whether to send what there is. Who is taught is sent something all the time: changes go along.
    pub(super) fn is_turn(&mut self, now: Instant) -> bool {
        self.gathering = self.gathering.filter(|due| *due > now);
        self.gathering.is_none() || self.teaching
    }

    /// Whether to be told of the next change. Not while the peer is taught: the next lesson takes it along,
    /// and a worker that has to wake somebody in the middle of a request is held up by whom it wakes.
    pub(super) fn wants_news(&self) -> bool {
        self.gathering.is_none() && !self.teaching
    }

    /// A message went out.
    pub(super) fn sent(&mut self, now: Instant) {
        self.flushed = now;
    }

    /// So many changes went out in one turn.
    pub(super) fn changes(&mut self, sent: u32) {
        // A turn that only answers says nothing of how fast changes come.
        if sent > 0 {
            self.changes = sent;
        }
    }

    /// Whether the peer is being taught. Returns whether that has just ended: what has changed meanwhile
    /// may have told nobody, so it must be looked for once.
    pub(super) fn teaches(&mut self, teaching: bool) -> bool {
        std::mem::replace(&mut self.teaching, teaching) && !teaching
    }

    /// Something has changed.
    pub(super) fn news(&mut self, now: Instant) {
        let rested = now.saturating_duration_since(self.flushed).div_duration_f64(GATHER);
        self.at_once = (self.at_once + rested).min(AT_ONCE);
        let due = self.flushed + if self.changes < FAST { GATHER } else { GATHER_BUSY };
        self.gathering = (due > now).then_some(due);
        if self.changes < FAST && self.at_once >= 1.0 {
            self.at_once -= 1.0;
            self.gathering = None;
        }
    }

    /// When the gathering ends, if it goes on.
    pub(super) fn due(&self) -> Option<Instant> {
        self.gathering
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A change at `now`, and what is sent of it if it is its turn.
    fn change(pace: &mut Pace, now: Instant, changes: u32) -> bool {
        assert!(pace.wants_news());
        pace.news(now);
        let turn = pace.is_turn(now);
        if turn {
            pace.sent(now);
            pace.changes(changes);
        }
        turn
    }

    #[test]
    fn a_few_changes_go_out_at_once_and_then_they_are_gathered() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..4 {
            assert!(change(&mut pace, now, 1));
        }
        assert!(!change(&mut pace, now, 1));
        assert_eq!(pace.due(), Some(now + GATHER));
        assert!(!pace.wants_news(), "it is known that there are some");
        assert!(pace.is_turn(now + GATHER));
        assert!(pace.wants_news());
        // Rest gives back what was used up.
        pace.sent(now + GATHER);
        assert!((0..4).all(|_| change(&mut pace, now + 10 * MS, 1)));
        assert!(!change(&mut pace, now + 10 * MS, 1));
    }

    #[test]
    fn what_comes_fast_is_gathered_for_longer() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(change(&mut pace, now, FAST));
        assert!(!change(&mut pace, now + MS, FAST));
        assert_eq!(pace.due(), Some(now + GATHER_BUSY));
        assert!(!pace.is_turn(now + 3 * MS));
        assert!(pace.is_turn(now + GATHER_BUSY));
        // A turn without changes is an answer: it does not end the gathering of those that come fast.
        pace.sent(now + GATHER_BUSY);
        pace.changes(0);
        assert!(!change(&mut pace, now + GATHER_BUSY, FAST));
        assert_eq!(pace.due(), Some(now + 2 * GATHER_BUSY));
    }

    #[test]
    fn while_a_peer_is_taught_nobody_is_woken_for_changes_and_they_go_along() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(change(&mut pace, now, FAST));
        assert!(!change(&mut pace, now, FAST));
        assert!(!pace.teaches(true));
        assert!(!pace.wants_news());
        assert!(pace.is_turn(now), "a lesson takes along what was gathered");
        pace.sent(now);
        pace.changes(FAST);
        assert!(pace.is_turn(now) && !pace.wants_news());
        assert!(pace.teaches(false), "look once more");
        assert!(!pace.teaches(false));
        assert!(pace.is_turn(now + 10 * MS) && pace.wants_news());
    }
}
