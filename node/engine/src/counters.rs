//! Statistics of frontends, backends and servers.
//!
//! Written by the workers on the request path, read by `show stat` and the stats page. Each worker
//! has its own cache-padded [`Shard`] and is its only writer, so counting is a plain relaxed load
//! and store; a reader sums the shards. `clear counters all` moves a baseline instead of writing
//! into other threads' shards, so that no event is lost to it.
//! Must never be shared between two workers under one index.

use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use crate::time::Now;

/// Index of a worker thread, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Worker(pub usize);

/// Keeps two workers' data out of one cache line (128: adjacent-line prefetch).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Adds to a counter that only this thread writes.
pub fn bump(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One worker's share of the counters.
        #[derive(Debug, Default)]
        pub struct Shard {
            $($(#[$doc])* pub $name: AtomicU64,)*
            sess_rate: Rate,
            conn_rate: Rate,
            req_rate: Rate,
            /// Time spent in the queue.
            pub qtime: Average,
            /// Time to connect to the server.
            pub ctime: Average,
            /// Time to the response's headers.
            pub rtime: Average,
            /// Whole time of a session or request.
            pub ttime: Average,
            /// Milliseconds + 1 of the last session; 0 = none.
            last_session: AtomicU64,
        }

        /// The counters of all workers added up.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// Sessions (or streams) per second.
            pub sess_rate: u64,
            /// Largest [`Snapshot::sess_rate`].
            pub sess_rate_max: u64,
            /// Connections per second.
            pub conn_rate: u64,
            /// Largest [`Snapshot::conn_rate`].
            pub conn_rate_max: u64,
            /// HTTP requests per second.
            pub req_rate: u64,
            /// Largest [`Snapshot::req_rate`].
            pub req_rate_max: u64,
            /// Average milliseconds in the queue over the last 1024.
            pub qtime: u64,
            /// Average milliseconds to connect.
            pub ctime: u64,
            /// Average milliseconds to the response.
            pub rtime: u64,
            /// Average milliseconds in all.
            pub ttime: u64,
            /// Longest in the queue.
            pub qtime_max: u64,
            /// Longest connect.
            pub ctime_max: u64,
            /// Longest response time.
            pub rtime_max: u64,
            /// Longest in all.
            pub ttime_max: u64,
            /// Seconds since the last session; `None` = never one.
            pub last_session_secs: Option<u64>,
        }

        impl Snapshot {
            fn add_counts(&mut self, shard: &Shard) {
                $(self.$name = self.$name.wrapping_add(shard.$name.load(Relaxed));)*
            }

            fn subtract_counts(&mut self, base: &Snapshot) {
                $(self.$name = self.$name.saturating_sub(base.$name);)*
            }
        }
    };
}

counters! {
    /// Connections accepted (`conn_tot`).
    conn_tot,
    /// Sessions (frontend), streams (backend, server) (`stot`).
    stot,
    /// HTTP requests (`req_tot`).
    req_tot,
    /// Times the server was selected by load balancing (`lbtot`).
    lbtot,
    /// Bytes from the client (`bin`).
    bin,
    /// Bytes to the client (`bout`).
    bout,
    /// Requests denied by rules (`dreq`).
    dreq,
    /// Responses denied by rules (`dresp`).
    dresp,
    /// Connections denied by `tcp-request connection` (`dcon`).
    dcon,
    /// Sessions denied by `tcp-request session` (`dses`).
    dses,
    /// Request errors (`ereq`).
    ereq,
    /// Connection errors to servers (`econ`).
    econ,
    /// Response errors (`eresp`).
    eresp,
    /// Connection retries (`wretr`).
    wretr,
    /// Redispatches to another server (`wredis`).
    wredis,
    /// Failed header rewrites (`wrew`).
    wrew,
    /// Internal errors (`eint`).
    eint,
    /// Transfers aborted by the client (`cli_abrt`).
    cli_abrt,
    /// Transfers aborted by the server (`srv_abrt`).
    srv_abrt,
    /// Connections opened to servers (`connect`).
    connect,
    /// Requests sent over a connection already open (`reuse`).
    reuse,
    /// Requests answered by the proxy itself (`intercepted`).
    intercepted,
    /// Responses 1xx.
    hrsp_1xx,
    /// Responses 2xx.
    hrsp_2xx,
    /// Responses 3xx.
    hrsp_3xx,
    /// Responses 4xx.
    hrsp_4xx,
    /// Responses 5xx.
    hrsp_5xx,
    /// Other responses and protocol errors.
    hrsp_other,
    /// Sessions without HTTP (`sess_other`).
    sess_other,
    /// HTTP/1 sessions (`h1sess`).
    h1sess,
    /// HTTP/1 requests (`h1req`).
    h1req,
    /// Request bytes received (`reqbin`).
    reqbin,
    /// Request bytes sent on (`reqbout`).
    reqbout,
    /// Response bytes received (`resbin`).
    resbin,
    /// Response bytes sent on (`resbout`).
    resbout,
}

