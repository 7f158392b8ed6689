//! `on-quorum-loss hold` in the simulation.

use super::simulation::{Simulation, World};
use super::*;

const SECOND: u64 = 1_000_000;

fn keeping() -> World {
    World { on_quorum_loss: QuorumLoss::Hold, delay_us: 500, ..World::calm() }
}

/// Steps through a history, and checks at each step what must hold.
fn walk(s: &mut Simulation, until_us: u64, limit_us: u64) {
    let mut since: Option<u64> = None;
    while s.now_us < until_us {
        s.run_until((s.now_us + 1_000).min(until_us));
        let owners = s.owners();
        let by_majority = owners.iter().filter(|(_, kept)| !kept).count();
        assert!(by_majority <= 1, "two hold by a majority: {owners:?}\n{}", s.trace.join("\n"));
        // Of two, the one that keeps reaches nobody that could tell it; or it will hear at once.
        let knows = owners.len() > 1 && owners.iter().any(|&(node, kept)| kept && s.reaches_majority(node));
        since = knows.then(|| since.unwrap_or(s.now_us));
        if let Some(since) = since {
            let both = s.now_us - since;
            assert!(both <= limit_us, "two for {both} us with a quorum: {owners:?}\n{}", s.trace.join("\n"));
        }
    }
}

#[test]
fn the_last_holder_keeps_what_it_has_and_gets_it_back_when_a_majority_returns() {
    for seed in 0..50 {
        let mut s = Simulation::new(keeping(), seed);
        s.run_until(3 * SECOND + seed * 7_000);
        let holder = s.owner().expect("a holder");
        let others = [(holder + 1) % 3, (holder + 2) % 3];
        others.iter().for_each(|&other| s.kill(other));
        walk(&mut s, 10 * SECOND, 0);
        assert_eq!(s.owners(), [(holder, true)], "seed {seed}: kept without a majority");
        assert_eq!(s.owned.len(), 1, "without a gap: {:?}", s.owned);
        let before = s.owned[0].epoch;
        for (i, &other) in others.iter().enumerate() {
            s.start(other);
            let until = s.now_us + i as u64 * 2 * SECOND + 100_000 * (seed % 9);
            walk(&mut s, until, 0);
        }
        walk(&mut s, 16 * SECOND, 0);
        assert_eq!(s.owners(), [(holder, false)], "seed {seed}: {}", s.trace.join("\n"));
        assert!(s.owned.last().unwrap().epoch > before, "a majority gives a new epoch");
        assert!(s.owned.iter().all(|o| o.node == holder), "nobody else ever had it: {:?}", s.owned);
        assert!(s.owned.windows(2).all(|o| o[0].to == o[1].from), "without a gap: {:?}", s.owned);
    }
}

#[test]
fn a_holder_that_is_cut_off_keeps_it_until_it_hears_of_the_other() {
    for seed in 0..50 {
        let mut s = Simulation::new(keeping(), seed);
        s.run_until(3 * SECOND + seed * 7_000);
        let holder = s.owner().expect("a holder");
        s.cut_off(holder);
        walk(&mut s, 6 * SECOND, 0);
        let mut owners = s.owners();
        owners.retain(|&(node, _)| node != holder);
        assert!(matches!(owners[..], [(_, false)]), "seed {seed}: the majority has one too: {owners:?}");
        s.heal();
        // A renewal, and the time that a message and taking the address away need.
        walk(&mut s, 9 * SECOND, 200_000);
        assert_eq!(s.owners(), owners, "seed {seed}: the last holder has given up");
    }
}

#[test]
fn two_that_hold_without_a_majority_become_one_when_they_meet() {
    let mut s = Simulation::new(keeping(), 3);
    s.run_until(3 * SECOND);
    let first = s.owner().expect("a holder");
    s.cut_off(first);
    s.run_until(5 * SECOND);
    let second = s.owners().into_iter().find(|&(node, _)| node != first).expect("another").0;
    let third = 3 - first - second;
    s.kill(third);
    walk(&mut s, 8 * SECOND, 0);
    assert_eq!(s.owners().len(), 2, "both keep it: {:?}", s.owners());
    s.heal();
    walk(&mut s, 10 * SECOND, 200_000);
    assert_eq!(s.owners(), [(second, false)], "the later epoch wins, and with it a majority");
}

#[test]
fn a_process_that_slept_over_the_end_of_its_lease_keeps_nothing() {
    let (at, voters) = (|ms| Now { mono: Duration::from_millis(ms), unix_us: ms * 1000 }, [0, 1, 2]);
    let voters = voters.map(|i| Voter { id: NodeId(i), witness: false }).to_vec();
    let group = Group { me: NodeId(0), incarnation: 1, config: 1, voters, prefer: Some(NodeId(0)) };
    let mut lease = Lease::new(group, Timing::default(), 1, at(0));
    lease.set_on_quorum_loss(QuorumLoss::Hold);
    lease.set_fit(Fit::Yes, at(0));
    let mut now = 0;
    let until = loop {
        now += 10;
        lease.tick(at(now));
        let mut acquired = None;
        while let Some(output) = lease.poll_output() {
            match output {
                Output::Send { to: NodeId(1), message: Message::Prepare { ballot, .. } } => {
                    lease.handle(NodeId(1), Message::Promise { ballot }, at(now));
                }
                Output::Send { to: NodeId(1), message: Message::Propose { ballot, round, .. } } => {
                    lease.handle(NodeId(1), Message::Accepted { ballot, round }, at(now));
                }
                Output::Acquired { until, .. } => acquired = Some(until),
                _ => {}
            }
        }
        if let Some(until) = acquired {
            break until;
        }
        assert!(now < 5_000);
    };
    lease.tick(at(until.as_millis() as u64 + 1));
    assert!(!lease.keeps());
    let withdraws = std::iter::from_fn(|| lease.poll_output());
    assert!(withdraws.into_iter().any(|o| matches!(o, Output::Withdraw { reason: Reason::Lapsed, .. })));
}

#[test]
fn keeping_is_safe_wherever_there_is_a_quorum_in_a_bad_world() {
    let mut kept = 0;
    for seed in 0..400 {
        let bad = World::bad_of(Timing::DEFAULT_LEASE, seed);
        let (delay_us, length_us, starting) = (bad.us(500), bad.us(20 * SECOND), bad.us(1_200_000));
        let on_quorum_loss = QuorumLoss::Hold;
        let world = World { on_quorum_loss, loss: 0, delay_us, drift: 5, length_us, ..bad };
        let mut s = Simulation::new(world, seed);
        // A node that it reaches may have just started, and not vote yet.
        walk(&mut s, length_us, starting);
        kept += s.owned.iter().filter(|o| o.kept.is_some()).count();
    }
    assert!(kept > 200, "too little was kept to test anything: {kept}");
}
