//! Clients and servers of all cases, in one thread on one CPU.
//!
//! Owns every connection of the load. One epoll loop for both sides costs the fewest syscalls and no
//! context switch, so that the proxy, with a CPU of its own, is the first to be saturated. Two ways to
//! ask: the next question follows an answer, or ([`Pace`]) each is due at a time that no answer moves,
//! from which its own is counted.

mod client;
mod histogram;
mod origin;
mod tls;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::client::{Client, Progress};
pub(crate) use self::client::{Script, Talk};
pub(crate) use self::histogram::Histogram;
use self::origin::{Content, Fate, Served};
pub(crate) use self::origin::{LARGE, MIDDLE, SMALL, Service};
pub(crate) use self::tls::Tls;
use self::wire::Wire;

/// What happened between two looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// Answers that were whole; connections that were over in [`Talk::Knock`].
    pub(crate) done: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
    /// What went wrong, and how often.
    pub(crate) failed: BTreeMap<&'static str, u64>,
    /// Times of those that were whole.
    pub(crate) times: Histogram,
    /// Connections that the servers were sent.
    pub(crate) accepted: u64,
    /// Answers on TLS connections with an earlier one's keys.
    pub(crate) resumed: u64,
    /// How long it was.
    pub(crate) elapsed: Duration,
}

impl Window {
    /// Adds what happened in another.
    pub(crate) fn add(&mut self, other: &Window) {
        self.done += other.done;
        self.bytes += other.bytes;
        self.accepted += other.accepted;
        self.resumed += other.resumed;
        self.elapsed += other.elapsed;
        self.times.merge(&other.times);
        for (what, count) in &other.failed {
            *self.failed.entry(what).or_default() += count;
        }
    }

    /// How many went wrong.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Times at which questions are due.
#[derive(Debug)]
struct Pace {
    next: Instant,
    every: Duration,
    /// Due, with no connection free.
    late: VecDeque<Instant>,
    free: Vec<usize>,
}

enum Slot {
    Free,
    Listener(TcpListener, Service),
    Served(Served),
    Client(Client),
}

/// All connections, and what the clients do.
pub(crate) struct Generator {
    epoll: Epoll,
    slots: Vec<Slot>,
    free: Vec<usize>,
    content: Content,
    scratch: Vec<u8>,
    script: Option<Script>,
    pace: Option<Pace>,
    /// Connections that are to stay after their first exchange.
    hold: usize,
    held: usize,
    connected: u64,
    asked: u64,
    /// Clients that failed and are to be replaced: later, or a refusal would come round at once.
    reopen: usize,
    window: Window,
}

/// A wait for one answer longer than this is a failure.
const PATIENCE: Duration = Duration::from_secs(3);

impl Generator {
    /// One without work.
    ///
    /// # Errors
    /// The kernel gives no epoll or file.
    pub(crate) fn new() -> io::Result<Generator> {
        Ok(Generator {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            content: Content::new()?,
            scratch: vec![0; LARGE as usize],
            script: None,
            pace: None,
            hold: 0,
            held: 0,
            connected: 0,
            asked: 0,
            reopen: 0,
            window: Window::default(),
        })
    }

    /// Serves at an address.
    ///
    /// # Errors
    /// It is taken.
    pub(crate) fn serve(&mut self, addr: SocketAddr, service: Service) -> io::Result<()> {
        let listener = TcpListener::bind(addr)?;
        // The standard library asks for a backlog of 128 only.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
        listener.set_nonblocking(true)?;
        let index = self.place();
        self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        self.slots[index] = Slot::Listener(listener, service);
        Ok(())
    }

    /// Exchanges begun so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Begins what clients do, as fast as it is answered.
    pub(crate) fn begin(&mut self, script: Script) -> Result<(), String> {
        self.end();
        self.start(script)
    }

    /// Begins what clients do, so often a second.
    pub(crate) fn begin_paced(&mut self, script: Script, rate: f64) -> Result<(), String> {
        self.end();
        let every = Duration::from_secs_f64(1.0 / rate);
        let (next, late, free) = (Instant::now() + Duration::from_millis(20), VecDeque::new(), Vec::new());
        self.pace = Some(Pace { next, every, late, free });
        self.start(script)
    }

    fn start(&mut self, script: Script) -> Result<(), String> {
        let connections = script.connections;
        self.script = Some(script);
        (0..connections).try_for_each(|_| self.open())
    }

