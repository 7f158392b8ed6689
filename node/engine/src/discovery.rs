//! Servers that are found at run time: what was found, and which server of a backend stands for
//! which of it.
//!
//! [`assign`] decides; the registry calls it when a list was agreed on, so that all nodes see the
//! same address in the same server. [`message`], [`lookup`] and [`watch`] are what a reader decides
//! about DNS and Consul; the program does the input and output. Everything here is pure: time and
//! randomness are arguments, and no order of a hash map shows.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use phalanx_config::model::{self, Discovery};
use serde::{Deserialize, Serialize};

use crate::registry::Names;

pub mod lookup;
pub mod message;
#[cfg(test)]
mod simulation;
pub mod watch;

/// Something that may be a server: an address of a name, a target of an SRV label, an instance of a
/// service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    /// Target of an SRV record, with whose port it is one and the same whatever its address; empty
    /// for what is known by its address.
    pub host: String,
    /// Its addresses, sorted; a host that does not resolve has none.
    pub ips: Vec<IpAddr>,
    /// Its port; 0 = that of the server line.
    pub port: u16,
    /// Its weight, 0..=256; `None` = that of the server line.
    pub weight: Option<u32>,
}

impl Instance {
    /// One that is known by its address.
    pub fn at(ip: IpAddr, port: u16, weight: Option<u32>) -> Instance {
        Instance { host: String::new(), ips: vec![ip], port, weight }
    }

    /// What makes it the same one in the next answer.
    pub fn id(&self) -> Id {
        let ip = if self.host.is_empty() { self.ips.first().copied() } else { None };
        Id { host: self.host.clone(), ip, port: self.port }
    }
}

/// Identity of an [`Instance`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    host: String,
    ip: Option<IpAddr>,
    port: u16,
}

/// A server that takes what is found, with what its line says about the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Name of the server.
    pub name: String,
    /// `resolve-prefer ipv4`.
    pub prefer_v4: bool,
    /// `resolve-net`: address and length of the prefix.
    pub nets: Vec<(IpAddr, u8)>,
    /// `resolve-opts allow-dup-ip`.
    pub allow_dup: bool,
    /// The address that it starts with: kept if it is among those found.
    pub initial: Option<IpAddr>,
}

impl Slot {
    /// The slot of a server line.
    pub fn of(server: &model::Server) -> Slot {
        let o = &server.options;
        Slot {
            name: server.name.clone(),
            prefer_v4: o.resolve_prefer == model::Family::V4,
            nets: o.resolve_net.iter().map(|n| (n.addr, n.prefix)).collect(),
            allow_dup: o.allow_dup_ip,
            initial: Some(server.addr.ip()).filter(|ip| !ip.is_unspecified()),
        }
    }

    /// How much this address is wanted; the lowest is best.
    fn rank(&self, ip: IpAddr) -> (bool, bool) {
        let near = self.nets.iter().any(|(net, prefix)| contains(*net, *prefix, ip));
        (!near, ip.is_ipv4() != self.prefer_v4)
    }

    fn best(&self, ips: &[IpAddr]) -> Option<IpAddr> {
        ips.iter().copied().min_by_key(|ip| self.rank(*ip))
    }
}

/// The servers of one backend that a source fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Name of the backend.
    pub backend: String,
    /// Its servers, in order.
    pub slots: Vec<Slot>,
}

/// What a server stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// As in [`Instance::host`].
    pub host: String,
    /// Its address; `None` while its host does not resolve.
    pub ip: Option<IpAddr>,
    /// As in [`Instance::port`].
    pub port: u16,
    /// As in [`Instance::weight`].
    pub weight: Option<u32>,
}

impl Place {
    fn id(&self) -> Id {
        let ip = if self.host.is_empty() { self.ip } else { None };
        Id { host: self.host.clone(), ip, port: self.port }
    }
}

/// Where the address of a server comes from at run time: as its line says, or by the name that a
/// command gave it.
pub fn source<'a>(line: &'a model::Server, backend: &str, names: &Names) -> Option<Cow<'a, Discovery>> {
    let source = line.discovered.as_deref()?;
    let Discovery::Dns { resolvers, prefer, .. } = source else { return Some(Cow::Borrowed(source)) };
    match names.of(backend, &line.name, &line.host) {
        Some(name) if !source.is_srv() => Some(Cow::Owned(Discovery::Dns {
            resolvers: resolvers.clone(),
            name: name.trim_end_matches('.').to_ascii_lowercase(),
            prefer: *prefer,
        })),
        _ => Some(Cow::Borrowed(source)),
    }
}

