//! `announce arp`: the address on an interface, the neighbours told, the kernel holding the lease.
//!
//! The kernel lets traffic of the VIP through only while it is an element of an nftables set that
//! runs out [`MARGIN`] before the lease. Where nftables is missing, the address's own lifetime, in
//! whole seconds, is all that the kernel can do; the warning says so, once.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_sys::clock::boottime;
use phalanx_sys::neighbour::{self, Watch};
use phalanx_sys::netlink::nft::Nft;
use phalanx_sys::netlink::route::{Link, Route};
use phalanx_sys::process::Capability;
use tracing::warn;

use super::guardian::Place;
use super::hands::Driver;
use super::{Announce, VipSettings};

/// The kernel's timers are up to a tick late.
const MARGIN: Duration = Duration::from_millis(12);

/// The kernel removes an address by itself after so long without renewal: a second net below the
/// nftables one.
const VALID: Duration = Duration::from_secs(5);
const VALID_WITHOUT_NFT: Duration = Duration::from_secs(1);

/// When neighbours are told again, counted from the takeover: announcements get lost.
const AGAIN: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// How often the holder asks whether another host has the address too.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// What was said of the address before a takeover is over by then.
const SETTLED: Duration = Duration::from_secs(1);

/// How often another host is answered.
const ANSWER_EVERY: Duration = Duration::from_secs(5);

/// nftables, shared by all VIPs of the node.
#[derive(Clone)]
pub(super) struct Kernel(Arc<Mutex<Tables>>);

struct Tables {
    nft: Option<Nft>,
    vips: Vec<IpAddr>,
    open: usize,
}

impl Kernel {
    pub(super) fn new(vips: &[VipSettings], witness: bool) -> Kernel {
        let arp = |vip: &&VipSettings| matches!(vip.announce, Announce::Arp { .. });
        let vips: Vec<IpAddr> = vips.iter().filter(arp).map(|vip| vip.addr).collect();
        let mut nft = None;
        if !vips.is_empty() && !witness && Capability::NetAdmin.effective() {
            match Nft::open().and_then(|mut nft| nft.set_up(&vips).map(|()| nft)) {
                Ok(ready) => nft = Some(ready),
                Err(error) => warn!(
                    "floating IPs: nftables is not available ({error}): should all of this node's processes \
                     stand still, the kernel takes an address away only {VALID_WITHOUT_NFT:?} after its lease"
                ),
            }
        }
        Kernel(Arc::new(Mutex::new(Tables { nft, open: vips.len(), vips })))
    }

    /// Lets the VIP's traffic through until `until`.
    fn hold(&self, vip: IpAddr, until: Duration) -> Result<(), String> {
        let mut tables = self.0.lock();
        let Tables { nft: Some(nft), vips, .. } = &mut *tables else { return Ok(()) };
        let left = || until.saturating_sub(boottime()).saturating_sub(MARGIN);
        if left().is_zero() {
            return Err("the lease ran out".into());
        }
        if nft.hold(vip, left()).is_ok() {
            return Ok(());
        }
        // Somebody flushed the ruleset. The other VIPs come back with their next renewal.
        warn!("floating IPs: table 'phalanx_vip' was removed; putting it back");
        nft.set_up(vips).and_then(|()| nft.hold(vip, left())).map_err(|e| format!("nftables: {e}"))
    }

    fn drop_hold(&self, vip: IpAddr) -> Result<(), String> {
        match &mut self.0.lock().nft {
            Some(nft) => nft.drop_hold(vip).map_err(|e| format!("nftables: {e}")),
            None => Ok(()),
        }
    }

    fn enforces(&self) -> bool {
        self.0.lock().nft.is_some()
    }

    /// The last one to leave removes the tables.
    fn close(&self) {
        let mut tables = self.0.lock();
        tables.open = tables.open.saturating_sub(1);
        if tables.open == 0
            && let Some(mut nft) = tables.nft.take()
            && let Err(error) = nft.remove_tables()
        {
            warn!("floating IPs: table 'phalanx_vip' stays: {error}");
        }
    }
}

/// The driver of one VIP.
pub(super) struct Arp {
    addr: IpAddr,
    prefix: u8,
    interface: String,
    kernel: Kernel,
    held: Option<Held>,
    noticed: Vec<String>,
}

struct Held {
    /// Who else claims the address; `None`: it cannot be watched.
    watch: Option<Watch>,
    /// When to ask for others, and before when none is answered again.
    ask: Duration,
    answer: Duration,
    link: Link,
    since: Duration,
    told: usize,
}

impl Arp {
    pub(super) fn new(addr: IpAddr, prefix: u8, interface: String, kernel: Kernel) -> Arp {
        Arp { addr, prefix, interface, kernel, held: None, noticed: Vec::new() }
    }

    fn link(&self) -> Result<Link, String> {
        Route::open().and_then(|mut route| route.link(&self.interface)).map_err(|e| e.to_string())
    }

    fn put(&self, link: &Link) -> Result<bool, String> {
        let valid = if self.kernel.enforces() { VALID } else { VALID_WITHOUT_NFT };
        let put = Route::open().and_then(|mut route| {
            let there = route.has_address(link.index, self.addr)?;
            route.add_address(link.index, self.addr, self.prefix, Some(valid))?;
            Ok(there)
        });
        put.map_err(|e| format!("address {} on {}: {e}", self.addr, self.interface))
    }

