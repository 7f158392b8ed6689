//! Faults that tests plant in the replication of stick tables, in leases and in takeovers, to show that
//! the simulations find them.
//! In the program there are none: there [`is`] is a constant.

/// A mistake that could be made, at the place where it would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A merge adds where it should take the greater value.
    AddInPlaceOfMax,
    /// A merge takes whatever comes, older states too.
    TakeOlderStates,
    /// Of several nodes' registers the first at hand counts, not the one written last.
    RegisterByPlace,
    /// Two runs of a node count in one slot.
    ForgetIncarnation,
    /// What another node has counted is passed on as the teacher's own.
    RelayAsOwn,
    /// Some batches are acknowledged and not merged.
    AckBeforeMerge,
    /// A stream resumes beyond what was acknowledged.
    ResumeTooFar,
    /// A change is not put into the log when the entry is in it already.
    PublishOnce,
    /// Somebody who asks to be taught is told at once that this was all.
    TeachNothing,
    /// Entries taught begin their life anew.
    LifeAnew,
    /// A cleared key's tombstone does not keep older slots out.
    ForgetCleared,
    /// A run takes over twice what an earlier one counted.
    FoldTwice,
    /// Connections of a node that is gone count on.
    GaugeOfTheDead,

    /// A voter that has just started votes at once.
    VoteWhileStarting,
    /// A voter grants while another node's grant runs.
    GrantBeside,
    /// A proposal of higher rank overwrites the grant of another node.
    Overwrite,
    /// A voter does not remember what it has promised.
    ForgetPromise,
    /// A grant runs out before its term.
    GrantShort,
    /// A voter counts for candidates of an older configuration.
    VoteForOld,
    /// The holder counts its lease from when the acknowledgement came, not from when it asked.
    CountFromReceipt,
    /// The holder uses the guard up.
    IgnoreGuard,
    /// An acceptor grants for longer than it would wait after a restart.
    GrantTooLong,
    /// A node that restarts with a shorter term waits for that one only.
    ForgetTerm,
    /// An acknowledgement of an earlier round counts for the last one.
    AnyRound,
    /// A majority is one less.
    MinorityIsEnough,
    /// A node that follows a new configuration goes on counting over the voters of the old one.
    OldVotersCount,
    /// The lease is released when it is to be withdrawn, not when it is.
    ReleaseFirst,
    /// A lease that has run out is renewed.
    RenewAfterLapse,
    /// A candidacy takes the ballot of the one before.
    ReuseBallot,
    /// A node that is behind takes over.
    TakeWhileBehind,
    /// A witness takes over.
    WitnessHolds,
    /// The lease is told that the address is gone before it is.
    TellBeforeTakeAway,
    /// An address that could not be taken away is taken for gone.
    TryOnce,
    /// The lease is told of a planned move before new connections are refused.
    TellBeforeDrain,
    /// An address that could not be made to drain is taken for silent.
    DrainAnyhow,
    /// The guardian of a dead worker leaves what drains.
    LeaveDraining,
    /// The guardian tells the peers of a dead worker and takes nothing off.
    SkipFence,
    /// The guardian tells the peers of what it could not take off.
    TellUnfenced,
    /// The guardian takes a worker that stands still for a dead one.
    TakeStoppedForDead,
}

/// Whether this fault is planted in this thread.
#[cfg(not(test))]
pub(crate) const fn is(_: Fault) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Whether this fault is planted in this thread.
#[cfg(test)]
pub(crate) fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Runs `test` with a fault in place.
#[cfg(test)]
pub(crate) fn with<T>(fault: Fault, test: impl FnOnce() -> T) -> T {
    PLANTED.set(Some(fault));
    let outcome = test();
    PLANTED.set(None);
    outcome
}

/// Runs `test` with a fault in place; whether it failed.
#[cfg(test)]
pub(crate) fn caught(fault: Fault, test: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    PLANTED.set(Some(fault));
    let outcome = std::panic::catch_unwind(test);
    PLANTED.set(None);
    outcome.is_err()
}
