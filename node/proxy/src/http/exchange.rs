//! One request and its response between two sockets.
//!
//! The request's body goes up while the response may already come down. Bodies are not copied: what is
//! read is checked where it lies and written from there. What was sent of a request stays in the
//! client's buffer as long as it fits, so that it can be sent again when an idle connection turns
//! out to be dead.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::h1::{self, Head, Parsed};

use super::forward::Flow;
use crate::buffer::{Buffer, LARGE, Text, poll_fill, poll_write};
use crate::connect::First;
use crate::front::{Front, Gone};
use crate::pipes::{Conduit, Filled};
use crate::runtime;
use crate::session::Session;
use crate::stream::Stream;

/// Longest body, or piece of one, that is copied behind its head to be written with it.
const SMALL: usize = 4096;

/// Why an exchange did not come to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// It failed; with a status if that is another than the end's own.
    End(End, Option<u16>),
    /// The reused connection was dead and nothing is lost: send it again on a new one.
    Retry,
}

/// The way up.
pub(crate) struct Upload {
    /// The head as it is sent.
    pub(crate) head: Text,
    head_sent: usize,
    pub(crate) flow: Flow,
    /// What goes past the client's buffer.
    pub(crate) conduit: Conduit,
    /// Where the body's bytes begin in the client's buffer.
    base: usize,
    /// Bytes of the body after `base` that were sent.
    sent: usize,
    /// Everything that was sent is still in the buffer.
    replayable: bool,
    /// It is sent for the second time.
    rewound: bool,
    /// Everything was sent.
    pub(crate) done: bool,
    /// The server does not take more, or the client does not send more.
    pub(crate) broken: bool,
}

impl Upload {
    /// A request whose head takes the first `base` bytes of the client's buffer.
    pub(crate) fn new(head: Text, flow: Flow, base: usize, conduit: Conduit) -> Upload {
        Upload {
            head,
            head_sent: 0,
            flow,
            conduit,
            base,
            sent: 0,
            replayable: true,
            rewound: false,
            done: false,
            broken: false,
        }
    }

    /// What a new connection begins with: a head that no body follows at once.
    pub(crate) fn first(&self) -> First<'_> {
        match self.flow {
            Flow::Length(0) => First::Head(&self.head),
            _ => First::Later,
        }
    }

    /// So much of the head was sent when the connection was made.
    pub(crate) fn began(&mut self, sent: usize) {
        self.head_sent = sent;
    }

    /// Begins anew with a fresh body flow; only after [`Stop::Retry`].
    pub(crate) fn rewind(&mut self, flow: Flow) {
        self.flow = flow;
        (self.head_sent, self.sent, self.done, self.broken) = (0, 0, false, false);
        self.rewound = true;
    }

    /// Whether it was sent before, over a connection that turned out to be dead.
    pub(crate) fn is_rewound(&self) -> bool {
        self.rewound
    }

    /// Bytes of the client's buffer that belong to the request.
    pub(crate) fn used(&self) -> usize {
        self.base + self.sent
    }

    /// Splices more of the body, once nothing of it is in the client's buffer any more; `None` = it has to
    /// be copied.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut Front,
        server: &Stream,
    ) -> Poll<Result<Option<usize>, Lost>> {
        let Flow::Length(left) = self.flow else { return Poll::Ready(Ok(None)) };
        if self.replayable || !front.buf.is_empty() {
            return Poll::Ready(Ok(None));
        }
        if self.conduit.is_empty() {
            if !self.conduit.wanted(left) {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.conduit.poll_fill(cx, &front.stream, left)) {
                Ok(Filled::Bytes(_)) => {}
                Ok(Filled::Copy) => return Poll::Ready(Ok(None)),
                Ok(Filled::End) | Err(_) => return Poll::Ready(Err(Lost::Client)),
            }
        }
        let sent = ready!(self.conduit.poll_drain(cx, server)).map_err(|_| Lost::Server)?;
        self.flow.sent(sent);
        Poll::Ready(Ok(Some(sent)))
    }
}

/// Which side of an upload failed.
enum Lost {
    Client,
    Server,
}

/// The inactivity limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) client: Option<Duration>,
    pub(crate) server: Option<Duration>,
}

