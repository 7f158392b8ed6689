//! `vip-lease` is changed on all nodes, one after the other, and back: meanwhile nodes grant each other leases
//! of different terms. There are never two owners, and at the end there is one.

use std::sync::PoisonError;
use std::time::Duration;

use cluster_tests::lab::{Rig, Spec, possible};
use cluster_tests::probe::overlaps;
use nix::sys::signal::Signal;

use super::TURN;

const LIMIT: Duration = Duration::from_secs(120);

/// In ways that hurt: the holder last, first, and killed in place of stopped.
const STEPS: [(&str, Order, Signal); 4] = [
    ("200ms", Order::HolderLast, Signal::SIGTERM),
    ("1s", Order::HolderFirst, Signal::SIGTERM),
    ("350ms", Order::HolderLast, Signal::SIGKILL),
    ("2s", Order::HolderFirst, Signal::SIGKILL),
];

#[derive(Clone, Copy)]
enum Order {
    HolderFirst,
    HolderLast,
}

#[test]
fn a_change_of_the_lease_node_by_node_never_makes_two_owners() {
    if let Err(why) = possible() {
        eprintln!("not run: {why}");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rig = Rig::phalanx(&Spec { cluster: "    vip-lease 350ms".into(), ..Spec::default() }).unwrap();
    rig.all_fit(LIMIT).unwrap();
    let config = rig.dir().join("phalanx.cfg");
    let mut term = "350ms";
    for (next, order, signal) in STEPS {
        let holder = rig.settle(Duration::from_millis(300), LIMIT).unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let changed = text.replace(&format!("vip-lease {term}"), &format!("vip-lease {next}"));
        assert_ne!(text, changed);
        std::fs::write(&config, changed).unwrap();
        let nodes = rig.stations.len();
        let first = match order {
            Order::HolderFirst => holder,
            Order::HolderLast => holder + 1,
        };
        for node in (0..nodes).map(|i| (first + i) % nodes) {
            rig.stations[node].signal(signal, true, false);
            rig.stations[node].await_end(LIMIT);
            rig.stations[node].start().unwrap();
            // Long enough for leases to be asked for in between, too short to agree on everything.
            std::thread::sleep(Duration::from_millis(700));
        }
        rig.all_fit(LIMIT).unwrap_or_else(|why| panic!("{term} to {next}: {why}\n{}", rig.logs(40)));
        println!(
            "{term} to {next}: node {} holds it",
            rig.settle(Duration::from_millis(300), LIMIT).unwrap() + 1
        );
        term = next;
    }
    let (held, two) = (rig.held(), overlaps(&rig.held()));
    let spans: usize = held.iter().map(Vec::len).sum();
    println!("{spans} spans of ownership in {:?}, two owners: {two:?}", rig.now());
    assert!(spans >= STEPS.len(), "{held:?}");
    assert!(two.is_empty(), "{two:?}\n{}", rig.logs(60));
}
