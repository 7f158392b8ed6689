//! Sessions whose clients the event loop has not heard of yet, and will if they last.
//!
//! Mostly a response is there before [`GRACE`] is over, and the client's socket never has to be watched.
//! One timer serves all of a thread: a timer for each session would wake the event loop whenever it were
//! the next to fire. Must never keep a session from ending: a waker here is only called too often.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;

use crate::deadline;

/// How long a client that is not watched is left alone, at most.
const GRACE: Duration = Duration::from_millis(20);

thread_local! {
    static NURSERY: Nursery = Nursery::default();
}

#[derive(Default)]
struct Nursery {
    /// Number of the round that is under way.
    round: Cell<u32>,
    waiting: RefCell<Vec<Waker>>,
    /// The first of a round has come.
    begun: Rc<Notify>,
}

/// Has `waker` called at the end of this round; returns the round's number.
pub(crate) fn enter(waker: &Waker) -> u32 {
    NURSERY.with(|nursery| {
        let mut waiting = nursery.waiting.borrow_mut();
        if waiting.is_empty() {
            nursery.begun.notify_one();
        }
        waiting.push(waker.clone());
        nursery.round.get()
    })
}

/// Whether a round is over.
pub(crate) fn is_over(round: u32) -> bool {
    NURSERY.with(|nursery| nursery.round.get() != round)
}

/// Ends the rounds of this thread, as long as it runs.
pub(crate) async fn run() {
    let begun = NURSERY.with(|nursery| nursery.begun.clone());
    loop {
        begun.notified().await;
        deadline::sleep(GRACE).await;
        let grown = NURSERY.with(|nursery| {
            nursery.round.set(nursery.round.get().wrapping_add(1));
            nursery.waiting.take()
        });
        grown.into_iter().for_each(Waker::wake);
    }
}