impl Shard {
    /// Counts a response by its status.
    pub fn response(&self, status: u16) {
        let counter = match status / 100 {
            1 => &self.hrsp_1xx,
            2 => &self.hrsp_2xx,
            3 => &self.hrsp_3xx,
            4 => &self.hrsp_4xx,
            5 => &self.hrsp_5xx,
            _ => &self.hrsp_other,
        };
        bump(counter, 1);
    }
}

/// The counters of one frontend, backend or server.
#[derive(Debug)]
pub struct Counters {
    shards: Box<[Padded<Shard>]>,
    baseline: Mutex<Snapshot>,
    sess_rate_max: AtomicU64,
    conn_rate_max: AtomicU64,
    req_rate_max: AtomicU64,
}

impl Counters {
    /// Counters for so many workers.
    pub fn new(workers: usize) -> Counters {
        Counters {
            shards: (0..workers.max(1)).map(|_| Padded::default()).collect(),
            baseline: Mutex::default(),
            sess_rate_max: AtomicU64::new(0),
            conn_rate_max: AtomicU64::new(0),
            req_rate_max: AtomicU64::new(0),
        }
    }

    /// The share that only this worker writes.
    pub fn shard(&self, worker: Worker) -> &Shard {
        debug_assert!(worker.0 < self.shards.len(), "worker {} has no shard", worker.0);
        &self.shards[worker.0.min(self.shards.len() - 1)]
    }

    /// A connection was accepted.
    pub fn count_connection(&self, worker: Worker, now: Now) {
        let shard = self.shard(worker);
        bump(&shard.conn_tot, 1);
        if shard.conn_rate.add(now.ms(), 1) {
            self.conn_rate_max.fetch_max(self.rate(now, |s| &s.conn_rate), Relaxed);
        }
    }

    /// A session (frontend) or stream (backend, server) began.
    pub fn count_session(&self, worker: Worker, now: Now) {
        let shard = self.shard(worker);
        bump(&shard.stot, 1);
        shard.last_session.store(now.ms() + 1, Relaxed);
        if shard.sess_rate.add(now.ms(), 1) {
            self.sess_rate_max.fetch_max(self.rate(now, |s| &s.sess_rate), Relaxed);
        }
    }

    /// An HTTP request was received.
    pub fn count_request(&self, worker: Worker, now: Now) {
        let shard = self.shard(worker);
        bump(&shard.req_tot, 1);
        if shard.req_rate.add(now.ms(), 1) {
            self.req_rate_max.fetch_max(self.rate(now, |s| &s.req_rate), Relaxed);
        }
    }

    /// Sessions per second now.
    pub fn session_rate(&self, now: Now) -> u64 {
        self.rate(now, |s| &s.sess_rate)
    }

    /// Requests per second now.
    pub fn request_rate(&self, now: Now) -> u64 {
        self.rate(now, |s| &s.req_rate)
    }

