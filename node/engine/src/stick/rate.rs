//! HAProxy's frequency counter on three words: the start of the current period, its events, and
//! those of the period before.
//!
//! The tick is on the clock of the node that counts and is never translated: all nodes hold the same
//! three words for one window, so merging is a comparison, and only reading needs the distance
//! between the two clocks.

/// Counts `n` events at `now`.
pub(crate) fn add(w: &mut [u32], n: u32, now: u32, period: u32) {
    if w[1] == 0 && w[2] == 0 {
        (w[0], w[1]) = (now, n);
        return;
    }
    let elapsed = now.wrapping_sub(w[0]);
    if elapsed < period {
        w[1] = w[1].saturating_add(n);
        return;
    }
    let late = elapsed - period >= period;
    w[2] = if late { 0 } else { w[1] };
    w[0] = if late { now } else { w[0].wrapping_add(period) };
    w[1] = n;
}

/// Events per period as of `now`: the whole current period and what the window still covers of the
/// previous one.
pub(crate) fn read(w: &[u32], now: u32, period: u32) -> u64 {
    let age = now.wrapping_sub(w[0]) as i32;
    let period = i64::from(period);
    // An age below zero is a clock estimate that is a moment off.
    let mut remain = period - i64::from(age.max(0));
    let (mut curr, mut past) = (u64::from(w[1]), u64::from(w[2]));
    if remain < 0 {
        remain += period;
        past = if remain >= 0 { curr } else { 0 };
        curr = 0;
    }
    // A single event must not flap between 0 and 1 while it fades.
    if curr == 0 && past <= 1 {
        return past;
    }
    (past * remain.max(0) as u64 + curr * period as u64) / period as u64
}

/// Takes `theirs` if it is a later state of the same window. Returns whether anything changed.
pub(crate) fn merge(mine: &mut [u32], theirs: &[u32]) -> bool {
    let newer = if mine[1] == 0 && mine[2] == 0 {
        theirs[1] != 0 || theirs[2] != 0
    } else {
        let step = theirs[0].wrapping_sub(mine[0]) as i32;
        step > 0 || (step == 0 && theirs[1] > mine[1])
    };
    if newer {
        mine.copy_from_slice(theirs);
    }
    newer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_period_is_not_extrapolated_and_fades_over_the_second() {
        let mut w = [0; 3];
        for t in 0..10 {
            add(&mut w, 1, 5_000 + t * 100, 10_000);
        }
        assert_eq!(read(&w, 6_000, 10_000), 10);
        assert_eq!(read(&w, 15_000, 10_000), 10, "whole period still covered");
        assert_eq!(read(&w, 20_000, 10_000), 5, "half of it has left the window");
        assert_eq!(read(&w, 25_001, 10_000), 0);
    }

    #[test]
    fn rotation_keeps_the_previous_period() {
        let mut w = [0; 3];
        add(&mut w, 8, 1_000, 1_000);
        add(&mut w, 2, 2_500, 1_000);
        assert_eq!(w, [2_000, 2, 8]);
        assert_eq!(read(&w, 2_500, 1_000), 6);
        add(&mut w, 1, 9_000, 1_000);
        assert_eq!(w, [9_000, 1, 0], "two idle periods forget everything");
    }

    #[test]
    fn ticks_wrap() {
        let mut w = [0; 3];
        add(&mut w, 4, u32::MAX - 10, 100);
        assert_eq!(read(&w, 39, 100), 4);
        let older = w;
        add(&mut w, 1, 95, 100);
        assert_eq!(w, [89, 1, 4]);
        let mut m = older;
        assert!(merge(&mut m, &w) && m == w);
        assert!(!merge(&mut m, &older) && m == w, "an older state changes nothing");
    }

    #[test]
    fn one_event_does_not_flap() {
        let w = [0, 0, 1];
        assert_eq!(read(&w, 10, 1_000), 1);
    }
}
