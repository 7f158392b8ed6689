//! The event loop of a thread: its tasks, its sockets, its timers.
//!
//! In each turn everything runs that is ready, then what is due by the clock is woken, and the kernel is asked
//! what has come: with nothing ready, until something does. All of it is of one thread: what a request does
//! here takes no lock and no locked instruction. Only wakers go to other threads, which put the numbers of
//! their tasks into the thread's inbox and ring if it sleeps.
//!
//! Futures of `tokio::sync` work here; timers and sockets are [`deadline`](crate::deadline)'s and
//! [`stream`](crate::stream)'s.

mod sources;
mod tasks;
mod watch;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_sys::epoll::{Bell, Epoll, Events};
use phalanx_sys::waker::{Wakes, numbered};

pub(crate) use self::sources::Side;
use self::tasks::{Id, THREADS, Tasks};
pub(crate) use self::watch::{Ready, Watch};
use crate::deadline;

/// Tasks that run before the kernel is asked again, as HAProxy's `tune.runqueue-depth`.
const TASKS: u32 = 200;
/// Calls to the kernel that a task may make before others have their turn.
const CALLS: u32 = 128;
/// So many turns in a row may the kernel have more to tell before timers are looked at all the same.
const PATIENCE: u32 = 50;
/// The token of the bell.
const BELL: u64 = u64::MAX;

thread_local! {
    static LOOP: Loop =
        const { Loop { at_work: RefCell::new(None), calls: Cell::new(0), turn_began: Cell::new(None) } };
}

/// A thread's loop, while there is one.
struct Loop {
    at_work: RefCell<Option<AtWork>>,
    /// That the task that runs may still make.
    calls: Cell<u32>,
    /// If somebody has asked.
    turn_began: Cell<Option<Instant>>,
}

struct AtWork {
    tasks: Tasks,
    source: EventLoop,
    /// Kept for their memory.
    events: Events,
    woken: Vec<Waker>,
    /// So many times in a row the kernel had as much as it could tell.
    full: u32,
}

/// What other threads put in.
struct Inbox {
    bell: Bell,
    /// Somebody has this number of a thread.
    taken: AtomicBool,
    woken: Mutex<Vec<Id>>,
    /// `woken` is not empty.
    filled: AtomicBool,
    /// The thread waits for the kernel, or is about to.
    asleep: AtomicBool,
}

static INBOXES: [OnceLock<Inbox>; THREADS] = [const { OnceLock::new() }; THREADS];

impl Inbox {
    /// One that nobody has, with its number.
    fn take() -> io::Result<(usize, &'static Inbox)> {
        for (thread, inbox) in INBOXES.iter().enumerate() {
            let inbox = match inbox.get() {
                Some(inbox) => inbox,
                None => {
                    let bell = Bell::new()?;
                    inbox.get_or_init(|| Inbox {
                        bell,
                        taken: AtomicBool::new(false),
                        woken: Mutex::default(),
                        filled: AtomicBool::new(false),
                        asleep: AtomicBool::new(false),
                    })
                }
            };
            if !inbox.taken.swap(true, Ordering::AcqRel) {
                return Ok((thread, inbox));
            }
        }
        Err(io::Error::other(format!("more than {THREADS} threads with an event loop")))
    }

    fn put(&self, id: Id) {
        let mut woken = self.woken.lock();
        if !self.taken.load(Ordering::Acquire) {
            return;
        }
        woken.push(id);
        drop(woken);
        self.filled.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    fn empty(&self) -> Vec<Id> {
        if !self.filled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut woken = self.woken.lock();
        self.filled.store(false, Ordering::SeqCst);
        std::mem::take(&mut woken)
    }

    /// Nobody has this number any more.
    fn give(&self) {
        let mut woken = self.woken.lock();
        woken.clear();
        self.filled.store(false, Ordering::SeqCst);
        self.taken.store(false, Ordering::Release);
    }

    /// The thread is about to wait; false = there is something already.
    fn sleeps(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !self.filled.load(Ordering::SeqCst)
    }
}

/// Who is woken by a task's number.
struct ByNumber;

impl Wakes for ByNumber {
    fn wake(number: usize) {
        let id = Id::of_number(number);
        let here = LOOP.try_with(|this| match &mut *this.at_work.borrow_mut() {
            Some(work) if work.tasks.thread() == id.thread => {
                work.tasks.wake(id);
                true
            }
            _ => false,
        });
        if here != Ok(true)
            && let Some(inbox) = INBOXES.get(id.thread).and_then(OnceLock::get)
        {
            inbox.put(id);
        }
    }
}

/// A task that was started.
#[derive(Debug)]
pub(crate) struct Task(Id);

impl Task {
    /// Ends it where it is, if it still runs.
    pub(crate) fn abort(self) {
        let body = with_work(|work| work.tasks.remove(self.0)).flatten();
        drop(body);
    }
}

/// Starts a task on this thread's loop.
///
/// # Panics
/// Without a loop.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) -> Task {
    let id = with_work(|work| work.tasks.add(Box::pin(task)));
    Task(id.expect("an event loop runs on this thread"))
}

