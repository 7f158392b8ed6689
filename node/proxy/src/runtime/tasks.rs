//! The tasks of a thread and which of them are to run.
//!
//! Knows nothing of threads, sockets or time. A task has a place, which others have after it; the number in
//! its wakers says also whose turn in the place is meant, so that a waker may outlive its task.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

/// A task's state, on the heap at its own size.
pub(super) type Body = Pin<Box<dyn Future<Output = ()>>>;

/// The place of the task that is no [`Body`]: what the thread was started for.
pub(super) const MAIN: u32 = 0;

const PLACE_BITS: u32 = 26;
const TURN_BITS: u32 = 28;
/// How many threads there may be at once.
pub(super) const THREADS: usize = 1 << (usize::BITS - PLACE_BITS - TURN_BITS);

/// A task as its wakers name it, in one word: they are copied and dropped for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    /// Number of the thread.
    pub(super) thread: usize,
    pub(super) place: u32,
    turn: u32,
}

impl Id {
    pub(super) fn number(self) -> usize {
        self.thread << (PLACE_BITS + TURN_BITS) | (self.turn as usize) << PLACE_BITS | self.place as usize
    }

    pub(super) fn of_number(number: usize) -> Id {
        Id {
            thread: number >> (PLACE_BITS + TURN_BITS),
            place: (number & ((1 << PLACE_BITS) - 1)) as u32,
            turn: (number >> PLACE_BITS & ((1 << TURN_BITS) - 1)) as u32,
        }
    }
}

#[derive(Default)]
struct Place {
    /// Changes with each task.
    turn: u32,
    /// It is to run, and is in one of the queues.
    queued: bool,
    /// Away while it runs.
    body: Option<Body>,
}

/// The tasks.
pub(super) struct Tasks {
    /// Number of their thread.
    thread: usize,
    places: Vec<Place>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    /// Woke themselves while they ran: others come first, and what the kernel has.
    later: Vec<u32>,
    running: Option<u32>,
}

impl Tasks {
    /// No tasks but [`MAIN`], which is to run.
    pub(super) fn new(thread: usize) -> Tasks {
        let mut tasks = Tasks {
            thread,
            places: vec![Place::default()],
            free: Vec::new(),
            ready: VecDeque::new(),
            later: Vec::new(),
            running: None,
        };
        tasks.queue(MAIN);
        tasks
    }

    /// Number of their thread.
    pub(super) fn thread(&self) -> usize {
        self.thread
    }

