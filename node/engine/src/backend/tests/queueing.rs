//! Who waits where, and who is served next.

use std::sync::atomic::AtomicU32;
use std::task::Wake;
use std::thread::{self, Thread};
use std::time::Instant;

use super::*;

fn limited(maxconn: &[u32]) -> Vec<Arc<phalanx_config::model::Server>> {
    let options = |&maxconn: &u32| ServerOptions { maxconn, check: true, ..ServerOptions::default() };
    servers(&maxconn.iter().map(options).collect::<Vec<_>>())
}

fn granted(waiting: &mut Waiting) -> Slot {
    match poll(waiting) {
        Poll::Ready(Grant::Slot(slot)) => slot,
        other => panic!("not granted: {other:?}"),
    }
}

#[test]
fn the_backend_queue_is_first_come_first_served() {
    let backend = backend(section(Balance::LeastConn, limited(&[1, 1])));
    let (a, b) = (slot(&backend, &ask()), slot(&backend, &ask()));
    let (mut first, mut second) = (waiting(&backend, &ask()), waiting(&backend, &ask()));
    assert_eq!((backend.queued(), backend.waiting(), backend.queued_max()), (2, 2, 2));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    drop(b);
    let b = granted(&mut first);
    assert_eq!((&**b.server().name(), b.ahead().backend), ("s2", 1));
    assert!(poll(&mut second).is_pending());
    drop(a);
    let a = granted(&mut second);
    assert_eq!((&**a.server().name(), a.ahead().backend), ("s1", 2));
    assert_eq!(backend.waiting(), 0);
    backend.check_queue_invariants();
}

#[test]
fn nobody_jumps_the_queue() {
    let backend = backend(section(Balance::RoundRobin, limited(&[1])));
    let held = slot(&backend, &ask());
    let mut first = waiting(&backend, &ask());
    drop(held);
    // Granted to the first, though it has not looked yet.
    let mut second = waiting(&backend, &ask());
    drop(granted(&mut first));
    drop(granted(&mut second));
}

#[test]
fn older_of_the_two_heads_is_served() {
    let backend = backend(section(Balance::RoundRobin, limited(&[1])));
    let s1 = backend.server("s1").unwrap();
    let held = slot(&backend, &ask());
    let mut common = waiting(&backend, &ask());
    let mut own = waiting(&backend, &Ask { directed: Some(&s1), ..ask() });
    let mut late = waiting(&backend, &ask());
    assert_eq!((s1.queued(), backend.queued(), backend.waiting()), (1, 2, 3));
    drop(held);
    let held = granted(&mut common);
    assert!(poll(&mut own).is_pending());
    drop(held);
    let held = granted(&mut own);
    assert_eq!(held.ahead(), Ahead { server: 1, backend: 0 });
    drop(held);
    assert_eq!(granted(&mut late).ahead(), Ahead { server: 0, backend: 2 });
}

#[test]
fn leaving_the_queue_passes_on_a_place_granted_meanwhile() {
    let backend = backend(section(Balance::RoundRobin, limited(&[1])));
    let held = slot(&backend, &ask());
    let (first, mut second) = (waiting(&backend, &ask()), waiting(&backend, &ask()));
    drop(held);
    drop(first);
    drop(granted(&mut second));
    assert_eq!(backend.server("s1").unwrap().served(), 0);
}

#[test]
fn maxqueue_bounds_a_servers_queue() {
    let mut lines = limited(&[1, 1]);
    Arc::make_mut(&mut lines[0]).options.maxqueue = 1;
    let backend = backend(section(Balance::RoundRobin, lines));
    let s1 = backend.server("s1").unwrap();
    let to_s1 = Ask { directed: Some(&s1), ..ask() };
    let (_held, _queued) = (slot(&backend, &to_s1), waiting(&backend, &to_s1));
    // Persistence is given up for the free server.
    assert_eq!(&**slot(&backend, &to_s1).server().name(), "s2");
}