    /// Takes the address off with whatever prefix length it was put there.
    fn take_off_whatever(&self, link: &Link) -> String {
        let Ok(mut route) = Route::open() else { return "taken off".into() };
        let widest = if self.addr.is_ipv4() { 32 } else { 128 };
        for prefix in (1..=widest).rev() {
            match route.has_address(link.index, self.addr) {
                Ok(true) => _ = route.remove_address(link.index, self.addr, prefix),
                _ => break,
            }
        }
        "taken off".into()
    }

    fn tell(&self, link: &Link) {
        // An interface without hardware address has no neighbours to tell.
        if link.mac.is_some()
            && let Err(error) = neighbour::announce(link, self.addr)
        {
            warn!("address {} on {}: neighbours not told: {error}", self.addr, self.interface);
        }
    }
}

impl Driver for Arp {
    fn missing(&mut self) -> Vec<String> {
        let needed = [Capability::NetAdmin, Capability::NetRaw];
        let mut missing: Vec<String> = needed
            .into_iter()
            .filter(|c| !c.effective())
            .map(|c| format!("capability {} is missing", c.name()))
            .collect();
        match self.link() {
            Err(why) => missing.push(why),
            Ok(link) if !link.up => missing.push(format!("interface '{}' is down", self.interface)),
            Ok(link) if !link.running => {
                missing.push(format!("interface '{}' has no carrier", self.interface))
            }
            Ok(_) => {}
        }
        missing
    }

    fn look(&mut self) {
        match &mut self.held {
            Some(held) => {
                let now = boottime();
                if now >= held.ask {
                    held.ask = now + ASK_EVERY;
                    let _ = neighbour::probe(&held.link, self.addr);
                }
                let other = match (&held.watch, held.link.mac) {
                    (Some(watch), Some(own)) => watch.claimed_by(own),
                    _ => None,
                };
                // The node before may have said so a moment ago.
                let Some([a, b, c, d, e, f]) = other.filter(|_| now >= held.answer) else { return };
                held.answer = now + ANSWER_EVERY;
                self.noticed.push(format!(
                    "another host claims address {} on {}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}; \
                     told the neighbours again that it is here: take it off there",
                    self.addr, self.interface
                ));
                let link = held.link.clone();
                self.tell(&link);
            }
            None => {
                let Ok(link) = self.link() else { return };
                let there = Route::open().and_then(|mut route| route.has_address(link.index, self.addr));
                if matches!(there, Ok(true)) {
                    let done = match take_off(&self.interface, self.addr, self.prefix) {
                        // With another prefix length it is another address.
                        Ok(()) => self.take_off_whatever(&link),
                        Err(why) => why,
                    };
                    self.noticed.push(format!(
                        "address {} was on {}, and this node does not hold it: {done}",
                        self.addr, self.interface
                    ));
                }
            }
        }
    }

    fn noticed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.noticed)
    }

    fn acquire(&mut self, _: u64, until: Duration) -> Result<Vec<OwnedFd>, String> {
        let link = self.link()?;
        self.kernel.hold(self.addr, until)?;
        self.put(&link)?;
        self.tell(&link);
        let watch = match &self.held {
            // Kept, or the tenure is another.
            Some(_) => self.held.take().and_then(|held| held.watch),
            None => Watch::open(&link, self.addr).ok(),
        };
        let now = boottime();
        self.held =
            Some(Held { watch, ask: now + ASK_EVERY, answer: now + SETTLED, link, since: now, told: 0 });
        Ok(Vec::new())
    }

    fn renew(&mut self, until: Duration) -> Result<(), String> {
        self.kernel.hold(self.addr, until)?;
        let Some(held) = &self.held else { return Ok(()) };
        let there = self.put(&held.link)?;
        let mut due = AGAIN.get(held.told).is_some_and(|after| boottime() >= held.since + *after);
        if !there {
            self.noticed.push(format!("address {} was taken off {}: put back", self.addr, self.interface));
            due = true;
        }
        if due {
            self.tell(&held.link);
            if let Some(held) = &mut self.held {
                held.told += 1;
            }
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        self.held = None;
        // Silence first, then the address.
        let silenced = self.kernel.drop_hold(self.addr);
        take_off(&self.interface, self.addr, self.prefix)?;
        silenced
    }

    fn place(&self) -> Place {
        Place::Arp { interface: self.interface.clone(), addr: self.addr, prefix: self.prefix }
    }

    fn close(&mut self) {
        self.kernel.close();
    }
}

/// Takes an address off an interface. That either is not there is as good.
pub(super) fn take_off(interface: &str, addr: IpAddr, prefix: u8) -> Result<(), String> {
    let mut route = Route::open().map_err(|e| format!("netlink: {e}"))?;
    let Ok(link) = route.link(interface) else { return Ok(()) };
    match route.remove_address(link.index, addr, prefix) {
        Ok(_) => Ok(()),
        // No permission, but then it must not be there either.
        Err(error) => match route.has_address(link.index, addr) {
            Ok(false) => Ok(()),
            _ => Err(format!("address {addr} on {interface}: {error}")),
        },
    }
}
