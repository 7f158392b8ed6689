//! Pipes for splicing: pooled per thread, bounded per process (`maxpipes`).
//!
//! A direction holds a pipe only while there are bytes in it, or within one turn: at the end of a turn
//! an empty one goes back to the thread's pool, and the pool closes what it has not needed for a second.
//! Without a pipe bytes are copied. Decides when splicing is worth it, too: a pipe costs two calls to the
//! kernel for what a copy costs by its length.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use phalanx_config::{Global, Proxy};
use phalanx_engine::state::Process;
use phalanx_sys::splice;

use crate::runtime::Side;
use crate::session::Session;
use crate::stream::Stream;

/// Most bytes taken into a pipe at once; mostly its size is the limit.
const MOST: usize = 1 << 20;
/// What a pipe that is worth it carries at least, from one wake-up to the next.
const WORTH: usize = 16 * 1024;
/// So often in a row less than that is copied again.
const POOR: u8 = 4;
/// A body of known length is spliced from the start when so much of it is still to come.
const LONG: u64 = 32 * 1024;
/// `tune.pipesize` without a line.
const PIPE_SIZE: usize = 256 * 1024;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: Vec::new(), unused: 0, process: None }) };
}

/// The pipes of a thread.
struct Pool {
    free: Vec<splice::Pipe>,
    /// How many of them were not taken since the last purge.
    unused: usize,
    /// Counts them; without one the thread has no pipes.
    process: Option<Arc<Process>>,
}

/// Lets this thread have pipes, as many as the process may have.
pub(crate) fn begin(process: &Arc<Process>) {
    POOL.with_borrow_mut(|pool| pool.process = Some(process.clone()));
}

/// Closes what was not needed since the last call.
pub(crate) fn purge() {
    POOL.with_borrow_mut(|pool| {
        let closed = pool.unused.min(pool.free.len());
        pool.free.drain(..closed);
        pool.unused = pool.free.len();
        if let Some(process) = &pool.process {
            process.pipes.closed(closed);
        }
    });
}

/// How a direction's bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Splicing {
    /// By copies.
    #[default]
    Never,
    /// Spliced where that is cheaper.
    Auto,
    /// Spliced wherever that is possible.
    Always,
}

impl Splicing {
    /// What a session's sections say about the ways up and down.
    pub(crate) fn of(global: &Global, front: &Proxy, back: &Proxy) -> (Splicing, Splicing) {
        let (front, back) = (front.splice, back.splice);
        if global.nosplice {
            return (Splicing::Never, Splicing::Never);
        }
        let auto = match (front.auto, back.auto) {
            (Some(true), _) | (_, Some(true)) | (None, None) => Splicing::Auto,
            _ => Splicing::Never,
        };
        let way = |all| if all { Splicing::Always } else { auto };
        (way(front.request || back.request), way(front.response || back.response))
    }
}

/// Counts what went down without passing through the process.
pub(crate) fn count(session: &Session, spliced: u64) {
    if spliced > 0 {
        session.worker.shared.state.process().spliced.fetch_add(spliced, Ordering::Relaxed);
    }
}

/// A pipe in use.
#[derive(Debug)]
struct Lease(Option<splice::Pipe>);

impl Lease {
    /// An empty pipe of the pool, or a new one; `None` when there is none to be had.
    fn take(size: Option<usize>) -> Option<Lease> {
        POOL.with_borrow_mut(|pool| {
            let process = pool.process.as_ref()?;
            if let Some(pipe) = pool.free.pop() {
                pool.unused = pool.unused.min(pool.free.len());
                process.pipes.taken();
                return Some(Lease(Some(pipe)));
            }
            if !process.pipes.open() {
                return None;
            }
            match splice::Pipe::new(Some(size.unwrap_or(PIPE_SIZE))) {
                Ok(pipe) => Some(Lease(Some(pipe))),
                Err(_) => {
                    process.pipes.given();
                    process.pipes.closed(1);
                    None
                }
            }
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pipe) = self.0.take() else { return };
        // The thread may be ending, its pool gone.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let Some(process) = pool.process.clone() else { return };
            process.pipes.given();
            // What is in it belongs to a session that has ended.
            if pipe.is_empty() { pool.free.push(pipe) } else { process.pipes.closed(1) }
        });
    }
}

