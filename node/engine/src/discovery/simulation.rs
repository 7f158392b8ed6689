//! Thousands of random histories of answers and configurations: what [`assign`](super::assign) must
//! keep to, whatever happens. A failure names the seed that replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Id, Instance, Place, Slot, assign};

const SEEDS: u64 = 300;
const STEPS: usize = 40;

#[test]
fn assignments_are_stable_full_and_the_same_everywhere() {
    for seed in 0..SEEDS {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let mut slots = slots(rng.random_range(1..8));
    for step in 0..STEPS {
        if rng.random_range(0..8) == 0 {
            slots = self::slots(rng.random_range(1..8));
        }
        let instances = answer(&mut rng);
        let next = assign(&slots, &instances, &places);
        let at = format!("seed {seed} step {step}: {instances:?}\n{places:?}\n{next:?}");
        check(&slots, &instances, &places, &next, &at);
        // A node that gets the same answer in another order has the servers it had.
        let mut shuffled = instances.clone();
        shuffled.reverse();
        assert_eq!(assign(&slots, &shuffled, &next), next, "not settled at {at}");
        places = next;
    }
}

fn slots(count: usize) -> Vec<Slot> {
    let slot = |n| Slot {
        name: format!("s{n}"),
        prefer_v4: false,
        nets: Vec::new(),
        allow_dup: false,
        initial: None,
    };
    (0..count).map(slot).collect()
}

fn answer(rng: &mut SmallRng) -> Vec<Instance> {
    let mut list = Vec::new();
    for n in 0..10u8 {
        if rng.random_range(0..2) == 0 {
            continue;
        }
        if n < 5 {
            list.push(Instance::at(IpAddr::from([10, 0, 0, n]), 0, None));
        } else {
            let ips = (0..rng.random_range(0..3)).map(|i| IpAddr::from([10, 0, n, i])).collect();
            list.push(Instance { host: format!("h{n}"), ips, port: 80, weight: Some(1) });
        }
    }
    list
}

fn check(
    slots: &[Slot],
    instances: &[Instance],
    before: &BTreeMap<String, Place>,
    after: &BTreeMap<String, Place>,
    at: &str,
) {
    let known: BTreeMap<Id, &Instance> = instances.iter().map(|i| (i.id(), i)).collect();
    let mut used = BTreeSet::new();
    for (name, place) in after {
        assert!(slots.iter().any(|s| s.name == *name), "{name} is no server: {at}");
        let instance = known.get(&place.id()).unwrap_or_else(|| panic!("{name} stands for nothing: {at}"));
        assert!(used.insert(place.id()), "{name} shares its instance: {at}");
        assert_eq!(place.ip.is_some(), !instance.ips.is_empty(), "{name}: {at}");
        assert!(place.ip.is_none_or(|ip| instance.ips.contains(&ip)), "{name}: {at}");
    }
    assert_eq!(after.len(), slots.len().min(instances.len()), "a server or an instance is idle: {at}");
    for slot in slots {
        let Some(was) = before.get(&slot.name) else { continue };
        if let Some(instance) = known.get(&was.id()) {
            let is = &after[&slot.name];
            assert_eq!(is.id(), was.id(), "{} lost what is still there: {at}", slot.name);
            if was.ip.is_some_and(|ip| instance.ips.contains(&ip)) {
                assert_eq!(is.ip, was.ip, "{} moved for nothing: {at}", slot.name);
            }
        }
    }
}
