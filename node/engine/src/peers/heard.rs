//! What a HAProxy has said a moment ago, and the cluster has not taken up yet.
//!
//! A HAProxy's last writer wins: whoever sends it an older value takes back what it has counted since.
//! The nodes learn what it says a little late, and most of them from another node, so for that while
//! their sums lag behind what it told each of them. Here a session remembers it, by entry, and
//! [`Heard::correct`] says what may be sent: never less than the HAProxy has, and nothing at all where
//! it has everything. Bounded in time and number; never a source of what is learned.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::stick::foreign::Value;

/// So long the nodes may take to hear of it from the one that learns.
const KEPT: Duration = Duration::from_secs(2);
/// Entries remembered; beyond it the oldest are forgotten, which costs what one echo may cost.
const MAX: usize = 1 << 16;

/// Table (its epoch) and key as it stands on the wire.
type At = (u64, Arc<[u8]>);

/// What was heard, by entry.
#[derive(Debug, Default)]
pub(super) struct Heard {
    entries: HashMap<At, Known>,
    order: VecDeque<(Duration, At)>,
}

/// One entry: for each column that travels, what the HAProxy has and what the sum was here then.
#[derive(Debug)]
struct Known {
    at: Duration,
    values: Vec<Option<(Value, Option<Value>)>>,
}

/// What to send of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The values as they are.
    Same,
    /// These instead: the HAProxy is ahead in some.
    Instead(Vec<Value>),
    /// Nothing: it has all of it.
    Nothing,
}

impl Heard {
    /// The HAProxy has `values` of a key, by column that travels; here the sums are `have`.
    pub(super) fn note(
        &mut self,
        table: u64,
        key: Arc<[u8]>,
        values: Vec<Option<Value>>,
        have: &[Value],
        now: Duration,
    ) {
        self.forget(now);
        let values = values.into_iter().enumerate();
        let values = values.map(|(i, value)| Some((value?, have.get(i).cloned()))).collect();
        let at = (table, key);
        self.order.push_back((now, at.clone()));
        self.entries.insert(at, Known { at: now, values });
    }

    /// What to send of an entry whose sums are `values`; `periods` are the columns' (0: no rate).
    pub(super) fn correct(
        &mut self,
        table: u64,
        key: &[u8],
        values: &[Value],
        periods: &[u32],
        now: Duration,
    ) -> Sent {
        if self.entries.is_empty() {
            return Sent::Same;
        }
        self.forget(now);
        let Some(known) = self.entries.get(&(table, Arc::from(key))) else { return Sent::Same };
        let since = u32::try_from((now.saturating_sub(known.at)).as_millis()).unwrap_or(u32::MAX);
        let mut sent = values.to_vec();
        let (mut ahead, mut covered) = (false, true);
        for (i, value) in sent.iter_mut().enumerate() {
            let Some(Some((theirs, then))) = known.values.get(i) else {
                covered = false;
                continue;
            };
            let theirs = theirs.aged(since);
            match theirs.supersedes(value, then.as_ref(), periods.get(i).copied().unwrap_or(0)) {
                Some(true) => {
                    *value = theirs;
                    ahead = true;
                }
                Some(false) => {}
                None => covered = false,
            }
        }
        match (covered, ahead) {
            (true, _) => Sent::Nothing,
            (false, true) => Sent::Instead(sent),
            (false, false) => Sent::Same,
        }
    }

    fn forget(&mut self, now: Duration) {
        while let Some((at, _)) = self.order.front() {
            if now.saturating_sub(*at) < KEPT && self.order.len() < MAX {
                break;
            }
            let Some((at, key)) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|known| known.at <= at) {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = &[1, 2, 3, 4];

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn heard(values: Vec<Option<Value>>, have: &[Value]) -> Heard {
        let mut heard = Heard::default();
        heard.note(1, Arc::from(KEY), values, have, at(1000));
        heard
    }

    #[test]
    fn a_counter_is_never_sent_below_what_was_heard() {
        use Value::Number;
        let mut h = heard(vec![Some(Number(5)), Some(Number(9))], &[Number(3), Number(9)]);
        let mut sent = |a, b, ms| h.correct(1, KEY, &[Number(a), Number(b)], &[0, 0], at(ms));
        assert_eq!(sent(3, 9, 1100), Sent::Nothing);
        assert_eq!(sent(4, 9, 1100), Sent::Nothing);
        assert_eq!(sent(3, 10, 1100), Sent::Instead(vec![Number(5), Number(10)]));
        assert_eq!(sent(6, 10, 1100), Sent::Same);
        // Lowered here since: that is a decision, and goes out.
        assert_eq!(sent(0, 9, 1100), Sent::Same);
        assert_eq!(sent(3, 9, 3001), Sent::Same, "by then it is in the sum");
        assert!(h.entries.is_empty() && h.order.is_empty());
    }

    #[test]
    fn a_register_is_sent_when_it_changed_here() {
        use Value::Number;
        let mut h = Heard::default();
        h.note(1, Arc::from(KEY), vec![Some(Number(7).register())], &[Number(3).register()], at(1000));
        let mut sent = |n| h.correct(1, KEY, &[Number(n).register()], &[0], at(1001));
        assert_eq!(sent(3), Sent::Nothing);
        assert_eq!(sent(7), Sent::Nothing);
        assert_eq!(sent(4), Sent::Same);
    }

    #[test]
    fn a_rate_is_compared_as_it_reads_now() {
        let rate = |age, current| Value::Rate { age, current, previous: 0 };
        let mut h = heard(vec![Some(rate(100, 8))], &[rate(100, 2)]);
        assert_eq!(h.correct(1, KEY, &[rate(150, 2)], &[10_000], at(1050)), Sent::Nothing);
        assert_eq!(h.correct(1, KEY, &[rate(150, 9)], &[10_000], at(1050)), Sent::Same);
        assert_eq!(h.correct(2, KEY, &[rate(150, 2)], &[10_000], at(1050)), Sent::Same, "another table");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut h = Heard::default();
        for n in 0..MAX as u32 + 10 {
            h.note(1, Arc::from(n.to_be_bytes()), vec![Some(Value::Number(1))], &[], at(1000));
        }
        assert!(h.entries.len() <= MAX && h.order.len() <= MAX);
        // The same key again and again too.
        (0..MAX + 10).for_each(|_| h.note(1, Arc::from(KEY), vec![None], &[], at(1001)));
        assert!(h.order.len() <= MAX);
    }
}
