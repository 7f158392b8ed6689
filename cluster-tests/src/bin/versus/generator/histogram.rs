//! Times in buckets of 3 %, so that a million of them cost a few kilobytes.
//!
//! Owns the counts of one measurement; the generator records, the report asks for quantiles.

use std::time::Duration;

/// Buckets in each power of two.
const FINE: u32 = 32;

/// How often each time was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Counts one time.
    pub(crate) fn record(&mut self, time: Duration) {
        let index = bucket(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
        self.total += 1;
    }

    /// Adds what another has counted.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
    }

    /// The time below which this part (0 to 1) of all lies, in milliseconds; `None` when there is none.
    pub(crate) fn quantile_ms(&self, part: f64) -> Option<f64> {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(middle(index) / 1e6)
    }
}

/// Values below [`FINE`] have a bucket each; above, each power of two has [`FINE`].
fn bucket(value: u64) -> usize {
    let fine = u64::from(FINE);
    if value < fine {
        return value as usize;
    }
    let shift = value.ilog2() - FINE.ilog2();
    (u64::from(shift) * fine + (value >> shift)) as usize
}

/// The value in the middle of a bucket.
fn middle(index: usize) -> f64 {
    let fine = FINE as usize;
    if index < 2 * fine {
        return index as f64;
    }
    let shift = index / fine - 1;
    let low = (index - shift * fine) as f64;
    (low + 0.5) * f64::powi(2.0, shift as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_three_percent_of_its_bucket() {
        for value in (0..10_000).chain((0..60).map(|p| (1u64 << p) + p)) {
            let shown = middle(bucket(value));
            let off = (shown - value as f64).abs();
            assert!(off <= value as f64 * 0.032, "{value} is shown as {shown}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let mut last = 0;
        for value in 1..100_000u64 {
            let index = bucket(value);
            assert!(index == last || index == last + 1, "{value}: {index} after {last}");
            last = index;
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (part, wanted) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let got = histogram.quantile_ms(part).unwrap();
            assert!((got / wanted - 1.0f64).abs() < 0.035, "{part}: {got}");
        }
        let mut sum = Histogram::default();
        sum.merge(&histogram);
        sum.merge(&histogram);
        assert_eq!(sum.quantile_ms(0.99), histogram.quantile_ms(0.99));
        assert_eq!(sum.total, 2000);
    }
}