/// The servers of the configuration that each source fills, by the source's name.
pub fn users(config: &model::Config, names: &Names) -> BTreeMap<String, (Discovery, Vec<User>)> {
    let mut sources: BTreeMap<String, (Discovery, Vec<User>)> = BTreeMap::new();
    for proxy in config.proxies.iter().filter(|p| p.kind.is_backend() && !p.disabled) {
        for server in &proxy.servers {
            let Some(source) = source(server, &proxy.name, names) else { continue };
            let (_, users) =
                sources.entry(source.to_string()).or_insert_with(|| (source.into_owned(), Vec::new()));
            match users.last_mut().filter(|user| user.backend == proxy.name) {
                Some(user) => user.slots.push(Slot::of(server)),
                None => users.push(User { backend: proxy.name.clone(), slots: vec![Slot::of(server)] }),
            }
        }
    }
    sources
}

/// Which server stands for which instance: an instance keeps its server, a new one takes the first
/// free server, and no two servers share one unless they are allowed to. `before` is what came out
/// last.
pub fn assign(
    slots: &[Slot],
    instances: &[Instance],
    before: &BTreeMap<String, Place>,
) -> BTreeMap<String, Place> {
    let by_id: BTreeMap<Id, &Instance> = instances.iter().map(|i| (i.id(), i)).collect();
    let mut taken: BTreeSet<Id> = BTreeSet::new();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for slot in slots {
        let kept = match before.get(&slot.name) {
            Some(place) => by_id.get(&place.id()).map(|i| (*i, place.ip)),
            None => initial(slot, instances).map(|i| (i, slot.initial)),
        };
        let Some((instance, ip)) = kept else { continue };
        if taken.insert(instance.id()) || slot.allow_dup {
            places.insert(slot.name.clone(), settle(slot, instance, ip));
        }
    }
    // The rest, best first, for each kind of wishes: mostly one for all slots.
    let mut queues: BTreeMap<Wishes<'_>, std::vec::IntoIter<&Instance>> = BTreeMap::new();
    for slot in slots {
        if places.contains_key(&slot.name) {
            continue;
        }
        let queue = queues.entry((slot.prefer_v4, &slot.nets)).or_insert_with(|| {
            let mut order: Vec<&Instance> = instances.iter().collect();
            // Stable: of equals the first.
            order.sort_by_key(|i| slot.best(&i.ips).map_or((true, true), |ip| slot.rank(ip)));
            order.into_iter()
        });
        let next = queue.by_ref().find(|i| taken.insert(i.id()));
        let shared = || {
            let rank = |i: &&Instance| slot.best(&i.ips).map_or((true, true), |ip| slot.rank(ip));
            instances.iter().filter(|_| slot.allow_dup).min_by_key(rank)
        };
        if let Some(instance) = next.or_else(shared) {
            places.insert(slot.name.clone(), settle(slot, instance, None));
        }
    }
    places
}

/// What a slot wishes of an address: family and networks.
type Wishes<'a> = (bool, &'a [(IpAddr, u8)]);

/// The instance that a server started with.
fn initial<'a>(slot: &Slot, instances: &'a [Instance]) -> Option<&'a Instance> {
    let ip = slot.initial?;
    instances.iter().find(|i| i.host.is_empty() && i.port == 0 && i.ips.contains(&ip))
}

/// The address of a server that stands for `instance`: the one that it has, if that is still one.
fn settle(slot: &Slot, instance: &Instance, has: Option<IpAddr>) -> Place {
    let ip = has.filter(|ip| instance.ips.contains(ip)).or_else(|| slot.best(&instance.ips));
    Place { host: instance.host.clone(), ip, port: instance.port, weight: instance.weight }
}

/// Whether the network holds the address.
fn contains(net: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            u32::from(net) & mask == u32::from(ip) & mask
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            u128::from(net) & mask == u128::from(ip) & mask
        }
        _ => false,
    }
}

/// Sorted and without repetitions; `keep_order` for a source whose order means something.
pub fn canonical(mut instances: Vec<Instance>, keep_order: bool) -> Vec<Instance> {
    for instance in &mut instances {
        instance.ips.sort_unstable();
        instance.ips.dedup();
    }
    if !keep_order {
        instances.sort();
    }
    let mut seen = BTreeSet::new();
    instances.retain(|i| seen.insert(i.id()));
    instances
}

