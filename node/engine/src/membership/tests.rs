use super::simulation::{Mutation, Simulation};

fn seeds() -> std::ops::Range<u64> {
    crate::testing::seeds(1000)
}

#[test]
fn no_acknowledged_command_is_lost_and_no_two_majorities_decide_while_members_change() {
    let mut changes = 0;
    for seed in seeds() {
        let mut simulation = Simulation::new(seed, None);
        if let Err(why) = simulation.run() {
            panic!("seed {seed}: {why}\nreplay with PHALANX_SEED={seed}");
        }
        changes += simulation.changes;
    }
    let count = seeds().count();
    assert!(count == 1 || changes > 2 * count, "only {changes} changes in {count} runs");
}

#[test]
fn planted_faults_are_caught() {
    for mutation in [
        Mutation::AnswerBeforeCommit,
        Mutation::CommitAlone,
        Mutation::VoteForAnyLog,
        Mutation::LoseTail,
        Mutation::SkipSettled,
        Mutation::HalfIsEnough,
    ] {
        let found = (0..400).find(|&seed| Simulation::new(seed, Some(mutation)).run().is_err());
        println!("{mutation:?}: seed {found:?}");
        assert!(found.is_some(), "{mutation:?} is not caught");
    }
}