    /// Adds a task, which is to run.
    pub(super) fn add(&mut self, body: Body) -> Id {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // Each is of a descriptor or more: there are not as many.
            (self.places.len() - 1) as u32
        });
        self.places[place as usize].body = Some(body);
        self.queue(place);
        self.id(place)
    }

    /// The task that a place has now.
    fn id(&self, place: u32) -> Id {
        Id { thread: self.thread, place, turn: self.places[place as usize].turn }
    }

    /// Whether a number is still that of a task here.
    fn is_here(&self, id: Id) -> bool {
        self.places.get(id.place as usize).is_some_and(|place| place.turn == id.turn)
    }

    /// A task is to run, if it is still there.
    pub(super) fn wake(&mut self, id: Id) {
        if self.is_here(id) && !self.places[id.place as usize].queued {
            self.queue(id.place);
        }
    }

    fn queue(&mut self, place: u32) {
        self.places[place as usize].queued = true;
        if self.running == Some(place) {
            self.later.push(place);
        } else {
            self.ready.push_back(place);
        }
    }

    /// Takes the next one that is to run; without a body it is [`MAIN`]. To be followed by
    /// [`ran`](Tasks::ran).
    pub(super) fn next(&mut self) -> Option<(Id, Option<Body>)> {
        loop {
            let place = self.ready.pop_front()?;
            let here = &mut self.places[place as usize];
            // It may have ended meanwhile.
            if std::mem::take(&mut here.queued) {
                let body = here.body.take();
                self.running = Some(place);
                return Some((self.id(place), body));
            }
        }
    }

    /// A task has run: it goes on if there is a `body`. Gives back what the caller is to drop, which may be a
    /// task that was removed while it ran.
    #[must_use = "a task's state may wake others when it is dropped"]
    pub(super) fn ran(&mut self, id: Id, body: Option<Body>) -> Option<Body> {
        self.running = None;
        if !self.is_here(id) {
            return body;
        }
        match body {
            Some(body) => {
                self.places[id.place as usize].body = Some(body);
                None
            }
            None if id.place == MAIN => None,
            None => self.remove(id),
        }
    }

    /// Removes a task; gives its state to be dropped, unless it runs.
    #[must_use = "a task's state may wake others when it is dropped"]
    pub(super) fn remove(&mut self, id: Id) -> Option<Body> {
        if !self.is_here(id) {
            return None;
        }
        let place = &mut self.places[id.place as usize];
        place.turn = (place.turn + 1) % (1 << TURN_BITS);
        place.queued = false;
        self.free.push(id.place);
        place.body.take()
    }

    /// Those that woke themselves may run again; whether any is to run.
    pub(super) fn begin_turn(&mut self) -> bool {
        self.ready.extend(self.later.drain(..));
        !self.ready.is_empty()
    }

    /// Removes all tasks that do not run.
    #[must_use = "a task's state may wake others when it is dropped"]
    pub(super) fn remove_all(&mut self) -> Vec<Body> {
        let mut bodies = Vec::new();
        for place in 0..self.places.len() as u32 {
            if self.places[place as usize].body.is_some() {
                bodies.extend(self.remove(self.id(place)));
            }
        }
        bodies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Box::pin(async {})
    }

    /// Runs what is ready, each of which goes on; returns the places.
    fn run(tasks: &mut Tasks, mut during: impl FnMut(&mut Tasks, Id)) -> Vec<u32> {
        let mut ran = Vec::new();
        while let Some((id, body)) = tasks.next() {
            during(tasks, id);
            ran.push(id.place);
            assert!(tasks.ran(id, body).is_none());
        }
        ran
    }

    #[test]
    fn each_runs_once_for_any_number_of_wakes_in_their_order() {
        let mut tasks = Tasks::new(3);
        let (a, b) = (tasks.add(body()), tasks.add(body()));
        assert_eq!(run(&mut tasks, |_, _| {}), [MAIN, a.place, b.place]);
        for id in [b, a, b, a] {
            tasks.wake(id);
        }
        assert_eq!(run(&mut tasks, |_, _| {}), [b.place, a.place]);
        assert!(!tasks.begin_turn());
    }

    #[test]
    fn who_wakes_itself_runs_in_the_next_turn_and_who_is_woken_in_this_one() {
        let mut tasks = Tasks::new(0);
        let (a, b) = (tasks.add(body()), tasks.add(body()));
        let ran = run(&mut tasks, |tasks, id| {
            if id == a {
                tasks.wake(a);
                tasks.wake(a);
                tasks.wake(b);
            }
        });
        assert_eq!(ran, [MAIN, a.place, b.place]);
        assert!(tasks.begin_turn());
        assert_eq!(run(&mut tasks, |_, _| {}), [a.place]);
    }

    #[test]
    fn a_number_outlives_its_task() {
        let mut tasks = Tasks::new(0);
        let old = tasks.add(body());
        run(&mut tasks, |_, _| {});
        tasks.wake(old);
        assert!(tasks.remove(old).is_some());
        let new = tasks.add(body());
        assert!(new.place == old.place && new != old);
        assert_eq!(run(&mut tasks, |_, _| {}), [new.place], "the old one's place in the queue is void");
        tasks.wake(old);
        assert!(tasks.remove(old).is_none() && run(&mut tasks, |_, _| {}).is_empty());
        assert_eq!([tasks.remove_all().len(), tasks.remove_all().len()], [1, 0]);
    }

    #[test]
    fn what_is_removed_while_it_runs_is_given_back() {
        let mut tasks = Tasks::new(0);
        let id = tasks.add(body());
        let (main, none) = tasks.next().unwrap();
        assert!(main.place == MAIN && none.is_none() && tasks.ran(main, None).is_none());
        let (running, state) = tasks.next().unwrap();
        assert!(running == id && tasks.remove(id).is_none());
        assert!(tasks.ran(id, state).is_some());
        let next = tasks.add(body());
        assert!(next.place == id.place);
        let (running, state) = tasks.next().unwrap();
        assert!(running == next && state.is_some());
        assert!(tasks.ran(next, None).is_none(), "it has ended");
    }

    #[test]
    fn ids_are_words() {
        let id = Id { thread: THREADS - 1, place: (1 << PLACE_BITS) - 2, turn: (1 << TURN_BITS) - 3 };
        assert_eq!(Id::of_number(id.number()), id);
    }
}