/// What is on its way through a pipe in one direction.
#[derive(Debug, Default)]
pub(crate) struct Conduit {
    splicing: Splicing,
    size: Option<usize>,
    lease: Option<Lease>,
    /// So many copies in a row filled the buffer.
    full: u8,
    /// So many fills in a row were hardly worth it.
    poor: u8,
    /// They were too many: copied until it is bulk again.
    tired: bool,
    /// Bytes that went through.
    pub(crate) bytes: u64,
}

/// What came of filling a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// So many bytes.
    Bytes(usize),
    /// The sender has closed.
    End,
    /// There is no pipe, or the socket can't be spliced (any more): bytes have to be copied.
    Copy,
}

impl Conduit {
    /// Nothing on its way yet.
    pub(crate) fn new(splicing: Splicing, global: &Global) -> Conduit {
        Conduit { splicing, size: global.pipesize, ..Conduit::default() }
    }

    /// Whether what comes next is to be spliced, given that at least so many bytes will come.
    pub(crate) fn wanted(&self, coming: u64) -> bool {
        match self.splicing {
            Splicing::Never => false,
            Splicing::Auto => self.is_bulk() || coming >= LONG && !self.tired,
            Splicing::Always => true,
        }
    }

    /// A piece was copied, which filled the buffer or did not.
    pub(crate) fn copied(&mut self, full: bool) {
        self.full = if full { self.full.saturating_add(1) } else { 0 };
        self.tired &= !self.is_bulk();
    }

    /// Whether it looks as if many bytes followed.
    pub(crate) fn is_bulk(&self) -> bool {
        self.full > 1
    }

    /// Bytes received and not yet sent.
    pub(crate) fn len(&self) -> usize {
        self.lease.as_ref().and_then(|lease| lease.0.as_ref()).map_or(0, splice::Pipe::len)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives an empty pipe back: at the end of each turn.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() {
            self.lease = None;
        }
    }

    /// Gives the pipe up with what is in it: that has nowhere to go any more.
    pub(crate) fn discard(&mut self) {
        self.lease = None;
    }

    /// Takes up to `most` bytes from a socket; only while it is empty.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        most: u64,
    ) -> Poll<io::Result<Filled>> {
        let most = usize::try_from(most).unwrap_or(MOST).min(MOST);
        let mut copy = false;
        let filled = ready!(from.poll_io(cx, Side::Read, |socket| {
            if self.lease.is_none() {
                self.lease = Lease::take(self.size);
            }
            let pipe = self.lease.as_mut().and_then(|lease| lease.0.as_mut());
            let Some(pipe) = pipe else {
                copy = true;
                return Ok((0, 0));
            };
            match pipe.fill(&socket, most) {
                // A pipe may be full before its socket is empty.
                Ok(n) => Ok((n, n)),
                // Not this kind of socket, or it stands at urgent data. It is still ready to be read.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    self.splicing = Splicing::Never;
                    self.lease = None;
                    copy = true;
                    Ok((0, 0))
                }
                Err(e) => Err(e),
            }
        }))?;
        if copy {
            return Poll::Ready(Ok(Filled::Copy));
        }
        if filled == 0 {
            return Poll::Ready(Ok(Filled::End));
        }
        self.poor = if filled < WORTH && filled < most { self.poor + 1 } else { 0 };
        if self.poor >= POOR {
            (self.poor, self.full, self.tired) = (0, 0, true);
        }
        Poll::Ready(Ok(Filled::Bytes(filled)))
    }

    /// Sends what is in the pipe; only while it is not empty.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Stream) -> Poll<io::Result<usize>> {
        let Some(pipe) = self.lease.as_mut().and_then(|lease| lease.0.as_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let sent = ready!(to.poll_io(cx, Side::Write, |socket| pipe.drain(&socket).map(|n| (n, n))))?;
        self.bytes += sent as u64;
        Poll::Ready(Ok(sent))
    }
}
