//! `announce arp`: the address on an interface, the neighbours told, the kernel holding the lease.
//!
//! The kernel lets traffic of the VIP through only while it is an element of an nftables set that
//! runs out [`MARGIN`] before the lease. Where nftables is missing, the address's own lifetime, in
//! whole seconds, is all that the kernel can do; the warning says so, once.

mod mine;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_engine::lease::hands::KEPT;
use phalanx_sys::clock::boottime;
use phalanx_sys::neighbour::{self, Parked, Watch};
use phalanx_sys::netlink::diag;
use phalanx_sys::netlink::nft::Nft;
use phalanx_sys::netlink::nft::pass::{Flow, Passing};
use phalanx_sys::netlink::route::{Link, Route};
use phalanx_sys::process::Capability;
use tracing::warn;

use self::mine::Mine;
use super::drain::{Paths, Reach};
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

/// Until all nodes have heard of a move, for sure.
const SETTLING: Duration = Duration::from_secs(1);

/// How often it is looked whether connections have been told of, by who waits for it.
const POLL: Duration = Duration::from_millis(1);

/// The interface is looked at ten times a second.
const SEEN: Duration = Duration::from_millis(500);

/// A client asks again by itself after a second.
const WAITS_AT_MOST: Duration = Duration::from_millis(900);

/// How often another host is answered.
const ANSWER_EVERY: Duration = Duration::from_secs(5);

/// nftables, shared by all VIPs of the node.
#[derive(Clone)]
pub(super) struct Kernel(Arc<Mutex<Tables>>);

struct Tables {
    nft: Option<Nft>,
    vips: Vec<IpAddr>,
    interfaces: BTreeSet<String>,
    open: usize,
    passes: Passes,
}

/// Packets of earlier holders' connections.
#[derive(Default)]
struct Passes {
    /// Interfaces that have a chain for it.
    chains: Vec<(String, u32)>,
    /// Rises whenever the kernel has forgotten whose connections are whose.
    version: u64,
    /// The kernel can do it.
    usable: bool,
}

