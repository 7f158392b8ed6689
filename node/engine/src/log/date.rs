//! Dates of log lines, in local time.
//!
//! The time zone is asked for once per quarter of an hour and thread (offsets change at quarters
//! only), the text of a second is made once. The same moment gives the same text on every thread.

use std::cell::Cell;
use std::sync::OnceLock;

use chrono::{Offset, TimeZone};

use super::decimal;

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// A second in local time.
#[derive(Clone, Copy)]
struct Local {
    second: u64,
    /// Seconds east of Greenwich.
    offset: i32,
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    sec: u8,
}

thread_local! {
    static LAST: Cell<Option<Local>> = const { Cell::new(None) };
    static OFFSET: Cell<Option<(u64, i32)>> = const { Cell::new(None) };
}

fn local(unix_us: u64) -> Local {
    let second = unix_us / 1_000_000;
    if let Some(last) = LAST.get().filter(|l| l.second == second) {
        return last;
    }
    let fresh = split(second, offset(second));
    LAST.set(Some(fresh));
    fresh
}

/// Seconds in which offsets change at most once, and the grid on which they change.
const DAY: u64 = 86_400;
const QUARTER: u64 = 900;

/// How far ahead [`remember_zone`] looks.
const YEARS: u64 = 20;

/// Offsets of the time zone from their moments on, in order.
static ZONE: OnceLock<Vec<(u64, i32)>> = OnceLock::new();

/// Reads the time zone once and for all, for the years after `unix_s`: after `chroot` the system's
/// data can't be read any more.
pub fn remember_zone(unix_s: u64) {
    let _ = ZONE.set(changes(unix_s - unix_s % DAY, YEARS * 365, asked));
}

/// The offset at `from`, and each change of it in the `days` that follow.
fn changes(from: u64, days: u64, offset_at: impl Fn(u64) -> i32) -> Vec<(u64, i32)> {
    let mut all = vec![(from, offset_at(from))];
    for day in 0..days {
        let (mut before, mut after) = (from + day * DAY, from + (day + 1) * DAY);
        let (old, new) = (offset_at(before), offset_at(after));
        if old == new {
            continue;
        }
        while after - before > QUARTER {
            let middle = before + (after - before) / QUARTER / 2 * QUARTER;
            if offset_at(middle) == old { before = middle } else { after = middle }
        }
        all.push((after, new));
    }
    all
}

fn remembered(zone: &[(u64, i32)], second: u64) -> i32 {
    let later = zone.partition_point(|(from, _)| *from <= second);
    zone.get(later.saturating_sub(1)).map_or(0, |(_, offset)| *offset)
}

/// The offset as the system has it.
fn asked(second: u64) -> i32 {
    i64::try_from(second)
        .ok()
        .and_then(|s| chrono::Local.timestamp_opt(s, 0).single())
        .map_or(0, |t| t.offset().fix().local_minus_utc())
}

fn offset(second: u64) -> i32 {
    let quarter = second / QUARTER;
    if let Some((_, offset)) = OFFSET.get().filter(|(q, _)| *q == quarter) {
        return offset;
    }
    let offset = ZONE.get().map_or_else(|| asked(second), |zone| remembered(zone, second));
    OFFSET.set(Some((quarter, offset)));
    offset
}

/// Civil date from days since the epoch: the era arithmetic of the proleptic Gregorian calendar.
fn split(second: u64, offset: i32) -> Local {
    // Far beyond any date that a clock gives, and keeps the arithmetic in range for any input.
    let shifted = second.min(1 << 40) as i64 + i64::from(offset);
    let (days, rest) = (shifted.div_euclid(86_400), shifted.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    Local {
        second,
        offset,
        year: yoe + era * 400 + i64::from(month <= 2),
        month: month as u8,
        day: (doy - (153 * mp + 2) / 5 + 1) as u8,
        hour: (rest / 3600) as u8,
        minute: (rest / 60 % 60) as u8,
        sec: (rest % 60) as u8,
    }
}

fn two(n: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + n / 10, b'0' + n % 10]);
}

fn clock(l: &Local, out: &mut Vec<u8>) {
    two(l.hour, out);
    out.push(b':');
    two(l.minute, out);
    out.push(b':');
    two(l.sec, out);
}

fn month(l: &Local) -> &'static [u8; 3] {
    MONTHS[usize::from(l.month - 1)]
}

/// `[21/Nov/2026:04:22:28.433]`.
pub fn bracketed(unix_us: u64, out: &mut Vec<u8>) {
    let l = local(unix_us);
    out.push(b'[');
    two(l.day, out);
    out.push(b'/');
    out.extend_from_slice(month(&l));
    out.push(b'/');
    decimal(l.year.max(0) as u64, out);
    out.push(b':');
    clock(&l, out);
    out.push(b'.');
    let ms = unix_us / 1000 % 1000;
    out.push(b'0' + (ms / 100) as u8);
    two((ms % 100) as u8, out);
    out.push(b']');
}

