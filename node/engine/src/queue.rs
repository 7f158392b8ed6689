//! Streams that wait for a place: the queue of the backend and those of its servers.
//!
//! One lock per backend, taken only while somebody waits. A place that becomes free goes to the
//! older of the heads of the server's queue and the backend's. No wake-up is lost: who enqueues
//! raises [`Backend::waiting`] and then looks for free places; who frees a place lowers `served` and
//! then looks at `waiting`; both sequentially consistent, so one of them sees the other.
//! Timeouts are the caller's: it drops the [`Waiting`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, Waker};

use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::backend::Backend;
use crate::counters::Worker;
use crate::server::Server;

/// One counted place on a server; dropping it hands the place to the next that waits.
pub struct Slot {
    backend: Arc<Backend>,
    server: Arc<Server>,
    ahead: Ahead,
}

/// How many streams were served before this one while it waited: `%sq` and `%bq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// In the server's queue.
    pub server: u32,
    /// In the backend's queue.
    pub backend: u32,
}

impl Slot {
    pub(crate) fn new(backend: Arc<Backend>, server: Arc<Server>, ahead: Ahead) -> Slot {
        Slot { backend, server, ahead }
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Streams served before while this one waited.
    pub fn ahead(&self) -> Ahead {
        self.ahead
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.backend.release(&self.server);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}/{})", self.backend.name(), self.server.name())
    }
}

/// What ends a wait.
#[derive(Debug)]
pub enum Grant {
    /// A place on a server.
    Slot(Slot),
    /// The server waited for is gone: choose again, without it.
    ChooseAgain,
}

/// A place in a queue; dropping it leaves the queue.
pub struct Waiting {
    backend: Arc<Backend>,
    node: Arc<Node>,
    worker: Worker,
    done: bool,
}

impl Waiting {
    /// Asks whether the wait is over; otherwise `cx` is woken when it is, from any thread.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Grant> {
        let mut state = self.node.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Waiting(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => waker,
                    _ => cx.waker().clone(),
                };
                *state = State::Waiting(Some(waker));
                Poll::Pending
            }
            State::Granted(server, ahead) => {
                self.done = true;
                drop(state);
                if self.node.server.is_none() {
                    self.backend.count_selection(&server, self.worker, None);
                }
                Poll::Ready(Grant::Slot(Slot::new(self.backend.clone(), server, ahead)))
            }
            State::Again | State::Taken => {
                self.done = true;
                Poll::Ready(Grant::ChooseAgain)
            }
        }
    }

    /// The server waited for; `None` in the backend's queue.
    pub fn server(&self) -> Option<&Arc<Server>> {
        self.node.server.as_ref()
    }

    /// Streams served before while this one has waited so far: for the log of one that gives up.
    pub fn ahead(&self) -> Ahead {
        let queues = self.backend.queues().lock();
        self.node.ahead(&queues)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.done {
            self.backend.leave(&self.node);
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waiting({}, {:?})", self.backend.name(), self.node.server)
    }
}

/// One waiting stream, shared by its [`Waiting`] and the queue.
pub(crate) struct Node {
    sequence: u64,
    server: Option<Arc<Server>>,
    /// What its queue had handed out when it came.
    served_before: u64,
    state: Mutex<State>,
}

enum State {
    Waiting(Option<Waker>),
    Granted(Arc<Server>, Ahead),
    Again,
    Taken,
}

impl Node {
    fn ahead(&self, queues: &Queues) -> Ahead {
        let handed_out = match &self.server {
            Some(server) => queues.servers.get(&server.serial()).map_or(self.served_before, |q| q.handed_out),
            None => queues.backend.handed_out,
        };
        // As HAProxy, whose count begins with the request itself.
        let ahead = handed_out.saturating_sub(self.served_before) as u32 + 1;
        match self.server {
            Some(_) => Ahead { server: ahead, backend: 0 },
            None => Ahead { server: 0, backend: ahead },
        }
    }
}

