//! Choosing a server: the algorithms of `balance` over the servers that may be used now.
//!
//! A [`Farm`] is immutable: the backend builds a new one whenever a server comes, goes, or changes
//! weight, and publishes it. Workers pick from it without a lock; what they share is one position
//! counter and the servers' own atomics.

pub mod key;
mod map;
mod ring;
mod schedule;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use phalanx_config::model::{Balance, HashMethod, HashType, Proxy};

use crate::hash;
use crate::server::Server;

use self::ring::Ring;

/// Scale between a server's weight and its share of a ring (HAProxy's `BE_WEIGHT_SCALE`).
pub(crate) const WEIGHT_SCALE: u32 = 16;

/// What an algorithm looks at in a request.
pub(crate) struct Input<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) src: IpAddr,
    pub(crate) draw: u64,
    pub(crate) avoid: Option<&'a Arc<Server>>,
}

/// The backend's part in a choice: shared position and limits.
pub(crate) struct Shared<'a> {
    pub(crate) position: &'a AtomicU64,
    pub(crate) beconn: u32,
    pub(crate) fullconn: u32,
}

impl Shared<'_> {
    pub(crate) fn limit(&self, server: &Server) -> Option<u32> {
        server.limit(self.beconn, self.fullconn)
    }

    fn has_room(&self, server: &Server) -> bool {
        self.limit(server).is_none_or(|limit| server.served() < limit) && server.queued() == 0
    }

    fn claim(&self, server: &Server) -> bool {
        server.queued() == 0 && server.claim(self.limit(server))
    }
}

/// Outcome of a choice.
#[derive(Debug)]
pub(crate) enum Pick {
    /// A place on this server was taken.
    Claimed(Arc<Server>),
    /// This server and no other; its limit has not been looked at.
    Bound(Arc<Server>),
    /// Every server that could serve is full.
    Full,
    /// No server may be used.
    NoServer,
}

/// The servers that may be used, prepared for the backend's algorithm.
#[derive(Debug)]
pub(crate) struct Farm {
    servers: Vec<Arc<Server>>,
    method: Method,
    /// Usable servers that are not backups.
    pub(crate) active: u32,
    /// Usable backup servers.
    pub(crate) backup: u32,
}

#[derive(Debug)]
enum Method {
    /// A cyclic order of indexes: roundrobin, static-rr.
    Schedule(Vec<u32>),
    LeastConn,
    First,
    Map {
        input: HashInput,
        table: Vec<u32>,
    },
    Ring {
        input: HashInput,
        ring: Ring,
    },
    Random {
        draws: u32,
        ring: Ring,
    },
}

#[derive(Clone, Copy, Debug)]
struct HashInput {
    source: bool,
    hash: HashType,
}

impl HashInput {
    fn hash(self, input: &Input<'_>) -> Option<u32> {
        let value =
            if self.source { hash::source(input.src) } else { hash::hash(self.hash.function, input.key?) };
        Some(if self.hash.avalanche { hash::avalanche(value) } else { value })
    }
}

/// Whether the algorithm follows weight changes at run time.
pub fn is_dynamic(proxy: &Proxy) -> bool {
    match proxy.balance {
        None | Some(Balance::RoundRobin | Balance::LeastConn | Balance::First | Balance::Random(_)) => true,
        Some(Balance::StaticRr) => false,
        Some(_) => proxy.hash_type.method == HashMethod::Consistent,
    }
}

/// Whether a key decides, so that a retry leads to the same server.
pub fn is_hash(proxy: &Proxy) -> bool {
    matches!(
        proxy.balance,
        Some(Balance::Source | Balance::Hdr { .. } | Balance::Uri { .. } | Balance::UrlParam(_))
    )
}

/// The algorithm's name as CSV `algo` gives it.
pub fn algo_name(balance: Option<&Balance>) -> &'static str {
    match balance {
        Some(Balance::RoundRobin) => "roundrobin",
        Some(Balance::StaticRr) => "static-rr",
        Some(Balance::LeastConn) => "leastconn",
        Some(Balance::First) => "first",
        Some(Balance::Source) => "source",
        Some(Balance::Hdr { .. }) => "hdr",
        Some(Balance::Uri { .. }) => "uri",
        Some(Balance::UrlParam(_)) => "url_param",
        // HAProxy has no name for it in its statistics.
        Some(Balance::Random(_)) | None => "unknown",
    }
}