impl Kernel {
    pub(super) fn new(vips: &[VipSettings], witness: bool) -> Kernel {
        let arp = |vip: &&VipSettings| matches!(vip.announce, Announce::Arp { .. });
        let interface = |vip: &VipSettings| match &vip.announce {
            Announce::Arp { interface } => Some(interface.clone()),
            _ => None,
        };
        let interfaces: BTreeSet<String> = vips.iter().filter_map(interface).collect();
        let vips: Vec<IpAddr> = vips.iter().filter(arp).map(|vip| vip.addr).collect();
        let (mut nft, mut passes) = (None, Passes::default());
        if !vips.is_empty() && !witness && Capability::NetAdmin.effective() {
            match Nft::open().and_then(|mut nft| nft.set_up(&vips).map(|()| nft)) {
                Ok(mut ready) => {
                    if let Err(why) = passes.set_up(&mut ready, &interfaces) {
                        warn!("floating IPs: connections of earlier holders cannot be passed on: {why}");
                    }
                    nft = Some(ready);
                }
                Err(error) => warn!(
                    "floating IPs: nftables is not available ({error}): should all of this node's processes \
                     stand still, the kernel takes an address away only {VALID_WITHOUT_NFT:?} after its lease"
                ),
            }
        }
        let open = vips.len();
        Kernel(Arc::new(Mutex::new(Tables { nft, open, vips, interfaces, passes })))
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

    /// Lets only connections go on that there are; `None` without nftables.
    fn drain(&self, vip: IpAddr, own: IpAddr) -> Result<Option<()>, String> {
        let mut tables = self.0.lock();
        let Some(nft) = &mut tables.nft else { return Ok(None) };
        nft.drain(vip, own, KEPT).map(Some).map_err(|e| format!("nftables: {e}"))
    }

    fn end_drain(&self, vip: IpAddr) -> Result<(), String> {
        match &mut self.0.lock().nft {
            Some(nft) => nft.end_drain(vip).map_err(|e| format!("nftables: {e}")),
            None => Ok(()),
        }
    }

    /// Remembers connections to the VIP that begin from now on, for [`KEPT`], in the tables of the version that
    /// comes back; `None` without nftables.
    fn watch(&self, vip: IpAddr, link: (&str, u32)) -> Result<Option<u64>, String> {
        let mut tables = self.0.lock();
        let Tables { nft: Some(nft), passes, interfaces, .. } = &mut *tables else { return Ok(None) };
        if !passes.has(link) {
            passes.set_up(nft, interfaces)?;
        }
        if nft.watch(vip, KEPT).is_err() {
            // Somebody flushed the ruleset.
            passes.set_up(nft, interfaces)?;
            nft.watch(vip, KEPT).map_err(|e| format!("nftables: {e}"))?;
        }
        Ok(Some(passes.version))
    }

    /// Passes packets of unknown connections on in place of what `placed` says, which becomes what they are
    /// passed to now; not if the tables are of another version. With `settling`, those that are not passed on
    /// are lost for a while.
    fn place(
        &self,
        vip: IpAddr,
        version: u64,
        (placed, to): (&mut Placed, Passing),
        peers: &[[u8; 6]],
        settling: Option<Duration>,
    ) -> Result<bool, String> {
        let mut tables = self.0.lock();
        let Tables { nft: Some(nft), passes, .. } = &mut *tables else { return Ok(true) };
        if passes.version != version {
            return Ok(false);
        }
        let before = placed.there(version).unwrap_or_default();
        nft.pass(vip, before, to, peers, (KEPT, settling)).map_err(|e| format!("nftables: {e}"))?;
        *placed = Placed { version: Some(version), passing: to };
        Ok(true)
    }

    /// An interface is there; it may not have been before.
    fn seen(&self, link: (&str, u32)) {
        let mut tables = self.0.lock();
        let Tables { nft: Some(nft), passes, interfaces, .. } = &mut *tables else { return };
        if passes.usable
            && !passes.has(link)
            && let Err(why) = passes.set_up(nft, interfaces)
        {
            warn!("floating IPs: connections of earlier holders cannot be passed on: {why}");
        }
    }

    fn end_pass(&self, vip: IpAddr, passing: Passing) {
        let mut tables = self.0.lock();
        if let Some(nft) = &mut tables.nft
            && let Err(error) = nft.end_pass(vip, passing)
        {
            warn!("address {vip}: packets go on being passed on, for {KEPT:?} at most: {error}");
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

impl Passes {
    fn set_up(&mut self, nft: &mut Nft, interfaces: &BTreeSet<String>) -> Result<(), String> {
        let mut route = Route::open().map_err(|e| format!("netlink: {e}"))?;
        let number = |name: &String| route.link(name).ok().map(|link| (name.clone(), link.index));
        self.chains = interfaces.iter().filter_map(number).collect();
        self.version += 1;
        let done = nft.set_up_passes(&self.chains);
        self.usable = done.is_ok();
        done.map_err(|e| format!("nftables: {e}"))
    }

    fn has(&self, link: (&str, u32)) -> bool {
        self.chains.iter().any(|(name, index)| (name.as_str(), *index) == link)
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
    /// It has moved, but connections go on here: in the name of this address.
    kept: Option<(Link, IpAddr)>,
    /// The kernel may let connections of it go on that it has no more.
    drains: bool,
    /// Which connections are this node's.
    mine: Mine,
    /// Where packets of others are passed on.
    placed: Placed,
    parked: Option<Waiting>,
    /// The interface, when it was looked at last.
    seen: Option<(Link, Duration)>,
}

/// What the kernel was told to pass on.
#[derive(Clone, Copy, Default)]
struct Placed {
    /// Of the tables; `None`: nothing is passed on.
    version: Option<u64>,
    passing: Passing,
}

impl Placed {
    /// What is passed on, if anything is.
    fn there(&self, version: u64) -> Option<Passing> {
        (self.version == Some(version)).then_some(self.passing)
    }

    /// Nothing is passed on any more; what was.
    fn end(&mut self) -> Passing {
        let was = self.passing;
        *self = Placed::default();
        was
    }
}

/// What would begin connections while nobody has the address.
struct Waiting {
    parked: Parked,
    since: Duration,
    /// Connections that began here before.
    known: HashSet<Flow>,
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
        Arp {
            addr,
            prefix,
            interface,
            kernel,
            held: None,
            noticed: Vec::new(),
            kept: None,
            drains: false,
            mine: Mine::new(addr),
            placed: Placed::default(),
            parked: None,
            seen: None,
        }
    }

    fn link(&mut self) -> Result<Link, String> {
        let link = Route::open().and_then(|mut route| route.link(&self.interface)).map_err(|e| e.to_string());
        self.seen = link.as_ref().ok().map(|link| (link.clone(), boottime()));
        link
    }

    /// The interface as it was a moment ago: the kernel may keep one waiting who asks.
    fn seen_link(&mut self) -> Result<Link, String> {
        match &self.seen {
            Some((link, at)) if boottime() < *at + SEEN => Ok(link.clone()),
            _ => self.link(),
        }
    }

    /// Not asked of the kernel for nothing: at a failure each of its answers is time without the address.
    fn end_drain(&mut self) -> Result<(), String> {
        if self.drains {
            self.kernel.end_drain(self.addr)?;
            self.drains = false;
        }
        Ok(())
    }

    /// Passes nothing on any more.
    fn end_pass(&mut self) {
        self.kernel.end_pass(self.addr, self.placed.end());
        self.mine.forget();
    }

    /// From now on nothing begins here, nor is it remembered as if it had.
    fn shut(&mut self) -> Result<(), String> {
        let Some(version) = self.mine.watched() else { return Ok(()) };
        let to = Passing { closed: true, ..self.placed.there(version).unwrap_or_default() };
        self.kernel.place(self.addr, version, (&mut self.placed, to), &[], None).map(drop)
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

    /// An address of this node on the interface that stays: of IPv6, the one that every node has.
    fn own_address(&self, link: &Link) -> Result<Option<IpAddr>, String> {
        let all = Route::open().and_then(|mut route| route.addresses(link.index, self.addr));
        let all = all.map_err(|e| format!("addresses of {}: {e}", self.interface))?;
        let vips = self.kernel.0.lock().vips.clone();
        let own = all.into_iter().filter(|addr| !vips.contains(addr));
        Ok(match self.addr {
            IpAddr::V4(_) => own.min(),
            IpAddr::V6(_) => own.filter(|a| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local())).min(),
        })
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
            Ok(link) => self.kernel.seen((&self.interface, link.index)),
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
            None if self.kept.is_some() => {}
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
        let mut link = self.seen_link()?;
        if self.placed.passing.closed {
            self.end_pass();
        }
        self.kernel.hold(self.addr, until)?;
        if self.put(&link).is_err() {
            // It may be another by that name.
            link = self.link()?;
            self.put(&link)?;
        }
        self.tell(&link);
        // Kept, or the tenure is another.
        let watch = self.held.take().and_then(|held| held.watch);
        let now = boottime();
        self.held =
            Some(Held { watch, ask: now + ASK_EVERY, answer: now + SETTLED, link, since: now, told: 0 });
        Ok(Vec::new())
    }

    fn begin(&mut self) {
        self.mine.begin();
    }

    fn acquired(&mut self) {
        self.parked = None;
        if self.kept.take().is_some()
            && let Err(why) = self.end_drain()
        {
            warn!("address {} on {}: drains for another {KEPT:?}: {why}", self.addr, self.interface);
        }
        if let Some(held) = &mut self.held
            && held.watch.is_none()
        {
            held.watch = Watch::open(&held.link, self.addr).ok();
        }
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
        (self.held, self.kept, self.parked) = (None, None, None);
        // Silence first, then the address. What is passed on to others comes last: it would be answered with
        // resets here.
        let silenced = self.kernel.drop_hold(self.addr).and(self.end_drain());
        take_off(&self.interface, self.addr, self.prefix)?;
        self.end_pass();
        silenced
    }

    fn reach(&mut self) -> Option<Reach> {
        let link = self.link().ok()?;
        let via = self.own_address(&link).ok()??;
        Some(Reach { via, mac: link.mac? })
    }

    fn keep(&mut self) -> Result<bool, String> {
        let link = self.seen_link()?;
        let Some(own) = self.own_address(&link)? else { return Ok(false) };
        self.shut()?;
        self.drains = true;
        if self.kernel.drain(self.addr, own)?.is_none() {
            return Ok(false);
        }
        self.held = None;
        self.kept = Some((link, own));
        Ok(true)
    }

    fn park(&mut self) {
        let parked =
            self.seen_link().and_then(|link| Parked::open(&link, self.addr).map_err(|e| e.to_string()));
        let waiting = |parked| Waiting { parked, since: boottime(), known: HashSet::new() };
        self.parked = parked.map(waiting).ok();
    }

    fn unpark(&mut self, to: [u8; 6], last: bool) -> usize {
        let Some(waiting) = &self.parked else { return 0 };
        let sent = waiting.parked.send_on(to, |flow| waiting.known.contains(flow));
        if last {
            self.parked = None;
        }
        sent
    }

    fn connections(&mut self) -> Result<u32, String> {
        let mut open = 0;
        // Those that wait for the next holder are others.
        let mut known = self.parked.as_mut().map(|waiting| &mut waiting.known);
        diag::connections(self.addr, |c| {
            open += u32::from(c.open);
            if let Some(known) = known.as_mut().filter(|_| !c.over) {
                known.insert(c.flow);
            }
        })
        .map_err(|e| {
            // Not knowing which are this node's own, it would send the next holder SYNs of those too.
            self.parked = None;
            format!("connections of {}: {e}", self.addr)
        })?;
        Ok(open)
    }

    fn renew_kept(&mut self) -> Result<u32, String> {
        if self.parked.as_ref().is_some_and(|waiting| boottime() >= waiting.since + WAITS_AT_MOST) {
            self.parked = None;
        }
        let Some((link, own)) = &self.kept else { return Ok(0) };
        self.kernel.drain(self.addr, *own)?;
        self.put(link)?;
        // Until there is a next holder nothing else renews it.
        if self.placed.passing.closed && self.placed.passing.home.is_none() {
            self.shut()?;
            self.mine.renewed();
        }
        self.connections()
    }

    fn prepare(&mut self) -> Result<bool, String> {
        let link = self.seen_link()?;
        let watched = self.kernel.watch(self.addr, (&self.interface, link.index))?;
        watched.map_or(Ok(true), |version| self.mine.told(version))
    }

    fn busy(&self) -> bool {
        self.mine.is_told_of()
    }

    fn pass(&mut self, paths: &Paths, patience: Duration) -> Result<bool, String> {
        if paths.next.is_none() && paths.home.is_none() {
            self.end_pass();
            return Ok(true);
        }
        let link = self.seen_link()?;
        let Some(version) = self.kernel.watch(self.addr, (&self.interface, link.index))? else {
            return Ok(true);
        };
        let mut told = self.mine.told(version)?;
        let deadline = boottime() + patience;
        while !told && boottime() < deadline {
            std::thread::sleep(POLL);
            told = self.mine.told(version)?;
        }
        if !told {
            // A holder that begins cannot tell its own from those of others: all come again. Where they go on,
            // most are its own.
            if self.mine.begins() {
                let nowhere = (&mut self.placed, Passing::default());
                self.kernel.place(self.addr, version, nowhere, &[], Some(SETTLING))?;
            }
            return Ok(false);
        }
        let to = Passing { next: paths.next, home: paths.home, closed: paths.closed };
        let settling = (to != self.placed.passing).then_some(SETTLING);
        self.kernel.place(self.addr, version, (&mut self.placed, to), &paths.peers, settling)
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