/// Access to the loop's state; nothing foreign may be called in it.
fn with_work<T>(access: impl FnOnce(&mut AtWork) -> T) -> Option<T> {
    LOOP.try_with(|this| this.at_work.borrow_mut().as_mut().map(access)).ok().flatten()
}

/// Counts a call to the kernel that the running task is about to make; pending when it has made so many that
/// others come first.
pub(crate) fn poll_call(cx: &Context<'_>) -> Poll<()> {
    LOOP.with(|this| match this.calls.get() {
        0 if this.at_work.borrow().is_some() => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        calls => {
            this.calls.set(calls.saturating_sub(1));
            Poll::Ready(())
        }
    })
}

/// When this thread's turn began: the first to ask in a turn reads the clock for all.
pub(crate) fn instant() -> Instant {
    LOOP.with(|this| {
        this.turn_began.get().unwrap_or_else(|| {
            let now = Instant::now();
            if this.at_work.borrow().is_some() {
                this.turn_began.set(Some(now));
            }
            now
        })
    })
}

/// Lets everything run that is ready, once.
#[cfg(test)]
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// An event loop that no thread runs yet.
pub(crate) struct EventLoop {
    /// Number of the thread that will.
    thread: usize,
    inbox: &'static Inbox,
    epoll: Epoll,
}

impl EventLoop {
    /// What a thread needs to have one.
    ///
    /// # Errors
    /// Out of descriptors or memory; more than [`THREADS`] loops.
    pub(crate) fn new() -> io::Result<EventLoop> {
        let epoll = Epoll::new()?;
        let (thread, inbox) = Inbox::take()?;
        let this = EventLoop { thread, inbox, epoll };
        inbox.bell.tell(&this.epoll, BELL)?;
        Ok(this)
    }

    /// Runs on this thread until `main` is done; tasks that were started are dropped then.
    ///
    /// # Errors
    /// The kernel does not say what has come.
    ///
    /// # Panics
    /// Where `main` does, or if the thread has a loop already. Other tasks that panic end alone.
    pub(crate) fn run<F: Future>(self, main: F) -> io::Result<F::Output> {
        LOOP.with(|this| {
            assert!(this.at_work.borrow().is_none(), "one event loop within the other");
            let tasks = Tasks::new(self.thread);
            *this.at_work.borrow_mut() =
                Some(AtWork { tasks, source: self, events: Events::default(), woken: Vec::new(), full: 0 });
            let running = Running(this);
            let result = this.run(main);
            drop(running);
            result
        })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.inbox.give();
    }
}

/// Runs a loop of its own for a test.
#[cfg(test)]
pub(crate) fn block_on<F: Future>(main: F) -> io::Result<F::Output> {
    EventLoop::new()?.run(main)
}

/// Ends a loop.
struct Running<'a>(&'a Loop);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A task may wake others while it is dropped, and start some.
        loop {
            match with_work(|work| work.tasks.remove_all()) {
                Some(bodies) if !bodies.is_empty() => drop(bodies),
                _ => break,
            }
        }
        drop(self.0.at_work.take());
        self.0.turn_began.set(None);
    }
}