    /// The counters of all workers, less what `clear counters all` set aside.
    pub fn sum(&self, now: Now) -> Snapshot {
        let mut sum = self.raw_counts();
        sum.subtract_counts(&self.baseline.lock());
        sum.sess_rate = self.rate(now, |s| &s.sess_rate);
        sum.conn_rate = self.rate(now, |s| &s.conn_rate);
        sum.req_rate = self.rate(now, |s| &s.req_rate);
        sum.sess_rate_max = self.sess_rate_max.fetch_max(sum.sess_rate, Relaxed).max(sum.sess_rate);
        sum.conn_rate_max = self.conn_rate_max.fetch_max(sum.conn_rate, Relaxed).max(sum.conn_rate);
        sum.req_rate_max = self.req_rate_max.fetch_max(sum.req_rate, Relaxed).max(sum.req_rate);
        (sum.qtime, sum.qtime_max) = self.average(|s| &s.qtime);
        (sum.ctime, sum.ctime_max) = self.average(|s| &s.ctime);
        (sum.rtime, sum.rtime_max) = self.average(|s| &s.rtime);
        (sum.ttime, sum.ttime_max) = self.average(|s| &s.ttime);
        let last = self.shards.iter().map(|s| s.last_session.load(Relaxed)).max().unwrap_or(0);
        sum.last_session_secs = (last > 0).then(|| (now.ms() + 1).saturating_sub(last) / 1000);
        sum
    }

    /// `clear counters`: forgets the maxima only.
    pub fn clear_max(&self) {
        for max in [&self.sess_rate_max, &self.conn_rate_max, &self.req_rate_max] {
            max.store(0, Relaxed);
        }
        for shard in &self.shards {
            for average in [&shard.qtime, &shard.ctime, &shard.rtime, &shard.ttime] {
                average.max.store(0, Relaxed);
            }
        }
    }

    /// `clear counters all`: counts from here on.
    pub fn clear_all(&self) {
        self.clear_max();
        *self.baseline.lock() = self.raw_counts();
    }

    fn raw_counts(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for shard in &self.shards {
            sum.add_counts(shard);
        }
        sum
    }

    fn rate(&self, now: Now, of: impl Fn(&Shard) -> &Rate) -> u64 {
        let (mut total, mut past, mut curr) = (0, 0, 0);
        for shard in &self.shards {
            let read = of(shard).read(now.ms());
            total += read.past * read.remain + read.curr * PERIOD_MS;
            past += read.past;
            curr += read.curr;
        }
        // A lone event would flap between 0 and 1 as its share of the window shrinks.
        if curr == 0 && past <= 1 { past } else { total / PERIOD_MS }
    }

    fn average(&self, of: impl Fn(&Shard) -> &Average) -> (u64, u64) {
        let (mut sum, mut samples, mut max) = (0u64, 0u64, 0);
        for shard in &self.shards {
            let average = of(shard);
            sum += average.sum.load(Relaxed);
            samples += average.samples.load(Relaxed);
            max = max.max(average.max.load(Relaxed));
        }
        (sum.checked_div(samples).unwrap_or(0), max)
    }
}

/// Counters of a server.
pub type ServerCounters = Counters;
/// Counters of a backend.
pub type BackendCounters = Counters;
/// Counters of a frontend.
pub type FrontendCounters = Counters;

const PERIOD_MS: u64 = 1000;
const AVERAGE_SAMPLES: u64 = 1024;

/// Events per second over a sliding window of one second, written by one thread.
///
/// The previous second counts in proportion to how much of it is still in the window. A reader on
/// another thread that meets a rotation may see one second's count twice or not at all, once.
#[derive(Debug, Default)]
pub struct Rate {
    tick: AtomicU64,
    curr: AtomicU64,
    prev: AtomicU64,
}

struct RateRead {
    past: u64,
    curr: u64,
    remain: u64,
}

