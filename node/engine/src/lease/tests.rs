use super::simulation::{Broken, Mutation, Simulation, World};
use super::*;

/// Runs a world; what it finds is a panic that says which seed replays it.
fn run(world: World, seed: u64) -> Simulation {
    let simulation = Simulation::new(world, seed).run();
    if let Err((checker, why)) = simulation.check() {
        panic!(
            "seed {seed}: {checker}: {why}\nreplay with PHALANX_SEED={seed}\n{}",
            simulation.trace.join("\n")
        );
    }
    simulation
}

/// How many of the seeds break the promise in this world.
fn broken(world: impl Fn(u64) -> World) -> usize {
    (0..200).filter(|&seed| Simulation::new(world(seed), seed).run().check().is_err()).count()
}

fn seeds() -> std::ops::Range<u64> {
    crate::testing::seeds(1000)
}

const SECOND: u64 = 1_000_000;

#[test]
fn never_two_holders_in_a_bad_world() {
    let (mut tenures, mut drained) = (0, 0);
    for seed in seeds() {
        for world in [World::bad(seed), World::late(seed)] {
            let s = run(world, seed);
            tenures += s.owned.len();
            drained += s.drained;
        }
    }
    let count = seeds().count();
    assert!(count == 1 || drained > count / 4, "connections went on after a move too seldom: {drained}");
    assert!(
        count == 1 || tenures > 3 * count,
        "the faults moved the VIP too seldom to test anything: {tenures}"
    );
}

#[test]
fn never_two_holders_while_the_term_changes_node_by_node() {
    let mut tenures = 0;
    for seed in seeds() {
        tenures += run(World::of_two_terms(seed), seed).owned.len();
    }
    let count = seeds().count();
    assert!(count == 1 || tenures > 2 * count, "the VIP moved too seldom to test anything: {tenures}");
}

#[test]
fn never_two_holders_while_members_come_and_go() {
    let (mut tenures, mut changes) = (0, 0);
    for seed in seeds() {
        let s = run(World::changing(seed, None), seed);
        tenures += s.owned.len();
        changes += s.changes();
    }
    let count = seeds().count();
    assert!(count == 1 || (tenures > count && changes > 2 * count), "{tenures} tenures, {changes} changes");
}

