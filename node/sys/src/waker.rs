//! Wakers that are numbers.
//!
//! A [`Waker`] mostly points to a task and counts in how many hands it is, with locked instructions at each
//! copy. One that is the number of its task is copied and dropped for nothing, and may outlive it.

use std::marker::PhantomData;
use std::ptr;
use std::task::{RawWaker, RawWakerVTable, Waker};

/// Who knows tasks by their numbers.
pub trait Wakes: 'static {
    /// Wakes the task of this number if it is still there; called from any thread.
    fn wake(task: usize);
}

/// The waker of a task.
pub fn numbered<W: Wakes>(task: usize) -> Waker {
    // SAFETY: the functions of the table take the data for a number and never follow it, so that they may be
    // called on any thread at any time; a copy is as good as the first, and nothing is to be dropped.
    unsafe { Waker::new(ptr::without_provenance(task), &Table::<W>::TABLE) }
}

struct Table<W>(PhantomData<W>);

impl<W: Wakes> Table<W> {
    const TABLE: RawWakerVTable = RawWakerVTable::new(
        |data| RawWaker::new(data, &Table::<W>::TABLE),
        |data| W::wake(data.addr()),
        |data| W::wake(data.addr()),
        |_| {},
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static WOKEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

    struct List;

    impl Wakes for List {
        fn wake(task: usize) {
            WOKEN.lock().unwrap().push(task);
        }
    }

    #[test]
    fn every_copy_says_the_number() {
        let waker = numbered::<List>(7);
        let copy = waker.clone();
        waker.wake_by_ref();
        drop(waker);
        std::thread::spawn(|| copy.wake()).join().unwrap();
        numbered::<List>(usize::MAX).wake();
        assert_eq!(*WOKEN.lock().unwrap(), [7, 7, usize::MAX]);
    }
}