impl Farm {
    /// Prepares the servers of a backend, in configuration order.
    pub(crate) fn new(proxy: &Proxy, all: &[Arc<Server>]) -> Farm {
        let (backups, actives): (Vec<_>, Vec<_>) =
            all.iter().filter(|s| s.usable()).cloned().partition(|s| s.is_backup());
        let (active, backup) = (actives.len() as u32, backups.len() as u32);
        let mut servers = actives;
        if servers.is_empty() {
            servers = backups;
            if !proxy.allbackups {
                servers.truncate(1);
            }
        }
        let method = Method::new(proxy, &mut servers);
        Farm { servers, method, active, backup }
    }

    /// Notes on every server whether it takes streams from the backend's queue.
    pub(crate) fn mark(&self, all: &[Arc<Server>]) {
        for server in all {
            server.set_in_farm(self.servers.iter().any(|s| Arc::ptr_eq(s, server)));
        }
    }

    /// The servers that may be used.
    pub(crate) fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// Picks a server.
    pub(crate) fn pick(&self, input: &Input<'_>, shared: &Shared<'_>) -> Pick {
        if self.servers.is_empty() {
            return Pick::NoServer;
        }
        // Avoiding the only server would leave nothing.
        let avoid = input.avoid.filter(|_| self.servers.len() > 1);
        match &self.method {
            Method::Schedule(order) => self.rotate(order.len(), |i| order[i], avoid, shared),
            Method::LeastConn => self.least_loaded(avoid, shared),
            Method::First => self.first(avoid, shared),
            Method::Map { input: how, table } => match how.hash(input) {
                Some(hash) => self.mapped(table, hash, avoid),
                None => self.rotate(table.len(), |i| table[i], avoid, shared),
            },
            Method::Ring { input: how, ring } => match how.hash(input) {
                Some(hash) => {
                    let at = ring.nearest(hash);
                    Pick::Bound(self.servers[ring.walk(at, |s| !self.avoided(s, avoid))].clone())
                }
                None => self.rotate(ring.len(), |i| ring.server_at(i), avoid, shared),
            },
            Method::Random { draws, ring } => self.random(*draws, ring, input.draw, avoid, shared),
        }
    }

    fn avoided(&self, index: u32, avoid: Option<&Arc<Server>>) -> bool {
        avoid.is_some_and(|a| Arc::ptr_eq(a, &self.servers[index as usize]))
    }

    /// Next in a cyclic order that is not full. Every step advances the shared position, so that
    /// what is skipped has had its turn and the others keep their shares.
    fn rotate(
        &self,
        len: usize,
        at: impl Fn(usize) -> u32,
        avoid: Option<&Arc<Server>>,
        shared: &Shared<'_>,
    ) -> Pick {
        for step in 0..2 * len {
            let index = at((shared.position.fetch_add(1, Relaxed) % len as u64) as usize);
            let server = &self.servers[index as usize];
            if !self.avoided(index, avoid) && shared.claim(server) {
                return Pick::Claimed(server.clone());
            }
            // Looked at once the quick way failed, so that a full farm costs one pass, not a cycle.
            let others = || self.servers.iter().filter(|s| avoid.is_none_or(|a| !Arc::ptr_eq(a, s)));
            if step == 0 && !others().any(|s| shared.has_room(s)) {
                break;
            }
        }
        // Only the avoided one is free: better it than the queue.
        match avoid {
            Some(server) if shared.claim(server) => Pick::Claimed(server.clone()),
            _ => Pick::Full,
        }
    }

