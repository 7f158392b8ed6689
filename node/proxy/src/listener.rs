//! A worker's listening sockets: accept, take a place, start a session.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use phalanx_engine::frontend::{Frontend, Status};

use crate::deadline::sleep;
use crate::room::{Limit, Place};
use crate::runtime::{Side, Task, Watch, poll_call, spawn};
use crate::session;
use crate::worker::Worker;

/// What tells one listening socket from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) addr: SocketAddr,
    pub(crate) interface: Option<String>,
    pub(crate) v6only: Option<bool>,
    /// Which of several equal lines; port 0 may be bound any number of times.
    pub(crate) nth: usize,
}

/// Where a listener's connections go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Name of the frontend.
    pub(crate) frontend: Arc<Frontend>,
    /// Where the socket is bound.
    pub(crate) addr: SocketAddr,
    /// `maxconn` of the `bind` line.
    pub(crate) limit: Arc<Limit>,
    /// `clitcpka`.
    pub(crate) keepalive: bool,
    /// `option tcp-smart-accept`.
    pub(crate) slow_ack: bool,
}

struct Socket {
    listener: TcpListener,
    watch: Watch,
}

/// One listening socket of one worker.
pub(crate) struct Listener {
    socket: Rc<Socket>,
    target: Rc<RefCell<Rc<Target>>>,
    task: Task,
}

impl Listener {
    /// Begins accepting.
    pub(crate) fn start(worker: &Rc<Worker>, socket: TcpListener, target: Target) -> io::Result<Listener> {
        // Connections inherit these from their listener: one system call less for each.
        phalanx_sys::net::tune_listener(&socket, target.keepalive, target.slow_ack)?;
        let watch = Watch::new();
        watch.set(socket.as_fd(), true)?;
        let socket = Rc::new(Socket { listener: socket, watch });
        let target = Rc::new(RefCell::new(Rc::new(target)));
        let task = spawn(accept(worker.clone(), socket.clone(), target.clone()));
        Ok(Listener { socket, target, task })
    }

    /// Sends new connections to another frontend.
    pub(crate) fn retarget(&self, target: Target) {
        if let Err(e) =
            phalanx_sys::net::tune_listener(&self.socket.listener, target.keepalive, target.slow_ack)
        {
            tracing::warn!("{}: options of the listener stay as they were: {e}", target.addr);
        }
        *self.target.borrow_mut() = Rc::new(target);
    }

    /// Ends it; connections that the kernel has already accepted are served.
    pub(crate) fn close(self, worker: &Rc<Worker>) {
        self.task.abort();
        let target = self.target.borrow().clone();
        // Asked of the kernel: the event loop may not have heard yet of the last ones.
        while let Ok((stream, peer)) = phalanx_sys::net::accept(&self.socket.listener) {
            if let Some(place) =
                worker.shared.room.enter(&target.limit, &target.frontend, worker.shared.state.process())
            {
                session::start(worker, stream, peer, &target, place);
            }
        }
        // The guardian may hold duplicates: closing alone would leave the port open.
        self.socket.watch.end(self.socket.listener.as_fd());
        let _ = phalanx_sys::net::shutdown(&self.socket.listener);
    }
}

async fn accept(worker: Rc<Worker>, socket: Rc<Socket>, target: Rc<RefCell<Rc<Target>>>) {
    let mut queue = Queue::default();
    loop {
        let current = target.borrow().clone();
        if current.frontend.status() != Status::Open {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        // While there is no room, connections stay in the kernel's queue.
        poll_fn(|cx| poll_room(&worker, &current, cx)).await;
        let accepted = poll_fn(|cx| poll_accept(&socket, &mut queue, cx)).await;
        // A reload may have come while waiting.
        let current = target.borrow().clone();
        match accepted {
            Ok((stream, peer)) => {
                // Another worker may have been faster; then this one connection waits here.
                let place = poll_fn(|cx| poll_place(&worker, &current, cx)).await;
                session::start(&worker, stream, peer, &current, place);
            }
            Err(e) if is_transient(&e) => {}
            Err(e) => {
                tracing::warn!("{}: accept: {e}", current.addr);
                // Out of descriptors or memory: others need time to give some back.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn poll_accept(
    Socket { listener, watch }: &Socket,
    queue: &mut Queue,
    cx: &mut Context<'_>,
) -> Poll<io::Result<(std::net::TcpStream, SocketAddr)>> {
    ready!(watch.poll_ready(cx, Side::Read));
    ready!(poll_call(cx));
    match queue.take(listener) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            match watch.blocked(listener.as_fd(), cx, Side::Read) {
                Ok(()) => Poll::Pending,
                Err(e) => Poll::Ready(Err(e)),
            }
        }
        result => Poll::Ready(result),
    }
}

/// What waits at a listener.
///
/// The accept that finds nothing makes a socket and a file all the same, and costs as much as one that takes
/// a connection: where connections come one by one, as much as all of them.
#[derive(Default)]
struct Queue {
    /// So many are known to wait.
    left: u32,
}

impl Queue {
    /// The next one; `WouldBlock` only when there is none at this moment.
    fn take(&mut self, listener: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        if self.left == 0 {
            // What can't be counted is tried.
            self.left = phalanx_sys::net::waiting(listener).unwrap_or(1);
        }
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        phalanx_sys::net::accept(listener).inspect_err(|_| self.left = 0)
    }
}

fn poll_room(worker: &Worker, target: &Target, cx: &mut Context<'_>) -> Poll<()> {
    let (frontend, process) = (&target.frontend, worker.shared.state.process());
    let free = || {
        target.limit.has_room()
            && frontend.conns() < frontend.maxconn()
            && process.conns() < process.maxconn()
    };
    if free() {
        return Poll::Ready(());
    }
    worker.shared.room.wait(cx.waker());
    if free() { Poll::Ready(()) } else { Poll::Pending }
}

fn poll_place<'a>(worker: &'a Worker, target: &'a Target, cx: &mut Context<'_>) -> Poll<Place<'a>> {
    let (room, process) = (&worker.shared.room, worker.shared.state.process());
    if let Some(place) = room.enter(&target.limit, &target.frontend, process) {
        return Poll::Ready(place);
    }
    room.wait(cx.waker());
    match room.enter(&target.limit, &target.frontend, process) {
        Some(place) => Poll::Ready(place),
        None => Poll::Pending,
    }
}

fn is_transient(e: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}
