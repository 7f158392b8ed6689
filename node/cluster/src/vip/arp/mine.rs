//! Telling the kernel which connections of a VIP are this node's, on a thread of its own.
//!
//! There may be a hundred thousand: listing them, and telling of each, takes longer than a lease. So it is done
//! over a socket of its own, a few at a time, beside the thread that renews the lease and without the lock
//! that the other VIPs' renewals need. Until it is done nothing is passed on. Whoever uses this remembers what
//! begins (`watch`) *before* it asks, so that a connection is found by the one or the other.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use phalanx_engine::lease::hands::KEPT;
use phalanx_sys::clock::boottime;
use phalanx_sys::netlink::diag;
use phalanx_sys::netlink::nft::Nft;
use phalanx_sys::netlink::nft::pass::{Flow, QUIET};

/// Connections between two looks at whether they are still to be told of.
const AT_ONCE: usize = 1000;

/// What begins is not remembered any more so long after the last renewal, with time to spare.
const WATCHED: Duration = KEPT.saturating_sub(Duration::from_millis(500));

/// What the kernel knows of a VIP's connections to this node.
pub(super) struct Mine {
    vip: IpAddr,
    /// It knows all that there are, in the tables of this version; since when.
    told: Option<(u64, Duration)>,
    telling: Option<Telling>,
    /// In the tables of this version beginnings are remembered until then.
    watched: Option<(u64, Duration)>,
    /// A tenure begins: only those that there are, are this node's, even if others were.
    anew: bool,
}

impl Mine {
    pub(super) fn new(vip: IpAddr) -> Mine {
        Mine { vip, told: None, telling: None, watched: None, anew: false }
    }

    /// A tenure is about to begin: those that are not open here are not this node's.
    pub(super) fn begin(&mut self) {
        self.anew = true;
    }

    /// One has begun, and the kernel may still take connections of others for this node's.
    pub(super) fn begins(&self) -> bool {
        self.anew
    }

    /// Beginnings are not remembered any more.
    pub(super) fn forget(&mut self) {
        (self.told, self.telling, self.watched) = (None, None, None);
    }

    /// The version of the tables in which beginnings are remembered.
    pub(super) fn watched(&self) -> Option<u64> {
        self.watched.filter(|(_, until)| boottime() < *until).map(|(version, _)| version)
    }

    /// They are remembered for another while.
    pub(super) fn renewed(&mut self) {
        if let Some((_, until)) = &mut self.watched {
            *until = boottime() + WATCHED;
        }
    }

    /// The kernel is being told of them at this moment.
    pub(super) fn is_told_of(&self) -> bool {
        self.telling.as_ref().is_some_and(|telling| !telling.thread.is_finished())
    }

    /// Whether the kernel knows them all, in the tables of this version, in which beginnings are remembered
    /// since a moment ago. If not, or not for much longer, it is being told from now on; never waits for that.
    ///
    /// # Errors
    /// Why it could not be told; the next call tries again.
    pub(super) fn told(&mut self, version: u64) -> Result<bool, String> {
        let now = boottime();
        if self.watched() != Some(version) {
            // Some may have begun unnoticed.
            self.forget();
        }
        self.watched = Some((version, now + WATCHED));
        if let Some(telling) = self.telling.take_if(|telling| telling.thread.is_finished()) {
            let (only, since) = (telling.only, telling.since);
            telling.outcome()?;
            self.told = Some((version, since));
            self.anew &= !only;
        }
        // The kernel forgets those that are quiet.
        self.told = self.told.filter(|(_, since)| now < *since + QUIET * 3 / 4);
        let due = self.told.is_none_or(|(_, since)| now >= since + QUIET / 4);
        if (due || self.anew) && self.telling.is_none() {
            self.telling = Some(Telling::start(self.vip, self.anew)?);
        }
        Ok(self.told.is_some() && !self.anew)
    }
}

/// The thread, which ends early when nobody waits for it.
struct Telling {
    thread: JoinHandle<Result<(), String>>,
    _quit: Quit,
    since: Duration,
    only: bool,
}

struct Quit(Arc<AtomicBool>);

impl Drop for Quit {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Telling {
    fn start(vip: IpAddr, only: bool) -> Result<Telling, String> {
        let quit = Quit(Arc::default());
        let told = quit.0.clone();
        let thread = std::thread::Builder::new().name("vip-mine".to_owned());
        let thread = thread.spawn(move || tell(vip, only, &told)).map_err(|e| format!("thread: {e}"))?;
        Ok(Telling { thread, _quit: quit, since: boottime(), only })
    }

    fn outcome(self) -> Result<(), String> {
        self.thread.join().unwrap_or_else(|_| Err("telling of connections panicked".to_owned()))
    }
}

/// Tells the kernel which connections are this node's: those that began before it looked, or are quiet.
/// `only`: and that all others are not, even if they were.
fn tell(vip: IpAddr, only: bool, quit: &AtomicBool) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("nftables: {e}");
    let mut nft = Nft::open().map_err(wrong)?;
    let remembered = if only { Some(nft.remembered(vip).map_err(wrong)?) } else { None };
    let mut mine: Vec<Flow> = Vec::new();
    // The port of one that is over may be in use again, for a connection to another node.
    let each = |c: diag::Connection| mine.extend((!c.over).then_some(c.flow));
    diag::connections(vip, each).map_err(|e| format!("connections of {vip}: {e}"))?;
    if let Some(remembered) = remembered {
        nft.forget_others(remembered, &mine).map_err(wrong)?;
    }
    for some in mine.chunks(AT_ONCE) {
        if quit.load(Ordering::Relaxed) {
            return Err("not told to the end".to_owned());
        }
        nft.watch(vip, KEPT).map_err(wrong)?;
        nft.add_mine(some).map_err(wrong)?;
    }
    Ok(())
}