/// The simulation finds every mistake that is planted. `--nocapture` shows a table of which checker found
/// it, at which seed and how soon.
#[test]
fn planted_faults_are_caught() {
    use crate::planted::{Fault, with};
    let faults = [
        Fault::VoteWhileStarting,
        Fault::GrantBeside,
        Fault::Overwrite,
        Fault::ForgetPromise,
        Fault::GrantShort,
        Fault::VoteForOld,
        Fault::CountFromReceipt,
        Fault::IgnoreGuard,
        Fault::GrantTooLong,
        Fault::ForgetTerm,
        Fault::AnyRound,
        Fault::MinorityIsEnough,
        Fault::OldVotersCount,
        Fault::ReleaseFirst,
        Fault::RenewAfterLapse,
        Fault::ReuseBallot,
        Fault::TakeWhileBehind,
        Fault::WitnessHolds,
        Fault::TellBeforeTakeAway,
        Fault::TryOnce,
        Fault::SkipFence,
        Fault::TellUnfenced,
        Fault::TakeStoppedForDead,
        Fault::TellBeforeDrain,
        Fault::DrainAnyhow,
        Fault::LeaveDraining,
    ];
    let mut missed = Vec::new();
    let mut row = |fault: String, find: &dyn Fn(u64) -> Result<(), Broken>| {
        let began = std::time::Instant::now();
        let found = (0..2000).find_map(|seed| find(seed).err().map(|(checker, _)| (seed, checker)));
        match found {
            Some((seed, checker)) => {
                println!("{fault:<20} {checker:<16} seed {seed:>4} {:>7.2} s", began.elapsed().as_secs_f64());
            }
            None => missed.push(fault),
        }
    };
    for fault in faults {
        row(format!("{fault:?}"), &|seed| {
            with(fault, || {
                restart_of_the_deciding_voter(World::calm(), seed).check()?;
                let two_terms = World { other: Some(Duration::from_secs(2)), ..World::calm() };
                restart_of_the_deciding_voter(two_terms, seed).check()?;
                Simulation::new(World::bad(seed), seed).run().check()?;
                Simulation::new(World::late(seed), seed).run().check()?;
                Simulation::new(World::of_two_terms(seed), seed).run().check()?;
                Simulation::new(World::changing(seed, None), seed).run().check()
            })
        });
    }
    for mutation in
        [Mutation::SkipSettled, Mutation::OneIsEnough, Mutation::TwoAtOnce, Mutation::ForgetConfig]
    {
        row(format!("{mutation:?}"), &|seed| {
            Simulation::new(World::changing(seed, Some(mutation)), seed).run().check()
        });
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// The holder, whose lease one other voter carries, is cut off; two nodes join as soon as the others find
/// that they may.
fn joins_beside_a_holder_that_is_cut_off(wait: Duration, seed: u64) -> Simulation {
    let mut s = Simulation::new(World { nodes: 5, prefer: Some(0), ..World::calm() }, seed);
    s.run_until(3 * SECOND);
    assert_eq!(s.owner(), Some(0));
    s.cut_off(2);
    s.run_until(5 * SECOND + seed * 11_000);
    s.cut_off(0);
    let mut joined = 0;
    for _ in 0..400 {
        s.run_until(s.now_us + 5_000);
        if joined < 2 && s.join(3 + joined, 1, &[1, 2, 3, 4][joined..], wait) {
            joined += 1;
        }
    }
    assert_eq!(joined, 2);
    s
}

#[test]
fn a_change_waits_for_a_term_and_the_simulation_sees_when_it_does_not() {
    for seed in 0..20 {
        joins_beside_a_holder_that_is_cut_off(Timing::default().start_wait, seed).check().unwrap();
    }
    let hasty = |&seed: &u64| joins_beside_a_holder_that_is_cut_off(Duration::ZERO, seed).check().is_err();
    assert!((0..20).any(|seed| hasty(&seed)), "a hasty change is not caught");
}

#[test]
fn the_simulation_repeats_itself() {
    for seed in [3, 77] {
        assert_eq!(run(World::bad(seed), seed).trace, run(World::bad(seed), seed).trace);
    }
}

/// The holder goes on with one voter; that one restarts and meets the third node, while the holder is
/// cut off.
fn restart_of_the_deciding_voter(world: World, seed: u64) -> Simulation {
    let mut s = Simulation::new(world, seed);
    s.run_until(3 * SECOND);
    let Some(holder) = s.owner() else { return s };
    let (voter, third) = ((holder + 1) % 3, (holder + 2) % 3);
    s.cut_off(third);
    s.run_until(5 * SECOND);
    s.kill(voter);
    s.cut_off(holder);
    s.start(voter);
    s.run_until(8 * SECOND);
    s
}

#[test]
fn a_restarted_voter_waits_and_the_simulation_sees_when_it_does_not() {
    let mut forgetful = World::calm();
    forgetful.timing.start_wait = Duration::ZERO;
    for seed in 0..20 {
        let s = restart_of_the_deciding_voter(World::calm(), seed);
        s.check().unwrap();
        assert_eq!(s.owned.len(), 2, "{:?}", s.owned);
    }
    let broken =
        (0..20).filter(|&seed| restart_of_the_deciding_voter(forgetful.clone(), seed).check().is_err());
    assert!(broken.count() > 0);
}

#[test]
fn the_simulation_catches_a_missing_guard() {
    let found = broken(|seed| {
        let mut world = World { drift: 30, loss: 0, nodes: 3, ..World::bad(seed) };
        (world.witness, world.prefer) = (None, None);
        (world.fault_us, world.delay_us) = (world.us(500_000), world.us(500));
        world.timing.guard = Duration::ZERO;
        world
    });
    assert!(found > 0);
}

#[test]
fn a_calm_group_has_a_holder_soon_and_keeps_it() {
    for seed in 0..20 {
        let mut s = Simulation::new(World::calm(), seed);
        s.run_until(2 * SECOND);
        let first = s.owner().expect("a holder after two seconds");
        s.run_until(10 * SECOND);
        assert_eq!(s.owner(), Some(first));
        assert_eq!(s.owned.len(), 1, "{:?}", s.owned);
        for node in 0..3 {
            assert_eq!(s.view(node).holder, Some(NodeId(first as u8)), "as node {node} sees it");
            assert_eq!(s.view(node).epoch, Some(s.owned[0].epoch));
        }
    }
}

#[test]
fn the_preferred_node_gets_a_free_vip_and_does_not_preempt() {
    for seed in 0..20 {
        let mut s = Simulation::new(World { prefer: Some(2), ..World::calm() }, seed);
        s.run_until(2 * SECOND);
        assert_eq!(s.owner(), Some(2), "seed {seed}");
        s.kill(2);
        s.run_until(4 * SECOND);
        let other = s.owner().expect("another holder");
        s.start(2);
        s.run_until(9 * SECOND);
        assert_eq!(s.owner(), Some(other), "seed {seed}: no preemption");
        s.check().unwrap();
    }
}

#[test]
fn the_death_of_the_holder_costs_little_more_than_a_lease() {
    let lease_us = Timing::default().lease.as_micros() as u64;
    for seed in 0..50 {
        let mut s = Simulation::new(World::calm(), seed);
        s.run_until(3 * SECOND + seed * 7_000);
        let died_at = s.now_us;
        s.kill(s.owner().expect("a holder"));
        s.run_until(died_at + 3 * SECOND);
        let gap = s.owned.last().unwrap().from - died_at;
        assert!(gap < lease_us * 5 / 4, "seed {seed}: {gap} us");
        assert!(s.owner().is_some(), "seed {seed}");
        s.check().unwrap();
    }
}

#[test]
fn a_released_lease_moves_at_once_and_to_its_target() {
    for seed in 0..50 {
        let mut s = Simulation::new(World::calm(), seed);
        s.run_until(3 * SECOND);
        let from = s.owner().expect("a holder");
        let to = (from + 1 + seed as usize % 2) % 3;
        s.drive(from, |lease, now| lease.resign(Some(NodeId(to as u8)), now)).unwrap();
        // Slow messages take 40 ms here.
        s.run_until(3 * SECOND + 200_000);
        assert_eq!(s.owner(), Some(to), "seed {seed}: {}", s.trace.join("\n"));
        s.check().unwrap();
    }
}

#[test]
fn a_dead_target_does_not_keep_a_released_vip_free() {
    let mut s = Simulation::new(World::calm(), 5);
    s.run_until(3 * SECOND);
    let from = s.owner().expect("a holder");
    let (to, third) = ((from + 1) % 3, (from + 2) % 3);
    s.kill(to);
    s.drive(from, |lease, now| lease.resign(Some(NodeId(to as u8)), now)).unwrap();
    s.run_until(4 * SECOND);
    assert_eq!(s.owner(), Some(third));
}

#[test]
fn a_holder_without_majority_lets_go_and_the_majority_takes_over() {
    for seed in 0..20 {
        let mut s = Simulation::new(World::calm(), seed);
        s.run_until(3 * SECOND);
        let holder = s.owner().expect("a holder");
        s.cut_off(holder);
        s.run_until(5 * SECOND);
        let other = s.owner().expect("a new holder");
        assert_ne!(other, holder);
        assert_eq!(s.view(holder), View::default(), "the old holder knows that it knows nothing");
        s.heal();
        s.run_until(8 * SECOND);
        assert_eq!(s.owner(), Some(other), "seed {seed}: a healed node disturbs nobody");
        s.check().unwrap();
    }
}

#[test]
fn an_unfit_holder_hands_over_and_an_unfit_group_has_none() {
    let mut s = Simulation::new(World::calm(), 9);
    s.run_until(3 * SECOND);
    let first = s.owner().expect("a holder");
    let no = || Fit::No(vec!["interface eth0 is down".into()]);
    s.drive(first, |lease, now| lease.set_fit(no(), now));
    s.run_until(4 * SECOND);
    let second = s.owner().expect("a new holder");
    assert_ne!(first, second);
    for node in 0..3 {
        s.drive(node, |lease, now| lease.set_fit(no(), now));
    }
    s.run_until(6 * SECOND);
    assert_eq!(s.owner(), None);
    let keep = Fit::Keep(vec!["log is behind".into()]);
    s.drive(second, |lease, now| lease.set_fit(keep, now));
    s.run_until(8 * SECOND);
    assert_eq!(s.owner(), None, "to keep is not to take");
    s.drive(second, |lease, now| lease.set_fit(Fit::Yes, now));
    s.run_until(10 * SECOND);
    assert_eq!(s.owner(), Some(second));
}

#[test]
fn a_failed_announcement_sends_the_vip_elsewhere() {
    let mut s = Simulation::new(World::calm(), 11);
    s.run_until(3 * SECOND);
    let first = s.owner().expect("a holder");
    s.drive(first, |lease, now| lease.announce_failed("no such device".into(), now));
    s.run_until(4 * SECOND);
    assert!(s.owner().is_some_and(|other| other != first));
}

#[test]
fn a_witness_is_a_vote_for_one_of_two() {
    for seed in 0..20 {
        let mut s = Simulation::new(World { witness: Some(0), ..World::calm() }, seed);
        s.run_until(3 * SECOND);
        let holder = s.owner().expect("a holder");
        assert_ne!(holder, 0);
        s.kill(holder);
        s.run_until(6 * SECOND);
        assert_eq!(s.owner(), Some(3 - holder));
        s.check().unwrap();
    }
}

#[test]
fn hostile_messages_break_nothing() {
    let now = |ms| Now { mono: Duration::from_millis(ms), unix_us: ms * 1000 };
    let voters = (0..3).map(|i| Voter { id: NodeId(i), witness: false }).collect();
    let group = Group { me: NodeId(0), incarnation: 1, config: 1, voters, prefer: None };
    let mut lease = Lease::new(group, Timing::default(), 1, now(0));
    lease.set_fit(Fit::Yes, now(0));
    let mut rng = SmallRng::seed_from_u64(4);
    let wild = |rng: &mut SmallRng| [0, 1, 255, 1 << 40, u64::MAX][rng.random_range(0..5)];
    for ms in 0..20_000 {
        let ballot = Ballot {
            counter: wild(&mut rng),
            node: NodeId(wild(&mut rng) as u8),
            incarnation: wild(&mut rng),
        };
        let left = Duration::from_micros(wild(&mut rng));
        let message = match rng.random_range(0..8) {
            0 => Message::Prepare { ballot, config: wild(&mut rng) },
            1 => Message::Promise { ballot },
            2 => Message::Propose {
                ballot,
                config: wild(&mut rng),
                round: wild(&mut rng),
                term: left,
                held: rng.random(),
            },
            3 => Message::Accepted { ballot, round: wild(&mut rng) },
            4 => Message::Refused { ballot, why: Refusal::Starting { left } },
            5 => Message::Refused { ballot, why: Refusal::Outranked { counter: wild(&mut rng) } },
            6 => Message::Refused { ballot, why: Refusal::Held { by: ballot, left } },
            _ => Message::Release { ballot, to: Some(NodeId(wild(&mut rng) as u8)) },
        };
        lease.handle(NodeId(wild(&mut rng) as u8), message, now(ms));
        while let Some(output) = lease.poll_output() {
            assert!(!matches!(output, Output::Acquired { .. }), "nobody granted anything: {output:?}");
        }
        assert!(lease.deadline(now(ms)) < now(ms).mono + Duration::from_secs(60));
        assert!(lease.counter < 1 << 49);
    }
}

#[test]
fn an_acceptor_backs_one_node_at_a_time() {
    let ms = Duration::from_millis;
    let ballot = |counter, node| Ballot { counter, node: NodeId(node), incarnation: 1 };
    let propose = |b, held| Message::Propose { ballot: b, config: 1, round: 1, term: ms(600), held };
    let mut a = Acceptor::new(ms(100), ms(600), 1, ms(0));
    let (x, y) = (ballot(5, 0), ballot(9, 1));
    let refused = |answer: Option<Message>| match answer {
        Some(Message::Refused { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(a.handle(propose(x, false), ms(99))), Refusal::Starting { left: ms(1) });
    assert_eq!(a.handle(propose(x, false), ms(100)), Some(Message::Accepted { ballot: x, round: 1 }));
    let held = refused(a.handle(propose(y, false), ms(699)));
    assert_eq!(held, Refusal::Held { by: x, left: ms(1) });
    assert!(matches!(
        refused(a.handle(Message::Prepare { ballot: y, config: 1 }, ms(699))),
        Refusal::Held { .. }
    ));
    assert!(matches!(a.handle(propose(y, false), ms(700)), Some(Message::Accepted { .. })));
    assert_eq!(refused(a.handle(propose(x, true), ms(701))), Refusal::Held { by: y, left: ms(599) });
    assert!(!a.release(x), "only the owner's ballot releases");
    assert!(a.release(y));
    assert!(matches!(refused(a.handle(propose(y, true), ms(702))), Refusal::Outranked { .. }), "used up");
    assert!(matches!(refused(a.handle(propose(x, false), ms(702))), Refusal::Outranked { counter: 9 }));
    let long = Message::Propose { ballot: ballot(10, 0), config: 1, round: 1, term: ms(601), held: false };
    assert_eq!(refused(a.handle(long, ms(703))), Refusal::TooLong { longest: ms(600) });
}

#[test]
fn an_acceptor_leaves_older_configurations_behind() {
    let ms = Duration::from_millis;
    let ballot = Ballot { counter: 5, node: NodeId(0), incarnation: 1 };
    let propose = |config| Message::Propose { ballot, config, round: 1, term: ms(600), held: true };
    let mut a = Acceptor::new(ms(0), ms(600), 2, ms(0));
    let outdated = |config| Some(Message::Refused { ballot, why: Refusal::Outdated { config } });
    assert_eq!(a.handle(propose(1), ms(1)), outdated(2));
    assert!(matches!(a.handle(propose(2), ms(1)), Some(Message::Accepted { .. })));
    assert!(matches!(a.handle(propose(3), ms(1)), Some(Message::Accepted { .. })), "newer ones count");
    a.raise(3, ms(2));
    assert_eq!(a.handle(propose(2), ms(3)), outdated(3));
    a.raise(2, ms(4));
    assert_eq!(a.floor(), (3, ms(2)), "it never goes back");
}

/// A holder is lost, and one voter's grant to it ends a little later than that of the candidate.
#[test]
fn a_voter_that_is_still_bound_is_asked_again_at_the_end_of_its_grant() {
    let ms = Duration::from_millis;
    let at = |t| Now { mono: t, unix_us: t.as_micros() as u64 };
    let voters = (0..3).map(|i| Voter { id: NodeId(i), witness: false }).collect();
    let group = Group { me: NodeId(1), incarnation: 1, config: 1, voters, prefer: None };
    let mut lease = Lease::new(group, Timing::default(), 1, at(ms(0)));
    lease.set_fit(Fit::Yes, at(ms(0)));
    let ballot = Ballot { counter: 5, node: NodeId(0), incarnation: 1 };
    let term = Timing::DEFAULT_LEASE;
    let lost = Message::Propose { ballot, config: 1, round: 1, term, held: true };
    lease.handle(NodeId(0), lost, at(ms(600)));
    let mut now = ms(600);
    let mut asks = |lease: &mut Lease| loop {
        now = lease.deadline(at(now)).max(now);
        lease.tick(at(now));
        let out: Vec<Output> = std::iter::from_fn(|| lease.poll_output()).collect();
        let asked = out.iter().find_map(|output| match output {
            Output::Send { to: NodeId(2), message: Message::Prepare { ballot, .. } } => Some((now, *ballot)),
            _ => None,
        });
        if let Some(asked) = asked {
            return asked;
        }
        assert!(now < ms(5_000));
    };
    let (first, mine) = asks(&mut lease);
    assert!(first >= ms(600) + term && first < ms(600) + term + ms(10), "{first:?}");
    let why = Refusal::Held { by: ballot, left: ms(7) };
    lease.handle(NodeId(2), Message::Refused { ballot: mine, why }, at(first));
    assert_eq!(asks(&mut lease), (first + ms(7), mine), "and not at the end of the candidacy");
    lease.handle(NodeId(2), Message::Promise { ballot: mine }, at(first + ms(8)));
    let sent: Vec<Output> = std::iter::from_fn(|| lease.poll_output()).collect();
    let proposes = |o: &Output| matches!(o, Output::Send { message: Message::Propose { .. }, .. });
    assert!(sent.iter().any(proposes), "{sent:?}");
}
