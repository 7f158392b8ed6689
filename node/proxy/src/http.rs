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

use phalanx_config::{Proxy, Timeouts};
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::h1::{self, Body, Chunked, Error, ErrorKind, Parsed, RequestFraming};
use phalanx_engine::log::{self, Timers};
use phalanx_engine::state::sessions;
use phalanx_engine::time::Now;
use tokio::io::AsyncWriteExt;

use crate::buffer::poll_fill;
use crate::connect::Dispatch;
use crate::front::Front;
use crate::report::{self, Report};
use crate::session::Session;
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

/// Serves a client until it or we close.
#[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice, all the time")]
pub(crate) fn serve(
    session: Session,
    mut plan: Rc<View>,
    mut index: usize,
    mut front: Front,
) -> impl Future<Output = ()> {
    async move {
        let mut first = true;
        session.worker.turn();
        let refusal = loop {
            // Boxed: an idle connection does not carry the state of a request.
            let mut serving = match receive(&session, &plan.proxies[index].config, &mut front, first).await {
                Ok(request) => Box::pin(transaction::run(&session, &plan, index, &mut front, request)),
                Err(NoRequest::Silent) => break None,
                Err(NoRequest::Refused(refusal)) => break Some(refusal),
            };
            let mut begun = false;
            let served = poll_fn(|cx| {
                // Its first turn is that in which the request came.
                if std::mem::replace(&mut begun, true) {
                    session.worker.turn();
                }
                serving.as_mut().poll(cx)
            });
            let next = served.await;
            drop(serving);
            if next == Next::Close {
                break None;
            }
            first = false;
            let current = session.worker.plan();
            if current.epoch != plan.epoch {
                let Some(now) = current.index(session.frontend.name()) else { break None };
                (plan, index) = (current, now);
            }
            if session.worker.shared.state.process().is_stopping() && front.buf.is_empty() {
                break None;
            }
        };
        if let Some(refusal) = refusal {
            let config = &plan.proxies[index].config;
            Box::pin(refuse(&session, config, &mut front, *refusal)).await;
        }
        session.worker.pool.forget(session.entry.session());
        if must_linger(&front) {
            Box::pin(linger(&mut front)).await;
        }
    }
}

/// Waits for the head of the next request.
fn receive<'a>(
    session: &'a Session,
    config: &'a Proxy,
    front: &'a mut Front,
    first: bool,
) -> impl Future<Output = Result<Request, NoRequest>> + 'a {
    // Every byte of this is one of an idle connection: what can be found again is not kept.
    let timeouts = &config.timeouts;
    let limit = |timeouts: &Timeouts| timeouts.http_request.or(timeouts.client);
    let restarts = |timeouts: &Timeouts| timeouts.http_request.is_none();
    let mut scratch: Option<Box<Scratch>> = None;
    let mut armed = false;
    let mut seen: u32 = 0;
    if front.buf.is_empty() {
        let idle = if first { None } else { timeouts.http_keep_alive }.or(limit(timeouts));
        front.deadline.set_from(session.worker.instant(), idle);
        // With http-request the clock runs from the accept on.
        armed = first && !restarts(timeouts);
        if !first {
            session.entry.session().note(None, None, sessions::Phase::Request);
        }
    }
    poll_fn(move |cx| {
        session.worker.turn();
        loop {
            if !front.buf.is_empty() {
                let held = scratch.get_or_insert_with(|| Scratch::begin(session.worker.moment()));
                let began = held.began;
                let refused = |end: End, error: Error, status| {
                    let refusal = Refusal { end, status, error: Some(error), began };
                    Poll::Ready(Err(NoRequest::Refused(Box::new(refusal))))
                };
                match parse(front, held) {
                    Ok(Some(framing)) => {
                        return Poll::Ready(Ok(Request {
                            scratch: scratch.take().unwrap_or_else(|| Scratch::begin(began)),
                            framing,
                            began,
                            // Usually it came in one piece.
                            received: if seen > 0 { session.worker.moment() } else { began },
                            first,
                        }));
                    }
                    Ok(None) if front.buf.is_full() => {
                        let error = Error { kind: ErrorKind::TooLong, at: front.buf.len() };
                        return refused(End::new(Cause::Proxy, Phase::Request), error, 400);
                    }
                    Ok(None) => {}
                    Err(e) => {
                        if let Some(scratch) = &scratch {
                            scratch.request.restore_names(front.buf.bytes_mut());
                        }
                        return refused(End::new(Cause::Proxy, Phase::Request), e, e.status());
                    }
                }
                // Only what is new restarts it: a wake-up of the deadline itself comes by here, too.
                if !armed || restarts(timeouts) && front.buf.len() > seen as usize {
                    front.deadline.set_from(session.worker.instant(), limit(timeouts));
                    armed = true;
                }
                seen = front.buf.len() as u32;
            }
            if let Err(ended) = ready!(poll_more(cx, session, front, first)) {
                // An idle connection ends without a word.
                let silent = front.buf.is_empty() && !first;
                let began = scratch.as_ref().map_or(session.accepted(), |scratch| scratch.began);
                return Poll::Ready(Err(match ended {
                    Ended::Client if silent => NoRequest::Silent,
                    Ended::Timeout if silent => NoRequest::Silent,
                    Ended::Killed => NoRequest::Silent,
                    Ended::Client => NoRequest::refused(Cause::ClientAbort, 400, began),
                    Ended::Timeout => NoRequest::refused(Cause::ClientTimeout, 408, began),
                }));
            }
        }
    })
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
        match poll_fill(&mut front.stream, cx, &mut front.buf) {
            Poll::Ready(Ok(0)) => front.eof = true,
            Poll::Ready(Ok(_)) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => front.eof = true,
            Poll::Pending => {}
        }
    }
    if front.eof {
        return Poll::Ready(Err(Ended::Client));
    }
    let entry = session.entry.session();
    if entry.poll_killed(cx.waker()) || (!first && front.buf.is_empty() && entry.ends_when_idle()) {
        return Poll::Ready(Err(Ended::Killed));
    }
    front.deadline.poll(cx).map(|()| Err(Ended::Timeout))
}

fn parse(front: &mut Front, scratch: &mut Scratch) -> Result<Option<RequestFraming>, Error> {
    match h1::request(front.buf.bytes_mut(), &mut scratch.request)? {
        Parsed::Partial => Ok(None),
        Parsed::Complete(len) => {
            let buf = front.buf.bytes();
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
    let shard = session.frontend.counters().shard(worker.id);
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
    let _ = tokio::time::timeout(reply::PATIENCE, front.stream.write_all(&text)).await;
    if nothing_sent && config.dontlognull {
        return;
    }
    report::log(&Report {
        session,
        client: front.src(),
        destination: front.dst(),
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
    let more = || !front.said_last && front.stream.try_read(&mut [0; 1]).is_ok_and(|n| n > 0);
    let unread = || !front.buf.is_empty() || more();
    !front.eof && (front.abandoned || unread())
}

/// Closes so that the client can still read what was sent: our side first, then what it still sends
/// is thrown away for a moment.
async fn linger(front: &mut Front) {
    let _ = front.stream.shutdown().await;
    front.deadline.set(Some(reply::PATIENCE));
    let mut left = reply::DRAIN;
    poll_fn(|cx| {
        while left > 0 {
            let n = front.buf.len();
            front.buf.consume(n);
            match poll_fill(&mut front.stream, cx, &mut front.buf) {
                Poll::Ready(Ok(n)) if n > 0 => left = left.saturating_sub(n),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return front.deadline.poll(cx),
            }
        }
        Poll::Ready(())
    })
    .await;
}
