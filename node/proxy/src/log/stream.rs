//! A standard stream as a log receiver.
//!
//! Every thread that logs appends to a bounded buffer of its own; one writer thread, started with the
//! first line, takes the buffers in turn and writes whole lines. A worker shares its buffer's lock
//! with the writer only, for the time of a swap, so workers never wait for each other or the reader.

use std::cell::RefCell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Most bytes that wait for the writer per thread.
const LIMIT: usize = 256 * 1024;

/// One stream and its writer.
pub(super) struct Stream {
    shared: Arc<Shared>,
}

struct Shared {
    id: usize,
    open: fn() -> Box<dyn Write>,
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    writer: OnceLock<Option<Thread>>,
    /// The writer is about to park, or parked: whoever clears this wakes it.
    asleep: AtomicBool,
    /// The writer is in a round: what it took may not be written yet.
    writing: AtomicBool,
}

/// A thread's buffer for the stream of that id.
type Registered = (usize, Arc<Mutex<Vec<u8>>>);

thread_local! {
    static BUFFERS: RefCell<Vec<Registered>> = const { RefCell::new(Vec::new()) };
}

static NEXT_ID: AtomicUsize = AtomicUsize::new(0);

impl Stream {
    pub(super) fn stdout() -> Stream {
        Stream::new(|| Box::new(std::io::stdout()))
    }

    pub(super) fn stderr() -> Stream {
        Stream::new(|| Box::new(std::io::stderr()))
    }

    fn new(open: fn() -> Box<dyn Write>) -> Stream {
        let shared = Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            open,
            buffers: Mutex::default(),
            writer: OnceLock::new(),
            asleep: AtomicBool::new(false),
            writing: AtomicBool::new(false),
        };
        Stream { shared: Arc::new(shared) }
    }

    /// Queues a whole line; false when it does not fit.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let Some(writer) = self.shared.writer.get_or_init(|| spawn(&self.shared)) else { return false };
        BUFFERS.with_borrow_mut(|mine| {
            let index = mine.iter().position(|(id, _)| *id == self.shared.id).unwrap_or_else(|| {
                // Buffers whose stream is gone are held by this thread alone.
                mine.retain(|(_, buffer)| Arc::strong_count(buffer) > 1);
                let buffer = Arc::new(Mutex::new(Vec::new()));
                self.shared.buffers.lock().push(buffer.clone());
                mine.push((self.shared.id, buffer));
                mine.len() - 1
            });
            let mut buffer = mine[index].1.lock();
            if buffer.len() + line.len() > LIMIT {
                return false;
            }
            buffer.extend_from_slice(line);
            true
        }) && {
            // A load first: the flag's cache line stays shared while the writer is busy. The buffer's
            // lock orders this load after the announcement of a writer that missed the line.
            let asleep = &self.shared.asleep;
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                writer.unpark();
            }
            true
        }
    }

    pub(super) fn flush(&self, limit: Duration) {
        if self.shared.writer.get().is_none() {
            return;
        }
        let end = Instant::now() + limit;
        while self.shared.waiting() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The writer holds only a weak reference between rounds and leaves once it finds this gone.
        if let Some(Some(writer)) = self.shared.writer.get() {
            writer.unpark();
        }
    }
}

fn spawn(shared: &Arc<Shared>) -> Option<Thread> {
    let weak = Arc::downgrade(shared);
    let run = move || {
        let Some(mut out) = weak.upgrade().map(|shared| (shared.open)()) else { return };
        let mut taken = Vec::new();
        while let Some(shared) = weak.upgrade() {
            if shared.round(&mut out, &mut taken) {
                continue;
            }
            // Announce the sleep, then look once more: a line pushed before the announcement is
            // seen by this look, one pushed after it finds the flag and wakes us.
            shared.asleep.store(true, Ordering::SeqCst);
            if shared.round(&mut out, &mut taken) {
                shared.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            drop(shared);
            std::thread::park_timeout(Duration::from_secs(1));
        }
    };
    let builder = std::thread::Builder::new().name("log".to_owned());
    builder.spawn(run).ok().map(|handle| handle.thread().clone())
}

impl Shared {
    /// Whether a line is not written yet: the writer says that it writes before it takes a buffer.
    fn waiting(&self) -> bool {
        let full = self.buffers.lock().iter().any(|b| !b.lock().is_empty());
        full || self.writing.load(Ordering::SeqCst)
    }

    /// Writes what every buffer holds; false when there was nothing.
    fn round(&self, out: &mut dyn Write, taken: &mut Vec<u8>) -> bool {
        self.writing.store(true, Ordering::SeqCst);
        let mut any = false;
        let mut index = 0;
        loop {
            let Some(buffer) = self.buffers.lock().get(index).cloned() else { break };
            taken.clear();
            std::mem::swap(taken, &mut *buffer.lock());
            if !taken.is_empty() {
                any = true;
                // A closed stream has no one left to be told.
                let _ = out.write_all(taken).and_then(|()| out.flush());
            }
            index += 1;
        }
        if !any {
            // Threads that ended leave their buffer to the stream alone.
            self.buffers.lock().retain(|b| Arc::strong_count(b) > 1 || !b.lock().is_empty());
        }
        self.writing.store(false, Ordering::SeqCst);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct Memory;

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            WRITTEN.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_all_threads_arrive_whole_and_in_each_threads_order() {
        let stream = Stream::new(|| Box::new(Memory));
        std::thread::scope(|scope| {
            for t in 0..4 {
                let stream = &stream;
                scope.spawn(move || {
                    for i in 0..500 {
                        assert!(stream.push(format!("{t} {i} {}\n", "x".repeat(20)).as_bytes()));
                    }
                });
            }
        });
        stream.flush(Duration::from_secs(10));
        let text = String::from_utf8(WRITTEN.lock().clone()).expect("utf-8");
        let mut next = [0; 4];
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut number = || words.next().and_then(|w| w.parse::<usize>().ok()).expect("a number");
            let (t, i) = (number(), number());
            assert_eq!(i, next[t], "{line}");
            next[t] += 1;
            assert_eq!(words.next(), Some("x".repeat(20).as_str()));
        }
        assert_eq!(next, [500; 4]);
    }

    static GATE: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);

    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_never_time() {
        let (open, gate) = mpsc::channel();
        *GATE.lock() = Some(gate);
        let stream = Stream::new(|| Box::new(Stuck(GATE.lock().take().expect("opened once"))));
        let line = [b'x'; 1024];
        let sent = (0..4096).filter(|_| stream.push(&line)).count();
        assert!((LIMIT / 1024..4096).contains(&sent), "{sent}");
        drop(open);
        stream.flush(Duration::from_secs(10));
        assert!(stream.push(&line), "room again once the reader reads");
    }
}
