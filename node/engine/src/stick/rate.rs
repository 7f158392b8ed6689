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
        // What an earlier run counted may be added to the previous period.
        step > 0 || step == 0 && (theirs[1], theirs[2]) > (mine[1], mine[2])
    };
    if newer {
        mine.copy_from_slice(theirs);
    }
    newer
}

/// What a window counted after it was in an earlier state `base`.
pub(crate) fn since(w: &[u32], base: &[u32], period: u32) -> [u32; 3] {
    if base[1] == 0 && base[2] == 0 {
        return [w[0], w[1], w[2]];
    }
    let step = w[0].wrapping_sub(base[0]);
    if step == 0 {
        [w[0], w[1].saturating_sub(base[1]), 0]
    } else if step == period {
        [w[0], w[1], w[2].saturating_sub(base[1])]
    } else if (step as i32) < 0 {
        // An older state than the base: all of it is in there.
        [w[0], 0, 0]
    } else {
        [w[0], w[1], w[2]]
    }
}

/// Adds another window, whose tick is on the same clock, to this one. What it counted is spread evenly
/// over the time it covers.
pub(crate) fn fold(mine: &mut [u32], theirs: &[u32], now: u32, period: u32) {
    if theirs[1] == 0 && theirs[2] == 0 || read(theirs, now, period) == 0 {
        return;
    }
    if mine[1] == 0 && mine[2] == 0 || read(mine, now, period) == 0 {
        mine.copy_from_slice(theirs);
        return;
    }
    let step = theirs[0].wrapping_sub(mine[0]) as i32;
    let (later, earlier) = if step > 0 {
        ([theirs[0], theirs[1], theirs[2]], [mine[0], mine[1], mine[2]])
    } else {
        ([mine[0], mine[1], mine[2]], [theirs[0], theirs[1], theirs[2]])
    };
    let (p, shift) = (u64::from(period), u64::from(step.unsigned_abs()));
    let share = |n: u32, part: u64, whole: u64| (u64::from(n) * part.min(whole) / whole.max(1)) as u32;
    let (mut current, mut before) = (later[1], later[2]);
    if shift < p {
        // The earlier one's current period began `shift` before the later one's.
        let lasted = u64::from(now.wrapping_sub(earlier[0])).clamp(shift.max(1), p);
        let old = share(earlier[1], shift, lasted);
        before = before.saturating_add(old).saturating_add(share(earlier[2], p - shift, p));
        current = current.saturating_add(earlier[1] - old);
    } else if shift < 2 * p {
        before = before.saturating_add(share(earlier[1], 2 * p - shift, p));
    }
    mine.copy_from_slice(&[later[0], current, before]);
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
    fn a_base_takes_off_what_was_before_it_and_no_more() {
        let mut w = [0; 3];
        add(&mut w, 5, 1_000, 1_000);
        let base = w;
        assert_eq!(since(&w, &base, 1_000)[1..], [0, 0]);
        add(&mut w, 2, 1_500, 1_000);
        assert_eq!(since(&w, &base, 1_000), [1_000, 2, 0]);
        add(&mut w, 3, 2_100, 1_000);
        assert_eq!(since(&w, &base, 1_000), [2_000, 3, 2]);
        add(&mut w, 1, 3_200, 1_000);
        assert_eq!(since(&w, &base, 1_000), w, "all of it came after");
        assert_eq!(since(&base, &w, 1_000)[1..], [0, 0], "an older state has nothing new");
    }

    #[test]
    fn folded_windows_lose_no_event_of_the_period() {
        for ticks in [[1_000, 1_400], [1_400, 1_000], [1_000, 1_000]] {
            let (mut a, b) = ([ticks[0], 6, 0], [ticks[1], 4, 0]);
            fold(&mut a, &b, 1_500, 1_000);
            assert_eq!(a[1] + a[2], 10, "{ticks:?}");
            assert!((9..=10).contains(&read(&a, 1_500, 1_000)), "{ticks:?}: {a:?}");
        }
        let mut a = [9_000, 6, 1];
        fold(&mut a, &[1_000, 50, 50], 9_100, 1_000);
        assert_eq!(a, [9_000, 6, 1], "long over");
    }

    #[test]
    fn one_event_does_not_flap() {
        let w = [0, 0, 1];
        assert_eq!(read(&w, 10, 1_000), 1);
    }
}