#[test]
fn a_hash_binds_to_its_server_even_if_full() {
    let mut section = section(Balance::Source, limited(&[1, 1]));
    section.hash_type.method = HashMethod::Consistent;
    let backend = backend(section);
    let held = slot(&backend, &ask());
    let waiting = waiting(&backend, &ask());
    assert_eq!(waiting.server().map(|s| s.id()), Some(held.server().id()));
}

#[test]
fn minconn_raises_the_limit_with_the_load() {
    let mut lines = limited(&[10]);
    Arc::make_mut(&mut lines[0]).options.minconn = 2;
    let backend = backend(section(Balance::RoundRobin, lines));
    let s1 = backend.server("s1").unwrap();
    let held: Vec<Slot> = (0..2).map(|_| slot(&backend, &ask())).collect();
    let waiting = waiting(&backend, &ask());
    drop(waiting);
    let streams: Vec<Stream> = (0..50).map(|_| backend.enter()).collect();
    assert_eq!(backend.limit(&s1), Some(5));
    let more: Vec<Slot> = (0..3).map(|_| slot(&backend, &ask())).collect();
    assert_eq!((s1.served(), backend.conns(), backend.conns_max()), (5, 50, 50));
    drop((held, more, streams));
    assert_eq!(backend.conns(), 0);
}

#[test]
fn maintenance_sends_away_who_waits_for_the_server() {
    let backend = backend(section(Balance::RoundRobin, limited(&[1, 0])));
    let s1 = backend.server("s1").unwrap();
    let to_s1 = Ask { directed: Some(&s1), ..ask() };
    let _held = slot(&backend, &to_s1);
    let mut queued = waiting(&backend, &to_s1);
    let effects = backend.set_admin(&s1, AdminChange::Maint, at(1));
    assert!(effects.notices[0].text.contains("1 sessions active, 1 requeued, 0 remaining in queue."));
    assert!(matches!(poll(&mut queued), Poll::Ready(Grant::ChooseAgain)));
    drop(queued);
    assert_eq!(&**slot(&backend, &to_s1).server().name(), "s2");
}

#[test]
fn a_server_down_sends_away_only_with_redispatch() {
    for (redispatch, moves) in [(None, false), (Some(-1), true)] {
        let mut section = section(Balance::RoundRobin, limited(&[1, 1]));
        section.redispatch = redispatch;
        let backend = backend(section);
        let s1 = backend.server("s1").unwrap();
        let to_s1 = Ask { directed: Some(&s1), ..ask() };
        let _held = slot(&backend, &to_s1);
        let mut queued = waiting(&backend, &to_s1);
        let _ = backend.check_result(&s1, failed(), at(1));
        assert_eq!(poll(&mut queued).is_ready(), moves);
    }
}

