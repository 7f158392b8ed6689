//! Whether counters are conserved: what the tables of the nodes say against what the clients saw.
//!
//! A request that was answered was counted; one that was sent may have been. So the cluster's sum lies
//! between the answers and the requests. Replication is not synchronous: what a node counted in the last
//! moments before it was killed, or while nobody heard it, may go with it, and only that.

use std::collections::BTreeMap;
use std::time::Duration;

/// An answered request.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Which counter.
    pub key: String,
    /// The node that answered.
    pub node: usize,
    /// When.
    pub at: Duration,
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Requests sent, by counter.
    pub sent: BTreeMap<String, u64>,
    /// Those that were answered.
    pub acks: Vec<Ack>,
}

/// A time in which what a node counted may have been lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The node.
    pub node: usize,
    /// Since when it may not have been heard.
    pub from: Duration,
    /// When it was killed.
    pub to: Duration,
}

/// Compares the sums with the ledger. Returns what is wrong, a line for each counter, and how many
/// answered requests may be missing.
pub fn check(ledger: &Ledger, counted: &BTreeMap<String, u64>, losses: &[Loss]) -> (Vec<String>, u64) {
    let mut wrong = Vec::new();
    let mut forgiven = 0;
    let mut acked: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for ack in &ledger.acks {
        let lost = losses.iter().any(|l| l.node == ack.node && (l.from..=l.to).contains(&ack.at));
        let (certain, maybe) = acked.entry(&ack.key).or_default();
        *(if lost { maybe } else { certain }) += 1;
    }
    for (key, sent) in &ledger.sent {
        let count = counted.get(key).copied().unwrap_or(0);
        let (certain, maybe) = acked.get(key.as_str()).copied().unwrap_or_default();
        if count > *sent {
            wrong.push(format!("{key}: counted {count}, but only {sent} were sent"));
        } else if count < certain {
            wrong.push(format!(
                "{key}: counted {count}, but {certain} were answered by nodes that lived on, {maybe} by others"
            ));
        } else {
            forgiven += (certain + maybe).saturating_sub(count);
        }
    }
    for key in counted.keys().filter(|k| !ledger.sent.contains_key(*k)) {
        wrong.push(format!("{key}: counted, but never sent"));
    }
    (wrong, forgiven)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(sent: u64, acks: &[(usize, u64)]) -> Ledger {
        let ack =
            |(node, at): &(usize, u64)| Ack { key: "k".into(), node: *node, at: Duration::from_millis(*at) };
        Ledger { sent: [("k".to_owned(), sent)].into(), acks: acks.iter().map(ack).collect() }
    }

    fn wrong(ledger: &Ledger, count: u64, losses: &[Loss]) -> usize {
        check(ledger, &[("k".to_owned(), count)].into(), losses).0.len()
    }

    #[test]
    fn sums_between_answered_and_sent_are_good() {
        let ledger = ledger(5, &[(0, 1), (1, 2), (0, 3)]);
        assert_eq!([2, 3, 4, 5, 6].map(|count| wrong(&ledger, count, &[])), [1, 0, 0, 0, 1]);
    }

    #[test]
    fn only_what_a_killed_node_counted_last_may_be_missing() {
        let ledger = ledger(3, &[(0, 100), (0, 900), (1, 900)]);
        let loss = Loss { node: 0, from: Duration::from_millis(500), to: Duration::from_millis(1000) };
        assert_eq!([1, 2, 3].map(|count| wrong(&ledger, count, &[loss])), [1, 0, 0]);
        assert_eq!(check(&ledger, &[("k".to_owned(), 2)].into(), &[loss]).1, 1);
    }

    #[test]
    fn a_counter_out_of_nowhere_is_caught() {
        let counted = [("k".to_owned(), 1), ("ghost".to_owned(), 1)].into();
        assert_eq!(check(&ledger(1, &[(0, 1)]), &counted, &[]).0.len(), 1);
    }
}