#[derive(Default)]
struct Fifo {
    nodes: BTreeMap<u64, Arc<Node>>,
    handed_out: u64,
}

/// All queues of a backend, under its lock.
#[derive(Default)]
pub(crate) struct Queues {
    sequence: u64,
    backend: Fifo,
    /// By server; only queues that are not empty.
    servers: HashMap<u64, Fifo>,
}

/// Wakers to call once the lock is released.
type Wakers = SmallVec<[Waker; 4]>;

fn wake(wakers: Wakers) {
    for waker in wakers {
        waker.wake();
    }
}

impl Queues {
    fn push(&mut self, server: Option<Arc<Server>>) -> Arc<Node> {
        self.sequence += 1;
        let sequence = self.sequence;
        let fifo = match &server {
            Some(server) => self.servers.entry(server.serial()).or_default(),
            None => &mut self.backend,
        };
        let served_before = fifo.handed_out;
        let node =
            Arc::new(Node { sequence, server, served_before, state: Mutex::new(State::Waiting(None)) });
        fifo.nodes.insert(sequence, node.clone());
        node
    }

    fn remove(&mut self, node: &Node) {
        match &node.server {
            None => {
                self.backend.nodes.remove(&node.sequence);
            }
            Some(server) => {
                if let Some(fifo) = self.servers.get_mut(&server.serial()) {
                    fifo.nodes.remove(&node.sequence);
                    if fifo.nodes.is_empty() {
                        self.servers.remove(&server.serial());
                    }
                }
            }
        }
    }

    /// The oldest that this server may serve.
    fn head(&self, server: &Server) -> Option<Arc<Node>> {
        let own = self.servers.get(&server.serial()).and_then(|q| q.nodes.first_key_value());
        let own = own.filter(|_| server.accepts_persistent());
        let common = self.backend.nodes.first_key_value().filter(|_| server.in_farm());
        let (_, node) = match (own, common) {
            (Some(own), Some(common)) => own.min_by_sequence(common),
            (own, common) => own.or(common)?,
        };
        Some(node.clone())
    }

    fn queue_of(&mut self, node: &Node) -> Option<&mut Fifo> {
        match &node.server {
            Some(server) => self.servers.get_mut(&server.serial()),
            None => Some(&mut self.backend),
        }
    }
}

trait Older: Sized {
    fn min_by_sequence(self, other: Self) -> Self;
}

impl Older for (&u64, &Arc<Node>) {
    fn min_by_sequence(self, other: Self) -> Self {
        if self.0 <= other.0 { self } else { other }
    }
}

/// How an attempt to enqueue ended.
#[derive(Debug)]
pub(crate) enum Enqueued {
    Slot(Slot),
    Waiting(Waiting),
    /// The server's queue is full (`maxqueue`), or the server is gone or in maintenance.
    Refused,
}