#[test]
fn a_server_that_comes_back_serves_the_queue() {
    let backend = backend(section(Balance::RoundRobin, limited(&[1, 1])));
    let (s1, s2) = (backend.server("s1").unwrap(), backend.server("s2").unwrap());
    let _ = backend.set_admin(&s2, AdminChange::Maint, at(0));
    let _held = slot(&backend, &ask());
    let mut queued = waiting(&backend, &ask());
    assert!(poll(&mut queued).is_pending());
    let _ = backend.set_admin(&s2, AdminChange::Ready, at(1));
    let second = granted(&mut queued);
    assert_eq!(&**second.server().name(), "s2");
    // A raised limit does as well.
    let mut queued = waiting(&backend, &ask());
    backend.set_maxconn(&s1, 2);
    assert_eq!(&**granted(&mut queued).server().name(), "s1");
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Every thread gets its place in the end, no server is ever over its limit, and whoever gives up
/// costs nobody a wake-up: a lost one shows as a deadline passed.
#[test]
fn no_wake_up_is_lost_between_threads() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 400;
    let backend = backend(section(Balance::LeastConn, limited(&[1, 2])));
    let over = AtomicU32::new(0);
    let ends = Instant::now() + Duration::from_secs(60);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (backend, over) = (&backend, &over);
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                let s1 = backend.server("s1").unwrap();
                for round in 0..ROUNDS {
                    let pick = (seed * 7919 + round * 104_729) % 10;
                    let directed = (pick < 3).then_some(&s1);
                    let ask = Ask { directed, worker: Worker(seed % 4), ..ask() };
                    let slot = match backend.choose(&ask) {
                        Choice::Slot(slot) => slot,
                        Choice::Wait(mut waiting) => loop {
                            match waiting.poll(&mut Context::from_waker(&waker)) {
                                Poll::Ready(Grant::Slot(slot)) => break slot,
                                Poll::Ready(Grant::ChooseAgain) => panic!("nothing changed"),
                                // Some give up, perhaps just as they are granted a place.
                                Poll::Pending if pick == 9 => {
                                    drop(waiting);
                                    match backend.choose(&ask) {
                                        Choice::Slot(slot) => break slot,
                                        Choice::Wait(again) => waiting = again,
                                        Choice::NoServer => panic!("servers are up"),
                                    }
                                }
                                Poll::Pending => {}
                            }
                            assert!(Instant::now() < ends, "a wake-up was lost: {backend:?}");
                            if pick != 9 {
                                thread::park_timeout(ends.saturating_duration_since(Instant::now()));
                            }
                        },
                        Choice::NoServer => panic!("servers are up"),
                    };
                    let server = slot.server();
                    if server.served() > server.maxconn() {
                        over.fetch_add(1, Relaxed);
                    }
                    if round % 16 == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(over.load(Relaxed), 0);
    assert_eq!(backend.waiting(), 0);
    backend.check_queue_invariants();
    assert!(backend.servers().iter().all(|s| s.served() == 0));
}

/// Servers go and come back, weights and limits move, while threads choose, wait and give up: nobody
/// is left waiting once all servers are back, and every place is given back.
#[test]
fn changes_of_servers_leave_nobody_waiting() {
    const THREADS: usize = 4;
    let backend = backend(section(Balance::RoundRobin, limited(&[1, 2, 1])));
    let ends = Instant::now() + Duration::from_secs(60);
    let running = AtomicU32::new(THREADS as u32);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (backend, running) = (&backend, &running);
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                for round in 0..400 {
                    let servers = backend.servers().clone();
                    let server = &servers[(seed + round) % servers.len()];
                    let directed = (round % 3 == 0).then_some(server);
                    let mut choice = backend.choose(&Ask { directed, worker: Worker(seed), ..ask() });
                    loop {
                        choice = match choice {
                            Choice::Slot(_) => break,
                            Choice::NoServer => backend.choose(&ask()),
                            Choice::Wait(mut waiting) => {
                                match waiting.poll(&mut Context::from_waker(&waker)) {
                                    Poll::Ready(Grant::Slot(_)) => break,
                                    Poll::Ready(Grant::ChooseAgain) => backend.choose(&ask()),
                                    Poll::Pending => {
                                        let left = ends.saturating_duration_since(Instant::now());
                                        thread::park_timeout(left);
                                        Choice::Wait(waiting)
                                    }
                                }
                            }
                        };
                        assert!(Instant::now() < ends, "left waiting: {backend:?}");
                    }
                }
                running.fetch_sub(1, Relaxed);
            });
        }
        let changes = [AdminChange::Maint, AdminChange::Drain, AdminChange::Ready];
        let mut round = 0;
        while running.load(Relaxed) > 0 && Instant::now() < ends {
            for server in backend.servers().iter() {
                round += 1;
                let _ = backend.set_admin(server, changes[round % 3], at(round as u64));
                let _ = backend.set_weight(server, 1 + round as u32 % 3, at(round as u64));
                backend.set_maxconn(server, 1 + round as u32 % 2);
            }
            for server in backend.servers().iter() {
                let _ = backend.set_admin(server, AdminChange::Ready, at(round as u64));
            }
            thread::yield_now();
        }
    });
    backend.check_queue_invariants();
    assert_eq!(backend.waiting(), 0);
    assert!(backend.servers().iter().all(|s| s.served() == 0 && s.queued() == 0));
}