impl Rate {
    /// Counts; returns whether a new second began.
    pub fn add(&self, now_ms: u64, n: u64) -> bool {
        let tick = self.tick.load(Relaxed);
        let elapsed = now_ms.saturating_sub(tick);
        if elapsed < PERIOD_MS {
            bump(&self.curr, n);
            return false;
        }
        let adjacent = elapsed < 2 * PERIOD_MS;
        self.prev.store(if adjacent { self.curr.load(Relaxed) } else { 0 }, Relaxed);
        self.tick.store(if adjacent { tick + PERIOD_MS } else { now_ms }, Relaxed);
        self.curr.store(n, Relaxed);
        true
    }

    /// Events per second.
    pub fn value(&self, now_ms: u64) -> u64 {
        let RateRead { past, curr, remain } = self.read(now_ms);
        if curr == 0 && past <= 1 { past } else { (past * remain + curr * PERIOD_MS) / PERIOD_MS }
    }

    fn read(&self, now_ms: u64) -> RateRead {
        let (tick, curr, prev) = (self.tick.load(Relaxed), self.curr.load(Relaxed), self.prev.load(Relaxed));
        let elapsed = now_ms.saturating_sub(tick);
        if elapsed <= PERIOD_MS {
            RateRead { past: prev, curr, remain: PERIOD_MS - elapsed }
        } else if elapsed <= 2 * PERIOD_MS {
            RateRead { past: curr, curr: 0, remain: 2 * PERIOD_MS - elapsed }
        } else {
            RateRead { past: 0, curr: 0, remain: 0 }
        }
    }
}

/// Average of the last 1024 or so samples, written by one thread.
#[derive(Debug, Default)]
pub struct Average {
    sum: AtomicU64,
    samples: AtomicU64,
    max: AtomicU64,
}

impl Average {
    /// Adds a sample in milliseconds.
    pub fn add(&self, ms: u64) {
        let (sum, samples) = (self.sum.load(Relaxed), self.samples.load(Relaxed));
        if samples < AVERAGE_SAMPLES {
            self.sum.store(sum + ms, Relaxed);
            self.samples.store(samples + 1, Relaxed);
        } else {
            self.sum.store(sum - sum / AVERAGE_SAMPLES + ms, Relaxed);
        }
        if ms > self.max.load(Relaxed) {
            self.max.store(ms, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Now {
        Now { mono: Duration::from_millis(ms), unix_us: ms * 1000 }
    }

    #[test]
    fn shards_add_up_and_clear_all_counts_from_there() {
        let counters = Counters::new(2);
        counters.count_session(Worker(0), at(10));
        counters.count_session(Worker(1), at(20));
        bump(&counters.shard(Worker(1)).bin, 700);
        counters.shard(Worker(0)).response(204);
        let sum = counters.sum(at(30));
        assert_eq!((sum.stot, sum.bin, sum.hrsp_2xx, sum.sess_rate, sum.sess_rate_max), (2, 700, 1, 2, 2));
        assert_eq!(sum.last_session_secs, Some(0));
        counters.clear_all();
        counters.count_session(Worker(0), at(2020));
        let sum = counters.sum(at(4020));
        assert_eq!((sum.stot, sum.bin, sum.last_session_secs), (1, 0, Some(2)));
    }

    #[test]
    fn rate_slides_over_one_second_and_decays_within_two() {
        let rate = Rate::default();
        for ms in 0..100 {
            rate.add(ms, 1);
        }
        assert_eq!(rate.value(900), 100);
        assert_eq!(rate.value(1500), 50);
        assert!(rate.add(1500, 1));
        assert_eq!(rate.value(1500), 51);
        assert_eq!(rate.value(5000), 0);
    }

    #[test]
    fn averages_follow_the_last_1024_samples() {
        let counters = Counters::new(1);
        let shard = counters.shard(Worker(0));
        shard.qtime.add(10);
        shard.qtime.add(20);
        assert_eq!(counters.sum(at(0)).qtime, 15);
        for _ in 0..20_000 {
            shard.qtime.add(100);
        }
        let sum = counters.sum(at(0));
        assert!((95..=100).contains(&sum.qtime), "{}", sum.qtime);
        assert_eq!(sum.qtime_max, 100);
        counters.clear_max();
        assert_eq!(counters.sum(at(0)).qtime_max, 0);
    }
}