/// A request and its response under way.
pub(crate) struct Exchange<'a> {
    session: &'a Session,
    server: &'a Stream,
    pub(crate) up: &'a mut Upload,
    /// What the server sent.
    pub(crate) reply: Buffer,
    /// Head of the response on its way to the client.
    pub(crate) out: Text,
    out_sent: usize,
    /// The response's body.
    pub(crate) down: Flow,
    /// What goes past `reply`.
    pub(crate) conduit: Conduit,
    limits: Limits,
    abortonclose: bool,
    /// The connection was used before.
    reused: bool,
    /// Where the response that was refused is wrong.
    pub(crate) refused: Option<usize>,
    /// Bytes written to the server.
    pub(crate) bytes_up: u64,
    /// Bytes written to the client.
    pub(crate) bytes_down: u64,
    /// The response's body is so long that the next is read in larger pieces.
    pub(crate) bulk: bool,
    /// The client's connection is closed as soon as the response is sent.
    pub(crate) closes: bool,
    /// Longest head of a response.
    longest: usize,
    client_seen: Seen,
    server_seen: Seen,
}

impl<'a> Exchange<'a> {
    /// Prepares; nothing is sent yet.
    #[allow(clippy::too_many_arguments, reason = "one caller")]
    pub(crate) fn new(
        session: &'a Session,
        server: &'a Stream,
        up: &'a mut Upload,
        limits: Limits,
        abortonclose: bool,
        reused: bool,
        longest: usize,
        bulk: bool,
        conduit: Conduit,
    ) -> Exchange<'a> {
        let bytes_up = up.head_sent as u64;
        Exchange {
            session,
            server,
            up,
            reply: Buffer::new(if bulk { longest.max(LARGE) } else { longest }),
            bulk: false,
            closes: false,
            longest,
            out: Text::default(),
            out_sent: 0,
            down: Flow::Length(0),
            conduit,
            limits,
            abortonclose,
            reused,
            refused: None,
            bytes_up,
            bytes_down: 0,
            client_seen: Seen::default(),
            server_seen: Seen::default(),
        }
    }

    /// Sends the request until the head of a response is there; returns its length.
    pub(crate) fn head(
        &mut self,
        front: &mut Front,
        head: &mut Head,
    ) -> impl Future<Output = Result<usize, Stop>> {
        poll_fn(|cx| self.poll_head(cx, front, head))
    }

    /// Sends `out` and the response's body; the rest of the request meanwhile.
    pub(crate) fn body(&mut self, front: &mut Front) -> impl Future<Output = Result<(), Stop>> {
        poll_fn(|cx| self.poll_body(cx, front))
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut Front,
        head: &mut Head,
    ) -> Poll<Result<usize, Stop>> {
        self.poll_upload(cx, front, Phase::Headers)?;
        loop {
            if !self.reply.is_empty() {
                match h1::response(self.reply.bytes_mut(), head) {
                    Ok(Parsed::Complete(len)) if len <= self.longest => return Poll::Ready(Ok(len)),
                    Ok(Parsed::Partial) if self.reply.len() < self.longest => {}
                    result => {
                        let end = self.reply.len().min(self.longest);
                        self.refused = Some(result.map_or_else(|e| e.at, |_| end));
                        head.restore_names(self.reply.bytes_mut());
                        return Poll::Ready(Err(stop(Cause::Proxy, Phase::Headers)));
                    }
                }
            }
            match poll_fill(self.server, cx, &mut self.reply) {
                Poll::Ready(Ok(n)) if n > 0 => self.server_seen.now(),
                Poll::Ready(_) => {
                    let lost = self.reused && self.up.replayable && self.reply.is_empty();
                    let why = if lost { Stop::Retry } else { stop(Cause::ServerAbort, Phase::Headers) };
                    return Poll::Ready(Err(why));
                }
                Poll::Pending => break,
            }
        }
        if self.session.entry.poll_killed(cx.waker()) {
            return Poll::Ready(Err(stop(self.session.entry.kill_cause(), Phase::Headers)));
        }
        if self.up.done {
            match front.poll_left(cx) {
                Poll::Ready(Gone::HalfClosed) if self.abortonclose => {
                    return Poll::Ready(Err(stop(Cause::ClientAbort, Phase::Headers)));
                }
                // Nobody is there to be told; HAProxy's code for it.
                Poll::Ready(Gone::Reset) => return Poll::Ready(Err(stop(Cause::ClientAbort, Phase::Data))),
                _ => {}
            }
        }
        let uploading = !(self.up.done || self.up.broken);
        let for_client = uploading && self.nothing_to_send(front);
        let cause = ready!(self.poll_deadline(cx, front, for_client, !for_client));
        let end = End::new(cause, Phase::Headers);
        Poll::Ready(Err(Stop::End(end, (cause == Cause::ClientTimeout).then_some(408))))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, front: &mut Front) -> Poll<Result<(), Stop>> {
        if !self.up.done && self.poll_upload(cx, front, Phase::Data).is_err() {
            // The response goes on; the connection ends with it.
            self.up.broken = true;
        }
        let blocked = loop {
            let mut n =
                self.down.sendable(self.reply.bytes()).map_err(|_| stop(Cause::Proxy, Phase::Data))?;
            if n > 0 && n <= SMALL && self.out_sent < self.out.len() {
                // Cheaper than a second slice for the kernel to gather.
                self.out.extend_from_slice(&self.reply.bytes()[..n]);
                self.down.sent(n);
                self.reply.consume(n);
                n = 0;
            }
            let head = &self.out[self.out_sent..];
            if !head.is_empty() || n > 0 {
                let last = self.closes && self.up.done && self.down.ends_with(n, self.reply.len());
                match poll_write(&front.stream, cx, head, &self.reply.bytes()[..n], last) {
                    Poll::Ready(Ok(written)) => {
                        let of_head = written.min(head.len());
                        self.out_sent += of_head;
                        self.down.sent(written - of_head);
                        self.reply.consume(written - of_head);
                        self.bytes_down += written as u64;
                    }
                    Poll::Ready(Err(_)) => {
                        let more = self.down.wants(self.reply.len());
                        let phase = if more { Phase::Data } else { Phase::Last };
                        return Poll::Ready(Err(stop(Cause::ClientAbort, phase)));
                    }
                    Poll::Pending => break true,
                }
            } else if self.down.is_done(self.reply.len()) {
                self.out.clear();
                self.out_sent = 0;
                return Poll::Ready(Ok(()));
            } else {
                match self.poll_more(cx, front) {
                    Poll::Ready(Ok(true)) => {
                        self.server_seen.now();
                        self.client_seen.now();
                    }
                    Poll::Ready(Ok(false)) => {
                        if !self.down.closed() {
                            return Poll::Ready(Err(stop(Cause::ServerAbort, Phase::Data)));
                        }
                    }
                    Poll::Ready(Err(stop)) => return Poll::Ready(Err(stop)),
                    Poll::Pending => break !self.conduit.is_empty(),
                }
            }
        };
        self.conduit.rest();
        if self.session.entry.poll_killed(cx.waker()) {
            return Poll::Ready(Err(stop(self.session.entry.kill_cause(), Phase::Data)));
        }
        if (self.up.done || self.up.broken) && front.poll_left(cx) == Poll::Ready(Gone::Reset) {
            return Poll::Ready(Err(stop(Cause::ClientAbort, Phase::Data)));
        }
        let cause = ready!(self.poll_deadline(cx, front, blocked, !blocked));
        Poll::Ready(Err(stop(cause, Phase::Data)))
    }

    /// More of the response's body: into the buffer, or spliced to the client; false = no more will come.
    fn poll_more(&mut self, cx: &mut Context<'_>, front: &mut Front) -> Poll<Result<bool, Stop>> {
        if let Some(coming) = self.down.free_run()
            && self.reply.is_empty()
            && (self.conduit.wanted(coming.unwrap_or(0)) || !self.conduit.is_empty())
        {
            let left = coming.unwrap_or(u64::MAX);
            if self.conduit.is_empty() {
                let filled = ready!(self.conduit.poll_fill(cx, self.server, left));
                match filled.map_err(|_| stop(Cause::ServerAbort, Phase::Data))? {
                    Filled::Copy => {}
                    Filled::End => return Poll::Ready(Ok(false)),
                    Filled::Bytes(_) => self.server_seen.now(),
                }
            }
            if !self.conduit.is_empty() {
                let sent = ready!(self.conduit.poll_drain(cx, &front.stream));
                let sent = sent.map_err(|_| {
                    let more = self.down.wants(self.conduit.len());
                    stop(Cause::ClientAbort, if more { Phase::Data } else { Phase::Last })
                })?;
                self.down.sent(sent);
                self.bytes_down += sent as u64;
                return Poll::Ready(Ok(true));
            }
        }
        if self.conduit.is_bulk() {
            self.reply.grow();
        }
        match ready!(poll_fill(self.server, cx, &mut self.reply)) {
            Ok(n) => {
                self.conduit.copied(self.reply.is_full());
                Poll::Ready(Ok(n > 0))
            }
            Err(_) => Poll::Ready(Err(stop(Cause::ServerAbort, Phase::Data))),
        }
    }

    /// Sends what there is of the request and reads more of it.
    fn poll_upload(&mut self, cx: &mut Context<'_>, front: &mut Front, phase: Phase) -> Result<(), Stop> {
        let result = self.upload(cx, front, phase);
        if result.is_err() || self.up.broken {
            self.up.conduit.discard();
        } else {
            self.up.conduit.rest();
        }
        result
    }

    /// As far as both sockets let it; the pipe is the caller's to give back.
    fn upload(&mut self, cx: &mut Context<'_>, front: &mut Front, phase: Phase) -> Result<(), Stop> {
        let up = &mut *self.up;
        while !(up.done || up.broken) {
            let unsent = front.buf.bytes().get(up.base + up.sent..).unwrap_or(&[]);
            let n =
                up.flow.sendable(unsent).map_err(|_| Stop::End(End::new(Cause::Proxy, phase), Some(400)))?;
            let head = &up.head[up.head_sent..];
            if !head.is_empty() || n > 0 {
                match poll_write(self.server, cx, head, &unsent[..n], false) {
                    Poll::Ready(Ok(written)) => {
                        let of_head = written.min(head.len());
                        up.head_sent += of_head;
                        up.flow.sent(written - of_head);
                        up.sent += written - of_head;
                        self.bytes_up += written as u64;
                        self.server_seen.now();
                    }
                    // The server may have answered before it closed: the answer is read first.
                    Poll::Ready(Err(_)) => up.broken = true,
                    Poll::Pending => return Ok(()),
                }
            } else if up.flow.is_done(unsent.len()) {
                up.done = true;
            } else {
                if front.buf.is_full() {
                    // Room for more: what was sent cannot be sent again.
                    front.buf.consume(up.base + up.sent);
                    (up.base, up.sent, up.replayable) = (0, 0, false);
                }
                if front.eof && up.conduit.is_empty() {
                    return Err(stop(Cause::ClientAbort, Phase::Data));
                }
                match up.poll_splice(cx, front, self.server) {
                    Poll::Ready(Ok(Some(sent))) => {
                        self.bytes_up += sent as u64;
                        self.client_seen.now();
                        self.server_seen.now();
                        continue;
                    }
                    Poll::Ready(Ok(None)) => {}
                    Poll::Ready(Err(Lost::Server)) => {
                        up.broken = true;
                        continue;
                    }
                    Poll::Ready(Err(Lost::Client)) => {
                        front.eof = true;
                        return Err(stop(Cause::ClientAbort, Phase::Data));
                    }
                    Poll::Pending => break,
                }
                if !up.replayable {
                    front.buf.grow();
                }
                match poll_fill(&front.stream, cx, &mut front.buf) {
                    Poll::Ready(Ok(n)) if n > 0 => self.client_seen.now(),
                    Poll::Ready(_) => {
                        front.eof = true;
                        return Err(stop(Cause::ClientAbort, Phase::Data));
                    }
                    Poll::Pending => break,
                }
            }
        }
        Ok(())
    }

    /// Whether all that was received of the request has been sent.
    fn nothing_to_send(&mut self, front: &Front) -> bool {
        let unsent = front.buf.bytes().get(self.up.used()..).unwrap_or(&[]);
        self.up.head_sent == self.up.head.len()
            && self.up.conduit.is_empty()
            && self.up.flow.sendable(unsent).is_ok_and(|n| n == 0)
    }

    fn poll_deadline(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut Front,
        for_client: bool,
        for_server: bool,
    ) -> Poll<Cause> {
        let client_seen = self.client_seen.at();
        let server_seen = self.server_seen.at();
        let client = self.limits.client.filter(|_| for_client).map(|d| client_seen + d);
        let server = self.limits.server.filter(|_| for_server).map(|d| server_seen + d);
        let first = match (client, server) {
            (Some(c), Some(s)) => Some(c.min(s)),
            (c, s) => c.or(s),
        };
        front.deadline.set_at(first);
        ready!(front.deadline.poll(cx));
        Poll::Ready(if client == first { Cause::ClientTimeout } else { Cause::ServerTimeout })
    }
}

/// When a side last gave or took something. The clock is read only when there is something to wait
/// for: most requests never come to that with their response.
#[derive(Clone, Copy, Debug, Default)]
struct Seen(Option<Instant>);

impl Seen {
    /// In this turn.
    fn now(&mut self) {
        self.0 = None;
    }

    /// The moment.
    fn at(&mut self) -> Instant {
        *self.0.get_or_insert_with(runtime::instant)
    }
}

fn stop(cause: Cause, phase: Phase) -> Stop {
    Stop::End(End::new(cause, phase), None)
}
