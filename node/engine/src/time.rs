//! Time as the engine sees it: an argument, never a clock.

use std::time::Duration;

/// A moment, read once by the I/O shell and passed down.
///
/// Both readings are taken together: `mono` orders and measures within the process, `unix_us` dates
/// log lines and orders registers between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic time since the process started.
    pub mono: Duration,
    /// Microseconds since the Unix epoch.
    pub unix_us: u64,
}

impl Now {
    /// Monotonic milliseconds.
    pub fn ms(self) -> u64 {
        self.mono.as_millis() as u64
    }

    /// This moment, `d` later.
    pub fn after(self, d: Duration) -> Now {
        Now { mono: self.mono + d, unix_us: self.unix_us + d.as_micros() as u64 }
    }
}