/// `Nov 21 04:22:28`, the day padded with a space.
pub fn syslog(unix_us: u64, out: &mut Vec<u8>) {
    let l = local(unix_us);
    out.extend_from_slice(month(&l));
    out.push(b' ');
    if l.day < 10 {
        out.extend_from_slice(&[b' ', b'0' + l.day]);
    } else {
        two(l.day, out);
    }
    out.push(b' ');
    clock(&l, out);
}

/// `2026-11-21T04:22:28.434569+00:00`.
pub fn iso8601(unix_us: u64, out: &mut Vec<u8>) {
    let l = local(unix_us);
    decimal(l.year.max(0) as u64, out);
    out.push(b'-');
    two(l.month, out);
    out.push(b'-');
    two(l.day, out);
    out.push(b'T');
    clock(&l, out);
    out.push(b'.');
    let us = (unix_us % 1_000_000) as u32;
    for pair in [us / 10_000, us / 100 % 100, us % 100] {
        two(pair as u8, out);
    }
    out.push(if l.offset < 0 { b'-' } else { b'+' });
    let minutes = l.offset.unsigned_abs() / 60;
    two((minutes / 60) as u8, out);
    out.push(b':');
    two((minutes % 60) as u8, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(second: u64, offset: i32) -> (i64, u8, u8, u8, u8, u8) {
        let l = split(second, offset);
        (l.year, l.month, l.day, l.hour, l.minute, l.sec)
    }

    #[test]
    fn known_seconds_split_into_the_calendar() {
        for (second, offset, want) in [
            (0, 0, (1970, 1, 1, 0, 0, 0)),
            (0, -3600, (1969, 12, 31, 23, 0, 0)),
            (951_782_400, 0, (2000, 2, 29, 0, 0, 0)),
            (1_233_922_454, 0, (2009, 2, 6, 12, 14, 14)),
            (1_709_251_199, 0, (2024, 2, 29, 23, 59, 59)),
            (1_709_251_199, 3600, (2024, 3, 1, 0, 59, 59)),
            (4_102_444_800, 20_700, (2100, 1, 1, 5, 45, 0)),
        ] {
            assert_eq!(parts(second, offset), want, "{second} {offset}");
        }
    }

    #[test]
    fn split_agrees_with_chrono_over_a_century() {
        use chrono::{Datelike, Timelike};
        for i in 0..20_000u64 {
            let second = i * 160_001 + 7;
            let t = chrono::DateTime::from_timestamp(second as i64, 0).expect("in range");
            let want = (
                i64::from(t.year()),
                t.month() as u8,
                t.day() as u8,
                t.hour() as u8,
                t.minute() as u8,
                t.second() as u8,
            );
            assert_eq!(parts(second, 0), want);
        }
    }

    #[test]
    fn texts_agree_with_chrono_in_the_local_zone() {
        for us in [1_233_922_454_655_000u64, 1_795_234_948_000_001, 1_795_234_948_999_999, 86_399_000_000] {
            let t = chrono::Local.timestamp_micros(us as i64).single().expect("in range");
            let mut out = Vec::new();
            bracketed(us, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), t.format("[%d/%b/%Y:%H:%M:%S%.3f]").to_string());
            out.clear();
            syslog(us, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), t.format("%b %e %H:%M:%S").to_string());
            out.clear();
            iso8601(us, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), t.format("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string());
        }
    }

    #[test]
    fn remembered_offsets_are_those_of_the_zone() {
        use chrono::{NaiveDate, TimeZone as _};
        // Summer time of central Europe, by its rule.
        let summer = |second: u64| {
            let t = chrono::DateTime::from_timestamp(second as i64, 0).expect("in range").naive_utc();
            let turn = |month: u32| {
                let last = NaiveDate::from_ymd_opt(chrono::Datelike::year(&t), month, 31).expect("31 days");
                let back = chrono::Datelike::weekday(&last).num_days_from_sunday();
                (last - chrono::Days::new(u64::from(back))).and_hms_opt(1, 0, 0).expect("01:00")
            };
            if (turn(3)..turn(10)).contains(&t) { 7200 } else { 3600 }
        };
        let from = 1_795_132_800;
        let zone = changes(from, 3 * 365, summer);
        assert_eq!(zone.len(), 7);
        for second in (from..from + 3 * 365 * DAY).step_by(1800) {
            assert_eq!(remembered(&zone, second), summer(second), "{second}");
        }
        assert_eq!(remembered(&zone, 0), 3600, "before the first entry");
        let berlin = chrono::Utc.timestamp_opt(zone[1].0 as i64, 0).single().expect("in range");
        assert_eq!(berlin.to_string(), "2027-03-28 01:00:00 UTC");
    }

    #[test]
    fn any_moment_prints() {
        let mut out = Vec::new();
        for us in [0, 1, u64::MAX, u64::MAX / 2, 1 << 60] {
            bracketed(us, &mut out);
            syslog(us, &mut out);
            iso8601(us, &mut out);
        }
        assert!(out.is_ascii());
    }
}