impl Loop {
    fn run<F: Future>(&self, main: F) -> io::Result<F::Output> {
        let mut main = pin!(main);
        loop {
            for _ in 0..TASKS {
                let Some((id, body)) = self.work(|work| work.tasks.next()) else { break };
                self.calls.set(CALLS);
                let waker = numbered::<ByNumber>(id.number());
                let cx = &mut Context::from_waker(&waker);
                let left = match body {
                    Some(mut body) => match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(cx))) {
                        Ok(Poll::Pending) => Some(body),
                        Ok(Poll::Ready(())) => ended(body),
                        Err(_) => {
                            tracing::error!("a task has panicked: it is ended, the others go on");
                            ended(body)
                        }
                    },
                    None => match main.as_mut().poll(cx) {
                        Poll::Ready(output) => return Ok(output),
                        Poll::Pending => None,
                    },
                };
                let over = self.work(|work| work.tasks.ran(id, left));
                drop(over);
            }
            self.ask()?;
        }
    }

    fn work<T>(&self, access: impl FnOnce(&mut AtWork) -> T) -> T {
        access(self.at_work.borrow_mut().as_mut().expect("it runs"))
    }

    /// Wakes who is due, was woken by other threads or has something to read or write.
    fn ask(&self) -> io::Result<()> {
        let (mut woken, more) = self.work(|work| {
            for id in work.source.inbox.empty() {
                work.tasks.wake(id);
            }
            let waits = !work.tasks.begin_turn() && work.source.inbox.sleeps();
            let limit = if waits { deadline::until_next() } else { Some(Duration::ZERO) };
            let mut woken = std::mem::take(&mut work.woken);
            let result = work.source.epoll.wait(limit, &mut work.events, |token, flags| {
                if token != BELL {
                    watch::heard(token, flags, &mut woken);
                }
            });
            work.source.inbox.asleep.store(false, Ordering::Relaxed);
            result.map(|full| {
                work.full = if full { work.full + 1 } else { 0 };
                (woken, (1..PATIENCE).contains(&work.full))
            })
        })?;
        self.turn_began.set(None);
        woken.drain(..).for_each(Waker::wake);
        self.work(|work| work.woken = woken);
        // What came in time is heard before anybody's time is up, also after the thread has stood still.
        if !more {
            deadline::wake_due();
        }
        Ok(())
    }
}

/// Drops the state of a task that has ended, whatever comes of that.
fn ended(body: tasks::Body) -> Option<tasks::Body> {
    if catch_unwind(AssertUnwindSafe(|| drop(body))).is_err() {
        tracing::error!("a task has panicked at its end");
    }
    None
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn tasks_run_beside_main_and_are_dropped_with_it() {
        let log = Rc::new(RefCell::new(Vec::new()));
        struct Says(Rc<RefCell<Vec<&'static str>>>, &'static str);
        impl Drop for Says {
            fn drop(&mut self) {
                self.0.borrow_mut().push(self.1);
            }
        }
        let test = async {
            let says = Says(log.clone(), "dropped");
            spawn(async move {
                says.0.borrow_mut().push("ran");
                std::future::pending::<()>().await;
                drop(says);
            });
            let says = Says(log.clone(), "aborted");
            let task = spawn(async move {
                std::future::pending::<()>().await;
                drop(says);
            });
            yield_now().await;
            task.abort();
            log.borrow_mut().push("main");
        };
        block_on(test).unwrap();
        assert_eq!(*log.borrow(), ["ran", "aborted", "main", "dropped"]);
    }

    #[test]
    fn one_that_panics_ends_alone() {
        let test = async {
            spawn(async { panic!("on purpose") });
            let (sender, receiver) = tokio::sync::oneshot::channel();
            spawn(async move {
                yield_now().await;
                let _ = sender.send(7);
            });
            receiver.await
        };
        assert_eq!(block_on(test).unwrap(), Ok(7));
    }

    /// A wake from outside is never lost, whether it comes before, after or while the thread falls asleep.
    #[test]
    fn other_threads_wake_it_each_time() {
        let (to_other, orders) = mpsc::channel::<Waker>();
        let woken = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counts = woken.clone();
        let other = std::thread::spawn(move || {
            for waker in orders {
                counts.fetch_add(1, Ordering::SeqCst);
                waker.wake();
            }
        });
        let test = async {
            for nth in 1..=4_000 {
                let mut asked = false;
                poll_fn(|cx| {
                    if !std::mem::replace(&mut asked, true) {
                        to_other.send(cx.waker().clone()).unwrap();
                    }
                    if woken.load(Ordering::SeqCst) == nth { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        };
        block_on(test).unwrap();
        drop(to_other);
        other.join().unwrap();
    }

    #[test]
    fn wakers_of_a_loop_that_has_ended_wake_nobody() {
        let stale = block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone()))).unwrap();
        stale.wake_by_ref();
        std::thread::spawn(move || stale.wake()).join().unwrap();
        assert_eq!(block_on(async { 7 }).unwrap(), 7);
    }
}
