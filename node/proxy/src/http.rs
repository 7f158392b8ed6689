//! HTTP mode: requests one after the other on a client connection, each with its own way to a server.
//!
//! [`serve`] waits for a request and hands it to [`transaction`]; nothing of a request is kept while
//! the connection is idle. A request goes with the plan that was in force when it began.

mod capture;
mod exchange;
mod forward;
mod message;
mod reply;
mod transaction;

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use phalanx_config::{Proxy, Timeouts};
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::h1::{self, Body, Chunked, Error, ErrorKind, Parsed, RequestFraming};
use phalanx_engine::log::{self, Timers};
use phalanx_engine::state::sessions;
use phalanx_engine::time::Now;

use crate::buffer::poll_fill;
use crate::connect::Dispatch;
use crate::deadline::within;
use crate::front::Front;
use crate::report::{self, Report};
use crate::session::{Session, buffer_size};
use crate::worker::View;

use self::message::Scratch;

/// A request whose head is complete, at the start of the client's buffer.
pub(crate) struct Request {
    pub(crate) scratch: Box<Scratch>,
    pub(crate) framing: RequestFraming,
    /// When its first byte came.
    pub(crate) began: Now,
    /// When its head was complete.
    pub(crate) received: Now,
    /// The first on its connection.
    pub(crate) first: bool,
}

/// Whether the client connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Request,
    Close,
}

/// Why no request came.
enum NoRequest {
    /// It was idle, or never sent anything that matters: nothing to say.
    Silent,
    /// It must be told.
    Refused(Box<Refusal>),
}

impl NoRequest {
    /// The end of a connection that sent nothing, or a part of a request.
    fn refused(cause: Cause, status: u16, began: Now) -> NoRequest {
        let end = End::new(cause, Phase::Request);
        NoRequest::Refused(Box::new(Refusal { end, status, error: None, began }))
    }
}

/// What a client is told that sent no request.
struct Refusal {
    end: End,
    status: u16,
    /// What is wrong with what it sent.
    error: Option<Error>,
    /// When its first byte came, or its connection.
    began: Now,
}

/// A client connection between two requests.
///
/// Every byte of this is one of an idle connection: what can be found again is not kept.
struct Client {
    session: Session,
    plan: Rc<View>,
    front: Front,
    /// Of a request that has begun to come.
    scratch: Option<Box<Scratch>>,
    /// Of the frontend in the plan.
    index: u32,
    /// It is to send its first request.
    first: bool,
    /// The clock of the request runs, and not that of an idle connection.
    armed: bool,
}

/// Serves a client until it or we close.
#[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice, all the time")]
pub(crate) fn serve(
    session: Session,
    plan: Rc<View>,
    index: usize,
    front: Front,
) -> impl Future<Output = ()> {
    let mut client =
        Client { session, plan, front, scratch: None, index: index as u32, first: true, armed: false };
    async move {
        let refusal = loop {
            client.expect_request();
            // Boxed: an idle connection does not carry the state of a request.
            let serving = match poll_fn(|cx| client.poll_request(cx)).await {
                Ok(request) => {
                    let Client { session, plan, index, front, .. } = &mut client;
                    Box::pin(transaction::run(session, plan, *index as usize, front, request))
                }
                Err(NoRequest::Silent) => break None,
                Err(NoRequest::Refused(refusal)) => break Some(refusal),
            };
            if serving.await == Next::Close || !client.goes_on() {
                break None;
            }
        };
        Box::pin(client.end(refusal)).await;
    }
}

impl Client {
    fn config(&self) -> &Proxy {
        &self.plan.proxies[self.index as usize].config
    }

    /// Begins to wait for a request.
    fn expect_request(&mut self) {
        // What bodies have made of it is not for heads.
        self.front.buf.shrink(buffer_size(&self.plan));
        self.armed = false;
        if self.front.buf.is_empty() {
            let timeouts = &self.config().timeouts;
            let idle = if self.first { None } else { timeouts.http_keep_alive }.or(limit(timeouts));
            // With http-request the clock runs from the accept on.
            self.armed = self.first && !restarts(timeouts);
            self.front.deadline.set(idle);
            if !self.first {
                self.session.entry.note(None, None, sessions::Phase::Request);
            }
        }
    }