    /// Lowest load per weight; among equals the one not used for longest.
    fn least_loaded(&self, avoid: Option<&Arc<Server>>, shared: &Shared<'_>) -> Pick {
        loop {
            let mut best: Option<(u64, u64, u32, &Arc<Server>)> = None;
            for server in &self.servers {
                if avoid.is_some_and(|a| Arc::ptr_eq(a, server)) {
                    continue;
                }
                let served = server.served();
                let inflight = served + server.queued();
                if shared
                    .limit(server)
                    .is_some_and(|limit| inflight >= limit.saturating_add(server.maxqueue()))
                {
                    continue;
                }
                let weight = u64::from(server.effective_weight().max(1));
                let load = if inflight == 0 { 0 } else { u64::from(inflight + 1) * 4096 / weight };
                let used = server.last_used.load(Relaxed);
                if best.is_none_or(|(l, u, ..)| (load, used) < (l, u)) {
                    best = Some((load, used, served, server));
                }
            }
            let Some((_, _, served, server)) = best else {
                return match avoid {
                    Some(server) if shared.claim(server) => Pick::Claimed(server.clone()),
                    _ => Pick::Full,
                };
            };
            if shared.limit(server).is_some_and(|limit| served >= limit) {
                return Pick::Bound(server.clone());
            }
            // Taken since we looked: look again, or two workers would pile on one idle server.
            if server.claim_from(served) {
                let stamp = shared.position.fetch_add(1, Relaxed) + 1;
                server.last_used.store(stamp, Relaxed);
                return Pick::Claimed(server.clone());
            }
        }
    }

    fn first(&self, avoid: Option<&Arc<Server>>, shared: &Shared<'_>) -> Pick {
        let found = self
            .servers
            .iter()
            .find(|s| !avoid.is_some_and(|a| Arc::ptr_eq(a, s)) && shared.claim(s))
            .or_else(|| avoid.filter(|s| shared.claim(s)));
        found.map_or(Pick::Full, |s| Pick::Claimed(s.clone()))
    }

    fn mapped(&self, table: &[u32], hash: u32, avoid: Option<&Arc<Server>>) -> Pick {
        let start = hash as usize % table.len();
        let index = (0..table.len())
            .map(|step| table[(start + step) % table.len()])
            .find(|&s| !self.avoided(s, avoid))
            .unwrap_or(table[start]);
        Pick::Bound(self.servers[index as usize].clone())
    }

    /// The less loaded of several draws. A full winner means the queue: no other is tried.
    fn random(
        &self,
        draws: u32,
        ring: &Ring,
        draw: u64,
        avoid: Option<&Arc<Server>>,
        shared: &Shared<'_>,
    ) -> Pick {
        let mut state = draw;
        let mut best: Option<&Arc<Server>> = None;
        for _ in 0..draws.max(1) {
            let at = ring.nearest(split_mix(&mut state) as u32);
            let server = &self.servers[ring.walk(at, |s| !self.avoided(s, avoid))];
            best = Some(match best {
                Some(held) if less_loaded(held, server) => held,
                _ => server,
            });
        }
        match best {
            Some(server) if shared.claim(server) => Pick::Claimed(server.clone()),
            _ => Pick::Full,
        }
    }
}

impl Method {
    fn new(proxy: &Proxy, servers: &mut [Arc<Server>]) -> Method {
        let live: Vec<u32> = servers.iter().map(|s| s.effective_weight()).collect();
        let fixed: Vec<u32> = servers.iter().map(|s| s.initial_weight().max(1)).collect();
        match &proxy.balance {
            Some(Balance::RoundRobin) => Method::Schedule(schedule::smooth(&live)),
            Some(Balance::StaticRr) => Method::Schedule(map::table(&fixed)),
            Some(Balance::LeastConn) => Method::LeastConn,
            Some(Balance::First) => {
                servers.sort_by_key(|s| s.id());
                Method::First
            }
            Some(Balance::Random(draws)) => Method::Random { draws: *draws, ring: Ring::new(servers, &live) },
            None => Method::Random { draws: 2, ring: Ring::new(servers, &live) },
            Some(balance) => {
                let input = HashInput { source: matches!(balance, Balance::Source), hash: proxy.hash_type };
                match proxy.hash_type.method {
                    HashMethod::MapBased => Method::Map { input, table: map::table(&fixed) },
                    HashMethod::Consistent => Method::Ring { input, ring: Ring::new(servers, &live) },
                }
            }
        }
    }
}

/// Whether `a` carries less per weight than `b`, or as much.
fn less_loaded(a: &Server, b: &Server) -> bool {
    u64::from(a.served()) * u64::from(b.weight()) <= u64::from(b.served()) * u64::from(a.weight())
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
