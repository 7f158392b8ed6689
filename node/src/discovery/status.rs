//! What discovery counts and remembers for `show resolvers` and `show discovery`.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What this node knows of a source from reading it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceStatus {
    /// Resolutions, or queries.
    pub(crate) queries: u64,
    /// Those that failed.
    pub(crate) errors: u64,
    /// The present error.
    pub(crate) error: Option<String>,
    /// Time of the last success.
    pub(crate) succeeded_at: Option<Duration>,
    /// Consul's index.
    pub(crate) index: u64,
    /// Commands proposed.
    pub(crate) proposals: u64,
    /// Why the last one was not agreed on.
    pub(crate) refused: Option<String>,
}

/// The counters of one name server, as `show resolvers` has them.
#[derive(Debug, Default)]
pub(crate) struct Nameserver {
    pub(crate) sent: AtomicU64,
    pub(crate) snd_error: AtomicU64,
    pub(crate) valid: AtomicU64,
    pub(crate) update: AtomicU64,
    pub(crate) cname_error: AtomicU64,
    pub(crate) any_err: AtomicU64,
    pub(crate) nx: AtomicU64,
    pub(crate) timeout: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) other: AtomicU64,
    pub(crate) invalid: AtomicU64,
    pub(crate) too_big: AtomicU64,
    pub(crate) truncated: AtomicU64,
    pub(crate) outdated: AtomicU64,
}

impl Nameserver {
    /// Name and value of each counter, in HAProxy's order.
    pub(crate) fn rows(&self) -> [(&'static str, u64); 15] {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        [
            ("sent", of(&self.sent)),
            ("snd_error", of(&self.snd_error)),
            ("valid", of(&self.valid)),
            ("update", of(&self.update)),
            // HAProxy counts answers to CNAME questions, which nobody asks.
            ("cname", 0),
            ("cname_error", of(&self.cname_error)),
            ("any_err", of(&self.any_err)),
            ("nx", of(&self.nx)),
            ("timeout", of(&self.timeout)),
            ("refused", of(&self.refused)),
            ("other", of(&self.other)),
            ("invalid", of(&self.invalid)),
            ("too_big", of(&self.too_big)),
            ("truncated", of(&self.truncated)),
            ("outdated", of(&self.outdated)),
        ]
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