/// Whether two lists have the same instances, in whatever order.
pub fn same(a: &[Instance], b: &[Instance]) -> bool {
    let sorted = |list: &[Instance]| -> BTreeSet<Instance> { list.iter().cloned().collect() };
    a.len() == b.len() && sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn slots(names: &str) -> Vec<Slot> {
        let slot = |name: &str| Slot {
            name: name.to_owned(),
            prefer_v4: false,
            nets: Vec::new(),
            allow_dup: false,
            initial: None,
        };
        names.split_whitespace().map(slot).collect()
    }

    fn list(ips: &str) -> Vec<Instance> {
        ips.split_whitespace().map(|text| Instance::at(ip(text), 0, None)).collect()
    }

    fn shown(places: &BTreeMap<String, Place>) -> String {
        let one = |(name, place): (&String, &Place)| {
            format!("{name}={}", place.ip.map_or("-".to_owned(), |ip| ip.to_string()))
        };
        places.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_address_keeps_its_server_and_a_gone_one_frees_it() {
        let slots = slots("w1 w2 w3");
        let mut places = BTreeMap::new();
        for (answer, expected) in [
            ("10.0.0.1 10.0.0.2", "w1=10.0.0.1 w2=10.0.0.2"),
            ("10.0.0.2 10.0.0.3", "w1=10.0.0.3 w2=10.0.0.2"),
            ("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", "w1=10.0.0.3 w2=10.0.0.2 w3=10.0.0.1"),
            // The fourth moves up when there is room.
            ("10.0.0.1 10.0.0.2 10.0.0.4", "w1=10.0.0.4 w2=10.0.0.2 w3=10.0.0.1"),
            ("", ""),
            ("10.0.0.9", "w1=10.0.0.9"),
        ] {
            places = assign(&slots, &list(answer), &places);
            assert_eq!(shown(&places), expected, "{answer}");
        }
    }

    #[test]
    fn duplicates_only_where_allowed() {
        let mut two = slots("x y");
        let one = list("10.0.0.1");
        assert_eq!(shown(&assign(&two, &one, &BTreeMap::new())), "x=10.0.0.1");
        two[1].allow_dup = true;
        assert_eq!(shown(&assign(&two, &one, &BTreeMap::new())), "x=10.0.0.1 y=10.0.0.1");
        let both = assign(&two, &list("10.0.0.1 10.0.0.2"), &BTreeMap::new());
        assert_eq!(shown(&both), "x=10.0.0.1 y=10.0.0.2", "different ones as long as there are");
    }

    #[test]
    fn networks_and_families_are_preferred_not_required() {
        let mut one = slots("x");
        let mixed = list("10.0.0.1 192.168.1.1 2001:db8::1");
        assert_eq!(shown(&assign(&one, &mixed, &BTreeMap::new())), "x=2001:db8::1");
        one[0].prefer_v4 = true;
        assert_eq!(shown(&assign(&one, &mixed, &BTreeMap::new())), "x=10.0.0.1");
        one[0].nets = vec![(ip("192.168.0.0"), 16)];
        assert_eq!(shown(&assign(&one, &mixed, &BTreeMap::new())), "x=192.168.1.1");
        assert_eq!(shown(&assign(&one, &list("10.0.0.1"), &BTreeMap::new())), "x=10.0.0.1");
        one[0].initial = Some(ip("10.0.0.1"));
        assert_eq!(shown(&assign(&one, &mixed, &BTreeMap::new())), "x=10.0.0.1", "as it started");
    }

    #[test]
    fn a_target_is_the_same_at_another_address() {
        let slots = slots("s1 s2");
        let target = |host: &str, ips: &[&str], port| Instance {
            host: host.to_owned(),
            ips: ips.iter().map(|text| ip(text)).collect(),
            port,
            weight: Some(2),
        };
        let first = [target("a", &["10.0.0.1", "10.0.0.2"], 80), target("b", &[], 80)];
        let places = assign(&slots, &first, &BTreeMap::new());
        assert_eq!(shown(&places), "s1=10.0.0.1 s2=-");
        let second = [target("a", &["10.0.0.2"], 80), target("b", &["10.0.0.7"], 80)];
        let places = assign(&slots, &second, &places);
        assert_eq!(shown(&places), "s1=10.0.0.2 s2=10.0.0.7");
        let third = [target("a", &["10.0.0.2"], 81), target("b", &["10.0.0.7"], 80)];
        let places = assign(&slots, &third, &places);
        assert_eq!(places["s1"].port, 81, "another port is another target");
        assert_eq!(places["s2"].ip, Some(ip("10.0.0.7")));
    }

    #[test]
    fn lists_are_compared_as_sets() {
        let a = canonical(list("10.0.0.2 10.0.0.1 10.0.0.2"), false);
        assert_eq!(a.len(), 2);
        assert!(same(&a, &list("10.0.0.2 10.0.0.1")) && !same(&a, &list("10.0.0.2 10.0.0.3")));
        assert_eq!(canonical(list("10.0.0.2 10.0.0.1"), true), list("10.0.0.2 10.0.0.1"));
    }

    #[test]
    fn ten_thousand_servers_are_assigned_at_once() {
        let slots: Vec<Slot> = (0..10_000).flat_map(|n| slots(&format!("w{n}"))).collect();
        let ip = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let list: Vec<Instance> = (0..10_000).map(|n| Instance::at(ip(n), 0, None)).collect();
        // Were it quadratic, it would take minutes.
        let places = assign(&slots, &list, &BTreeMap::new());
        assert_eq!(places.len(), 10_000);
        assert_eq!(assign(&slots, &list, &places), places);
    }
}