    /// Waits for the head of the request.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request, NoRequest>> {
        loop {
            if !self.front.buf.is_empty()
                && let Some(result) = self.parse()
            {
                return Poll::Ready(result);
            }
            if let Err(ended) = ready!(poll_more(cx, &self.session, &mut self.front, self.first)) {
                // An idle connection ends without a word.
                let silent = self.front.buf.is_empty() && !self.first;
                let began = self.scratch.as_ref().map_or(self.session.accepted(), |scratch| scratch.began);
                return Poll::Ready(Err(match ended {
                    Ended::Client if silent => NoRequest::Silent,
                    Ended::Timeout if silent => NoRequest::Silent,
                    Ended::Killed => NoRequest::Silent,
                    Ended::Client => NoRequest::refused(Cause::ClientAbort, 400, began),
                    Ended::Timeout => NoRequest::refused(Cause::ClientTimeout, 408, began),
                }));
            }
        }
    }

    /// Looks at what has come; `None` = it is a part of a head.
    fn parse(&mut self) -> Option<Result<Request, NoRequest>> {
        let (worker, front) = (&self.session.worker, &mut self.front);
        let mut scratch = self.scratch.take().unwrap_or_else(|| Scratch::begin(worker.now()));
        let began = scratch.began;
        let refused = |error: Error, status| {
            let end = End::new(Cause::Proxy, Phase::Request);
            Some(Err(NoRequest::Refused(Box::new(Refusal { end, status, error: Some(error), began }))))
        };
        match parse(front, &mut scratch) {
            Ok(Some(framing)) => {
                // Usually it came in one piece.
                let received = if scratch.seen > 0 { worker.now() } else { began };
                let first = std::mem::take(&mut self.first);
                return Some(Ok(Request { scratch, framing, began, received, first }));
            }
            Ok(None) if front.buf.is_full() => {
                return refused(Error { kind: ErrorKind::TooLong, at: front.buf.len() }, 400);
            }
            Ok(None) => {}
            Err(e) => {
                scratch.request.restore_names(front.buf.bytes_mut());
                return refused(e, e.status());
            }
        }
        let timeouts = &self.plan.proxies[self.index as usize].config.timeouts;
        // Only what is new restarts it: a wake-up of the deadline itself comes by here, too.
        if !self.armed || restarts(timeouts) && front.buf.len() > scratch.seen as usize {
            front.deadline.set(limit(timeouts));
            self.armed = true;
        }
        scratch.seen = front.buf.len() as u32;
        self.scratch = Some(scratch);
        None
    }

    /// Whether there may be another request; it goes with the plan that is in force now.
    fn goes_on(&mut self) -> bool {
        let worker = &self.session.worker;
        let current = worker.plan();
        if current.epoch != self.plan.epoch {
            let Some(now) = current.index(self.session.frontend().name()) else { return false };
            (self.plan, self.index) = (current, now as u32);
        }
        !worker.shared.state.process().is_stopping() || self.front.has_more()
    }

    /// Tells it what was wrong, if anything was, and closes.
    async fn end(&mut self, refusal: Option<Box<Refusal>>) {
        if let Some(refusal) = refusal {
            let config = &self.plan.proxies[self.index as usize].config;
            refuse(&self.session, config, &mut self.front, *refusal).await;
        }
        self.session.worker.pool.forget(&self.session.entry);
        if must_linger(&self.front) {
            linger(&mut self.front).await;
        }
    }
}

/// How long a client may take for the head of a request.
fn limit(timeouts: &Timeouts) -> Option<Duration> {
    timeouts.http_request.or(timeouts.client)
}

/// Whether each byte of a head gives it as long again.
fn restarts(timeouts: &Timeouts) -> bool {
    timeouts.http_request.is_none()
}

/// Why nothing more is to be had from a client.
enum Ended {
    Client,
    Timeout,
    Killed,
}