    /// Opens connections that stay idle after one exchange each, until there are so many.
    pub(crate) fn hold(&mut self, script: Script, count: usize) -> Result<(), String> {
        self.end();
        self.hold = count;
        let at_once = script.connections.min(count);
        self.script = Some(script);
        (0..at_once).try_for_each(|_| self.open())?;
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.held < count {
            self.turn(Duration::from_millis(20))?;
            if let Some((what, _)) = self.window.failed.first_key_value() {
                return Err(format!("connection {} of {count}: {what}", self.held + 1));
            }
            if Instant::now() > deadline {
                return Err(format!("only {} of {count} connections within 90 s", self.held));
            }
        }
        Ok(())
    }

    /// Ends all clients.
    pub(crate) fn end(&mut self) {
        for index in 0..self.slots.len() {
            if matches!(self.slots[index], Slot::Client(_)) {
                self.drop_slot(index);
            }
        }
        (self.script, self.pace) = (None, None);
        (self.hold, self.held, self.reopen) = (0, 0, 0);
        self.window = Window::default();
    }

    /// Runs for this long and says what happened meanwhile.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Window, String> {
        self.window = Window::default();
        let began = Instant::now();
        loop {
            let elapsed = began.elapsed();
            if elapsed >= time {
                break;
            }
            self.turn(time - elapsed)?;
        }
        self.give_up_on_the_silent();
        self.window.elapsed = began.elapsed();
        Ok(std::mem::take(&mut self.window))
    }

    /// Runs until so many answers have come.
    pub(crate) fn run_until(&mut self, done: u64, limit: Duration) -> Result<Window, String> {
        self.window = Window::default();
        let began = Instant::now();
        while self.window.done < done {
            self.turn(Duration::from_millis(50))?;
            if began.elapsed() > limit {
                return Err(format!("only {} of {done} answers within {limit:?}", self.window.done));
            }
        }
        self.window.elapsed = began.elapsed();
        Ok(std::mem::take(&mut self.window))
    }

