//! The table of map-based hashing: one slot per unit of weight, `hash % slots` picks.
//!
//! The order of slots decides which key goes where, so it must be the same on all nodes: servers in
//! configuration order, each taking slots spread evenly in proportion to its weight.

use super::schedule::gcd_of;

/// The table for these weights.
///
/// Every round each server is credited its weight, and the one that takes the slot pays the whole.
/// A server that has saved up a whole comes first, else the first that owes nothing: so HAProxy
/// fills its table.
pub(super) fn table(weights: &[u32]) -> Vec<u32> {
    let divisor = gcd_of(weights);
    let weights: Vec<i64> = weights.iter().map(|&w| i64::from(w / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0i64; weights.len()];
    let mut table = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let (mut saved_up, mut without_debt) = (None, None);
        for (index, &weight) in weights.iter().enumerate() {
            credit[index] += weight;
            if credit[index] >= total {
                saved_up = saved_up.or(Some(index));
            } else if credit[index] >= 0 && weight > 0 {
                without_debt = without_debt.or(Some(index));
            }
        }
        // Credits add up to the total before the slot is paid, so somebody is not in debt.
        let Some(index) = saved_up.or(without_debt) else { break };
        credit[index] -= total;
        table.push(index as u32);
    }
    debug_assert_eq!(table.len() as i64, total);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As found by asking HAProxy 2.6 with keys of known hashes.
    #[test]
    fn slots_are_filled_as_haproxy_fills_them() {
        for (weights, slots) in [
            (&[1, 1, 1][..], "123"),
            (&[3, 1], "1112"),
            (&[6, 2], "1112"),
            (&[2, 3, 5], "1323132323"),
            (&[4, 12, 6, 1], "12232123223122323122324"),
        ] {
            let table: String = table(weights).iter().map(|i| (i + 1).to_string()).collect();
            assert_eq!(table, slots, "{weights:?}");
        }
    }

    #[test]
    fn shares_are_exact() {
        let weights = [7, 256, 31, 1, 99];
        let table = table(&weights);
        for (index, &weight) in weights.iter().enumerate() {
            assert_eq!(table.iter().filter(|&&i| i as usize == index).count(), weight as usize);
        }
    }
}