/// One read while waiting for a request.
fn poll_more(
    cx: &mut Context<'_>,
    session: &Session,
    front: &mut Front,
    first: bool,
) -> Poll<Result<(), Ended>> {
    if !front.eof {
        match poll_fill(&front.stream, cx, &mut front.buf) {
            Poll::Ready(Ok(0)) => front.eof = true,
            Poll::Ready(Ok(_)) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => front.eof = true,
            Poll::Pending => {}
        }
    }
    if front.eof {
        return Poll::Ready(Err(Ended::Client));
    }
    let entry = &session.entry;
    if entry.poll_killed(cx.waker()) {
        return Poll::Ready(Err(Ended::Killed));
    }
    if !first && front.buf.is_empty() && entry.ends_when_idle() {
        return Poll::Ready(if front.has_more() { Ok(()) } else { Err(Ended::Killed) });
    }
    front.deadline.poll(cx).map(|()| Err(Ended::Timeout))
}

fn parse(front: &mut Front, scratch: &mut Scratch) -> Result<Option<RequestFraming>, Error> {
    match h1::request(front.buf.bytes_mut(), &mut scratch.request)? {
        Parsed::Partial => Ok(None),
        Parsed::Complete(len) => {
            let buf = front.buf.bytes();
            if len > front.buf.size() {
                return Err(Error { kind: ErrorKind::TooLong, at: front.buf.size() });
            }
            let framing = h1::request_framing(buf, &scratch.request)?;
            // A body that came with its head and is no body makes this no request.
            if framing.body == Body::Chunked {
                let body = buf.get(len..).unwrap_or(&[]);
                Chunked::default().scan(body).map_err(|e| Error { at: e.at + len, ..e })?;
            }
            Ok(Some(framing))
        }
    }
}

/// Answers what is no valid request, captures and logs it.
async fn refuse(
    session: &Session,
    config: &Proxy,
    front: &mut Front,
    Refusal { end, status, error, began }: Refusal,
) {
    let worker = &session.worker;
    let now = worker.now();
    let shard = session.frontend().counters().shard(worker.id);
    bump(&shard.ereq, 1);
    shard.response(status);
    for tracked in session.memory.all_tracked() {
        tracked.http_req(now);
        // One that was too slow is not the client's error.
        if status != 408 {
            tracked.http_err(now);
        }
    }
    if let Some(error) = error {
        let state = &worker.shared.state;
        capture::request(session, front, error.at);
        state.process().counters().shard(worker.id).response(status);
    }
    let nothing_sent = front.buf.is_empty();
    let text = reply::refusal(config, status);
    // A client that does not even read its refusal is not waited for.
    let _ = within(reply::PATIENCE, front.stream.send_all(&text)).await;
    if nothing_sent && config.dontlognull {
        return;
    }
    report::log(&Report {
        session,
        client: session.src(),
        destination: session.dst(),
        config,
        backend: None,
        dispatch: &Dispatch::default(),
        unix_us: began.unix_us,
        timers: Timers { total: report::since(began)(now), ..Timers::default() },
        status: Some(status),
        bytes: 0,
        termination: end.http_code(Default::default(), Default::default()),
        request: b"",
        server: None,
        asap: false,
        level: log::INFO,
    });
}

/// Whether closing at once would reset the connection: bytes of the client were not read.
fn must_linger(front: &Front) -> bool {
    let more = || !front.said_last && front.stream.read_now(&mut [0; 1]).is_ok_and(|n| n > 0);
    let unread = || !front.buf.is_empty() || more();
    !front.eof && (front.abandoned || unread())
}

/// Closes so that the client can still read what was sent: our side first, then what it still sends
/// is thrown away for a moment.
async fn linger(front: &mut Front) {
    front.stream.end_sending();
    front.deadline.set(Some(reply::PATIENCE));
    let mut left = reply::DRAIN;
    poll_fn(|cx| {
        while left > 0 {
            let n = front.buf.len();
            front.buf.consume(n);
            match poll_fill(&front.stream, cx, &mut front.buf) {
                Poll::Ready(Ok(n)) if n > 0 => left = left.saturating_sub(n),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return front.deadline.poll(cx),
            }
        }
        Poll::Ready(())
    })
    .await;
}
