//! Whether a history of a register is linearizable: the search of Wing and Gong with Lowe's memory of
//! what was tried.
//!
//! A write whose answer was an error, or never came, is *unknown*: it may take effect at any time after
//! it was sent, or never. The search is bounded; a history that is too hard is said to be undecided,
//! never to be good.

use std::collections::HashSet;
use std::time::Duration;

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The register was to be this.
    Write(String),
    /// It was this.
    Read(String),
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// When it was sent.
    pub call: Duration,
    /// When its answer came; `None` where it is unknown what became of it.
    pub done: Option<Duration>,
    /// What it did.
    pub action: Action,
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linear,
    /// There is none: something acknowledged was lost, or came out of nowhere.
    Broken,
    /// Too many orders to try.
    Undecided,
}

/// States to try for one register.
const BOUND: usize = 500_000;

/// Looks for an order of the operations that explains what was read, from this value on.
pub fn check(initial: &str, ops: &[Op]) -> Verdict {
    let read = |value: &str| ops.iter().any(|o| matches!(&o.action, Action::Read(v) if v == value));
    // An unknown write that nobody read may as well never have happened.
    let useful = |op: &&Op| op.done.is_some() || matches!(&op.action, Action::Write(v) if read(v));
    let mut ops: Vec<&Op> = ops.iter().filter(useful).collect();
    ops.sort_by_key(|o| o.call);
    let mut search = Search { taken: vec![0; ops.len().div_ceil(64)], ops, tried: HashSet::new() };
    search.run(initial)
}

struct Search<'a> {
    ops: Vec<&'a Op>,
    taken: Vec<u64>,
    tried: HashSet<(Vec<u64>, &'a str)>,
}

impl<'a> Search<'a> {
    /// Depth first, with a stack of its own: a history may be thousands of operations long.
    fn run(&mut self, initial: &'a str) -> Verdict {
        let mut stack: Vec<(usize, &'a str)> = Vec::new();
        let mut value = initial;
        let mut next = 0;
        loop {
            if self.complete() {
                return Verdict::Linear;
            }
            match self.step(next, value) {
                Some((op, after)) => {
                    self.flip(op);
                    if self.tried.insert((self.taken.clone(), after)) {
                        stack.push((op, value));
                        (value, next) = (after, 0);
                    } else {
                        self.flip(op);
                        next = op + 1;
                    }
                    if self.tried.len() > BOUND {
                        return Verdict::Undecided;
                    }
                }
                None => {
                    let Some((op, before)) = stack.pop() else { return Verdict::Broken };
                    self.flip(op);
                    (value, next) = (before, op + 1);
                }
            }
        }
    }

    /// The first operation from `from` on that may come next, and the value after it.
    fn step(&self, from: usize, value: &'a str) -> Option<(usize, &'a str)> {
        let open = || (0..self.ops.len()).filter(|i| !self.has(*i));
        let until = open().filter_map(|i| self.ops[i].done).min();
        // Whatever was sent after another was answered comes after it.
        let may = |i: &usize| *i >= from && until.is_none_or(|u| self.ops[*i].call <= u);
        open().filter(may).find_map(|i| match &self.ops[i].action {
            Action::Write(v) => Some((i, v.as_str())),
            Action::Read(v) => (v == value).then_some((i, value)),
        })
    }

    fn complete(&self) -> bool {
        (0..self.ops.len()).all(|i| self.has(i) || self.ops[i].done.is_none())
    }

    fn has(&self, op: usize) -> bool {
        self.taken[op / 64] & (1 << (op % 64)) != 0
    }

    fn flip(&mut self, op: usize) {
        self.taken[op / 64] ^= 1 << (op % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(call: u64, done: Option<u64>, action: Action) -> Op {
        Op { call: Duration::from_millis(call), done: done.map(Duration::from_millis), action }
    }

    fn write(call: u64, done: impl Into<Option<u64>>, value: &str) -> Op {
        op(call, done.into(), Action::Write(value.into()))
    }

    fn read(call: u64, done: u64, value: &str) -> Op {
        op(call, Some(done), Action::Read(value.into()))
    }

    #[test]
    fn what_one_register_may_do() {
        assert_eq!(check("0", &[]), Verdict::Linear);
        assert_eq!(check("0", &[write(0, 10, "a"), read(20, 30, "a")]), Verdict::Linear);
        // Two at a time: either may be last.
        let both = [write(0, 10, "a"), write(5, 15, "b")];
        for value in ["a", "b"] {
            assert_eq!(check("0", &[both[0].clone(), both[1].clone(), read(20, 30, value)]), Verdict::Linear);
        }
        // An unknown write may come late, or not at all.
        let late = [write(0, None, "a"), write(10, 20, "b")];
        for value in ["a", "b"] {
            assert_eq!(check("0", &[late[0].clone(), late[1].clone(), read(30, 40, value)]), Verdict::Linear);
        }
    }

    #[test]
    fn a_lost_write_is_caught() {
        assert_eq!(check("0", &[write(0, 10, "a"), read(20, 30, "0")]), Verdict::Broken);
        let older = [write(0, 10, "a"), write(11, 20, "b"), read(30, 40, "a")];
        assert_eq!(check("0", &older), Verdict::Broken);
    }

    #[test]
    fn a_value_out_of_nowhere_is_caught() {
        assert_eq!(check("0", &[write(0, 10, "a"), read(20, 30, "z")]), Verdict::Broken);
        assert_eq!(check("0", &[read(5, 6, "a"), write(10, 20, "a")]), Verdict::Broken);
    }

    #[test]
    fn an_unknown_write_may_not_take_effect_twice() {
        let ops =
            [write(0, None, "a"), read(5, 6, "a"), write(10, 20, "b"), read(30, 31, "b"), read(40, 41, "a")];
        assert_eq!(check("0", &ops), Verdict::Broken);
    }

    #[test]
    fn a_long_history_is_decided_and_a_planted_loss_in_it_is_found() {
        // Three writers that overlap, now and then an answer that never came, reads after quiet.
        let mut ops = Vec::new();
        for i in 0..300u64 {
            let done = (i % 7 != 3).then_some(i * 10 + 25);
            ops.push(write(i * 10, done, &format!("v{i}")));
        }
        ops.push(read(4000, 4001, "v299"));
        assert_eq!(check("0", &ops), Verdict::Linear);
        ops.pop();
        // One that was answered: an unknown one might still come last.
        ops.push(read(4000, 4001, "v291"));
        assert_eq!(check("0", &ops), Verdict::Broken);
    }
}
