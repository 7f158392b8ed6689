//! Faults that a test plants in the replication of stick tables, to show that its simulation finds them.
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

/// Runs `test` with a fault in place; whether it failed.
#[cfg(test)]
pub(crate) fn caught(fault: Fault, test: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    PLANTED.set(Some(fault));
    let outcome = std::panic::catch_unwind(test);
    PLANTED.set(None);
    outcome.is_err()
}
