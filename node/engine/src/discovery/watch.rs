//! Consul's blocking queries: with which index the next one goes out, when, and what becomes of its
//! answer.
//!
//! The rules are those of Consul's documentation: the index starts at 0 and goes back to 0 when it
//! falls, is never 0 in a query that is to block, and queries are limited in their rate. An error
//! changes nothing but the time of the next query: the last good answer counts until there is
//! another.

use std::time::Duration;

use super::{Instance, same};

/// What a query brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `X-Consul-Index`; `None` if there was none.
    pub index: Option<u64>,
    /// The instances, in Consul's order.
    pub instances: Vec<Instance>,
}

/// What to do after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// What is to be used from now on, if it is something else than before.
    pub list: Option<Vec<Instance>>,
    /// When the next query goes out.
    pub delay: Duration,
}

/// The state of one watched service.
#[derive(Clone, Debug)]
pub struct Watch {
    index: u64,
    failures: u32,
    list: Option<Vec<Instance>>,
    hold_empty: Duration,
    /// Since when answers are empty, while that is not believed yet.
    empty_since: Option<Duration>,
    /// Queries that may go out at once.
    budget: f64,
    counted_at: Duration,
    draw: u64,
}

/// Queries a second in the long run, and how many may come at once.
const RATE: f64 = 2.0;
const BURST: f64 = 5.0;

/// An agent that does not say its index is asked this often.
const UNINDEXED: Duration = Duration::from_secs(5);

/// An empty answer that is not believed yet is asked for again this soon.
const RECHECK: Duration = Duration::from_secs(1);

/// Longest pause after errors.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

impl Watch {
    /// Starts from what is known, if anything is. `seed` makes the pauses of nodes differ.
    pub fn new(known: Option<Vec<Instance>>, hold_empty: Duration, seed: u64, now: Duration) -> Watch {
        Watch {
            index: 0,
            failures: 0,
            list: known,
            hold_empty,
            empty_since: None,
            budget: BURST,
            counted_at: now,
            draw: seed,
        }
    }

    /// The index to wait beyond; 0 = answer at once.
    pub fn index(&self) -> u64 {
        if self.empty_since.is_some() { 0 } else { self.index }
    }

    /// What is to be used; `None` before the first answer.
    pub fn list(&self) -> Option<&[Instance]> {
        self.list.as_deref()
    }

    /// Errors since the last answer.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes an answer.
    pub fn handle_answer(&mut self, answer: Answer, now: Duration) -> Next {
        self.failures = 0;
        self.index = match answer.index {
            // Its data are older than what we waited for: from the start.
            Some(index) if index < self.index => 0,
            // 0 would not block.
            Some(index) => index.max(1),
            None => 0,
        };
        let mut delay = self.pause(now);
        if answer.index.is_none() {
            delay = delay.max(UNINDEXED);
        }
        let has = self.list.as_ref().is_some_and(|list| !list.is_empty());
        if answer.instances.is_empty() && has {
            let since = *self.empty_since.get_or_insert(now);
            let left = (since + self.hold_empty).saturating_sub(now);
            if !left.is_zero() {
                return Next { list: None, delay: delay.max(left.min(RECHECK)) };
            }
        }
        self.empty_since = None;
        let changed = self.list.as_ref().is_none_or(|list| !same(list, &answer.instances));
        if changed {
            self.list = Some(answer.instances.clone());
        }
        Next { list: changed.then_some(answer.instances), delay }
    }

    /// Takes an error; when the next query goes out.
    pub fn handle_error(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // Whatever answers next may be another server: it is asked for all it has.
        self.index = 0;
        let base = Duration::from_millis(250) * 2u32.pow(self.failures.min(8) - 1);
        self.jittered(base.min(MAX_BACKOFF))
    }

    /// Between half and all of it.
    fn jittered(&mut self, whole: Duration) -> Duration {
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (self.draw >> 40) as f64 / (1u64 << 24) as f64;
        whole.mul_f64(0.5 + share / 2.0)
    }

    /// Rate limit: an index may move all the time without any change of this service.
    fn pause(&mut self, now: Duration) -> Duration {
        let since = now.saturating_sub(self.counted_at).as_secs_f64();
        self.counted_at = now;
        self.budget = (self.budget + since * RATE).min(BURST) - 1.0;
        if self.budget >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.budget / RATE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn answer(index: u64, ips: &[u8]) -> Answer {
        let instances = ips.iter().map(|n| Instance::at([10, 0, 0, *n].into(), 80, None)).collect();
        Answer { index: Some(index), instances }
    }

    fn watch() -> Watch {
        Watch::new(None, s(10), 7, s(0))
    }

    #[test]
    fn the_index_follows_consul_and_starts_over_when_it_falls() {
        let mut watch = watch();
        assert_eq!(watch.index(), 0);
        for (index, next) in [(5, 5), (5, 5), (9, 9), (3, 0), (3, 3), (0, 0), (0, 1), (u64::MAX, u64::MAX)] {
            watch.handle_answer(answer(index, &[1]), s(100));
            assert_eq!(watch.index(), next, "after {index}");
        }
        watch.handle_error();
        assert_eq!(watch.index(), 0);
        let next = watch.handle_answer(Answer { index: None, instances: Vec::new() }, s(200));
        assert_eq!((watch.index(), next.delay >= s(1)), (0, true));
    }

    #[test]
    fn only_changes_are_published_and_errors_change_nothing() {
        let mut watch = watch();
        assert_eq!(watch.handle_answer(answer(1, &[1, 2]), s(1)).list.map(|l| l.len()), Some(2));
        assert_eq!(watch.handle_answer(answer(2, &[2, 1]), s(2)).list, None, "order is no change");
        let pauses: Vec<Duration> = (0..12).map(|_| watch.handle_error()).collect();
        assert!(pauses[0] >= Duration::from_millis(125) && pauses[0] <= Duration::from_millis(250));
        assert!(pauses.iter().all(|p| *p <= MAX_BACKOFF) && pauses[11] >= s(15), "{pauses:?}");
        assert_eq!(watch.handle_answer(answer(1, &[1, 2]), s(300)).list, None);
        assert_eq!(watch.failures(), 0);
        assert_eq!(watch.handle_answer(answer(2, &[1]), s(301)).list.map(|l| l.len()), Some(1));
    }

    #[test]
    fn an_empty_answer_has_to_last() {
        let mut watch = watch();
        watch.handle_answer(answer(4, &[1]), s(1));
        let next = watch.handle_answer(answer(5, &[]), s(2));
        assert_eq!((next.list, next.delay), (None, RECHECK));
        assert_eq!(watch.index(), 0, "asked again at once, not when something changes");
        assert_eq!(watch.handle_answer(answer(6, &[]), s(8)).list, None);
        watch.handle_answer(answer(7, &[1]), s(9));
        assert_eq!(watch.index(), 7);
        assert_eq!(watch.handle_answer(answer(8, &[]), s(20)).list, None, "it starts anew");
        assert_eq!(watch.handle_answer(answer(8, &[]), s(30)).list, Some(Vec::new()));
        let mut fresh = Watch::new(None, s(10), 1, s(0));
        assert_eq!(fresh.handle_answer(answer(1, &[]), s(1)).list, Some(Vec::new()), "nothing to lose");
    }

    #[test]
    fn queries_are_limited_in_their_rate() {
        let mut watch = watch();
        let (mut now, mut count) = (s(0), 0);
        while now < s(60) {
            count += 1;
            now += watch.handle_answer(answer(count, &[1]), now).delay + Duration::from_millis(1);
        }
        assert!((110..=130).contains(&count), "{count} in a minute");
    }
}
