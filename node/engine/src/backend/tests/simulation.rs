//! Random histories of a backend against what must always hold. A failure prints its seed;
//! `PHALANX_SEED` replays one.

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

struct World {
    backend: Arc<Backend>,
    slots: Vec<Slot>,
    /// In the order they came.
    queue: VecDeque<Waiting>,
    now: u64,
}

impl World {
    fn new(rng: &mut SmallRng) -> World {
        let balances = [
            Balance::RoundRobin,
            Balance::StaticRr,
            Balance::LeastConn,
            Balance::First,
            Balance::Source,
            Balance::Random(2),
        ];
        let count = rng.random_range(1..6);
        let options = (0..count)
            .map(|_| ServerOptions {
                weight: rng.random_range(1..4),
                maxconn: rng.random_range(1..4),
                maxqueue: rng.random_range(0..3),
                backup: rng.random_bool(0.2),
                check: true,
                ..ServerOptions::default()
            })
            .collect::<Vec<_>>();
        let mut section = section(balances[rng.random_range(0..balances.len())].clone(), servers(&options));
        section.allbackups = rng.random_bool(0.5);
        section.redispatch = rng.random_bool(0.5).then_some(-1);
        section.hash_type.method = HashMethod::Consistent;
        World { backend: backend(section), slots: Vec::new(), queue: VecDeque::new(), now: 0 }
    }

    fn step(&mut self, rng: &mut SmallRng) {
        self.now += rng.random_range(0..500);
        let now = at(self.now);
        let servers = self.backend.servers().clone();
        let server = &servers[rng.random_range(0..servers.len())];
        match rng.random_range(0..20) {
            0..8 => self.arrive(rng, server),
            8..13 if !self.slots.is_empty() => {
                drop(self.slots.swap_remove(rng.random_range(0..self.slots.len())));
            }
            13 if !self.queue.is_empty() => {
                self.queue.remove(rng.random_range(0..self.queue.len()));
            }
            14 => {
                let change = [AdminChange::Ready, AdminChange::Drain, AdminChange::Maint];
                let _ = self.backend.set_admin(server, change[rng.random_range(0..3)], now);
            }
            15 | 16 => {
                let report = if rng.random_bool(0.6) { passed() } else { failed() };
                let _ = self.backend.check_result(server, report, now);
            }
            17 => {
                let _ = self.backend.set_weight(server, rng.random_range(0..5), now);
            }
            18 => self.backend.set_maxconn(server, rng.random_range(1..5)),
            _ => {
                let change = [HealthChange::Up, HealthChange::Stopping, HealthChange::Down];
                let _ = self.backend.set_health(server, change[rng.random_range(0..3)], now);
            }
        }
        self.collect();
        self.check();
    }

    fn arrive(&mut self, rng: &mut SmallRng, server: &Arc<Server>) {
        let directed = rng.random_bool(0.3).then_some(server);
        let avoid = rng.random_bool(0.1).then_some(server);
        let src = IpAddr::V4(Ipv4Addr::from(rng.random::<u32>()));
        let ask = Ask { src, directed, avoid, draw: rng.random(), ..ask() };
        match self.backend.choose(&ask) {
            Choice::Slot(slot) => self.slots.push(slot),
            Choice::Wait(waiting) => self.queue.push_back(waiting),
            Choice::NoServer => {
                assert!(self.backend.farm().servers().is_empty(), "refused with servers in use");
            }
        }
    }

    /// Takes what was granted: within a queue, nobody before who came earlier.
    fn collect(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let mut passed_over: Vec<Option<u32>> = Vec::new();
        for mut waiting in queue {
            let which = waiting.server().map(|s| s.id());
            match poll(&mut waiting) {
                Poll::Ready(Grant::Slot(slot)) => {
                    assert!(!passed_over.contains(&which), "served before who came earlier");
                    self.slots.push(slot);
                }
                Poll::Ready(Grant::ChooseAgain) => {}
                Poll::Pending => {
                    passed_over.push(which);
                    self.queue.push_back(waiting);
                }
            }
        }
    }

    fn check(&self) {
        self.backend.check_queue_invariants();
        let farm = self.backend.farm();
        for server in self.backend.servers().iter() {
            let on_it = self.slots.iter().filter(|s| Arc::ptr_eq(s.server(), server)).count();
            assert_eq!(server.served() as usize, on_it, "{}", server.name());
            assert_eq!(server.in_farm(), farm.servers().iter().any(|s| Arc::ptr_eq(s, server)));
            let room = self.backend.limit(server).is_none_or(|limit| server.served() < limit);
            assert!(!(room && server.is_up() && server.queued() > 0), "{} idles", server.name());
            assert!(!(room && server.in_farm() && self.backend.queued() > 0), "{} idles", server.name());
        }
        let usable: Vec<_> = self.backend.servers().iter().filter(|s| s.usable()).cloned().collect();
        let actives = usable.iter().filter(|s| !s.is_backup()).count() as u32;
        assert_eq!(self.backend.usable_servers(), (actives, usable.len() as u32 - actives));
        if actives > 0 {
            assert!(farm.servers().iter().all(|s| !s.is_backup()), "a backup serves beside actives");
        }
        assert_eq!(self.backend.is_up(), !farm.servers().is_empty());
    }
}

#[test]
fn random_histories_keep_the_invariants() {
    let seeds = match std::env::var("PHALANX_SEED").ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..256,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut world = World::new(&mut rng);
            for _ in 0..120 {
                world.step(&mut rng);
            }
            // In the end everybody leaves, and nothing is left behind.
            world.queue.clear();
            world.slots.clear();
            world.check();
            assert!(world.backend.servers().iter().all(|s| s.served() == 0 && s.queued() == 0));
        });
        assert!(outcome.is_ok(), "PHALANX_SEED={seed} replays this");
    }
}
