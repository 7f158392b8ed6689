//! Smooth weighted round robin as a cycle computed beforehand.
//!
//! Each server's turns are spread evenly over the cycle: its k-th turn is due at (2k+1)/(2·weight),
//! and turns are taken in the order they are due. With equal weights that is the order of the
//! servers. A cycle that is read through one shared counter is exact whatever thread reads it.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Longest cycle; heavier weights are scaled down to fit.
const MAX_CYCLE: u64 = 1 << 16;

/// The cycle of server indexes for these weights; servers of weight 0 do not appear.
pub(super) fn smooth(weights: &[u32]) -> Vec<u32> {
    let weights = reduce(weights);
    let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    let mut due: BinaryHeap<Reverse<Turn>> = weights
        .iter()
        .enumerate()
        .filter(|&(_, &weight)| weight > 0)
        .map(|(index, &weight)| Reverse(Turn { nth: 0, weight, index: index as u32 }))
        .collect();
    let mut order = Vec::with_capacity(total as usize);
    while let Some(Reverse(turn)) = due.pop() {
        order.push(turn.index);
        if turn.nth + 1 < turn.weight {
            due.push(Reverse(Turn { nth: turn.nth + 1, ..turn }));
        }
    }
    debug_assert_eq!(order.len() as u64, total);
    order
}

/// Divides weights by their greatest common divisor, and further if the cycle would be too long.
fn reduce(weights: &[u32]) -> Vec<u32> {
    let divisor = gcd_of(weights);
    let total: u64 = weights.iter().map(|&w| u64::from(w / divisor)).sum();
    let excess = total.div_ceil(MAX_CYCLE).max(1) as u32;
    let step = divisor * excess;
    weights.iter().map(|&w| if w == 0 { 0 } else { (w / step).max(1) }).collect()
}

/// Greatest common divisor of the weights above 0; 1 if there are none.
pub(super) fn gcd_of(weights: &[u32]) -> u32 {
    let gcd = weights.iter().fold(0, |mut a, &b| {
        let mut b = b;
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    });
    gcd.max(1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    nth: u32,
    weight: u32,
    index: u32,
}

impl Ord for Turn {
    fn cmp(&self, other: &Turn) -> Ordering {
        let mine = u64::from(2 * self.nth + 1) * u64::from(other.weight);
        let theirs = u64::from(2 * other.nth + 1) * u64::from(self.weight);
        mine.cmp(&theirs).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Turn) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(smooth(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(smooth(&[100, 100]), [0, 1]);
    }

    #[test]
    fn heavier_servers_are_spread_over_the_cycle() {
        assert_eq!(smooth(&[2, 1]), [0, 1, 0]);
        assert_eq!(smooth(&[3, 0, 1]), [0, 0, 2, 0]);
    }

    #[test]
    fn shares_are_exact_and_no_window_strays_by_more_than_one_turn() {
        let weights = [5u32, 1, 7, 3, 16];
        let order = smooth(&weights);
        let total: u32 = weights.iter().sum();
        assert_eq!(order.len() as u32, total);
        for (index, &weight) in weights.iter().enumerate() {
            let mut seen = 0;
            for (at, &server) in order.iter().enumerate() {
                seen += u32::from(server as usize == index);
                let ideal = (at as f64 + 1.0) * f64::from(weight) / f64::from(total);
                assert!((f64::from(seen) - ideal).abs() <= 1.5, "server {index} at {at}: {seen} {ideal}");
            }
            assert_eq!(seen, weight);
        }
    }

    #[test]
    fn cycle_is_bounded() {
        let weights: Vec<u32> = (0..4000).map(|i| 255 + i % 2).collect();
        let order = smooth(&weights);
        assert!(order.len() as u64 <= MAX_CYCLE + 4000);
        assert!((0..4000).all(|i| order.contains(&i)));
    }
}
