//! Clocks. The only place where the program asks what time it is.
//!
//! I/O shells hold a [`Clock`] and hand its readings down as arguments. [`boottime`] is for leases:
//! it goes on while the machine is suspended, which `Instant` (`CLOCK_MONOTONIC`) does not, so a
//! node that slept cannot believe that its lease is still young.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the process started, together with the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic part starts now.
    pub fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Monotonic time since [`Clock::new`], and microseconds since the Unix epoch.
    pub fn now(&self) -> (Duration, u64) {
        (self.mono(), unix_us())
    }

    /// Monotonic time since [`Clock::new`].
    pub fn mono(&self) -> Duration {
        self.start.elapsed()
    }

    /// What [`Clock::mono`] was `at` this moment.
    pub fn mono_at(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// Microseconds since the Unix epoch; 0 when the wall clock is set before it.
pub fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// `CLOCK_MONOTONIC` in microseconds, as `sd_notify(3)` wants it.
pub fn monotonic_us() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid, writable timespec for the whole call.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    assert!(rc == 0, "CLOCK_MONOTONIC exists on every Linux");
    Duration::new(ts.tv_sec as u64, ts.tv_nsec as u32).as_micros() as u64
}

/// Time since boot, suspended time included (`CLOCK_BOOTTIME`); the same for all processes, and not
/// moved by anybody who sets the wall clock.
pub fn boottime() -> Duration {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid, writable timespec for the whole call.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut ts) };
    assert!(rc == 0, "CLOCK_BOOTTIME exists on every Linux since 2.6.39");
    Duration::new(ts.tv_sec as u64, ts.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_advance() {
        let clock = Clock::new();
        let (a, wall) = clock.now();
        let boot = boottime();
        while clock.mono() == a {}
        assert!(clock.mono() > a);
        assert!(boottime() > boot);
        assert!(wall > 1_600_000_000_000_000, "microseconds since 1970: {wall}");
    }
}
