//! Health of a checked server: what a probe's result does to it.
//!
//! A pure state machine driven by the check tasks of the proxy through
//! [`Backend::check_result`](crate::backend::Backend::check_result). It knows nothing of sockets,
//! and decides nothing about balancing: it only says when a server goes up or down.

use std::fmt;
use std::time::Duration;

use phalanx_config::model::ServerOptions;

/// Status of the last check; the number is `srv_check_status` of `show servers state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckStatus {
    /// Nothing known.
    #[default]
    Unknown = 0,
    /// Initializing.
    Ini = 1,
    /// A check is under way.
    Start = 2,
    /// An agent answered without saying whether the server is up.
    Checked = 3,
    /// Socket error.
    SockErr = 5,
    /// Layer 4 passed.
    L4Ok = 6,
    /// Layer 4 timed out.
    L4Tout = 7,
    /// Layer 4 refused or unreachable.
    L4Con = 8,
    /// Layer 6 passed.
    L6Ok = 9,
    /// Layer 6 timed out.
    L6Tout = 10,
    /// Layer 6 protocol error.
    L6Rsp = 11,
    /// Layer 7 timed out.
    L7Tout = 12,
    /// Layer 7 answered something invalid.
    L7Rsp = 13,
    /// Layer 7 passed.
    L7Ok = 15,
    /// Layer 7 passed on a condition (404 with `disable-on-404`).
    L7OkC = 16,
    /// Layer 7 answered with a bad status.
    L7Sts = 17,
}

impl CheckStatus {
    /// From its number.
    pub fn from_u8(n: u8) -> CheckStatus {
        use CheckStatus::*;
        let all = [
            Ini, Start, Checked, SockErr, L4Ok, L4Tout, L4Con, L6Ok, L6Tout, L6Rsp, L7Tout, L7Rsp, L7Ok,
            L7OkC, L7Sts,
        ];
        all.into_iter().find(|status| *status as u8 == n).unwrap_or(Unknown)
    }

    /// Short form, as in CSV `check_status`.
    pub fn code(self) -> &'static str {
        self.texts().0
    }

    /// Long form, as in CSV `check_desc` and in log lines.
    pub fn text(self) -> &'static str {
        self.texts().1
    }

    /// What it means for the server.
    pub fn result(self) -> CheckResult {
        use CheckStatus::*;
        match self {
            Unknown | Ini | Start | Checked => CheckResult::Unknown,
            L4Ok | L6Ok | L7Ok => CheckResult::Passed,
            L7OkC => CheckResult::CondPass,
            SockErr | L4Tout | L4Con | L6Tout | L6Rsp | L7Tout | L7Rsp | L7Sts => CheckResult::Failed,
        }
    }

    fn texts(self) -> (&'static str, &'static str) {
        use CheckStatus::*;
        match self {
            Unknown => ("UNK", "Unknown"),
            Ini => ("INI", "Initializing"),
            Start => ("START", "Check started"),
            Checked => ("CHECKED", "No status change"),
            SockErr => ("SOCKERR", "Socket error"),
            L4Ok => ("L4OK", "Layer4 check passed"),
            L4Tout => ("L4TOUT", "Layer4 timeout"),
            L4Con => ("L4CON", "Layer4 connection problem"),
            L6Ok => ("L6OK", "Layer6 check passed"),
            L6Tout => ("L6TOUT", "Layer6 timeout"),
            L6Rsp => ("L6RSP", "Layer6 invalid response"),
            L7Tout => ("L7TOUT", "Layer7 timeout"),
            L7Rsp => ("L7RSP", "Layer7 invalid response"),
            L7Ok => ("L7OK", "Layer7 check passed"),
            L7OkC => ("L7OKC", "Layer7 check conditionally passed"),
            L7Sts => ("L7STS", "Layer7 wrong status"),
        }
    }
}

/// Result of a check; the number is `srv_check_result` of `show servers state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckResult {
    /// None yet.
    Unknown = 0,
    /// Failed.
    Failed = 2,
    /// Passed.
    Passed = 3,
    /// Passed on a condition.
    CondPass = 4,
}

/// What one probe found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Status.
    pub status: CheckStatus,
    /// HTTP status code, if the probe came that far.
    pub code: Option<u16>,
    /// More about it: an errno text, the response's reason phrase.
    pub info: String,
    /// How long it took.
    pub duration: Duration,
}

impl fmt::Display for Report {
    /// As in state-change lines: `Layer7 wrong status, code: 500, info: "x", check duration: 1ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.text())?;
        if let Some(code) = self.code {
            write!(f, ", code: {code}")?;
        }
        if !self.info.is_empty() {
            f.write_str(", info: \"")?;
            for c in self.info.chars() {
                // A server's own words must not look like the log's.
                match c {
                    ' '..='~' if c != '"' => write!(f, "{c}")?,
                    _ => c.to_string().bytes().try_for_each(|b| write!(f, "<{b:02X}>"))?,
                }
            }
            f.write_str("\"")?;
        }
        write!(f, ", check duration: {}ms", self.duration.as_millis())
    }
}

