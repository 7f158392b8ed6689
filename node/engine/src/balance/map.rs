//! The table of map-based hashing: one slot per unit of weight, `hash % slots` picks.
//!
//! The order of slots decides which key goes where, so it must be the same on all nodes: servers in
//! configuration order, each taking slots spread evenly in proportion to its weight.

use super::schedule::gcd_of;

/// The table for these weights.
pub(super) fn table(weights: &[u32]) -> Vec<u32> {
    let divisor = gcd_of(weights);
    let weights: Vec<i64> = weights.iter().map(|&w| i64::from(w / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0i64; weights.len()];
    let mut table = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = 0;
        for (index, &weight) in weights.iter().enumerate() {
            credit[index] += weight;
            if credit[index] > credit[best] {
                best = index;
            }
        }
        credit[best] -= total;
        table.push(best as u32);
    }
    table
}