impl Backend {
    /// Enters the queue of a server, or of the backend.
    pub(crate) fn enqueue(self: &Arc<Self>, server: Option<&Arc<Server>>, worker: Worker) -> Enqueued {
        let mut queues = self.queues().lock();
        if let Some(server) = server {
            let maxqueue = server.maxqueue();
            // Looked at under the lock, so that whoever sends the queue away misses nobody.
            let gone = server.is_removed() || server.admin().maint();
            if gone || (maxqueue > 0 && server.queued() >= maxqueue) {
                return Enqueued::Refused;
            }
            server.note_queued();
        }
        let node = queues.push(server.cloned());
        self.note_waiting(server.is_none());
        let mut wakers = Wakers::new();
        match server {
            Some(server) => self.serve(&mut queues, server, &mut wakers),
            None => {
                for server in self.farm().servers() {
                    self.serve(&mut queues, server, &mut wakers);
                }
            }
        }
        drop(queues);
        wake(wakers);
        let mut waiting = Waiting { backend: self.clone(), node, worker, done: false };
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Grant::Slot(slot)) => Enqueued::Slot(slot),
            Poll::Ready(Grant::ChooseAgain) => Enqueued::Refused,
            Poll::Pending => {
                self.ring();
                Enqueued::Waiting(waiting)
            }
        }
    }

    /// Gives a place back and hands it on.
    pub(crate) fn release(&self, server: &Arc<Server>) {
        server.release();
        if self.waiting() > 0 {
            let mut wakers = Wakers::new();
            self.serve(&mut self.queues().lock(), server, &mut wakers);
            wake(wakers);
        }
    }

    /// Hands out every free place: after servers came back or limits rose.
    pub(crate) fn serve_all(&self) {
        if self.waiting() == 0 {
            return;
        }
        let mut wakers = Wakers::new();
        let mut queues = self.queues().lock();
        for server in self.servers().iter() {
            self.serve(&mut queues, server, &mut wakers);
        }
        drop(queues);
        wake(wakers);
        self.check_queue_invariants();
    }

    /// Sends away everybody who waits for this server; returns how many.
    pub(crate) fn redistribute(&self, server: &Server) -> u32 {
        let mut wakers = Wakers::new();
        let mut queues = self.queues().lock();
        let fifo = queues.servers.remove(&server.serial()).unwrap_or_default();
        let count = fifo.nodes.len() as u32;
        for node in fifo.nodes.into_values() {
            self.forget_waiting(Some(server));
            if let State::Waiting(Some(waker)) = std::mem::replace(&mut *node.state.lock(), State::Again) {
                wakers.push(waker);
            }
        }
        drop(queues);
        wake(wakers);
        count
    }

    fn leave(&self, node: &Arc<Node>) {
        let mut queues = self.queues().lock();
        let state = std::mem::replace(&mut *node.state.lock(), State::Taken);
        if let State::Waiting(_) = state {
            queues.remove(node);
            self.forget_waiting(node.server.as_deref());
        }
        drop(queues);
        // Granted but never taken: pass it on.
        if let State::Granted(server, _) = state {
            self.release(&server);
        }
    }

    /// Hands this server's free places to those who wait for it.
    fn serve(&self, queues: &mut Queues, server: &Arc<Server>, wakers: &mut Wakers) {
        while let Some(node) = queues.head(server) {
            if !server.claim(self.limit(server)) {
                return;
            }
            let ahead = node.ahead(queues);
            if let Some(fifo) = queues.queue_of(&node) {
                fifo.handed_out += 1;
            }
            queues.remove(&node);
            self.forget_waiting(node.server.as_deref());
            let before = std::mem::replace(&mut *node.state.lock(), State::Granted(server.clone(), ahead));
            if let State::Waiting(Some(waker)) = before {
                wakers.push(waker);
            }
        }
    }

    fn note_waiting(&self, common: bool) {
        self.waiting_counter().fetch_add(1, SeqCst);
        if common {
            self.note_queued();
        }
    }

    fn forget_waiting(&self, server: Option<&Server>) {
        self.waiting_counter().fetch_sub(1, SeqCst);
        match server {
            Some(server) => {
                server.queued.fetch_sub(1, SeqCst);
            }
            None => self.forget_queued(),
        }
    }

    /// Under the lock, counters and queues agree, and nobody waits for a server with a free place.
    pub(crate) fn check_queue_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let queues = self.queues().lock();
        let in_server_queues: usize = queues.servers.values().map(|q| q.nodes.len()).sum();
        assert_eq!(self.waiting() as usize, queues.backend.nodes.len() + in_server_queues);
        assert_eq!(self.queued() as usize, queues.backend.nodes.len());
        for server in self.servers().iter() {
            let len = queues.servers.get(&server.serial()).map_or(0, |q| q.nodes.len());
            assert_eq!(server.queued() as usize, len, "server {}", server.name());
        }
    }
}