    /// Waits for events at most this long and carries them out.
    fn turn(&mut self, most: Duration) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 128];
        let wait = if self.pace.is_some() {
            // Busy: a sleep would end later than the next question is due.
            EpollTimeout::ZERO
        } else {
            let ms = (most.as_millis() as u16).saturating_add(1).min(100);
            EpollTimeout::from(ms)
        };
        let count = match self.epoll.wait(&mut events, wait) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(format!("epoll: {e}")),
        };
        for event in &events[..count] {
            self.event(event.data() as usize, event.events())?;
        }
        for _ in 0..std::mem::take(&mut self.reopen) {
            self.open()?;
        }
        self.ask_what_is_due()
    }

    fn event(&mut self, index: usize, flags: EpollFlags) -> Result<(), String> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        match slot {
            // Of a connection that ended earlier in the same batch.
            Slot::Free => Ok(()),
            Slot::Listener(..) => self.accept(index),
            Slot::Served(served) => {
                let was = served.blocked;
                let mut fate = Ok(Fate::Stays);
                if flags.contains(EpollFlags::EPOLLOUT) {
                    fate = served.writable(&self.content);
                }
                if matches!(fate, Ok(Fate::Stays)) && flags.intersects(READABLE) {
                    fate = served.readable(&self.content, &mut self.scratch);
                }
                match fate {
                    Ok(Fate::Stays) => {
                        if was != served.blocked {
                            let (wire, blocked) = (&served.wire, served.blocked);
                            rearm(&self.epoll, wire, index, blocked)?;
                        }
                    }
                    Ok(Fate::Ends) | Err(_) => self.drop_slot(index),
                }
                Ok(())
            }
            Slot::Client(client) => {
                let was = client.blocked;
                let mut progress = Progress::Going;
                if flags.contains(EpollFlags::EPOLLOUT)
                    && let Err(what) = client.push(self.content.file())
                {
                    progress = Progress::Failed(what);
                }
                let script = self.script.as_ref().ok_or("clients without a script")?;
                if progress == Progress::Going && flags.intersects(READABLE) {
                    progress = client.pull(script, &mut self.scratch);
                }
                if was && !client.blocked {
                    rearm(&self.epoll, &client.wire, index, false)?;
                }
                self.handle(index, progress)
            }
        }
    }

    fn accept(&mut self, index: usize) -> Result<(), String> {
        // A few at a time; the event comes again.
        for _ in 0..16 {
            let Slot::Listener(listener, service) = &self.slots[index] else { return Ok(()) };
            let Ok((stream, _)) = listener.accept() else { return Ok(()) };
            let service = *service;
            self.window.accepted += 1;
            let wire = Wire::accepted(stream).map_err(|e| format!("origin: {e}"))?;
            let served = Served::new(wire, service);
            let place = self.place();
            let flags = if served.blocked { BOTH } else { EpollFlags::EPOLLIN };
            self.epoll
                .add(&served.wire, EpollEvent::new(flags, place as u64))
                .map_err(|e| format!("epoll: {e}"))?;
            self.slots[place] = Slot::Served(served);
            // The request has often come with it.
            self.event(place, EpollFlags::EPOLLIN)?;
        }
        Ok(())
    }

    fn handle(&mut self, index: usize, progress: Progress) -> Result<(), String> {
        let over = matches!(progress, Progress::Over(_));
        match progress {
            Progress::Going => return Ok(()),
            Progress::Bytes(n) => {
                self.window.bytes += n;
                return Ok(());
            }
            Progress::Failed(what) => {
                *self.window.failed.entry(what).or_default() += 1;
                self.drop_slot(index);
                self.reopen += 1;
                return Ok(());
            }
            Progress::Complete(bytes) | Progress::Over(bytes) => {
                self.window.done += 1;
                self.window.bytes += bytes;
                if let Slot::Client(client) = &self.slots[index] {
                    self.window.times.record(client.began.elapsed());
                    self.window.resumed += u64::from(client.wire.resumed());
                }
            }
        }
        if over {
            self.drop_slot(index);
            return self.open();
        }
        if self.hold > 0 {
            self.held += 1;
            let opening = self.script.as_ref().map_or(1, |script| script.connections);
            return if self.held + opening <= self.hold { self.open() } else { Ok(()) };
        }
        self.ask_next(index, Instant::now())
    }

    /// Asks on a free connection; where questions have their times, what was due before one was free, if
    /// anything was.
    fn ask_next(&mut self, index: usize, began: Instant) -> Result<(), String> {
        let Some(pace) = &mut self.pace else { return self.ask(index, began) };
        match pace.late.pop_front() {
            Some(due) => self.ask(index, due),
            None => {
                pace.free.push(index);
                Ok(())
            }
        }
    }

    fn ask_what_is_due(&mut self) -> Result<(), String> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let now = Instant::now();
        let mut ready = Vec::new();
        while pace.next <= now {
            match pace.free.pop() {
                Some(index) => ready.push((index, pace.next)),
                None => pace.late.push_back(pace.next),
            }
            pace.next += pace.every;
        }
        ready.into_iter().try_for_each(|(index, due)| self.ask(index, due))
    }

    /// Opens a connection and asks.
    fn open(&mut self) -> Result<(), String> {
        let script = self.script.as_ref().ok_or("clients without a script")?;
        let client = Client::connect(script, self.connected, Instant::now());
        self.connected += 1;
        let client = client.map_err(|e| format!("cannot connect to {}: {e}", script.target))?;
        let index = self.place();
        self.epoll
            .add(&client.wire, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))
            .map_err(|e| format!("epoll: {e}"))?;
        let began = client.began;
        self.slots[index] = Slot::Client(client);
        self.ask_next(index, began)
    }

    fn ask(&mut self, index: usize, began: Instant) -> Result<(), String> {
        let Slot::Client(client) = &mut self.slots[index] else { return Ok(()) };
        let script = self.script.as_ref().ok_or("clients without a script")?;
        client.ask(script, self.asked, began);
        self.asked += 1;
        let pushed = client.push(self.content.file());
        if client.blocked {
            rearm(&self.epoll, &client.wire, index, true)?;
        }
        match pushed {
            Ok(()) => Ok(()),
            Err(what) => self.handle(index, Progress::Failed(what)),
        }
    }

    fn give_up_on_the_silent(&mut self) {
        if matches!(self.script.as_ref().map(|s| s.talk), None | Some(Talk::Bulk)) {
            return;
        }
        let silent = |slot: &Slot| matches!(slot, Slot::Client(c) if !c.idle && c.began.elapsed() > PATIENCE);
        for index in 0..self.slots.len() {
            if silent(&self.slots[index]) {
                *self.window.failed.entry("no answer within 3 s").or_default() += 1;
                self.drop_slot(index);
                self.reopen += 1;
            }
        }
    }

    fn place(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        })
    }

    fn drop_slot(&mut self, index: usize) {
        if let Some(pace) = &mut self.pace {
            pace.free.retain(|free| *free != index);
        }
        self.slots[index] = Slot::Free;
        self.free.push(index);
    }
}

const BOTH: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLOUT);
const READABLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

fn rearm(epoll: &Epoll, wire: &impl AsFd, index: usize, blocked: bool) -> Result<(), String> {
    let flags = if blocked { BOTH } else { EpollFlags::EPOLLIN };
    epoll.modify(wire, &mut EpollEvent::new(flags, index as u64)).map_err(|e| format!("epoll: {e}"))
}