/// A server's way between up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It came up.
    Up,
    /// It went down.
    Down,
}

/// Rise and fall counting: 0..rise is down, rise..rise+fall is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    rise: u32,
    fall: u32,
    value: u32,
}

impl Health {
    /// A server not checked yet: up, but the first failure takes it down.
    pub fn new(rise: u32, fall: u32) -> Health {
        let (rise, fall) = (rise.max(1), fall.max(1));
        Health { rise, fall, value: rise }
    }

    /// Takes the result of a probe.
    pub fn handle(&mut self, result: CheckResult) -> Option<Transition> {
        let was_up = self.is_up();
        match result {
            CheckResult::Unknown => return None,
            CheckResult::Passed | CheckResult::CondPass => {
                self.value = (self.value + 1).min(self.full());
                if self.value >= self.rise {
                    self.value = self.full();
                }
            }
            CheckResult::Failed => {
                self.value = self.value.saturating_sub(1);
                if self.value < self.rise {
                    self.value = 0;
                }
            }
        }
        self.check_invariants();
        match (was_up, self.is_up()) {
            (false, true) => Some(Transition::Up),
            (true, false) => Some(Transition::Down),
            _ => None,
        }
    }

    /// Whether the server counts as up.
    pub fn is_up(&self) -> bool {
        self.value >= self.rise
    }

    /// Neither on its way up nor down.
    pub fn is_stable(&self) -> bool {
        self.value == 0 || self.value == self.full()
    }

    /// The counter, 0..=rise+fall-1: CSV `check_health`.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// `rise`.
    pub fn rise(&self) -> u32 {
        self.rise
    }

    /// `fall`.
    pub fn fall(&self) -> u32 {
        self.fall
    }

    /// Up, as after leaving maintenance: the next failure takes it down.
    pub fn reset(&mut self) {
        self.value = self.rise;
    }

    /// Fully up or fully down, as `set server … health` does.
    pub fn force(&mut self, up: bool) {
        self.value = if up { self.full() } else { 0 };
    }

    /// Sets the counter from a state kept elsewhere, within the bounds.
    pub fn restore(&mut self, value: u32) {
        self.value = value.min(self.full());
    }

    /// `n/m` towards the next change: how much is left of `fall`, or reached of `rise`.
    pub fn progress(&self) -> (u32, u32) {
        if self.is_up() { (self.value - self.rise + 1, self.fall) } else { (self.value, self.rise) }
    }

    /// Time to the next check: `inter`, `fastinter` while in transition, `downinter` while down.
    pub fn interval(&self, options: &ServerOptions) -> Duration {
        if self.value == self.full() {
            options.inter
        } else if self.value == 0 {
            options.downinter.unwrap_or(options.inter)
        } else {
            options.fastinter.unwrap_or(options.inter)
        }
    }

    fn full(&self) -> u32 {
        self.rise + self.fall - 1
    }

    fn check_invariants(&self) {
        debug_assert!(self.value <= self.full());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(health: &mut Health, results: &str) -> String {
        let mut out = String::new();
        for c in results.chars() {
            let result = if c == '+' { CheckResult::Passed } else { CheckResult::Failed };
            out.push(match health.handle(result) {
                Some(Transition::Up) => 'U',
                Some(Transition::Down) => 'D',
                None => '.',
            });
        }
        out
    }

    #[test]
    fn first_failure_of_an_unchecked_server_takes_it_down() {
        let mut health = Health::new(2, 3);
        assert!(health.is_up());
        assert_eq!(run(&mut health, "-"), "D");
        assert_eq!((health.value(), health.progress()), (0, (0, 2)));
    }

    #[test]
    fn rise_and_fall_count_consecutive_results() {
        let mut health = Health::new(2, 3);
        assert_eq!(run(&mut health, "+--+---"), "......D");
        assert_eq!(run(&mut health, "+-++"), "...U");
        assert_eq!((health.value(), health.progress()), (4, (3, 3)));
        assert_eq!(run(&mut health, "-"), ".");
        assert_eq!(health.progress(), (2, 3));
    }

    #[test]
    fn interval_depends_on_the_way() {
        let options = ServerOptions {
            fastinter: Some(Duration::from_millis(500)),
            downinter: Some(Duration::from_secs(9)),
            ..ServerOptions::default()
        };
        let mut health = Health::new(2, 3);
        assert_eq!(health.interval(&options), Duration::from_millis(500));
        health.handle(CheckResult::Passed);
        assert_eq!(health.interval(&options), Duration::from_secs(2));
        health.force(false);
        assert_eq!(health.interval(&options), Duration::from_secs(9));
        health.handle(CheckResult::Passed);
        assert_eq!(health.interval(&options), Duration::from_millis(500));
    }

    #[test]
    fn report_reads_as_in_the_log() {
        let report = Report {
            status: CheckStatus::L7Sts,
            code: Some(503),
            info: "Service \"Un\"available\r".into(),
            duration: Duration::from_millis(2),
        };
        assert_eq!(
            report.to_string(),
            "Layer7 wrong status, code: 503, info: \"Service <22>Un<22>available<0D>\", check duration: 2ms"
        );
    }
}
