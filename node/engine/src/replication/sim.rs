//! Three to four nodes in virtual time: streams are cut, delayed, partitioned, nodes restart with a new
//! incarnation, clocks differ. A failure names the seed; the same seed gives the same run.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use self::world::{KEYS, World};
use super::*;
use crate::stick::{Cleared, Data, Key};

fn seeds() -> std::ops::Range<u64> {
    crate::testing::seeds(1000)
}

#[test]
fn counters_are_conserved_exactly_once_through_any_trouble() {
    seeds().for_each(counters_are_conserved_exactly_once_through_any_trouble_of);
}

fn counters_are_conserved_exactly_once_through_any_trouble_of(seed: u64) {
    let mut w = World::new(seed, None);
    for _ in 0..150 {
        w.trouble(1.0);
        w.count();
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.settle();
    w.check_conserved();
}

/// Where somebody knew all before each restart, nothing at all may be lost, or counted twice by the run
/// that takes over what earlier ones had, whatever happens meanwhile; and no slot of these is left.
#[test]
fn restarts_fold_what_earlier_runs_counted_exactly_once() {
    seeds().for_each(restarts_fold_what_earlier_runs_counted_exactly_once_of);
}

fn restarts_fold_what_earlier_runs_counted_exactly_once_of(seed: u64) {
    let mut w = World::new(seed, None);
    for round in 0..4 {
        for _ in 0..25 {
            w.trouble(if round % 2 == 0 { 0.0 } else { 0.5 });
            w.count();
            let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
            w.run(ms, step);
        }
        w.settle();
        let i = w.rng.random_range(0..w.nodes.len());
        w.restart(i);
        // It is taught, asks and folds while others come and go.
        for _ in 0..20 {
            w.trouble(0.3);
            w.count();
            let (ms, step) = (w.rng.random_range(1..100), w.rng.random_range(1..20));
            w.run(ms, step);
        }
    }
    w.settle();
    // Every peer must have been asked before the last run folds.
    w.run(20_000, 50);
    w.settle();
    w.check_conserved();
    for i in 0..w.nodes.len() {
        for ((name, incarnation, key), _) in w.parts(i) {
            let of = w.nodes.iter().find(|n| n.name == name).map(|n| n.tables.incarnation());
            assert_eq!(of, Some(incarnation), "seed {seed}: {name} key {key} on n{i} is not folded");
        }
    }
}

/// Whatever comes and goes: in the end `conn_cur` is what goes on at the nodes that live and are
/// reached, on each of them. What a killed node had open is dropped, and no more than that.
#[test]
fn conn_cur_is_what_goes_on_at_the_nodes_that_live() {
    seeds().for_each(conn_cur_is_what_goes_on_at_the_nodes_that_live_of);
}

fn conn_cur_is_what_goes_on_at_the_nodes_that_live_of(seed: u64) {
    let mut w = World::new(seed, None);
    for _ in 0..60 {
        w.trouble(1.0);
        w.count();
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.cut.clear();
    w.run(9_000, 50);
    let killed = w.rng.random_range(0..=w.nodes.len());
    for dead in [None, Some(killed).filter(|&k| k < w.nodes.len())] {
        for j in (0..w.nodes.len()).filter(|&j| dead.is_some_and(|d| d != j)) {
            let d = dead.unwrap_or_default();
            w.cut.insert((d.min(j), d.max(j)));
            w.drop_stream(d, j);
        }
        w.run(7_000, 50);
        for i in (0..w.nodes.len()).filter(|&i| Some(i) != dead) {
            for key in 0..KEYS {
                let living = w.nodes.iter().enumerate().filter(|(n, _)| Some(*n) != dead);
                let open = living.flat_map(|(_, n)| &n.held).filter(|(k, _)| *k == key).count();
                let read = w.table(i).value(&Key::Int(key), Data::CONN_CUR, w.nodes[i].at(w.now));
                assert_eq!(read.unwrap_or(0), open as u64, "seed {seed}: key {key} on n{i}, dead {dead:?}");
            }
        }
    }
}

/// Values that are set and cleared on any node at any time end up the same everywhere; and where all
/// knew of each other, exactly what was set plus what was counted since.
#[test]
fn set_values_converge_and_counts_add_to_them() {
    seeds().for_each(set_values_converge_and_counts_add_to_them_of);
}

fn set_values_converge_and_counts_add_to_them_of(seed: u64) {
    let mut w = World::new(seed, Some(Duration::from_secs(300)));
    for _ in 0..80 {
        w.trouble(1.0);
        w.count();
        if w.rng.random_bool(0.2) {
            let i = w.rng.random_range(0..w.nodes.len());
            let (key, n) = (Key::Int(w.rng.random_range(0..KEYS)), w.rng.random_range(0..50));
            let (t, now) = (w.table(i), w.nodes[i].at(w.now));
            match w.rng.random_range(0..4) {
                0 => _ = t.clear_key(&key, now),
                1 if w.rng.random_bool(0.2) => t.clear(now),
                _ => t.set(&key, &[(Data::HTTP_REQ_CNT, n)], now).unwrap(),
            }
        }
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.settle();
    let read = |w: &World, i: usize, key: u32| {
        let now = w.nodes[i].at(w.now);
        w.table(i).value(&Key::Int(key), Data::HTTP_REQ_CNT, now).unwrap_or(0)
    };
    for key in 0..KEYS {
        let seen: BTreeSet<_> = (0..w.nodes.len()).map(|i| read(&w, i, key)).collect();
        assert_eq!(seen.len(), 1, "seed {seed}: key {key} reads {seen:?}");
    }
    for key in 0..KEYS {
        let i = w.rng.random_range(0..w.nodes.len());
        let now = w.nodes[i].at(w.now);
        w.table(i).set(&Key::Int(key), &[(Data::HTTP_REQ_CNT, 1_000)], now).unwrap();
    }
    w.truth.clear();
    for _ in 0..20 {
        w.count();
        w.run(20, 10);
    }
    w.settle();
    for key in 0..KEYS {
        let since: u64 = w.truth.iter().filter(|(at, _)| at.2 == key).map(|(_, n)| n).sum();
        for i in 0..w.nodes.len() {
            assert_eq!(read(&w, i, key), 1_000 + since, "seed {seed}: key {key} on n{i}");
        }
    }
}

/// Where nobody restarts and everybody is reachable in the end, cursors alone must do: no digest ever
/// has to call for help.
#[test]
fn cut_streams_resume_without_a_repair() {
    seeds().for_each(cut_streams_resume_without_a_repair_of);
}

fn cut_streams_resume_without_a_repair_of(seed: u64) {
    let mut w = World::new(seed, Some(Duration::from_secs(300)));
    w.run(8_000, 100);
    for _ in 0..60 {
        let (a, b) = (w.rng.random_range(0..w.nodes.len()), w.rng.random_range(0..w.nodes.len()));
        if a != b && w.rng.random_bool(0.15) {
            w.drop_stream(a, b);
        }
        for _ in 0..w.rng.random_range(1..8) {
            w.count();
        }
        if w.rng.random_bool(0.1) {
            let (key, now) = (w.rng.random_range(0..KEYS), w.nodes[a].at(w.now));
            w.table(a).clear_key(&Key::Int(key), now);
        }
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.nodes.iter_mut().for_each(|n| n.held.clear());
    w.run(1_000, 10);
    let now = w.now;
    let digests: BTreeSet<u64> =
        w.nodes.iter().map(|n| n.tables.get("t").unwrap().digest(n.at(now))).collect();
    let differ = w.differences();
    assert_eq!(digests.len(), 1, "seed {seed}: not the same a second after the last change: {differ}");
    let repairs: u64 = w.nodes.iter().flat_map(|n| n.peers.iter().flatten()).map(|p| p.totals.repairs).sum();
    assert_eq!(repairs, 0, "seed {seed}");
}

#[test]
fn tables_converge_and_expired_entries_stay_gone() {
    seeds().for_each(tables_converge_and_expired_entries_stay_gone_of);
}

fn tables_converge_and_expired_entries_stay_gone_of(seed: u64) {
    let mut w = World::new(seed, Some(Duration::from_secs(300)));
    for _ in 0..120 {
        w.trouble(1.0);
        w.count();
        if w.rng.random_bool(0.2) {
            let i = w.rng.random_range(0..w.nodes.len());
            let (key, id) = (w.rng.random_range(0..KEYS), w.rng.random_range(1..5));
            w.table(i).set_server_id(&Key::Int(key), id, w.nodes[i].at(w.now));
        }
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.settle();
    for key in 0..KEYS {
        let ids: BTreeSet<_> = (0..w.nodes.len())
            .map(|i| w.table(i).value(&Key::Int(key), "server_id", w.nodes[i].at(w.now)))
            .collect();
        assert_eq!(ids.len(), 1, "seed {seed}: key {key} sticks to {ids:?}");
    }
    w.run(310_000, 500);
    for i in 0..w.nodes.len() {
        assert_eq!(w.table(i).used(), 0, "seed {seed}: n{i} kept what has expired");
    }
}

#[test]
fn short_lives_converge_through_trouble() {
    seeds().for_each(short_lives_converge_through_trouble_of);
}

fn short_lives_converge_through_trouble_of(seed: u64) {
    let mut w = World::new(seed, Some(Duration::from_millis(900)));
    for _ in 0..150 {
        w.trouble(1.0);
        w.count();
        let (ms, step) = (w.rng.random_range(1..200), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    w.cut.clear();
    for node in &mut w.nodes {
        node.held.clear();
    }
    w.run(2_000, 20);
    for i in 0..w.nodes.len() {
        assert_eq!(w.table(i).used(), 0, "seed {seed}: n{i} kept what has expired");
    }
}

#[test]
fn cleared_entries_do_not_come_back() {
    seeds().for_each(cleared_entries_do_not_come_back_of);
}

fn cleared_entries_do_not_come_back_of(seed: u64) {
    let mut w = World::new(seed, Some(Duration::from_secs(300)));
    for _ in 0..60 {
        w.trouble(1.0);
        w.count();
        let (ms, step) = (w.rng.random_range(1..60), w.rng.random_range(1..20));
        w.run(ms, step);
    }
    let away = w.rng.random_range(0..w.nodes.len());
    let whole = w.rng.random_bool(0.3);
    w.settle();
    // One node is away while another clears.
    for j in 0..w.nodes.len() {
        if j != away {
            w.cut.insert((away.min(j), away.max(j)));
            w.drop_stream(away, j);
        }
    }
    let by = (away + 1) % w.nodes.len();
    let now = w.nodes[by].at(w.now);
    let mut gone = Vec::new();
    if whole {
        w.table(by).clear(now);
        gone.extend(0..KEYS);
    } else {
        gone.extend((0..KEYS).filter(|&k| w.table(by).clear_key(&Key::Int(k), now) == Cleared::Removed));
    }
    let mut since = BTreeMap::new();
    for _ in 0..10 {
        // It goes on in what it does not know to be gone: that is new, what was there before is cleared.
        let key = w.rng.random_range(0..KEYS);
        let now = w.nodes[away].at(w.now);
        w.table(away).track(&Key::Int(key), now).unwrap().http_req(now);
        *since.entry(key).or_insert(0) += 1;
        w.run(50, 10);
    }
    w.settle();
    for i in 0..w.nodes.len() {
        for key in &gone {
            let value = w.table(i).value(&Key::Int(*key), "http_req_cnt", w.nodes[i].at(w.now));
            let new = since.get(key).copied().unwrap_or(0);
            assert_eq!(value.unwrap_or(0), new, "seed {seed}: key {key} on n{i}");
        }
    }
    // And counting goes on from there, everywhere.
    let i = w.rng.random_range(0..w.nodes.len());
    let read = |w: &World, k: usize| {
        w.table(k).value(&Key::Int(0), "http_req_cnt", w.nodes[k].at(w.now)).unwrap_or(0)
    };
    let before = read(&w, i);
    w.table(i).track(&Key::Int(0), w.nodes[i].at(w.now)).unwrap().http_req(w.nodes[i].at(w.now));
    w.settle();
    for k in 0..w.nodes.len() {
        assert_eq!(read(&w, k), before + 1, "seed {seed}: n{k}");
    }
}

#[test]
fn nodes_that_start_together_are_ready_at_once() {
    seeds().for_each(nodes_that_start_together_are_ready_at_once_of);
}

fn nodes_that_start_together_are_ready_at_once_of(seed: u64) {
    let mut w = World::new(seed, None);
    w.run(2_000, 10);
    for i in 0..w.nodes.len() {
        assert!(w.table(i).is_learned(), "seed {seed}: n{i} waits for nobody");
    }
}

/// However it is cut off and whoever starts with it: a node that says it knows all does.
#[test]
fn a_late_node_is_ready_when_it_is_taught_and_not_before() {
    seeds().for_each(a_late_node_is_ready_when_it_is_taught_and_not_before_of);
}

fn a_late_node_is_ready_when_it_is_taught_and_not_before_of(seed: u64) {
    let mut w = World::new(seed, None);
    w.run(2_000, 10);
    for _ in 0..40 {
        w.count();
    }
    w.settle();
    let known = w.sums(0);
    let count = w.nodes.len();
    // One keeps what all know; the others start anew, and may not reach it for a while.
    let keeper = w.rng.random_range(0..count);
    let late: Vec<usize> = (0..count).filter(|&i| i != keeper && w.rng.random_bool(0.7)).collect();
    for &i in &late {
        w.restart(i);
        if w.rng.random_bool(0.5) {
            w.cut.insert((i.min(keeper), i.max(keeper)));
        }
    }
    for step in 0..450 {
        if step == 400 {
            w.cut.clear();
        }
        w.run(10, 10);
        for &i in &late {
            if w.table(i).is_learned() {
                assert_eq!(w.sums(i), known, "seed {seed}: n{i} after {step} steps");
            }
        }
    }
    w.run(500, 10);
    for &i in &late {
        assert!(w.table(i).is_learned(), "seed {seed}: n{i} is taught in the end");
    }
}

/// What a peer sends is outside bytes: whatever they are, they cost it its stream and no more.
#[test]
fn mangled_messages_never_panic() {
    seeds().for_each(mangled_messages_never_panic_of);
}

fn mangled_messages_never_panic_of(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut w = World::new(seed, Some(Duration::from_secs(300)));
    for _ in 0..20 {
        w.count();
    }
    w.table(0).set_server_id(&Key::Int(1), 3, w.nodes[0].at(w.now));
    w.run(100, 10);
    let now = w.nodes[0].at(w.now);
    let mut said = Vec::new();
    let mut teacher = Peer::new(w.nodes[0].tables.clone(), "other").unwrap();
    teacher.connected(now);
    teacher.handle(hello("other"), now).unwrap();
    teacher.handle(Message::Teach { table: "t".to_string(), scratch: true, past: false }, now).unwrap();
    while let Some(message) = teacher.poll_output(now) {
        said.push(message);
    }
    assert!(said.iter().any(|m| matches!(m, Message::Batch(b) if b.count > 0)));
    for _ in 0..30 {
        let mut victim = Peer::new(w.nodes[1].tables.clone(), "n0").unwrap();
        let now = w.nodes[1].at(w.now);
        victim.connected(now);
        for message in &said {
            let mut message = message.clone();
            mangle(&mut message, &mut rng);
            if victim.handle(message, now).is_err() {
                break;
            }
            while victim.poll_output(now).is_some() {}
        }
        victim.disconnected();
        w.table(1).check_invariants();
    }
}

fn hello(node: &str) -> Message {
    Message::Hello(Hello { version: VERSION, node: node.to_string(), incarnation: 1, ..Hello::default() })
}

fn mangle(message: &mut Message, rng: &mut SmallRng) {
    if rng.random_bool(0.6) {
        return;
    }
    let wild = |rng: &mut SmallRng| {
        *[0, 1, 63, 64, u64::MAX, rng.random()].get(rng.random_range(0..6usize)).unwrap()
    };
    match message {
        Message::Hello(h) => h.clock = rng.random(),
        Message::Define(d) => match rng.random_range(0..6) {
            0 => d.id = wild(rng) as u32,
            1 => d.key = rng.random_range(0..8),
            2 => d.shards = wild(rng) as u32,
            3 => d.floor = wild(rng),
            4 => d.columns.push(("nothing".to_string(), 0)),
            _ => d.columns = vec![("http_req_rate".to_string(), wild(rng) as u32)],
        },
        Message::Origin { id, incarnation, .. } => (*id, *incarnation) = (wild(rng) as u16, wild(rng)),
        Message::Batch(b) => {
            b.number = wild(rng);
            b.positions.push((wild(rng) as u32, wild(rng)));
            let mut bytes = b.entries.to_vec();
            for _ in 0..rng.random_range(0..4) {
                if !bytes.is_empty() {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            b.entries = bytes.into();
        }
        Message::Ack { upto } => *upto = wild(rng),
        Message::Heartbeat { clock, digests } => {
            *clock = rng.random();
            digests.push((wild(rng) as u32, wild(rng)));
        }
        Message::Floor { table, at } => (*table, *at) = (wild(rng) as u32, wild(rng)),
        Message::Teach { table, .. } | Message::Taught { table, .. } => table.push('x'),
    }
}

/// The simulation finds every mistake that is planted, by one of its scenarios.
#[test]
fn planted_faults_are_caught() {
    use crate::planted::{Fault, caught};
    type Scenario = fn(u64);
    let conserved: Scenario = counters_are_conserved_exactly_once_through_any_trouble_of;
    let folded: Scenario = restarts_fold_what_earlier_runs_counted_exactly_once_of;
    let gauges: Scenario = conn_cur_is_what_goes_on_at_the_nodes_that_live_of;
    let expired: Scenario = tables_converge_and_expired_entries_stay_gone_of;
    let short: Scenario = short_lives_converge_through_trouble_of;
    let cleared: Scenario = cleared_entries_do_not_come_back_of;
    let resumed: Scenario = cut_streams_resume_without_a_repair_of;
    let late: Scenario = a_late_node_is_ready_when_it_is_taught_and_not_before_of;
    let faults: [(Fault, &[Scenario]); 13] = [
        (Fault::AddInPlaceOfMax, &[conserved]),
        (Fault::TakeOlderStates, &[conserved, folded]),
        (Fault::RegisterByPlace, &[conserved, expired]),
        (Fault::ForgetIncarnation, &[folded, conserved]),
        (Fault::RelayAsOwn, &[conserved]),
        (Fault::AckBeforeMerge, &[resumed, conserved]),
        (Fault::ResumeTooFar, &[resumed, conserved]),
        (Fault::PublishOnce, &[resumed, conserved]),
        (Fault::TeachNothing, &[late, conserved, folded]),
        (Fault::LifeAnew, &[short, expired]),
        (Fault::ForgetCleared, &[cleared]),
        (Fault::FoldTwice, &[folded]),
        (Fault::GaugeOfTheDead, &[gauges]),
    ];
    let mut missed = Vec::new();
    for (fault, scenarios) in faults {
        let found = (0..40).find(|&seed| scenarios.iter().any(|of| caught(fault, move || of(seed))));
        println!("{fault:?}: seed {found:?}");
        if found.is_none() {
            missed.push(fault);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
